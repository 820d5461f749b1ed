// Measuring the ways of copying on the simulated device, and the choice made by the rates.
#include "offload/copy_meter.h"

#include <gtest/gtest.h>

#include "tests/testing/sim_device.h"
#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

constexpr uint64_t kDeviceBlocks = 32768;
constexpr BlockRange kScratch{8192, 8192};

SimDeviceOptions device_options() {
  CopyLimits limits;
  limits.engine = "nvme";
  limits.ranges_max = 128;
  limits.range_blocks_max = 1024;
  limits.operation_blocks_max = 4096;
  limits.in_flight_max = 4;
  SimDeviceOptions options;
  options.copies.push_back(limits);
  return options;
}

struct Bench {
  explicit Bench(const SimDeviceOptions& options)
      : world(1), device(world, SimImage(kDeviceBlocks), options) {
    device.declare_immutable(BlockRange{0, kScratch.start});
    device.declare_immutable(BlockRange{kScratch.end(), kDeviceBlocks - kScratch.end()});
  }
  ~Bench() { world.run_until_idle(); }

  Result<MeterOutcome> measure(MeterOptions options) {
    return world.run(measure_copies(&device, &world.executor, &world.clock, &world.buffers,
                                    &world.journal, std::move(options)));
  }
  Result<MeterOutcome> measure() {
    MeterOptions options;
    options.scratch = kScratch;
    return measure(options);
  }

  SimWorld world;
  SimDevice device;
};

TEST(CopyMeter, MeasuresEveryEngineWithinTheScratchRun) {
  Bench bench(device_options());  // it aborts on a write elsewhere
  const auto outcome = bench.measure();
  ASSERT_TRUE(outcome) << describe(outcome.error());
  EXPECT_FALSE(outcome->scratch_in_doubt);
  EXPECT_EQ(outcome->rates.signature, copy_signature(bench.device.geometry()));
  ASSERT_EQ(outcome->rates.engines.size(), 2U);
  const CopyRate* nvme = outcome->rates.find("nvme");
  const CopyRate* host = outcome->rates.find("host");
  ASSERT_TRUE(nvme != nullptr && host != nullptr);
  EXPECT_EQ(outcome->rates.find("xcopy"), nullptr);
  for (size_t i = 0; i < kRateClasses; i++) {
    EXPECT_GT(nvme->bytes_per_second[i], 0U);
    EXPECT_GT(host->bytes_per_second[i], 0U);
  }
  // Two commands of 128 ranges against 256 reads: the latency of the simulated device decides.
  EXPECT_GT(nvme->bytes_per_second[0], host->bytes_per_second[0]);
  EXPECT_LT(host->bytes_per_second[0], host->bytes_per_second[2]);
}

TEST(CopyMeter, AShortScratchRunGivesLongRangesTheRateOfShorterOnes) {
  Bench bench(device_options());
  MeterOptions options;
  options.scratch = BlockRange{kScratch.start, kMeterBlocksMin};
  const auto outcome = bench.measure(options);
  ASSERT_TRUE(outcome);
  const auto& rates = outcome->rates.find("nvme")->bytes_per_second;
  EXPECT_GT(rates[1], 0U);
  EXPECT_EQ(rates[2], rates[1]);
  EXPECT_EQ(rates[3], rates[1]);
}

TEST(CopyMeter, RefusesAScratchRunThatIsNone) {
  Bench bench(device_options());
  MeterOptions options;
  options.scratch = BlockRange{kScratch.start, kMeterBlocksMin - 1};
  EXPECT_EQ(bench.measure(options).error().code, Code::kInvalid);
  options.scratch = BlockRange{kDeviceBlocks - 10, kMeterBlocksMin};
  EXPECT_EQ(bench.measure(options).error().code, Code::kInvalid);
  options.scratch = BlockRange{UINT64_MAX - 10, kMeterBlocksMin};
  EXPECT_EQ(bench.measure(options).error().code, Code::kInvalid);
  EXPECT_EQ(bench.device.operation_count(), 0U);
}

TEST(CopyMeter, AnEngineThatFailsOrLiesHasNoRate) {
  for (int way = 0; way < 3; way++) {
    SCOPED_TRACE("way " + std::to_string(way));
    SimDeviceOptions options = device_options();
    if (way == 0) options.faults.copy_error = 1;
    if (way == 1) options.faults.copy_silent_wrong = 1;
    if (way == 2) options.faults.copy_slow = 1;
    Bench bench(options);
    MeterOptions meter;
    meter.scratch = kScratch;
    const auto outcome = bench.measure(meter);
    ASSERT_TRUE(outcome) << describe(outcome.error());
    EXPECT_EQ(outcome->scratch_in_doubt, way == 2);
    const CopyRate* nvme = outcome->rates.find("nvme");
    ASSERT_NE(nvme, nullptr);
    for (uint64_t rate : nvme->bytes_per_second) EXPECT_EQ(rate, 0U);
    EXPECT_GT(outcome->rates.find("host")->bytes_per_second[0], 0U);
    EXPECT_EQ(better_not(outcome->rates, "nvme", 1), "it failed when it was measured");
    EXPECT_EQ(bench.world.journal.count("copy engine nvme is not used"), 1U);
  }
}

TEST(CopyMeter, StopsWhenItIsAskedTo) {
  Bench bench(device_options());
  MeterOptions options;
  options.scratch = kScratch;
  int asked = 0;
  options.stop = [&] { return ++asked > 5; };
  const auto outcome = bench.measure(options);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::kBusy);
  EXPECT_TRUE(bench.world.journal.lines().empty());
}

TEST(CopyRates, ClassesAreTheNextShorterLength) {
  EXPECT_EQ(rate_class(0), 0U);
  EXPECT_EQ(rate_class(15), 0U);
  EXPECT_EQ(rate_class(16), 1U);
  EXPECT_EQ(rate_class(2047), 2U);
  EXPECT_EQ(rate_class(UINT64_MAX), 3U);
}

TEST(CopyRates, TheSignatureChangesWithTheLimits) {
  DeviceGeometry geometry;
  geometry.block_count = 1000;
  const uint64_t none = copy_signature(geometry);
  geometry.copies = device_options().copies;
  const uint64_t some = copy_signature(geometry);
  EXPECT_NE(none, some);
  geometry.copies[0].ranges_max++;
  EXPECT_NE(copy_signature(geometry), some);
  geometry.copies[0].ranges_max--;
  geometry.block_count++;
  EXPECT_NE(copy_signature(geometry), some);
}

}  // namespace
}  // namespace cofs
