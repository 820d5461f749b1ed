// ChunkCopy: a chunk whose payload the copy engine writes, and what keeps its segment meanwhile. Shared
// by copies of file data (copy.cc) and by garbage collection (gc_relocate.cc).
#pragma once

#include <memory>
#include <vector>

#include "blockmap/store_impl.h"

namespace cofs {

// Keeps a segment pinned while something that was copied into it waits to be mapped.
class SegmentPin {
 public:
  SegmentPin(Store::Impl* store, uint64_t segment);
  ~SegmentPin();
  SegmentPin(const SegmentPin&) = delete;

 private:
  static Task<> release(Store::Impl* store, uint64_t segment);
  Store::Impl* store_;
  uint64_t segment_;
};

struct Store::Impl::ChunkCopy {
  std::unique_ptr<ChunkWrite> chunk;
  std::shared_ptr<SegmentPin> pin;
  std::vector<BlockRange> sources;
  const uint32_t* rekeyed = nullptr;  // checksums of its blocks, without a key
  CopyCounters* counters = nullptr;   // where it counts; null: the users' copies
  bool may_use_host = true;
  CopyOutcome outcome;

  uint64_t blocks() const { return chunk->payload_blocks; }
};

}  // namespace cofs
