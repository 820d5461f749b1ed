// DeviceCopier: one way of having data copied without the host reading it. A device asks its
// copiers for copy operations by path; what it offers is what they state in limits().
#pragma once

#include "offload/device.h"
#include "offload/request_list.h"

namespace cofs {

class DeviceCopier {
 public:
  // All requests are finished.
  virtual ~DeviceCopier() = default;

  // Constant from construction on.
  virtual const CopyLimits& limits() const = 0;

  // Takes a kCopy request that keeps to limits() and lies on the device, and hands it, when it is
  // done, to the sink given at construction, with result and good_blocks set. Called outside the
  // core by any thread; must not block: the thread may be one that serves the filesystem's users.
  // request.timeout_ns goes to the driver, which aborts the command then; the copier waits for that
  // as long as it takes (the caller has a timer of its own). Errors in the result: kNotSupported (the
  // device refused this kind of command: the caller goes another way), kTimedOut (it may still take
  // effect, and nobody will say when), kNoSpace, kIo. The text of an error is a reason for a person;
  // it is counted by its text, so it must be one of few.
  virtual void start(IoRequest& request) = 0;
};

}  // namespace cofs
