// What a disk says of its EXTENDED COPY(LID1), and what follows from it for copies in 4 KiB blocks.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>

#include "offload/base/error.h"
#include "offload/scsi_transport.h"

namespace cofs {

// RECEIVE COPY OPERATING PARAMETERS, as sent.
struct XcopyParameters {
  bool no_list_id = false;  // SNLID: a command may go without a list identifier
  uint16_t cscds_max = 0;
  uint16_t segments_max = 0;
  uint32_t descriptor_bytes_max = 0;
  uint32_t segment_bytes_max = 0;  // 0: no limit
  uint32_t held_data_max = 0;
  uint16_t copies_total = 0;  // at once, in all; 0 where SNLID is not offered
  uint8_t copies_max = 0;     // at once, of those with a list identifier
  uint8_t granularity_log2 = 0;
  bool block_to_block = false;  // has segments of type 0x02
  bool identification = false;  // has CSCDs of type 0xE4
};
std::optional<XcopyParameters> parse_operating_parameters(std::span<const uint8_t> data);
Result<XcopyParameters> read_operating_parameters(ScsiTransport& disk);

// How the list identifier of a command is used; the value goes into the parameter list.
enum class XcopyListId : uint8_t {
  kHold = 0,     // results are kept under the identifier until something replaces them
  kDiscard = 2,  // for a disk that keeps nothing
  kNone = 3,
};

struct XcopyLimits {
  uint32_t segments_max = 0;        // of one command
  uint64_t segment_blocks_max = 0;  // 4 KiB blocks
  uint64_t command_blocks_max = 0;  // 4 KiB blocks
  uint32_t in_flight_max = 0;       // commands worth having in flight
  XcopyListId list_id = XcopyListId::kNone;
  bool two_cscds = false;  // the disk takes a list with source and target apart, too
};

// The error is a reason without engine and disk: "does not copy from block to block (type 0x02)".
// Zero and contradictory limits end in the least that any disk with the command must do.
std::expected<XcopyLimits, std::string> derive_xcopy_limits(const XcopyParameters& parameters,
                                                            uint32_t lba_bytes);

}  // namespace cofs
