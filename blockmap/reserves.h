// What a volume keeps back so that it never stops for lack of room: whole segments for the log, the
// tree's nodes, one checkpoint, deletion and garbage collection; and how far the log and the dirty
// nodes may go when room is ample. Pure: a geometry in, numbers out. Each figure's worst case is
// proven at its member. Not for: what is promised or free right now (space.cc).
#pragma once

#include <cstdint>

#include "blockmap/volume.h"

namespace cofs {

struct Reserves {
  uint32_t metadata_copies = 0;
  uint64_t segment_count = 0;        // usable ones: without that of the middle superblock
  uint64_t segment_data_blocks = 0;  // of a segment, without its header, footer and chunk headers
  uint64_t nodes_per_segment = 0;    // tree nodes that surely fit into one
  uint64_t group_nodes = 0;          // nodes of segment records, all of which may change at once

  // Writers wait for a checkpoint beyond so many dirty nodes, blocks of log: the floor is there on a
  // full volume, too; between floor and max it is what can be spared (space.cc).
  uint64_t dirty_nodes_floor = 0;
  uint64_t dirty_nodes_max = 0;
  // Dirty ones, and those that a checkpoint is writing: memory, so writers wait for it whatever the room.
  uint64_t changed_nodes_max = 0;
  uint64_t log_floor_blocks = 0;     // due; writers wait at twice as much
  uint64_t log_max_blocks = 0;

  uint32_t over_provision_percent = 0;
  uint64_t log_segments = 0;
  static constexpr uint64_t kDeleteSegments = 2;
  static constexpr uint64_t kGcSegments = 3;

  // So many dirty nodes one operation may add beyond any limit: the checkpoint's reserve counts them always.
  uint64_t step_nodes() const;
  // For one checkpoint that begins with so many dirty nodes, in segments.
  uint64_t checkpoint_segments(uint64_t dirty_nodes) const;
  // For so many tree nodes (of one copy), with what is dead between them, in segments of all copies.
  uint64_t node_segments_due(uint64_t nodes) const;
  // All of it on an empty volume.
  uint64_t fixed_segments() const;
  // Blocks that data and tree nodes can take beside that; and how much of it is for users.
  uint64_t capacity_blocks() const;
  uint64_t user_blocks() const;
};

// `dirty_nodes_max` 0: chosen from the size.
Reserves plan_reserves(const Geometry& geometry, uint64_t dirty_nodes_max);

}  // namespace cofs
