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

TEST(GcPolicy, AVictimMustGain) {
  const std::vector<GcCandidate> full = {candidate(1, 255, 0), candidate(2, 256, 0)};
  for (const GcUrgency urgency : {GcUrgency::kIdle, GcUrgency::kPaced, GcUrgency::kUrgent}) {
    EXPECT_FALSE(choose_gc_victim(full, 256, 1'000'000, urgency));
  }
  EXPECT_FALSE(choose_gc_victim({}, 256, 1, GcUrgency::kUrgent));
}

TEST(GcPolicy, IdleTimeIsForWhatGainsMuch) {
  const std::vector<GcCandidate> some = {candidate(1, 210, 0)};
  EXPECT_FALSE(choose_gc_victim(some, 256, 1'000'000, GcUrgency::kIdle));
  EXPECT_EQ(choose_gc_victim(some, 256, 1'000'000, GcUrgency::kPaced), 0U);
  EXPECT_EQ(choose_gc_victim(some, 256, 1'000'000, GcUrgency::kUrgent), 0U);
}

TEST(GcPolicy, ColdSegmentsGoBeforeEmptierHotOnes) {
  const std::vector<GcCandidate> two = {candidate(1, 100, 990'000), candidate(2, 180, 10'000)};
  EXPECT_EQ(choose_gc_victim(two, 256, 1'000'000, GcUrgency::kPaced), 1U);
  EXPECT_EQ(choose_gc_victim(two, 256, 1'000'000, GcUrgency::kUrgent), 0U);
}

TEST(GcPolicy, AgesOfTheFutureCountAsNone) {
  const std::vector<GcCandidate> odd = {candidate(1, 100, UINT64_MAX), candidate(2, 100, 4)};
  EXPECT_EQ(choose_gc_victim(odd, 256, 5, GcUrgency::kPaced), 1U);
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
