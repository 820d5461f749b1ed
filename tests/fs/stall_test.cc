// A device that refuses writes for a while (blockmap/stall.cc): who waits for it is told, nothing else notices, and
// nothing is lost.
//
// COFS_STALL_STATES: how many crash images the random runs try in all (default 6000), COFS_SEED: the first seed.
#include <gtest/gtest.h>

#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdio>
#include <functional>
#include <memory>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"

namespace cofs {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kMillisecondNs = 1'000'000;
constexpr uint64_t kOutageNs = 30 * kMillisecondNs;
constexpr uint64_t kEver = UINT64_MAX;

VolumeOptions stall_options() {
  VolumeOptions options;
  options.device_blocks = 4096 + 40;
  options.format.segment_blocks = 32;
  options.format.node_bytes = 4096;
  options.store.background = false;
  options.fs.dirty_bytes_max = 64 * kBlockBytes;
  options.fs.direct_bytes_min = 4 * kBlockBytes;
  return options;
}

class Stall : public testing::Test {
 public:
  void mount(const VolumeOptions& volume_options) {
    options = volume_options;
    volume = std::make_unique<TestVolume>(7, TestVolume::formatted(7, options), options);
    ASSERT_TRUE(volume->open());
    bool created = false;
    const auto made = volume->run(
        fs().create(ondisk::kRootInode, "file", S_IFREG | 0644, Caller(), true, &created));
    ASSERT_TRUE(made);
    ino = made->ino;
    ASSERT_TRUE(volume->run(fs().sync_file(ino)));
  }
  // `look` at a volume that is to be mounted again: as a killed server leaves it, and after a clean close.
  void mount_killed_then_closed(const std::function<void(TestVolume&)>& look) {
    mount(stall_options());
    ASSERT_TRUE(write(0));
    ASSERT_EQ(sync(), Code::kInvalid);
    for (const bool clean : {false, true}) {
      if (clean) {
        ASSERT_TRUE(volume->close());
      }
      TestVolume next(5, volume->device.image(), options);
      look(next);
    }
  }
  FileSystem& fs() { return volume->fs(); }
  uint64_t now() { return volume->world.clock.monotonic_ns(); }
  void break_device() { volume->device.refuse_writes(0, kEver); }
  void heal_device() { volume->device.refuse_writes(0, 0); }
  static std::string content(uint64_t block) { return pattern_bytes(9, block * kBlockBytes, kBlockBytes); }

  Result<> write(uint64_t block, uint64_t blocks = 1) {
    const std::string bytes = pattern_bytes(9, block * kBlockBytes, blocks * kBlockBytes);
    return volume->run(fs().write(
        ino, WriteData::fill(volume->world.buffers, block * kBlockBytes, bytes.data(),
                             static_cast<uint32_t>(bytes.size())),
        false, false));
  }
  Result<> write_direct(uint64_t block, uint64_t blocks, uint64_t seed = 9) {
    const std::string bytes = pattern_bytes(seed, block * kBlockBytes, blocks * kBlockBytes);
    return volume->run(fs().write_direct(
        ino, WriteData::fill(volume->world.buffers, block * kBlockBytes, bytes.data(),
                             static_cast<uint32_t>(bytes.size())),
        false));
  }
  // Each answer comes at once, also an error.
  Code sync() {
    const uint64_t started_ns = now();
    const auto done = volume->run(fs().sync_file(ino));
    EXPECT_LT(now() - started_ns, kSecondNs / 10);
    return done ? Code::kInvalid : done.error().code;  // kInvalid: it is durable
  }
  static void check_blocks(TestVolume& volume, uint64_t ino, uint64_t count) {
    for (uint64_t block = 0; block < count; block++) {
      const auto data = volume.run(volume.fs().read(ino, block * kBlockBytes, kBlockBytes));
      ASSERT_TRUE(data) << block << ": " << describe(data.error());
      ASSERT_EQ(data->length, kBlockBytes) << block;
      ASSERT_EQ(std::string(reinterpret_cast<const char*>(data->data()), kBlockBytes), content(block)) << block;
    }
  }
  // What is durable now has the file's first `count` blocks and no more.
  void check_durable(uint64_t count) {
    TestVolume crashed(3, volume->device.crash_image(1, CrashMode::kDropAll), options);
    const auto opened = crashed.open();
    ASSERT_TRUE(opened) << describe(opened.error());
    const auto attributes = crashed.run(crashed.fs().get_attributes(ino));
    ASSERT_TRUE(attributes);
    EXPECT_EQ(attributes->size, count * kBlockBytes);
    check_blocks(crashed, ino, count);
    EXPECT_EQ(crashed.verify(true), "");
  }
  uint64_t lines_with(std::string_view text) const {
    uint64_t count = 0;
    for (const SimJournal::Line& line : volume->world.journal.lines()) {
      if (line.text.find(text) != std::string::npos) count++;
    }
    return count;
  }

  VolumeOptions options;
  std::unique_ptr<TestVolume> volume;
  uint64_t ino = 0;
};

TEST_F(Stall, FsyncFailsAsLongAsTheDeviceDoes) {
  mount(stall_options());
  ASSERT_TRUE(write(0));
  ASSERT_EQ(sync(), Code::kInvalid);
  break_device();
  for (uint64_t block = 1; block < 4; block++) {
    ASSERT_TRUE(write(block));
    EXPECT_EQ(sync(), Code::kIo);
    EXPECT_EQ(sync(), Code::kIo);
  }
  EXPECT_TRUE(fs().store().stall().stalled);
  EXPECT_FALSE(fs().store().shut_down());
  check_blocks(*volume, ino, 4);
  check_durable(1);
  heal_device();
  EXPECT_EQ(sync(), Code::kInvalid);
  EXPECT_FALSE(fs().store().stall().stalled);
  check_durable(4);
  EXPECT_EQ(lines_with("the device refuses writes"), 1U);
  EXPECT_EQ(lines_with("takes writes again"), 1U);
  EXPECT_TRUE(volume->close());
}

// The first one that the device refuses hears of it, and has changed nothing: not what was dirty, either.
TEST_F(Stall, ALargeDirectWriteIsAllThereOrNotAtAll) {
  mount(stall_options());
  ASSERT_TRUE(write(0, 8));
  ASSERT_EQ(sync(), Code::kInvalid);
  constexpr uint64_t kOther = 10;
  for (const uint64_t block : {0, 4, 8, 10, 40}) {
    ASSERT_TRUE(write(8, 2));
    break_device();
    const auto written = write_direct(block, 40, kOther);  // more than a segment
    ASSERT_FALSE(written) << block;
    EXPECT_EQ(written.error().code, Code::kIo);
    check_blocks(*volume, ino, 10);
    const auto attributes = volume->run(fs().get_attributes(ino));
    ASSERT_TRUE(attributes);
    EXPECT_EQ(attributes->size, 10 * kBlockBytes);
    EXPECT_FALSE(write_direct(block, 1, kOther)) << "a small one, while it is known";
    EXPECT_EQ(sync(), Code::kIo);
    heal_device();
    EXPECT_EQ(sync(), Code::kInvalid);
    check_durable(10);
  }
  EXPECT_EQ(lines_with("the device refuses writes"), 5U);
  ASSERT_TRUE(write_direct(4, 40));
  check_blocks(*volume, ino, 44);
  EXPECT_EQ(sync(), Code::kInvalid);
  check_durable(44);
  EXPECT_TRUE(volume->close());
}

// The blocks at its ends are completed from the file, without being changed if it fails.
TEST_F(Stall, SoIsOneThatCoversBlocksInPart) {
  mount(stall_options());
  ASSERT_TRUE(write(0, 8));
  ASSERT_EQ(sync(), Code::kInvalid);
  const std::string bytes = pattern_bytes(10, 0, 5 * kBlockBytes);
  std::string expected = pattern_bytes(9, 0, 8 * kBlockBytes);
  for (const bool grows : {false, true}) {
    const uint64_t offset = (grows ? 6 : 1) * kBlockBytes + 512;
    const auto write_part = [&] {
      return volume->run(fs().write_direct(
          ino, WriteData::fill(volume->world.buffers, offset, bytes.data(), static_cast<uint32_t>(bytes.size())), false));
    };
    const auto read_all = [&] {
      const auto data = volume->run(fs().read(ino, 0, 64 * kBlockBytes));
      return data ? std::string(reinterpret_cast<const char*>(data->data()), data->length) : describe(data.error());
    };
    break_device();
    const auto refused = write_part();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::kIo);
    EXPECT_EQ(read_all(), expected);
    heal_device();
    EXPECT_EQ(sync(), Code::kInvalid);
    EXPECT_EQ(read_all(), expected);
    ASSERT_TRUE(write_part());
    expected.resize(std::max<size_t>(expected.size(), offset + bytes.size()));
    expected.replace(offset, bytes.size(), bytes);
    EXPECT_EQ(read_all(), expected);
    EXPECT_EQ(fs().store().space().promised_blocks, 0U);
  }
  EXPECT_TRUE(volume->close());
}

// A single failure is nobody's business.
// A durable write that fails alone is a plain one then, and a flush; and so are those after it.
TEST_F(Stall, ADurableWriteThatFailsIsFollowedByAFlush) {
  mount(stall_options());
  ASSERT_TRUE(write(0));
  ASSERT_EQ(sync(), Code::kInvalid);
  ASSERT_TRUE(write(1));
  const StoreCounters before = fs().store().counters();
  volume->device.fail_at(volume->device.operation_count() + 1, SimFault::kError);
  ASSERT_EQ(sync(), Code::kInvalid);
  EXPECT_EQ(fs().store().counters().durable_writes, before.durable_writes);
  EXPECT_EQ(fs().store().counters().flushes, before.flushes + 1);
  EXPECT_EQ(fs().store().stall().count, 0U);
  check_durable(2);
  ASSERT_TRUE(write(2));
  ASSERT_EQ(sync(), Code::kInvalid);
  EXPECT_EQ(fs().store().counters().durable_writes, before.durable_writes);
  EXPECT_EQ(fs().store().counters().flushes, before.flushes + 2);
  check_durable(3);
  EXPECT_TRUE(volume->close());
}

Task<> sync_into(FileSystem* fs, uint64_t ino, Result<>* result, bool* done) {
  *result = co_await fs->sync_file(ino);
  *done = true;
}

// Its failure may be that of a flush, which loses what else was written meanwhile, and is told once.
TEST_F(Stall, AFailedDurableWriteDoubtsWhatWasWrittenMeanwhile) {
  for (const bool is_refused : {false, true}) {
    mount(stall_options());
    ASSERT_TRUE(write(0, 20));
    ASSERT_EQ(sync(), Code::kInvalid);
    ASSERT_TRUE(write(20));
    const uint64_t next = volume->device.operation_count() + 1;
    volume->device.fail_at(next, SimFault::kError);
    volume->device.delay_writes_at(next, 1, kSecondNs);
    Result<> synced;
    bool done = false;
    volume->world.executor.post(detach(sync_into(&fs(), ino, &synced, &done)));
    volume->pass(kMillisecondNs);
    ASSERT_TRUE(write_direct(4, 8));
    ASSERT_FALSE(done);
    if (is_refused) break_device();
    volume->pass(2 * kSecondNs);
    ASSERT_TRUE(done);
    EXPECT_FALSE(synced);
    EXPECT_EQ(fs().store().shut_down(), !is_refused);  // then it is writes that fail
    EXPECT_EQ(fs().store().stall().stalled, is_refused);
    if (is_refused) {
      heal_device();
      EXPECT_EQ(sync(), Code::kInvalid);
      check_durable(21);
      EXPECT_TRUE(volume->close());
    } else {
      EXPECT_EQ(lines_with("could not flush"), 1U);
    }
    volume.reset();
  }
}

TEST_F(Stall, ADirectWriteIsTriedTwice) {
  VolumeOptions once = stall_options();
  once.device.counted = kCountWrites;
  mount(once);
  volume->device.refuse_writes_at(volume->device.operation_count() + 1, 1);
  ASSERT_TRUE(write_direct(0, 4));
  EXPECT_EQ(volume->device.counters().writes_refused, 1U);
  EXPECT_EQ(lines_with("succeeded when tried again"), 1U);
  EXPECT_EQ(sync(), Code::kInvalid);
  check_durable(4);
  EXPECT_TRUE(volume->close());
}

TEST_F(Stall, TheClockTriesAgain) {
  mount(stall_options());
  break_device();
  ASSERT_TRUE(write(0));
  EXPECT_EQ(sync(), Code::kIo);
  volume->pass(60 * kSecondNs);
  EXPECT_TRUE(fs().store().stall().stalled);
  EXPECT_GE(fs().store().stall().seconds, 59U);
  heal_device();
  volume->pass(3 * kSecondNs);
  EXPECT_FALSE(fs().store().stall().stalled);
  check_durable(1);
  EXPECT_EQ(sync(), Code::kInvalid);
  EXPECT_TRUE(volume->close());
}

Task<> sync_in_background(FileSystem* fs, uint64_t ino, int* ended, int* failed) {
  auto done = co_await fs->sync_file(ino);
  (*ended)++;
  if (!done) (*failed)++;
}

TEST_F(Stall, AllWhoWaitAreTold) {
  mount(stall_options());
  break_device();
  ASSERT_TRUE(write(0));
  int ended = 0;
  int failed = 0;
  for (int i = 0; i < 10; i++) {
    spawn(volume->world.executor, sync_in_background(&fs(), ino, &ended, &failed));
  }
  volume->pass(50 * kMillisecondNs);
  EXPECT_EQ(ended, 10);
  EXPECT_EQ(failed, 10);
  heal_device();
  EXPECT_EQ(sync(), Code::kInvalid);
  EXPECT_TRUE(volume->close());
}

TEST_F(Stall, SyncfsTellsOnceOfWhatIsOver) {
  mount(stall_options());
  ASSERT_TRUE(volume->run(fs().sync_volume()));
  break_device();
  ASSERT_TRUE(write(0));
  EXPECT_EQ(sync(), Code::kIo);
  heal_device();
  const auto first = volume->run(fs().sync_volume());
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, Code::kIo);
  check_durable(1);
  EXPECT_TRUE(volume->run(fs().sync_volume()));
  // One that was told while it lasted is not told again.
  break_device();
  ASSERT_TRUE(write(1));
  EXPECT_FALSE(volume->run(fs().sync_volume()));
  heal_device();
  EXPECT_TRUE(volume->run(fs().sync_volume()));
  check_durable(2);
  EXPECT_TRUE(volume->close());
}

TEST_F(Stall, WritersWithoutRoomAreRefusedAtOnce) {
  mount(stall_options());
  break_device();
  uint64_t blocks = 0;
  Result<> written;
  const uint64_t started_ns = now();
  while (written && blocks < 1000) {
    written = write(blocks, 4);
    if (written) blocks += 4;
  }
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, Code::kIo);
  EXPECT_GE(blocks, 32U);
  EXPECT_LT(now() - started_ns, kSecondNs);
  for (int i = 0; i < 20; i++) EXPECT_FALSE(write(blocks, 4));
  check_blocks(*volume, ino, blocks);
  EXPECT_EQ(sync(), Code::kIo);
  EXPECT_LT(now() - started_ns, 2 * kSecondNs);
  heal_device();
  EXPECT_EQ(sync(), Code::kInvalid);
  check_durable(blocks);
  ASSERT_TRUE(write(blocks, 4));
  EXPECT_EQ(sync(), Code::kInvalid);
  check_durable(blocks + 4);
  EXPECT_TRUE(volume->close());
}

// A device that fails altogether can't be read, either: what a write covers in part is known from the write before it.
TEST_F(Stall, RecordsOneAfterTheOtherNeedNoRead) {
  mount(stall_options());
  constexpr uint64_t kRecord = 5000;
  std::string expected;
  const auto append = [&](uint64_t offset, uint64_t seed) {
    const std::string bytes = pattern_bytes(seed, offset, kRecord);
    expected.resize(std::max<size_t>(expected.size(), offset + kRecord));
    expected.replace(offset, kRecord, bytes);
    return volume->run(fs().write(ino, WriteData::fill(volume->world.buffers, offset, bytes.data(), kRecord), false, false));
  };
  for (uint64_t i = 0; i < 8; i++) ASSERT_TRUE(append(i * kRecord, 1));
  ASSERT_EQ(sync(), Code::kInvalid);
  SimFaults faults;
  faults.read_error = 1;
  faults.write_error = 1;
  volume->device.set_faults(faults);
  for (uint64_t i = 0; i < 8; i++) EXPECT_TRUE(append(i * kRecord, 2)) << i;
  EXPECT_EQ(sync(), Code::kIo);
  volume->device.set_faults(SimFaults());
  EXPECT_EQ(sync(), Code::kInvalid);
  for (uint64_t i = 0; i < 8; i++) {
    ASSERT_TRUE(append(i * kRecord, 3 + i));
    ASSERT_EQ(sync(), Code::kInvalid);
  }
  // What was changed otherwise is not taken for what was kept.
  ASSERT_TRUE(volume->run(fs().allocate(ino, AllocateMode::kPunchHole, kBlockBytes, kBlockBytes)));
  expected.replace(kBlockBytes, kBlockBytes, std::string(kBlockBytes, '\0'));
  ASSERT_TRUE(append(kBlockBytes + 100, 20));
  ASSERT_EQ(sync(), Code::kInvalid);
  ASSERT_TRUE(volume->close());
  ASSERT_TRUE(volume->open());
  const auto data = volume->run(fs().read(ino, 0, static_cast<uint32_t>(expected.size())));
  ASSERT_TRUE(data);
  EXPECT_TRUE(std::string(reinterpret_cast<const char*>(data->data()), data->length) == expected);
}

// Names, too, have bounds that only a checkpoint can restore.
TEST_F(Stall, NamesWithoutRoomAreRefusedAtOnce) {
  VolumeOptions few = stall_options();
  few.store.dirty_nodes_max = 16;
  mount(few);
  break_device();
  const uint64_t started_ns = now();
  uint64_t made = 0;
  while (made < 20'000) {
    bool created = false;
    const auto file = volume->run(fs().create(ondisk::kRootInode, fmt::format("name {}", made),
                                              S_IFREG | 0644, Caller(), true, &created));
    if (!file) {
      EXPECT_EQ(file.error().code, Code::kIo);
      break;
    }
    made++;
  }
  ASSERT_LT(made, 20'000U);
  EXPECT_LT(now() - started_ns, kSecondNs);
  heal_device();
  EXPECT_EQ(sync(), Code::kInvalid);
  volume->settle();
  EXPECT_EQ(volume->verify(false), "");
  EXPECT_TRUE(volume->close());
}

TEST_F(Stall, AnUnmountEndsAfterOneLastAttempt) {
  for (const bool heals : {false, true}) {
    mount(stall_options());
    ASSERT_TRUE(write(0));
    ASSERT_EQ(sync(), Code::kInvalid);
    break_device();
    ASSERT_TRUE(write(1));
    EXPECT_EQ(sync(), Code::kIo);
    if (heals) heal_device();
    const uint64_t started_ns = now();
    const auto closed = volume->close();
    EXPECT_LT(now() - started_ns, kSecondNs / 10);
    EXPECT_EQ(closed.has_value(), heals);
    EXPECT_EQ(lines_with("ended while the device refused writes"), heals ? 0U : 1U);
    heal_device();
    TestVolume again(4, volume->device.image(), options);
    ASSERT_TRUE(again.open());
    EXPECT_EQ(again.fs().store().info().was_clean, heals);
    check_blocks(again, ino, heals ? 2 : 1);
    EXPECT_EQ(again.verify(true), "");
  }
}

TEST_F(Stall, WithoutAnUnmountNothingWaitsEither) {
  mount(stall_options());
  break_device();
  ASSERT_TRUE(write(0));
  EXPECT_EQ(sync(), Code::kIo);
  const uint64_t started_ns = now();
  volume->abandon();
  EXPECT_LT(now() - started_ns, kSecondNs / 10);
}

// A mount is either made or not: nothing waits for the device before it is there.
TEST_F(Stall, AMountDoesNotWait) {
  mount_killed_then_closed([](TestVolume& broken) {
    broken.device.refuse_writes(0, kEver);
    EXPECT_FALSE(broken.open());
  });
}

// What a killed server wrote may lie in the device's cache alone.
TEST_F(Stall, AMountFlushesBeforeItWrites) {
  mount_killed_then_closed([](TestVolume& other) {
    other.device.fail_at(1, SimFault::kError);
    EXPECT_FALSE(other.open());
    EXPECT_EQ(other.device.counters().flushes(), 1U);
    EXPECT_EQ(other.device.counters().operations_of(IoRequest::Op::kWrite), 0U);
  });
}

// After a checkpoint by the next commit, which else would be one durable write; after a clean close at once.
TEST_F(Stall, AllSuperblocksAreFlushed) {
  mount(stall_options());
  ASSERT_TRUE(write(0));
  ASSERT_EQ(sync(), Code::kInvalid);
  ASSERT_TRUE(volume->run(fs().store().checkpoint()));
  EXPECT_NE(volume->device.unsettled_count(), 0U);
  ASSERT_TRUE(write(1));
  ASSERT_EQ(sync(), Code::kInvalid);
  EXPECT_EQ(volume->device.unsettled_count(), 0U);
  ASSERT_TRUE(volume->close());
  EXPECT_EQ(volume->device.unsettled_count(), 0U);
}

// Writes of every kind fail in turn, and all that come in some time after it.
TEST_F(Stall, EachWriteFailsForAWhile) {
  VolumeOptions each = stall_options();
  each.device.counted = kCountWrites;
  const uint64_t stride = std::max<uint64_t>(1, number_from_environment("COFS_FAULT_STRIDE", 1));
  uint64_t stalls = 0;
  uint64_t tried = 0;
  for (uint64_t n = 1;; n += stride) {
    set_current_case(fmt::format("writes fail from the {}th on", n));
    mount(each);
    const uint64_t before = volume->device.operation_count();
    volume->device.refuse_writes_at(before + n, kOutageNs);
    uint64_t blocks = 0;
    for (int round = 0; round < 12; round++) {
      const uint64_t count = round % 3 == 0 ? 40 : 1;  // a segment and more, with its footer
      if (write(blocks, count)) blocks += count;
      if (round % 3 == 1 && write_direct(blocks, 9)) blocks += 9;
      const auto done = round % 4 == 3 ? volume->run(fs().store().checkpoint())
                                       : volume->run(fs().sync_file(ino));
      if (done) {
        check_durable(blocks);
      } else {
        EXPECT_EQ(done.error().code, Code::kIo) << n;
        check_blocks(*volume, ino, blocks);
      }
    }
    const bool reached = volume->device.counters().writes_refused != 0;
    stalls += fs().store().stall().count;
    volume->pass(kOutageNs);
    volume->device.refuse_writes_at(0, 0);  // closing is another test's
    EXPECT_EQ(sync(), Code::kInvalid) << n;
    check_durable(blocks);
    EXPECT_TRUE(volume->close()) << n;
    if (!reached) break;
    tried++;
  }
  EXPECT_GT(tried, 30U / stride);
  EXPECT_GT(stalls, tried / 2);
  std::printf("writes that failed first: %llu, stalls: %llu\n", static_cast<unsigned long long>(tried),
              static_cast<unsigned long long>(stalls));
}

SweepOptions sweep_options(uint64_t seed, bool background) {
  SweepOptions options;
  options.volume = VolumeOptions::tiny(seed);
  if (background) {
    options.volume.store.background = true;
    options.volume.store.commit_interval_ns = 2 * kSecondNs;
    options.volume.store.checkpoint_interval_ns = 7 * kSecondNs;
  }
  options.moment_chance = 0.2;
  options.nested_chance = 0.005;
  options.verify_chance = 0.5;
  options.outage_chance = 0.25;
  return options;
}

// Periods of failing writes at any time, and a crash at any moment in and after them.
void sweep(uint64_t share_percent, bool background) {
  const uint64_t states = number_from_environment("COFS_STALL_STATES", 6000) * share_percent / 100;
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  SweepReport report;
  for (uint64_t seed = first; report.states < states && report.violations.empty(); ++seed) {
    SweepOptions options = sweep_options(seed, background);
    options.states_max = states - report.states;
    WorkloadShape shape = WorkloadShape::random(seed);
    shape.sync_chance = std::max(shape.sync_chance, 0.15);
    if (background) shape.pass_chance = 0.15;
    SimRandom random(mix64(seed, 0x78));
    CrashSweep run(seed, options, TestVolume::formatted(seed, options.volume), ModelState());
    bool fine = true;
    for (int i = 0; i < 3 && fine; ++i) fine = run.run_random(shape, random.between(15, 50));
    report.add(run.report());
  }
  std::printf("%s, refused: %llu\n", report.summary(first).c_str(),
              static_cast<unsigned long long>(report.refusals));
  EXPECT_GT(report.refusals, 0U);
  for (const std::string& violation : report.violations) ADD_FAILURE() << violation;
}

TEST(StallSweep, ExplicitSyncs) { sweep(70, false); }
TEST(StallSweep, PeriodicCommits) { sweep(30, true); }

}  // namespace
}  // namespace cofs
