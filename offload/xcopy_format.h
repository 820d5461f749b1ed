// EXTENDED COPY(LID1) and RECEIVE COPY OPERATING PARAMETERS as they travel: commands, parameter
// list and data. All integers are big-endian.
#pragma once

#include <cstdint>

#include "offload/scsi_disk.h"
#include "offload/scsi_layout.h"

namespace cofs {

// EXTENDED COPY(LID1); RECEIVE COPY OPERATING PARAMETERS has the same form.
struct ThirdPartyCdb {
  uint8_t opcode;
  uint8_t action;
  uint8_t reserved[8] = {};
  be32 length;  // of the parameter list, or of what may be returned
  uint8_t reserved14 = 0;
  uint8_t control = 0;
};
static_assert(sizeof(ThirdPartyCdb) == 16);

inline constexpr uint8_t kThirdPartyCopyOut = 0x83;
inline constexpr uint8_t kThirdPartyCopyIn = 0x84;
inline constexpr uint8_t kExtendedCopyLid1 = 0x00;
inline constexpr uint8_t kOperatingParameters = 0x03;

struct XcopyListHeader {
  uint8_t list_id;
  uint8_t usage;  // list id usage in bits 4-3, priority in bits 2-0
  be16 cscd_bytes;
  uint8_t reserved[4] = {};
  be32 segment_bytes;
  be32 inline_bytes;
};
static_assert(sizeof(XcopyListHeader) == 16);

// A copy source or destination, by its identification descriptor.
inline constexpr uint8_t kCscdIdentification = 0xe4;
struct XcopyCscd {
  uint8_t type = kCscdIdentification;
  uint8_t peripheral = 0;  // logical unit id type 0, not NUL, a disk
  be16 port = 0;
  uint8_t code_set = 0;
  uint8_t kind = 0;  // association "logical unit" (0) in bits 5-4, designator type in bits 3-0
  uint8_t reserved = 0;
  uint8_t length = 0;
  uint8_t designator[ScsiDesignator::kBytesMax] = {};
  be32 block_bytes = 0;  // 24 bits; the byte before them holds PAD, which is 0
};
static_assert(sizeof(XcopyCscd) == 32);

// Blocks of one disk to blocks of one disk.
inline constexpr uint8_t kSegmentBlockToBlock = 0x02;
struct XcopySegmentDescriptor {
  uint8_t type = kSegmentBlockToBlock;
  uint8_t flags = 0;   // DC 0: the count is in blocks of the source
  be16 length = 0x18;  // of what follows this field
  be16 source_cscd = 0;
  be16 target_cscd = 0;
  uint8_t reserved[2] = {};
  be16 count = 0;
  be64 source_lba = 0;
  be64 target_lba = 0;
};
static_assert(sizeof(XcopySegmentDescriptor) == 0x18 + 4);
inline constexpr uint64_t kSegmentLbasMax = 65535;

struct OperatingParametersData {
  be32 available;
  uint8_t flags;  // SNLID in bit 0
  uint8_t reserved5[3];
  be16 cscds_max;
  be16 segments_max;
  be32 descriptor_bytes_max;
  be32 segment_bytes_max;
  be32 inline_bytes_max;
  be32 held_data_max;
  be32 stream_bytes_max;
  uint8_t reserved32[2];
  be16 copies_total;
  uint8_t copies_max;
  uint8_t granularity_log2;
  uint8_t inline_granularity_log2;
  uint8_t held_granularity_log2;
  uint8_t reserved40[3];
  uint8_t type_count;  // descriptor type codes, one byte each, follow
};
static_assert(sizeof(OperatingParametersData) == 44);

}  // namespace cofs
