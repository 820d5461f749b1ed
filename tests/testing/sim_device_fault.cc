// What goes wrong in the simulated device: which operation fails and how, and what a power cut leaves.
#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

#include "tests/testing/sim_device.h"

namespace cofs {
namespace {

bool applies(SimFault fault, const IoRequest& request) {
  using Op = IoRequest::Op;
  const Op op = request.op;
  switch (fault) {
    case SimFault::kNone:
    case SimFault::kError: return true;
    case SimFault::kPhantom: return op == Op::kWrite || op == Op::kDiscard;
    case SimFault::kMisdirected: return op == Op::kWrite;
    case SimFault::kLying: return op == Op::kFlush || request.durable;
    case SimFault::kPartial:
    case SimFault::kTimeout:
    case SimFault::kSlow:
    case SimFault::kSilentWrong: return op == Op::kCopy;
  }
  return false;
}

bool damages(SimFault fault, IoRequest::Op op) {
  return fault == SimFault::kMisdirected || fault == SimFault::kSilentWrong ||
         (fault == SimFault::kPhantom && op == IoRequest::Op::kWrite);
}

}  // namespace

SimFault SimDevice::draw_fault(const IoRequest& request, bool counted) {
  SimFault fault = SimFault::kNone;
  const SimFaults& chances = options_.faults;
  const auto perhaps = [&](SimFault candidate, double probability) {
    if (random_.chance(probability)) fault = candidate;
  };
  switch (request.op) {
    case Op::kRead: perhaps(SimFault::kError, chances.read_error); break;
    case Op::kWrite:
      perhaps(SimFault::kPhantom, chances.phantom_write);
      perhaps(SimFault::kMisdirected, chances.misdirected_write);
      if (request.durable) perhaps(SimFault::kLying, chances.lying_flush);
      perhaps(SimFault::kError, chances.write_error);
      if (request.durable) perhaps(SimFault::kError, chances.flush_error);
      break;
    case Op::kFlush:
      perhaps(SimFault::kLying, chances.lying_flush);
      perhaps(SimFault::kError, chances.flush_error);
      break;
    case Op::kDiscard: perhaps(SimFault::kError, chances.discard_error); break;
    case Op::kCopy:
      perhaps(SimFault::kSilentWrong, chances.copy_silent_wrong);
      perhaps(SimFault::kTimeout, chances.copy_timeout);
      perhaps(SimFault::kSlow, chances.copy_slow);
      perhaps(SimFault::kPartial, chances.copy_partial);
      perhaps(SimFault::kError, chances.copy_error);
      break;
  }
  if (counted) {
    auto found = targeted_.find(operation_count_);
    if (found != targeted_.end() && applies(found->second, request)) fault = found->second;
  }
  if (is_refused(request, counted)) fault = SimFault::kError;
  if (damages(fault, request.op) && !may_damage(request.range)) return SimFault::kNone;
  if (fault == SimFault::kMisdirected && !misdirect_target(request.range)) return SimFault::kNone;
  return fault;
}

bool SimDevice::is_refused(const IoRequest& request, bool counted) {
  const uint64_t now_ns = world_.clock.monotonic_ns();
  if (counted && operation_count_ == refused_at_) refuse_writes(now_ns, now_ns + refused_for_ns_);
  if (request.op != Op::kWrite || now_ns < refused_from_ns_ || now_ns >= refused_until_ns_) return false;
  counters_.writes_refused++;
  return true;
}

// Where a misdirected write lands: the same length further on, as an address bit gone wrong would do.
std::optional<BlockRange> SimDevice::misdirect_target(BlockRange range) const {
  for (uint64_t distance = std::bit_ceil(range.count); distance < geometry_.block_count;
       distance *= 2) {
    const BlockRange wrong{range.start ^ distance, range.count};
    const bool apart = wrong.start >= range.end() || range.start >= wrong.end();
    if (apart && wrong.end() <= geometry_.block_count && may_damage(wrong)) return wrong;
  }
  return std::nullopt;
}

void SimDevice::corrupt(uint64_t block, SimDamage kind, uint64_t seed) {
  const SimPageRef page = damaged_page(*volatile_.materialise(block), kind, seed);
  volatile_.set_page(block, page);
  // It is the medium that rots: the change is not lost at a crash, nor undone by a flush.
  for (EffectRef& effect : pending_) {
    if (block < effect->start || block >= effect->start + effect->pages.size()) continue;
    auto changed = std::make_shared<Effect>(*effect);
    changed->pages[block - effect->start] = page;
    effect = std::move(changed);
  }
  durable_.set_page(block, page);
  damaged_.insert(block);
}

void SimDevice::power_off_now() {
  if (powered_off_) return;
  frozen_in_flight_ = in_flight_effects();
  powered_off_ = true;
}

std::vector<SimDevice::EffectRef> SimDevice::in_flight_effects() const {
  std::vector<EffectRef> effects;
  for (const auto& [id, flight] : flights_) {
    if (!flight.valid || flight.op == Op::kRead || flight.op == Op::kFlush) continue;
    auto effect = std::make_shared<Effect>();
    effect->start = flight.range.start;
    effect->pages = flight.pages;
    effect->pages.resize(flight.range.count);  // a discard has null pages
    for (size_t i = 0; i < flight.source_blocks.size(); i++) {
      if (effect->pages[i] == nullptr) {
        effect->pages[i] = volatile_.materialise(flight.source_blocks[i]);
      }
    }
    effects.push_back(std::move(effect));
  }
  return effects;
}

size_t SimDevice::unsettled_count() const {
  return pending_.size() + (powered_off_ ? frozen_in_flight_.size() : in_flight_effects().size());
}

// Leaves a random part of an effect: a run of sectors from its front, or any sectors.
void SimDevice::tear(Effect* effect, SimRandom& random) const {
  tear_over(volatile_, effect, random);
}

void SimDevice::tear_over(const SimImage& below, Effect* effect, SimRandom& random) {
  const uint64_t sectors = effect->pages.size() * kSimSectorsPerBlock;
  const bool from_front = random.below(2) == 0;
  const uint64_t front = random.below(sectors + 1);
  effect->present.resize(effect->pages.size(), true);
  for (size_t i = 0; i < effect->pages.size(); i++) {
    uint64_t mask = random.below(4) == 0 ? random.next() : random.below(2) * 0xff;
    if (from_front) {
      const uint64_t first = i * kSimSectorsPerBlock;
      const uint64_t kept = front <= first ? 0 : std::min<uint64_t>(front - first, 8);
      mask = (uint64_t{1} << kept) - 1;
    }
    mask &= 0xff;
    if (mask == 0 || (effect->pages[i] == nullptr && mask != 0xff)) {
      effect->present[i] = false;  // a discard happens to a whole block or not at all
    } else if (mask != 0xff) {
      effect->pages[i] = torn_page(*below.materialise(effect->start + i), *effect->pages[i],
                                   static_cast<uint8_t>(mask));
    }
  }
}

SimImage SimDevice::crash_image(uint64_t seed, CrashMode mode) const {
  SimImage image = durable_;
  if (mode == CrashMode::kDropAll) return image;
  const auto keep = [&image](const Effect& effect) {
    for (size_t i = 0; i < effect.pages.size(); i++) {
      if (effect.changes(i)) image.set_page(effect.start + i, effect.pages[i]);
    }
  };
  std::vector<EffectRef> effects(pending_.begin(), pending_.end());
  if (mode != CrashMode::kKeepCompleted) {
    const std::vector<EffectRef> in_flight =
        powered_off_ ? frozen_in_flight_ : in_flight_effects();
    effects.insert(effects.end(), in_flight.begin(), in_flight.end());
  }
  if (mode != CrashMode::kRandom) {
    for (const EffectRef& effect : effects) keep(*effect);
    return image;
  }
  if (effects.empty()) return image;

  SimRandom random(mix64(seed, 0x637261736821));
  const auto keep_torn = [&](const Effect& effect) {
    Effect part = effect;
    tear_over(image, &part, random);
    keep(part);
  };
  const size_t count = effects.size();
  const size_t chosen = random.below(count);
  switch (random.below(6)) {
    case 0:  // in order up to one, which is torn
      for (size_t i = 0; i < chosen; i++) keep(*effects[i]);
      keep_torn(*effects[chosen]);
      return image;
    case 1:  // all but one
      for (size_t i = 0; i < count; i++) {
        if (i != chosen) keep(*effects[i]);
      }
      return image;
    case 2:  // only one
      keep(*effects[chosen]);
      return image;
    default: break;
  }
  // Each by itself, in any order, with one inclination for all.
  for (size_t i = count; i > 1; i--) std::swap(effects[i - 1], effects[random.below(i)]);
  const uint64_t keep_percent = random.below(101);
  for (const EffectRef& effect : effects) {
    if (random.below(100) < keep_percent) {
      keep(*effect);
    } else if (random.below(2) == 0) {
      keep_torn(*effect);
    }
  }
  return image;
}

}  // namespace cofs
