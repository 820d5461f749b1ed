// Prefix consistency (docs/CRASH.md): random workloads, a crash at every moment, many outcomes each.
//
// COFS_CRASH_STATES: how many crash images to try in all (default 20000), COFS_SEED: the first seed. A
// seed names a volume and its workloads, so a failure replays alone with COFS_SEED set to the one that
// was printed.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstdio>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"

namespace cofs {
namespace {

constexpr uint64_t kStatesDefault = 20'000;
constexpr uint64_t kWorkloadsPerSeed = 4;
constexpr uint64_t kSeedsMax = 1'000'000;

SweepOptions options_of(uint64_t seed, bool background) {
  SweepOptions options;
  options.volume = VolumeOptions::tiny(seed);
  if (background) {
    options.volume.store.background = true;
    options.volume.store.commit_interval_ns = 2'000'000'000;
    options.volume.store.checkpoint_interval_ns = 7'000'000'000;
  }
  options.moment_chance = 0.35;
  options.nested_chance = 0.01;
  options.verify_chance = 0.5;
  return options;
}

// One volume that ages over a few workloads. False: stop here.
bool sweep_seed(uint64_t seed, bool background, uint64_t states_left, SweepReport* total) {
  SweepOptions options = options_of(seed, background);
  options.states_max = states_left;
  WorkloadShape shape = WorkloadShape::random(seed);
  shape.sync_chance = std::max(shape.sync_chance, 0.05);
  if (background) {
    shape.pass_chance = 0.15;
    shape.sync_chance = 0.03;
  }
  SimRandom random(mix64(seed, 0x77));
  CrashSweep sweep(seed, options, TestVolume::formatted(seed, options.volume), ModelState());
  bool fine = true;
  for (uint64_t i = 0; i < kWorkloadsPerSeed && fine; ++i) {
    fine = sweep.run_random(shape, random.between(10, 40));
  }
  total->add(sweep.report());
  return fine;
}

void sweep(uint64_t share_percent, bool background) {
  const uint64_t states =
      number_from_environment("COFS_CRASH_STATES", kStatesDefault) * share_percent / 100;
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  SweepReport report;
  for (uint64_t seed = first; seed < first + kSeedsMax && report.states < states; ++seed) {
    if (!sweep_seed(seed, background, states - report.states, &report)) break;
  }
  std::printf("%s\n", report.summary(first).c_str());
  EXPECT_GT(report.states, 0U);
  for (const std::string& violation : report.violations) ADD_FAILURE() << violation;
}

TEST(CrashSweep, ExplicitSyncs) { sweep(75, false); }

TEST(CrashSweep, PeriodicCommits) { sweep(25, true); }

// The sweep itself: on a device that lies about flushes, or drops writes, it must find something.
TEST(CrashSweep, FindsWhatABadDeviceDoes) {
  for (const bool phantom : {false, true}) {
    SweepReport report;
    for (uint64_t seed = 1; seed <= 40 && report.violations.empty(); ++seed) {
      SweepOptions options = options_of(seed, false);
      const SimImage base = TestVolume::formatted(seed, options.volume);
      if (phantom) {
        options.volume.device.faults.phantom_write = 0.05;
      } else {
        options.volume.device.faults.lying_flush = 1;
      }
      CrashSweep sweep(seed, options, base, ModelState());
      sweep.quiet();
      sweep.run_random(WorkloadShape::random(seed), 30);
      report.add(sweep.report());
    }
    EXPECT_FALSE(report.violations.empty()) << (phantom ? "phantom writes" : "lying flushes");
  }
}

// The power goes and every request fails from then on: the code that is running must come to an end
// with errors, leave nothing behind, and its image must still recover.
TEST(CrashSweep, UnwindingAfterThePowerWent) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  uint64_t states = 0;
  for (uint64_t seed = first; seed < first + 6; ++seed) {
    VolumeOptions options = VolumeOptions::tiny(seed);
    options.device.counted = kCountAll;
    const SimImage base = TestVolume::formatted(seed, options);
    for (uint64_t n = 1;; n += 1 + n / 16) {
      set_current_case(fmt::format("seed {}, power off at device operation {}", seed, n));
      TestVolume volume(seed, base, options);
      volume.device.power_off_at(n);
      const Result<> opened = volume.open();
      ModelState state;
      WorkloadGenerator generator(seed, WorkloadShape::random(seed));
      for (int i = 0; i < 30 && opened && !volume.device.powered_off(); ++i) {
        const Operation operation = generator.next(state);
        state.check(operation, volume.perform(operation));
      }
      if (!volume.device.powered_off()) break;
      const Operation late[] = {Operation(OperationKind::kCreate, "/late"),
                                Operation(OperationKind::kSync)};
      if (volume.is_open()) {
        volume.perform(late[0]);
        EXPECT_FALSE(volume.perform(late[1]).ok()) << "seed " << seed << " n " << n;
        if (n % 2 == 0) {
          EXPECT_FALSE(volume.close()) << "seed " << seed << " n " << n;
        }
      }
      VolumeOptions again = options;
      TestVolume recovered(seed, volume.device.crash_image(n, CrashMode::kRandom), again);
      const Result<> reopened = recovered.open();
      ASSERT_TRUE(reopened) << "seed " << seed << " n " << n << ": " << describe(reopened.error());
      EXPECT_EQ(recovered.verify(true), "") << "seed " << seed << " n " << n;
      states++;
    }
  }
  std::printf("power-offs: %llu\n", static_cast<unsigned long long>(states));
}

}  // namespace
}  // namespace cofs
