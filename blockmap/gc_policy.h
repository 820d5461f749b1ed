// Which segment garbage collection takes next, and what taking it wins. Pure: numbers in, a choice out.
//
// A victim must gain: what moving its survivors costs is less than the segment by at least so much as
// the urgency asks for. Among those that gain the score won^1.5 * age / (1 - won) decides (won: the share of
// the segment that is won, net), and for who waits won^3 in its place. Age counts virtual blocks handed out
// since the segment was sealed: the time in which what is dead in it died (docs/decisions/0010). Not for:
// finding candidates (gc_victims.h), reading segments or moving anything (gc_relocate.cc).
#pragma once

#include <cstdint>
#include <optional>

#include "blockmap/ondisk.h"

namespace cofs {

enum class GcUrgency : uint8_t {
  kIdle,    // the device has nothing better to do: only what gains much
  kPaced,   // room is getting scarce: writers pay for it bit by bit
  kUrgent,  // a writer waits for room
};

struct GcCandidate {  // a sealed segment with file data
  uint64_t segment = 0;
  uint32_t generation = 0;
  uint32_t live_blocks = 0;
  ondisk::Stream stream = ondisk::Stream::kData;
  uint64_t age = 0;  // as in SegmentState
};

// Blocks that so many survivors of one segment take elsewhere, each of them apart from the others at
// worst: with their share of chunk headers, segment headers and footers.
uint64_t gc_cost_blocks(uint32_t segment_blocks, uint32_t live_blocks);
// What freeing the segment wins: 0 where it wins nothing.
uint64_t gc_gain_blocks(uint32_t segment_blocks, uint32_t live_blocks);
// A victim gains at least this.
uint64_t gc_gain_min(uint32_t segment_blocks, GcUrgency urgency);

// The most live blocks with which a segment is a victim; 0: none is.
uint32_t gc_live_max(uint32_t segment_blocks, GcUrgency urgency);

// How good a victim it is. `next_virtual` is the present of ages; an age of the future counts as none.
double gc_score(const GcCandidate& candidate, uint32_t segment_blocks, uint64_t next_virtual,
                GcUrgency urgency);

// The best of the candidates that gain enough; of equals the first.
class GcChoice {
 public:
  GcChoice(uint32_t segment_blocks, uint64_t next_virtual, GcUrgency urgency)
      : segment_blocks_(segment_blocks),
        live_max_(gc_live_max(segment_blocks, urgency)),
        next_virtual_(next_virtual),
        urgency_(urgency) {}
  void consider(const GcCandidate& candidate);
  const std::optional<GcCandidate>& best() const { return best_; }

 private:
  const uint32_t segment_blocks_;
  const uint32_t live_max_;
  const uint64_t next_virtual_;
  const GcUrgency urgency_;
  std::optional<GcCandidate> best_;
  double best_score_ = 0;
};

// Of `segments` that hold `live_blocks` together, in whatever way: so many at least become free if
// urgent collection goes on until nothing gains.
uint64_t gc_winnable_segments(uint32_t segment_blocks, uint64_t segments, uint64_t live_blocks);

// How many blocks have to be moved to win one, with this victim: u / (1 - u), in 256ths; at least one
// 256th, at most 64 blocks.
uint64_t gc_moves_per_won_256(uint32_t segment_blocks, uint32_t live_blocks);

}  // namespace cofs
