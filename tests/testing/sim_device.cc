#include "tests/testing/sim_device.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

namespace cofs {
namespace {

bool overlap(BlockRange a, BlockRange b) { return a.start < b.end() && b.start < a.end(); }

bool changes_blocks(IoRequest::Op op) {
  return op == IoRequest::Op::kWrite || op == IoRequest::Op::kDiscard ||
         op == IoRequest::Op::kCopy;
}

[[noreturn]] void abort_because(const char* rule, BlockRange range, BlockRange other) {
  std::fprintf(stderr, "simulated device: %s: blocks %llu+%llu, against %llu+%llu\n", rule,
               static_cast<unsigned long long>(range.start),
               static_cast<unsigned long long>(range.count),
               static_cast<unsigned long long>(other.start),
               static_cast<unsigned long long>(other.count));
  assertion_failed(rule, __FILE__, __LINE__);
}

}  // namespace

SimDevice::SimDevice(SimWorld& world, SimImage image, SimDeviceOptions options)
    : world_(world),
      options_(std::move(options)),
      random_(mix64(mix64(world.seed, 4), options_.seed)),
      durable_(image),
      volatile_(std::move(image)) {
  geometry_.name = options_.name;
  geometry_.block_count = durable_.block_count();
  geometry_.lba_bytes = kSimSectorBytes;
  geometry_.is_block_device = options_.is_block_device;
  geometry_.can_discard = options_.can_discard;
  geometry_.discard_granularity_blocks = options_.discard_granularity_blocks;
  geometry_.copies = options_.copies;
  geometry_.copy_refusals = options_.copy_refusals;
}

SimDevice::~SimDevice() {
  if (world_.clock.abandoned()) return;
  for (const auto& [id, flight] : flights_) {
    if (flight.request != nullptr) {
      abort_because("destroyed with a request in flight", flight.range, BlockRange());
    }
    for (const SimClock::EventId& event : flight.events) world_.clock.cancel(event);
  }
}

size_t SimDevice::in_flight() const {
  return static_cast<size_t>(std::ranges::count_if(
      flights_, [](const auto& entry) { return entry.second.request != nullptr; }));
}

void SimDevice::allow_changes(BlockRange range) { std::erase(immutable_, range); }

void SimDevice::submit(IoRequest& request) {
  check_request(request);
  counters_.operations[static_cast<size_t>(request.op)]++;
  const uint64_t id = next_id_++;
  Flight& flight = flights_[id];
  flight.id = id;
  flight.request = &request;
  flight.op = request.op;
  flight.range = request.range;
  flight.valid = request.op == Op::kFlush ||
                 (request.range.count <= geometry_.block_count &&
                  request.range.start <= geometry_.block_count - request.range.count);
  counters_.in_flight_max = std::max<uint64_t>(counters_.in_flight_max, in_flight());
  if (flight.valid && !powered_off_) {
    const bool counted = (options_.counted >> static_cast<unsigned>(request.op) & 1) != 0;
    if (counted) operation_count_++;
    flight.fault = draw_fault(request, counted);
    flight.flush_mark = next_sequence_;
    if (request.op == Op::kWrite) {
      for (const MemoryPiece& piece : request.memory) {
        for (uint32_t i = 0; i < piece.blocks; i++) {
          flight.pages.push_back(make_sim_page(piece.data + uint64_t{i} * kBlockBytes));
        }
      }
    }
    if (request.op == Op::kCopy) start_copy(flight, request);
    schedule(flight, request.timeout_ns);
    if (request.op == Op::kDiscard && options_.on_discard) options_.on_discard(request.range);
    if (counted && operation_count_ == power_off_at_) power_off_now();
  } else {
    schedule(flight, 0);
  }
}

void SimDevice::check_request(const IoRequest& request) const {
  COFS_ASSERT(request.waiter);
  if (request.op == Op::kRead || request.op == Op::kWrite) {
    uint64_t blocks = 0;
    for (const MemoryPiece& piece : request.memory) blocks += piece.blocks;
    COFS_ASSERT(blocks == request.range.count);
  }
  if (request.op == Op::kFlush) return;
  COFS_ASSERT(request.range.count != 0);
  // After a power cut the caller is unwinding: what it asks no longer matters.
  if (changes_blocks(request.op) && !powered_off_) check_no_conflict(request);
}

void SimDevice::check_no_conflict(const IoRequest& request) const {
  for (const auto& [id, flight] : flights_) {
    if (flight.request != nullptr && changes_blocks(flight.op) &&
        overlap(flight.range, request.range)) {
      abort_because("changes in flight overlap", request.range, flight.range);
    }
  }
  for (const BlockRange& range : immutable_) {
    if (overlap(range, request.range)) {
      abort_because("change of immutable blocks", request.range, range);
    }
  }
  if (!options_.guard_late_copies) return;
  for (const BlockRange& range : late_ranges_) {
    if (overlap(range, request.range)) {
      abort_because("change of blocks that a timed-out copy may still write", request.range, range);
    }
  }
}

uint64_t SimDevice::latency_ns(Op op, uint64_t blocks) {
  const SimLatency& latency = options_.latency;
  const uint64_t mean = op == Op::kFlush ? latency.flush_mean_ns : latency.mean_ns;
  return latency.min_ns + (mean != 0 ? random_.exponential(mean) : 0) + blocks * latency.block_ns;
}

void SimDevice::schedule(Flight& flight, uint64_t timeout_ns) {
  const uint64_t id = flight.id;
  const uint64_t now_ns = world_.clock.monotonic_ns();
  uint64_t duration_ns = latency_ns(flight.op, flight.range.count);
  if (flight.op == Op::kRead) {
    duration_ns = std::max(duration_ns, std::exchange(next_read_ns_, 0));
  }
  if (flight.op == Op::kWrite && operation_count_ >= slow_writes_.start &&
      operation_count_ < slow_writes_.end()) {
    duration_ns = std::max(duration_ns, slow_write_ns_);
  }
  if (flight.fault == SimFault::kSlow) duration_ns = std::max(duration_ns, timeout_ns / 4 * 3);
  if (flight.op == Op::kCopy && timeout_ns != 0 &&
      (flight.fault == SimFault::kTimeout || duration_ns > timeout_ns)) {
    flight.events.push_back(
        world_.clock.schedule(now_ns + timeout_ns, [this, id] { time_out(id); }));
    return;
  }
  if (flight.op == Op::kCopy && !powered_off_) {
    flight.events.push_back(world_.clock.schedule(
        now_ns + random_.below(duration_ns + 1), [this, id] { read_sources_midway(id); }));
  }
  flight.events.push_back(
      world_.clock.schedule(now_ns + duration_ns, [this, id] { complete(id); }));
}

void SimDevice::complete(uint64_t id) {
  auto node = flights_.extract(id);
  COFS_ASSERT(!node.empty());
  Flight& flight = node.mapped();
  if (!flight.valid) return reply(flight, fail(Code::kInvalid, "range off the device"), 0);
  if (powered_off_) return reply(flight, fail(Code::kIo, "power is off"), 0);
  switch (flight.op) {
    case Op::kRead: return finish_read(flight);
    case Op::kWrite: return finish_write(flight);
    case Op::kFlush: return finish_flush(flight);
    case Op::kDiscard: return finish_discard(flight);
    case Op::kCopy: return finish_copy(flight);
  }
}

void SimDevice::reply(Flight& flight, Result<> result, uint64_t good_blocks) {
  IoRequest* request = std::exchange(flight.request, nullptr);
  request->result = std::move(result);
  request->good_blocks = good_blocks;
  world_.executor.post(request->waiter);
}

void SimDevice::finish_read(Flight& flight) {
  const bool failed = flight.fault == SimFault::kError || touches_bad(flight.range, false);
  uint64_t block = flight.range.start;
  for (const MemoryPiece& piece : flight.request->memory) {
    for (uint32_t i = 0; i < piece.blocks; i++, block++) {
      std::byte* out = piece.data + uint64_t{i} * kBlockBytes;
      if (failed) {
        std::memset(out, 0xee, kBlockBytes);  // whoever uses it anyway will notice
      } else {
        volatile_.read(block, out);
      }
    }
  }
  if (failed) return reply(flight, fail(Code::kIo, "read", flight.range.start), 0);
  counters_.blocks_read += flight.range.count;
  reply(flight, Result<>(), 0);
}

void SimDevice::finish_write(Flight& flight) {
  size_t at = 0;
  for (const MemoryPiece& piece : flight.request->memory) {
    for (uint32_t i = 0; i < piece.blocks; i++, at++) {
      // The device may fetch the bytes at any time before it answers.
      COFS_ASSERT(std::memcmp(piece.data + uint64_t{i} * kBlockBytes,
                              flight.pages[at]->bytes.data(), kBlockBytes) == 0);
    }
  }
  Effect effect;
  effect.start = flight.range.start;
  effect.pages = std::move(flight.pages);
  if (flight.fault == SimFault::kError || touches_bad(flight.range, true)) {
    tear(&effect, random_);
    apply(std::move(effect));
    return reply(flight, fail(Code::kIo, "write", flight.range.start), 0);
  }
  counters_.blocks_written += flight.range.count;
  if (flight.fault == SimFault::kPhantom) {
    for (uint64_t i = 0; i < flight.range.count; i++) damaged_.insert(flight.range.start + i);
    return reply(flight, Result<>(), 0);
  }
  if (flight.fault == SimFault::kMisdirected) {
    const BlockRange wrong = misdirect_target(flight.range).value();
    for (uint64_t i = 0; i < flight.range.count; i++) {
      damaged_.insert(flight.range.start + i);
      damaged_.insert(wrong.start + i);
    }
    effect.start = wrong.start;
    apply(std::move(effect));
    return reply(flight, Result<>(), 0);
  }
  for (uint64_t i = 0; i < flight.range.count; i++) {
    damaged_.erase(flight.range.start + i);
    bad_blocks_.erase(flight.range.start + i);
  }
  apply(std::move(effect));
  if (flight.request->durable && flight.fault != SimFault::kLying) settle_last();
  if (random_.chance(options_.faults.bit_rot)) {
    const uint64_t block = flight.range.start + random_.below(flight.range.count);
    if (may_damage(BlockRange{block, 1})) corrupt(block, SimDamage::kBit, random_.next());
  }
  reply(flight, Result<>(), 0);
}

void SimDevice::finish_flush(Flight& flight) {
  if (flight.fault == SimFault::kError) return reply(flight, fail(Code::kIo, "flush"), 0);
  if (flight.fault != SimFault::kLying) {
    while (!pending_.empty() && pending_.front()->sequence < flight.flush_mark) {
      settle(*pending_.front());
      pending_.pop_front();
    }
  }
  reply(flight, Result<>(), 0);
}

void SimDevice::finish_discard(Flight& flight) {
  if (!options_.can_discard) return reply(flight, fail(Code::kNotSupported, "discard"), 0);
  if (flight.fault == SimFault::kError) {
    return reply(flight, fail(Code::kIo, "discard", flight.range.start), 0);
  }
  counters_.blocks_discarded += flight.range.count;
  if (flight.fault != SimFault::kPhantom) {
    Effect effect;
    effect.start = flight.range.start;
    effect.pages.resize(flight.range.count);
    for (uint64_t i = 0; i < flight.range.count; i++) damaged_.erase(flight.range.start + i);
    apply(std::move(effect));
  }
  reply(flight, Result<>(), 0);
}

bool SimDevice::touches_bad(BlockRange range, bool writing) const {
  for (auto at = bad_blocks_.lower_bound(range.start);
       at != bad_blocks_.end() && at->first < range.end(); ++at) {
    if (!writing || at->second) return true;
  }
  return false;
}

bool SimDevice::may_damage(BlockRange range) const {
  if (!options_.may_damage) return true;
  for (uint64_t block = range.start; block < range.end(); block++) {
    if (!options_.may_damage(block)) return false;
  }
  return true;
}

void SimDevice::apply(Effect effect) {
  effect.sequence = next_sequence_++;
  for (size_t i = 0; i < effect.pages.size(); i++) {
    if (effect.changes(i)) volatile_.set_page(effect.start + i, effect.pages[i]);
  }
  pending_.push_back(std::make_shared<Effect>(std::move(effect)));
}

// The effect applied last is durable, before others may be: what is older of its blocks can't come back.
void SimDevice::settle_last() {
  const EffectRef last = std::move(pending_.back());
  pending_.pop_back();
  settle(*last);
  const BlockRange range{last->start, last->pages.size()};
  for (EffectRef& older : pending_) {
    if (!overlap(range, BlockRange{older->start, older->pages.size()})) continue;
    Effect rest = *older;
    rest.present.resize(rest.pages.size(), older->present.empty());
    for (size_t i = 0; i < rest.pages.size(); i++) {
      const uint64_t block = rest.start + i;
      if (block >= range.start && block < range.end()) rest.present[i] = false;
    }
    older = std::make_shared<Effect>(std::move(rest));
  }
}

void SimDevice::settle(const Effect& effect) {
  for (size_t i = 0; i < effect.pages.size(); i++) {
    if (effect.changes(i)) durable_.set_page(effect.start + i, effect.pages[i]);
  }
}

}  // namespace cofs
