// CopyRates: how fast each way of copying is on one device, by the length of the source ranges, and
// the rule that chooses between the device and the host by it.
//
// Measured by measure_copies() (offload/copy_meter.h), kept in the volume's superblock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "offload/device.h"

namespace cofs {

// Source ranges of 4 KiB, 64 KiB, 1 MiB and 8 MiB; a length counts as the next shorter of these.
inline constexpr std::array<uint64_t, 4> kRateRangeBlocks = {1, 16, 256, 2048};
inline constexpr size_t kRateClasses = kRateRangeBlocks.size();
inline constexpr size_t kRateEnginesMax = 4;       // "host" and what a device can offer at once
inline constexpr size_t kEngineNameBytesMax = 15;

struct CopyRate {
  std::string engine;                                   // as in CopyLimits, or "host"
  std::array<uint64_t, kRateClasses> bytes_per_second{};  // 0: it failed, or copied wrong bytes
};

struct CopyRates {
  // Of what the device offered when it was measured (copy_signature); 0: never measured.
  uint64_t signature = 0;
  std::vector<CopyRate> engines;

  const CopyRate* find(std::string_view engine) const;
};

size_t rate_class(uint64_t range_blocks);

// Why `engine` should not copy ranges of this length; empty: it should. The host is taken only where
// it is at least twice as fast: a copy by the device costs it neither bus nor memory bandwidth nor
// processor time, which no rate shows (docs/decisions/0008). Without rates the device is taken.
std::string_view better_not(const CopyRates& rates, std::string_view engine, uint64_t range_blocks);

// A number for all that the rates depend on and the device tells of itself: engines, their limits, size.
uint64_t copy_signature(const DeviceGeometry& geometry);

}  // namespace cofs
