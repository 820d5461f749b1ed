// The simulated device is what all crash tests believe; so its own rules are tested case by case.
#include "tests/testing/sim_device.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>

#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

using Op = IoRequest::Op;

std::vector<std::byte> filled(uint64_t blocks, int value) {
  return std::vector<std::byte>(blocks * kBlockBytes, std::byte{static_cast<unsigned char>(value)});
}

struct Bench {
  explicit Bench(uint64_t seed, const SimDeviceOptions& options = SimDeviceOptions(),
                 uint64_t blocks = 1024)
      : world(seed), device(world, SimImage(blocks, SimImage::Fill::kPoison, seed), options) {}

  static Task<Result<>> do_write(Device* device, uint64_t start, std::vector<std::byte>* bytes, bool durable = false) {
    const MemoryPiece piece{bytes->data(), static_cast<uint32_t>(bytes->size() / kBlockBytes)};
    auto done = co_await device->write(BlockRange{start, piece.blocks}, std::span(&piece, 1), durable);
    co_return done;
  }
  static Task<Result<>> do_read(Device* device, uint64_t start, std::vector<std::byte>* bytes) {
    const MemoryPiece piece{bytes->data(), static_cast<uint32_t>(bytes->size() / kBlockBytes)};
    auto done = co_await device->read(BlockRange{start, piece.blocks}, std::span(&piece, 1));
    co_return done;
  }
  static Task<Result<>> do_flush(Device* device) {
    auto done = co_await device->flush();
    co_return done;
  }
  static Task<Result<>> do_discard(Device* device, uint64_t start, uint64_t count) {
    auto done = co_await device->discard(BlockRange{start, count});
    co_return done;
  }
  static Task<void> into(Task<Result<>> task, Result<>* result, bool* done) {
    auto value = co_await std::move(task);
    *result = value;
    *done = true;
  }

  Result<> write(uint64_t start, uint64_t blocks, int value) {
    auto bytes = filled(blocks, value);
    return world.run(do_write(&device, start, &bytes));
  }
  Result<> write_durably(uint64_t start, uint64_t blocks, int value) {
    auto bytes = filled(blocks, value);
    return world.run(do_write(&device, start, &bytes, true));
  }
  Result<> flush() { return world.run(do_flush(&device)); }
  Result<> discard(uint64_t start, uint64_t n) { return world.run(do_discard(&device, start, n)); }

  SimWorld world;
  SimDevice device;
};

// The value a block is filled with; -1: not filled with one value.
int value_of(const SimImage& image, uint64_t block) {
  std::byte bytes[kBlockBytes];
  image.read(block, bytes);
  for (std::byte byte : bytes) {
    if (byte != bytes[0]) return -1;
  }
  return static_cast<int>(bytes[0]);
}

struct CopyCall {
  explicit CopyCall(std::vector<BlockRange> from, uint64_t target) : sources(std::move(from)) {
    uint64_t count = 0;
    for (const BlockRange& source : sources) count += source.count;
    request.op = Op::kCopy;
    request.range = BlockRange{target, count};
    request.sources = sources;
    request.timeout_ns = 1'000'000'000;
  }
  std::vector<BlockRange> sources;
  IoRequest request;
};

struct SubmitAwaiter {
  Device& device;
  IoRequest& request;
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) {
    request.waiter = awaiter;
    device.submit(request);
  }
  void await_resume() {}
};
Task<Result<>> submit_copy(Device* device, CopyCall* call) {
  co_await SubmitAwaiter{*device, call->request};
  co_return call->request.result;
}

SimDeviceOptions with_copies() {
  SimDeviceOptions options;
  CopyLimits limits;
  limits.engine = "simcopy";
  limits.ranges_max = 8;
  limits.range_blocks_max = 16;
  limits.operation_blocks_max = 64;
  limits.in_flight_max = 4;
  options.copies.push_back(limits);
  return options;
}

TEST(SimImage, CopiesAreIndependentAndSparse) {
  SimImage huge(uint64_t{25} << 30);  // 100 TB
  auto bytes = filled(1, 7);
  const uint64_t last = huge.block_count() - 1;
  huge.write(last, bytes.data());
  huge.write(0, bytes.data());
  SimImage copy = huge;
  bytes = filled(1, 9);
  copy.write(last, bytes.data());
  copy.write(5, bytes.data());
  EXPECT_EQ(value_of(huge, last), 7);
  EXPECT_EQ(value_of(copy, last), 9);
  EXPECT_EQ(value_of(copy, 0), 7);
  EXPECT_FALSE(huge.written(5));
  std::set<uint64_t> written;
  copy.for_each_written([&](uint64_t block, const SimPageRef&) { written.insert(block); });
  EXPECT_EQ(written, (std::set<uint64_t>{0, 5, last}));
}

TEST(SimImage, MatchesAMapUnderRandomSnapshots) {
  SimRandom random(11);
  struct State {
    State(SimImage i, std::map<uint64_t, int> m) : image(std::move(i)), model(std::move(m)) {}
    SimImage image;
    std::map<uint64_t, int> model;
  };
  std::vector<State> states;
  states.emplace_back(SimImage(5000), std::map<uint64_t, int>());
  for (int round = 0; round < 3000; round++) {
    State& state = states[random.below(states.size())];
    if (states.size() < 20 && random.below(50) == 0) {
      State copy = state;
      states.push_back(std::move(copy));
      continue;
    }
    const uint64_t block = random.below(5000);
    if (random.below(5) == 0) {
      state.image.set_page(block, nullptr);
      state.model.erase(block);
    } else {
      const int value = static_cast<int>(random.below(256));
      auto bytes = filled(1, value);
      state.image.write(block, bytes.data());
      state.model[block] = value;
    }
  }
  for (const State& state : states) {
    std::map<uint64_t, int> seen;
    state.image.for_each_written([&](uint64_t block, const SimPageRef&) {
      seen[block] = value_of(state.image, block);
    });
    EXPECT_EQ(seen, state.model);
  }
}

TEST(SimImage, EveryDamageChangesTheBlock) {
  for (uint64_t seed = 0; seed < 200; seed++) {
    for (SimDamage kind :
         {SimDamage::kBit, SimDamage::kSector, SimDamage::kBlock, SimDamage::kZero}) {
      SimImage image(4, SimImage::Fill::kZeros);
      const SimPageRef before = image.materialise(2);
      image.damage(2, kind, seed);
      EXPECT_NE(before->bytes, image.materialise(2)->bytes) << seed;
    }
  }
}

TEST(SimDevice, ReadsSeeCompletedWritesAndPoisonElsewhere) {
  Bench bench(1);
  ASSERT_TRUE(bench.write(10, 3, 42));
  auto bytes = filled(5, 0);
  ASSERT_TRUE(bench.world.run(Bench::do_read(&bench.device, 9, &bytes)));
  EXPECT_EQ(bytes[kBlockBytes], std::byte{42});
  EXPECT_EQ(bytes[3 * kBlockBytes], std::byte{42});
  EXPECT_EQ(value_of(bench.device.image(), 9), -1);  // poison is random
  EXPECT_EQ(std::memcmp(bytes.data(), bench.device.image().materialise(9)->bytes.data(),
                        kBlockBytes),
            0);
  EXPECT_EQ(bench.device.counters().blocks_written, 3U);
  EXPECT_EQ(bench.device.counters().blocks_read, 5U);
}

TEST(SimDevice, RangesOffTheDeviceAreRefused) {
  Bench bench(1, SimDeviceOptions(), 16);
  auto done = bench.write(15, 2, 1);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::kInvalid);
  auto bytes = filled(1, 0);
  EXPECT_FALSE(bench.world.run(Bench::do_read(&bench.device, UINT64_MAX, &bytes)));
}

TEST(SimDevice, UnflushedWritesMayBeKeptDroppedOrTorn) {
  Bench bench(3);
  ASSERT_TRUE(bench.write(5, 1, 1));
  ASSERT_TRUE(bench.flush());
  EXPECT_EQ(bench.device.unsettled_count(), 0U);
  ASSERT_TRUE(bench.write(5, 1, 2));
  EXPECT_EQ(value_of(bench.device.crash_image(0, CrashMode::kDropAll), 5), 1);
  EXPECT_EQ(value_of(bench.device.crash_image(0, CrashMode::kKeepAll), 5), 2);
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 200; seed++) {
    const SimImage image = bench.device.crash_image(seed, CrashMode::kRandom);
    seen.insert(value_of(image, 5));
    const SimPageRef page = image.materialise(5);
    for (size_t at = 0; at < kBlockBytes; at++) {  // torn between sectors only
      ASSERT_EQ(page->bytes[at], page->bytes[at / kSimSectorBytes * kSimSectorBytes]) << seed;
      ASSERT_TRUE(page->bytes[at] == std::byte{1} || page->bytes[at] == std::byte{2});
    }
  }
  EXPECT_EQ(seen, (std::set<int>{-1, 1, 2}));
  // The same seed is the same image.
  EXPECT_EQ(bench.device.crash_image(77, CrashMode::kRandom).materialise(5)->bytes,
            bench.device.crash_image(77, CrashMode::kRandom).materialise(5)->bytes);
}

TEST(SimDevice, OverlappingUnflushedWritesMayLandInAnyOrder) {
  Bench bench(4);
  ASSERT_TRUE(bench.write(5, 1, 1));
  ASSERT_TRUE(bench.write(5, 1, 2));
  EXPECT_EQ(value_of(bench.device.image(), 5), 2);
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 300; seed++) {
    seen.insert(value_of(bench.device.crash_image(seed, CrashMode::kRandom), 5));
  }
  EXPECT_TRUE(seen.contains(1));
  EXPECT_TRUE(seen.contains(2));
}

TEST(SimDevice, AFlushCoversOnlyWhatCompletedBeforeItsSubmission) {
  // A write and a flush submitted together: when the write completes first, it is still not covered.
  int late_writes = 0;
  for (uint64_t seed = 0; seed < 40; seed++) {
    Bench bench(seed);
    bench.world.executor.set_shuffle(false);  // so that both are submitted before either completes
    auto bytes = filled(1, 9);
    Result<> written;
    Result<> flushed;
    bool write_done = false;
    bool flush_done = false;
    ASSERT_TRUE(bench.write(1, 1, 8));
    spawn(bench.world.executor,
          Bench::into(Bench::do_write(&bench.device, 2, &bytes), &written, &write_done));
    spawn(bench.world.executor, Bench::into(Bench::do_flush(&bench.device), &flushed, &flush_done));
    bench.world.run_until_idle();
    ASSERT_TRUE(written && flushed && write_done && flush_done);
    const SimImage crashed = bench.device.crash_image(0, CrashMode::kDropAll);
    EXPECT_EQ(value_of(crashed, 1), 8);
    late_writes += value_of(crashed, 2) == 9 ? 0 : 1;
  }
  EXPECT_EQ(late_writes, 40);
}

TEST(SimDevice, ADurableWriteIsDurableAndNothingElseIs) {
  Bench bench(1);
  ASSERT_TRUE(bench.write(1, 4, 7));
  ASSERT_TRUE(bench.write_durably(2, 2, 8));
  EXPECT_EQ(value_of(bench.device.crash_image(0, CrashMode::kDropAll), 2), 8);
  EXPECT_FALSE(bench.device.crash_image(0, CrashMode::kDropAll).written(1));
  EXPECT_FALSE(bench.device.crash_image(0, CrashMode::kDropAll).written(4));
  for (uint64_t seed = 0; seed < 50; seed++) {  // what is older does not come back
    const SimImage crashed = bench.device.crash_image(seed, CrashMode::kRandom);
    EXPECT_EQ(value_of(crashed, 2), 8);
    EXPECT_EQ(value_of(crashed, 3), 8);
  }
  ASSERT_TRUE(bench.flush());
  EXPECT_EQ(value_of(bench.device.durable_image(), 1), 7);
  EXPECT_EQ(value_of(bench.device.durable_image(), 3), 8);
  bench.device.fail_at(bench.device.operation_count() + 1, SimFault::kLying);
  ASSERT_TRUE(bench.write_durably(9, 1, 9));
  EXPECT_FALSE(bench.device.crash_image(0, CrashMode::kDropAll).written(9));
  EXPECT_EQ(value_of(bench.device.image(), 9), 9);
}

TEST(SimDevice, DiscardIsPoisonAndMayBeLost) {
  Bench bench(5);
  ASSERT_TRUE(bench.write(5, 2, 3));
  ASSERT_TRUE(bench.flush());
  ASSERT_TRUE(bench.discard(5, 2));
  EXPECT_FALSE(bench.device.image().written(5));
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 100; seed++) {
    seen.insert(value_of(bench.device.crash_image(seed, CrashMode::kRandom), 5));
  }
  EXPECT_EQ(seen, (std::set<int>{-1, 3}));
  ASSERT_TRUE(bench.flush());
  EXPECT_FALSE(bench.device.crash_image(1, CrashMode::kDropAll).written(6));
}

TEST(SimDevice, PowerOffFailsEverythingAndFreezesTheImage) {
  Bench bench(6);
  ASSERT_TRUE(bench.write(1, 1, 1));
  ASSERT_TRUE(bench.flush());
  ASSERT_TRUE(bench.write(2, 1, 2));
  EXPECT_EQ(bench.device.operation_count(), 3U);
  bench.device.power_off_at(4);
  auto done = bench.write(3, 1, 3);  // in flight when the power goes
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::kIo);
  EXPECT_TRUE(bench.device.powered_off());
  EXPECT_FALSE(bench.write(4, 1, 4));
  EXPECT_FALSE(bench.flush());
  auto bytes = filled(1, 0);
  EXPECT_FALSE(bench.world.run(Bench::do_read(&bench.device, 1, &bytes)));
  const SimImage kept = bench.device.crash_image(0, CrashMode::kKeepAll);
  EXPECT_EQ(value_of(kept, 1), 1);
  EXPECT_EQ(value_of(kept, 2), 2);
  EXPECT_EQ(value_of(kept, 3), 3);
  EXPECT_FALSE(kept.written(4));
  const SimImage completed = bench.device.crash_image(0, CrashMode::kKeepCompleted);
  EXPECT_EQ(value_of(completed, 2), 2);
  EXPECT_FALSE(completed.written(3));
  EXPECT_FALSE(bench.device.crash_image(0, CrashMode::kDropAll).written(2));
  EXPECT_EQ(bench.device.unsettled_count(), 2U);

  SimDevice again(bench.world, kept, SimDeviceOptions());
  ASSERT_TRUE(bench.world.run(Bench::do_read(&again, 3, &bytes)));
  EXPECT_EQ(bytes[0], std::byte{3});
}

TEST(SimDevice, TargetedFaults) {
  Bench bench(7);
  bench.device.fail_at(1, SimFault::kError);
  bench.device.fail_at(2, SimFault::kPhantom);
  bench.device.fail_at(4, SimFault::kLying);
  bench.device.fail_at(6, SimFault::kError);
  EXPECT_FALSE(bench.write(1, 1, 1));
  EXPECT_TRUE(bench.write(2, 1, 2));
  EXPECT_FALSE(bench.device.image().written(2));
  EXPECT_TRUE(bench.device.damaged().contains(2));
  EXPECT_TRUE(bench.write(2, 1, 2));  // 3
  EXPECT_FALSE(bench.device.damaged().contains(2));
  EXPECT_TRUE(bench.flush());         // 4, a lie
  EXPECT_FALSE(bench.device.crash_image(0, CrashMode::kDropAll).written(2));
  EXPECT_TRUE(bench.flush());         // 5
  EXPECT_EQ(value_of(bench.device.crash_image(0, CrashMode::kDropAll), 2), 2);
  EXPECT_FALSE(bench.flush());        // 6
}

TEST(SimDevice, MisdirectedWritesStayInsideTheAtlas) {
  SimDeviceOptions options;
  options.may_damage = [](uint64_t block) { return block >= 512; };
  options.faults.misdirected_write = 1;
  Bench bench(8, options);
  EXPECT_TRUE(bench.write(1, 4, 1));
  EXPECT_TRUE(bench.device.damaged().empty());
  EXPECT_TRUE(bench.write(600, 4, 1));
  EXPECT_EQ(bench.device.damaged().size(), 8U);
  for (uint64_t block : bench.device.damaged()) EXPECT_GE(block, 512U);
}

TEST(SimDevice, BadBlocksFailReadsUntilRewritten) {
  Bench bench(9);
  ASSERT_TRUE(bench.write(1, 4, 1));
  bench.device.mark_bad(2);
  bench.device.mark_bad(3, true);
  auto bytes = filled(1, 0);
  EXPECT_FALSE(bench.world.run(Bench::do_read(&bench.device, 2, &bytes)));
  EXPECT_TRUE(bench.world.run(Bench::do_read(&bench.device, 4, &bytes)));
  EXPECT_TRUE(bench.write(2, 1, 5));
  EXPECT_TRUE(bench.world.run(Bench::do_read(&bench.device, 2, &bytes)));
  EXPECT_FALSE(bench.write(3, 1, 5));
}

TEST(SimDevice, CorruptionSurvivesFlushAndCrash) {
  Bench bench(10);
  ASSERT_TRUE(bench.write(1, 1, 1));
  bench.device.corrupt(1, SimDamage::kBit, 99);
  ASSERT_TRUE(bench.flush());
  EXPECT_EQ(value_of(bench.device.image(), 1), -1);
  EXPECT_EQ(value_of(bench.device.crash_image(0, CrashMode::kDropAll), 1), -1);
}

TEST(SimDevice, CopyMovesBlocksAndNeedsAFlushLikeAWrite) {
  Bench bench(11, with_copies());
  ASSERT_TRUE(bench.write(1, 1, 1));
  ASSERT_TRUE(bench.write(7, 2, 7));
  ASSERT_TRUE(bench.flush());
  CopyCall call({BlockRange{7, 2}, BlockRange{1, 1}}, 100);
  ASSERT_TRUE(bench.world.run(submit_copy(&bench.device, &call)));
  EXPECT_EQ(call.request.good_blocks, 3U);
  EXPECT_EQ(value_of(bench.device.image(), 101), 7);
  EXPECT_EQ(value_of(bench.device.image(), 102), 1);
  EXPECT_FALSE(bench.device.crash_image(0, CrashMode::kDropAll).written(100));
  ASSERT_TRUE(bench.flush());
  EXPECT_EQ(value_of(bench.device.crash_image(0, CrashMode::kDropAll), 100), 7);
}

TEST(SimDevice, PartialCopyKeepsItsPromiseOfAPrefix) {
  for (uint64_t seed = 0; seed < 50; seed++) {
    Bench bench(seed, with_copies());
    ASSERT_TRUE(bench.write(0, 16, 5));
    bench.device.fail_at(2, SimFault::kPartial);
    CopyCall call({BlockRange{0, 16}}, 100);
    ASSERT_FALSE(bench.world.run(submit_copy(&bench.device, &call)));
    ASSERT_LT(call.request.good_blocks, 16U);
    for (uint64_t i = 0; i < call.request.good_blocks; i++) {
      EXPECT_EQ(value_of(bench.device.image(), 100 + i), 5) << "seed " << seed;
    }
  }
}

TEST(SimDevice, TimedOutCopyMayLandLate) {
  int landed = 0;
  for (uint64_t seed = 0; seed < 60; seed++) {
    Bench bench(seed, with_copies());
    ASSERT_TRUE(bench.write(0, 4, 5));
    bench.device.fail_at(2, SimFault::kTimeout);
    CopyCall call({BlockRange{0, 4}}, 100);
    auto done = bench.world.run(submit_copy(&bench.device, &call));
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, Code::kTimedOut);
    EXPECT_GE(bench.device.unsettled_count(), 2U);  // the write, and the copy landed or not
    bench.world.run_until_idle();
    landed += value_of(bench.device.image(), 100) == 5 ? 1 : 0;
  }
  EXPECT_GT(landed, 5);
  EXPECT_LT(landed, 60);
}

TEST(SimDevice, SilentlyWrongCopyIsKnownToTheTestOnly) {
  for (uint64_t seed = 0; seed < 50; seed++) {
    Bench bench(seed, with_copies());
    for (uint64_t i = 0; i < 8; i++) ASSERT_TRUE(bench.write(i, 1, static_cast<int>(i) + 1));
    bench.device.fail_at(9, SimFault::kSilentWrong);
    CopyCall call({BlockRange{0, 8}}, 100);
    ASSERT_TRUE(bench.world.run(submit_copy(&bench.device, &call)));
    ASSERT_FALSE(bench.device.damaged().empty()) << "seed " << seed;
    for (uint64_t i = 0; i < 8; i++) {
      EXPECT_EQ(value_of(bench.device.image(), 100 + i) != static_cast<int>(i) + 1,
                bench.device.damaged().contains(100 + i))
          << "seed " << seed;
    }
  }
}

TEST(SimDevice, ASeedReplaysExactly) {
  const auto trace = [](uint64_t seed) {
    SimDeviceOptions options;
    options.faults.write_error = 0.1;
    Bench bench(seed, options);
    std::string line;
    for (int i = 0; i < 50; i++) {
      line += bench.write(bench.world.random.below(1000), 2, i) ? '+' : '-';
      line += std::to_string(bench.world.clock.monotonic_ns()) + ' ';
    }
    return line;
  };
  EXPECT_EQ(trace(5), trace(5));
  EXPECT_NE(trace(5), trace(6));
}

using SimDeviceDeathTest = testing::Test;

TEST(SimDeviceDeathTest, OverlappingWritesInFlightAbort) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Bench bench(1);
        auto bytes = filled(2, 9);
        Result<> result;
        bool done = false;
        spawn(bench.world.executor,
              Bench::into(Bench::do_write(&bench.device, 2, &bytes), &result, &done));
        spawn(bench.world.executor,
              Bench::into(Bench::do_write(&bench.device, 3, &bytes), &result, &done));
        bench.world.run_until_idle();
      },
      "changes in flight overlap");
}

TEST(SimDeviceDeathTest, ImmutableBlocksAndLateTargetsAreGuarded) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Bench bench(1);
        bench.device.declare_immutable(BlockRange{4, 4});
        (void)bench.write(7, 2, 1);
      },
      "immutable");
  EXPECT_DEATH(
      {
        Bench bench(1, with_copies());
        bench.device.fail_at(1, SimFault::kTimeout);
        CopyCall call({BlockRange{0, 4}}, 100);
        (void)bench.world.run(submit_copy(&bench.device, &call));
        (void)bench.write(103, 1, 1);
      },
      "timed-out copy");
}

TEST(SimWorldDeathTest, DeadlockIsReportedWithTheSeed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  struct Never {
    static Task<void> wait() { co_await std::suspend_always{}; }
  };
  EXPECT_DEATH(
      {
        SimWorld world(4711);
        world.run(Never::wait());
      },
      "seed 4711\\): deadlock");
}

TEST(SimWorld, TimeJumpsFromEventToEvent) {
  SimWorld world(1);
  TimerRequest timer;
  timer.due_ns = 5'000'000'000;
  struct Sleeper {
    static Task<void> sleep(SimWorld* w, TimerRequest* t) { co_await sleep_until(w->clock, *t); }
    static Task<void> mark(SimWorld* w, TimerRequest* t, uint64_t* woke_ns) {
      co_await sleep_until(w->clock, *t);
      *woke_ns = w->clock.monotonic_ns();
    }
  };
  world.run(Sleeper::sleep(&world, &timer));
  EXPECT_EQ(world.clock.monotonic_ns(), 5'000'000'000U);
  EXPECT_EQ(world.clock.wall().seconds, SimClock::kWallStartSeconds + 5);
  uint64_t woke_ns = 0;
  timer.due_ns = 100'000'000'000;
  spawn(world.executor, Sleeper::mark(&world, &timer, &woke_ns));
  world.run_for(1'000'000'000);
  EXPECT_EQ(woke_ns, 0U);
  EXPECT_EQ(world.clock.monotonic_ns(), 6'000'000'000U);
  world.clock.cancel(timer);
  world.run_until_idle();
  EXPECT_EQ(woke_ns, 6'000'000'000U);
}

}  // namespace
}  // namespace cofs
