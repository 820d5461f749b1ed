// Clones: sharing of blocks, strict clones by announcement, dedupe, maps, and who decides which.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "blockmap/store.h"
#include "fs/xattr.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = kBlockBytes;
const Caller kRoot(0, 0, 022);
const Caller kOwner(1000, 1000, 022);
const Caller kStranger(2000, 2000, 022);

VolumeOptions share_options() {
  VolumeOptions options;
  options.device_blocks = 16'384;
  options.format.segment_blocks = 64;
  options.store.background = false;
  options.fs.clone_mode = CloneMode::kShare;
  return options;
}

// A device that copies; ranges of any length.
VolumeOptions device_options() {
  VolumeOptions options = share_options();
  options.fs.clone_mode = CloneMode::kDevice;
  CopyLimits limits;
  limits.engine = "sim";
  limits.ranges_max = 8;
  limits.range_blocks_max = 64;
  limits.operation_blocks_max = 128;
  limits.in_flight_max = 4;
  options.device.copies.push_back(limits);
  options.store.copy_verify_percent = 0;
  return options;
}

class Clones : public testing::Test {
 protected:
  void mount(const VolumeOptions& options) {
    volume = std::make_unique<TestVolume>(7, TestVolume::formatted(7, options), options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
  }
  void TearDown() override {
    if (!volume || !volume->is_open()) return;
    volume->settle();
    EXPECT_EQ(volume->verify(true), "");
  }
  FileSystem& fs() { return volume->fs(); }
  SpaceReport space() { return fs().store().space(); }

  uint64_t create(const std::string& name, uint64_t directory = ondisk::kRootInode,
                  Caller caller = kRoot) {
    bool created = false;
    auto made = volume->run(fs().create(directory, name, S_IFREG | 0644, caller, true, &created));
    EXPECT_TRUE(made);
    return made ? made->ino : 0;
  }
  Result<> write(uint64_t ino, uint64_t offset, const std::string& bytes) {
    for (uint64_t at = 0; at < bytes.size(); at += 256 * kBlock) {
      const auto n = static_cast<uint32_t>(std::min<uint64_t>(bytes.size() - at, 256 * kBlock));
      auto written = volume->run(fs().write(
          ino, WriteData::fill(volume->world.buffers, offset + at, bytes.data() + at, n), false,
          false));
      if (!written) return written;
    }
    return {};
  }
  uint64_t file(const std::string& name, const std::string& bytes) {
    const uint64_t ino = create(name);
    EXPECT_TRUE(write(ino, 0, bytes));
    return ino;
  }
  std::string read(uint64_t ino) {
    const uint64_t size = attributes(ino).size;
    std::string bytes;
    while (bytes.size() < size) {
      const auto data = volume->run(fs().read(ino, bytes.size(), 256 * kBlock));
      if (!data) return "error: " + describe(data.error());
      if (data->length == 0) break;
      bytes.append(reinterpret_cast<const char*>(data->data()), data->length);
    }
    return bytes;
  }
  std::string random_bytes(uint64_t length) {
    std::string bytes(length, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random.below(256));
    return bytes;
  }
  Attributes attributes(uint64_t ino) { return *volume->run(fs().get_attributes(ino)); }
  Result<uint64_t> copy(uint64_t source, uint64_t from, uint64_t target, uint64_t to,
                        uint64_t length, uint64_t handle = 0) {
    auto copied = volume->run(fs().copy_range(source, from, target, to, length, handle));
    if (!copied) return fail(copied.error());
    return copied->bytes;
  }
  OpenFile open(uint64_t ino, bool readable = true, bool writable = true) {
    EXPECT_TRUE(volume->run(fs().open_file(ino, OpenIntent())));
    OpenFile opened;
    opened.handle = ++handles;
    opened.ino = ino;
    opened.readable = readable;
    opened.writable = writable;
    return opened;
  }
  void close(const OpenFile& opened) {
    volume->run(fs().close_file(opened.ino, opened.handle));
    volume->settle();
  }
  Result<> announce(const OpenFile& source, uint64_t from, uint64_t length, uint64_t target,
                    uint64_t to) {
    Announcement announcement;
    announcement.source_offset = from;
    announcement.length = length;
    announcement.target_ino = target;
    announcement.target_offset = to;
    return volume->run(fs().announce_clone(source, announcement));
  }
  Result<DedupeResult> dedupe(const OpenFile& source, uint64_t from, const OpenFile& target,
                              uint64_t to, uint64_t length, Caller caller = kRoot) {
    auto token = volume->run(fs().make_dedupe_token(source));
    if (!token) return fail(token.error());
    DedupeRequest request;
    request.token = *token;
    request.source_offset = from;
    request.target_offset = to;
    request.length = length;
    return volume->run(fs().dedupe(target, request, caller));
  }
  FileMap map(uint64_t ino, uint64_t limit = 400, bool sync = true) {
    auto mapped = volume->run(fs().map_file(ino, 0, UINT64_MAX, limit, sync));
    EXPECT_TRUE(mapped);
    return mapped ? *mapped : FileMap();
  }
  // In the tree, where an inode is once it was committed.
  uint64_t inode_count() {
    sync();
    return space().inode_count;
  }
  void sync() { EXPECT_TRUE(volume->run(fs().sync())); }
  void remount() {
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
  }
  uint64_t copied_by(CopyPath path) {
    return fs().store().copy_counters().bytes[static_cast<size_t>(path)];
  }
  static std::optional<Code> code_of(const auto& result) {
    return result ? std::optional<Code>() : std::optional<Code>(result.error().code);
  }

  std::unique_ptr<TestVolume> volume;
  SimRandom random{99};
  uint64_t handles = 0;
};

// --- clone=share ---

TEST_F(Clones, ACopyTakesNoBlocks) {
  mount(share_options());
  const std::string bytes = random_bytes(300 * kBlock + 100);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  sync();
  const WallTime before = attributes(source).modify_time;
  const uint64_t live = space().live_data_blocks;
  EXPECT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
  EXPECT_EQ(space().live_data_blocks, live);
  EXPECT_EQ(space().shared_blocks, 301U);
  EXPECT_EQ(space().extra_references, 301U);
  EXPECT_EQ(fs().shared_bytes(), 301 * kBlock);
  EXPECT_EQ(copied_by(CopyPath::kHost), 0U);
  EXPECT_EQ(attributes(target).blocks, 301U);
  EXPECT_EQ(attributes(target).size, bytes.size());
  EXPECT_EQ(attributes(source).modify_time, before);
  EXPECT_TRUE(read(target) == bytes);
  remount();
  EXPECT_EQ(space().shared_blocks, 301U);
  EXPECT_TRUE(read(target) == bytes && read(source) == bytes);
}

TEST_F(Clones, ChangesOnOneSideStayThere) {
  mount(share_options());
  std::string bytes = random_bytes(100 * kBlock);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  ASSERT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
  std::string changed = bytes;
  const std::string patch = random_bytes(3 * kBlock);
  ASSERT_TRUE(write(target, 10 * kBlock + 50, patch));
  changed.replace(10 * kBlock + 50, patch.size(), patch);
  ASSERT_TRUE(volume->run(fs().allocate(source, AllocateMode::kPunchHole, 40 * kBlock, 5 * kBlock)));
  bytes.replace(40 * kBlock, 5 * kBlock, std::string(5 * kBlock, '\0'));
  AttributeChange shorter;
  shorter.size = 60 * kBlock + 7;
  ASSERT_TRUE(volume->run(fs().set_attributes(source, shorter, kRoot)));
  bytes.resize(60 * kBlock + 7);
  sync();
  EXPECT_TRUE(read(source) == bytes);
  EXPECT_TRUE(read(target) == changed);
  // Shared: 60 blocks less 4 that the target wrote and 5 that the source punched.
  EXPECT_EQ(space().shared_blocks, 51U);
  ASSERT_TRUE(volume->run(fs().unlink(ondisk::kRootInode, "source")));
  volume->run(fs().forget(source));
  volume->settle();
  EXPECT_EQ(space().shared_blocks, 0U);
  EXPECT_EQ(space().extra_references, 0U);
  EXPECT_TRUE(read(target) == changed);
}

// The bytes behind the end of a file whose last block is shared must be zeros when it grows.
TEST_F(Clones, ASharedLastBlockGrowsWithZeros) {
  mount(share_options());
  const std::string bytes = random_bytes(3 * kBlock + 1234);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  ASSERT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
  EXPECT_EQ(space().shared_blocks, 4U);
  AttributeChange longer;
  longer.size = 6 * kBlock;
  ASSERT_TRUE(volume->run(fs().set_attributes(target, longer, kRoot)));
  ASSERT_TRUE(write(source, bytes.size(), "more"));
  sync();
  EXPECT_TRUE(read(target) == bytes + std::string(6 * kBlock - bytes.size(), '\0'));
  EXPECT_TRUE(read(source) == bytes + "more");
}

TEST_F(Clones, EdgesAreCopiedAndHolesStayHoles) {
  mount(share_options());
  const uint64_t source = create("source");
  const std::string head = random_bytes(8 * kBlock);
  ASSERT_TRUE(write(source, 0, head));
  ASSERT_TRUE(write(source, 100 * kBlock, head));
  ASSERT_TRUE(volume->run(fs().allocate(source, AllocateMode::kAllocate, 20 * kBlock, 10 * kBlock)));
  const uint64_t target = file("target", random_bytes(120 * kBlock));
  std::string expected = read(target);
  const std::string whole = read(source);
  ASSERT_EQ(copy(source, 100, target, kBlock + 100, 107 * kBlock), 107 * kBlock);
  expected.replace(kBlock + 100, 107 * kBlock, whole.substr(100, 107 * kBlock));
  EXPECT_TRUE(read(target) == expected);
  EXPECT_EQ(space().shared_blocks, 14U);  // 7 of each run of 8: the range begins and ends inside one
  EXPECT_EQ(volume->run(fs().seek_hole(target, 12 * kBlock)), 12 * kBlock);
}

TEST_F(Clones, WithinOneFileAndOverOldData) {
  mount(share_options());
  const std::string bytes = random_bytes(40 * kBlock + 9);
  const uint64_t ino = file("file", bytes);
  ASSERT_EQ(copy(ino, 0, ino, 41 * kBlock, bytes.size()), bytes.size());
  EXPECT_EQ(space().shared_blocks, 41U);
  std::string expected = bytes;
  expected.resize(41 * kBlock, '\0');
  expected += bytes;
  EXPECT_TRUE(read(ino) == expected);
  // Once more over the same place, and a part of it onto another: three users of some blocks.
  ASSERT_EQ(copy(ino, 0, ino, 41 * kBlock, bytes.size()), bytes.size());
  ASSERT_EQ(copy(ino, 0, ino, 50 * kBlock, 5 * kBlock), 5 * kBlock);
  expected.replace(50 * kBlock, 5 * kBlock, bytes.substr(0, 5 * kBlock));
  EXPECT_TRUE(read(ino) == expected);
  EXPECT_EQ(space().extra_references, 41U);
  EXPECT_EQ(space().shared_blocks, 36U);  // blocks 9 … 13 lost their second user
}

TEST_F(Clones, ManyExtentsAndManyCopies) {
  VolumeOptions options = share_options();
  options.store.dirty_nodes_max = 32;  // so that one clone takes several transactions
  mount(options);
  const uint64_t source = create("source");
  std::string bytes;
  for (uint64_t i = 0; i < 300; i++) {  // each block its own extent: written backwards
    const std::string block = random_bytes(kBlock);
    ASSERT_TRUE(write(source, (299 - i) * kBlock, block));
    sync();
    bytes = block + bytes;
  }
  ASSERT_EQ(map(source).pieces.size(), 300U);
  for (int i = 0; i < 5; i++) {
    const uint64_t target = create("target" + std::to_string(i));
    ASSERT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
    EXPECT_TRUE(read(target) == bytes);
    EXPECT_EQ(space().shared_blocks, 300U);
    EXPECT_EQ(space().extra_references, 300U * static_cast<uint64_t>(i + 1));
  }
}

// As many extents as a gigabyte has that was written by many at once: one transaction; however little room
// there is, a step is as large as its part of the reserve.
TEST_F(Clones, AThousandExtentsAreSharedAtOnce) {
  VolumeOptions options = share_options();
  options.device_blocks = 1 << 20;
  options.format.segment_blocks = 1024;
  for (const uint64_t dirty_nodes_max : {uint64_t{0}, uint64_t{64}}) {
    options.store.dirty_nodes_max = dirty_nodes_max;
    mount(options);
    const uint64_t source = create("source");
    std::string bytes(1024 * kBlock, '\0');
    for (const uint64_t first : {0, 1}) {
      for (uint64_t i = first; i < 1024; i += 2) {
        const std::string block = random_bytes(kBlock);
        ASSERT_TRUE(write(source, i * kBlock, block));
        bytes.replace(i * kBlock, kBlock, block);
      }
      sync();
    }
    auto mapped = volume->run(fs().store().map_range(source, 0, 1024, 2000));
    ASSERT_TRUE(mapped && mapped->size() == 1024);
    const uint64_t target = create("target");
    const uint64_t before = fs().store().counters().shares;
    ASSERT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
    const uint64_t shares = fs().store().counters().shares - before;
    if (dirty_nodes_max == 0) {
      EXPECT_EQ(shares, 1U);
    } else {  // 32 nodes in a step, and at most 64 that are left of the limit
      EXPECT_GE(shares, 1024U / (32 + 64));
      EXPECT_LE(shares, 1024U / 32);
    }
    EXPECT_TRUE(read(target) == bytes);
    volume->settle();
    EXPECT_EQ(volume->verify(true), "");
  }
}

// The worst there is: each extent's references are counted in a leaf of their own. What becomes dirty is what was
// reckoned with.
TEST_F(Clones, ACloneDirtiesNoMoreNodesThanItPlanned) {
  VolumeOptions options = share_options();
  options.device_blocks = 1 << 20;
  options.format.segment_blocks = 1024;
  options.format.node_bytes = 4096;
  options.store.dirty_nodes_max = 1000;  // the limit, as the volume is empty
  mount(options);
  constexpr uint64_t kBlocks = 32'768;
  const uint64_t base = create("base");
  for (const uint64_t first : {0, 1}) {
    for (uint64_t i = first; i < kBlocks; i += 2) {
      ASSERT_TRUE(write(base, i * kBlock, std::string(kBlock, static_cast<char>(i))));
    }
    sync();
  }
  ASSERT_EQ(copy(base, 0, create("counted"), 0, kBlocks * kBlock), kBlocks * kBlock);
  const uint64_t source = create("source");
  uint64_t extents = 0;
  for (uint64_t i = 0; i < kBlocks; i += 256) {
    ASSERT_EQ(copy(base, i * kBlock, source, 2 * extents++ * kBlock, kBlock), kBlock);
  }
  ASSERT_TRUE(volume->run(fs().store().checkpoint()));
  const uint64_t target = create("target");
  const uint64_t before = fs().store().likely_nodes_max();
  const uint64_t shares = fs().store().counters().shares;
  ASSERT_EQ(copy(source, 0, target, 0, (2 * extents - 1) * kBlock), (2 * extents - 1) * kBlock);
  EXPECT_EQ(fs().store().counters().shares, shares + 1);
  const uint64_t dirtied = before - fs().store().likely_nodes_max();
  EXPECT_GE(dirtied, extents);
  EXPECT_LE(dirtied, extents + extents / 7);
}

// Clones until nothing fits any more, with the tree as fragmented as it gets: each ends with ENOSPC or is whole, and the
// store goes on.
TEST_F(Clones, AVolumeFullOfClonesGoesOn) {
  for (const uint32_t over_provision : {0U, 7U}) {
    VolumeOptions options = share_options();
    options.format.over_provision_percent = over_provision;
    mount(options);
    const uint64_t source = create("source");
    std::string bytes(600 * kBlock, '\0');
    for (const uint64_t first : {0, 1, 2}) {
      for (uint64_t i = first; i < 600; i += 3) {
        bytes.replace(i * kBlock, kBlock, random_bytes(kBlock));
        ASSERT_TRUE(write(source, i * kBlock, bytes.substr(i * kBlock, kBlock)));
      }
      sync();
    }
    std::vector<uint64_t> copies;
    for (int i = 0; i < 400; i++) copies.push_back(create("copy" + std::to_string(i)));
    const uint64_t filler = create("filler");
    for (uint64_t at = 0; space().available_blocks > 400; at += 32) {
      ASSERT_TRUE(write(filler, at * kBlock, random_bytes(32 * kBlock)));
      sync();
    }
    uint64_t refused = 0;
    for (size_t i = 0; i < copies.size() && refused < 3; i++) {
      uint64_t done = 0;
      while (done < bytes.size()) {
        const auto copied = copy(source, done, copies[i], done, bytes.size() - done);
        if (!copied) {
          ASSERT_EQ(copied.error().code, Code::kNoSpace);
          refused++;
          break;
        }
        done += *copied;
      }
      ASSERT_TRUE(read(copies[i]) == bytes.substr(0, done)) << i;
      ASSERT_FALSE(fs().store().shut_down());
    }
    EXPECT_EQ(refused, 3U);
    sync();
    ASSERT_TRUE(volume->run(fs().store().checkpoint()));
    for (size_t i = 0; i < copies.size(); i += 2) {
      ASSERT_TRUE(volume->run(fs().unlink(ondisk::kRootInode, "copy" + std::to_string(i))));
      volume->run(fs().forget(copies[i]));
    }
    sync();
    EXPECT_TRUE(read(source) == bytes);
    volume->settle();
    EXPECT_EQ(volume->verify(true), "");
  }
}

// Whoever asked was killed: the clone ends between two steps, with what is done whole.
TEST_F(Clones, ACloneThatNobodyWaitsForEnds) {
  VolumeOptions options = share_options();
  options.store.dirty_nodes_max = 64;
  mount(options);
  const uint64_t source = create("source");
  std::string bytes(600 * kBlock, '\0');
  for (const uint64_t first : {0, 1}) {
    for (uint64_t i = first; i < 600; i += 2) {
      const std::string block = random_bytes(kBlock);
      ASSERT_TRUE(write(source, i * kBlock, block));
      bytes.replace(i * kBlock, kBlock, block);
    }
    sync();
  }
  for (const int steps : {0, 1, 3}) {
    SCOPED_TRACE(steps);
    CopyRequest request;
    request.source = source;
    request.target = create("target" + std::to_string(steps));
    request.length = bytes.size();
    int asked = 0;
    request.abandoned = [&asked, steps] { return asked++ >= steps; };
    const uint64_t target = request.target;
    const auto copied = volume->run(fs().copy_range(std::move(request)));
    if (steps == 0) {
      ASSERT_FALSE(copied);
      EXPECT_EQ(copied.error().code, Code::kInterrupted);
    } else {
      ASSERT_TRUE(copied);
      EXPECT_GT(copied->bytes, 0U);
      EXPECT_LT(copied->bytes, bytes.size());
      EXPECT_TRUE(read(target) == bytes.substr(0, copied->bytes));
    }
  }
  // A strict one that ended so goes on for nobody.
  const OpenFile from = open(source);
  const uint64_t target = create("strict");
  ASSERT_TRUE(announce(from, 0, bytes.size(), target, 0));
  CopyRequest request;
  request.source = source;
  request.target = target;
  request.length = bytes.size();
  request.source_handle = from.handle;
  int asked = 0;
  request.abandoned = [&asked] { return asked++ >= 2; };
  const auto copied = volume->run(fs().copy_range(std::move(request)));
  ASSERT_TRUE(copied);
  EXPECT_LT(copied->bytes, bytes.size());
  EXPECT_EQ(copy(source, copied->bytes, target, copied->bytes, kBlock, from.handle).error().code,
            Code::kInterrupted);
  close(from);
}

// Sharing takes no room for data, so it works where there is none.
TEST_F(Clones, AFullVolumeStillClones) {
  VolumeOptions options = share_options();
  options.format.over_provision_percent = 7;
  mount(options);
  const std::string bytes = random_bytes(100 * kBlock);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  sync();
  const uint64_t filler = create("filler");
  Result<> written;
  for (uint64_t at = 0; written; at += 32) {
    written = write(filler, at * kBlock, random_bytes(32 * kBlock));
    if (written) sync();
  }
  ASSERT_EQ(written.error().code, Code::kNoSpace);
  EXPECT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
  EXPECT_TRUE(read(target) == bytes);
}

// The flags that a clone sets on the source must not keep its extents apart for ever.
TEST_F(Clones, ASourceThatIsAppendedToAndClonedKeepsFewExtents) {
  mount(share_options());
  const uint64_t source = create("log");
  for (uint64_t i = 0; i < 20; i++) {
    ASSERT_TRUE(write(source, i * 4 * kBlock, random_bytes(4 * kBlock)));
    const uint64_t target = create("copy" + std::to_string(i));
    ASSERT_EQ(copy(source, 0, target, 0, (i + 1) * 4 * kBlock), (i + 1) * 4 * kBlock);
  }
  uint64_t extents = 0;
  auto mapped = volume->run(fs().store().map_range(source, 0, 1000, 1000));
  ASSERT_TRUE(mapped);
  extents = mapped->size();
  EXPECT_LE(extents, 8U);
}

Task<Result<>> count_all_references(Store& store, uint64_t virtual_block) {
  auto transaction = co_await store.begin(Cost(0, 100), SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  ondisk::Vref value{};
  value.count = 1;
  value.references = UINT32_MAX;
  transaction->put(Key::vref(virtual_block), std::as_bytes(std::span(&value, 1)));
  co_return co_await transaction->apply();
}

// As many references as can be counted: nothing changes, and the data is copied where that is allowed.
TEST_F(Clones, ABlockWithoutRoomForReferencesIsCopied) {
  mount(share_options());
  const std::string bytes = random_bytes(20 * kBlock);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  sync();
  auto mapped = volume->run(fs().store().map_range(source, 13, 1, 1));
  ASSERT_TRUE(mapped && mapped->size() == 1);
  ASSERT_TRUE(volume->run(count_all_references(fs().store(), mapped->front().virtual_block)));
  const OpenFile opened = open(source);
  ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
  EXPECT_EQ(code_of(copy(source, 0, target, 0, bytes.size(), opened.handle)), Code::kInvalid);
  EXPECT_EQ(attributes(target).size, 0U);
  EXPECT_FALSE(fs().store().shut_down());
  close(opened);
  EXPECT_EQ(copy(source, 0, target, 0, bytes.size()), bytes.size());
  EXPECT_EQ(copied_by(CopyPath::kHost), bytes.size());
  EXPECT_TRUE(read(target) == bytes);
  volume->abandon();  // the count is a lie, which verify() would tell
}

TEST_F(Clones, OverwritingSharedDataNeedsSpaceAndSaysSo) {
  VolumeOptions options = share_options();
  options.device_blocks = 3072;
  options.format.segment_blocks = 16;
  mount(options);
  std::string bytes = random_bytes(200 * kBlock);
  const uint64_t source = file("source", bytes);
  std::vector<uint64_t> copies;
  for (int i = 0; i < 20; i++) {
    copies.push_back(create("copy" + std::to_string(i)));
    ASSERT_EQ(copy(source, 0, copies.back(), 0, bytes.size()), bytes.size());
  }
  // 20 × 200 blocks are more than the volume has, so some overwrite must be told that it is full.
  const std::string other = random_bytes(50 * kBlock);
  bool full = false;
  std::vector<std::string> expected(copies.size(), bytes);
  for (size_t i = 0; i < copies.size() && !full; i++) {
    for (uint64_t at = 0; at < 200 && !full; at += 50) {
      const auto written = write(copies[i], at * kBlock, other);
      if (written) {
        expected[i].replace(at * kBlock, other.size(), other);
      } else {
        EXPECT_EQ(written.error().code, Code::kNoSpace);
        full = true;
      }
    }
  }
  EXPECT_TRUE(full);
  sync();  // what was accepted has its place
  for (size_t i = 0; i < copies.size(); i++) EXPECT_TRUE(read(copies[i]) == expected[i]) << i;
  for (size_t i = 0; i < 10; i++) {
    ASSERT_TRUE(volume->run(fs().unlink(ondisk::kRootInode, "copy" + std::to_string(i))));
    volume->run(fs().forget(copies[i]));
  }
  EXPECT_TRUE(write(copies[15], 0, other));
  EXPECT_TRUE(read(source) == bytes);
}

// --- Who decides ---

TEST_F(Clones, TheTargetsAttributeGoesBeforeTheMount) {
  VolumeOptions options = share_options();
  options.fs.clone_mode = CloneMode::kDevice;
  mount(options);
  const std::string bytes = random_bytes(10 * kBlock);
  const uint64_t source = file("source", bytes);
  auto directory = volume->run(fs().make_directory(ondisk::kRootInode, "shared", 0755, kRoot));
  ASSERT_TRUE(directory);
  const std::string name(kCloneXattr);
  const auto set = [&](uint64_t ino, const std::string& value) {
    return volume->run(fs().set_xattr(ino, name, value, false, false, kRoot));
  };
  EXPECT_EQ(code_of(set(directory->ino, "yes")), Code::kInvalid);
  ASSERT_TRUE(set(directory->ino, "share"));
  auto below = volume->run(fs().make_directory(directory->ino, "below", 0755, kRoot));
  ASSERT_TRUE(below);
  const uint64_t shared = create("a", below->ino);
  EXPECT_EQ(volume->run(fs().get_xattr(shared, name)), "share");
  EXPECT_EQ(volume->run(fs().clone_mode_for(below->ino)), CloneMode::kShare);
  EXPECT_EQ(volume->run(fs().clone_mode_for(ondisk::kRootInode)), CloneMode::kDevice);
  const uint64_t plain = create("b");
  ASSERT_EQ(copy(source, 0, plain, 0, bytes.size()), bytes.size());
  EXPECT_EQ(space().shared_blocks, 0U);
  ASSERT_EQ(copy(source, 0, shared, 0, bytes.size()), bytes.size());
  EXPECT_EQ(space().shared_blocks, 10U);
  // It is forgotten when it is changed, and read again after a remount.
  ASSERT_TRUE(set(shared, "device"));
  const uint64_t before = copied_by(CopyPath::kHost);
  ASSERT_EQ(copy(source, 0, shared, 0, bytes.size()), bytes.size());
  EXPECT_EQ(copied_by(CopyPath::kHost), before + bytes.size());
  remount();
  EXPECT_EQ(volume->run(fs().clone_mode_for(shared)), CloneMode::kDevice);
  EXPECT_EQ(volume->run(fs().clone_mode_for(below->ino)), CloneMode::kShare);
  ASSERT_TRUE(volume->run(fs().remove_xattr(below->ino, name)));
  EXPECT_EQ(volume->run(fs().clone_mode_for(below->ino)), CloneMode::kDevice);
  fs().set_clone_mode(CloneMode::kShare);
  EXPECT_EQ(volume->run(fs().clone_mode_for(below->ino)), CloneMode::kShare);
}

// --- Strict clones ---

TEST_F(Clones, AnAnnouncedCloneSharesWhereTheDeviceHasNoCopy) {
  VolumeOptions options = share_options();
  options.fs.clone_mode = CloneMode::kDevice;
  mount(options);
  const std::string bytes = random_bytes(20 * kBlock + 5);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  sync();
  const uint64_t read_before = fs().store().counters().read_bytes;
  const OpenFile opened = open(source);
  ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
  ASSERT_EQ(copy(source, 0, target, 0, bytes.size(), opened.handle), bytes.size());
  EXPECT_EQ(space().shared_blocks, 21U);
  EXPECT_EQ(copied_by(CopyPath::kHost), 0U);
  EXPECT_EQ(fs().store().counters().read_bytes, read_before);
  EXPECT_TRUE(read(target) == bytes);
  // It is over: the next copy is an ordinary one.
  const uint64_t third = create("third");
  ASSERT_EQ(copy(source, 0, third, 0, 20 * kBlock, opened.handle), 20 * kBlock);
  EXPECT_EQ(copied_by(CopyPath::kHost), 20 * kBlock);
  close(opened);
}

TEST_F(Clones, AnAnnouncedCloneIsCopiedByTheDeviceWhereItCan) {
  mount(device_options());
  const std::string bytes = random_bytes(20 * kBlock + 5);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  const OpenFile opened = open(source);
  ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
  ASSERT_EQ(copy(source, 0, target, 0, bytes.size(), opened.handle), bytes.size());
  EXPECT_EQ(copied_by(CopyPath::kDevice), 21 * kBlock);
  EXPECT_EQ(copied_by(CopyPath::kHost), 0U);
  EXPECT_EQ(space().shared_blocks, 0U);
  EXPECT_TRUE(read(target) == bytes);
  close(opened);
}

// A device that fails or lies: the rest is shared, and the host still copies nothing.
TEST_F(Clones, WhatTheDeviceFailsToCopyIsShared) {
  for (const bool lies : {false, true}) {
    VolumeOptions options = device_options();
    options.store.copy_verify_percent = 100;
    if (lies) {
      options.device.faults.copy_silent_wrong = 1;
    } else {
      options.device.faults.copy_error = 1;
    }
    mount(options);
    const std::string bytes = random_bytes(40 * kBlock);
    const uint64_t source = file("source", bytes);
    const uint64_t target = create("target");
    const OpenFile opened = open(source);
    ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
    ASSERT_EQ(copy(source, 0, target, 0, bytes.size(), opened.handle), bytes.size()) << lies;
    EXPECT_EQ(copied_by(CopyPath::kHost), 0U);
    EXPECT_EQ(space().shared_blocks, 40U);
    EXPECT_TRUE(read(target) == bytes);
    close(opened);
    volume->settle();
    EXPECT_EQ(volume->verify(true), "");
  }
}

TEST_F(Clones, PiecesShowOneStateOfTheSource) {
  for (const bool device : {false, true}) {
    mount(device ? device_options() : share_options());
    const std::string bytes = random_bytes(30 * kBlock + 77);
    const uint64_t source = file("source", bytes);
    const uint64_t target = create("target");
    const uint64_t inodes = inode_count();
    const OpenFile opened = open(source);
    ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
    ASSERT_EQ(copy(source, 0, target, 0, 10 * kBlock, opened.handle), 10 * kBlock);
    ASSERT_TRUE(write(source, 0, random_bytes(30 * kBlock)));
    AttributeChange gone;
    gone.size = 5;
    ASSERT_TRUE(volume->run(fs().set_attributes(source, gone, kRoot)));
    ASSERT_EQ(copy(source, 20 * kBlock, target, 20 * kBlock, UINT64_MAX / 4, opened.handle),
              10 * kBlock + 77);
    EXPECT_EQ(inode_count(), inodes + 1);
    ASSERT_EQ(copy(source, 10 * kBlock, target, 10 * kBlock, 10 * kBlock, opened.handle),
              10 * kBlock);
    EXPECT_TRUE(read(target) == bytes);
    volume->settle();
    EXPECT_EQ(inode_count(), inodes);  // the snapshot is gone
    close(opened);
    EXPECT_EQ(volume->verify(true), "");
  }
}

// The same piece again, as after a signal: what counts is how far it came, not how often.
TEST_F(Clones, APieceThatIsRepeatedCountsOnce) {
  mount(share_options());
  const std::string bytes = random_bytes(30 * kBlock);
  const uint64_t source = file("source", bytes);
  const uint64_t target = create("target");
  const uint64_t inodes = inode_count();
  const OpenFile opened = open(source);
  ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
  for (int i = 0; i < 4; i++) {
    ASSERT_EQ(copy(source, 0, target, 0, 10 * kBlock, opened.handle), 10 * kBlock);
  }
  ASSERT_TRUE(write(source, 0, random_bytes(30 * kBlock)));
  ASSERT_EQ(copy(source, 20 * kBlock, target, 20 * kBlock, 10 * kBlock, opened.handle), 10 * kBlock);
  ASSERT_EQ(copy(source, 5 * kBlock, target, 5 * kBlock, 10 * kBlock, opened.handle), 10 * kBlock);
  EXPECT_EQ(inode_count(), inodes + 1);
  ASSERT_EQ(copy(source, 15 * kBlock, target, 15 * kBlock, 5 * kBlock, opened.handle), 5 * kBlock);
  EXPECT_TRUE(read(target) == bytes);
  volume->settle();
  EXPECT_EQ(inode_count(), inodes);
  // More parts apart from each other than are remembered: the snapshot serves, and ends with the open file.
  const uint64_t many = create("many");
  AttributeChange size;
  size.size = 3000 * kBlock;
  ASSERT_TRUE(volume->run(fs().set_attributes(many, size, kRoot)));
  const OpenFile many_opened = open(many);
  ASSERT_TRUE(announce(many_opened, 0, 3000 * kBlock, target, 0));
  for (const uint64_t first : {0, 1}) {
    for (uint64_t at = first; at < 3000; at += 2) {
      ASSERT_EQ(copy(many, at * kBlock, target, at * kBlock, kBlock, many_opened.handle), kBlock);
    }
  }
  EXPECT_EQ(inode_count(), inodes + 2);
  close(many_opened);
  EXPECT_EQ(inode_count(), inodes + 1);
  close(opened);
}

// The device copies some of what was to come in one piece, and the volume is full: the rest comes from the
// state that the beginning had, or does not come.
TEST_F(Clones, AShortCloneGoesOnFromTheSameState) {
  for (const bool can_keep : {true, false}) {
    VolumeOptions options = device_options();
    mount(options);
    const uint64_t source = create("source");
    std::string bytes;
    for (int i = 0; i < 1100; i++) {  // of many pieces, so that it is copied in several batches
      const std::string block = random_bytes(kBlock);
      ASSERT_TRUE(write(source, bytes.size(), block));
      bytes += block + std::string(kBlock, '\0');
    }
    AttributeChange size;
    size.size = bytes.size();
    ASSERT_TRUE(volume->run(fs().set_attributes(source, size, kRoot)));
    const uint64_t target = create("target");
    const uint64_t filler = create("filler");
    sync();
    for (uint64_t at = 0; space().available_blocks > 1200; at += 64) {
      ASSERT_TRUE(write(filler, at * kBlock, random_bytes(64 * kBlock)));
      sync();
    }
    if (!can_keep) {
      auto mapped = volume->run(fs().store().map_range(source, 2000, 1, 1));
      ASSERT_TRUE(mapped && mapped->size() == 1);
      ASSERT_TRUE(volume->run(count_all_references(fs().store(), mapped->front().virtual_block)));
    }
    const OpenFile opened = open(source);
    ASSERT_TRUE(announce(opened, 0, bytes.size(), target, 0));
    const auto first = copy(source, 0, target, 0, bytes.size(), opened.handle);
    ASSERT_TRUE(first) << describe(first.error());
    ASSERT_LT(*first, bytes.size()) << space().available_blocks;
    ASSERT_TRUE(volume->run(fs().unlink(ondisk::kRootInode, "filler")));
    volume->run(fs().forget(filler));
    volume->settle();
    sync();
    ASSERT_TRUE(write(source, 1500 * kBlock, random_bytes(100 * kBlock)));
    uint64_t done = *first;
    Result<uint64_t> more = 0;
    while (done < bytes.size()) {
      more = copy(source, done, target, done, bytes.size() - done, opened.handle);
      if (!more) break;
      ASSERT_GT(*more, 0U);
      done += *more;
    }
    if (can_keep) {
      ASSERT_TRUE(more) << describe(more.error());
      EXPECT_TRUE(read(target) == bytes);
      close(opened);
      volume->settle();
      EXPECT_EQ(volume->verify(true), "");
    } else {
      EXPECT_EQ(code_of(more), Code::kInvalid) << describe(more.error());
      EXPECT_EQ(done, *first);
      EXPECT_EQ(attributes(target).size, *first);
      close(opened);
      volume->abandon();  // the count is a lie, which verify() would tell
    }
  }
}

TEST_F(Clones, ASnapshotEndsWithItsOpenFile) {
  mount(share_options());
  const uint64_t source = file("source", random_bytes(30 * kBlock));
  const uint64_t target = create("target");
  const uint64_t inodes = inode_count();
  OpenFile opened = open(source);
  ASSERT_TRUE(announce(opened, 0, 30 * kBlock, target, 0));
  ASSERT_EQ(copy(source, 0, target, 0, kBlock, opened.handle), kBlock);
  EXPECT_EQ(inode_count(), inodes + 1);
  close(opened);
  EXPECT_EQ(inode_count(), inodes);
  // Or with the next announcement, or with one of length 0.
  opened = open(source);
  for (const uint64_t length : {uint64_t{30}, uint64_t{0}}) {
    ASSERT_TRUE(announce(opened, 0, 30 * kBlock, target, 0));
    ASSERT_EQ(copy(source, 0, target, 0, kBlock, opened.handle), kBlock);
    EXPECT_EQ(inode_count(), inodes + 1);
    ASSERT_TRUE(announce(opened, 0, length * kBlock, target, 0));
    volume->settle();
    EXPECT_EQ(inode_count(), inodes);
  }
  // After a crash the next mount frees it.
  ASSERT_TRUE(announce(opened, 0, 30 * kBlock, target, 0));
  ASSERT_EQ(copy(source, 0, target, 0, kBlock, opened.handle), kBlock);
  sync();
  volume->abandon();
  ASSERT_TRUE(volume->open());
  volume->settle();
  EXPECT_EQ(inode_count(), inodes);
}

TEST_F(Clones, AnnouncementsAreChecked) {
  mount(share_options());
  const uint64_t source = file("source", random_bytes(10 * kBlock + 5));
  const uint64_t target = file("target", random_bytes(20 * kBlock));
  const uint64_t size = 10 * kBlock + 5;
  const OpenFile opened = open(source);
  OpenFile write_only = opened;
  write_only.readable = false;
  EXPECT_EQ(code_of(announce(write_only, 0, kBlock, target, 0)), Code::kBadHandle);
  OpenFile directory = opened;
  directory.ino = ondisk::kRootInode;
  EXPECT_EQ(code_of(announce(directory, 0, kBlock, target, 0)), Code::kIsDirectory);
  // Nothing is told of the target: no file, a directory, and a range that ends inside of it are all the same.
  EXPECT_TRUE(announce(opened, 0, kBlock, ondisk::kRootInode, 0));
  EXPECT_TRUE(announce(opened, 0, kBlock, 123'456, 0));
  EXPECT_TRUE(announce(opened, 0, size, target, 0));
  EXPECT_EQ(code_of(copy(source, 0, target, 0, size, opened.handle)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 1, kBlock, target, 0)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 0, kBlock, target, 1)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 0, kBlock + 1, target, 0)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 0, 11 * kBlock, target, 0)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, UINT64_MAX - kBlock + 1, kBlock, target, 0)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 0, UINT64_MAX - 4095, target, 0)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 0, kBlock, target, UINT64_MAX - kBlock + 1)), Code::kInvalid);
  EXPECT_EQ(code_of(announce(opened, 0, 4 * kBlock, source, 3 * kBlock)), Code::kInvalid);
  EXPECT_TRUE(announce(opened, 0, 4 * kBlock, source, 4 * kBlock));
  EXPECT_TRUE(announce(opened, 0, size, target, 20 * kBlock));
  // A piece that does not fit what was announced is an ordinary copy; one that cuts a block is refused.
  EXPECT_EQ(code_of(copy(source, 0, target, 20 * kBlock, 100, opened.handle)), Code::kInvalid);
  EXPECT_EQ(copy(source, 0, target, 0, 100, opened.handle), 100U);
  // The source is looked at again when the first piece comes.
  AttributeChange gone;
  gone.size = kBlock;
  ASSERT_TRUE(volume->run(fs().set_attributes(source, gone, kRoot)));
  EXPECT_EQ(code_of(copy(source, 0, target, 20 * kBlock, size, opened.handle)), Code::kInvalid);
  const uint64_t short_source = file("short source", random_bytes(8 * kBlock));
  const uint64_t short_target = create("short target");
  const OpenFile short_opened = open(short_source);
  ASSERT_TRUE(announce(short_opened, 0, 8 * kBlock, short_target, 0));
  gone.size = 4 * kBlock;
  ASSERT_TRUE(volume->run(fs().set_attributes(short_source, gone, kRoot)));
  EXPECT_EQ(code_of(copy(short_source, 0, short_target, 0, 8 * kBlock, short_opened.handle)),
            Code::kInvalid);
  EXPECT_EQ(attributes(short_target).size, 0U);
  close(short_opened);
  close(opened);
  const OpenFile busy = open(source);
  for (uint64_t i = 0; i < 64; i++) ASSERT_TRUE(announce(busy, 0, kBlock, 1000 + i, 0));
  EXPECT_EQ(code_of(announce(busy, 0, kBlock, create("one more"), 0)), Code::kBusy);
  close(busy);
}

// --- Dedupe ---

TEST_F(Clones, EqualRangesBecomeShared) {
  mount(device_options());
  const std::string bytes = random_bytes(300 * kBlock + 9);
  const uint64_t a = file("a", bytes);
  const uint64_t b = file("b", bytes);
  sync();
  const Attributes before = attributes(b);
  const OpenFile from = open(a);
  const OpenFile to = open(b);
  volume->pass(5'000'000'000);
  auto result = dedupe(from, 0, to, 0, bytes.size());
  ASSERT_TRUE(result) << describe(result.error());
  EXPECT_TRUE(result->same);
  EXPECT_EQ(result->bytes, bytes.size());
  EXPECT_EQ(space().shared_blocks, 301U);
  EXPECT_EQ(space().live_data_blocks, 301U);
  EXPECT_EQ(attributes(b).modify_time, before.modify_time);
  EXPECT_EQ(attributes(b).change_time, before.change_time);
  EXPECT_TRUE(read(b) == bytes);
  // Once more: nothing is read, nothing changes.
  const uint64_t read_before = fs().store().counters().read_bytes;
  result = dedupe(from, 0, to, 0, bytes.size());
  ASSERT_TRUE(result && result->same);
  EXPECT_EQ(space().extra_references, 301U);
  EXPECT_EQ(fs().store().counters().read_bytes, read_before);
  close(from);
  close(to);
}

TEST_F(Clones, DifferentRangesAreLeftAlone) {
  mount(share_options());
  std::string bytes = random_bytes(300 * kBlock);
  const uint64_t a = file("a", bytes);
  bytes[299 * kBlock + 17]++;
  const uint64_t b = file("b", bytes);
  const OpenFile from = open(a);
  const OpenFile to = open(b);
  auto result = dedupe(from, 0, to, 0, bytes.size());
  ASSERT_TRUE(result);
  EXPECT_FALSE(result->same);
  EXPECT_EQ(result->bytes, 0U);
  EXPECT_EQ(space().shared_blocks, 0U);
  result = dedupe(from, 0, to, 0, 299 * kBlock);
  ASSERT_TRUE(result && result->same);
  EXPECT_EQ(space().shared_blocks, 299U);
  // A hole and written zeros are the same; what is dirty counts.
  const uint64_t hole = create("hole");
  AttributeChange size;
  size.size = 8 * kBlock;
  ASSERT_TRUE(volume->run(fs().set_attributes(hole, size, kRoot)));
  const uint64_t zeros = file("zeros", std::string(8 * kBlock, '\0'));
  const OpenFile hole_file = open(hole);
  const OpenFile zero_file = open(zeros);
  result = dedupe(hole_file, 0, zero_file, 0, 8 * kBlock);
  ASSERT_TRUE(result && result->same);
  EXPECT_EQ(attributes(zeros).blocks, 0U);
  EXPECT_EQ(read(zeros), std::string(8 * kBlock, '\0'));
  // What is preallocated in the target stays so, next to blocks that become shared, and holes stay holes.
  const std::string data = random_bytes(4 * kBlock);
  for (const bool source_has_data : {false, true}) {
    const std::string suffix = source_has_data ? " of data" : " of a hole";
    const uint64_t from_ino = file("from" + suffix, data);
    if (source_has_data) {
      ASSERT_TRUE(write(from_ino, 4 * kBlock, std::string(8 * kBlock, '\0')));
    }
    size.size = 12 * kBlock;
    ASSERT_TRUE(volume->run(fs().set_attributes(from_ino, size, kRoot)));
    ASSERT_TRUE(write(from_ino, 12 * kBlock, data));
    const uint64_t to_ino = file("to" + suffix, data);
    ASSERT_TRUE(volume->run(fs().allocate(to_ino, AllocateMode::kAllocate, 4 * kBlock, 4 * kBlock)));
    ASSERT_TRUE(write(to_ino, 12 * kBlock, data));
    ASSERT_EQ(attributes(to_ino).blocks, 12U);
    const OpenFile from_file = open(from_ino);
    const OpenFile to_file = open(to_ino);
    result = dedupe(from_file, 0, to_file, 0, 16 * kBlock);
    ASSERT_TRUE(result && result->same);
    EXPECT_EQ(attributes(to_ino).blocks, 12U);
    const FileMap seen = map(to_ino);
    ASSERT_EQ(seen.pieces.size(), 3U);
    EXPECT_TRUE(seen.pieces[0].shared && seen.pieces[0].length == 4 * kBlock);
    EXPECT_TRUE(seen.pieces[1].unwritten && seen.pieces[1].length == 4 * kBlock);
    EXPECT_TRUE(seen.pieces[2].shared && seen.pieces[2].logical == 12 * kBlock);
    EXPECT_TRUE(read(to_ino) == data + std::string(8 * kBlock, '\0') + data);
    close(from_file);
    close(to_file);
  }
  // Small files live in their inodes: equal, and nothing to share.
  const uint64_t small_a = file("small a", "same");
  const uint64_t small_b = file("small b", "same");
  sync();
  const OpenFile small_from = open(small_a);
  const OpenFile small_to = open(small_b);
  result = dedupe(small_from, 0, small_to, 0, 4);
  ASSERT_TRUE(result && result->same);
  EXPECT_EQ(result->bytes, 4U);
  const OpenFile small_other = open(file("small c", "diff"));
  const OpenFile small_hole = open(create("small hole"));
  size.size = 4;
  ASSERT_TRUE(volume->run(fs().set_attributes(small_hole.ino, size, kRoot)));
  sync();
  for (const OpenFile& other : {small_other, small_hole}) {
    result = dedupe(small_from, 0, other, 0, 4);
    ASSERT_TRUE(result);
    EXPECT_FALSE(result->same);
    close(other);
  }
  for (const OpenFile& file : {from, to, hole_file, zero_file, small_from, small_to}) close(file);
}

TEST_F(Clones, DedupeIsCheckedAndTokensAreUsedOnce) {
  mount(share_options());
  const std::string bytes = random_bytes(10 * kBlock + 5);
  const uint64_t a = file("a", bytes);
  const uint64_t b = create("b", ondisk::kRootInode, kOwner);
  ASSERT_TRUE(write(b, 0, bytes));
  OpenFile from = open(a);
  OpenFile to = open(b);
  const auto asked = [&](uint64_t source, uint64_t target, uint64_t length) {
    return code_of(dedupe(from, source, to, target, length));
  };
  EXPECT_EQ(asked(1, 0, kBlock), Code::kInvalid);
  EXPECT_EQ(asked(0, 1, kBlock), Code::kInvalid);
  EXPECT_EQ(asked(0, 0, 100), Code::kInvalid);
  EXPECT_EQ(asked(0, 0, 11 * kBlock), Code::kInvalid);
  EXPECT_EQ(asked(0, 10 * kBlock, kBlock), Code::kInvalid);
  EXPECT_EQ(asked(0, UINT64_MAX - 4095, kBlock), Code::kInvalid);
  EXPECT_EQ(code_of(dedupe(from, 0, from, kBlock, 2 * kBlock)), Code::kInvalid);
  OpenFile write_only = from;
  write_only.readable = false;
  EXPECT_EQ(code_of(dedupe(write_only, 0, to, 0, kBlock)), Code::kBadHandle);
  OpenFile directory = to;
  directory.ino = ondisk::kRootInode;
  EXPECT_EQ(code_of(dedupe(from, 0, directory, 0, kBlock)), Code::kIsDirectory);

  // Who may: those who opened it for writing, its owner, root, and who may write it.
  OpenFile read_only = to;
  read_only.writable = false;
  EXPECT_EQ(code_of(dedupe(from, 0, read_only, 0, kBlock, kStranger)), Code::kNotPermitted);
  EXPECT_TRUE(dedupe(from, 0, to, 0, kBlock, kStranger));
  EXPECT_TRUE(dedupe(from, 0, read_only, 0, kBlock, kOwner));
  EXPECT_TRUE(dedupe(from, 0, read_only, 0, kBlock, kRoot));
  AttributeChange open_to_all;
  open_to_all.mode = 0666;
  ASSERT_TRUE(volume->run(fs().set_attributes(b, open_to_all, kRoot)));
  EXPECT_TRUE(dedupe(from, 0, read_only, 0, kBlock, kStranger));

  auto token = volume->run(fs().make_dedupe_token(from));
  ASSERT_TRUE(token);
  DedupeRequest request;
  request.length = kBlock;
  EXPECT_EQ(code_of(volume->run(fs().dedupe(to, request, kRoot))), Code::kInvalid);  // a guess
  request.token = *token;
  EXPECT_TRUE(volume->run(fs().dedupe(to, request, kRoot)));
  EXPECT_EQ(code_of(volume->run(fs().dedupe(to, request, kRoot))), Code::kInvalid);  // used
  token = volume->run(fs().make_dedupe_token(from));
  ASSERT_TRUE(token);
  request.token = *token;
  close(from);
  EXPECT_EQ(code_of(volume->run(fs().dedupe(to, request, kRoot))), Code::kInvalid);  // closed
  AttributeChange immutable;
  immutable.flags = ondisk::kInodeImmutable;
  ASSERT_TRUE(volume->run(fs().set_attributes(b, immutable, kRoot)));
  from = open(a);
  EXPECT_EQ(code_of(dedupe(from, 0, to, 0, kBlock)), Code::kNotPermitted);
  close(from);
  close(to);
}

// --- Maps ---

TEST_F(Clones, MapsTellWhatLiesWhere) {
  mount(share_options());
  const uint64_t ino = create("file");
  ASSERT_TRUE(write(ino, 0, random_bytes(4 * kBlock)));
  ASSERT_TRUE(volume->run(fs().allocate(ino, AllocateMode::kAllocate, 10 * kBlock, 2 * kBlock)));
  FileMap seen = map(ino, 400, false);
  ASSERT_EQ(seen.pieces.size(), 2U);
  EXPECT_TRUE(seen.pieces[0].delayed && seen.pieces[0].physical == 0 && !seen.pieces[0].last);
  EXPECT_EQ(seen.pieces[0].length, 4 * kBlock);
  EXPECT_TRUE(seen.pieces[1].unwritten && seen.pieces[1].last);
  EXPECT_EQ(seen.pieces[1].logical, 10 * kBlock);
  seen = map(ino);
  ASSERT_EQ(seen.pieces.size(), 2U);
  EXPECT_TRUE(!seen.pieces[0].delayed && seen.pieces[0].physical != 0 && !seen.pieces[0].shared);
  const uint64_t physical = seen.pieces[0].physical;

  const uint64_t copy_ino = create("copy");
  ASSERT_EQ(copy(ino, kBlock, copy_ino, 0, 2 * kBlock), 2 * kBlock);
  seen = map(ino);
  ASSERT_EQ(seen.pieces.size(), 4U);  // alone, shared, alone, unwritten
  EXPECT_TRUE(!seen.pieces[0].shared && seen.pieces[1].shared && !seen.pieces[2].shared);
  EXPECT_EQ(seen.pieces[1].physical, physical + kBlock);
  EXPECT_EQ(seen.pieces[1].length, 2 * kBlock);
  EXPECT_EQ(map(copy_ino).pieces[0].physical, physical + kBlock);
  ASSERT_TRUE(write(ino, 2 * kBlock, "x"));  // dirty over shared
  seen = map(ino, 400, false);
  ASSERT_EQ(seen.pieces.size(), 5U);
  EXPECT_TRUE(seen.pieces[2].delayed);

  // In pages.
  std::vector<MappedPiece> pieces;
  for (uint64_t at = 0;;) {
    auto page = volume->run(fs().map_file(ino, at, UINT64_MAX, 1, true));
    ASSERT_TRUE(page);
    pieces.insert(pieces.end(), page->pieces.begin(), page->pieces.end());
    if (!page->more) break;
    at = pieces.back().logical + pieces.back().length;
  }
  const FileMap whole = map(ino);
  ASSERT_EQ(pieces.size(), whole.pieces.size());
  EXPECT_TRUE(pieces.back().last);
  for (size_t i = 0; i < pieces.size(); i++) {
    EXPECT_EQ(pieces[i].physical, whole.pieces[i].physical);
    EXPECT_EQ(pieces[i].last, i + 1 == pieces.size());
  }
  const uint64_t small = file("small", "tiny");
  seen = map(small);
  ASSERT_EQ(seen.pieces.size(), 1U);
  EXPECT_TRUE(seen.pieces[0].is_inline && seen.pieces[0].last && seen.pieces[0].length == 4);
  EXPECT_TRUE(map(create("empty")).pieces.empty());
  auto part = volume->run(fs().map_file(ino, 11 * kBlock, kBlock, 400, false));
  ASSERT_TRUE(part);
  ASSERT_EQ(part->pieces.size(), 1U);
  EXPECT_EQ(part->pieces[0].logical, 11 * kBlock);
  // An extent that goes on behind the range is told whole, and what lies behind it is not.
  part = volume->run(fs().map_file(copy_ino, 0, kBlock, 400, false));
  ASSERT_TRUE(part);
  ASSERT_EQ(part->pieces.size(), 1U);
  EXPECT_EQ(part->pieces[0].length, map(copy_ino).pieces[0].length);
  part = volume->run(fs().map_file(ino, 0, 4 * kBlock, 400, true));
  ASSERT_TRUE(part);
  EXPECT_EQ(part->pieces.back().logical + part->pieces.back().length, 4 * kBlock);
  EXPECT_EQ(code_of(volume->run(fs().map_file(ondisk::kRootInode, 0, 1, 1, false))),
            Code::kIsDirectory);
}

}  // namespace
}  // namespace cofs
