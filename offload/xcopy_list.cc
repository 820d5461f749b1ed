#include "offload/xcopy_list.h"

#include <algorithm>

#include "offload/base/error.h"
#include "offload/xcopy_format.h"

namespace cofs {

namespace {

XcopyCscd cscd_of(const ScsiDisk& disk) {
  XcopyCscd cscd;
  cscd.code_set = disk.designator.code_set;
  cscd.kind = disk.designator.type;
  cscd.length = disk.designator.length;
  std::ranges::copy(disk.designator.bytes, cscd.designator);
  cscd.block_bytes = disk.lba_bytes;
  return cscd;
}

constexpr int kListIdUsageShift = 3;

}  // namespace

std::vector<uint8_t> encode_xcopy_list(const XcopyList& list, const ScsiDisk& disk,
                                       std::span<const XcopySegment> segments) {
  COFS_ASSERT(list.list_id_use != XcopyListId::kNone || list.list_id == 0);
  const uint16_t cscds = list.two_cscds ? 2 : 1;
  XcopyListHeader header{};
  header.list_id = list.list_id;
  header.usage = static_cast<uint8_t>(static_cast<unsigned>(list.list_id_use) << kListIdUsageShift);
  header.cscd_bytes = static_cast<uint16_t>(cscds * sizeof(XcopyCscd));
  header.segment_bytes = static_cast<uint32_t>(segments.size() * sizeof(XcopySegmentDescriptor));
  header.inline_bytes = 0;

  std::vector<uint8_t> bytes(sizeof(header) + header.cscd_bytes + header.segment_bytes);
  write_as(bytes, 0, header);
  size_t at = sizeof(header);
  for (uint16_t i = 0; i < cscds; i++, at += sizeof(XcopyCscd)) {
    write_as(bytes, at, cscd_of(disk));
  }
  for (const XcopySegment& segment : segments) {
    XcopySegmentDescriptor descriptor;
    descriptor.source_cscd = 0;
    descriptor.target_cscd = static_cast<uint16_t>(cscds - 1);
    descriptor.count = segment.lbas;
    descriptor.source_lba = segment.source_lba;
    descriptor.target_lba = segment.target_lba;
    write_as(bytes, at, descriptor);
    at += sizeof(descriptor);
  }
  return bytes;
}

ScsiCommand xcopy_command(std::span<const uint8_t> list) {
  ScsiCommand command;
  ThirdPartyCdb cdb{.opcode = kThirdPartyCopyOut, .action = kExtendedCopyLid1, .length = 0};
  cdb.length = static_cast<uint32_t>(list.size());
  command.set_cdb(cdb);
  command.to_device = list;
  return command;
}

}  // namespace cofs
