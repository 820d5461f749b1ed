// What a sealed segment holds, as its footer says, or, where it has none, its chunks' headers.
//
// It is a list of hints: bytes from a device. Who uses it looks each block up in vmap, and an entry that
// is wrong moves nothing. Entries that name blocks outside of the segment are left out.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint32_t kTailBlocks = 4;  // where most footers fit

// Reads blocks of a segment into one buffer.
Task<Result<BufferRef>> read_part(Store::Impl* store, uint64_t segment, uint32_t block,
                                  uint32_t count) {
  BufferRef buffer = store->env.buffers.allocate(count);
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), count}};
  BlockRange range;
  range.start = store->geometry.block_of_segment(segment) + block;
  range.count = count;
  auto read = co_await store->env.device.read(range, memory);
  COFS_CO_TRY(read);
  store->counters.read_bytes += bytes_of_blocks(count);
  co_return buffer;
}

void add_data_entries(const Geometry& geometry, const std::vector<ondisk::SummaryEntry>& from,
                      std::vector<ondisk::SummaryEntry>* to) {
  for (const ondisk::SummaryEntry& entry : from) {
    const uint64_t end = uint64_t{entry.block} + entry.count;
    const bool possible = entry.kind == static_cast<uint8_t>(ondisk::SummaryKind::kData) &&
                          entry.count != 0 && entry.block != 0 && end <= geometry.segment_blocks &&
                          entry.id != 0 && entry.id < (1ULL << 62);
    if (possible) to->push_back(entry);
  }
}

Task<Result<std::vector<ondisk::SummaryEntry>>> read_footer(Store::Impl* store, uint64_t segment,
                                                            uint32_t generation) {
  const Geometry& geometry = store->geometry;
  const uint32_t blocks_max = std::min({footer_blocks(geometry.segment_blocks),
                                        BufferPool::kBufferBlocksMax, geometry.segment_blocks - 1});
  Result<std::vector<ondisk::SummaryEntry>> entries = fail(Code::kCorrupt, "no footer here");
  for (uint32_t blocks : {std::min(kTailBlocks, blocks_max), blocks_max}) {
    auto tail = co_await read_part(store, segment, geometry.segment_blocks - blocks, blocks);
    COFS_CO_TRY(tail);
    entries = parse_footer(geometry, segment, generation,
                           std::span((*tail)->data(), bytes_of_blocks(blocks)));
    if (entries || blocks == blocks_max) break;
  }
  co_return entries;
}

}  // namespace

Task<Result<std::vector<ondisk::SummaryEntry>>> Store::Impl::read_summary(uint64_t segment,
                                                                          uint32_t generation) {
  std::vector<ondisk::SummaryEntry> entries;
  auto footer = co_await read_footer(this, segment, generation);
  if (footer) {
    add_data_entries(geometry, *footer, &entries);
    co_return entries;
  }
  for (uint32_t block = 1; block < geometry.segment_blocks;) {
    auto first = co_await read_part(this, segment, block, 1);
    COFS_CO_TRY(first);
    auto header = parse_chunk_header(geometry, segment, generation, block,
                                     std::span((*first)->data(), kBlockBytes));
    if (!header || header->header_blocks > BufferPool::kBufferBlocksMax) break;
    BufferRef area = *first;
    if (header->header_blocks > 1) {
      auto whole = co_await read_part(this, segment, block, header->header_blocks);
      COFS_CO_TRY(whole);
      area = *whole;
    }
    auto chunk = parse_chunk(geometry, *header,
                             std::span(area->data(), bytes_of_blocks(header->header_blocks)));
    if (!chunk) break;  // the end, or damage: what lives behind it is found missing
    add_data_entries(geometry, chunk->entries, &entries);
    block += header->header_blocks + header->payload_blocks;
  }
  co_return entries;
}

}  // namespace cofs
