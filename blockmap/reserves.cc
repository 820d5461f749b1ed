// What the reserves must cover.
//
// Log: from any moment until the next checkpoint is durable. Writers wait at twice the log limit
// (keep_bounds, Store::commit), what is applied but not yet composed included, and the limit on a full
// volume is the floor F. A chain of 2F blocks that begins in the middle of a segment touches 2F / segment
// + 1 segments; two successors are always open; one more is for what the last commit adds: the records of
// inodes that are only in memory (a quarter of the dirty nodes' floor in groups of 16, 156 bytes each,
// is below half a megabyte for each gigabyte of volume) and of operations that had passed the check.
// Records beyond that were reserved with eight times their bytes, of which nodes need six.
//
// Checkpoint: the dirty nodes D at its freeze. Operations begin below the limit N, checked again under
// the apply lock, so D is at most N, and what one operation dirties (a step of a deletion: N / 4
// extents, two leaves of vmap each; a sharing may take what is left of N as well, which is promised to it until
// it is done), and what the commit collects from memory: N / 4 fragments of data
// (a leaf of extents, two of vmap each) and N / 4 groups of inodes, 16 of each at least. Inner nodes are
// few beside leaves. Then all leaves of segment records may change, once. Nodes are placed in segments
// that hold nodes_per_segment of them in each copy; what is left of the open ones is not counted. Live nodes
// are moved out of sparse segments only as far as there is room (clean_node_segments). The last segment
// makes up for the rest of the open data segment, which counts as room but holds no node.
//
// Nodes: segments of nodes may be two thirds live, counted over the volume, and each copy has one open;
// until they are worse than that nothing is cleaned, so the tree may take that much. From then on each
// checkpoint wins back as much as it takes (clean_node_segments). Cleaning at two thirds costs, at worst, two
// nodes moved for a place won; at half a large fragmented tree would take as much again as it weighs.
//
// Deletion: promises of the steps under way, a few blocks each, and one segment for what the tree grows
// before a checkpoint says what it really took. One step at a time is enough to go on.
//
// Garbage collection: room for the survivors of one victim in either stream, and one segment that a
// crash may cost.
//
// A crash gives back what the lost checkpoint had taken, and seals what was open: recovery's log and its
// checkpoint begin in new segments, three for the log. Those of deletion and garbage collection serve, which
// do not run before that checkpoint is durable.

#include "blockmap/reserves.h"

#include <algorithm>

#include "blockmap/chunk.h"

namespace cofs {
namespace {

constexpr uint64_t kDirtyNodesFloorMin = 16;
constexpr uint64_t kDirtyNodesMin = 64;
constexpr uint64_t kDirtyNodesMax = 12'288;    // 96 MiB of 8 KiB nodes
constexpr uint64_t kChangedNodesBeside = 4096;
constexpr uint64_t kCollectedNodesMin = 64;    // 16 fragments, 16 groups of inodes
constexpr uint64_t kChunksPerSegment = 3;      // a checkpoint's rounds end chunks early
constexpr uint64_t kLogSegmentsOpen = 4;       // see above

uint64_t divide_up(uint64_t value, uint64_t by) { return (value + by - 1) / by; }

// A 256th of small volumes, a 512th of large ones.
uint64_t dirty_nodes_floor_for(const Geometry& geometry) {
  const uint64_t volume_nodes =
      geometry.block_count / (uint64_t{geometry.metadata_copies} * geometry.node_blocks());
  const uint64_t wanted = std::max(std::min<uint64_t>(volume_nodes / 256, 1024), volume_nodes / 512);
  return std::clamp(wanted, kDirtyNodesFloorMin, kDirtyNodesMax);
}

uint64_t dirty_nodes_max_for(const Geometry& geometry) {
  const uint64_t share =
      geometry.block_count / 64 / (uint64_t{geometry.metadata_copies} * geometry.node_blocks());
  return std::clamp(share, kDirtyNodesMin, kDirtyNodesMax);
}

}  // namespace

uint64_t Reserves::step_nodes() const {
  return std::max(dirty_nodes_floor / 2, kDirtyNodesFloorMin);
}

uint64_t Reserves::checkpoint_segments(uint64_t dirty_nodes) const {
  const uint64_t collected = std::max(dirty_nodes_floor, kCollectedNodesMin);
  const uint64_t nodes = std::max(dirty_nodes, dirty_nodes_floor) + step_nodes() + collected + group_nodes;
  return divide_up(nodes, nodes_per_segment) * metadata_copies + 1;
}

uint64_t Reserves::node_segments_due(uint64_t nodes) const {
  return (divide_up(nodes * 3, nodes_per_segment * 2) + 1) * metadata_copies;
}

uint64_t Reserves::fixed_segments() const {
  return log_segments + node_segments_due(0) + checkpoint_segments(0) + kDeleteSegments + kGcSegments;
}

uint64_t Reserves::capacity_blocks() const {
  const uint64_t fixed = fixed_segments();
  return segment_count > fixed ? (segment_count - fixed) * segment_data_blocks : 0;
}

uint64_t Reserves::user_blocks() const {
  const uint64_t capacity = capacity_blocks();
  return capacity - capacity / 100 * over_provision_percent -
         capacity % 100 * over_provision_percent / 100;
}

Reserves plan_reserves(const Geometry& geometry, uint64_t dirty_nodes_max) {
  Reserves reserves;
  reserves.over_provision_percent = geometry.over_provision_percent;
  const uint64_t segment_blocks = geometry.segment_blocks;
  const uint64_t node_blocks = geometry.node_blocks();
  reserves.metadata_copies = geometry.metadata_copies;
  reserves.segment_count = geometry.segment_count - 1;
  reserves.segment_data_blocks = segment_blocks - (3 + segment_blocks / 512);
  const uint64_t nodes = segment_blocks / node_blocks;
  const uint64_t framing =
      1 + footer_blocks(nodes) + nodes / kChunkEntriesPerBlock + kChunksPerSegment;
  reserves.nodes_per_segment =
      segment_blocks >= framing + node_blocks ? (segment_blocks - framing) / node_blocks : 1;
  const uint64_t groups = divide_up(geometry.segment_count, ondisk::kSegmentGroup);
  reserves.group_nodes = groups + groups / 2 + 2;

  reserves.dirty_nodes_max = dirty_nodes_max != 0 ? std::max(dirty_nodes_max, kDirtyNodesFloorMin)
                                                  : dirty_nodes_max_for(geometry);
  reserves.changed_nodes_max = reserves.dirty_nodes_max + kChangedNodesBeside;
  reserves.dirty_nodes_floor = std::min(reserves.dirty_nodes_max, dirty_nodes_floor_for(geometry));
  reserves.log_max_blocks = geometry.log_limit_blocks;
  reserves.log_floor_blocks =
      std::min(geometry.log_limit_blocks,
               std::clamp<uint64_t>(geometry.block_count / 1024, segment_blocks, 16'384));
  reserves.log_segments =
      divide_up(2 * reserves.log_floor_blocks, segment_blocks) + kLogSegmentsOpen;
  return reserves;
}

}  // namespace cofs
