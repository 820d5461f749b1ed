// measure_copies: how fast each way of copying is on a device, and whether it copies at all.
//
// It writes random data into the first half of a scratch run, has every engine and the host gather
// ranges of each length from there into the second half for a short time, and compares what arrived.
// What the scratch run held is lost; nothing else is written.
#pragma once

#include <cstdint>
#include <functional>

#include "offload/copy_rates.h"
#include "offload/device.h"

namespace cofs {

struct MeterOptions {
  BlockRange scratch;                    // at least kMeterBlocksMin
  uint64_t point_ns = 100'000'000;       // how long one engine is tried at one length, at least
  uint64_t command_timeout_ns = 10'000'000'000;
  std::function<bool()> stop;            // asked between copies; may be empty
  MeterOptions() = default;
};
inline constexpr uint64_t kMeterBlocksMin = 64;

struct MeterOutcome {
  CopyRates rates;  // lengths that the scratch run is too short for have the rate of the next shorter
  // A command timed out: it may still write into the scratch run.
  bool scratch_in_doubt = false;
};

// Errors: kIo and others of reading and writing by the host; kBusy when it was stopped; kInvalid for a
// scratch run that is too short or off the device.
Task<Result<MeterOutcome>> measure_copies(Device* device, Executor* executor, Clock* clock,
                                          BufferPool* buffers, Journal* journal,
                                          MeterOptions options);

}  // namespace cofs
