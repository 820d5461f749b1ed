// The parameter list of EXTENDED COPY(LID1): segments of one disk, copied within it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "offload/scsi_disk.h"
#include "offload/xcopy_limits.h"

namespace cofs {

struct XcopySegment {
  uint64_t source_lba = 0;
  uint64_t target_lba = 0;
  uint16_t lbas = 0;
};

struct XcopyList {
  XcopyListId list_id_use = XcopyListId::kNone;
  uint8_t list_id = 0;     // with kNone: 0
  bool two_cscds = false;  // source and target are named apart, though they are one disk
};

std::vector<uint8_t> encode_xcopy_list(const XcopyList& list, const ScsiDisk& disk,
                                       std::span<const XcopySegment> segments);

// The command that carries such a list. `list` must live as long as the command.
ScsiCommand xcopy_command(std::span<const uint8_t> list);

}  // namespace cofs
