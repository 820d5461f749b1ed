// FileData: the blocks of one file that were written and are not (all) on the device yet.
//
// Dirty runs wait to be given a place; in-flight runs have one (they are mapped in the tree) and their
// device write is under way. Readers look here first, then in the tree, so they always see the newest
// bytes. Invariants: dirty runs do not overlap; each block is claimed by at most one in-flight run, the
// newest; where a dirty run and a claim overlap, the dirty one is newer. Blocks in here lie below the
// file's size rounded up to blocks, and bytes beyond the size are zero. Buffers in here never change.
//
// Not for: deciding when data is placed or what it costs (fs/files.cc).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "blockmap/space.h"
#include "offload/base/buffer.h"
#include "offload/base/units.h"

namespace cofs {

// One block of a run, as a reader sees it.
struct BlockView {
  BufferRef buffer;
  uint32_t buffer_block = 0;
  uint64_t hash = 0;
  const std::byte* data() const { return buffer->block(buffer_block); }
};

class FileData {
 public:
  struct Run {
    uint32_t count = 0;
    BufferRef buffer;
    uint32_t buffer_block = 0;
    std::vector<uint64_t> hashes;  // one per block
  };
  // Adjacent blocks of the file that also lie together in one buffer.
  struct Piece {
    uint64_t file_block = 0;
    uint32_t count = 0;
    BufferRef buffer;
    uint32_t buffer_block = 0;
    uint64_t end() const { return file_block + count; }
    const std::byte* data() const { return buffer->block(buffer_block); }
  };

  bool empty() const { return dirty_.empty() && claims_.empty(); }
  uint64_t dirty_blocks() const { return dirty_blocks_; }
  uint64_t dirty_runs() const { return dirty_.size(); }
  // Runs, where those that follow each other in the file count as one: about what they will add to
  // the tree.
  uint64_t dirty_fragments() const { return dirty_fragments_; }
  uint64_t in_flight_runs() const { return in_flight_.size(); }

  // The newest version of a block in memory.
  std::optional<BlockView> find(uint64_t file_block) const;
  // The newest version of all that is in memory of the range, in file order.
  std::vector<Piece> pieces(uint64_t file_block, uint64_t count) const;
  // True if any block of the range is in memory (dirty or in flight).
  bool overlaps(uint64_t file_block, uint64_t count) const;
  bool overlaps_dirty(uint64_t file_block, uint64_t count) const;
  // The dirty ones, in order.
  std::vector<BlockRange> dirty_ranges(uint64_t file_block, uint64_t count) const;
  // What is in memory at or after `file_block`, dirty or in flight: the first `limit` ranges in order, which may
  // overlap. What lies before the last one's start is complete if there are `limit` of them; else all is.
  std::vector<BlockRange> ranges_from(uint64_t file_block, size_t limit) const;
  // How many blocks of the range are dirty.
  uint64_t dirty_blocks_in(uint64_t file_block, uint64_t count) const;
  // The first file block at or after `file_block` that is in memory.
  std::optional<uint64_t> next_block(uint64_t file_block) const;

  // Adds a dirty run, replacing dirty blocks it covers. Returns how many blocks became dirty that were
  // not dirty before.
  uint64_t add_dirty(uint64_t file_block, Run run);
  // Forgets all blocks of the range, dirty or in flight; returns how many were dirty. The caller has
  // changed the mapping of the range (the device writes of in-flight blocks go on).
  uint64_t drop(uint64_t file_block, uint64_t count);
  // Takes dirty blocks of the range, in file order, out as in-flight runs: at most `blocks_max` blocks
  // and `fragments_max` stretches. Tokens are drawn from *next_token and ascend with age.
  struct Taken {
    uint64_t file_block = 0;
    uint64_t token = 0;
    Run run;
  };
  std::vector<Taken> take_dirty(uint64_t from, uint64_t count, uint64_t blocks_max,
                                uint64_t fragments_max, uint64_t* next_token);
  // An in-flight run's device write ended. REQUIRES: it was taken and not written nor put back.
  void written(uint64_t token);
  // The run was not placed after all: what is still the newest version of its blocks is dirty again.
  void put_back(uint64_t token);

  // Asserts the invariants that can be seen from here: for tests.
  void check_invariants() const;

  Reservation reservation;   // covers the dirty blocks
  uint32_t block_holds = 0;  // while not 0, the data must not move into the inode record
  uint32_t direct_writes = 0;  // large ones under way (file_write_direct.cc)
  bool flush_queued = false; // Files has it on its list of files to flush

 private:
  struct Claim {
    uint32_t count = 0;
    uint64_t token = 0;
  };
  struct InFlight {
    uint64_t file_block = 0;
    Run run;
  };
  using DirtyMap = std::map<uint64_t, Run>;
  using ClaimMap = std::map<uint64_t, Claim>;

  uint64_t neighbours(DirtyMap::const_iterator at) const;
  DirtyMap::iterator insert_run(uint64_t file_block, Run run);
  DirtyMap::iterator erase_run(DirtyMap::iterator at);
  void split_dirty(uint64_t at);
  void split_claims(uint64_t at);
  uint64_t drop_dirty(uint64_t file_block, uint64_t end);
  void drop_claims(uint64_t file_block, uint64_t end);
  void append_claimed(uint64_t file_block, uint64_t end, std::vector<Piece>* pieces) const;
  std::vector<BlockRange> release_claims(uint64_t token, const InFlight& flight);

  DirtyMap dirty_;                          // by first file block
  ClaimMap claims_;                         // by first file block: the newest in-flight version
  std::map<uint64_t, InFlight> in_flight_;  // by token
  uint64_t dirty_blocks_ = 0;
  uint64_t dirty_fragments_ = 0;
};

}  // namespace cofs
