#include <cstring>
#include <utility>

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
  data.hash_whole_blocks();
  return data;
}

WriteData WriteData::adopt(BufferRef buffer, uint64_t offset, uint32_t length) {
  COFS_ASSERT(offset % kBlockBytes == 0 && length > 0 && length <= buffer->bytes().size());
  WriteData data;
  data.offset = offset;
  data.length = length;
  data.buffer = std::move(buffer);
  data.hashes.resize(blocks_of_bytes(length));
  data.hash_whole_blocks();
  return data;
}

// Blocks that the write covers in part are completed, and hashed, by Files::write.
void WriteData::hash_whole_blocks() {
  const uint32_t skip = static_cast<uint32_t>(offset % kBlockBytes);
  const uint32_t end = (skip + length) / kBlockBytes;
  for (uint32_t i = skip == 0 ? 0 : 1; i < end; i++) hashes[i] = block_hash(buffer->block(i));
}

}  // namespace cofs
