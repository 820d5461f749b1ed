// One SCSI command with what must be tried again, its outcome judged.
//
// UNIT ATTENTION only says that something happened before; the command was not executed and is sent
// again. BUSY and TASK SET FULL ask for a pause. Everything else that is not good is an error whose
// text is a reason for a person, one of a fixed list.
#pragma once

#include <chrono>
#include <cstdint>

#include "offload/base/error.h"
#include "offload/scsi_transport.h"

namespace cofs {

// Of the questions asked at open: a disk that does not answer these soon serves nobody.
inline constexpr std::chrono::seconds kScsiQuestionTimeout{10};

// The bytes that were received. Errors: kNotSupported (the device, or the kernel, refuses this kind of
// command for good), kNoSpace, kTimedOut (it may still take effect), kIo.
Result<uint32_t> exchange(ScsiTransport& disk, const ScsiCommand& command);

// The timeout of a command for a request's: 0 is 60 seconds.
std::chrono::milliseconds scsi_timeout(uint64_t timeout_ns);

}  // namespace cofs
