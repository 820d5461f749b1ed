// Sense data: why a device did not execute a SCSI command, and what that means for a copy.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "offload/base/error.h"

namespace cofs {

struct ScsiSense {
  uint8_t key = 0;
  uint8_t asc = 0;        // ADDITIONAL SENSE CODE
  uint8_t ascq = 0;       // ADDITIONAL SENSE CODE QUALIFIER
  bool deferred = false;  // about an earlier command; this one was not executed

  bool operator==(const ScsiSense&) const = default;
};

inline constexpr uint8_t kSenseRecovered = 0x1;  // the command was executed
inline constexpr uint8_t kSenseUnitAttention = 0x6;

// Fixed and descriptor format. Nothing where there is no sense data that could be told.
std::optional<ScsiSense> parse_sense(std::span<const uint8_t> data);

// The error of a command that ended so; its text is one of a fixed list. kNotSupported: the device
// refuses this kind of command, another of the same kind would end alike.
Error error_of_sense(const ScsiSense& sense);

}  // namespace cofs
