// That nothing depends on how much there is: a simulated volume of 100 TiB, and counts. What takes real time and
// memory is measured on a mount (tests/e2e/scale_test.py).
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <string>
#include <vector>

#include "blockmap/store.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kDeviceBlocks = blocks_of_bytes(100ULL << 40);

VolumeOptions huge() {
  VolumeOptions options;
  options.device_blocks = kDeviceBlocks;
  options.store.background = false;
  options.steps_max = 500'000'000;
  return options;
}

uint64_t create(TestVolume& volume, const std::string& name) {
  const auto made = volume.run(
      volume.fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(), true, nullptr));
  EXPECT_TRUE(made) << name;
  return made ? made->ino : 0;
}

Result<> write_blocks(TestVolume& volume, uint64_t ino, uint64_t block, uint32_t count) {
  const std::vector<char> bytes(bytes_of_blocks(count), 'x');
  return volume.run(volume.fs().write(
      ino,
      WriteData::fill(volume.world.buffers, bytes_of_blocks(block), bytes.data(),
                      static_cast<uint32_t>(bytes.size())),
      false, false));
}

Task<Result<Attributes>> set_size(FileSystem& fs, uint64_t ino, uint64_t size) {
  AttributeChange change;
  change.size = size;
  return fs.set_attributes(ino, change, Caller());
}

// A clean mount reads the superblocks and the tree's path to what it needs, however many files there are.
TEST(Scale, AMountReadsNoMoreOfALargerVolume) {
  const VolumeOptions options = huge();
  std::vector<uint64_t> bytes_read;
  for (const int files : {100, 20'000}) {
    auto volume = std::make_unique<TestVolume>(1, TestVolume::formatted(1, options), options);
    ASSERT_TRUE(volume->open());
    for (int i = 0; i < files; i++) create(*volume, "file-" + std::to_string(i));
    ASSERT_TRUE(volume->close());
    TestVolume again(2, volume->device.durable_image(), options);
    ASSERT_TRUE(again.open());
    bytes_read.push_back(again.fs().store().counters().read_bytes);
    EXPECT_EQ(again.fs().store().space().inode_count, static_cast<uint64_t>(files) + 1);
    ASSERT_TRUE(again.close());
  }
  EXPECT_LE(bytes_read[1], bytes_read[0] + 4 * uint64_t{ondisk::kNodeBytesDefault});
}

// Deleting a large file takes many short transactions: others get in between.
TEST(Scale, ALargeFileIsDeletedInSteps) {
  VolumeOptions options = huge();
  options.shuffle = false;  // first come, first served
  TestVolume volume(3, TestVolume::formatted(3, options), options);
  ASSERT_TRUE(volume.open());
  const uint64_t ino = create(volume, "large");
  constexpr uint32_t kWriteBlocks = 256;
  constexpr uint64_t kBlocks = 2 * 65'536 + 1024;
  for (uint64_t block = 0; block < kBlocks; block += kWriteBlocks) {
    ASSERT_TRUE(write_blocks(volume, ino, block, kWriteBlocks));
  }
  ASSERT_TRUE(volume.run(volume.fs().sync()));
  bool truncated = false;
  const auto truncate = [](TestVolume* v, uint64_t file, bool* done) -> Task<> {
    auto result = co_await set_size(v->fs(), file, 0);
    EXPECT_TRUE(result);
    *done = true;
  };
  spawn(volume.world.executor, truncate(&volume, ino, &truncated));
  // Whoever comes after it does not wait until all is gone.
  create(volume, "other");
  EXPECT_FALSE(truncated);
  volume.settle();
  EXPECT_TRUE(truncated);
  EXPECT_EQ(volume.fs().store().space().live_data_blocks, 0U);
  EXPECT_EQ(volume.verify(false), "");
  ASSERT_TRUE(volume.close());
}

// A record that removes many extents is short, and takes as long to repeat as many records: a checkpoint is due after
// so much of it, too, so that no recovery takes long.
TEST(Scale, RemovingManyExtentsMakesACheckpointDue) {
  VolumeOptions options = huge();
  options.format.log_limit_blocks = 64;
  options.format.segment_blocks = 16;
  options.device_blocks = blocks_of_bytes(4ULL << 30);
  TestVolume volume(4, TestVolume::formatted(4, options), options);
  ASSERT_TRUE(volume.open());
  const uint64_t ino = create(volume, "scattered");
  constexpr uint64_t kExtents = 20'000;
  for (uint64_t i = 0; i < kExtents; i++) ASSERT_TRUE(write_blocks(volume, ino, 2 * i, 1));
  ASSERT_TRUE(volume.run(volume.fs().store().checkpoint()));
  const StoreCounters before = volume.fs().store().counters();
  ASSERT_TRUE(volume.run(set_size(volume.fs(), ino, 0)));
  const StoreCounters after = volume.fs().store().counters();
  // 40,000 pieces, of which 64 count as a block of log: several times twice the limit.
  EXPECT_GE(after.checkpoints, before.checkpoints + 2);
  EXPECT_EQ(volume.verify(false), "");
  ASSERT_TRUE(volume.close());
}

}  // namespace
}  // namespace cofs
