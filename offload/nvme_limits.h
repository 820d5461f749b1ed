// What a namespace says of its Copy command, and what we make of it.
//
// Pure arithmetic over fields of Identify, none of which is trusted: zero means no copying, limits
// that contradict each other are cut to the smaller, huge ones to what the command can carry.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <string>

#include "offload/base/units.h"

namespace cofs {

// One command copies no more: larger ones gain nothing, keep the device's queue from others for
// longer, and bring slow firmware near the driver's timeout.
inline constexpr uint64_t kNvmeCommandBytesMax = uint64_t{16} << 20;

// Commands in flight: enough for this many bytes, within the bounds. A device with small limits
// needs many to be kept busy; with large ones many would only let reads and writes wait.
inline constexpr uint64_t kNvmeInFlightBytes = uint64_t{64} << 20;
inline constexpr uint32_t kNvmeInFlightMin = 8;
inline constexpr uint32_t kNvmeInFlightMax = 64;

// Raw fields, as read.
struct NvmeIdentify {
  struct LbaFormat {
    uint16_t metadata_bytes = 0;
    uint8_t data_shift = 0;  // LBA size is 2 to this power
  };

  // Of the controller.
  uint16_t oncs = 0;  // optional commands; bit 8: Copy
  uint16_t ocfs = 0;  // descriptor formats of Copy, a bit each; 0 from controllers that knew only 0
  // Of the namespace.
  uint16_t mssrl = 0;  // LBAs in one source range
  uint32_t mcl = 0;    // LBAs in one command
  uint8_t msrc = 0;    // source ranges in one command, less one
  uint8_t nlbaf = 0;   // LBA formats, less one
  uint8_t flbas = 0;   // index of the one in use: bits 3:0, and 6:5 above them
  uint8_t dps = 0;     // protection information in use
  std::array<LbaFormat, 64> formats{};
};

// In blocks, each at least 1.
struct NvmeLimits {
  uint32_t ranges_max = 0;
  uint64_t range_blocks_max = 0;
  uint64_t command_blocks_max = 0;

  bool operator==(const NvmeLimits&) const = default;
};

// `lba_bytes` is what the kernel takes the namespace's LBA for. The error continues the namespace's
// name in a sentence: "does not support Copy (ONCS 0x5d)".
std::expected<NvmeLimits, std::string> nvme_copy_limits(const NvmeIdentify& identify,
                                                        uint32_t lba_bytes);

// The limits that both keep.
NvmeLimits smaller_limits(const NvmeLimits& a, const NvmeLimits& b);

uint32_t nvme_commands_in_flight(const NvmeLimits& limits);

}  // namespace cofs
