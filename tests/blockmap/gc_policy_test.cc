// The choice of victims, and the arithmetic of what moving them costs and wins.

#include "blockmap/gc_policy.h"

#include <gtest/gtest.h>

#include <vector>

namespace cofs {
namespace {

GcCandidate candidate(uint64_t segment, uint32_t live, uint64_t age) {
  GcCandidate out;
  out.segment = segment;
  out.live_blocks = live;
  out.age = age;
  return out;
}

TEST(GcPolicy, CostsMoreThanWhatLivesAndRises) {
  for (const uint32_t blocks : {16U, 32U, 256U, 1024U, 16384U}) {
    uint64_t last = 0;
    for (uint32_t live = 1; live <= blocks; live++) {
      const uint64_t cost = gc_cost_blocks(blocks, live);
      ASSERT_GT(cost, live);
      ASSERT_GE(cost, last);
      ASSERT_EQ(gc_gain_blocks(blocks, live), cost < blocks ? blocks - cost : 0);
      last = cost;
    }
    EXPECT_EQ(gc_cost_blocks(blocks, 0), 0U);
    EXPECT_EQ(gc_gain_blocks(blocks, blocks), 0U);
  }
}

// The segment that is chosen.
std::optional<uint64_t> choose(const std::vector<GcCandidate>& candidates, uint64_t next_virtual,
                               GcUrgency urgency) {
  GcChoice choice(256, next_virtual, urgency);
  for (const GcCandidate& each : candidates) choice.consider(each);
  if (!choice.best()) return std::nullopt;
  return choice.best()->segment;
}

constexpr GcUrgency kUrgencies[] = {GcUrgency::kIdle, GcUrgency::kPaced, GcUrgency::kUrgent};

TEST(GcPolicy, AVictimMustGain) {
  const std::vector<GcCandidate> full = {candidate(1, 255, 0), candidate(2, 256, 0)};
  for (const GcUrgency urgency : kUrgencies) {
    EXPECT_FALSE(choose(full, 1'000'000, urgency));
    EXPECT_FALSE(choose({}, 1, urgency));
    for (const uint32_t blocks : {16U, 64U, 256U, 16384U}) {
      const uint32_t most = gc_live_max(blocks, urgency);
      ASSERT_GT(most, 0U);
      EXPECT_GE(gc_gain_blocks(blocks, most), gc_gain_min(blocks, urgency));
      EXPECT_LT(gc_gain_blocks(blocks, most + 1), gc_gain_min(blocks, urgency));
    }
    EXPECT_EQ(choose({candidate(3, gc_live_max(256, urgency), 0)}, 9, urgency), 3U);
    EXPECT_FALSE(choose({candidate(3, gc_live_max(256, urgency) + 1, 0)}, 9, urgency));
  }
}

TEST(GcPolicy, IdleTimeIsForWhatGainsMuch) {
  const std::vector<GcCandidate> some = {candidate(1, 210, 0)};
  EXPECT_FALSE(choose(some, 1'000'000, GcUrgency::kIdle));
  EXPECT_EQ(choose(some, 1'000'000, GcUrgency::kPaced), 1U);
  EXPECT_EQ(choose(some, 1'000'000, GcUrgency::kUrgent), 1U);
}

TEST(GcPolicy, ColdSegmentsGoBeforeEmptierHotOnes) {
  const std::vector<GcCandidate> two = {candidate(1, 100, 990'000), candidate(2, 180, 10'000)};
  EXPECT_EQ(choose(two, 1'000'000, GcUrgency::kPaced), 2U);
  // Who waits takes more that is won at once, unless the ages are worlds apart.
  EXPECT_EQ(choose(two, 1'000'000, GcUrgency::kUrgent), 2U);
  const std::vector<GcCandidate> nearer = {candidate(1, 100, 900'000), candidate(2, 180, 10'000)};
  EXPECT_EQ(choose(nearer, 1'000'000, GcUrgency::kPaced), 2U);
  EXPECT_EQ(choose(nearer, 1'000'000, GcUrgency::kUrgent), 1U);
}

TEST(GcPolicy, OfOneAgeTheEmptiestGoes) {
  for (const GcUrgency urgency : kUrgencies) {
    for (uint32_t live = 1; live < 150; live++) {
      const std::vector<GcCandidate> two = {candidate(1, live + 1, 50), candidate(2, live, 50)};
      ASSERT_EQ(choose(two, 1'000, urgency), 2U);
    }
  }
}

TEST(GcPolicy, AgesOfTheFutureCountAsNone) {
  const std::vector<GcCandidate> odd = {candidate(1, 100, UINT64_MAX), candidate(2, 100, 4)};
  EXPECT_EQ(choose(odd, 5, GcUrgency::kPaced), 2U);
}

// However the live blocks lie: once nothing gains, there are not more segments than promised.
TEST(GcPolicy, WhatIsCalledWinnableCanBeWon) {
  for (const uint32_t blocks : {16U, 64U, 256U, 4096U}) {
    uint32_t fullest = 0;  // of those that still gain
    const uint64_t gain_min = gc_gain_min(blocks, GcUrgency::kUrgent);
    while (gc_gain_blocks(blocks, fullest + 1) >= gain_min) fullest++;
    for (const uint64_t segments : {0U, 1U, 10U, 1000U}) {
      // The worst end: each is just too full to be a victim.
      EXPECT_EQ(gc_winnable_segments(blocks, segments, segments * (fullest + 1)), 0U);
      EXPECT_EQ(gc_winnable_segments(blocks, segments, 0), segments);
      const uint64_t live = segments * fullest / 2;
      const uint64_t left = segments - gc_winnable_segments(blocks, segments, live);
      EXPECT_LE(left * (fullest + 1), live);
    }
  }
}

TEST(GcPolicy, WhatItTakesToWinABlock) {
  EXPECT_EQ(gc_moves_per_won_256(256, 0), 1U);
  EXPECT_EQ(gc_moves_per_won_256(256, 256), 64 * 256U);
  for (uint32_t live = 1; live < 256; live++) {
    EXPECT_GE(gc_moves_per_won_256(256, live + 1), gc_moves_per_won_256(256, live));
  }
  const uint64_t half = gc_moves_per_won_256(256, 126);
  EXPECT_GT(half, 240U);
  EXPECT_LT(half, 272U);
}

}  // namespace
}  // namespace cofs
