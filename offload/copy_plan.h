// CopyPlan: cuts one gather (many source ranges, one target run) into operations that fit the
// limits of a copy path. Pure arithmetic: it knows no device and issues nothing.
//
// The operations, in order, cover the target run once, without gaps; each one's sources, in order,
// are exactly the source blocks that belong there; none is empty. Where the device is put together
// of several disks, what the path cannot copy (from one disk to another, or blocks in no region) is
// in operations of its own. Not for choosing a path, nor for recovering from failure: that is
// CopyEngine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "offload/base/units.h"
#include "offload/device.h"

namespace cofs {

// One command's share: the target blocks [target_offset, target_offset + count) of the run.
struct CopyOperation {
  uint64_t target_offset = 0;
  uint64_t count = 0;
  size_t first_source = 0;  // into the plan's sources
  size_t source_count = 0;
  // False: the path cannot copy this; it keeps to none of the limits. Two of these are never
  // neighbours.
  bool copyable = true;
};

class CopyPlan {
 public:
  // Every limit is at least 1. Empty sources are ignored, adjacent ones merged before cutting.
  // `target_start` is where the target run lies, on which its regions depend.
  CopyPlan(std::span<const BlockRange> sources, const CopyLimits& limits, uint64_t target_start);
  // REQUIRES: no regions; then the target's place does not matter.
  CopyPlan(std::span<const BlockRange> sources, const CopyLimits& limits);

  std::span<const CopyOperation> operations() const { return operations_; }
  std::span<const BlockRange> sources_of(const CopyOperation& operation) const {
    return std::span(sources_).subspan(operation.first_source, operation.source_count);
  }

 private:
  void add_copyable(BlockRange source, const CopyLimits& limits, bool goes_on);
  void add_uncopyable(BlockRange source);

  uint64_t planned_ = 0;             // blocks in all operations
  std::vector<BlockRange> sources_;  // cut
  std::vector<CopyOperation> operations_;
};

uint64_t blocks_in(std::span<const BlockRange> ranges);

// The same blocks in the same order, empty ranges dropped, neighbours that continue each other
// joined.
std::vector<BlockRange> merged_sources(std::span<const BlockRange> sources);

// What is left of `sources` after their first `skip` blocks. REQUIRES: skip <= blocks_in(sources).
std::vector<BlockRange> sources_after(std::span<const BlockRange> sources, uint64_t skip);

}  // namespace cofs
