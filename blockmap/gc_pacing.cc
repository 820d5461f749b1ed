// When garbage collection runs, and who waits for it.
//
// One task does the work, a unit at a time; writers wait for what it wins, in proportion to what they
// write. Three levels of room. Above a fifth of the volume nothing runs; below it idle time is used.
// Below the low-water mark each block that is written owes blocks to be won, more of them the less room there is:
// none at the mark, one at half of it, so that a steady load comes to rest there. A writer whose debt is
// not paid by credit waits until it is, or a twentieth of a second: first come, first served, each woken by
// itself. A reservation that finds no room at all has victims emptied until it fits or nothing gains.
//
// What was won can be used when a commit or two have made it so; the work starts them in time.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kIdleShare = 5;           // below 1/5 of the volume, idle time is used
constexpr uint64_t kLowWaterShare = 64;      // below 1/64, writers pay
constexpr uint64_t kLowWaterSegments = 8;    // or below so many segments,
constexpr uint64_t kLowWaterShareMax = 8;    // but not above 1/8
constexpr uint64_t kOwedPerBlockMax256 = 2 * 256;
constexpr uint64_t kCreditBlocks = 256;      // owed before anybody waits
constexpr uint64_t kDebtBlocksMax = 16'384;  // what is owed beyond is forgotten: the room says it anew
constexpr uint64_t kPayNsMax = 50'000'000;
constexpr uint64_t kBackgroundNs = 1'000'000'000;
constexpr uint64_t kAggressiveNs = 100'000'000;
constexpr uint64_t kOpenStreamsMax = 3;   // data, survivors twice: what they hold is counted elsewhere
constexpr uint64_t kPendingBytesMax = 8ULL << 20;  // of log records in memory
constexpr uint64_t kVictimsPerRoom = 16;  // emptied at once before the one who waits looks again
constexpr uint64_t kHeldPerRoom = 4;      // a commit is due when this much of what is had waits for one
constexpr int kCommitsPerRelease = 2;     // the second one makes usable what the first one freed

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

uint64_t Store::Impl::volume_blocks() const {
  return geometry.segment_count * geometry.segment_blocks;
}

// Room as writers will find it soon: what only waits for a commit counts.
int64_t Store::Impl::gc_room() const {
  return room(SpaceClass::kUser) +
         static_cast<int64_t>(segments.held_count() * geometry.segment_blocks);
}

// How many blocks are to be won for one that is written, in 256ths.
uint64_t Store::Impl::gc_owed_per_block_256() const {
  const auto low = static_cast<int64_t>(
      std::min(std::max(volume_blocks() / kLowWaterShare, kLowWaterSegments * geometry.segment_blocks),
               volume_blocks() / kLowWaterShareMax));
  const int64_t have = gc_room();
  if (have >= low) return 0;
  return std::min(static_cast<uint64_t>(low - have) * 2 * 256 / static_cast<uint64_t>(low),
                  kOwedPerBlockMax256);
}

// --- Who waits ---------------------------------------------------------------------------------

// Bounds that only a commit or a checkpoint can restore.
Task<Result<>> Store::Impl::keep_bounds() {
  while (true) {
    if (checkpointing && over_changed_nodes() && !shut_down) {  // the next one must not begin for this
      auto stalled = check_stall();
      COFS_CO_TRY(stalled);
      counters.checkpoint_waits++;
      co_await checkpoint_done.wait();
    } else if (tree.dirty_nodes() >= dirty_nodes_limit() || log_over_limit(2)) {
      counters.checkpoint_waits++;
      auto done = co_await store->checkpoint();
      COFS_CO_TRY(done);
    } else if (pending_records.size() > kPendingBytesMax) {
      auto done = co_await store->commit();
      COFS_CO_TRY(done);
    } else {
      break;
    }
  }
  // Before that: the next one who comes here should not have to wait.
  const bool checkpoint_soon = tree.dirty_nodes() * 2 > dirty_nodes_limit() && !checkpointing;
  const bool commit_soon = pending_records.size() * 2 > kPendingBytesMax && !committing;
  if (checkpoint_soon || commit_soon) kick_background();
  co_return Result<>();
}

Task<> Store::pace(uint64_t data_blocks) {
  Impl& store = *impl_;
  GcState& gc = store.gc;
  if (data_blocks == 0 || !store.gc_on() || store.stopping || store.shut_down) co_return;
  store.gc_release_soon();
  const uint64_t per_block = store.gc_owed_per_block_256();
  if (per_block == 0) {
    store.gc_forgive();
    co_return;
  }
  gc.owed_256 = std::min(gc.owed_256 + data_blocks * per_block, gc.paid_256 + kDebtBlocksMax * 256);
  store.gc_start_work();
  // All that is owed up to here, but for the credit: those who wait already come first.
  const uint64_t due = gc.owed_256 - std::min(gc.owed_256, kCreditBlocks * 256);
  if (gc.paid_256 >= due) co_return;
  TimerRequest timer;
  timer.due_ns = store.env.clock.monotonic_ns() + kPayNsMax;
  const auto place = gc.payers.emplace(due, &timer);
  store.counters.gc_waits++;
  co_await sleep_until(store.env.clock, timer);
  gc.payers.erase(place);
  if (gc.payers.empty()) store.task_done.notify_all();
}

// Wakes those whose debt is paid.
void Store::Impl::gc_wake_payers() {
  for (auto& [due, timer] : gc.payers) {
    if (due > gc.paid_256) break;
    env.clock.cancel(*timer);
  }
}

void Store::Impl::gc_forgive() {
  gc.paid_256 = std::max(gc.paid_256, gc.owed_256);
  gc.owed_256 = gc.paid_256;
  gc_wake_payers();
}

void Store::Impl::gc_start_work() {
  if (gc.working || gc.paid_256 >= gc.owed_256) return;
  gc.working = true;
  tasks_running++;
  spawn(env.executor, gc_work_off());
}

// Works until nothing is owed.
Task<> Store::Impl::gc_work_off() {
  bool rested = false;  // nothing was moved since what is held was released
  while (!stopping && !shut_down && gc.paid_256 < gc.owed_256 && gc_owed_per_block_256() != 0) {
    auto guard = co_await gc.lock.lock();
    auto step = co_await gc_step(GcUrgency::kPaced);
    guard.release();
    if (!step || *step == GcStep::kNothing || (*step == GcStep::kNoRoom && rested)) break;
    rested = *step == GcStep::kNoRoom;
    if (rested) {
      auto released = co_await gc_release_held();
      if (!released) break;
    }
    gc_wake_payers();
  }
  // Nothing is owed, or nothing can be had.
  gc_forgive();
  gc.working = false;
  tasks_running--;
  task_done.notify_all();
}

// --- What was won becomes usable ---------------------------------------------------------------

bool Store::Impl::gc_release_due() const {
  if (segments.waits_for_readers()) return false;  // no commit would free them
  const uint64_t held = segments.held_count() * geometry.segment_blocks;
  const int64_t have = std::max<int64_t>(room(SpaceClass::kUser), 0);
  return held != 0 && held * kHeldPerRoom >= static_cast<uint64_t>(have);
}

// Commits in the background, once what waits for them is much of what there is.
void Store::Impl::gc_release_soon() {
  if (gc.releasing || stopping || shut_down || !check_stall() || !gc_release_due()) return;
  gc.releasing = true;
  tasks_running++;
  const auto release = [](Impl* impl) -> Task<> {
    for (int commits = 0; commits < kCommitsPerRelease && impl->gc_release_due(); commits++) {
      auto done = co_await impl->store->commit();
      if (!done) break;  // it has been reported
    }
    impl->gc.releasing = false;
    impl->tasks_running--;
    impl->task_done.notify_all();
  };
  spawn(env.executor, release(this));
}

// Makes usable all that is held, whatever it waits for.
Task<Result<>> Store::Impl::gc_release_held() {
  auto done = co_await store->checkpoint();
  COFS_CO_TRY(done);
  co_await wait_for_readers();
  co_await wait_for_discards();
  co_return Result<>();
}

// What is left in the open segments of survivors: room that was won, but for garbage collection only.
int64_t Store::Impl::gc_stream_room() const {
  return int64_t{stream_room(streams[static_cast<size_t>(ondisk::Stream::kGcWarm)], 2)} +
         int64_t{stream_room(streams[static_cast<size_t>(ondisk::Stream::kGcCold)], 2)};
}

// Makes so many blocks usable: what is held, if commits do; else victims are emptied until it fits, or
// nothing gains. False: nothing was won.
Task<Result<bool>> Store::Impl::gc_make_room(uint64_t blocks, SpaceClass space_class) {
  auto stalled = check_stall();
  COFS_CO_TRY(stalled);
  auto guard = co_await gc.lock.lock();
  const auto wanted = static_cast<int64_t>(blocks);
  const auto fits = [this, wanted, space_class] { return room(space_class) >= wanted; };
  for (int commits = 0; commits < kCommitsPerRelease && !fits() && segments.held_count() != 0; commits++) {
    auto done = co_await store->commit();
    COFS_CO_TRY(done);
    co_await wait_for_discards();
  }
  if (fits()) co_return true;
  const int64_t before = room(space_class);
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
    auto done = co_await gc_release_held();
    COFS_CO_TRY(done);
    rested = true;
    if (fits()) co_return true;
  }
  for (int commits = 0; commits < kCommitsPerRelease && !fits() && segments.held_count() != 0; commits++) {
    auto done = co_await store->commit();
    COFS_CO_TRY(done);
    co_await wait_for_discards();
  }
  if (!fits()) {
    auto done = co_await gc_release_held();
    COFS_CO_TRY(done);
  }
  co_return gc.won_blocks > won_before || fits();
}

// --- In the background -------------------------------------------------------------------------

void Store::Impl::kick_gc() {
  if (gc.asleep) env.clock.cancel(gc.timer);
}

Task<> Store::Impl::stop_gc() {
  kick_gc();
  gc_forgive();
  while (!gc.payers.empty()) co_await task_done.wait();
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
      const bool scarce = aggressive || gc_owed_per_block_256() != 0;
      const bool idle = gc.foreground == since &&
                        gc_room() < static_cast<int64_t>(volume_blocks() / kIdleShare);
      if (!aggressive && !idle) break;  // those who write have it done
      auto guard = co_await gc.lock.lock();  // anew for each unit: others get in between
      auto step = co_await gc_step(scarce ? GcUrgency::kPaced : GcUrgency::kIdle);
      if (!step || *step == GcStep::kNothing || *step == GcStep::kNoRoom) break;
    }
  }
  tasks_running--;
  task_done.notify_all();
}

}  // namespace cofs
