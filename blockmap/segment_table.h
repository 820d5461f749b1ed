// SegmentTable: the state of every segment: free, open, sealed; how many live blocks it holds.
//
// Kept in the tree as one record per 64 segments (absent: never used), loaded group by group when
// needed, changed in memory, put back into the tree at checkpoints (flush_groups). Not logged: the
// counts follow from vmap changes, and replaying the log repeats them.
//
// A segment that became empty is free at once in the accounting, but held: it may be opened again only
// when no recovery can need it (release_held). Invariants: free_count() counts segments in state
// kFree; held ⊆ free; the segment of the middle superblock is never handed out nor counted as free.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "blockmap/btree.h"
#include "blockmap/volume.h"

namespace cofs {

struct SegmentState {
  uint32_t generation = 0;
  uint32_t live_blocks = 0;
  ondisk::SegmentState state = ondisk::SegmentState::kFree;
  ondisk::Stream stream = ondisk::Stream::kLog;
  uint64_t age = 0;  // the next virtual block when it was sealed; while it is open, when it was opened
};

// What must be durable before a freed segment may be written again.
struct Hold {
  uint64_t commit = 0;      // the commit after this one (or a checkpoint that includes it); 0: none
  uint64_t checkpoint = 0;  // the checkpoint with this sequence; 0: none
  uint64_t readers = 0;     // and the readers up to this ordinal must have ended; 0: none
};

// What has come about of what holds ask for.
struct HoldProgress {
  uint64_t durable_commit = 0;
  uint64_t checkpoint_commit = 0;  // the last commit that the durable checkpoint includes
  uint64_t checkpoint = 0;         // the sequence of the durable checkpoint
  uint64_t oldest_reader = UINT64_MAX;  // of those that still read; UINT64_MAX: nobody does
};

class SegmentTable {
 public:
  SegmentTable(const Geometry& geometry, BTree& tree);

  void set_counts(uint64_t free_segments, uint64_t node_segments);
  // Where the search for free segments begins on a volume of very many: where the last ones were found. On
  // others it begins at the front, so that an image file stays as short as it can.
  void start_search_at(uint64_t segment);

  // Called with each segment that was sealed or freed, and whenever the live blocks of a sealed one change.
  // Must not call the table.
  void set_observer(std::function<void(uint64_t, const SegmentState&)> observer) {
    observer_ = std::move(observer);
  }

  // The segment's state; the pointer is valid until the next wait. Errors: kCorrupt, kIo.
  Task<Result<SegmentState*>> load(uint64_t segment);

  // Opens a free, unheld segment for `stream`: next generation, no live blocks. kNoSpace: there is none.
  Task<Result<uint64_t>> open_free(ondisk::Stream stream, uint64_t age);
  // The same for a named segment (replay), which must be empty and of an older generation.
  Task<Result<>> open_named(uint64_t segment, uint32_t generation, ondisk::Stream stream,
                            uint64_t age);
  // Lends a segment that open_free() could open, for contents that nobody will refer to; nothing of it is
  // recorded. add_usable() gives it back; without that it is not used before the next mount.
  Task<Result<uint64_t>> borrow_free();
  // The first run of segments at or behind `from` that open_free() could open; count 0: there is none. It
  // is cut at kRunMax segments.
  Task<Result<BlockRange>> find_free_run(uint64_t from);
  // Lends up to `count` of them from `first` on, as borrow_free() does; returns how many.
  Task<Result<uint64_t>> borrow_run(uint64_t first, uint64_t count);
  static constexpr uint64_t kRunMax = 65'536;
  Task<Result<>> seal(uint64_t segment, uint64_t age, Hold hold);

  // Adds to the live blocks; an empty sealed segment becomes free, held by `hold`. A count below zero
  // or above the segment's size is kCorrupt.
  Task<Result<>> add_live(uint64_t segment, int64_t blocks, Hold hold);

  // Pinned segments do not become free when empty (log chain, copies under way). Unpinning an empty
  // sealed segment frees it.
  void pin(uint64_t segment) { pins_[segment]++; }
  Task<Result<>> unpin(uint64_t segment, Hold hold);

  // For replay, before blocks are added that were mapped with this generation: a segment that is free, of that
  // generation, is sealed again. It was pinned when a checkpoint saw it, or when what it had held before went.
  Task<Result<>> revive(uint64_t segment, uint32_t generation);

  // Makes held segments usable whose conditions are met; returns them (to be discarded first, if
  // discards are wanted, then passed to add_usable).
  std::vector<uint64_t> release_held(const HoldProgress& progress);
  void add_usable(uint64_t segment);

  // Puts all changed groups into the tree. True if any was changed. Of a sealed segment where nothing is mapped yet,
  // and which is pinned for that, it says free: so it is, unless the log maps something there (revive).
  Task<Result<bool>> flush_groups();

  // Visits up to `groups` groups after the cursor; what has to be read for that is not kept in memory.
  Task<Result<>> visit_some(uint64_t& cursor_group, uint64_t groups,
                            const std::function<void(uint64_t, const SegmentState&)>& visit);
  // Forgets unchanged groups beyond a bound; none with a pinned segment.
  void trim();

  uint64_t free_count() const { return free_count_; }
  uint64_t durable_free_count() const;  // as flush_groups() tells it to the tree
  uint64_t held_count() const { return held_.size(); }
  // Whether the last release_held() left segments that only wait for readers.
  bool waits_for_readers() const { return waits_for_readers_; }
  bool is_pinned(uint64_t segment) const { return pins_.contains(segment); }
  uint64_t usable_count() const { return free_count_ - held_.size() - set_aside_.size(); }
  uint64_t node_segments() const { return node_segments_; }
  uint64_t freed_total() const { return freed_total_; }

 private:
  struct Group {
    std::array<SegmentState, ondisk::kSegmentGroup> segments;
    bool dirty = false;
    bool listed = false;  // its free segments are in usable_
  };
  struct Held {
    uint64_t segment;
    Hold hold;
  };
  Task<Result<Group*>> load_group(uint64_t group);
  Task<Result<Group>> read_group(uint64_t group);
  Task<Result<uint64_t>> find_free();
  uint64_t group_count() const;
  void mark_free(uint64_t segment, SegmentState& state, Hold hold);
  bool may_use(uint64_t segment) const;
  bool is_unmapped(uint64_t segment, const SegmentState& state) const;  // sealed, and pinned before anything is mapped
  Task<Result<bool>> is_usable(uint64_t segment);

  const Geometry& geometry_;
  BTree& tree_;
  std::function<void(uint64_t, const SegmentState&)> observer_ = [](uint64_t, const SegmentState&) {};
  std::unordered_map<uint64_t, Group> groups_;
  std::set<uint64_t> usable_;  // known free and unheld, lowest first; not all, where there are very many
  uint64_t scan_group_ = 0;
  uint64_t scanned_groups_ = 0;
  std::unordered_map<uint64_t, Hold> held_;
  bool waits_for_readers_ = false;
  std::unordered_set<uint64_t> set_aside_;  // free, being discarded or lent
  std::unordered_map<uint64_t, uint32_t> pins_;
  uint64_t free_count_ = 0;
  uint64_t node_segments_ = 0;
  uint64_t freed_total_ = 0;
};

// Checks the record of one group. Errors: kCorrupt.
Result<std::array<SegmentState, ondisk::kSegmentGroup>> parse_segment_group(Bytes value,
                                                                            const Geometry& geometry);

}  // namespace cofs
