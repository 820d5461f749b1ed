#include "offload/copy_plan.h"

#include <algorithm>

namespace cofs {

uint64_t blocks_in(std::span<const BlockRange> ranges) {
  uint64_t blocks = 0;
  for (const BlockRange& range : ranges) blocks += range.count;
  return blocks;
}

std::vector<BlockRange> merged_sources(std::span<const BlockRange> sources) {
  std::vector<BlockRange> merged;
  for (const BlockRange& source : sources) {
    if (source.count == 0) continue;
    if (!merged.empty() && merged.back().end() == source.start) {
      merged.back().count += source.count;
    } else {
      merged.push_back(source);
    }
  }
  return merged;
}

std::vector<BlockRange> sources_after(std::span<const BlockRange> sources, uint64_t skip) {
  std::vector<BlockRange> rest;
  for (const BlockRange& source : sources) {
    const uint64_t dropped = std::min(skip, source.count);
    skip -= dropped;
    if (dropped < source.count) {
      rest.push_back(BlockRange{source.start + dropped, source.count - dropped});
    }
  }
  COFS_ASSERT(skip == 0);
  return rest;
}

// Filling each operation as far as it goes gives the fewest operations: cutting earlier can never let a
// later operation reach further.
CopyPlan::CopyPlan(std::span<const BlockRange> sources, const CopyLimits& limits) {
  COFS_ASSERT(limits.ranges_max >= 1 && limits.range_blocks_max >= 1 &&
              limits.operation_blocks_max >= 1);
  uint64_t offset = 0;
  for (BlockRange source : merged_sources(sources)) {
    while (source.count != 0) {
      const bool full = operations_.empty() ||
                        operations_.back().source_count == limits.ranges_max ||
                        operations_.back().count == limits.operation_blocks_max;
      if (full) operations_.push_back(CopyOperation{offset, 0, sources_.size(), 0});
      CopyOperation& operation = operations_.back();
      const uint64_t blocks = std::min({source.count, limits.range_blocks_max,
                                        limits.operation_blocks_max - operation.count});
      sources_.push_back(BlockRange{source.start, blocks});
      operation.count += blocks;
      operation.source_count++;
      offset += blocks;
      source.start += blocks;
      source.count -= blocks;
    }
  }
}

}  // namespace cofs
