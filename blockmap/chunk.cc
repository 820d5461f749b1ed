#include "blockmap/chunk.h"

#include <algorithm>
#include <cstring>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

uint64_t chunk_seed(const Geometry& geometry, uint64_t segment, uint32_t generation) {
  return mix64(geometry.volume_key, mix64(segment, generation));
}

template <class T>
Bytes bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

// The checksum of a header area whose `checksum` field (8 bytes at offset 8) counts as zero.
uint64_t area_checksum(std::span<const std::byte> area, uint64_t seed) {
  std::array<std::byte, 64> head;
  std::memcpy(head.data(), area.data(), head.size());
  std::memset(head.data() + 8, 0, 8);
  return mix64(checksum64(head, seed), checksum64(area.subspan(head.size()), seed));
}
static_assert(offsetof(ondisk::ChunkHeader, checksum) == 8);
static_assert(offsetof(ondisk::SegmentFooter, checksum) == 8);
static_assert(offsetof(ondisk::SegmentHeader, checksum) == 8);

}  // namespace

void encode_chunk(const Geometry& geometry, ondisk::ChunkHeader& header,
                  std::span<const ondisk::SummaryEntry> entries, std::span<const std::byte> records,
                  std::span<std::byte> area) {
  header.magic = ondisk::kChunkMagic;
  header.entry_count = static_cast<uint32_t>(entries.size());
  header.record_bytes = static_cast<uint32_t>(records.size());
  header.header_blocks = static_cast<uint32_t>(area.size() / kBlockBytes);
  header.checksum = 0;
  COFS_ASSERT(chunk_header_blocks(entries.size(), records.size()) <= header.header_blocks);
  std::byte* at = area.data() + sizeof(header);
  if (!entries.empty()) std::memcpy(at, entries.data(), entries.size_bytes());
  at += entries.size_bytes();
  if (!records.empty()) std::memcpy(at, records.data(), records.size());
  at += records.size();
  std::memset(at, 0, static_cast<size_t>(area.data() + area.size() - at));
  std::memcpy(area.data(), &header, sizeof(header));
  header.checksum =
      area_checksum(area, chunk_seed(geometry, header.segment, header.generation));
  std::memcpy(area.data(), &header, sizeof(header));
}

Result<ondisk::ChunkHeader> parse_chunk_header(const Geometry& geometry, uint64_t segment,
                                               uint32_t generation, uint32_t block,
                                               std::span<const std::byte> first_block) {
  ondisk::ChunkHeader header;
  std::memcpy(&header, first_block.data(), sizeof(header));
  if (header.magic != ondisk::kChunkMagic || header.segment != segment ||
      header.generation != generation || header.header_blocks == 0 ||
      header.stream >= ondisk::kStreamCount) {
    return fail(Code::kCorrupt, "no chunk here", geometry.block_of_segment(segment) + block);
  }
  const uint64_t blocks = uint64_t{header.header_blocks} + header.payload_blocks;
  if (block == 0 || blocks + block > geometry.segment_blocks ||
      sizeof(header) + uint64_t{header.entry_count} * sizeof(ondisk::SummaryEntry) +
              header.record_bytes >
          bytes_of_blocks(header.header_blocks)) {
    return fail(Code::kCorrupt, "chunk: impossible sizes",
                geometry.block_of_segment(segment) + block);
  }
  return header;
}

Result<Chunk> parse_chunk(const Geometry& geometry, const ondisk::ChunkHeader& header,
                          std::span<const std::byte> area) {
  const uint64_t seed = chunk_seed(geometry, header.segment, header.generation);
  if (area.size() != bytes_of_blocks(header.header_blocks) ||
      area_checksum(area, seed) != header.checksum) {
    return fail(Code::kCorrupt, "chunk: checksum", geometry.block_of_segment(header.segment));
  }
  Chunk chunk;
  chunk.header = header;
  chunk.entries.resize(header.entry_count);
  const std::byte* at = area.data() + sizeof(header);
  if (!chunk.entries.empty()) {
    std::memcpy(chunk.entries.data(), at, chunk.entries.size() * sizeof(ondisk::SummaryEntry));
  }
  at += chunk.entries.size() * sizeof(ondisk::SummaryEntry);
  chunk.records.assign(at, at + header.record_bytes);
  return chunk;
}

void encode_segment_header(const Geometry& geometry, uint64_t segment, uint32_t generation,
                           ondisk::Stream stream, std::span<std::byte> block) {
  ondisk::SegmentHeader header{};
  header.magic = ondisk::kSegmentMagic;
  std::copy(geometry.uuid.begin(), geometry.uuid.end(), header.uuid);
  header.volume_key = geometry.volume_key;
  header.index = segment;
  header.generation = generation;
  header.stream = static_cast<uint8_t>(stream);
  header.checksum = checksum64(bytes_of(header), geometry.volume_key);
  std::memset(block.data(), 0, kBlockBytes);
  std::memcpy(block.data(), &header, sizeof(header));
}

void encode_footer(const Geometry& geometry, uint64_t segment, uint32_t generation,
                   std::span<const ondisk::SummaryEntry> entries, std::span<std::byte> area) {
  ondisk::SegmentFooter footer{};
  footer.magic = ondisk::kFooterMagic;
  footer.segment = segment;
  footer.generation = generation;
  footer.entry_count = static_cast<uint32_t>(entries.size());
  footer.footer_blocks = static_cast<uint32_t>(area.size() / kBlockBytes);
  std::memset(area.data(), 0, area.size());
  std::memcpy(area.data(), &footer, sizeof(footer));
  if (!entries.empty()) {
    std::memcpy(area.data() + sizeof(footer), entries.data(), entries.size_bytes());
  }
  footer.checksum = area_checksum(area, chunk_seed(geometry, segment, generation));
  std::memcpy(area.data(), &footer, sizeof(footer));
}

Result<std::vector<ondisk::SummaryEntry>> parse_footer(const Geometry& geometry, uint64_t segment,
                                                       uint32_t generation,
                                                       std::span<const std::byte> tail) {
  const uint64_t tail_blocks = tail.size() / kBlockBytes;
  for (uint64_t blocks = 1; blocks <= tail_blocks; blocks++) {
    const auto area = tail.subspan(bytes_of_blocks(tail_blocks - blocks), bytes_of_blocks(blocks));
    ondisk::SegmentFooter footer;
    std::memcpy(&footer, area.data(), sizeof(footer));
    if (footer.magic != ondisk::kFooterMagic || footer.footer_blocks != blocks ||
        footer.segment != segment || footer.generation != generation ||
        footer_blocks(footer.entry_count) > blocks ||
        footer.checksum != area_checksum(area, chunk_seed(geometry, segment, generation))) {
      continue;
    }
    std::vector<ondisk::SummaryEntry> entries(footer.entry_count);
    if (!entries.empty()) {
      std::memcpy(entries.data(), area.data() + sizeof(footer),
                  entries.size() * sizeof(ondisk::SummaryEntry));
    }
    return entries;
  }
  return fail(Code::kCorrupt, "no footer here", geometry.block_of_segment(segment));
}

// --- Records ---

void RecordWriter::append(ondisk::RecordType type, std::initializer_list<Bytes> parts) {
  ondisk::RecordHeader header{};
  size_t bytes = 0;
  for (const Bytes& part : parts) bytes += part.size();
  COFS_ASSERT(bytes <= UINT16_MAX);
  header.type = static_cast<uint8_t>(type);
  header.bytes = static_cast<uint16_t>(bytes);
  const Bytes head = bytes_of(header);
  out_.insert(out_.end(), head.begin(), head.end());
  for (const Bytes& part : parts) out_.insert(out_.end(), part.begin(), part.end());
}

void RecordWriter::put(const Key& key, Bytes value) {
  const ondisk::Key encoded = key.encode();
  append(ondisk::RecordType::kPut, {bytes_of(encoded), value});
}

void RecordWriter::erase(const Key& key) {
  const ondisk::Key encoded = key.encode();
  append(ondisk::RecordType::kErase, {bytes_of(encoded)});
}

void RecordWriter::map_extent(uint64_t ino, uint64_t file_block, uint64_t count,
                              uint64_t virtual_block, uint32_t flags) {
  ondisk::RecordMapExtent body{};
  body.ino = ino;
  body.file_block = file_block;
  body.count = count;
  body.virtual_block = virtual_block;
  body.flags = flags;
  append(ondisk::RecordType::kMapExtent, {bytes_of(body)});
}

void RecordWriter::insert_vmap(uint64_t virtual_block, uint64_t physical_block, uint32_t generation,
                               std::span<const uint32_t> checksums) {
  ondisk::RecordInsertVmap body{};
  body.virtual_block = virtual_block;
  body.physical_block = physical_block;
  body.count = static_cast<uint32_t>(checksums.size());
  body.generation = generation;
  std::vector<le32> encoded(checksums.begin(), checksums.end());
  append(ondisk::RecordType::kInsertVmap, {bytes_of(body), std::as_bytes(std::span(encoded))});
}

void RecordWriter::move_vmap(uint64_t virtual_block, uint64_t from_physical, uint64_t to_physical,
                             uint32_t count, uint32_t to_generation) {
  ondisk::RecordMoveVmap body{};
  body.virtual_block = virtual_block;
  body.from_physical = from_physical;
  body.to_physical = to_physical;
  body.count = count;
  body.to_generation = to_generation;
  append(ondisk::RecordType::kMoveVmap, {bytes_of(body)});
}

void RecordWriter::open_segment(uint64_t segment, uint32_t generation, ondisk::Stream stream,
                                uint64_t age) {
  ondisk::RecordOpenSegment body{};
  body.segment = segment;
  body.age = age;
  body.generation = generation;
  body.stream = static_cast<uint8_t>(stream);
  append(ondisk::RecordType::kOpenSegment, {bytes_of(body)});
}

void RecordWriter::share_extents(const ShareRange& range) {
  ondisk::RecordShareExtents body{};
  body.source_ino = range.source_ino;
  body.source_block = range.source_block;
  body.target_ino = range.target_ino;
  body.target_block = range.target_block;
  body.count = range.count;
  append(ondisk::RecordType::kShareExtents, {bytes_of(body)});
}

Result<> for_each_record(Bytes bytes, const std::function<Result<>(const Record&)>& visit) {
  while (!bytes.empty()) {
    ondisk::RecordHeader header;
    if (bytes.size() < sizeof(header)) return fail(Code::kCorrupt, "log record: cut short");
    std::memcpy(&header, bytes.data(), sizeof(header));
    bytes = bytes.subspan(sizeof(header));
    if (header.bytes > bytes.size() || header.reserved != 0) {
      return fail(Code::kCorrupt, "log record: impossible length");
    }
    Record record;
    record.type = static_cast<ondisk::RecordType>(header.type);
    record.body = bytes.first(header.bytes);
    bytes = bytes.subspan(header.bytes);
    auto visited = visit(record);
    COFS_TRY(visited);
  }
  return {};
}

size_t whole_records_prefix(Bytes bytes, size_t bytes_max) {
  size_t prefix = 0;
  while (prefix + sizeof(ondisk::RecordHeader) <= bytes.size()) {
    ondisk::RecordHeader header;
    std::memcpy(&header, bytes.data() + prefix, sizeof(header));
    const size_t next = prefix + sizeof(header) + header.bytes;
    if (next > bytes_max || next > bytes.size()) break;
    prefix = next;
  }
  return prefix;
}

}  // namespace cofs
