// The planner against a model that goes block by block.
#include "offload/copy_plan.h"

#include <gtest/gtest.h>

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

// Puts one block after the other into the last operation while the limits allow.
std::vector<std::vector<BlockRange>> model_plan(std::span<const BlockRange> sources,
                                                const CopyLimits& limits) {
  std::vector<std::vector<BlockRange>> operations;
  uint64_t in_last = 0;
  for (uint64_t block : expand(sources)) {
    const bool joins = !operations.empty() && in_last < limits.operation_blocks_max &&
                       operations.back().back().end() == block &&
                       operations.back().back().count < limits.range_blocks_max;
    if (joins) {
      operations.back().back().count++;
    } else {
      if (operations.empty() || in_last == limits.operation_blocks_max ||
          operations.back().size() == limits.ranges_max) {
        operations.emplace_back();
        in_last = 0;
      }
      operations.back().push_back(BlockRange{block, 1});
    }
    in_last++;
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

TEST(CopyPlan, EqualsTheBlockByBlockModel) {
  for (uint64_t seed = 0; seed < 3000; seed++) {
    SimRandom random(seed);
    const std::vector<BlockRange> sources = random_sources(random);
    const CopyLimits limits =
        make_limits(static_cast<uint32_t>(1 + random.below(8)), 1 + random.below(50),
                    1 + random.below(80));
    const CopyPlan plan(sources, limits);
    const auto model = model_plan(sources, limits);
    ASSERT_EQ(plan.operations().size(), model.size()) << "seed " << seed;
    uint64_t offset = 0;
    for (size_t i = 0; i < model.size(); i++) {
      const CopyOperation& operation = plan.operations()[i];
      const auto own = plan.sources_of(operation);
      ASSERT_TRUE(std::ranges::equal(own, model[i])) << "seed " << seed << " operation " << i;
      ASSERT_EQ(operation.target_offset, offset) << "seed " << seed;
      ASSERT_EQ(operation.count, blocks_in(own)) << "seed " << seed;
      offset += operation.count;
    }
    ASSERT_EQ(offset, blocks_in(sources)) << "seed " << seed;
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
}

TEST(CopyPlan, OneRunOfTheDevicesMaximumIsOneOperation) {
  const BlockRange run[] = {BlockRange{0, 4096}, BlockRange{4096, 4096}};
  const CopyPlan plan(run, make_limits(128, 1 << 20, 1 << 20));
  ASSERT_EQ(plan.operations().size(), 1U);
  EXPECT_EQ(plan.operations()[0].source_count, 1U);
}

}  // namespace
}  // namespace cofs
