#include "blockmap/gc_policy.h"

#include <algorithm>
#include <cmath>

#include "blockmap/chunk.h"
#include "offload/base/error.h"

namespace cofs {
namespace {

constexpr uint64_t kMovesMax256 = 64 * 256;

}  // namespace

uint64_t gc_cost_blocks(uint32_t segment_blocks, uint32_t live_blocks) {
  if (live_blocks == 0) return 0;
  // One more chunk header where the survivors go into two segments.
  const uint64_t with_headers =
      live_blocks + (live_blocks + kChunkEntriesPerBlock - 1) / kChunkEntriesPerBlock + 1;
  const uint64_t framing = 1 + footer_blocks(segment_blocks);
  COFS_ASSERT(framing < segment_blocks);
  const uint64_t room = segment_blocks - framing;
  return (with_headers * segment_blocks + room - 1) / room;
}

uint64_t gc_gain_blocks(uint32_t segment_blocks, uint32_t live_blocks) {
  const uint64_t cost = gc_cost_blocks(segment_blocks, live_blocks);
  return cost < segment_blocks ? segment_blocks - cost : 0;
}

uint64_t gc_gain_min(uint32_t segment_blocks, GcUrgency urgency) {
  switch (urgency) {
    case GcUrgency::kIdle: return segment_blocks / 4;
    case GcUrgency::kPaced: {
      // Cold segments are worth emptying when nearly full; in small ones a few blocks are only its headers.
      const uint64_t small = std::min<uint64_t>(segment_blocks / 16, 4);
      return std::max<uint64_t>(segment_blocks / 32, small);
    }
    case GcUrgency::kUrgent: break;
  }
  return std::max<uint64_t>(segment_blocks / 32, 1);
}

uint32_t gc_live_max(uint32_t segment_blocks, GcUrgency urgency) {
  const uint64_t gain_min = gc_gain_min(segment_blocks, urgency);
  uint32_t most = 0;
  uint32_t fullest = segment_blocks;
  while (most < fullest) {
    const uint32_t middle = most + (fullest - most + 1) / 2;
    if (gc_gain_blocks(segment_blocks, middle) >= gain_min) {
      most = middle;
    } else {
      fullest = middle - 1;
    }
  }
  return most;
}

double gc_score(const GcCandidate& candidate, uint32_t segment_blocks, uint64_t next_virtual,
                GcUrgency urgency) {
  // Net of headers and footers: in small segments they are as much as what is dead in a cold one.
  const uint64_t gain = gc_gain_blocks(segment_blocks, candidate.live_blocks);
  const double won = static_cast<double>(gain) / segment_blocks;
  const uint64_t age = candidate.age < next_virtual ? next_virtual - candidate.age : 0;
  // Moving costs 1 - won for what it wins, and waiting wins what dies meanwhile: the best victim is the one
  // that wins least by waiting. At the rate at which its dead died, won / age, that is the one with the most
  // won * age / (1 - won). The root distrusts a rate that was seen on few deaths; who waits wants much at
  // once (docs/GC.md has figures).
  const double eager = urgency == GcUrgency::kUrgent ? won * won : std::sqrt(won);
  return won * eager * static_cast<double>(age + 1) / (1 - won + 1.0 / segment_blocks);
}

void GcChoice::consider(const GcCandidate& candidate) {
  if (candidate.live_blocks > live_max_) return;
  const double score = gc_score(candidate, segment_blocks_, next_virtual_, urgency_);
  if (best_ && score <= best_score_) return;
  best_ = candidate;
  best_score_ = score;
}

uint64_t gc_winnable_segments(uint32_t segment_blocks, uint64_t segments, uint64_t live_blocks) {
  // What is left in the end is fuller than the fullest that would still be a victim.
  const uint64_t below = gc_live_max(segment_blocks, GcUrgency::kUrgent);
  const uint64_t left = live_blocks / (below + 1);
  return segments > left ? segments - left : 0;
}

uint64_t gc_moves_per_won_256(uint32_t segment_blocks, uint32_t live_blocks) {
  const uint64_t gain = gc_gain_blocks(segment_blocks, live_blocks);
  if (gain == 0) return kMovesMax256;
  return std::clamp<uint64_t>(uint64_t{live_blocks} * 256 / gain, 1, kMovesMax256);
}

}  // namespace cofs
