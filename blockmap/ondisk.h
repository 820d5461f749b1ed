// The on-disk format of cofs. Normative text: docs/ONDISK.md; the two change in the same commit.
//
// Everything is little-endian and byte-packed (offload/base/endian.h). Reserved fields are zero when
// written and must be zero when read. Nothing here is trusted before its parse_* function (or, for
// tree values, the reader named at the record) accepted it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "offload/base/endian.h"
#include "offload/base/units.h"

namespace cofs::ondisk {

inline constexpr uint64_t kSuperblockMagic = 0x314b4c42'53464f43;  // "COFSBLK1"
inline constexpr uint64_t kSegmentMagic = 0x31544d47'53464f43;     // "COFSGMT1"
inline constexpr uint64_t kChunkMagic = 0x314b4e48'43464f43;       // "COFCHNK1"
inline constexpr uint64_t kFooterMagic = 0x31544f46'53464f43;      // "COFSFOT1"
inline constexpr uint64_t kNodeMagic = 0x3145444f'4e464f43;        // "COFNODE1"

inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint64_t kRootInode = 1;
inline constexpr uint64_t kFirstVirtualBlock = 1;  // virtual block 0 means "none"

inline constexpr uint32_t kNodeBytesMin = 4096;
inline constexpr uint32_t kNodeBytesDefault = 8192;
inline constexpr uint32_t kNodeBytesMax = 65536;
inline constexpr uint32_t kValueBytesMax = 2560;  // of one tree record; with its key fits a 4 KiB node
inline constexpr uint32_t kInlineDataMax = 2048;  // file data or symlink target inside the inode record
inline constexpr uint32_t kVmapBlocksMax = 256;   // blocks of one vmap record (1 MiB)
inline constexpr uint32_t kExtentBlocksMax = 1U << 30;
inline constexpr uint32_t kNameBytesMax = 255;
inline constexpr uint32_t kTreeLevelMax = 12;
inline constexpr uint32_t kOverProvisionMax = 50; // percent
inline constexpr uint32_t kSegmentGroup = 64;     // segments in one segment record

// --- Keys --------------------------------------------------------------------------------------
// Order: space, id, type, offset, n. Inode-related records share a space, so that an inode, its
// attributes, extents and entries lie together.
enum class KeyType : uint8_t {
  kInode = 1,    // id = ino                                   value: Inode (+ inline data)
  kXattr = 2,    // id = ino, offset = hash of name, n          value: Xattr + name + part of the value
  kExtent = 3,   // id = ino, offset = file block               value: Extent
  kDirent = 4,   // id = parent, offset = hash63 of name, n     value: Dirent + name
  kVmap = 16,    // id = virtual block                          value: Vmap + count × le32
  kVref = 17,    // id = virtual block                          value: Vref
  kSegment = 18, // id = segment / 64                           value: 64 × SegmentInfo
  kOrphan = 19,  // id = ino                                    value: empty
  kLoggedOp = 20,  // id = ino                                  value: LoggedOp
  kLabel = 21,   // id = 0                                      value: text
};
enum class KeySpace : uint8_t {
  kFiles = 1,     // kInode … kDirent
  kVmap = 2,
  kVref = 3,
  kSegment = 4,
  kOrphan = 5,
  kLoggedOp = 6,
  kVolume = 7,    // kLabel
};

struct Key {
  le32 snapshot;  // reserved: 0
  uint8_t space;
  uint8_t type;
  le16 n;
  le64 id;
  le64 offset;
};
static_assert(sizeof(Key) == 24);

// --- Tree nodes --------------------------------------------------------------------------------
struct NodePointer {
  le64 address[2];  // physical blocks of the copies; [1] is 0 where there is one copy
  le64 checksum;    // of the whole node image, so that a stale or misplaced node never passes
  le64 birth;       // checkpoint number that wrote it
};
static_assert(sizeof(NodePointer) == 32);

// A node image: this header, `count` slots, free space, and the items growing down from the end.
// Leaf item: Key, then the value. Internal item: Key (smallest key that may be in the child), then a
// NodePointer; a search for a key below the first item's takes the first child.
struct NodeHeader {
  le64 magic;      // kNodeMagic
  le64 volume_key;
  le64 birth;      // checkpoint number
  uint8_t level;   // 0 = leaf
  uint8_t reserved[3];
  le32 count;      // items
};
static_assert(sizeof(NodeHeader) == 32);
struct NodeSlot {
  le16 offset;  // of the item from the start of the node
  le16 bytes;   // of the value (the key's 24 are not counted)
};
static_assert(sizeof(NodeSlot) == 4);

// --- Values ------------------------------------------------------------------------------------
struct Time {
  le64 seconds;  // two's complement
  le32 nanoseconds;
};
static_assert(sizeof(Time) == 12);

struct Inode {
  le32 mode;  // type and permissions as in stat(2)
  le32 uid;
  le32 gid;
  le32 nlink;
  le64 size;
  le64 rdev;          // makedev(3) encoding of Linux, 64-bit
  le64 parent;        // of a directory: its parent; else 0
  le32 flags;         // kInode…
  le32 inline_bytes;  // of the data that follows; 0 unless kInodeInline
  Time access_time;
  Time modify_time;
  Time change_time;
  Time birth_time;
  le64 blocks;        // 4 KiB blocks allocated (extents, unwritten ones included)
  le64 generation;    // change counter, for NFS and statx
  uint8_t reserved[16];
};
static_assert(sizeof(Inode) == 128);
inline constexpr uint32_t kInodeInline = 1;     // data (or symlink target) follows the structure
inline constexpr uint32_t kInodeImmutable = 2;  // chattr +i
inline constexpr uint32_t kInodeAppend = 4;     // chattr +a
inline constexpr uint32_t kInodeHasXattrs = 8;  // there may be kXattr records
inline constexpr uint32_t kInodeFlagsKnown = 15;

struct Dirent {
  le64 ino;
  uint8_t type;  // DT_* of <dirent.h>
  uint8_t name_bytes;
  uint8_t reserved[2];
};  // + name
static_assert(sizeof(Dirent) == 12);

struct Xattr {
  le16 name_bytes;
  le16 part;         // 0, 1, … of a value kept in several records
  le32 value_bytes;  // of the whole value
};  // + name + this part of the value
static_assert(sizeof(Xattr) == 8);

struct Extent {
  le64 virtual_block;  // 0 with kExtentUnwritten: preallocated, nothing stored
  le32 count;
  le32 flags;
};
static_assert(sizeof(Extent) == 16);
inline constexpr uint32_t kExtentUnwritten = 1;
inline constexpr uint32_t kExtentMaybeShared = 2;
inline constexpr uint32_t kExtentFlagsKnown = 3;

struct Vmap {
  le64 physical_block;  // device index in the top 8 bits (0)
  le32 count;           // 1 … kVmapBlocksMax; as many le32 checksums follow
  le32 generation;      // of the segment
};
static_assert(sizeof(Vmap) == 16);

struct Vref {
  le64 count;       // blocks
  le32 references;  // at least 2; no record means exactly one
  le32 reserved;
};
static_assert(sizeof(Vref) == 16);

struct SegmentInfo {
  le32 generation;  // incremented whenever the segment is opened; 0: never used
  le32 live_blocks; // data blocks that vmap maps here, or blocks of tree nodes in use
  uint8_t state;    // SegmentState
  uint8_t stream;   // Stream; meaningful unless free
  uint8_t reserved[6];
  le64 age;         // next virtual block when the segment was sealed or opened
};
static_assert(sizeof(SegmentInfo) == 24);
enum class SegmentState : uint8_t { kFree = 0, kOpen = 1, kSealed = 2 };

enum class Stream : uint8_t { kLog = 0, kData = 1, kGcWarm = 2, kGcCold = 3, kMeta = 4, kMetaMirror = 5 };
inline constexpr int kStreamCount = 6;

struct LoggedOp {  // a long operation that a crash must complete
  uint8_t kind;    // 1 = truncate: drop everything at or beyond `argument` bytes
  uint8_t reserved[7];
  le64 argument;
};
static_assert(sizeof(LoggedOp) == 16);
inline constexpr uint8_t kLoggedTruncate = 1;

// --- Segments ----------------------------------------------------------------------------------
// A segment: header block, chunks back to back, and, when it has several and was sealed in good order,
// a footer in its last blocks with the summary entries of all its chunks.
struct SegmentHeader {
  le64 magic;  // kSegmentMagic
  le64 checksum;  // of the structure with this field zero, seeded with volume_key
  uint8_t uuid[16];
  le64 volume_key;
  le64 index;
  le32 generation;
  uint8_t stream;
  uint8_t reserved[11];
};
static_assert(sizeof(SegmentHeader) == 64);

// What a chunk's payload holds, in order; the physical → virtual map that GC reads.
struct SummaryEntry {
  le32 block;     // from the start of the segment
  le32 count;     // blocks
  uint8_t kind;   // SummaryKind
  uint8_t level;  // kNode: its level
  le16 key_n;     // kNode: its first key
  uint8_t key_space;
  uint8_t key_type;
  uint8_t reserved[2];
  le64 id;        // kData: first virtual block; kNode: first key's id
  le64 offset;    // kNode: first key's offset
};
static_assert(sizeof(SummaryEntry) == 32);
enum class SummaryKind : uint8_t { kData = 1, kNode = 2 };

// A chunk: this header, summary entries, record bytes (padded to a block together), then the payload.
struct ChunkHeader {
  le64 magic;             // kChunkMagic
  le64 checksum;          // of header (this field zero), entries and records; seeded by chunk_seed()
  le64 sequence;          // LOG: 1, 2, … without gaps; other streams: the commit it was made for
  le64 previous_checksum; // LOG: `checksum` of chunk sequence - 1; else 0
  le64 epoch;             // changes at every mount
  le64 commit;            // LOG: the commit this chunk is part of
  le64 watermark;         // LOG: all commits up to this were known durable when it was written
  le64 segment;           // index of the segment it lies in
  le64 next_segment;      // LOG: where the chain goes on when it does not in this segment
  le32 next_generation;   // LOG: the generation that segment will have
  le32 generation;        // of this segment
  le32 header_blocks;     // header, entries and records
  le32 payload_blocks;
  le32 entry_count;
  le32 record_bytes;
  uint8_t stream;
  uint8_t flags;          // kChunk…
  le32 after_generation;  // LOG: of after_segment
  le64 after_segment;     // LOG: the segment behind next_segment, to tell damage from the end
  uint8_t reserved[18];
};
static_assert(sizeof(ChunkHeader) == 128);
inline constexpr uint8_t kChunkCommitEnd = 1;  // the last chunk of its commit

struct SegmentFooter {
  le64 magic;     // kFooterMagic
  le64 checksum;  // of footer (this field zero) and entries; seeded as chunks are
  le64 segment;
  le32 generation;
  le32 entry_count;
  le32 footer_blocks;
  uint8_t reserved[28];
};  // + entries; it ends at the end of the segment
static_assert(sizeof(SegmentFooter) == 64);

// --- Log records -------------------------------------------------------------------------------
enum class RecordType : uint8_t {
  kPut = 1,          // Key, value                 put the tree record
  kErase = 2,        // Key                        erase the tree record
  kMapExtent = 3,    // RecordMapExtent            replace a file range's mapping; drops what it named
  kInsertVmap = 4,   // RecordInsertVmap + le32s   new payload blocks at a place
  kMoveVmap = 5,     // RecordMoveVmap             relocation: compare and set
  kOpenSegment = 6,  // RecordOpenSegment
  // 7 was never written.
  kShareExtents = 8,   // RecordShareExtents       a file range names the blocks of another one, too
};
struct RecordHeader {
  uint8_t type;
  uint8_t reserved;
  le16 bytes;  // of what follows
};
static_assert(sizeof(RecordHeader) == 4);
struct RecordMapExtent {
  le64 ino;
  le64 file_block;
  le64 count;
  le64 virtual_block;  // 0: a hole, or unwritten with the flag
  le32 flags;
  le32 reserved;
};
static_assert(sizeof(RecordMapExtent) == 40);
struct RecordInsertVmap {
  le64 virtual_block;
  le64 physical_block;
  le32 count;  // checksums follow
  le32 generation;
};
static_assert(sizeof(RecordInsertVmap) == 24);
struct RecordMoveVmap {
  le64 virtual_block;
  le64 from_physical;
  le64 to_physical;
  le32 count;
  le32 to_generation;
};
static_assert(sizeof(RecordMoveVmap) == 32);
struct RecordOpenSegment {
  le64 segment;
  le64 age;
  le32 generation;
  uint8_t stream;
  uint8_t reserved[3];
};
static_assert(sizeof(RecordOpenSegment) == 24);
struct RecordShareExtents {
  le64 source_ino;
  le64 source_block;
  le64 target_ino;
  le64 target_block;
  le64 count;
};
static_assert(sizeof(RecordShareExtents) == 40);

// --- Superblock --------------------------------------------------------------------------------
struct StreamPosition {  // an open segment that a clean mount goes on filling
  le64 segment;
  le32 next_block;  // from the start of the segment; 0: no open segment
  le32 generation;
};
static_assert(sizeof(StreamPosition) == 16);

// How fast one way of copying is on the volume's device; zero from the first unused one on.
inline constexpr int kCopyRates = 4;
struct CopyRate {
  uint8_t engine[16];        // its name, zero-padded: "host", "nvme", "xcopy", "token", "hostfile"
  le64 bytes_per_second[4];  // at source ranges of 4 KiB, 64 KiB, 1 MiB, 8 MiB; 0: it failed
};
static_assert(sizeof(CopyRate) == 48);

// Three copies of one block each: at 64 KiB (block 16), in the first block of the middle segment
// (index segment_count / 2, which is never used for anything else), and in the last whole block of
// the device, behind the segment area.
struct Superblock {
  le64 magic;     // kSuperblockMagic
  le64 checksum;  // of the block with this field zero, seed 0
  le32 version;   // kFormatVersion
  le32 superblock_bytes;
  le64 compat;
  le64 ro_compat;
  le64 incompat;
  uint8_t uuid[16];
  le64 volume_key;          // random: seeds and keys checksums
  le64 block_count;         // of the device, as formatted
  le32 block_bytes;         // 4096
  le32 segment_blocks;      // power of two
  le64 segment_count;
  le64 first_segment_block;
  le32 node_bytes;
  le32 metadata_copies;     // 1 or 2
  le64 log_limit_blocks;    // log since a checkpoint before the next one is due, at most
  le64 created_seconds;
  uint8_t label[64];        // zero-padded UTF-8
  // What changes at each checkpoint.
  le64 sequence;            // of the checkpoint; the highest valid one counts
  le64 epoch;               // of the mount that wrote it
  le64 mount_count;
  le32 clean;               // 1: nothing follows in the log, streams[] may be resumed
  le32 tree_level;          // of the root
  NodePointer root;         // address[0] = 0: an empty tree
  le64 next_virtual;
  le64 next_inode;
  le64 commit;              // the last commit that the tree includes
  le64 log_sequence;        // of the next chunk
  le64 log_previous;        // checksum of the chunk before it
  le64 log_segment;         // where that chunk is to be found …
  le32 log_block;           // … from the start of the segment …
  le32 log_generation;
  le64 log_next_segment;    // … or at the first block after this segment's header
  le32 log_next_generation;
  le32 reserved1;
  le64 log_after_segment;   // the one behind that
  le32 log_after_generation;
  le32 reserved2;
  le64 free_segments;       // counters, equal to what verify() recomputes
  le64 live_data_blocks;
  le64 live_node_blocks;    // all copies
  le64 inode_count;
  le64 node_segments;       // segments of the streams kMeta and kMetaMirror that are not free
  StreamPosition streams[kStreamCount];
  le64 copy_signature;      // of the device that copy_rates were measured on; 0: none were
  CopyRate copy_rates[kCopyRates];  // the used ones come first
  le32 over_provision_percent;  // of what could hold data, not for users; at most kOverProvisionMax
  le32 reserved3;
  le64 extra_references;    // counter: references to shared blocks beyond the first one
  le64 shared_blocks;       // counter: data blocks with more than one reference
  le64 unwritten_blocks;    // counter: preallocated blocks, for which space is kept
  uint8_t reserved[3384];
};
static_assert(sizeof(Superblock) == kBlockBytes);

}  // namespace cofs::ondisk
