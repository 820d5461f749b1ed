// Values of tree records in native form: extents, vmap, vref; parsing and encoding.
//
// Each parse_* accepts a value if and only if its size, reserved bytes and ranges are as docs/ONDISK.md
// says; what it returns can be used without further checks of its own fields.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "blockmap/btree.h"
#include "blockmap/share_range.h"
#include "blockmap/volume.h"

namespace cofs {

struct ExtentValue {
  uint64_t virtual_block = 0;  // 0: unwritten
  uint32_t count = 0;
  uint32_t flags = 0;

  // The first `blocks`, and the rest after `blocks`.
  ExtentValue head(uint64_t blocks) const;
  ExtentValue tail(uint64_t blocks) const;
  ExtentValue grown(uint32_t by) const;
  // True if `next`, following directly in the file, makes one extent with this one.
  bool continues_with(const ExtentValue& next) const;
};
Result<ExtentValue> parse_extent(Bytes value);
std::vector<std::byte> encode_extent(const ExtentValue& extent);

struct FileExtent {
  uint64_t file_block = 0;
  ExtentValue value;
  uint64_t end() const { return file_block + value.count; }
};
// The extents of `ino` that overlap [file_block, end), whole, in order, at most `limit`.
Task<Result<std::vector<FileExtent>>> overlapping_extents(BTree& tree, uint64_t ino,
                                                          uint64_t file_block, uint64_t end,
                                                          uint64_t limit);

struct VmapValue {
  uint64_t physical_block = 0;
  uint32_t generation = 0;
  std::vector<uint32_t> checksums;  // one per block
  VmapValue part(uint64_t from, uint64_t count) const;
};
Result<VmapValue> parse_vmap(Bytes value, const Geometry& geometry);
std::vector<std::byte> encode_vmap(const VmapValue& vmap);

struct InsertedVmap {
  uint64_t virtual_block = 0;
  uint64_t physical_block = 0;
  uint32_t generation = 0;
  std::vector<uint32_t> checksums;
};
Result<InsertedVmap> parse_insert_vmap(Bytes body, const Geometry& geometry);

// Blocks that got another place, content and checksums unchanged.
struct VmapMove {
  uint64_t virtual_block = 0;
  uint64_t from_physical = 0;
  uint64_t to_physical = 0;
  uint32_t count = 0;  // 1 … kVmapBlocksMax
  uint32_t to_generation = 0;
  uint64_t end() const { return virtual_block + count; }
};
Result<VmapMove> parse_move_vmap(Bytes body, const Geometry& geometry);

Result<ShareRange> parse_share_extents(Bytes body);

struct VrefRange {
  uint64_t start = 0;
  uint64_t count = 0;
  uint32_t references = 0;
  VrefRange() = default;
  VrefRange(uint64_t s, uint64_t c, uint32_t r) : start(s), count(c), references(r) {}
  uint64_t end() const { return start + count; }
};
Result<VrefRange> parse_vref(const Key& key, Bytes value);
std::vector<std::byte> encode_vref(const VrefRange& ref);

struct VmapPiece {  // a part of a vmap record
  uint64_t record_start = 0;
  VmapValue record;
  uint64_t start = 0;  // of the part
  uint64_t end = 0;
  uint64_t record_end() const { return record_start + record.checksums.size(); }
  uint64_t physical() const { return record.physical_block + (start - record_start); }
};
// The first part of [start, end) that is mapped.
Task<Result<std::optional<VmapPiece>>> find_vmap(BTree& tree, const Geometry& geometry,
                                                 uint64_t start, uint64_t end);

// The first vref range that overlaps [start, end).
Task<Result<std::optional<VrefRange>>> find_vref(BTree& tree, uint64_t start, uint64_t end);
// Gives [start, end), which lies inside `ref`, another count; below 2 the record goes.
Task<Result<>> change_vref(BTree& tree, VrefRange ref, uint64_t start, uint64_t end,
                           uint32_t references);

}  // namespace cofs
