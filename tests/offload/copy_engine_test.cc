// The copy engine on the simulated device: contents, counters, and every way of failing.
#include "offload/copy_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "offload/copy_plan.h"
#include "tests/testing/sim_device.h"
#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

constexpr uint64_t kSourceBlocks = 2048;  // [0, 2048) hold known data, the targets lie behind
constexpr uint64_t kTarget = 4096;
constexpr uint64_t kDeviceBlocks = 16384;

CopyLimits make_limits(CopyPath path, const char* engine, uint32_t ranges, uint64_t range_blocks,
                       uint64_t operation_blocks, uint32_t in_flight) {
  CopyLimits limits;
  limits.path = path;
  limits.engine = engine;
  limits.ranges_max = ranges;
  limits.range_blocks_max = range_blocks;
  limits.operation_blocks_max = operation_blocks;
  limits.in_flight_max = in_flight;
  return limits;
}
CopyLimits nvme_limits() { return make_limits(CopyPath::kDevice, "nvme", 8, 32, 64, 4); }
CopyLimits clone_limits() { return make_limits(CopyPath::kHostFile, "clone", 1, 256, 256, 2); }

const SimImage& source_image() {
  static const SimImage image = [] {
    SimImage made(kDeviceBlocks);
    for (uint64_t i = 0; i < kSourceBlocks; i++) made.set_page(i, make_random_page(i));
    return made;
  }();
  return image;
}

SimDeviceOptions options_with(std::vector<CopyLimits> copies) {
  SimDeviceOptions options;
  options.copies = std::move(copies);
  return options;
}

struct Bench {
  Bench(uint64_t seed, const SimDeviceOptions& device_options,
        const CopyEngineOptions& engine_options = CopyEngineOptions())
      : world(seed),
        device(world, source_image(), device_options),
        engine(device, world.executor, world.clock, world.buffers, world.journal, engine_options) {}
  ~Bench() { world.run(engine.settle()); }

  CopyOutcome gather(const std::vector<BlockRange>& sources, uint64_t target = kTarget) {
    return world.run(engine.gather(sources, target));
  }
  // True when the first `blocks` of the target hold the sources' data.
  bool holds(std::span<const BlockRange> sources, uint64_t target, uint64_t blocks) const {
    for (const BlockRange& source : sources) {
      for (uint64_t i = 0; i < source.count && blocks != 0; i++, blocks--, target++) {
        const SimPageRef page = device.image().page(target);
        const SimPageRef want = source_image().page(source.start + i);
        if (page == nullptr || page->bytes != want->bytes) return false;
      }
    }
    return blocks == 0;
  }
  uint64_t refused() const {
    uint64_t n = 0;
    for (const auto& [reason, count] : engine.counters().refused) n += count;
    return n;
  }
  uint64_t blocks_by(CopyPath path) const {
    return engine.counters().bytes[static_cast<size_t>(path)] / kBlockBytes;
  }
  uint64_t operations_by(CopyPath path) const {
    return engine.counters().operations[static_cast<size_t>(path)];
  }

  SimWorld world;
  SimDevice device;
  CopyEngine engine;
};

std::vector<BlockRange> random_sources(SimRandom& random, uint64_t ranges, uint64_t longest) {
  std::vector<BlockRange> sources;
  for (uint64_t i = 0; i < ranges; i++) {
    const uint64_t count = random.below(longest + 1);
    sources.push_back(BlockRange{random.below(kSourceBlocks - count), count});
  }
  return sources;
}

uint64_t sum(const std::array<uint64_t, kCopyPathCount>& blocks) {
  return blocks[0] + blocks[1] + blocks[2];
}

TEST(CopyEngine, ScatteredSourcesArriveByEachPath) {
  for (uint64_t seed = 0; seed < 60; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::vector<CopyLimits> copies;
    CopyPath path = CopyPath::kHost;
    if (seed % 3 == 0) copies.push_back(nvme_limits());
    if (seed % 3 <= 1) copies.push_back(clone_limits());
    if (!copies.empty()) path = copies[0].path;
    Bench bench(seed, options_with(copies));
    const auto sources = random_sources(bench.world.choices, 1 + seed, 60);
    const uint64_t total = blocks_in(sources);
    EXPECT_EQ(bench.engine.preferred(), path);
    const CopyOutcome outcome = bench.gather(sources);
    ASSERT_TRUE(outcome.result);
    EXPECT_FALSE(outcome.target_in_doubt);
    EXPECT_EQ(outcome.good_blocks, total);
    EXPECT_EQ(outcome.blocks[static_cast<size_t>(path)], total);
    EXPECT_EQ(bench.blocks_by(path), total);
    EXPECT_TRUE(bench.holds(sources, kTarget, total));
    EXPECT_EQ(bench.device.counters().blocks_read, path == CopyPath::kHost ? total : 0);
    EXPECT_EQ(bench.device.counters().blocks_copied, path == CopyPath::kHost ? 0 : total);
    if (path != CopyPath::kHost) {
      EXPECT_EQ(bench.operations_by(path), CopyPlan(sources, copies[0]).operations().size());
      EXPECT_EQ(bench.refused(), 0U);
      EXPECT_LE(bench.device.counters().in_flight_max, copies[0].in_flight_max);
    }
  }
}

TEST(CopyEngine, SeveralOperationsAreInFlight) {
  Bench bench(1, options_with({nvme_limits()}));
  const CopyOutcome outcome = bench.gather({BlockRange{0, 2048}});
  ASSERT_TRUE(outcome.result);
  EXPECT_EQ(bench.operations_by(CopyPath::kDevice), 32U);  // of 64 blocks
  EXPECT_EQ(bench.device.counters().in_flight_max, 4U);
}

TEST(CopyEngine, NothingAndNonsense) {
  Bench bench(1, options_with({nvme_limits()}));
  EXPECT_TRUE(bench.gather({}).result);
  EXPECT_TRUE(bench.gather({BlockRange{5, 0}}).result);
  EXPECT_EQ(bench.gather({BlockRange{kDeviceBlocks, 1}}).result.error().code, Code::kInvalid);
  EXPECT_EQ(bench.gather({BlockRange{1, UINT64_MAX}}).result.error().code, Code::kInvalid);
  EXPECT_EQ(bench.gather({BlockRange{0, 2}}, kDeviceBlocks - 1).result.error().code,
            Code::kInvalid);
  EXPECT_EQ(bench.gather({BlockRange{kTarget + 1, 4}}).result.error().code, Code::kInvalid);
  EXPECT_EQ(bench.device.operation_count(), 0U);
}

TEST(CopyEngine, PartialCopyContinuesOnTheNextPathWhereItEnded) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Bench bench(seed, options_with({nvme_limits(), clone_limits()}));
    bench.device.fail_at(1, SimFault::kPartial);
    const std::vector<BlockRange> sources = {BlockRange{7, 20}, BlockRange{100, 30}};
    const CopyOutcome outcome = bench.gather(sources);
    ASSERT_TRUE(outcome.result);
    EXPECT_EQ(outcome.good_blocks, 50U);
    EXPECT_TRUE(bench.holds(sources, kTarget, 50));
    EXPECT_EQ(bench.operations_by(CopyPath::kDevice), 1U);
    const uint64_t by_device = bench.blocks_by(CopyPath::kDevice);
    EXPECT_LT(by_device, 50U);
    EXPECT_EQ(bench.blocks_by(CopyPath::kHostFile), 50 - by_device);
    EXPECT_EQ(bench.operations_by(CopyPath::kHostFile), by_device < 20 ? 2U : 1U);
    EXPECT_EQ(bench.blocks_by(CopyPath::kHost), 0U);
    EXPECT_EQ(sum(outcome.blocks), 50U);
    EXPECT_EQ(bench.engine.counters().refused.at("nvme: device error, copy ended early"), 1U);
    EXPECT_EQ(bench.engine.preferred(), CopyPath::kDevice);
  }
}

TEST(CopyEngine, RepeatedFailuresDemoteWithOneLine) {
  SimDeviceOptions options = options_with({nvme_limits(), clone_limits()});
  options.faults.copy_error = 1;
  Bench bench(5, options);
  const std::vector<BlockRange> sources = {BlockRange{0, 1024}};
  const CopyOutcome outcome = bench.gather(sources);
  ASSERT_TRUE(outcome.result);
  EXPECT_EQ(outcome.blocks[static_cast<size_t>(CopyPath::kHost)], 1024U);
  EXPECT_TRUE(bench.holds(sources, kTarget, 1024));
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kHost);
  EXPECT_EQ(bench.world.journal.count("copy engine nvme is left"), 1U);
  EXPECT_EQ(bench.world.journal.count("copy engine clone is left"), 1U);
  EXPECT_EQ(bench.world.journal.lines().size(), 2U);
  EXPECT_GT(bench.engine.counters().refused.at("nvme: demoted"), 0U);
  const uint64_t commands = bench.operations_by(CopyPath::kDevice);
  EXPECT_LT(commands, 16U);
  bench.device.set_faults(SimFaults());  // too late: it is left for this mount
  ASSERT_TRUE(bench.gather(sources, 8192).result);
  EXPECT_EQ(bench.operations_by(CopyPath::kDevice), commands);
}

TEST(CopyEngine, ASuccessBetweenFailuresPreventsDemotion) {
  Bench bench(6, options_with({nvme_limits()}));
  for (uint64_t n = 1; n <= 19; n += 3) {  // copy, write of the fallback, copy that succeeds
    bench.device.fail_at(n, SimFault::kError);
  }
  for (uint64_t i = 0; i < 14; i++) {
    ASSERT_TRUE(bench.gather({BlockRange{i, 4}}, kTarget + i * 4).result);
  }
  EXPECT_EQ(bench.engine.counters().refused.at("nvme: device error, copy"), 7U);
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kDevice);
  EXPECT_TRUE(bench.world.journal.lines().empty());
}

// What is in flight together fails together: one failure, three of which in a row demote.
TEST(CopyEngine, AResetOfTheDeviceIsOneFailure) {
  Bench bench(8, options_with({nvme_limits()}));
  const std::vector<BlockRange> sources = {BlockRange{0, 256}};  // four commands, all in flight
  for (uint64_t i = 0; i < 2; i++) {
    for (uint64_t n = 1; n <= 4; n++) {
      bench.device.fail_at(bench.device.operation_count() + n, SimFault::kError);
    }
    ASSERT_TRUE(bench.gather(sources, kTarget + 256 * i).result);
  }
  EXPECT_EQ(bench.engine.counters().refused.at("nvme: device error, copy"), 8U);
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kDevice);
  bench.device.fail_at(bench.device.operation_count() + 1, SimFault::kError);
  ASSERT_TRUE(bench.gather(sources, kTarget + 512).result);
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kDevice);  // its other commands succeeded
  SimFaults faults;
  faults.copy_error = 1;
  bench.device.set_faults(faults);
  for (uint64_t i = 3; i < 7; i++) {
    ASSERT_TRUE(bench.gather(sources, kTarget + 256 * i).result);
  }
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kHost);
}

TEST(CopyEngine, ABadSourceIsNotTheEnginesFault) {
  Bench bench(7, options_with({nvme_limits()}));
  bench.device.mark_bad(10);
  for (uint64_t i = 0; i < 8; i++) {
    const std::vector<BlockRange> sources = {BlockRange{0, 40}};
    const CopyOutcome outcome = bench.gather(sources, kTarget + 64 * i);
    ASSERT_FALSE(outcome.result);
    EXPECT_EQ(outcome.result.error().code, Code::kIo);
    EXPECT_EQ(outcome.result.error().where, 10U);
    EXPECT_EQ(outcome.good_blocks, 10U);
    EXPECT_TRUE(bench.holds(sources, kTarget + 64 * i, 10));
  }
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kDevice);
}

TEST(CopyEngine, ATimeoutPutsTheTargetInDoubtAndStops) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Bench bench(seed, options_with({nvme_limits(), clone_limits()}));
    const uint64_t n = 1 + seed % 5;
    bench.device.fail_at(n, SimFault::kTimeout);
    const std::vector<BlockRange> sources = {BlockRange{0, 1024}};
    // SimDevice aborts if anything writes the doubtful blocks again.
    const CopyOutcome outcome = bench.gather(sources);
    ASSERT_FALSE(outcome.result);
    EXPECT_EQ(outcome.result.error().code, Code::kTimedOut);
    EXPECT_TRUE(outcome.target_in_doubt);
    EXPECT_LT(outcome.good_blocks, 1024U);
    EXPECT_TRUE(bench.holds(sources, kTarget, outcome.good_blocks));
    EXPECT_EQ(bench.operations_by(CopyPath::kHostFile) + bench.operations_by(CopyPath::kHost), 0U);
    EXPECT_EQ(bench.engine.counters().refused.at("nvme: device timed out, the device did not answer in time"), 1U);
    bench.world.run_until_idle();
    ASSERT_TRUE(bench.gather(sources, 8192).result);  // elsewhere, it goes on
  }
}

// What is held for the target goes when the device has answered after all, and not before.
TEST(CopyEngine, AnAbandonedCommandHoldsItsTargetUntilItIsAnswered) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Bench bench(seed, options_with({nvme_limits()}));
    bench.device.fail_at(1 + seed % 5, SimFault::kSlow);
    auto hold = std::make_shared<int>(0);
    const std::vector<BlockRange> sources = {BlockRange{0, 1024}};
    const CopyOutcome outcome = bench.world.run(bench.engine.gather(sources, kTarget, hold));
    ASSERT_FALSE(outcome.result);
    EXPECT_EQ(outcome.result.error().code, Code::kTimedOut);
    EXPECT_TRUE(outcome.target_in_doubt);
    EXPECT_TRUE(bench.holds(sources, kTarget, outcome.good_blocks));
    EXPECT_EQ(hold.use_count(), 2);
    EXPECT_EQ(bench.device.in_flight(), 1U);
    bench.world.run_until_idle();
    EXPECT_EQ(hold.use_count(), 1);
    EXPECT_EQ(bench.world.journal.count("a copy that had timed out was answered: done"), 1U);
    ASSERT_TRUE(bench.gather(sources, kTarget).result);  // it is safe there now
    EXPECT_TRUE(bench.holds(sources, kTarget, 1024));
  }
}

TEST(CopyEngine, ATargetThatTheDriverLeavesInDoubtIsHeldToTheEnd) {
  Bench bench(3, options_with({nvme_limits()}));
  bench.device.fail_at(1, SimFault::kTimeout);
  auto hold = std::make_shared<int>(0);
  const std::vector<BlockRange> sources = {BlockRange{0, 16}};
  const CopyOutcome outcome = bench.world.run(bench.engine.gather(sources, kTarget, hold));
  EXPECT_TRUE(outcome.target_in_doubt);
  bench.world.run_until_idle();
  EXPECT_EQ(hold.use_count(), 2);
  bench.world.run(bench.engine.settle());
  EXPECT_EQ(hold.use_count(), 1);
}

TEST(CopyEngine, CommandsBeyondTheDisksOfASourceGoByTheHost) {
  CopyLimits limits = nvme_limits();
  limits.regions = {CopyRegion{BlockRange{0, 1000}, 0}, CopyRegion{BlockRange{1000, 15384}, 1}};
  Bench bench(4, options_with({limits}));
  const std::vector<BlockRange> sources = {BlockRange{900, 200}};  // the target is on disk 1
  ASSERT_TRUE(bench.gather(sources).result);
  EXPECT_TRUE(bench.holds(sources, kTarget, 200));
  EXPECT_EQ(bench.blocks_by(CopyPath::kHost), 100U);
  EXPECT_EQ(bench.blocks_by(CopyPath::kDevice), 100U);
  EXPECT_EQ(bench.engine.counters().refused.at("nvme: source and target on different disks"), 1U);
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kDevice);
}

CopyRates rates_of(uint64_t host, uint64_t nvme) {
  CopyRates rates;
  rates.engines.resize(2);
  rates.engines[0].engine = "host";
  rates.engines[1].engine = "nvme";
  rates.engines[0].bytes_per_second.fill(1000);
  rates.engines[1].bytes_per_second.fill(1000);
  rates.engines[0].bytes_per_second[0] = host;
  rates.engines[1].bytes_per_second[0] = nvme;
  return rates;
}

TEST(CopyEngine, RatesDecideByTheLengthOfTheRanges) {
  const std::vector<BlockRange> scattered = {BlockRange{0, 1}, BlockRange{8, 1}, BlockRange{16, 1}};
  const std::vector<BlockRange> longer = {BlockRange{0, 64}};
  Bench bench(5, options_with({nvme_limits()}));
  bench.engine.set_rates(rates_of(2002, 1000));
  EXPECT_EQ(bench.engine.engine_for(1), "host");
  EXPECT_EQ(bench.engine.engine_for(16), "nvme");
  ASSERT_TRUE(bench.gather(scattered).result);
  EXPECT_EQ(bench.blocks_by(CopyPath::kHost), 3U);
  EXPECT_EQ(bench.engine.counters().refused.at(
                "nvme: the host is over twice as fast at ranges of 4 KiB"),
            1U);
  ASSERT_TRUE(bench.gather(longer, 8192).result);
  EXPECT_EQ(bench.blocks_by(CopyPath::kDevice), 64U);
  bench.engine.set_rates(rates_of(2000, 1000));  // not more than twice: the device spares the host
  EXPECT_EQ(bench.engine.engine_for(1), "nvme");
  bench.engine.set_rates(rates_of(2000, 0));  // it failed when it was measured
  EXPECT_EQ(bench.engine.engine_for(1), "host");

  CopyEngineOptions forced;
  forced.engine = "nvme";
  Bench other(6, options_with({nvme_limits()}), forced);
  other.engine.set_rates(rates_of(9000, 1000));
  EXPECT_EQ(other.engine.engine_for(1), "nvme");
}

TEST(CopyEngine, ACondemnedPathIsLeft) {
  Bench bench(7, options_with({nvme_limits()}));
  bench.engine.condemn(CopyPath::kDevice, "because it lied");
  ASSERT_TRUE(bench.gather({BlockRange{0, 8}}).result);
  EXPECT_EQ(bench.blocks_by(CopyPath::kHost), 8U);
  EXPECT_EQ(bench.world.journal.count("copy engine nvme is left until the next mount because it lied"),
            1U);
}

TEST(CopyEngine, AnEngineThatIsNotAutomaticMustBeAskedFor) {
  CopyLimits token = make_limits(CopyPath::kDevice, "token", 8, 32, 64, 2);
  token.automatic = false;
  const std::vector<CopyLimits> copies = {clone_limits(), token};
  Bench automatic(8, options_with(copies));
  EXPECT_EQ(automatic.engine.engine_for(1), "clone");
  CopyEngineOptions forced;
  forced.engine = "token";
  Bench asked(8, options_with(copies), forced);
  ASSERT_TRUE(asked.gather({BlockRange{0, 8}}).result);
  EXPECT_EQ(asked.blocks_by(CopyPath::kDevice), 8U);
}

TEST(CopyEngine, ASilentlyWrongCopyIsBelieved) {
  // By contract: the caller verifies by checksum.
  Bench bench(9, options_with({nvme_limits()}));
  bench.device.fail_at(1, SimFault::kSilentWrong);
  const std::vector<BlockRange> sources = {BlockRange{0, 16}};
  const CopyOutcome outcome = bench.gather(sources);
  EXPECT_TRUE(outcome.result);
  EXPECT_EQ(outcome.good_blocks, 16U);
  EXPECT_FALSE(bench.holds(sources, kTarget, 16));
}

TEST(CopyEngine, EveryOperationFailsOnce) {
  const std::vector<CopyLimits> offers[] = {{}, {nvme_limits()}, {nvme_limits(), clone_limits()}};
  CopyEngineOptions engine_options;
  engine_options.host_chunk_blocks = 16;
  engine_options.host_in_flight = 3;
  for (const auto& copies : offers) {
    for (SimFault fault : {SimFault::kError, SimFault::kPartial}) {
      bool reached = true;
      for (uint64_t n = 1; reached; n++) {
        SCOPED_TRACE("operation " + std::to_string(n));
        SimDeviceOptions options = options_with(copies);
        options.counted = kCountAll;
        Bench bench(n, options, engine_options);
        bench.device.fail_at(n, fault);
        SimRandom random(7);
        const auto sources = random_sources(random, 12, 30);
        const uint64_t total = blocks_in(sources);
        const CopyOutcome outcome = bench.gather(sources);
        ASSERT_TRUE(bench.holds(sources, kTarget, outcome.good_blocks));
        ASSERT_EQ(sum(outcome.blocks), outcome.good_blocks);
        ASSERT_EQ(outcome.result.has_value(), outcome.good_blocks == total);
        // Only a failing write of the host cannot be got around.
        if (!copies.empty()) {
          ASSERT_TRUE(outcome.result);
        }
        reached = bench.device.operation_count() >= n;
      }
    }
  }
}

TEST(CopyEngine, RandomFaultsNeverMakeAWrongPrefix) {
  int complete = 0;
  for (uint64_t seed = 0; seed < 300; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SimRandom random(seed);
    SimDeviceOptions options = options_with({nvme_limits(), clone_limits()});
    options.copies.resize(random.below(3));
    options.faults.copy_error = 0.1;
    options.faults.copy_partial = 0.2;
    options.faults.read_error = 0.05;
    options.faults.write_error = 0.02;
    if (seed % 4 == 0) options.faults.copy_timeout = 0.05;
    CopyEngineOptions engine_options;
    engine_options.host_chunk_blocks = static_cast<uint32_t>(1 + random.below(64));
    engine_options.host_in_flight = static_cast<uint32_t>(1 + random.below(8));
    engine_options.allow_host = random.below(4) != 0;
    Bench bench(seed, options, engine_options);
    const auto sources = random_sources(random, 1 + random.below(40), 40);
    const CopyOutcome outcome = bench.gather(sources);
    ASSERT_TRUE(bench.holds(sources, kTarget, outcome.good_blocks));
    ASSERT_EQ(sum(outcome.blocks), outcome.good_blocks);
    ASSERT_LE(outcome.good_blocks, sum(bench.engine.counters().bytes) / kBlockBytes);
    ASSERT_EQ(outcome.result.has_value(), outcome.good_blocks == blocks_in(sources));
    complete += outcome.result ? 1 : 0;
    if (!engine_options.allow_host) {
      ASSERT_EQ(bench.device.counters().blocks_read, 0U);
    }
  }
  EXPECT_GT(complete, 100);
}

TEST(CopyEngine, ConcurrentGathersShareTheLimits) {
  struct Call {
    static Task<void> run(CopyEngine* engine, std::vector<BlockRange>* sources, uint64_t target,
                          CopyOutcome* outcome) {
      *outcome = co_await engine->gather(*sources, target);
    }
  };
  Bench bench(12, options_with({nvme_limits()}));
  std::vector<std::vector<BlockRange>> sources;
  std::vector<CopyOutcome> outcomes(6);
  for (uint64_t i = 0; i < 6; i++) {
    sources.push_back(random_sources(bench.world.choices, 20, 60));
  }
  for (uint64_t i = 0; i < 6; i++) {
    spawn(bench.world.executor,
          Call::run(&bench.engine, &sources[i], kTarget + i * 2000, &outcomes[i]));
  }
  bench.world.run_until_idle();
  for (uint64_t i = 0; i < 6; i++) {
    EXPECT_TRUE(outcomes[i].result);
    EXPECT_TRUE(bench.holds(sources[i], kTarget + i * 2000, blocks_in(sources[i])));
  }
  EXPECT_EQ(bench.device.counters().in_flight_max, 4U);
}

TEST(CopyEngine, WithoutAnOfferTheReasonsAreCounted) {
  SimDeviceOptions options;
  options.copy_refusals = {"hostfile: ext4 cannot clone", "nvme: not a namespace"};
  Bench bench(1, options);
  ASSERT_TRUE(bench.gather({BlockRange{0, 8}}).result);
  ASSERT_TRUE(bench.gather({BlockRange{0, 8}}, 8192).result);
  EXPECT_EQ(bench.engine.counters().refused.at("hostfile: ext4 cannot clone"), 2U);
  EXPECT_EQ(bench.engine.counters().refused.at("nvme: not a namespace"), 2U);
  EXPECT_EQ(bench.engine.preferred(), CopyPath::kHost);
}

TEST(CopyEngine, ForbiddenPathsAreNotTaken) {
  CopyEngineOptions engine_options;
  engine_options.engine = "clone";
  Bench clone(1, options_with({nvme_limits(), clone_limits()}), engine_options);
  EXPECT_EQ(clone.engine.preferred(), CopyPath::kHostFile);
  ASSERT_TRUE(clone.gather({BlockRange{0, 8}}).result);
  EXPECT_EQ(clone.engine.counters().refused.at("nvme: not allowed"), 1U);
  EXPECT_EQ(clone.blocks_by(CopyPath::kHostFile), 8U);

  engine_options.allow_host = false;
  Bench none(1, options_with({nvme_limits()}), engine_options);
  const CopyOutcome outcome = none.gather({BlockRange{0, 8}});
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().code, Code::kNotSupported);
  EXPECT_EQ(none.device.operation_count(), 0U);
}

TEST(HostPath, ScatteredReadsRunTogetherAndWritesAreLong) {
  Bench bench(1, SimDeviceOptions());
  std::vector<BlockRange> sources;
  for (uint64_t i = 0; i < 1024; i++) sources.push_back(BlockRange{i * 2 % 2047, 1});
  ASSERT_TRUE(bench.gather(sources).result);
  EXPECT_TRUE(bench.holds(sources, kTarget, 1024));
  const SimDeviceCounters& counters = bench.device.counters();
  EXPECT_EQ(counters.operations_of(IoRequest::Op::kRead), 1024U);
  EXPECT_EQ(counters.operations_of(IoRequest::Op::kWrite), 8U);  // of 128 blocks each
  EXPECT_EQ(bench.operations_by(CopyPath::kHost), 8U);
  EXPECT_GT(counters.in_flight_max, 64U);
  EXPECT_LE(counters.in_flight_max, 256U);

  std::vector<BlockRange> adjacent;
  for (uint64_t i = 0; i < 1024; i++) adjacent.push_back(BlockRange{i, 1});
  ASSERT_TRUE(bench.gather(adjacent, 8192).result);
  EXPECT_EQ(counters.operations_of(IoRequest::Op::kRead), 1024U + 8U);
}

TEST(HostPath, PassingReadFaultsAreRetriedLastingOnesEndThePrefix) {
  SimDeviceOptions options;
  options.counted = kCountReads;
  Bench bench(3, options);
  bench.world.executor.set_shuffle(false);  // the first read of each chunk comes before any retry
  for (uint64_t n = 1; n <= 8; n++) bench.device.fail_at(n, SimFault::kError);
  const std::vector<BlockRange> sources = {BlockRange{0, 1000}};
  ASSERT_TRUE(bench.gather(sources).result);
  EXPECT_TRUE(bench.holds(sources, kTarget, 1000));
  bench.device.mark_bad(777);
  bench.device.mark_bad(900);
  const CopyOutcome outcome = bench.gather(sources, 8192);
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().where, 777U);
  EXPECT_EQ(outcome.good_blocks, 777U);
  EXPECT_TRUE(bench.holds(sources, 8192, 777));
}

TEST(CopyEngine, APowerCutUnwindsEveryGather) {
  const std::vector<CopyLimits> offers[] = {{}, {nvme_limits()}, {nvme_limits(), clone_limits()}};
  for (const auto& copies : offers) {
    bool reached = true;
    for (uint64_t n = 1; reached; n++) {
      SCOPED_TRACE("operation " + std::to_string(n));
      Bench bench(n, options_with(copies));
      bench.device.power_off_at(n);
      const CopyOutcome outcome = bench.gather({BlockRange{0, 700}});
      reached = bench.device.powered_off();
      ASSERT_EQ(outcome.result.has_value(), !reached);
      bench.world.run_until_idle();
    }
  }
}

}  // namespace
}  // namespace cofs
