// GcVictims: finds the segment that garbage collection takes next, without looking at all of them.
//
// A victim is the best of a random sample of sealed segments (blockmap/gc_policy.h scores them). Beside
// that a small set of the emptiest segments is kept from what the segment table tells. It serves where the
// sample has nothing (who waits for room: nothing that wins much), and tells whether anything gains at
// all. Invariant: every sealed segment of file data that is not in the set holds at least `outside_min_` live
// blocks. So all segments are looked at only where the set can not answer: once after a mount, and then at
// most once for as many victims as the set holds.
//
// The simulator (tools/gcsim) runs the same code. Not for: what may be a victim (the caller knows who
// is pinned, skipped or still needed by recovery) or moving anything (gc_relocate.cc).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "blockmap/gc_policy.h"
#include "blockmap/segment_table.h"
#include "offload/base/executor.h"

namespace cofs {

class GcVictims {
 public:
  // Whether a sealed segment that holds live file data may be taken now.
  using MayTake = std::function<bool(uint64_t segment, const SegmentState& state)>;

  GcVictims(const Geometry& geometry, SegmentTable& segments, Random& random)
      : geometry_(geometry), segments_(segments), random_(random) {}

  // The victim to take; none: no segment that may be taken gains enough. `next_virtual` is the present
  // of ages. One call at a time. Errors: those of reading the segments' states.
  Task<Result<std::optional<GcCandidate>>> choose(GcUrgency urgency, uint64_t next_virtual,
                                                  const MayTake* may_take);

  // The segment table's news: must hear of every change of a sealed or freed segment.
  void note(uint64_t segment, const SegmentState& state);

  // How often all segments were looked at.
  uint64_t full_searches() const { return full_searches_; }

 private:
  Task<Result<>> look_at_sample(const MayTake* may_take, GcChoice* choice);
  Task<Result<>> look_at_known(const MayTake* may_take, GcChoice* choice);
  Task<Result<>> look_at_all(const MayTake* may_take, GcChoice* choice);
  void forget(uint64_t segment);
  bool wins_much(const GcCandidate& candidate) const;

  const Geometry& geometry_;
  SegmentTable& segments_;
  Random& random_;
  std::set<std::pair<uint32_t, uint64_t>> known_;       // {live blocks, segment}, the emptiest first
  std::unordered_map<uint64_t, uint32_t> known_live_;   // the same by segment
  uint32_t outside_min_ = 0;
  uint64_t full_searches_ = 0;
};

}  // namespace cofs
