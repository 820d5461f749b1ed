// NvmeCopier: copies within NVMe namespaces by their Copy command, sent through io_uring to the
// namespaces' character devices, many at once.
//
// Offered where every disk under the volume supports the command in the format that its namespace
// has; the limits are those that all the disks keep. A copy is as durable as a write: by the next
// flush. Reads and writes by O_DIRECT see what was copied; a buffered reader of the block device
// may see its page cache.
#pragma once

#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "offload/device_copier.h"
#include "offload/device_stack.h"
#include "offload/nvme_copy_thread.h"
#include "offload/nvme_namespace.h"

namespace cofs {

class NvmeCopier final : public DeviceCopier {
 public:
  // Opens the namespaces' character devices, asks for their limits, and starts the thread. Sends no
  // Copy. The error is the reason for which copying is not offered, for a person: "nvme: nvme0n1
  // does not support Copy (ONCS 0x5d)". `lock_fd` holds the lock on the target, which is kept until
  // the last command has ended, also when this process is killed. `sink` must outlive the copier.
  // REQUIRES: a disk at least, all of them NVMe.
  static std::expected<std::unique_ptr<NvmeCopier>, std::string> probe(
      const DeviceStack& stack, uint64_t block_count, int lock_fd, RequestSink& sink);

  const CopyLimits& limits() const override { return limits_; }
  void start(IoRequest& request) override;

 private:
  NvmeCopier() = default;

  std::vector<NvmeNamespace> namespaces_;  // as the stack's disks
  CopyLimits limits_;
  std::unique_ptr<NvmeCopyThread> thread_;
};

}  // namespace cofs
