#include "offload/xcopy_limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "offload/base/units.h"
#include "offload/scsi_exchange.h"
#include "offload/xcopy_format.h"

namespace cofs {

namespace {

constexpr size_t kTypeCodesMax = 255;
constexpr uint8_t kNoListIdBit = 0x01;

// 16 MiB are a tenth of a second and more on the disks that have this command: long enough that the
// command's own cost does not count, short enough that a failure wastes little and timeouts stay
// far.
constexpr uint64_t kCommandBlocksMax = blocks_of_bytes(uint64_t{16} << 20);
// The descriptors of one command then fit in 8 KiB; a gather of single blocks gains nothing more.
constexpr uint32_t kSegmentsMax = 256;
// A disk that copies one at a time still has the next one at hand. Each takes a thread.
constexpr uint32_t kInFlightMin = 2;
constexpr uint32_t kInFlightMax = 8;

}  // namespace

std::optional<XcopyParameters> parse_operating_parameters(std::span<const uint8_t> data) {
  const auto sent = read_as<OperatingParametersData>(data);
  // What the device claims to have sent is the other bound.
  if (!sent || sent->available < sizeof(OperatingParametersData) - sizeof(sent->available)) {
    return std::nullopt;
  }
  const uint64_t end = uint64_t{sent->available} + sizeof(sent->available);
  data = data.first(static_cast<size_t>(std::min<uint64_t>(data.size(), end)));
  XcopyParameters parameters;
  parameters.no_list_id = (sent->flags & kNoListIdBit) != 0;
  parameters.cscds_max = sent->cscds_max;
  parameters.segments_max = sent->segments_max;
  parameters.descriptor_bytes_max = sent->descriptor_bytes_max;
  parameters.segment_bytes_max = sent->segment_bytes_max;
  parameters.held_data_max = sent->held_data_max;
  parameters.copies_total = sent->copies_total;
  parameters.copies_max = sent->copies_max;
  parameters.granularity_log2 = sent->granularity_log2;
  std::span<const uint8_t> types = data.subspan(sizeof(OperatingParametersData));
  types = types.first(std::min<size_t>(types.size(), sent->type_count));
  parameters.block_to_block = std::ranges::count(types, kSegmentBlockToBlock) != 0;
  parameters.identification = std::ranges::count(types, kCscdIdentification) != 0;
  return parameters;
}

Result<XcopyParameters> read_operating_parameters(ScsiTransport& disk) {
  std::array<uint8_t, sizeof(OperatingParametersData) + kTypeCodesMax> data{};
  ScsiCommand command;
  ThirdPartyCdb cdb{.opcode = kThirdPartyCopyIn, .action = kOperatingParameters, .length = 0};
  cdb.length = static_cast<uint32_t>(data.size());
  command.set_cdb(cdb);
  command.from_device = data;
  command.timeout = kScsiQuestionTimeout;
  const auto received = exchange(disk, command);
  if (!received) return fail(received.error());
  const auto parameters = parse_operating_parameters(std::span(data).first(*received));
  if (!parameters) return fail(Code::kIo, "the answer is too short");
  return *parameters;
}

std::expected<XcopyLimits, std::string> derive_xcopy_limits(const XcopyParameters& parameters,
                                                            uint32_t lba_bytes) {
  if (!parameters.block_to_block) {
    return std::unexpected("does not copy from block to block (segment type 0x02)");
  }
  if (!parameters.identification) {
    return std::unexpected("does not take identification descriptors (CSCD type 0xe4)");
  }
  // The length of a segment must be a multiple of it: what is more than a block cannot be kept to.
  if (parameters.granularity_log2 > kBlockShift) {
    return std::unexpected(fmt::format("copies multiples of 2^{} bytes only, a block has 4096",
                                       parameters.granularity_log2));
  }
  uint64_t segment_bytes = kSegmentLbasMax * lba_bytes;
  if (parameters.segment_bytes_max != 0) {
    segment_bytes = std::min<uint64_t>(segment_bytes, parameters.segment_bytes_max);
  }
  if (segment_bytes < kBlockBytes) {
    return std::unexpected(
        fmt::format("copies at most {} bytes per segment, a block has 4096", segment_bytes));
  }

  XcopyLimits limits;
  limits.two_cscds = parameters.cscds_max >= 2;
  limits.segment_blocks_max = std::min(segment_bytes / kBlockBytes, kCommandBlocksMax);
  // Room is left for two CSCDs, so that the number does not depend on how many it will be.
  const uint64_t room = parameters.descriptor_bytes_max;
  const uint64_t cscd_room = 2 * sizeof(XcopyCscd);
  const uint64_t by_room =
      room > cscd_room ? (room - cscd_room) / sizeof(XcopySegmentDescriptor) : 0;
  const uint64_t segments = std::min<uint64_t>({parameters.segments_max, by_room, kSegmentsMax});
  limits.segments_max = static_cast<uint32_t>(std::max<uint64_t>(segments, 1));
  // segments_max * segment_blocks_max is at most 256 * 4096.
  limits.command_blocks_max =
      std::min(limits.segments_max * limits.segment_blocks_max, kCommandBlocksMax);

  const uint32_t copies =
      parameters.no_list_id ? parameters.copies_total : uint32_t{parameters.copies_max};
  limits.in_flight_max = std::clamp(copies, kInFlightMin, kInFlightMax);
  limits.list_id = parameters.no_list_id           ? XcopyListId::kNone
                   : parameters.held_data_max == 0 ? XcopyListId::kDiscard
                                                   : XcopyListId::kHold;
  return limits;
}

}  // namespace cofs
