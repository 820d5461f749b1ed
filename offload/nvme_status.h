// What the completion of a Copy command says: how far it came, and why no further.
//
// A failed Copy names in DW0 the first source range that was not copied; all before it are. That is
// believed only where the controller got as far as to copy, and within the ranges that there were.
#pragma once

#include <cstdint>
#include <span>

#include "offload/base/error.h"
#include "offload/base/units.h"

namespace cofs {

struct NvmeOutcome {
  Result<> result;
  uint64_t good_blocks = 0;  // from the first source on
};

// `outcome` is what the driver reports: 0, an NVMe status with its flags, or a negative errno.
// Errors: kNotSupported (the device, or the kernel, refuses such commands), kTimedOut (the driver
// gave up and the device said nothing: it may still write), kNoSpace, kIo.
NvmeOutcome outcome_of(int32_t outcome, uint32_t dw0, std::span<const BlockRange> sources);

}  // namespace cofs
