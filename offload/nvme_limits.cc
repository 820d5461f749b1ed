#include "offload/nvme_limits.h"

#include <fmt/format.h>

#include <algorithm>

#include "offload/nvme_format.h"

namespace cofs {

namespace {

constexpr uint16_t kOncsCopy = 1 << 8;
constexpr uint16_t kOcfsFormat0 = 1 << 0;

// The LBA format in use. The upper bits of the index count only where there are so many formats.
const NvmeIdentify::LbaFormat& format_in_use(const NvmeIdentify& identify) {
  size_t index = identify.flbas & 0xf;
  if (identify.nlbaf >= 16) index |= (identify.flbas & 0x60) >> 1;
  return identify.formats[index];
}

// Empty, or why the namespace's format does not suit.
std::string objection_to_format(const NvmeIdentify& identify, uint32_t lba_bytes) {
  const NvmeIdentify::LbaFormat& format = format_in_use(identify);
  if (format.metadata_bytes != 0) {
    return fmt::format("is formatted with {} bytes of metadata per LBA", format.metadata_bytes);
  }
  if (identify.dps != 0) {
    return fmt::format("is formatted with protection information (DPS {:#x})", identify.dps);
  }
  if (format.data_shift < 9 || format.data_shift > kBlockShift) {
    return fmt::format("has LBAs of 2^{} bytes, which cannot be used", format.data_shift);
  }
  if (lba_bytes != uint32_t{1} << format.data_shift) {
    return fmt::format("has LBAs of {} bytes, of which the kernel makes {}",
                       uint32_t{1} << format.data_shift, lba_bytes);
  }
  return "";
}

}  // namespace

std::expected<NvmeLimits, std::string> nvme_copy_limits(const NvmeIdentify& identify,
                                                        uint32_t lba_bytes) {
  if ((identify.oncs & kOncsCopy) == 0) {
    return std::unexpected(fmt::format("does not support Copy (ONCS {:#x})", identify.oncs));
  }
  if (identify.ocfs != 0 && (identify.ocfs & kOcfsFormat0) == 0) {
    return std::unexpected(
        fmt::format("does not support Copy's descriptor format 0 (OCFS {:#x})", identify.ocfs));
  }
  std::string objection = objection_to_format(identify, lba_bytes);
  if (!objection.empty()) return std::unexpected(objection);
  if (identify.mssrl == 0 || identify.mcl == 0) {
    return std::unexpected(
        fmt::format("limits Copy to nothing (MSSRL {}, MCL {})", identify.mssrl, identify.mcl));
  }
  NvmeLimits limits;
  limits.ranges_max = std::min<uint32_t>(identify.msrc + uint32_t{1}, kNvmeCopyRangesMax);
  uint64_t command_bytes = std::min(uint64_t{identify.mcl} * lba_bytes, kNvmeCommandBytesMax);
  uint64_t range_bytes = std::min(uint64_t{identify.mssrl} * lba_bytes, command_bytes);
  limits.command_blocks_max = command_bytes >> kBlockShift;
  limits.range_blocks_max = range_bytes >> kBlockShift;
  if (limits.range_blocks_max == 0) {
    return std::unexpected(
        fmt::format("copies less than a block of 4096 bytes at once (MSSRL {}, MCL {})",
                    identify.mssrl, identify.mcl));
  }
  return limits;
}

NvmeLimits smaller_limits(const NvmeLimits& a, const NvmeLimits& b) {
  NvmeLimits smaller;
  smaller.ranges_max = std::min(a.ranges_max, b.ranges_max);
  smaller.range_blocks_max = std::min(a.range_blocks_max, b.range_blocks_max);
  smaller.command_blocks_max = std::min(a.command_blocks_max, b.command_blocks_max);
  return smaller;
}

uint32_t nvme_commands_in_flight(const NvmeLimits& limits) {
  uint64_t commands = kNvmeInFlightBytes / bytes_of_blocks(limits.command_blocks_max);
  return static_cast<uint32_t>(std::clamp<uint64_t>(commands, kNvmeInFlightMin, kNvmeInFlightMax));
}

}  // namespace cofs
