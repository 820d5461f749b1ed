// Chunks: the unit in which a segment is written, and the log records inside them. Encoding, parsing.
//
// A chunk is valid if and only if its header's magic, place (segment, generation), sizes and checksum
// hold; the checksum is seeded with the volume, the segment and its generation, so bytes of the
// segment's former life never pass. Records are applied only from valid chunks of complete commits.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "blockmap/key.h"
#include "blockmap/ondisk.h"
#include "blockmap/share_range.h"
#include "blockmap/volume.h"

namespace cofs {

inline constexpr uint32_t kChunkEntriesPerBlock =
    (kBlockBytes - sizeof(ondisk::ChunkHeader)) / sizeof(ondisk::SummaryEntry);  // 124

// Blocks of header, entries and records together.
constexpr uint32_t chunk_header_blocks(uint64_t entries, uint64_t record_bytes) {
  return static_cast<uint32_t>(blocks_of_bytes(sizeof(ondisk::ChunkHeader) +
                                               entries * sizeof(ondisk::SummaryEntry) +
                                               record_bytes));
}
constexpr uint32_t footer_blocks(uint64_t entries) {
  return static_cast<uint32_t>(
      blocks_of_bytes(sizeof(ondisk::SegmentFooter) + entries * sizeof(ondisk::SummaryEntry)));
}

// Fills `area` (header_blocks of memory) from the parts; sets sizes and checksum in `header`.
void encode_chunk(const Geometry& geometry, ondisk::ChunkHeader& header,
                  std::span<const ondisk::SummaryEntry> entries, std::span<const std::byte> records,
                  std::span<std::byte> area);

// Checks the fixed part (first block) of a chunk that should lie at `block` of `segment`: magic, place
// and sizes, not yet the checksum. Errors: kCorrupt.
Result<ondisk::ChunkHeader> parse_chunk_header(const Geometry& geometry, uint64_t segment,
                                               uint32_t generation, uint32_t block,
                                               std::span<const std::byte> first_block);
struct Chunk {
  ondisk::ChunkHeader header{};
  std::vector<ondisk::SummaryEntry> entries;
  std::vector<std::byte> records;
};
// Checks and takes apart the whole header area. Errors: kCorrupt.
Result<Chunk> parse_chunk(const Geometry& geometry, const ondisk::ChunkHeader& header,
                          std::span<const std::byte> area);

void encode_segment_header(const Geometry& geometry, uint64_t segment, uint32_t generation,
                           ondisk::Stream stream, std::span<std::byte> block);
void encode_footer(const Geometry& geometry, uint64_t segment, uint32_t generation,
                   std::span<const ondisk::SummaryEntry> entries, std::span<std::byte> area);
// Looks for a segment's footer in `tail`, the last blocks of the segment, and checks it. Errors:
// kCorrupt where there is none (which is no damage), or where it begins before `tail`.
Result<std::vector<ondisk::SummaryEntry>> parse_footer(const Geometry& geometry, uint64_t segment,
                                                       uint32_t generation,
                                                       std::span<const std::byte> tail);

// --- Records ---
// Appends one record to a log buffer.
class RecordWriter {
 public:
  explicit RecordWriter(std::vector<std::byte>& out) : out_(out) {}
  void put(const Key& key, Bytes value);
  void erase(const Key& key);
  void map_extent(uint64_t ino, uint64_t file_block, uint64_t count, uint64_t virtual_block,
                  uint32_t flags);
  void insert_vmap(uint64_t virtual_block, uint64_t physical_block, uint32_t generation,
                   std::span<const uint32_t> checksums);
  void move_vmap(uint64_t virtual_block, uint64_t from_physical, uint64_t to_physical,
                 uint32_t count, uint32_t to_generation);
  void open_segment(uint64_t segment, uint32_t generation, ondisk::Stream stream, uint64_t age);
  void share_extents(const ShareRange& range);

 private:
  void append(ondisk::RecordType type, std::initializer_list<Bytes> parts);
  std::vector<std::byte>& out_;
};

struct Record {
  ondisk::RecordType type{};
  Bytes body;
};
// Splits `bytes` into records; false from `visit` stops. Errors: kCorrupt for a malformed record.
Result<> for_each_record(Bytes bytes, const std::function<Result<>(const Record&)>& visit);

// The length of the longest prefix of whole records with at most `bytes_max` bytes.
size_t whole_records_prefix(Bytes bytes, size_t bytes_max);

}  // namespace cofs
