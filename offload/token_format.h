// POPULATE TOKEN, WRITE USING TOKEN, RECEIVE ROD TOKEN INFORMATION, COPY OPERATION ABORT and the
// Third-party Copy page (VPD 0x8F) as they travel. All integers are big-endian.
#pragma once

#include <array>
#include <cstdint>

#include "offload/scsi_layout.h"

namespace cofs {

inline constexpr uint8_t kTokenCopyOut = 0x83;
inline constexpr uint8_t kTokenCopyIn = 0x84;
inline constexpr uint8_t kPopulateToken = 0x10;
inline constexpr uint8_t kWriteUsingToken = 0x11;
inline constexpr uint8_t kCopyOperationAbort = 0x1c;
inline constexpr uint8_t kTokenInformation = 0x07;

// What stands for the data of some ranges at one time. Opaque: only its disk reads it.
using RodToken = std::array<uint8_t, 512>;

// POPULATE TOKEN and WRITE USING TOKEN.
struct TokenCdb {
  uint8_t opcode = kTokenCopyOut;
  uint8_t action = 0;
  uint8_t reserved[4] = {};
  be32 list_id = 0;
  be32 length = 0;
  uint8_t group = 0;
  uint8_t control = 0;
};
static_assert(sizeof(TokenCdb) == 16);

struct TokenInformationCdb {
  uint8_t opcode = kTokenCopyIn;
  uint8_t action = kTokenInformation;
  be32 list_id = 0;
  uint8_t reserved[4] = {};
  be32 allocation = 0;
  uint8_t reserved14 = 0;
  uint8_t control = 0;
};
static_assert(sizeof(TokenInformationCdb) == 16);

struct CopyAbortCdb {
  uint8_t opcode = kTokenCopyOut;
  uint8_t action = kCopyOperationAbort;
  be32 list_id = 0;
  uint8_t reserved[9] = {};
  uint8_t control = 0;
};
static_assert(sizeof(CopyAbortCdb) == 16);

struct PopulateListHeader {
  be16 data_bytes = 0;  // of all that follows this field
  uint8_t flags = 0;    // RTV in bit 1: 0, the disk chooses the kind of token; IMMED in bit 0
  uint8_t reserved = 0;
  be32 inactivity_s = 0;  // 0: the disk's default
  be32 rod_type = 0;
  uint8_t reserved12[2] = {};
  be16 range_bytes = 0;
};
static_assert(sizeof(PopulateListHeader) == 16);

struct WriteListHeader {
  be16 data_bytes = 0;  // of all that follows this field
  uint8_t flags = 0;    // DEL_TKN in bit 1, IMMED in bit 0
  uint8_t reserved[5] = {};
  be64 offset = 0;  // into what the token stands for, in logical blocks of this disk
  RodToken token{};
  uint8_t reserved528[6] = {};
  be16 range_bytes = 0;
};
static_assert(sizeof(WriteListHeader) == 536);

struct TokenRange {
  be64 lba = 0;
  be32 lbas = 0;
  uint8_t reserved[4] = {};
};
static_assert(sizeof(TokenRange) == 16);

struct TokenInformationHeader {
  be32 available;
  uint8_t action;  // the service action that this is about, in bits 4-0
  uint8_t status;  // in bits 6-0
  be16 counter;
  be32 update_delay_ms;
  uint8_t completion;  // SAM status of the operation
  uint8_t sense_field_bytes;
  uint8_t sense_bytes;  // of those
  uint8_t count_unit;
  be64 count;
  be16 segments;
  uint8_t reserved[6];
  // The sense field follows, then, for POPULATE TOKEN, the descriptor of the token.
};
static_assert(sizeof(TokenInformationHeader) == 32);

struct TokenDescriptor {
  be32 bytes;  // of what follows this field
  uint8_t restricted[2];
  RodToken token;
};
static_assert(sizeof(TokenDescriptor) == 518);

// Third-party Copy page: a header, then descriptors of these kinds among others.
inline constexpr uint8_t kPageThirdPartyCopy = 0x8f;
struct ThirdPartyPageHeader {
  uint8_t peripheral;
  uint8_t page;
  be16 length;
};
static_assert(sizeof(ThirdPartyPageHeader) == 4);

struct ThirdPartyDescriptorHeader {
  be16 type;
  be16 length;  // of what follows
};
static_assert(sizeof(ThirdPartyDescriptorHeader) == 4);

inline constexpr uint16_t kDescriptorRodLimits = 0x0000;
struct RodLimitsDescriptor {
  ThirdPartyDescriptorHeader header;
  uint8_t vendor[6];
  be16 ranges_max;
  be32 inactivity_max_s;
  be32 inactivity_default_s;
  be64 token_lbas_max;
  be64 optimal_lbas;
};
static_assert(sizeof(RodLimitsDescriptor) == 36);

// Supported Commands: a length, then {operation code, length, service actions …} as often as it
// fits.
inline constexpr uint16_t kDescriptorCommands = 0x0001;

inline constexpr uint16_t kDescriptorGeneral = 0x8001;
struct GeneralCopyDescriptor {
  ThirdPartyDescriptorHeader header;
  be32 copies_total;
};
static_assert(sizeof(GeneralCopyDescriptor) == 8);

// Block Limits page.
inline constexpr uint8_t kPageBlockLimits = 0xb0;
struct BlockLimitsPage {
  uint8_t peripheral;
  uint8_t page;
  be16 length;
  uint8_t reserved[4];
  be32 transfer_lbas_max;  // 0: not reported
};
static_assert(sizeof(BlockLimitsPage) == 12);

}  // namespace cofs
