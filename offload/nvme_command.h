// NvmeCommand: one copy request on its way to a device as one Copy command. Used in turn for many
// requests, with memory of its own for the range list.
//
// It changes blocks of the volume to LBAs of the disk that they lie on, encodes the command, and
// sets the request's result from the completion. It does no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "offload/device.h"
#include "offload/device_stack.h"
#include "offload/nvme_format.h"
#include "offload/uring.h"

namespace cofs {

// Where the commands for a disk go.
struct NvmeDestination {
  int fd = -1;
  uint32_t namespace_id = 0;
};

class NvmeCommand {
 public:
  // Neither the list nor what the spans and references name may go away before the command.
  // `list` has room for kNvmeCopyRangesMax; `destinations` are those of stack.disks.
  NvmeCommand(const DeviceStack& stack, std::span<const NvmeDestination> destinations,
              std::span<NvmeSourceRange> list);

  // REQUIRES: a kCopy within the limits, all of it on one disk, each range in one region.
  void begin(IoRequest& request);

  int fd() const { return destination_.fd; }
  std::span<const std::byte> payload() const { return std::as_bytes(std::span(&command_, 1)); }
  IoRequest& request() const { return *request_; }

  // Takes a completion. True when the request is finished, with its result set; false when the
  // command never got to the device for want of resources, and is to be sent again.
  bool finish(const CommandCompletion& completion);

 private:
  static constexpr uint32_t kRetriesMax = 100;  // each waits in the kernel for its turn

  const DeviceStack& stack_;
  std::span<const NvmeDestination> destinations_;
  std::span<NvmeSourceRange> list_;
  IoRequest* request_ = nullptr;
  NvmeDestination destination_;
  nvme_uring_cmd command_{};
  uint32_t retries_ = 0;
};

}  // namespace cofs
