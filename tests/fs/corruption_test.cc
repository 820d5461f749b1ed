// Damaged volumes: an open or a read of one answers rightly or with an error, and never hangs, crashes
// or trips an assertion. Where the damage kept no checksum right, no wrong byte may come back; where
// checksums were mended, metadata may say anything, so only survival is asked for.
//
// COFS_CORRUPTION_RUNS: how many damaged images of each kind (default 500), COFS_SEED: the first seed.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"
#include "tests/testing/image_damage.h"
#include "tests/testing/tree_walk.h"

namespace cofs {
namespace {

struct Populated {
  SimImage image;
  // The trees that may come back, the newest first. Of a clean volume there is one. A volume that was
  // not closed may have lost its last commit, since a damaged chunk at the very end of the log looks like
  // one that was not written whole: any tree from the last sync but one on.
  std::vector<ModelState> states;
};

VolumeOptions options_of(uint64_t seed) {
  VolumeOptions options = VolumeOptions::tiny(seed);
  options.device_blocks = std::max<uint64_t>(options.device_blocks, 2048);
  options.steps_max = 3'000'000;
  return options;
}

// A volume with a tree on it; cleanly closed, or cut off right after a sync with much of it in the log.
Populated populate(uint64_t seed, const VolumeOptions& options, bool clean) {
  TestVolume volume(seed, TestVolume::formatted(seed, options), options);
  EXPECT_TRUE(volume.open());
  ModelState state;
  WorkloadShape shape = WorkloadShape::random(seed);
  shape.wrong_chance = 0;
  shape.question_chance = 0;
  shape.checkpoint_chance = 0;
  WorkloadGenerator generator(seed, shape);
  auto step = [&](const Operation& operation) {
    const std::string wrong = state.check(operation, volume.perform(operation));
    if (wrong.empty()) return;
    std::fprintf(stderr, "populating, seed %llu: %s\n", static_cast<unsigned long long>(seed),
                 wrong.c_str());
    assertion_failed("a volume without damage works", __FILE__, __LINE__);
  };
  for (const Operation& operation : exhaustive_start()) step(operation);
  std::vector<ModelState> states;  // since the last sync but one
  size_t last_sync = 0;
  for (int i = 0; i < 60; ++i) {
    step(generator.next(state));
    states.push_back(state);
    if (clean && i == 40) step(Operation(OperationKind::kCheckpoint));
    if (i % 6 != 5) continue;
    Operation change(OperationKind::kSetTimes, "/");  // so that each sync has something to commit
    change.offset = static_cast<uint64_t>(i);
    step(change);
    step(Operation(OperationKind::kSync));
    states.erase(states.begin(), states.begin() + static_cast<ptrdiff_t>(last_sync));
    last_sync = states.size() - 1;
  }
  std::reverse(states.begin(), states.end());
  if (clean) {
    EXPECT_TRUE(volume.close());
  } else {
    volume.abandon();
  }
  volume.settle();
  for (ModelState& synced : states) synced.close_all();
  if (clean) states.resize(1);
  return Populated{volume.device.image(), std::move(states)};
}

struct Totals {
  uint64_t runs = 0;
  uint64_t refused = 0;   // opens that answered an error
  uint64_t answers = 0;
  uint64_t errors = 0;
};

// "" if all went as it must: every answer right, by one of the states, or an error.
// `trusting`: the checksums are right, so answers may be wrong.
std::string examine(uint64_t seed, const Populated& before, const SimImage& image,
                    const VolumeOptions& options, bool trusting, Totals* totals) {
  totals->runs++;
  TestVolume volume(seed, image, options);
  const Result<> opened = volume.open();
  if (!opened) {
    totals->refused++;
    return "";
  }
  std::string wrong;
  for (size_t i = 0; i < before.states.size(); ++i) {
    const DamageReport report =
        volume.run(compare_damaged(volume.fs(), before.states[i], trusting));
    totals->answers += report.answers;
    totals->errors += report.errors;
    if (i == 0 || report.wrong.empty()) wrong = report.wrong;
    if (wrong.empty()) break;
  }
  if (!wrong.empty()) return wrong;
  volume.settle();
  (void)volume.verify(true);
  if (!options.store.read_only) {
    // It may go on working, or say that it cannot.
    WorkloadShape shape;
    shape.sync_chance = 0.2;
    WorkloadGenerator generator(mix64(seed, 3), shape);
    for (int i = 0; i < 12; ++i) volume.perform(generator.next(before.states[0]));
    if (seed % 2 == 0) (void)volume.run(volume.fs().repair());
  }
  (void)volume.close();
  return "";
}

void damage_runs(bool mended) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t count = number_from_environment("COFS_CORRUPTION_RUNS", 500);
  constexpr uint64_t kRunsPerVolume = 25;
  Totals totals;
  std::optional<Populated> populated;
  VolumeOptions options;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const uint64_t volume_seed = seed / kRunsPerVolume;
    if (!populated || seed % kRunsPerVolume == 0) {
      options = options_of(volume_seed);
      set_current_case(fmt::format("populating, volume seed {}", volume_seed));
      populated = populate(volume_seed, options, volume_seed % 2 == 0);
    }
    SimRandom random(mix64(seed, mended ? 11 : 12));
    SimImage image = populated->image;
    const bool clean = populated->states.size() == 1;
    const uint64_t blocks = clean && random.below(3) == 0 ? random.between(2, 12) : 1;
    const std::string what = mended ? damage_with_mended_checksums(image, random)
                                    : damage_anywhere(image, blocks, random);
    VolumeOptions how = options;
    how.store.read_only = how.fs.read_only = random.below(3) == 0;
    const std::string label = fmt::format("seed {}, {}, {}{}", seed, mended ? "mended" : "raw",
                                          what, how.store.read_only ? ", read-only" : "");
    set_current_case(label);
    const std::string wrong = examine(seed, *populated, image, how, mended, &totals);
    if (wrong.empty()) continue;
    ADD_FAILURE() << label << ": " << wrong;
  }
  std::printf("damaged images: %llu (refused: %llu), answers: %llu, of them errors: %llu, seed: %llu\n",
              static_cast<unsigned long long>(totals.runs),
              static_cast<unsigned long long>(totals.refused),
              static_cast<unsigned long long>(totals.answers),
              static_cast<unsigned long long>(totals.errors),
              static_cast<unsigned long long>(first));
}

TEST(Corruption, ChecksumsCatchRandomDamage) { damage_runs(false); }

TEST(Corruption, MendedChecksumsAreSurvived) { damage_runs(true); }

TEST(Corruption, AnUndamagedVolumeAnswersEverything) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const VolumeOptions options = options_of(seed);
    const Populated populated = populate(seed, options, seed % 2 == 0);
    for (const bool read_only : {false, true}) {
      VolumeOptions how = options;
      how.store.read_only = how.fs.read_only = read_only;
      Totals totals;
      EXPECT_EQ(examine(seed, populated, populated.image, how, false, &totals), "");
      EXPECT_EQ(totals.refused + totals.errors, 0U) << "seed " << seed;
    }
  }
}

// A device that became smaller, or a truncated image file.
TEST(Corruption, ACutOffDeviceIsRefused) {
  const VolumeOptions options = options_of(1);
  Populated populated = populate(1, options, true);
  for (const uint64_t blocks : {0ULL, 1ULL, 17ULL, 500ULL, 2000ULL}) {
    SimImage image = populated.image;
    image.resize(std::max<uint64_t>(blocks, 1));
    TestVolume volume(1, image, options);
    EXPECT_FALSE(volume.open()) << blocks;
  }
}

}  // namespace
}  // namespace cofs
