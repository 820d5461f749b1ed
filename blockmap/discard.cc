// Telling the device what is free: segments that were freed, in batches, and all free space on request.
//
// A freed segment that nothing can need any more waits in discard_queue, set aside from use; at most
// kDiscardsMax workers take the lowest ones, neighbours in one request. Nobody waits for the device: who
// needs room takes what is still queued as it is, and only what has begun must end. A trim lends itself
// free segments, a few of those that nobody was promised at a time, so that writers find the others
// meanwhile; on a full volume one of those that deletion and garbage collection have to themselves.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kDiscardsMax = 2;  // requests under way for freed segments
constexpr uint64_t kDiscardBlocksMax = blocks_of_bytes(256ULL << 20);  // in one request
constexpr uint64_t kTrimShare = 16;   // of the spare segments are lent at once

}  // namespace

uint64_t Store::Impl::discard_segments_max() const {
  return std::max<uint64_t>(kDiscardBlocksMax / geometry.segment_blocks, 1);
}

// Segments that nothing can need any more: discarded, if the device can, then usable again.
void Store::Impl::release_segments() {
  HoldProgress progress;
  progress.durable_commit = durable_commit;
  progress.checkpoint_commit = volume.commit;
  progress.checkpoint = volume.sequence;
  if (!readers.empty()) progress.oldest_reader = *readers.begin();
  const std::vector<uint64_t> released = segments.release_held(progress);
  counters.segments_freed += released.size();
  if (!options.discard || !env.device.geometry().can_discard || shut_down) {
    for (uint64_t segment : released) segments.add_usable(segment);
    return;
  }
  if (discard_waiters != 0 || stopping) {  // they are wanted as they are
    for (uint64_t segment : released) segments.add_usable(segment);
    return;
  }
  discard_queue.insert(released.begin(), released.end());
  for (uint64_t n = discard_queue.size(); n > 0 && discard_workers < kDiscardsMax; n--) {
    discard_workers++;
    tasks_running++;
    spawn(env.executor, discard_queued());
  }
}

Task<> Store::Impl::discard_queued() {
  while (!discard_queue.empty()) {
    const uint64_t first = *discard_queue.begin();
    uint64_t count = 0;
    while (count < discard_segments_max() && discard_queue.erase(first + count) != 0) count++;
    if (!shut_down && !stopping) {
      discards_running++;
      auto discarded = co_await discard_run(first, count);
      (void)discarded;  // it would only have saved space
      discards_running--;
    }
    for (uint64_t i = 0; i < count; i++) segments.add_usable(first + i);
    task_done.notify_all();
  }
  discard_workers--;
  tasks_running--;
  task_done.notify_all();
}

Task<Result<>> Store::Impl::discard_run(uint64_t first, uint64_t count) {
  BlockRange range;
  range.start = geometry.block_of_segment(first);
  range.count = count * geometry.segment_blocks;
  auto discarded = co_await env.device.discard(range);
  if (discarded) counters.discarded_bytes += bytes_of_blocks(range.count);
  co_return discarded;
}

// Somebody needs room: what was not begun is used as it is, and nothing begins before what has begun is over.
Task<> Store::Impl::wait_for_discards() {
  for (uint64_t segment : discard_queue) segments.add_usable(segment);
  discard_queue.clear();
  discard_waiters++;
  while (discards_running != 0) co_await task_done.wait();
  discard_waiters--;
  task_done.notify_all();
}

// Discards what is free of [from, end), a run of free segments, as long as it is; returns the blocks.
Task<Result<uint64_t>> Store::Impl::trim_run(uint64_t from, uint64_t end, BlockRange within) {
  uint64_t trimmed = 0;
  while (from < end) {
    while (discard_waiters != 0 && !stopping) co_await task_done.wait();
    if (stopping || shut_down) co_return fail(Code::kShutdown, "trim");
    if (room(SpaceClass::kGc) < int64_t{geometry.segment_blocks}) break;  // all is promised
    const uint64_t share =
        std::max<uint64_t>(spare_blocks() / geometry.segment_blocks / kTrimShare, 1);
    const uint64_t wanted = std::min({end - from, share, discard_segments_max()});
    auto lent = co_await segments.borrow_run(from, wanted);
    COFS_CO_TRY(lent);
    if (*lent == 0) {  // somebody uses it by now
      from++;
      continue;
    }
    BlockRange range;
    range.start = std::max(geometry.block_of_segment(from), within.start);
    const uint64_t range_end = std::min(geometry.block_of_segment(from + *lent), within.end());
    range.count = range_end > range.start ? range_end - range.start : 0;
    discards_running++;
    tasks_running++;
    Result<> discarded;
    if (range.count != 0) discarded = co_await env.device.discard(range);
    for (uint64_t i = 0; i < *lent; i++) segments.add_usable(from + i);
    discards_running--;
    tasks_running--;
    task_done.notify_all();
    COFS_CO_TRY(discarded);
    counters.discarded_bytes += bytes_of_blocks(range.count);
    counters.trimmed_bytes += bytes_of_blocks(range.count);
    trimmed += range.count;
    from += *lent;
  }
  co_return trimmed;
}

Task<Result<uint64_t>> Store::trim(BlockRange range, uint64_t blocks_min) {
  Impl& store = *impl_;
  auto writable = store.check_writable();
  COFS_CO_TRY(writable);
  if (!store.env.device.geometry().can_discard) {
    co_return fail(Code::kNotSupported, "the device can not discard");
  }
  const Geometry& geometry = store.geometry;
  if (range.start >= geometry.block_count) co_return fail(Code::kInvalid, "trim", range.start);
  range.count = std::min(range.count, geometry.block_count - range.start);
  uint64_t trimmed = 0;
  uint64_t segment = range.start <= geometry.first_segment_block
                         ? 0
                         : (range.start - geometry.first_segment_block) / geometry.segment_blocks;
  while (segment < geometry.segment_count && geometry.block_of_segment(segment) < range.end()) {
    auto run = co_await store.segments.find_free_run(segment);
    COFS_CO_TRY(run);
    if (run->count == 0 || geometry.block_of_segment(run->start) >= range.end()) break;
    const uint64_t start = std::max(geometry.block_of_segment(run->start), range.start);
    const uint64_t end = std::min(geometry.block_of_segment(run->end()), range.end());
    const uint64_t segments_end =
        std::min(run->end(), (end - geometry.first_segment_block + geometry.segment_blocks - 1) /
                                 geometry.segment_blocks);
    if (end > start && end - start >= blocks_min) {
      auto done = co_await store.trim_run(run->start, segments_end, range);
      COFS_CO_TRY(done);
      trimmed += *done;
    }
    segment = run->end();
    store.segments.trim();
  }
  co_return trimmed;
}

}  // namespace cofs
