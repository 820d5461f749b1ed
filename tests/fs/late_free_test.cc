// Files that were removed and are freed a little later (FsOptions::free_delay_ns): when, that whoever needs their room has
// it, and that nothing of them is left after a clean end or a crash.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <map>
#include <memory>
#include <string>

#include "blockmap/store.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kRoot = ondisk::kRootInode;
constexpr uint64_t kDelayNs = 10'000'000;
constexpr uint64_t kFileBlocks = 16;

class LateFree : public testing::Test {
 protected:
  LateFree() {
    options_.device_blocks = 8192 + 40;
    options_.format.segment_blocks = 64;
    options_.format.node_bytes = 4096;
    options_.store.background = false;
    options_.store.gc = GcMode::kAuto;
    options_.fs.free_delay_ns = kDelayNs;
    mount(TestVolume::formatted(31, options_));
  }
  void mount(SimImage image) {
    volume_ = std::make_unique<TestVolume>(31, std::move(image), options_);
    const auto opened = volume_->open();
    ASSERT_TRUE(opened) << describe(opened.error());
  }
  FileSystem& fs() { return volume_->fs(); }
  template <class T>
  T run(Task<T> task) {
    return volume_->run(std::move(task));
  }

  Result<> create(const std::string& name, uint64_t blocks) {
    bool created = false;
    auto made = run(fs().create(kRoot, name, S_IFREG | 0644, Caller(), true, &created));
    if (!made) return fail(made.error());
    files_[name] = made->ino;
    const std::string bytes(blocks * kBlockBytes, 'x');
    return run(fs().write(made->ino,
                          WriteData::fill(volume_->world.buffers, 0, bytes.data(), static_cast<uint32_t>(bytes.size())),
                          false, false));
  }
  void create_durable(const std::string& name, uint64_t blocks = kFileBlocks) {
    ASSERT_TRUE(create(name, blocks));
    ASSERT_TRUE(run(fs().sync()));
  }
  // By its last name, and from the kernel's memory.
  void remove(const std::string& name) {
    ASSERT_TRUE(run(fs().unlink(kRoot, name)));
    volume_->run(fs().forget(files_.at(name)));
  }
  bool is_there(const std::string& name) { return run(fs().get_attributes(files_.at(name))).has_value(); }
  uint64_t inodes() { return fs().store().space().inode_count; }

  VolumeOptions options_;
  std::unique_ptr<TestVolume> volume_;
  std::map<std::string, uint64_t> files_;
};

TEST_F(LateFree, AMomentAfterTheLastOne) {
  create_durable("a");
  create_durable("b");
  remove("a");
  volume_->pass(kDelayNs / 2);
  EXPECT_TRUE(is_there("a"));
  remove("b");
  volume_->pass(kDelayNs * 3 / 4);
  EXPECT_TRUE(is_there("a")) << "not while others go";
  EXPECT_TRUE(is_there("b"));
  volume_->pass(kDelayNs);
  EXPECT_FALSE(is_there("a"));
  EXPECT_FALSE(is_there("b"));
  EXPECT_EQ(inodes(), 1U);
  EXPECT_EQ(volume_->verify(true), "");
}

TEST_F(LateFree, ASecondAfterTheFirstOneAtTheLatest) {
  for (int i = 0; i < 150; i++) ASSERT_TRUE(create("f" + std::to_string(i), 1));
  ASSERT_TRUE(run(fs().sync()));
  for (int i = 0; i < 150; i++) {
    remove("f" + std::to_string(i));
    volume_->pass(kDelayNs * 4 / 5);
  }
  EXPECT_FALSE(is_there("f0"));
  EXPECT_TRUE(is_there("f149"));
}

TEST_F(LateFree, WhatIsOnlyInMemoryIsDroppedAtOnce) {
  ASSERT_TRUE(create("a", kFileBlocks));
  remove("a");
  EXPECT_FALSE(is_there("a"));
  create_durable("b");
  ASSERT_TRUE(run(fs().write(files_.at("b"), WriteData::fill(volume_->world.buffers, 0, "new", 3), false, false)));
  remove("b");
  EXPECT_FALSE(is_there("b")) << "a part of it is only in memory";
}

TEST_F(LateFree, WhoAsksForTheRoomWaitsForIt) {
  const uint64_t before = run(fs().statistics()).available_blocks;
  create_durable("a", 256);
  EXPECT_LT(run(fs().statistics()).available_blocks, before - 200);
  remove("a");
  EXPECT_TRUE(is_there("a"));
  EXPECT_GT(run(fs().statistics()).available_blocks, before - 40);
  EXPECT_FALSE(is_there("a"));
}

TEST_F(LateFree, WhoNeedsTheRoomHasIt) {
  // A fifteenth of the volume is removed, which waits; then more is written than was left.
  create_durable("large", 256);
  create_durable("small", 1);
  remove("large");
  ASSERT_TRUE(is_there("large"));
  uint64_t left = fs().store().space().available_blocks;
  uint64_t written = 0;
  int files = 0;
  while (is_there("large")) {
    ASSERT_TRUE(create("f" + std::to_string(files++), kFileBlocks)) << written << " blocks of " << left;
    written += kFileBlocks;
  }
  while (create("f" + std::to_string(files++), kFileBlocks)) written += kFileBlocks;
  EXPECT_GT(written, left);
  EXPECT_EQ(volume_->verify(true), "");
}

// A removed file that is met again, by a file handle, and written to: its lock is held by who waits for the room.
TEST_F(LateFree, WhoNeedsTheRoomMayHoldOneOfThem) {
  create_durable("large", 256);
  create_durable("again", 1);
  remove("large");
  remove("again");
  ASSERT_TRUE(is_there("large"));
  ASSERT_TRUE(run(fs().open_file(files_.at("again"), OpenIntent())));
  const std::string bytes(kFileBlocks * kBlockBytes, 'y');
  uint64_t offset = 0;
  while (is_there("large")) {
    ASSERT_TRUE(run(fs().write(files_.at("again"),
                               WriteData::fill(volume_->world.buffers, offset, bytes.data(), static_cast<uint32_t>(bytes.size())),
                               false, false)))
        << offset;
    offset += bytes.size();
  }
  EXPECT_TRUE(is_there("again"));
  volume_->run(fs().close_file(files_.at("again")));
  volume_->pass(2 * kDelayNs);
  EXPECT_FALSE(is_there("again"));
  EXPECT_EQ(volume_->verify(true), "");
}

TEST_F(LateFree, FullVolumesFreeAtOnce) {
  create_durable("a", 64);
  int files = 0;
  while (create("f" + std::to_string(files++), 64)) {
  }
  ASSERT_TRUE(run(fs().sync()));
  remove("a");
  EXPECT_FALSE(is_there("a"));
}

TEST_F(LateFree, ACleanEndWaitsForNothingAndLeavesNothing) {
  create_durable("a");
  remove("a");
  ASSERT_TRUE(volume_->close());
  mount(volume_->device.image());
  EXPECT_EQ(inodes(), 1U);
  EXPECT_EQ(volume_->verify(true), "");
}

TEST_F(LateFree, ACrashLeavesThemToTheNextMount) {
  create_durable("a");
  remove("a");
  ASSERT_TRUE(run(fs().sync()));
  EXPECT_TRUE(is_there("a"));
  volume_->abandon();
  mount(volume_->device.image());
  EXPECT_EQ(inodes(), 2U) << "nothing was freed at the end";
  volume_->settle();
  EXPECT_EQ(inodes(), 1U);
  EXPECT_EQ(volume_->verify(true), "");
}

TEST_F(LateFree, AFileThatIsOpenedAgainStays) {
  create_durable("a");
  remove("a");
  ASSERT_TRUE(run(fs().open_file(files_.at("a"), OpenIntent())));  // by a file handle, say
  volume_->pass(2 * kDelayNs);
  EXPECT_TRUE(is_there("a"));
  volume_->run(fs().close_file(files_.at("a")));
  volume_->pass(2 * kDelayNs);
  EXPECT_FALSE(is_there("a"));
}

}  // namespace
}  // namespace cofs
