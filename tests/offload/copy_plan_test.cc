// The planner against a model that goes block by block.
#include "offload/copy_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

CopyLimits make_limits(uint32_t ranges, uint64_t range_blocks, uint64_t operation_blocks) {
  CopyLimits limits;
  limits.engine = "test";
  limits.ranges_max = ranges;
  limits.range_blocks_max = range_blocks;
  limits.operation_blocks_max = operation_blocks;
  return limits;
}

std::vector<uint64_t> expand(std::span<const BlockRange> ranges) {
  std::vector<uint64_t> blocks;
  for (const BlockRange& range : ranges) {
    for (uint64_t i = 0; i < range.count; i++) blocks.push_back(range.start + i);
  }
  return blocks;
}

// The region that holds a block, by looking at all of them.
const CopyRegion* region_of(uint64_t block, const CopyLimits& limits) {
  static const CopyRegion everything{{0, UINT64_MAX}, 0};
  if (limits.regions.empty()) return &everything;
  for (const CopyRegion& region : limits.regions) {
    if (block >= region.blocks.start && block < region.blocks.end()) return &region;
  }
  return nullptr;
}

struct ModelOperation {
  std::vector<BlockRange> sources;
  uint64_t count = 0;
  bool copyable = false;
  const CopyRegion* target_region = nullptr;
  const CopyRegion* last_source_region = nullptr;
};

// Puts one block after the other into the last operation while the limits allow.
std::vector<ModelOperation> model_plan(std::span<const BlockRange> sources,
                                       const CopyLimits& limits, uint64_t target_start) {
  std::vector<ModelOperation> operations;
  uint64_t target_block = target_start;
  for (uint64_t block : expand(sources)) {
    const CopyRegion* from = region_of(block, limits);
    const CopyRegion* to = region_of(target_block++, limits);
    const bool copyable = from != nullptr && to != nullptr && from->disk == to->disk;
    const bool same_kind = !operations.empty() && operations.back().copyable == copyable;
    bool same_range = same_kind && operations.back().sources.back().end() == block;
    bool same_operation = same_kind;
    if (same_kind && copyable) {
      const ModelOperation& last = operations.back();
      same_operation = last.target_region == to && last.count < limits.operation_blocks_max;
      same_range = same_range && same_operation && last.last_source_region == from &&
                   last.sources.back().count < limits.range_blocks_max;
      if (!same_range && last.sources.size() == limits.ranges_max) same_operation = false;
    }
    if (!same_operation) operations.push_back(ModelOperation{{}, 0, copyable, to, from});
    ModelOperation& operation = operations.back();
    if (same_range) {
      operation.sources.back().count++;
    } else {
      operation.sources.push_back(BlockRange{block, 1});
    }
    operation.last_source_region = from;
    operation.count++;
  }
  return operations;
}

std::vector<BlockRange> random_sources(SimRandom& random) {
  std::vector<BlockRange> sources;
  const uint64_t n = random.below(30);
  uint64_t at = random.below(1000);
  for (uint64_t i = 0; i < n; i++) {
    if (random.below(2) == 0) at = random.below(1000);
    sources.push_back(BlockRange{at, random.below(4) == 0 ? 0 : random.below(40)});
    at = sources.back().end();
  }
  return sources;
}

// Up to 20 regions over about the blocks that sources use, some touching, some apart.
std::vector<CopyRegion> random_regions(SimRandom& random) {
  std::vector<CopyRegion> regions;
  const uint64_t n = 1 + random.below(20);
  const uint64_t disks = 1 + random.below(3);
  uint64_t at = random.below(3) == 0 ? random.below(100) : 0;
  for (uint64_t i = 0; i < n; i++) {
    const uint64_t blocks = 1 + random.below(random.below(4) == 0 ? 1000 : 60);
    regions.push_back(CopyRegion{{at, blocks}, static_cast<uint32_t>(random.below(disks))});
    at += blocks;
    if (random.below(3) == 0) at += 1 + random.below(random.below(2) == 0 ? 1 : 50);
  }
  return regions;
}

CopyLimits random_limits(SimRandom& random) {
  CopyLimits limits = make_limits(static_cast<uint32_t>(1 + random.below(8)), 1 + random.below(50),
                                  1 + random.below(80));
  if (random.below(10) == 0) limits.ranges_max = UINT32_MAX;
  if (random.below(10) == 0) limits.range_blocks_max = UINT64_MAX;
  if (random.below(10) == 0) limits.operation_blocks_max = UINT64_MAX;
  return limits;
}

void expect_equal(const CopyPlan& plan, std::span<const ModelOperation> model, uint64_t seed) {
  ASSERT_EQ(plan.operations().size(), model.size()) << "seed " << seed;
  uint64_t offset = 0;
  for (size_t i = 0; i < model.size(); i++) {
    const CopyOperation& operation = plan.operations()[i];
    const auto own = plan.sources_of(operation);
    ASSERT_TRUE(std::ranges::equal(own, model[i].sources)) << "seed " << seed << " operation " << i;
    ASSERT_EQ(operation.copyable, model[i].copyable) << "seed " << seed << " operation " << i;
    ASSERT_EQ(operation.target_offset, offset) << "seed " << seed;
    ASSERT_EQ(operation.count, blocks_in(own)) << "seed " << seed;
    offset += operation.count;
  }
}

TEST(CopyPlan, EqualsTheBlockByBlockModel) {
  for (uint64_t seed = 0; seed < 3000; seed++) {
    SimRandom random(seed);
    const std::vector<BlockRange> sources = random_sources(random);
    const CopyLimits limits = random_limits(random);
    const CopyPlan plan(sources, limits);
    expect_equal(plan, model_plan(sources, limits, 0), seed);
    if (HasFatalFailure()) return;
    for (const CopyOperation& operation : plan.operations()) ASSERT_TRUE(operation.copyable);
  }
}

TEST(CopyPlan, EqualsTheBlockByBlockModelOverRegions) {
  uint64_t copyable = 0;
  uint64_t uncopyable = 0;
  for (uint64_t seed = 0; seed < 10000; seed++) {
    SimRandom random(seed);
    const std::vector<BlockRange> sources = random_sources(random);
    CopyLimits limits = random_limits(random);
    limits.regions = random_regions(random);
    const uint64_t target_start = random.below(1500);
    const CopyPlan plan(sources, limits, target_start);
    expect_equal(plan, model_plan(sources, limits, target_start), seed);
    if (HasFatalFailure()) return;
    for (const CopyOperation& operation : plan.operations()) {
      (operation.copyable ? copyable : uncopyable) += operation.count;
    }
  }
  EXPECT_GT(copyable, 200'000U);  // the seeds show both
  EXPECT_GT(uncopyable, 200'000U);
}

// As the engine goes on after an operation that ended early: its rest is planned anew, from where
// it lies.
TEST(CopyPlan, ResumedOperationsPutEveryBlockInItsPlace) {
  for (uint64_t seed = 0; seed < 2000; seed++) {
    SimRandom random(seed);
    const std::vector<BlockRange> sources = random_sources(random);
    CopyLimits limits = random_limits(random);
    if (random.below(2) == 0) limits.regions = random_regions(random);
    const uint64_t target_start = random.below(1500);
    const std::vector<uint64_t> blocks = expand(sources);
    std::vector<uint64_t> target(blocks.size(), UINT64_MAX);
    struct Rest {
      std::vector<BlockRange> sources;
      uint64_t offset;
    };
    std::vector<Rest> rests{{sources, 0}};
    while (!rests.empty()) {
      const Rest rest = std::move(rests.back());
      rests.pop_back();
      const CopyPlan plan(rest.sources, limits, target_start + rest.offset);
      for (const CopyOperation& operation : plan.operations()) {
        const auto own = plan.sources_of(operation);
        const bool ends_early = random.below(4) == 0;
        const uint64_t good = ends_early ? random.below(operation.count) : operation.count;
        const uint64_t offset = rest.offset + operation.target_offset;
        const std::vector<uint64_t> copied = expand(own);
        for (uint64_t i = 0; i < good; i++) {
          ASSERT_EQ(target[offset + i], UINT64_MAX) << "seed " << seed << ": copied twice";
          target[offset + i] = copied[i];
        }
        if (ends_early) rests.push_back(Rest{sources_after(own, good), offset + good});
      }
    }
    ASSERT_EQ(target, blocks) << "seed " << seed;
  }
}

TEST(CopyPlan, MergingAndSkippingKeepTheBlocks) {
  for (uint64_t seed = 0; seed < 2000; seed++) {
    SimRandom random(seed);
    const std::vector<BlockRange> sources = random_sources(random);
    const std::vector<BlockRange> merged = merged_sources(sources);
    std::vector<uint64_t> blocks = expand(sources);
    ASSERT_EQ(expand(merged), blocks) << "seed " << seed;
    for (size_t i = 0; i < merged.size(); i++) {
      ASSERT_NE(merged[i].count, 0U);
      if (i > 0) {
        ASSERT_NE(merged[i - 1].end(), merged[i].start) << "seed " << seed;
      }
    }
    const uint64_t skip = random.below(blocks.size() + 1);
    blocks.erase(blocks.begin(), blocks.begin() + static_cast<ptrdiff_t>(skip));
    ASSERT_EQ(expand(sources_after(sources, skip)), blocks) << "seed " << seed;
  }
}

TEST(CopyPlan, NothingToCopyIsNoOperation) {
  const BlockRange empty[] = {BlockRange{5, 0}, BlockRange{9, 0}};
  EXPECT_TRUE(CopyPlan(empty, make_limits(1, 1, 1)).operations().empty());
  EXPECT_TRUE(CopyPlan({}, make_limits(1, 1, 1)).operations().empty());
  CopyLimits limits = make_limits(1, 1, 1);
  limits.regions = {{{0, 4}, 0}};
  EXPECT_TRUE(CopyPlan(empty, limits, 100).operations().empty());
}

// Two disks joined at block 100, and nothing known beyond 200.
TEST(CopyPlan, CutsAtRegionBorders) {
  CopyLimits limits = make_limits(8, 1 << 20, 1 << 20);
  limits.regions = {{{0, 100}, 0}, {{100, 100}, 1}};

  // The target run crosses the border: its first 10 blocks are on disk 0, as the source is.
  const BlockRange low[] = {BlockRange{0, 30}};
  const CopyPlan over_target(low, limits, 90);
  ASSERT_EQ(over_target.operations().size(), 2U);
  EXPECT_TRUE(over_target.operations()[0].copyable);
  EXPECT_EQ(over_target.operations()[0].count, 10U);
  EXPECT_FALSE(over_target.operations()[1].copyable);
  EXPECT_EQ(over_target.sources_of(over_target.operations()[1])[0], (BlockRange{10, 20}));

  // Source and target cross it one after the other, and the source the end of the last region.
  const BlockRange high[] = {BlockRange{95, 125}};
  const CopyPlan over_both(high, limits, 40);
  ASSERT_EQ(over_both.operations().size(), 4U);
  const std::pair<uint64_t, bool> expected[] = {{5, true}, {55, false}, {45, true}, {20, false}};
  for (size_t i = 0; i < 4; i++) {
    EXPECT_EQ(over_both.operations()[i].count, expected[i].first);
    EXPECT_EQ(over_both.operations()[i].copyable, expected[i].second);
  }

  // What cannot be copied, for two reasons, is one operation and its source uncut.
  const BlockRange end[] = {BlockRange{190, 20}};
  const CopyPlan over_end(end, limits, 40);
  ASSERT_EQ(over_end.operations().size(), 1U);
  EXPECT_FALSE(over_end.operations()[0].copyable);
  EXPECT_EQ(over_end.operations()[0].source_count, 1U);

  // One disk throughout: only the ranges are cut.
  limits.regions[1].disk = 0;
  const BlockRange middle[] = {BlockRange{95, 10}};
  const CopyPlan one_disk(middle, limits, 40);
  ASSERT_EQ(one_disk.operations().size(), 1U);
  ASSERT_EQ(one_disk.operations()[0].source_count, 2U);
  EXPECT_EQ(one_disk.sources_of(one_disk.operations()[0])[1], (BlockRange{100, 5}));
}

TEST(CopyPlan, ManySourcesOverManyRegions) {
  constexpr uint64_t kSources = 100'000;
  CopyLimits limits = make_limits(128, 1024, 16384);
  for (uint64_t i = 0; i < 4096; i++) {
    limits.regions.push_back(CopyRegion{{i * 1024, 1024}, static_cast<uint32_t>(i % 2)});
  }
  SimRandom random(1);
  std::vector<BlockRange> sources;
  // On disk 0 and no two in a row; the target is a run of regions that alternate.
  for (uint64_t i = 0; i < kSources; i++) {
    sources.push_back(BlockRange{random.below(1024) * 2048 + (i % 2) * 512 + random.below(500), 1});
  }
  const uint64_t target_start = uint64_t{2048} * 1024;
  const CopyPlan plan(sources, limits, target_start);
  uint64_t copyable = 0;
  for (const CopyOperation& operation : plan.operations()) {
    const uint64_t region = (target_start + operation.target_offset) / 1024;
    EXPECT_EQ(operation.copyable, region % 2 == 0);
    if (operation.copyable) copyable += operation.count;
  }
  EXPECT_EQ(copyable, kSources / 2048 * 1024 + std::min<uint64_t>(kSources % 2048, 1024));
}

TEST(CopyPlanDeathTest, RegionsNeedTheTargetsPlace) {
  CopyLimits limits = make_limits(1, 1, 1);
  limits.regions = {{{0, 4}, 0}};
  EXPECT_DEATH(CopyPlan({}, limits), "regions");
}

TEST(CopyPlan, OneRunOfTheDevicesMaximumIsOneOperation) {
  const BlockRange run[] = {BlockRange{0, 4096}, BlockRange{4096, 4096}};
  const CopyPlan plan(run, make_limits(128, 1 << 20, 1 << 20));
  ASSERT_EQ(plan.operations().size(), 1U);
  EXPECT_EQ(plan.operations()[0].source_count, 1U);
}

}  // namespace
}  // namespace cofs
