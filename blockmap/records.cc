#include "blockmap/records.h"

#include <algorithm>
#include <cstring>

namespace cofs {
namespace {

template <class T>
std::vector<std::byte> vector_of(const T& value) {
  const Bytes bytes = std::as_bytes(std::span(&value, 1));
  return {bytes.begin(), bytes.end()};
}

constexpr uint64_t kVirtualMax = 1ULL << 62;

}  // namespace

ExtentValue ExtentValue::head(uint64_t blocks) const {
  ExtentValue out = *this;
  out.count = static_cast<uint32_t>(blocks);
  return out;
}

ExtentValue ExtentValue::tail(uint64_t blocks) const {
  ExtentValue out = *this;
  out.count = static_cast<uint32_t>(count - blocks);
  if (virtual_block != 0) out.virtual_block = virtual_block + blocks;
  return out;
}

ExtentValue ExtentValue::grown(uint32_t by) const {
  ExtentValue out = *this;
  out.count += by;
  return out;
}

bool ExtentValue::continues_with(const ExtentValue& next) const {
  if (flags != next.flags || uint64_t{count} + next.count > ondisk::kExtentBlocksMax) return false;
  if (virtual_block == 0) return next.virtual_block == 0;
  return next.virtual_block == virtual_block + count;
}

Result<ExtentValue> parse_extent(Bytes value) {
  ondisk::Extent in;
  if (value.size() != sizeof(in)) return fail(Code::kCorrupt, "extent: size");
  std::memcpy(&in, value.data(), sizeof(in));
  const bool unwritten = (in.flags & ondisk::kExtentUnwritten) != 0;
  if (in.count == 0 || in.count > ondisk::kExtentBlocksMax ||
      (in.flags & ~ondisk::kExtentFlagsKnown) != 0 || unwritten != (in.virtual_block == 0) ||
      in.virtual_block >= kVirtualMax) {
    return fail(Code::kCorrupt, "extent: impossible value");
  }
  ExtentValue out;
  out.virtual_block = in.virtual_block;
  out.count = in.count;
  out.flags = in.flags;
  return out;
}

std::vector<std::byte> encode_extent(const ExtentValue& extent) {
  ondisk::Extent out{};
  out.virtual_block = extent.virtual_block;
  out.count = extent.count;
  out.flags = extent.flags;
  return vector_of(out);
}

VmapValue VmapValue::part(uint64_t from, uint64_t count) const {
  VmapValue out;
  out.physical_block = physical_block + from;
  out.generation = generation;
  const auto first = checksums.begin() + static_cast<std::ptrdiff_t>(from);
  out.checksums.assign(first, first + static_cast<std::ptrdiff_t>(count));
  return out;
}

Result<VmapValue> parse_vmap(Bytes value, const Geometry& geometry) {
  ondisk::Vmap in;
  if (value.size() < sizeof(in)) return fail(Code::kCorrupt, "vmap: size");
  std::memcpy(&in, value.data(), sizeof(in));
  if (in.count == 0 || in.count > ondisk::kVmapBlocksMax ||
      value.size() != sizeof(in) + uint64_t{in.count} * sizeof(le32) ||
      !geometry.inside_segment(in.physical_block, in.count)) {
    return fail(Code::kCorrupt, "vmap: impossible value", in.physical_block);
  }
  VmapValue out;
  out.physical_block = in.physical_block;
  out.generation = in.generation;
  out.checksums.resize(in.count);
  for (uint32_t i = 0; i < in.count; i++) {
    le32 checksum;
    std::memcpy(&checksum, value.data() + sizeof(in) + i * sizeof(checksum), sizeof(checksum));
    out.checksums[i] = checksum;
  }
  return out;
}

std::vector<std::byte> encode_vmap(const VmapValue& vmap) {
  ondisk::Vmap out{};
  out.physical_block = vmap.physical_block;
  out.count = static_cast<uint32_t>(vmap.checksums.size());
  out.generation = vmap.generation;
  std::vector<std::byte> bytes = vector_of(out);
  const std::vector<le32> encoded(vmap.checksums.begin(), vmap.checksums.end());
  const Bytes tail = std::as_bytes(std::span(encoded));
  bytes.insert(bytes.end(), tail.begin(), tail.end());
  return bytes;
}

Result<InsertedVmap> parse_insert_vmap(Bytes body, const Geometry& geometry) {
  ondisk::RecordInsertVmap in;
  if (body.size() < sizeof(in)) return fail(Code::kCorrupt, "log record: vmap size");
  std::memcpy(&in, body.data(), sizeof(in));
  if (in.count == 0 || in.count > ondisk::kVmapBlocksMax || in.virtual_block == 0 ||
      in.virtual_block >= kVirtualMax ||
      body.size() != sizeof(in) + uint64_t{in.count} * sizeof(le32) ||
      !geometry.inside_segment(in.physical_block, in.count)) {
    return fail(Code::kCorrupt, "log record: vmap value");
  }
  InsertedVmap out;
  out.virtual_block = in.virtual_block;
  out.physical_block = in.physical_block;
  out.generation = in.generation;
  for (uint32_t i = 0; i < in.count; i++) {
    le32 checksum;
    std::memcpy(&checksum, body.data() + sizeof(in) + i * sizeof(checksum), sizeof(checksum));
    out.checksums.push_back(checksum);
  }
  return out;
}

Result<VmapMove> parse_move_vmap(Bytes body, const Geometry& geometry) {
  ondisk::RecordMoveVmap in;
  if (body.size() != sizeof(in)) return fail(Code::kCorrupt, "log record: move size");
  std::memcpy(&in, body.data(), sizeof(in));
  if (in.count == 0 || in.count > ondisk::kVmapBlocksMax || in.virtual_block == 0 ||
      in.virtual_block >= kVirtualMax || !geometry.inside_segment(in.from_physical, in.count) ||
      !geometry.inside_segment(in.to_physical, in.count)) {
    return fail(Code::kCorrupt, "log record: move value");
  }
  VmapMove out;
  out.virtual_block = in.virtual_block;
  out.from_physical = in.from_physical;
  out.to_physical = in.to_physical;
  out.count = in.count;
  out.to_generation = in.to_generation;
  return out;
}

Result<ShareRange> parse_share_extents(Bytes body) {
  ondisk::RecordShareExtents in;
  if (body.size() != sizeof(in)) return fail(Code::kCorrupt, "log record: share size");
  std::memcpy(&in, body.data(), sizeof(in));
  ShareRange out;
  out.source_ino = in.source_ino;
  out.source_block = in.source_block;
  out.target_ino = in.target_ino;
  out.target_block = in.target_block;
  out.count = in.count;
  if (!out.valid()) return fail(Code::kCorrupt, "log record: share value");
  return out;
}

Result<VrefRange> parse_vref(const Key& key, Bytes value) {
  ondisk::Vref in;
  if (value.size() != sizeof(in)) return fail(Code::kCorrupt, "vref: size");
  std::memcpy(&in, value.data(), sizeof(in));
  if (in.count == 0 || in.references < 2 || in.reserved != 0 || key.id == 0 ||
      key.id >= kVirtualMax || in.count >= kVirtualMax) {
    return fail(Code::kCorrupt, "vref: impossible value");
  }
  return VrefRange(key.id, in.count, in.references);
}

std::vector<std::byte> encode_vref(const VrefRange& ref) {
  ondisk::Vref out{};
  out.count = ref.count;
  out.references = ref.references;
  return vector_of(out);
}

Task<Result<std::vector<FileExtent>>> overlapping_extents(BTree& tree, uint64_t ino,
                                                          uint64_t file_block, uint64_t end,
                                                          uint64_t limit) {
  std::vector<FileExtent> found;
  Result<> parsed;
  auto before = co_await tree.last_at_or_before(Key::extent(ino, 0), Key::extent(ino, file_block));
  COFS_CO_TRY(before);
  uint64_t from = file_block;
  if (before->has_value()) {
    FileExtent extent;
    extent.file_block = (*before)->key.offset;
    auto value = parse_extent((*before)->value);
    COFS_CO_TRY(value);
    extent.value = *value;
    if (extent.end() > file_block) found.push_back(extent);
    if (extent.file_block == file_block) from = file_block + 1;
  }
  if (found.size() < limit && from < end) {
    auto scanned = co_await tree.scan(
        Key::extent(ino, from), Key::extent(ino, end), limit - found.size(),
        [&](const Key& key, Bytes bytes) {
          auto value = parse_extent(bytes);
          if (!value) {
            parsed = fail(value.error());
            return false;
          }
          FileExtent extent;
          extent.file_block = key.offset;
          extent.value = *value;
          found.push_back(extent);
          return true;
        });
    COFS_CO_TRY(scanned);
    COFS_CO_TRY(parsed);
  }
  co_return found;
}

Task<Result<std::optional<VmapPiece>>> find_vmap(BTree& tree, const Geometry& geometry,
                                                 uint64_t start, uint64_t end) {
  VmapPiece piece;
  auto before = co_await tree.last_at_or_before(Key::vmap(0), Key::vmap(start));
  COFS_CO_TRY(before);
  if (before->has_value()) {
    auto value = parse_vmap((*before)->value, geometry);
    COFS_CO_TRY(value);
    piece.record_start = (*before)->key.id;
    piece.record = std::move(*value);
    if (piece.record_end() > start) {
      piece.start = start;
      piece.end = std::min(end, piece.record_end());
      co_return std::optional<VmapPiece>(std::move(piece));
    }
  }
  if (start + 1 >= end) co_return std::optional<VmapPiece>();
  auto after = co_await tree.first_at_or_after(Key::vmap(start + 1), Key::vmap(end));
  COFS_CO_TRY(after);
  if (!after->has_value()) co_return std::optional<VmapPiece>();
  auto value = parse_vmap((*after)->value, geometry);
  COFS_CO_TRY(value);
  piece.record_start = (*after)->key.id;
  piece.record = std::move(*value);
  piece.start = piece.record_start;
  piece.end = std::min(end, piece.record_end());
  co_return std::optional<VmapPiece>(std::move(piece));
}

Task<Result<std::optional<VrefRange>>> find_vref(BTree& tree, uint64_t start, uint64_t end) {
  auto before = co_await tree.last_at_or_before(Key::vref(0), Key::vref(start));
  COFS_CO_TRY(before);
  if (before->has_value()) {
    auto ref = parse_vref((*before)->key, (*before)->value);
    COFS_CO_TRY(ref);
    if (ref->end() > start) co_return std::optional<VrefRange>(*ref);
  }
  if (start + 1 >= end) co_return std::optional<VrefRange>();
  auto after = co_await tree.first_at_or_after(Key::vref(start + 1), Key::vref(end));
  COFS_CO_TRY(after);
  if (!after->has_value()) co_return std::optional<VrefRange>();
  auto ref = parse_vref((*after)->key, (*after)->value);
  COFS_CO_TRY(ref);
  co_return std::optional<VrefRange>(*ref);
}

Task<Result<>> change_vref(BTree& tree, VrefRange ref, uint64_t start, uint64_t end,
                           uint32_t references) {
  COFS_ASSERT(start >= ref.start && end <= ref.end() && start < end);
  if (end < ref.end()) {
    const VrefRange rest(end, ref.end() - end, ref.references);
    auto put = co_await tree.put(Key::vref(rest.start), encode_vref(rest));
    COFS_CO_TRY(put);
  }
  if (start > ref.start) {
    const VrefRange head(ref.start, start - ref.start, ref.references);
    auto put = co_await tree.put(Key::vref(head.start), encode_vref(head));
    COFS_CO_TRY(put);
  }
  if (references >= 2) {
    const VrefRange changed(start, end - start, references);
    auto put = co_await tree.put(Key::vref(start), encode_vref(changed));
    co_return put;
  }
  if (start == ref.start) {
    auto erased = co_await tree.erase(Key::vref(start));
    COFS_CO_TRY(erased);
  }
  co_return Result<>();
}

}  // namespace cofs
