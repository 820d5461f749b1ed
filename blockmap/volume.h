// Volume: the fixed geometry of a formatted device, and the state that changes at each checkpoint, in
// native form; parsing and writing of superblocks.
//
// A superblock is valid if and only if its magic, version, checksum, reserved bytes and geometry hold
// (parse_superblock). Of the valid copies the one with the highest sequence counts. A copy that holds
// the newest checkpoint is never overwritten before the next one is durable in another.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "blockmap/btree.h"
#include "blockmap/ondisk.h"
#include "blockmap/store.h"
#include "offload/base/error.h"
#include "offload/copy_rates.h"

namespace cofs {

inline constexpr int kSuperblockCopies = 3;
inline constexpr size_t kLabelBytesMax = sizeof(ondisk::Superblock::label) - 1;
inline constexpr const char* kLabelRule = "a label must have at most 63 bytes, none of them zero";
static_assert(kLabelBytesMax == 63);
bool valid_label(std::string_view label);

struct Geometry {
  std::array<uint8_t, 16> uuid{};
  uint64_t volume_key = 0;
  uint64_t block_count = 0;
  uint32_t segment_blocks = 0;
  uint64_t segment_count = 0;
  uint64_t first_segment_block = 0;
  uint32_t node_bytes = 0;
  uint32_t metadata_copies = 2;
  uint64_t log_limit_blocks = 0;
  uint32_t over_provision_percent = 0;
  int64_t created_seconds = 0;
  std::string label;

  uint32_t node_blocks() const { return node_bytes / kBlockBytes; }
  uint64_t reserved_segment() const { return segment_count / 2; }  // holds the middle superblock
  uint64_t block_of_segment(uint64_t segment) const {
    return first_segment_block + segment * segment_blocks;
  }
  // The segment that holds a physical block; segment_count if none does.
  uint64_t segment_of_block(uint64_t block) const {
    if (block < first_segment_block) return segment_count;
    const uint64_t segment = (block - first_segment_block) / segment_blocks;
    return segment < segment_count ? segment : segment_count;
  }
  // True if [start, +count) lies in one usable segment, behind its header.
  bool inside_segment(uint64_t start, uint64_t count) const;
  uint64_t superblock_block(int copy) const;
  std::string uuid_text() const;
};

// Where the log goes on: what recovery needs to find the next chunk.
struct LogPosition {
  uint64_t sequence = 1;  // of the next chunk
  uint64_t previous = 0;  // checksum of the one before
  uint64_t segment = 0;
  uint32_t block = 0;     // from the start of the segment; 0: nowhere, look in the next segment
  uint32_t generation = 0;
  uint64_t next_segment = 0;
  uint32_t next_generation = 0;
  uint64_t after_segment = 0;  // the one behind the next
  uint32_t after_generation = 0;
};

struct OpenPosition {
  uint64_t segment = 0;
  uint32_t next_block = 0;  // 0: none
  uint32_t generation = 0;
};

struct VolumeState {
  uint64_t sequence = 0;  // of the checkpoint
  uint64_t epoch = 0;
  uint64_t mount_count = 0;
  bool clean = false;
  NodePointer root;
  uint8_t root_level = 0;
  uint64_t next_virtual = ondisk::kFirstVirtualBlock;
  uint64_t next_inode = ondisk::kRootInode;
  uint64_t commit = 0;
  LogPosition log;
  uint64_t free_segments = 0;
  uint64_t live_data_blocks = 0;
  uint64_t live_node_blocks = 0;
  uint64_t inode_count = 0;
  uint64_t node_segments = 0;
  uint64_t shared_blocks = 0;     // with more than one reference
  uint64_t extra_references = 0;  // to these, beyond the first
  uint64_t unwritten_blocks = 0;  // preallocated
  std::array<OpenPosition, ondisk::kStreamCount> streams;
  CopyRates copy_rates;
};

// Geometry of a new volume. Errors: kInvalid when the device is too small or an option is wrong.
Result<Geometry> plan_geometry(uint64_t block_count, const FormatOptions& options);

// `block` has 4096 bytes.
void encode_superblock(const Geometry& geometry, const VolumeState& state,
                       std::span<std::byte> block);
// Errors: kNotCofs (no magic), kUnknownFeature, kCorrupt.
Result<> parse_superblock(std::span<const std::byte> block, uint64_t device_blocks,
                          Geometry& geometry, VolumeState& state);

}  // namespace cofs
