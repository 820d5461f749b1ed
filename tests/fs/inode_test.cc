// Inode records, access-time rules, and InodeTable: what stays in memory, and what loads share.
#include "fs/inode.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>

#include "fs/filesystem.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

// A store with the root directory, and an InodeTable of the test's own on it.
class InodeTest : public testing::Test, public CommitClient {
 protected:
  explicit InodeTest(uint64_t cached_max = 8) {
    VolumeOptions options;
    options.store.background = false;
    options.device_blocks = 16'384;
    world_ = std::make_unique<SimWorld>(7);
    device_ = std::make_unique<SimDevice>(*world_, TestVolume::formatted(7, options),
                                          options.device);
    auto store = world_->run(Store::open(environment(), options.store));
    COFS_ASSERT(store);
    store_ = std::move(*store);
    environment_ = std::make_unique<Environment>(environment());
    table_ = std::make_unique<InodeTable>(*store_, *environment_, cached_max);
    store_->set_client(this);
  }
  ~InodeTest() override {
    world_->run(store_->abandon());
    table_.reset();
  }

  Environment environment() {
    return Environment{*device_,        world_->executor, world_->clock,
                       world_->random, world_->journal,  world_->buffers};
  }

  Task<Result<>> flush_dirty_data() override { co_return Result<>(); }
  void collect_data(Transaction&) override {}
  void collect_inodes(Transaction& transaction) override { table_->collect(transaction); }
  void mapped_blocks_changed(uint64_t, int64_t) override {}

  uint64_t create(uint32_t mode) {
    const InodeRef ref = table_->create(mode);
    ref->nlink = 1;
    return ref->ino;
  }
  Result<InodeRef> get(uint64_t ino) { return world_->run(table_->get(ino)); }
  void commit() { ASSERT_TRUE(world_->run(store_->commit())); }

  std::unique_ptr<SimWorld> world_;
  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<Environment> environment_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<InodeTable> table_;
};

WallTime at(int64_t seconds, uint32_t nanoseconds) {
  WallTime time;
  time.seconds = seconds;
  time.nanoseconds = nanoseconds;
  return time;
}

void fill(Inode& inode) {
  inode.mode = S_IFREG | 04755;
  inode.uid = 1000;
  inode.gid = UINT32_MAX - 1;
  inode.nlink = 3;
  inode.size = 5;
  inode.inline_data = "hello";
  inode.flags = ondisk::kInodeInline | ondisk::kInodeAppend;
  inode.generation = 77;
  inode.access_time = at(-5, 999'999'999);
  inode.modify_time = at(1, 0);
  inode.change_time = at(INT64_MAX, 1);
  inode.birth_time = at(0, 0);
}

TEST_F(InodeTest, RecordsRoundTrip) {
  Inode inode(*table_, world_->executor, 99);
  fill(inode);
  const auto value = encode_inode(inode);
  EXPECT_EQ(value.size(), sizeof(ondisk::Inode) + 5);
  Inode back(*table_, world_->executor, 99);
  ASSERT_TRUE(decode_inode(value, back));
  EXPECT_EQ(encode_inode(back), value);
  EXPECT_EQ(back.access_time, inode.access_time);
  EXPECT_EQ(back.inline_data, "hello");
  EXPECT_EQ(back.attributes().flags, ondisk::kInodeAppend);
}

TEST_F(InodeTest, RulesOfTheRecord) {
  const auto accepts = [&](auto change) {
    Inode inode(*table_, world_->executor, 99);
    fill(inode);
    ondisk::Inode record;
    std::vector<std::byte> value = encode_inode(inode);
    std::memcpy(&record, value.data(), sizeof(record));
    change(record);
    std::memcpy(value.data(), &record, sizeof(record));
    Inode back(*table_, world_->executor, 99);
    return decode_inode(value, back).has_value();
  };
  EXPECT_TRUE(accepts([](ondisk::Inode&) {}));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.mode = 0644; })) << "no type";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.mode = 0170644; })) << "unknown type";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.mode = 0x10000 | S_IFREG; }));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.flags = r.flags | 16; }));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.flags = 0; })) << "inline bytes without the flag";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.size = 6; })) << "inline data is the whole file";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.inline_bytes = 4; }));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.rdev = 1; })) << "rdev of a file";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.parent = 1; })) << "parent of a file";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.mode = S_IFDIR; })) << "directory with data";
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.access_time.nanoseconds = 1'000'000'000; }));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.birth_time.nanoseconds = UINT32_MAX; }));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.reserved[15] = 1; }));
  EXPECT_FALSE(accepts([](ondisk::Inode& r) { r.blocks = UINT64_MAX; }));
}

TEST_F(InodeTest, MutatedRecordsNeverCrash) {
  Inode inode(*table_, world_->executor, 99);
  fill(inode);
  const auto good = encode_inode(inode);
  SimRandom random(3);
  for (int i = 0; i < 20'000; i++) {
    std::vector<std::byte> value = good;
    value[random.below(value.size())] ^= static_cast<std::byte>(1U << random.below(8));
    if (random.below(4) == 0) value.resize(random.below(value.size() + 1));
    Inode back(*table_, world_->executor, 99);
    if (decode_inode(value, back)) {
      EXPECT_EQ(encode_inode(back), value);
    }
  }
}

TEST_F(InodeTest, AccessTimeRules) {
  Inode inode(*table_, world_->executor, 99);
  fill(inode);
  inode.access_time = at(1000, 0);
  inode.modify_time = inode.change_time = at(900, 0);
  const auto relative = AccessTimes::kRelative;
  EXPECT_FALSE(should_update_access_time(inode, at(2000, 0), relative));
  EXPECT_TRUE(should_update_access_time(inode, at(1000 + 86'400, 0), relative));
  EXPECT_FALSE(should_update_access_time(inode, at(1000 + 86'400, 0), AccessTimes::kNone));
  EXPECT_TRUE(should_update_access_time(inode, at(1000, 1), AccessTimes::kStrict));
  inode.change_time = at(1000, 0);
  EXPECT_TRUE(should_update_access_time(inode, at(1001, 0), relative));
  EXPECT_FALSE(should_update_access_time(inode, at(1000, 0), relative)) << "nothing to change";
}

TEST_F(InodeTest, PrivilegesAreClearedAsLinuxDoes) {
  Inode inode(*table_, world_->executor, 99);
  inode.mode = S_IFREG | 06755;
  EXPECT_FALSE(inode.lost_privileges);
  EXPECT_TRUE(clear_privileges(inode, false));
  EXPECT_EQ(inode.mode, S_IFREG | 0755U);
  EXPECT_TRUE(inode.lost_privileges);
  inode.mode = S_IFREG | 06745;
  EXPECT_TRUE(clear_privileges(inode, false));
  EXPECT_EQ(inode.mode, S_IFREG | 02745U) << "setgid without group execute";
  EXPECT_FALSE(clear_privileges(inode, false));
  EXPECT_TRUE(clear_privileges(inode, true));
  EXPECT_EQ(inode.mode, S_IFREG | 0745U);
  inode.mode = S_IFDIR | 06755;
  EXPECT_FALSE(clear_privileges(inode, false));
  EXPECT_FALSE(clear_privileges(inode, true));
}

TEST_F(InodeTest, UnknownInodesAreStale) {
  auto missing = get(12'345);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Code::kStale);
  EXPECT_EQ(table_->resident_count(), 0U);
}

TEST_F(InodeTest, DirtyAndOpenInodesStay) {
  std::vector<uint64_t> inos;
  for (int i = 0; i < 50; i++) inos.push_back(create(S_IFREG | 0600));
  EXPECT_EQ(table_->dirty_count(), 50U);
  EXPECT_EQ(table_->resident_count(), 50U);
  commit();
  EXPECT_EQ(table_->dirty_count(), 0U);
  EXPECT_EQ(table_->resident_count(), 50U) << "until the records are surely in the tree";
  {
    auto open = get(inos[0]);
    ASSERT_TRUE(open);
    (*open)->open_count++;
  }
  commit();
  EXPECT_EQ(table_->resident_count(), 8U);
  EXPECT_NE(table_->find_resident(inos[0]), nullptr);
  for (uint64_t ino : inos) {
    auto inode = get(ino);
    ASSERT_TRUE(inode);
    EXPECT_EQ((*inode)->mode, S_IFREG | 0600U);
  }
  EXPECT_LE(table_->resident_count(), 9U);
  (*get(inos[0]))->open_count--;
}

TEST_F(InodeTest, LeastRecentlyUsedGoFirst) {
  std::vector<uint64_t> inos;
  for (int i = 0; i < 9; i++) inos.push_back(create(S_IFREG | 0600));
  commit();
  for (uint64_t ino : inos) ASSERT_TRUE(get(ino));
  commit();
  ASSERT_TRUE(get(inos[1]));
  ASSERT_TRUE(get(ondisk::kRootInode));
  EXPECT_NE(table_->find_resident(inos[1]), nullptr);
  EXPECT_EQ(table_->find_resident(inos[2]), nullptr);
}

Task<> load(InodeTable* table, uint64_t ino, Inode** out, int* done) {
  auto inode = co_await table->get(ino);
  COFS_ASSERT(inode);
  *out = inode->get();
  (*inode)->open_count++;
  (*done)++;
}

TEST_F(InodeTest, ConcurrentLoadsShareOneObject) {
  const uint64_t ino = create(S_IFREG | 0600);
  commit();
  commit();
  for (int i = 0; i < 9; i++) create(S_IFREG);
  ASSERT_EQ(table_->find_resident(ino), nullptr);
  Inode* seen[10] = {};
  int done = 0;
  for (Inode*& slot : seen) spawn(world_->executor, load(table_.get(), ino, &slot, &done));
  world_->run_until_idle();
  ASSERT_EQ(done, 10);
  for (Inode* inode : seen) EXPECT_EQ(inode, seen[0]);
  EXPECT_EQ(seen[0]->open_count, 10U);
  seen[0]->open_count = 0;
}

TEST_F(InodeTest, DeletedInodesAnswerStaleAndGo) {
  const uint64_t ino = create(S_IFREG | 0600);
  {
    auto held = get(ino);
    ASSERT_TRUE(held);
    table_->mark_deleted(**held);
    EXPECT_EQ(table_->dirty_count(), 0U);
    auto again = get(ino);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, Code::kStale);
    table_->mark_dirty(**held);
    EXPECT_EQ(table_->dirty_count(), 0U) << "a deleted inode has no record any more";
  }
  EXPECT_EQ(table_->find_resident(ino), nullptr);
}

}  // namespace
}  // namespace cofs
