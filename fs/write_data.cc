#include <cstring>

#include "fs/types.h"
#include "offload/base/checksum.h"
#include "offload/base/error.h"
#include "offload/base/units.h"

namespace cofs {

WriteData WriteData::fill(BufferPool& pool, uint64_t offset, const void* source, uint32_t length) {
  COFS_ASSERT(length <= 1U << 20);
  const uint32_t skip = static_cast<uint32_t>(offset % kBlockBytes);
  const uint32_t blocks = static_cast<uint32_t>(blocks_of_bytes(uint64_t{skip} + length));
  WriteData data;
  data.offset = offset;
  data.length = length;
  data.buffer = pool.allocate(blocks == 0 ? 1 : blocks);
  data.hashes.resize(blocks);
  if (length == 0) return data;
  std::memcpy(data.buffer->data() + skip, source, length);
  // Blocks that the write covers in part are completed, and hashed, by Files::write.
  const uint32_t first_whole = skip == 0 ? 0 : 1;
  const uint32_t end_whole = (skip + length) / kBlockBytes;
  for (uint32_t i = first_whole; i < end_whole; i++) {
    data.hashes[i] = block_hash(data.buffer->block(i));
  }
  return data;
}

}  // namespace cofs
