#include "blockmap/gc_policy.h"

#include <algorithm>

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
    case GcUrgency::kPaced: return std::max<uint64_t>(segment_blocks / 16, 1);
    case GcUrgency::kUrgent: break;
  }
  return std::max<uint64_t>(segment_blocks / 32, 1);
}

std::optional<size_t> choose_gc_victim(std::span<const GcCandidate> candidates,
                                       uint32_t segment_blocks, uint64_t next_virtual,
                                       GcUrgency urgency) {
  std::optional<size_t> best;
  double best_score = 0;
  const uint64_t gain_min = gc_gain_min(segment_blocks, urgency);
  for (size_t i = 0; i < candidates.size(); i++) {
    const GcCandidate& candidate = candidates[i];
    if (gc_gain_blocks(segment_blocks, candidate.live_blocks) < gain_min) continue;
    const double u = static_cast<double>(candidate.live_blocks) / segment_blocks;
    const uint64_t age = candidate.age < next_virtual ? next_virtual - candidate.age : 0;
    const double score = urgency == GcUrgency::kUrgent
                             ? 1 - u
                             : (1 - u) * static_cast<double>(age + 1) / (1 + u);
    if (best && score <= best_score) continue;
    best = i;
    best_score = score;
  }
  return best;
}

uint64_t gc_winnable_segments(uint32_t segment_blocks, uint64_t segments, uint64_t live_blocks) {
  // What is left in the end is fuller than the fullest that would still be a victim.
  uint32_t fullest = segment_blocks;
  uint32_t below = 0;
  const uint64_t gain_min = gc_gain_min(segment_blocks, GcUrgency::kUrgent);
  while (below < fullest) {
    const uint32_t middle = below + (fullest - below + 1) / 2;
    if (gc_gain_blocks(segment_blocks, middle) >= gain_min) {
      below = middle;
    } else {
      fullest = middle - 1;
    }
  }
  const uint64_t left = live_blocks / (uint64_t{below} + 1);
  return segments > left ? segments - left : 0;
}

uint64_t gc_moves_per_won_256(uint32_t segment_blocks, uint32_t live_blocks) {
  const uint64_t gain = gc_gain_blocks(segment_blocks, live_blocks);
  if (gain == 0) return kMovesMax256;
  return std::clamp<uint64_t>(uint64_t{live_blocks} * 256 / gain, 1, kMovesMax256);
}

}  // namespace cofs
