#include "offload/copy_plan.h"

#include <algorithm>

namespace cofs {

namespace {

// The blocks up to `end` that lie in one region, or in none.
struct Stretch {
  uint64_t end = UINT64_MAX;
  uint32_t disk = 0;
  bool copyable = true;
};

Stretch stretch_at(std::span<const CopyRegion> regions, uint64_t block) {
  if (regions.empty()) return Stretch{};
  auto after = std::ranges::upper_bound(
      regions, block, {}, [](const CopyRegion& region) { return region.blocks.start; });
  if (after != regions.begin()) {
    const CopyRegion& region = *std::prev(after);
    if (block < region.blocks.end()) return Stretch{region.blocks.end(), region.disk, true};
  }
  return Stretch{after == regions.end() ? UINT64_MAX : after->blocks.start, 0, false};
}

}  // namespace

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

// Filling each operation as far as it goes gives the fewest operations: cutting earlier can never
// let a later operation reach further.
void CopyPlan::add_copyable(BlockRange source, const CopyLimits& limits, bool goes_on) {
  while (source.count != 0) {
    const bool full = !goes_on || operations_.back().source_count == limits.ranges_max ||
                      operations_.back().count == limits.operation_blocks_max;
    if (full) operations_.push_back(CopyOperation{planned_, 0, sources_.size(), 0, true});
    goes_on = true;
    CopyOperation& operation = operations_.back();
    const uint64_t blocks = std::min(
        {source.count, limits.range_blocks_max, limits.operation_blocks_max - operation.count});
    sources_.push_back(BlockRange{source.start, blocks});
    operation.count += blocks;
    operation.source_count++;
    planned_ += blocks;
    source.start += blocks;
    source.count -= blocks;
  }
}

void CopyPlan::add_uncopyable(BlockRange source) {
  if (operations_.empty() || operations_.back().copyable) {
    operations_.push_back(CopyOperation{planned_, 0, sources_.size(), 0, false});
  }
  CopyOperation& operation = operations_.back();
  // It was cut at the borders of regions, which are nothing to whoever copies this.
  if (operation.source_count != 0 && sources_.back().end() == source.start) {
    sources_.back().count += source.count;
  } else {
    sources_.push_back(source);
    operation.source_count++;
  }
  operation.count += source.count;
  planned_ += source.count;
}

CopyPlan::CopyPlan(std::span<const BlockRange> sources, const CopyLimits& limits)
    : CopyPlan(sources, limits, 0) {
  COFS_ASSERT(limits.regions.empty());
}

CopyPlan::CopyPlan(std::span<const BlockRange> sources, const CopyLimits& limits,
                   uint64_t target_start) {
  COFS_ASSERT(limits.ranges_max >= 1 && limits.range_blocks_max >= 1 &&
              limits.operation_blocks_max >= 1);
  const std::span<const CopyRegion> regions = limits.regions;
  Stretch target = stretch_at(regions, target_start);
  bool goes_on = false;  // the last operation may take more: copyable, and in this target region
  for (BlockRange source : merged_sources(sources)) {
    while (source.count != 0) {
      const uint64_t target_block = target_start + planned_;
      if (target_block >= target.end) {
        target = stretch_at(regions, target_block);
        goes_on = false;
      }
      const Stretch from = stretch_at(regions, source.start);
      const uint64_t blocks =
          std::min({source.count, from.end - source.start, target.end - target_block});
      const BlockRange piece{source.start, blocks};
      if (from.copyable && target.copyable && from.disk == target.disk) {
        add_copyable(piece, limits, goes_on);
        goes_on = true;
      } else {
        add_uncopyable(piece);
        goes_on = false;
      }
      source.start += blocks;
      source.count -= blocks;
    }
  }
}

}  // namespace cofs
