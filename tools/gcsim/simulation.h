// Simulation: garbage collection of one volume under random overwrites, to measure write amplification.
//
// The store's own code decides: GcVictims and SegmentTable, on a tree that is never written. Around it
// is only what the store would do with data: pages in slots of segments, no bytes. Data segments alone are
// simulated: no log, no tree nodes, and no chunk headers or footers, so a segment holds segment_blocks of
// data. A page stands for page_blocks blocks that are written and die together. Deterministic: the
// seed tells the run. Not for: pacing, time, or copies.
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "tools/gcsim/workload.h"

namespace cofs {

// How victims are chosen, and in how many streams blocks are written.
enum class SimPolicy : uint8_t {
  kCofs,         // as the store does: GcVictims, paced; survivors warm and cold apart from new data
  kUrgent,       // as the store does while somebody waits for room: GcVictims, urgent
  kOneLog,       // the choice of kCofs, but survivors among new data
  kGreedy,       // the emptiest of all; survivors as in kCofs
  kGreedyOneLog,
  kFifoOneLog,   // the one sealed longest ago
  kCostBenefit,      // of 30: (1 - u) * age / (1 + u), age since it was sealed
  kCostBenefitBorn,  // the same with the age of the newest block in it
  kCofsBorn,         // of 30: the store's score with the age of the newest block
};
inline constexpr int kSimPolicyCount = 9;
std::string_view name_of(SimPolicy policy);
std::string_view explain(SimPolicy policy);

struct SimOptions {
  uint64_t segments = 1200;
  uint32_t segment_blocks = 256;
  uint32_t page_blocks = 1;  // divides segment_blocks
  double utilisation = 0.8;  // what lives, of all segments
  Skew skew;
  SimPolicy policy = SimPolicy::kCofs;
  double warm_up = 4;  // times what lives is written before measuring …
  double measure = 2;  // … and while
  uint64_t seed = 1;

  uint64_t pages_per_segment() const { return segment_blocks / page_blocks; }
  uint64_t live_pages() const {
    return static_cast<uint64_t>(utilisation * static_cast<double>(segments * pages_per_segment()));
  }
};

struct SimResult {
  uint64_t user_pages = 0;    // while it was measured
  uint64_t moved_pages = 0;
  uint64_t victims = 0;
  uint64_t full_searches = 0;  // of all segments
  double write_amplification() const {
    return static_cast<double>(user_pages + moved_pages) / static_cast<double>(user_pages);
  }
};

// Why options cannot be simulated; empty if they can.
std::string check(const SimOptions& options);

// REQUIRES: check(options) is empty. The error says why collection came to an end.
std::expected<SimResult, std::string> simulate(const SimOptions& options);

// Write amplification of the emptiest segment first under uniform overwrites, in segments without end
// (Xiang and Kurkoski 2011). utilisation in (0, 1).
double analytic_greedy(double utilisation);

}  // namespace cofs
