// HostCopier: copies blocks within a device by reading and writing them, the path that always works.
//
// The run is cut into chunks; a few coroutines each read a chunk's sources (scattered ones at the same
// time), then write it as one run, so reads of one chunk overlap writes of another. The number of
// chunks in flight is bounded for all copies together. It knows nothing of other paths or policy.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "offload/base/buffer.h"
#include "offload/base/sync.h"
#include "offload/base/task.h"
#include "offload/copy_plan.h"
#include "offload/device.h"

namespace cofs {

struct HostCopyResult {
  uint64_t good_blocks = 0;      // prefix of the target that holds the sources' data
  uint64_t operations = 0;       // chunks begun: one write each, unless its reads failed
  Result<> result;               // why the prefix is shorter than asked; `where` is a block
  bool source_failed = false;    // it was reading that failed, after one retry block by block
  bool target_in_doubt = false;  // a write timed out and may still land
};

class HostCopier {
 public:
  // 1 <= chunk_blocks <= BufferPool::kBufferBlocksMax, in_flight >= 1.
  HostCopier(Device& device, Executor& executor, BufferPool& buffers, uint32_t chunk_blocks,
             uint32_t in_flight);

  // REQUIRES: sources and target on the device, the target apart from all sources. The span's ranges
  // live until the task is done.
  Task<HostCopyResult> copy(std::span<const BlockRange> sources, uint64_t target_start);

 private:
  struct Run;
  class ReadBatch;

  Task<void> copy_chunks(Run& run);
  Task<void> copy_chunk(Run& run, size_t index);
  Task<uint64_t> read_chunk(Run& run, size_t index, Buffer& buffer);
  static HostCopyResult summarise(Run& run);

  Device& device_;
  Executor& executor_;
  BufferPool& buffers_;
  CopyLimits chunk_limits_;
  uint32_t in_flight_;
  Semaphore permits_;  // chunks
};

}  // namespace cofs
