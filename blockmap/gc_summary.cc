// What a sealed segment holds, as its footer says, or, where it has none (an only chunk, for one), its chunks' headers.
//
// It is a list of hints: bytes from a device. Who uses it looks each block up in vmap, and an entry that
// is wrong moves nothing. Entries that name blocks outside of the segment are left out.

#include <algorithm>
#include <optional>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint32_t kTailBlocks = 4;  // where most footers fit
constexpr uint32_t kChunkBlocksMin = 2;

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

struct ChunkAt {
  uint32_t end = 0;  // block behind it
  std::vector<ondisk::SummaryEntry> entries;
};

// The chunk whose header is at this block; none: there is no valid one.
Task<Result<std::optional<ChunkAt>>> read_chunk(Store::Impl* store, uint64_t segment, uint32_t generation, uint32_t block) {
  const Geometry& geometry = store->geometry;
  auto first = co_await read_part(store, segment, block, 1);
  COFS_CO_TRY(first);
  auto header = parse_chunk_header(geometry, segment, generation, block, std::span((*first)->data(), kBlockBytes));
  if (!header || header->header_blocks > BufferPool::kBufferBlocksMax) co_return std::nullopt;
  BufferRef area = *first;
  if (header->header_blocks > 1) {
    auto whole = co_await read_part(store, segment, block, header->header_blocks);
    COFS_CO_TRY(whole);
    area = *whole;
  }
  auto chunk = parse_chunk(geometry, *header, std::span(area->data(), bytes_of_blocks(header->header_blocks)));
  if (!chunk) co_return std::nullopt;
  co_return ChunkAt{block + header->header_blocks + header->payload_blocks, std::move(chunk->entries)};
}

}  // namespace

Task<Result<std::vector<ondisk::SummaryEntry>>> Store::Impl::read_summary(uint64_t segment,
                                                                          uint32_t generation) {
  std::vector<ondisk::SummaryEntry> entries;
  auto chunk = co_await read_chunk(this, segment, generation, 1);
  COFS_CO_TRY(chunk);
  const bool is_only = *chunk && (*chunk)->end + kChunkBlocksMin > geometry.segment_blocks;
  if (!is_only) {
    auto footer = co_await read_footer(this, segment, generation);
    if (footer) {
      add_data_entries(geometry, *footer, &entries);
      co_return entries;
    }
  }
  while (*chunk) {  // to the end, or to damage: what lives behind it is found missing
    add_data_entries(geometry, (*chunk)->entries, &entries);
    const uint32_t next = (*chunk)->end;
    if (next >= geometry.segment_blocks) break;
    chunk = co_await read_chunk(this, segment, generation, next);
    COFS_CO_TRY(chunk);
  }
  co_return entries;
}

}  // namespace cofs
