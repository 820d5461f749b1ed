#include "blockmap/gc_victims.h"

#include <algorithm>
#include <vector>

namespace cofs {
namespace {

// Costs within 3 % of what looking at all of them would.
constexpr size_t kSampleSize = 30;
constexpr uint64_t kSampleDraws = 8 * kSampleSize;   // at most, to find so many
constexpr uint64_t kSampleAllMax = 4 * kSampleSize;  // segments: of so few all are looked at
constexpr size_t kKnownMax = 256;

bool is_node_stream(ondisk::Stream stream) {
  return stream == ondisk::Stream::kMeta || stream == ondisk::Stream::kMetaMirror;
}

// Sealed, with live file data.
bool holds_data(const SegmentState& state) {
  return state.state == ondisk::SegmentState::kSealed && !is_node_stream(state.stream) &&
         state.live_blocks != 0;
}

GcCandidate candidate_of(uint64_t segment, const SegmentState& state) {
  GcCandidate candidate;
  candidate.segment = segment;
  candidate.generation = state.generation;
  candidate.live_blocks = state.live_blocks;
  candidate.stream = state.stream;
  candidate.age = state.age;
  return candidate;
}

}  // namespace

Task<Result<std::optional<GcCandidate>>> GcVictims::choose(GcUrgency urgency,
                                                           uint64_t next_virtual,
                                                           const MayTake* may_take) {
  GcChoice choice(geometry_.segment_blocks, next_virtual, urgency);
  if (geometry_.segment_count <= kSampleAllMax) {
    auto looked = co_await look_at_all(may_take, &choice);
    COFS_CO_TRY(looked);
    co_return choice.best();
  }
  auto sampled = co_await look_at_sample(may_take, &choice);
  COFS_CO_TRY(sampled);
  if (choice.best() && (urgency != GcUrgency::kUrgent || wins_much(*choice.best()))) {
    co_return choice.best();
  }
  auto known = co_await look_at_known(may_take, &choice);
  COFS_CO_TRY(known);
  if (!choice.best() && outside_min_ <= gc_live_max(geometry_.segment_blocks, urgency)) {
    auto looked = co_await look_at_all(may_take, &choice);
    COFS_CO_TRY(looked);
  }
  co_return choice.best();
}

// The emptiest of all are those that would soon have been emptier still: they are taken only where a sample
// offers who waits little.
bool GcVictims::wins_much(const GcCandidate& candidate) const {
  return gc_gain_blocks(geometry_.segment_blocks, candidate.live_blocks) >=
         gc_gain_min(geometry_.segment_blocks, GcUrgency::kIdle);
}

Task<Result<>> GcVictims::look_at_sample(const MayTake* may_take, GcChoice* choice) {
  size_t found = 0;
  for (uint64_t n = 0; n < kSampleDraws && found < kSampleSize; n++) {
    const uint64_t segment = random_.next() % geometry_.segment_count;
    if (segment == geometry_.reserved_segment()) continue;
    auto state = co_await segments_.load(segment);
    COFS_CO_TRY(state);
    if (!holds_data(**state) || !(*may_take)(segment, **state)) continue;
    choice->consider(candidate_of(segment, **state));
    found++;
  }
  co_return Result<>();
}

// The emptiest that may be taken of those that are known.
Task<Result<>> GcVictims::look_at_known(const MayTake* may_take, GcChoice* choice) {
  const std::vector<std::pair<uint32_t, uint64_t>> emptiest(known_.begin(), known_.end());
  size_t found = 0;
  for (const auto& [live, segment] : emptiest) {
    if (found == kSampleSize) break;
    auto state = co_await segments_.load(segment);
    COFS_CO_TRY(state);
    if (!holds_data(**state) || !(*may_take)(segment, **state)) continue;
    choice->consider(candidate_of(segment, **state));
    found++;
  }
  co_return Result<>();
}

// What changes while this waits is noted by the table.
Task<Result<>> GcVictims::look_at_all(const MayTake* may_take, GcChoice* choice) {
  full_searches_++;
  outside_min_ = UINT32_MAX;
  uint64_t cursor = 0;
  auto visited = co_await segments_.visit_some(
      cursor, UINT64_MAX, [&](uint64_t segment, const SegmentState& state) {
        if (!holds_data(state)) return;
        note(segment, state);
        if ((*may_take)(segment, state)) choice->consider(candidate_of(segment, state));
      });
  if (!visited) outside_min_ = 0;
  co_return visited;
}

void GcVictims::note(uint64_t segment, const SegmentState& state) {
  forget(segment);
  if (!holds_data(state)) return;
  if (known_.size() == kKnownMax) {
    const auto fullest = std::prev(known_.end());
    outside_min_ = std::min(outside_min_, std::max(fullest->first, state.live_blocks));
    if (state.live_blocks >= fullest->first) return;
    forget(fullest->second);
  }
  known_.emplace(state.live_blocks, segment);
  known_live_.emplace(segment, state.live_blocks);
}

void GcVictims::forget(uint64_t segment) {
  const auto found = known_live_.find(segment);
  if (found == known_live_.end()) return;
  known_.erase({found->second, segment});
  known_live_.erase(found);
}

}  // namespace cofs
