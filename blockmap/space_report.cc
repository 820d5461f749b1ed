// What every block of the device is, and what the room among them is for.
//
// Two sums that are exact at any time: the classes add up to the device, the parts of the room to the room.
// Room is what can be written now or once somebody waits for it: free segments, held ones included, the
// rest of the open data segment, and what garbage collection can win.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

// Takes up to `wanted` out of `left`.
uint64_t take(uint64_t& left, uint64_t wanted) {
  const uint64_t taken = std::min(left, wanted);
  left -= taken;
  return taken;
}

}  // namespace

SpaceReport Store::space() const {
  const Impl& store = *impl_;
  const Geometry& geometry = store.geometry;
  SpaceReport report;
  report.segment_count = geometry.segment_count;
  report.inode_count = store.inode_count;
  report.shared_blocks = store.shared_blocks;
  report.extra_references = store.extra_references;
  report.free_segments = store.segments.free_count();
  report.waiting_segments = report.free_segments - store.segments.usable_count();

  // What is there.
  const uint64_t usable_segments = geometry.segment_count - 1;
  const uint64_t used_blocks =
      (usable_segments - report.free_segments) * geometry.segment_blocks;
  report.device_blocks = geometry.block_count;
  report.outside_blocks = geometry.block_count - usable_segments * geometry.segment_blocks;
  report.live_data_blocks = store.live_data_blocks;
  report.node_blocks = store.live_node_blocks;
  report.waiting_blocks = report.waiting_segments * geometry.segment_blocks;
  uint64_t left = used_blocks - std::min(used_blocks, report.live_data_blocks + report.node_blocks);
  const uint64_t open_room =
      take(left, store.stream_room(store.streams[static_cast<size_t>(ondisk::Stream::kData)], 2));
  report.unused_blocks = store.segments.usable_count() * geometry.segment_blocks + open_room;
  report.dead_blocks = left;
  report.winnable_blocks = take(left, store.gc_winnable_blocks());
  report.fixed_blocks = left;

  // What the room is for: the more urgent first. As after a checkpoint, which a writer that needs the
  // room makes.
  report.room_blocks = report.unused_blocks + report.waiting_blocks + report.winnable_blocks;
  uint64_t room = report.room_blocks;
  report.framing_blocks = take(
      room, report.free_segments * (geometry.segment_blocks - store.reserves.segment_data_blocks));
  report.free_blocks = room;
  report.checkpoint_reserve = take(room, store.checkpoint_reserve(0));
  report.log_reserve = take(room, store.log_headroom());
  report.node_reserve = take(room, store.node_headroom());
  report.growth_reserve = take(room, store.metadata_debt());
  report.gc_reserve = take(room, store.gc_reserve());
  report.delete_reserve = take(room, store.delete_reserve());
  report.preallocated_blocks = take(room, store.preallocated());
  report.reserved_blocks = store.ledger.outstanding;
  report.promised_blocks = take(room, store.ledger.outstanding);
  uint64_t for_users = room;
  if (store.reserves.over_provision_percent != 0) {
    const uint64_t limit = store.reserves.user_blocks();
    const uint64_t taken = store.user_blocks_taken();
    for_users = limit > taken ? std::min(room, limit - taken) : 0;
  }
  report.over_provisioned_blocks = room - for_users;
  report.total_blocks = data_within(store.reserves.user_blocks());
  report.available_blocks = std::min(data_within(for_users), report.total_blocks);
  report.framing_blocks += for_users - report.available_blocks;
  return report;
}

}  // namespace cofs
