// Data that is on the device and in no file yet (Store::stage_data), across checkpoints and crashes; and direct writes
// beside other changes of the same file.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <string>
#include <vector>

#include "offload/base/checksum.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kSegmentBlocks = 32;

class StagedDataTest : public testing::Test {
 protected:
  void mount(uint64_t seed) {
    options.device_blocks = 4096 + 40;
    options.format.segment_blocks = kSegmentBlocks;
    options.format.node_bytes = 4096;
    options.store.background = false;
    options.fs.direct_bytes_min = 4 * kBlockBytes;
    options.device.seed = seed;
    volume = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    ASSERT_TRUE(volume->open());
  }
  FileSystem& fs() { return volume->fs(); }
  Store& store() { return volume->fs().store(); }

  uint64_t create(const std::string& name) {
    bool created = false;
    const auto made =
        volume->run(fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(), true, &created));
    COFS_ASSERT(made);
    return made->ino;
  }
  WriteData data_of(uint64_t seed, uint64_t block, uint64_t blocks) {
    const std::string bytes = pattern_bytes(seed, block * kBlockBytes, blocks * kBlockBytes);
    return WriteData::fill(volume->world.buffers, block * kBlockBytes, bytes.data(),
                           static_cast<uint32_t>(bytes.size()));
  }
  void write(uint64_t ino, uint64_t seed, uint64_t block, uint64_t blocks) {
    ASSERT_TRUE(volume->run(fs().write(ino, data_of(seed, block, blocks), false, false)));
    ASSERT_TRUE(volume->run(fs().sync()));
  }
  void stage(uint64_t seed, uint64_t block, uint64_t blocks) {
    auto reserved = volume->run(store().reserve(Cost(blocks + 20, blocks * 100), SpaceClass::kUser));
    ASSERT_TRUE(reserved);
    space = std::move(*reserved);
    const WriteData data = data_of(seed, block, blocks);
    StagedData source;
    source.buffer = data.buffer;
    source.hashes = data.hashes;
    auto staged = volume->run(store().stage_data(&source, &space));
    ASSERT_TRUE(staged) << describe(staged.error());
    runs = std::move(*staged);
  }
  static Task<Result<>> map_all(StagedDataTest* test, uint64_t ino, uint64_t block) {
    auto transaction = co_await test->store().begin(std::move(test->space));
    COFS_CO_TRY(transaction);
    for (StagedRun& run : test->runs) {
      const uint32_t count = run.count;
      transaction->map_staged(ino, block, std::move(run));
      block += count;
    }
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    test->runs.clear();
    co_return Result<>();
  }
  static void expect_content(TestVolume& where, uint64_t ino, uint64_t seed, uint64_t block, uint64_t blocks) {
    const auto data = where.run(
        where.fs().read(ino, block * kBlockBytes, static_cast<uint32_t>(blocks * kBlockBytes)));
    ASSERT_TRUE(data) << describe(data.error());
    EXPECT_TRUE(std::string(reinterpret_cast<const char*>(data->data()), data->length) ==
                pattern_bytes(seed, block * kBlockBytes, blocks * kBlockBytes));
  }
  // What a crash now leaves, mounted.
  std::unique_ptr<TestVolume> crashed() {
    auto image = std::make_unique<TestVolume>(3, volume->device.crash_image(1, CrashMode::kDropAll), options);
    const auto opened = image->open();
    EXPECT_TRUE(opened) << describe(opened.error());
    return opened ? std::move(image) : nullptr;
  }

  VolumeOptions options;
  std::unique_ptr<TestVolume> volume;
  Reservation space;
  std::vector<StagedRun> runs;
};

// A checkpoint finds whole segments that hold nothing but what is staged, which a crash makes nobody's.
TEST_F(StagedDataTest, WhatIsNotMappedIsFreeAfterACrash) {
  mount(1);
  const uint64_t ino = create("file");
  write(ino, 1, 0, 8);
  ASSERT_TRUE(volume->run(store().checkpoint()));
  const uint64_t free_before = store().space().free_segments;
  stage(2, 0, 4 * kSegmentBlocks);
  ASSERT_TRUE(volume->run(store().checkpoint()));
  EXPECT_LE(store().space().free_segments, free_before - 3);
  const auto found = crashed();
  ASSERT_TRUE(found);
  EXPECT_EQ(found->verify(true), "");
  EXPECT_GE(found->fs().store().space().free_segments + 3, free_before);
  expect_content(*found, ino, 1, 0, 8);
  // Here it is still to be had.
  ASSERT_TRUE(volume->run(fs().allocate(ino, AllocateMode::kAllocate, 0, 4 * kSegmentBlocks * kBlockBytes)));
  ASSERT_TRUE(volume->run(map_all(this, ino, 0)));
  ASSERT_TRUE(volume->run(fs().sync()));
  const auto mapped = crashed();
  ASSERT_TRUE(mapped);
  EXPECT_EQ(mapped->verify(true), "");
  expect_content(*mapped, ino, 2, 0, 4 * kSegmentBlocks);
  EXPECT_EQ(volume->verify(true), "");
  EXPECT_TRUE(volume->close());
}

// What shared its segment goes after the checkpoint, and then it is mapped: replay empties the segment, and fills it.
TEST_F(StagedDataTest, WhatIsMappedIsThereWhenItsNeighboursWent) {
  for (uint64_t neighbours = 1; neighbours < kSegmentBlocks; neighbours += 3) {
    SCOPED_TRACE(neighbours);
    mount(neighbours);
    const uint64_t other = create("other");
    const uint64_t ino = create("file");
    write(ino, 1, 0, 2 * kSegmentBlocks);
    write(other, 3, 0, neighbours);
    stage(2, 0, 2 * kSegmentBlocks);
    ASSERT_TRUE(volume->run(store().checkpoint()));
    ASSERT_TRUE(volume->run(fs().allocate(other, AllocateMode::kPunchHole, 0, neighbours * kBlockBytes)));
    ASSERT_TRUE(volume->run(fs().sync()));
    ASSERT_TRUE(volume->run(map_all(this, ino, 0)));
    ASSERT_TRUE(volume->run(fs().sync()));
    const auto found = crashed();
    ASSERT_TRUE(found);
    EXPECT_EQ(found->verify(true), "");
    expect_content(*found, ino, 2, 0, 2 * kSegmentBlocks);
    EXPECT_TRUE(volume->close());
    runs.clear();
    space.release();
  }
}

Task<> write_in_background(FileSystem* fs, uint64_t ino, WriteData data, Result<>* result, int* ended) {
  *result = co_await fs->write_direct(ino, std::move(data), false);
  (*ended)++;
}

// The end of a write(2) that the kernel has cut comes as a small request beside large ones, and fails with them.
TEST_F(StagedDataTest, ASmallDirectWriteBesideLargeOnesIsRefusedWithThem) {
  mount(1);
  const uint64_t ino = create("file");
  write(ino, 1, 0, 16);
  volume->device.refuse_writes(0, UINT64_MAX);
  Result<> results[3];
  int ended = 0;
  spawn(volume->world.executor, write_in_background(&fs(), ino, data_of(2, 0, 6), &results[0], &ended));
  spawn(volume->world.executor, write_in_background(&fs(), ino, data_of(2, 6, 6), &results[1], &ended));
  spawn(volume->world.executor, write_in_background(&fs(), ino, data_of(2, 12, 1), &results[2], &ended));
  volume->pass(50'000'000);
  EXPECT_EQ(ended, 3);
  for (const Result<>& result : results) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Code::kIo);
  }
  volume->device.refuse_writes(0, 0);
  ASSERT_TRUE(volume->run(fs().sync()));
  expect_content(*volume, ino, 1, 0, 16);
  // Without one it goes to memory, as ever.
  const uint64_t written = store().counters().writes;
  ASSERT_TRUE(volume->run(fs().write_direct(ino, data_of(2, 12, 1), false)));
  EXPECT_EQ(store().counters().writes, written);
  EXPECT_TRUE(volume->close());
}

// Direct writes to one file at once, beside truncations, holes, buffered writes and syncs: each block is as one of those
// who wrote it left it, and so it is after a crash.
TEST_F(StagedDataTest, OperationsOnOneFileAtOnce) {
  for (uint64_t seed = 1; seed <= 40; seed++) {
    SCOPED_TRACE(seed);
    mount(seed);
    SimRandom random(seed);
    const uint64_t ino = create("file");
    constexpr uint64_t kBlocks = 48;
    write(ino, 1, 0, kBlocks);
    uint64_t writers = 1;
    for (int round = 0; round < 6; round++) {
      constexpr int kTogether = 5;
      std::vector<Result<>> results(kTogether);
      int ended = 0;
      for (int i = 0; i < kTogether; i++) {
        const uint64_t block = random.below(kBlocks - 12);
        const uint64_t blocks = random.between(4, 12);
        spawn(volume->world.executor,
              write_in_background(&fs(), ino, data_of(++writers, block, blocks), &results[i], &ended));
      }
      const uint64_t at = random.below(kBlocks);
      switch (random.below(4)) {
        case 0: ASSERT_TRUE(volume->run(fs().allocate(ino, AllocateMode::kPunchHole, at * kBlockBytes, 3 * kBlockBytes))); break;
        case 1: ASSERT_TRUE(volume->run(fs().write(ino, data_of(++writers, at, 2), false, false))); break;
        case 2: ASSERT_TRUE(volume->run(store().checkpoint())); break;
        default: ASSERT_TRUE(volume->run(fs().sync()));
      }
      volume->pass(50'000'000);
      ASSERT_EQ(ended, kTogether);
      for (const Result<>& result : results) ASSERT_TRUE(result) << describe(result.error());
    }
    const auto read_all = [&](TestVolume& where) {
      const auto data = where.run(where.fs().read(ino, 0, (kBlocks + 4) * kBlockBytes));
      return data ? std::string(reinterpret_cast<const char*>(data->data()), data->length) : describe(data.error());
    };
    const std::string content = read_all(*volume);
    ASSERT_GE(content.size(), kBlocks * kBlockBytes);
    for (uint64_t block = 0; block < content.size() / kBlockBytes; block++) {
      const std::string found = content.substr(block * kBlockBytes, kBlockBytes);
      bool known = found == std::string(kBlockBytes, '\0');
      for (uint64_t writer = 1; writer <= writers && !known; writer++) {
        known = found == pattern_bytes(writer, block * kBlockBytes, kBlockBytes);
      }
      EXPECT_TRUE(known) << block;
    }
    ASSERT_TRUE(volume->run(fs().sync()));
    const auto found = crashed();
    ASSERT_TRUE(found);
    EXPECT_EQ(found->verify(true), "");
    EXPECT_TRUE(read_all(*found) == content);
    EXPECT_EQ(volume->verify(true), "");
    EXPECT_TRUE(volume->close());
  }
}

}  // namespace
}  // namespace cofs
