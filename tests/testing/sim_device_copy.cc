// The copy commands of the simulated device: sources are read block by block at some moment between
// submission and completion; a copy may end early, lie, or land after its caller was told that it
// timed out.
#include <algorithm>
#include <utility>

#include "tests/testing/sim_device.h"

namespace cofs {
namespace {
constexpr uint8_t kMomentLast = 2;
}

void SimDevice::start_copy(Flight& flight, const IoRequest& request) {
  check_copy(request);
  for (const BlockRange& source : request.sources) {
    if (source.count > geometry_.block_count ||
        source.start > geometry_.block_count - source.count) {
      flight.valid = false;
      return;
    }
    for (uint64_t i = 0; i < source.count; i++) flight.source_blocks.push_back(source.start + i);
  }
  flight.pages.resize(flight.source_blocks.size());
  for (size_t i = 0; i < flight.source_blocks.size(); i++) {
    flight.source_moment.push_back(static_cast<uint8_t>(random_.below(kMomentLast + 1)));
  }
  read_sources(flight, 0);
}

namespace {

// The disk whose region holds all of `range`, if one does.
std::optional<uint32_t> disk_of(const CopyLimits& limits, BlockRange range) {
  for (const CopyRegion& region : limits.regions) {
    if (region.blocks.start <= range.start && range.end() <= region.blocks.end()) return region.disk;
  }
  return std::nullopt;
}

bool keeps_to_regions(const CopyLimits& limits, const IoRequest& request) {
  if (limits.regions.empty()) return true;
  const std::optional<uint32_t> disk = disk_of(limits, request.range);
  return disk && std::ranges::all_of(request.sources, [&](BlockRange source) {
           return disk_of(limits, source) == disk;
         });
}

}  // namespace

void SimDevice::check_copy(const IoRequest& request) const {
  uint64_t blocks = 0;
  uint64_t longest = 0;
  for (const BlockRange& source : request.sources) {
    COFS_ASSERT(source.count != 0);
    COFS_ASSERT(source.start >= request.range.end() || request.range.start >= source.end());
    blocks += source.count;
    longest = std::max(longest, source.count);
  }
  COFS_ASSERT(blocks == request.range.count);
  COFS_ASSERT(request.copy_index < geometry_.copies.size());
  const CopyLimits& limits = geometry_.copies[request.copy_index];
  COFS_ASSERT(request.sources.size() <= limits.ranges_max && longest <= limits.range_blocks_max &&
              blocks <= limits.operation_blocks_max);
  COFS_ASSERT(keeps_to_regions(limits, request));
}

// A block's source is read once, at the moment drawn for it.
void SimDevice::read_sources(Flight& flight, uint8_t moment_max) {
  for (size_t i = 0; i < flight.pages.size(); i++) {
    if (flight.pages[i] == nullptr && flight.source_moment[i] <= moment_max) {
      flight.pages[i] = volatile_.materialise(flight.source_blocks[i]);
    }
  }
}

void SimDevice::read_sources_midway(uint64_t id) {
  auto found = flights_.find(id);
  if (found != flights_.end() && !powered_off_) read_sources(found->second, kMomentLast - 1);
}

void SimDevice::finish_copy(Flight& flight) {
  for (const uint64_t block : flight.source_blocks) {
    if (touches_bad(BlockRange{block, 1}, false)) flight.fault = SimFault::kPartial;
  }
  read_sources(flight, kMomentLast);
  const uint64_t count = flight.range.count;
  Effect effect;
  effect.start = flight.range.start;
  effect.pages = flight.pages;
  uint64_t good = count;
  Result<> result;
  if (flight.fault == SimFault::kError) {
    good = 0;
    tear(&effect, random_);
    result = fail(Code::kIo, "copy");
  } else if (flight.fault == SimFault::kPartial) {
    good = copy_good_blocks(flight);
    effect.present.assign(count, true);
    for (uint64_t i = good; i < count; i++) effect.present[i] = random_.below(2) == 0;
    result = fail(Code::kIo, "copy ended early");
  }
  for (uint64_t i = 0; i < good; i++) {
    damaged_.erase(flight.range.start + i);
    bad_blocks_.erase(flight.range.start + i);
  }
  if (flight.fault == SimFault::kSilentWrong) garble_copy(flight, &effect);
  apply(std::move(effect));
  counters_.blocks_copied += good;
  reply(flight, std::move(result), good);
}

// How far a copy gets that fails on the way: up to its first bad source, or anywhere.
uint64_t SimDevice::copy_good_blocks(const Flight& flight) {
  for (size_t i = 0; i < flight.source_blocks.size(); i++) {
    if (touches_bad(BlockRange{flight.source_blocks[i], 1}, false)) return i;
  }
  return random_.below(flight.range.count);
}

void SimDevice::garble_copy(const Flight& flight, Effect* effect) {
  const uint64_t count = flight.range.count;
  effect->present.assign(count, true);
  const uint64_t from = random_.below(count);
  switch (random_.below(4)) {
    case 0: effect->present.assign(count, false); break;
    case 1: effect->pages[from] = make_random_page(random_.next()); break;
    case 2:
      for (uint64_t i = from; i < count; i++) effect->present[i] = false;
      break;
    case 3:
      std::rotate(effect->pages.begin(), effect->pages.begin() + 1, effect->pages.end());
      if (count == 1) effect->present[0] = false;
      break;
    default: break;
  }
  for (uint64_t i = 0; i < count; i++) {
    const SimPageRef lands = effect->present[i] ? effect->pages[i]
                                                : volatile_.materialise(flight.range.start + i);
    if (lands->bytes != flight.pages[i]->bytes) damaged_.insert(flight.range.start + i);
  }
}

void SimDevice::time_out(uint64_t id) {
  Flight& flight = flights_.at(id);
  const uint64_t timeout_ns = flight.request->timeout_ns;
  flight.events.clear();
  if (!flight.valid || powered_off_) {
    complete(id);
    return;
  }
  late_ranges_.push_back(flight.range);
  // One in four is lost for good, unless a crash finds it half done.
  if (random_.below(4) != 0) {
    const uint64_t due_ns = world_.clock.monotonic_ns() + 1 + random_.below(timeout_ns * 10);
    flight.events.push_back(world_.clock.schedule(due_ns, [this, id] { land_late(id); }));
  }
  reply(flight, fail(Code::kTimedOut, "copy"), 0);
}

void SimDevice::land_late(uint64_t id) {
  auto node = flights_.extract(id);
  COFS_ASSERT(!node.empty());
  if (powered_off_) return;
  Flight& flight = node.mapped();
  read_sources(flight, kMomentLast);
  Effect effect;
  effect.start = flight.range.start;
  effect.pages = std::move(flight.pages);
  if (random_.below(2) == 0) tear(&effect, random_);
  apply(std::move(effect));
}

}  // namespace cofs
