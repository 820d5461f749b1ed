// When garbage collection runs, and who waits for it.
//
// In the background, while nobody wants anything, if room is less than a share of the volume. Below a
// lower share writers pay: a block written owes a block won, which takes u / (1 - u) blocks of moving
// (u: the share of the victim that lives), and who finds a whole unit of work due does it before it goes
// on. A reservation that finds no room at all has victims emptied until it fits or nothing gains.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kIdleShare = 5;   // below 1/5 of the volume, idle time is used
constexpr uint64_t kPacedShare = 16; // below 1/16, writers pay
constexpr uint64_t kBackgroundNs = 1'000'000'000;
constexpr uint64_t kAggressiveNs = 100'000'000;
constexpr uint64_t kOpenStreamsMax = 3;   // data, survivors twice: what they hold is counted elsewhere
constexpr uint64_t kVictimsPerRoom = 64;  // emptied at once before the one who waits looks again
constexpr uint64_t kDebtUnitMax = 1024;   // blocks moved by one who pays
constexpr uint64_t kDebtMax = 16'384;     // blocks to be won

}  // namespace

// --- Figures -----------------------------------------------------------------------------------

// Sealed segments that hold file data, or held some.
uint64_t Store::Impl::data_segments() const {
  const uint64_t others = segments.free_count() + segments.node_segments() + log_chain.size() +
                          kOpenStreamsMax + 1;  // and that of the middle superblock
  return geometry.segment_count > others ? geometry.segment_count - others : 0;
}

uint64_t Store::Impl::gc_winnable_blocks() const {
  if (!gc_on()) return 0;
  const uint64_t segments_won =
      gc_winnable_segments(geometry.segment_blocks, data_segments(), live_data_blocks);
  const uint64_t skipped = std::min<uint64_t>(segments_won, gc.skips.size());
  return (segments_won - skipped) * (geometry.segment_blocks - segment_overhead());
}

bool Store::Impl::gc_room_below(uint64_t share) const {
  const uint64_t all = geometry.segment_count * geometry.segment_blocks;
  return room(SpaceClass::kUser) < static_cast<int64_t>(all / share);
}

// --- Who waits ---------------------------------------------------------------------------------

// Bounds that only a commit or a checkpoint can restore.
Task<Result<>> Store::Impl::keep_bounds() {
  while (tree.dirty_nodes() >= dirty_nodes_limit() || log_over_limit(2)) {
    auto done = co_await store->checkpoint();
    COFS_CO_TRY(done);
  }
  co_return Result<>();
}

// A writer's share: at most one unit of work.
Task<Result<>> Store::Impl::gc_pay(uint64_t data_blocks) {
  if (!gc_on() || data_blocks == 0) co_return Result<>();
  if (options.gc != GcMode::kAggressive && !gc_room_below(kPacedShare)) {
    gc.debt_blocks = 0;
    co_return Result<>();
  }
  gc.debt_blocks = std::min(gc.debt_blocks + data_blocks, kDebtMax);
  const uint64_t unit =
      std::min<uint64_t>(kDebtUnitMax, std::max<uint64_t>(geometry.segment_blocks / 2, 1));
  const auto due = [this, unit] { return gc.debt_blocks * gc.moves_per_won_256 / 256 >= unit; };
  if (!due()) co_return Result<>();
  auto guard = co_await gc.lock.lock();
  if (!due()) co_return Result<>();  // others have paid meanwhile
  const uint64_t moved_before = counters.gc_relocated_bytes;
  auto step = co_await gc_step(GcUrgency::kPaced);
  if (!step && shut_down) co_return fail(step.error());
  const uint64_t moved = blocks_of_bytes(counters.gc_relocated_bytes - moved_before);
  gc.debt_blocks -= std::min(gc.debt_blocks, moved * 256 / gc.moves_per_won_256);
  if (!step || *step == GcStep::kNothing || *step == GcStep::kNoRoom) gc.debt_blocks = 0;
  if (segments.held_count() > segments.usable_count()) kick_background();
  co_return Result<>();
}

// What is left in the open segments of survivors: room that was won, but for garbage collection only.
int64_t Store::Impl::gc_stream_room() const {
  return int64_t{stream_room(streams[static_cast<size_t>(ondisk::Stream::kGcWarm)], 2)} +
         int64_t{stream_room(streams[static_cast<size_t>(ondisk::Stream::kGcCold)], 2)};
}

// Empties victims until so many blocks can be had, or nothing gains. False: nothing was won.
Task<Result<bool>> Store::Impl::gc_make_room(uint64_t blocks, SpaceClass space_class) {
  auto guard = co_await gc.lock.lock();
  const int64_t before = room(space_class);
  const auto wanted = static_cast<int64_t>(blocks);
  if (before >= wanted) co_return true;
  const int64_t ours_before = gc_stream_room();
  const uint64_t won_before = gc.won_blocks;
  bool rested = false;  // nothing was moved since the last checkpoint
  for (uint64_t victims = 0; victims < kVictimsPerRoom;) {
    // A segment opened for survivors takes room until it is full.
    const int64_t won = static_cast<int64_t>(gc.won_blocks - won_before);
    if (before + won - (gc_stream_room() - ours_before) >= wanted) break;
    auto step = co_await gc_step(GcUrgency::kUrgent);
    if (!step && shut_down) co_return fail(step.error());
    if (!step || *step == GcStep::kNothing) break;
    if (*step == GcStep::kFreed || *step == GcStep::kSkipped) victims++;
    if (*step != GcStep::kNoRoom) {
      rested = false;
      continue;
    }
    if (rested) break;
    auto done = co_await store->checkpoint();
    COFS_CO_TRY(done);
    co_await wait_for_readers();
    co_await wait_for_discards();
    rested = true;
    if (room(space_class) >= wanted) co_return true;
  }
  auto done = co_await store->checkpoint();
  COFS_CO_TRY(done);
  co_await wait_for_readers();
  co_await wait_for_discards();
  co_return gc.won_blocks > won_before || room(space_class) >= wanted;
}

// --- In the background -------------------------------------------------------------------------

void Store::Impl::kick_gc() {
  if (gc.asleep) env.clock.cancel(gc.timer);
}

Task<> Store::Impl::stop_gc() {
  kick_gc();
  auto guard = co_await gc.lock.lock();
}

Task<> Store::Impl::gc_background() {
  const bool aggressive = options.gc == GcMode::kAggressive;
  uint64_t seen = gc.foreground;
  while (!stopping && !shut_down) {
    gc.timer.due_ns = env.clock.monotonic_ns() + (aggressive ? kAggressiveNs : kBackgroundNs);
    gc.asleep = true;
    co_await sleep_until(env.clock, gc.timer);
    gc.asleep = false;
    const uint64_t since = std::exchange(seen, gc.foreground);
    while (!stopping && !shut_down) {
      const bool scarce = aggressive || gc_room_below(kPacedShare);
      const bool idle = gc.foreground == since;
      if (!aggressive && !(idle && gc_room_below(kIdleShare))) break;  // those who write pay
      auto guard = co_await gc.lock.lock();  // anew for each unit: writers who pay get in between
      auto step = co_await gc_step(scarce ? GcUrgency::kPaced : GcUrgency::kIdle);
      if (!step || *step == GcStep::kNothing || *step == GcStep::kNoRoom) break;
    }
    if (gc_room_below(kPacedShare) && segments.held_count() > segments.usable_count()) {
      kick_background();
    }
  }
  tasks_running--;
  task_done.notify_all();
}

}  // namespace cofs
