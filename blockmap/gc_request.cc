// Garbage collection because somebody asked for it: the same units of work as always, one after the
// other, as far as the request goes. It needs no GcMode: where nothing is collected otherwise there is no
// reserve for it either, and gc_has_room() counts with what users may have.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

// One unit, and what came of it. gc.lock is held for that long only.
Task<Result<GcStep>> collect_unit(Store::Impl* store, GcUrgency urgency, GcReport* report) {
  auto guard = co_await store->gc.lock.lock();
  const StoreCounters before = store->counters;
  const uint64_t won_before = store->gc.won_blocks;
  auto step = co_await store->gc_step(urgency);
  const StoreCounters& after = store->counters;
  report->victims += after.gc_segments_freed - before.gc_segments_freed;
  report->moved_blocks += blocks_of_bytes(after.gc_relocated_bytes - before.gc_relocated_bytes);
  report->device_blocks += blocks_of_bytes(after.gc_device_bytes - before.gc_device_bytes);
  report->host_blocks += blocks_of_bytes(after.gc_host_bytes - before.gc_host_bytes);
  report->won_blocks += store->gc.won_blocks - won_before;
  co_return step;
}

}  // namespace

Task<Result<GcReport>> Store::collect_garbage(GcRequest request) {
  Impl& store = *impl_;
  GcReport report;
  const uint64_t victims_max = std::min(request.victims_max, 2 * store.geometry.segment_count);
  const GcUrgency urgency = request.urgent ? GcUrgency::kUrgent : GcUrgency::kPaced;
  bool rested = false;  // nothing was moved since the last checkpoint
  while (true) {
    if (report.victims >= victims_max || (request.proceed && !request.proceed(report))) {
      report.end = GcEnd::kAsRequested;
      break;
    }
    auto step = co_await collect_unit(&store, urgency, &report);
    COFS_CO_TRY(step);
    if (*step == GcStep::kNothing) break;
    if (*step != GcStep::kNoRoom) {
      rested = false;
      continue;
    }
    if (rested) {
      report.end = GcEnd::kNoRoom;
      break;
    }
    auto done = co_await checkpoint();
    COFS_CO_TRY(done);
    co_await store.wait_for_readers();
    co_await store.wait_for_discards();
    rested = true;
  }
  co_return report;
}

}  // namespace cofs
