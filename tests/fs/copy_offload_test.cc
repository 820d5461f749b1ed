// Copies by a device, through the whole filesystem: checked by sample, repaired where the device lied,
// moved elsewhere where it does not answer, and measured once.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "blockmap/store.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = kBlockBytes;
constexpr uint64_t kSecondNs = 1'000'000'000;

VolumeOptions device_options(uint64_t seed) {
  VolumeOptions options;
  options.device_blocks = 32'768;
  options.format.segment_blocks = 256;
  options.store.background = false;
  options.store.copy.timeout_ns = kSecondNs;
  options.store.copy_verify_percent = 0;
  options.device.seed = seed;
  CopyLimits limits;
  limits.engine = "sim";
  limits.ranges_max = 8;
  limits.range_blocks_max = 64;
  limits.operation_blocks_max = 128;
  limits.in_flight_max = 4;
  options.device.copies.push_back(limits);
  return options;
}

class CopyOffload : public testing::Test {
 protected:
  void mount(uint64_t seed, const VolumeOptions& options) {
    volume = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
  }
  FileSystem& fs() { return volume->fs(); }
  Store& store() { return volume->fs().store(); }

  uint64_t create(const std::string& name) {
    bool created = false;
    return volume->run(fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(), true, &created))
        ->ino;
  }
  uint64_t write_file(const std::string& name, const std::string& bytes) {
    const uint64_t ino = create(name);
    for (uint64_t at = 0; at < bytes.size(); at += 256 * kBlock) {
      const auto n = static_cast<uint32_t>(std::min<uint64_t>(bytes.size() - at, 256 * kBlock));
      EXPECT_TRUE(volume->run(
          fs().write(ino, WriteData::fill(volume->world.buffers, at, bytes.data() + at, n), false,
                     false)));
    }
    return ino;
  }
  std::string read_file(uint64_t ino, uint64_t length) {
    std::string bytes;
    while (bytes.size() < length) {
      const auto n = static_cast<uint32_t>(std::min<uint64_t>(length - bytes.size(), 256 * kBlock));
      const auto data = volume->run(fs().read(ino, bytes.size(), n));
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
  // Copies all of `source`; the bytes that were copied.
  uint64_t copy(uint64_t source, uint64_t target, uint64_t length) {
    uint64_t done = 0;
    while (done < length) {
      const auto copied = volume->run(fs().copy_range(source, done, target, done, length - done));
      if (!copied || copied->bytes == 0) break;
      done += copied->bytes;
    }
    return done;
  }
  void expect_clean_after_remount(uint64_t ino, const std::string& bytes) {
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
    EXPECT_EQ(volume->verify(true), "");
    EXPECT_TRUE(read_file(ino, bytes.size()) == bytes);
  }
  // Where on the device a block with this content lies.
  uint64_t find_block(const std::string& content) {
    for (uint64_t block = 0; block < volume->device.geometry().block_count; block++) {
      const SimPageRef page = volume->device.image().page(block);
      if (page != nullptr && std::memcmp(page->bytes.data(), content.data(), kBlock) == 0) {
        return block;
      }
    }
    ADD_FAILURE() << "the block is not on the device";
    return 0;
  }
  uint64_t copied_by(CopyPath path) {
    return store().copy_counters().bytes[static_cast<size_t>(path)];
  }

  std::unique_ptr<TestVolume> volume;
  SimRandom random{4711};
};

TEST_F(CopyOffload, OnePercentIsReadBack) {
  VolumeOptions options = device_options(1);
  options.store.copy_verify_percent = 1;
  mount(1, options);
  const std::string bytes = random_bytes(2000 * kBlock);
  const uint64_t source = write_file("source", bytes);
  ASSERT_TRUE(volume->run(fs().sync()));
  const uint64_t read_before = store().counters().read_bytes;
  const uint64_t target = create("target");
  ASSERT_EQ(copy(source, target, bytes.size()), bytes.size());
  EXPECT_EQ(store().counters().copy_verified_bytes, 20 * kBlock);
  EXPECT_EQ(store().counters().read_bytes - read_before, 20 * kBlock);
  EXPECT_EQ(copied_by(CopyPath::kDevice), bytes.size());
  expect_clean_after_remount(target, bytes);
}

// A command takes as many scattered blocks as the device allows.
TEST_F(CopyOffload, ScatteredBlocksAreGathered) {
  mount(2, device_options(2));
  constexpr uint64_t kBlocks = 2048;
  constexpr uint64_t kStride = 32;
  const std::string bytes = random_bytes(kBlocks * kBlock);
  const uint64_t source = create("source");
  for (uint64_t first = 0; first < kStride; first++) {
    for (uint64_t i = first; i < kBlocks; i += kStride) {
      ASSERT_TRUE(volume->run(fs().write(
          source, WriteData::fill(volume->world.buffers, i * kBlock, bytes.data() + i * kBlock, kBlock),
          false, false)));
    }
    ASSERT_TRUE(volume->run(fs().sync()));
  }
  const uint64_t target = create("target");
  ASSERT_EQ(copy(source, target, bytes.size()), bytes.size());
  const CopyCounters& counters = store().copy_counters();
  EXPECT_EQ(copied_by(CopyPath::kDevice), bytes.size());
  const uint64_t commands = counters.operations[static_cast<size_t>(CopyPath::kDevice)];
  EXPECT_GE(commands, kBlocks / 8);
  EXPECT_LE(commands, kBlocks / 8 * 11 / 10);
  expect_clean_after_remount(target, bytes);
}

// Data and holes in turn: several batches, of which two are under way at a time. What is replied is right
// also where one in the middle fails.
TEST_F(CopyOffload, BatchesArePublishedInOrder) {
  for (uint64_t seed = 0; seed < 12; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    mount(seed, device_options(seed));
    constexpr uint64_t kBlocks = 2000;  // 1000 pieces of data, 1000 holes
    std::string bytes(kBlocks * kBlock, '\0');
    const uint64_t source = create("source");
    for (uint64_t i = 0; i < kBlocks; i += 2) {
      const std::string block = random_bytes(kBlock);
      bytes.replace(i * kBlock, kBlock, block);
      ASSERT_TRUE(volume->run(fs().write(
          source, WriteData::fill(volume->world.buffers, i * kBlock, block.data(), kBlock), false,
          false)));
    }
    AttributeChange change;
    change.size = bytes.size();
    ASSERT_TRUE(volume->run(fs().set_attributes(source, change, Caller())));
    ASSERT_TRUE(volume->run(fs().sync()));
    uint64_t bad = kBlocks;
    if (seed % 2 == 1) {
      bad = random.below(kBlocks / 2) * 2;
      volume->device.mark_bad(find_block(bytes.substr(bad * kBlock, kBlock)));
    }
    const uint64_t target = create("target");
    const uint64_t done = copy(source, target, bytes.size());
    EXPECT_EQ(done, std::min<uint64_t>(bad, kBlocks) * kBlock);
    EXPECT_TRUE(read_file(target, bytes.size()) == bytes.substr(0, done));
    if (bad == kBlocks) expect_clean_after_remount(target, bytes);
    EXPECT_EQ(volume->verify(false), "");
    volume.reset();
  }
}

TEST_F(CopyOffload, ADeviceThatLiesIsFoundOutAndRepaired) {
  for (uint64_t seed = 0; seed < 20; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VolumeOptions options = device_options(seed);
    options.store.copy_verify_percent = 100;
    mount(seed, options);
    const std::string bytes = random_bytes(1000 * kBlock);
    const uint64_t source = write_file("source", bytes);
    ASSERT_TRUE(volume->run(fs().sync()));
    SimFaults faults;
    faults.copy_silent_wrong = 1;
    volume->device.set_faults(faults);
    const uint64_t target = create("target");
    ASSERT_EQ(copy(source, target, bytes.size()), bytes.size());
    // Some were in flight when the first lie was found.
    EXPECT_GE(store().counters().copy_verify_failures, 1U);
    EXPECT_EQ(store().copy_engine_for(1), "host");
    EXPECT_EQ(volume->world.journal.count("the device reported a copy done that is wrong"),
              store().counters().copy_verify_failures);
    EXPECT_EQ(volume->world.journal.count("copy engine sim is left"), 1U);
    EXPECT_TRUE(read_file(target, bytes.size()) == bytes);
    expect_clean_after_remount(target, bytes);
    volume.reset();
  }
}

// A damaged source is not the device's fault: the copy carries its checksum and reads as damaged.
TEST_F(CopyOffload, ADamagedSourceIsNotTheDevicesLie) {
  VolumeOptions options = device_options(5);
  options.store.copy_verify_percent = 100;
  mount(5, options);
  const std::string bytes = random_bytes(64 * kBlock);
  const uint64_t source = write_file("source", bytes);
  ASSERT_TRUE(volume->run(fs().sync()));
  volume->device.corrupt(find_block(bytes.substr(10 * kBlock, kBlock)), SimDamage::kBit, 3);
  const uint64_t target = create("target");
  ASSERT_EQ(copy(source, target, bytes.size()), bytes.size());
  EXPECT_EQ(store().counters().copy_verify_failures, 0U);
  EXPECT_EQ(store().copy_engine_for(1), "sim");
  const auto data = volume->run(fs().read(target, 10 * kBlock, kBlock));
  ASSERT_FALSE(data);
  EXPECT_EQ(data.error().code, Code::kChecksum);
  EXPECT_EQ(read_file(target, 10 * kBlock), bytes.substr(0, 10 * kBlock));
}

TEST_F(CopyOffload, ACommandThatIsLateMovesTheCopyElsewhere) {
  for (uint64_t seed = 0; seed < 20; seed++) {
    for (SimFault fault : {SimFault::kSlow, SimFault::kTimeout}) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " fault " + std::to_string(static_cast<int>(fault)));
      mount(seed, device_options(seed));
      const std::string bytes = random_bytes(1000 * kBlock);
      const uint64_t source = write_file("source", bytes);
      ASSERT_TRUE(volume->run(fs().sync()));
      // SimDevice aborts if the blocks that the late command may write are written by another.
      volume->device.fail_at(volume->device.operation_count() + 2 + seed % 7, fault);
      const uint64_t target = create("target");
      ASSERT_EQ(copy(source, target, bytes.size()), bytes.size());
      EXPECT_TRUE(read_file(target, bytes.size()) == bytes);
      // Nothing is left alive in the segment in doubt, but it is not written while the command may land:
      // the lowest free segments are used first, and the next file takes all of those that were freed.
      ASSERT_TRUE(volume->run(fs().unlink(ondisk::kRootInode, "source")));
      ASSERT_TRUE(volume->run(fs().unlink(ondisk::kRootInode, "target")));
      volume->run(fs().forget(source));
      volume->run(fs().forget(target));
      for (int i = 0; i < 3; i++) ASSERT_TRUE(volume->run(store().checkpoint()));
      const std::string other = random_bytes(6000 * kBlock);
      const uint64_t third = write_file("third", other);
      ASSERT_TRUE(volume->run(fs().sync()));
      EXPECT_TRUE(read_file(third, other.size()) == other);
      expect_clean_after_remount(third, other);
      volume.reset();
    }
  }
}

TEST_F(CopyOffload, ADeviceThatNeverAnswersIsLeft) {
  VolumeOptions options = device_options(8);
  options.device.faults.copy_timeout = 1;
  mount(8, options);
  const std::string bytes = random_bytes(1000 * kBlock);
  const uint64_t source = write_file("source", bytes);
  const uint64_t target = create("target");
  ASSERT_EQ(copy(source, target, bytes.size()), bytes.size());
  EXPECT_EQ(copied_by(CopyPath::kDevice), 0U);
  EXPECT_EQ(store().copy_engine_for(1), "host");
  expect_clean_after_remount(target, bytes);
}

TEST_F(CopyOffload, WithEveryFaultTheBytesAreRight) {
  for (uint64_t seed = 0; seed < 60; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VolumeOptions options = device_options(seed);
    options.store.copy_verify_percent = 100;
    options.store.copy.failures_before_demotion = 1000;
    options.device.faults.copy_error = 0.1;
    options.device.faults.copy_partial = 0.1;
    options.device.faults.copy_slow = 0.05;
    options.device.faults.copy_silent_wrong = seed % 2 == 0 ? 0.02 : 0;
    mount(seed, options);
    const std::string bytes = random_bytes(800 * kBlock);
    const uint64_t source = write_file("source", bytes);
    std::vector<uint64_t> targets;
    for (int i = 0; i < 4; i++) {
      targets.push_back(create("target" + std::to_string(i)));
      const uint64_t done = copy(source, targets.back(), bytes.size());
      EXPECT_TRUE(read_file(targets.back(), done) == bytes.substr(0, done));
      if (done < bytes.size()) targets.pop_back();
    }
    EXPECT_FALSE(targets.empty());
    for (uint64_t target : targets) expect_clean_after_remount(target, bytes);
    volume.reset();
  }
}

TEST_F(CopyOffload, RatesAreMeasuredOnceAndKept) {
  VolumeOptions options = device_options(9);
  options.store.copy_measuring = CopyMeasuring::kOnce;
  mount(9, options);
  volume->pass(60 * kSecondNs);
  const CopyRates measured = store().copy_rates();
  ASSERT_EQ(measured.engines.size(), 2U);
  EXPECT_EQ(measured.engines[0].engine, "host");
  EXPECT_EQ(measured.engines[1].engine, "sim");
  for (const CopyRate& rate : measured.engines) {
    for (uint64_t bytes : rate.bytes_per_second) EXPECT_GT(bytes, 0U);
  }
  EXPECT_EQ(volume->verify(true), "");
  const uint64_t free_segments = store().space().free_segments;
  ASSERT_TRUE(volume->close());
  const uint64_t copies = volume->device.counters().operations_of(IoRequest::Op::kCopy);
  EXPECT_GT(copies, 0U);
  ASSERT_TRUE(volume->open());
  volume->pass(60 * kSecondNs);
  EXPECT_EQ(volume->device.counters().operations_of(IoRequest::Op::kCopy), copies);
  EXPECT_EQ(store().copy_rates().engines[1].bytes_per_second, measured.engines[1].bytes_per_second);
  EXPECT_EQ(store().space().free_segments, free_segments);
}

TEST_F(CopyOffload, ADeviceThatFailsTheMeasurementIsNotUsed) {
  VolumeOptions options = device_options(10);
  options.store.copy_measuring = CopyMeasuring::kOnce;
  options.device.faults.copy_silent_wrong = 1;
  mount(10, options);
  volume->pass(60 * kSecondNs);
  EXPECT_EQ(store().copy_engine_for(1), "host");
  EXPECT_EQ(volume->world.journal.count("copy engine sim is not used"), 1U);
  const std::string bytes = random_bytes(100 * kBlock);
  const uint64_t target = create("target");
  ASSERT_EQ(copy(write_file("source", bytes), target, bytes.size()), bytes.size());
  EXPECT_EQ(copied_by(CopyPath::kDevice), 0U);
  EXPECT_EQ(store().copy_counters().refused.at("sim: it failed when it was measured"), 1U);
  expect_clean_after_remount(target, bytes);
  EXPECT_EQ(store().copy_engine_for(1), "host");  // remembered
}

// What is measured in is free space: a crash at any operation of it loses nothing.
TEST_F(CopyOffload, ACrashWhileMeasuringLosesNothing) {
  VolumeOptions options = device_options(11);
  options.store.copy_measuring = CopyMeasuring::kAlways;
  options.device.faults.copy_timeout = 0.02;
  const std::string bytes = random_bytes(100 * kBlock);
  for (uint64_t n = 1; n < 60; n += 3) {
    SCOPED_TRACE("operation " + std::to_string(n));
    mount(n, options);
    const uint64_t ino = write_file("file", bytes);
    ASSERT_TRUE(volume->run(fs().sync()));
    volume->device.power_off_at(volume->device.operation_count() + n);
    volume->pass(5 * kSecondNs);
    volume->abandon();
    const SimImage image = volume->device.crash_image(n, CrashMode::kRandom);
    volume = std::make_unique<TestVolume>(n, image, options);
    ASSERT_TRUE(volume->open());
    EXPECT_EQ(volume->verify(true), "");
    EXPECT_TRUE(read_file(ino, bytes.size()) == bytes);
    ASSERT_TRUE(volume->close());
    volume.reset();
  }
}

Task<> copy_all(FileSystem* fs, uint64_t source, uint64_t target, uint64_t length, bool* done) {
  const auto copied = co_await fs->copy_range(source, 0, target, 0, length);
  EXPECT_TRUE(copied && copied->bytes == length);
  *done = true;
}

// What is copied while a commit flushes lies in the device's cache when it is mapped; a commit that writes nothing but its
// own chunk must not take it for durable.
TEST_F(CopyOffload, ACommitFlushesWhatWasCopiedDuringTheLastOne) {
  VolumeOptions options = device_options(12);
  options.device.latency.block_ns = 5 * kSecondNs / 1000;  // half a second for all of it
  mount(12, options);
  const std::string bytes = random_bytes(100 * kBlock);
  const uint64_t source = write_file("source", bytes);
  const uint64_t target = create("target");
  ASSERT_TRUE(volume->run(fs().sync()));
  bool done = false;
  volume->world.executor.post(detach(copy_all(&fs(), source, target, bytes.size(), &done)));
  volume->pass(kSecondNs / 5);
  write_file("small1", "x");
  ASSERT_TRUE(volume->run(fs().sync()));
  ASSERT_FALSE(done);
  volume->pass(kSecondNs);
  ASSERT_TRUE(done);
  ASSERT_TRUE(volume->run(fs().sync()));
  write_file("small2", "x");
  const uint64_t durable_writes = store().counters().durable_writes;
  ASSERT_TRUE(volume->run(fs().sync()));
  EXPECT_EQ(store().counters().durable_writes, durable_writes + 1) << "a small commit flushes";
  volume->device.power_off_now();
  volume->abandon();
  const SimImage image = volume->device.crash_image(1, CrashMode::kDropAll);
  volume = std::make_unique<TestVolume>(12, image, options);
  ASSERT_TRUE(volume->open());
  EXPECT_EQ(volume->verify(true), "");
  EXPECT_TRUE(read_file(target, bytes.size()) == bytes);
  ASSERT_TRUE(volume->close());
}

}  // namespace
}  // namespace cofs
