#include "offload/nvme_copier.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <optional>

namespace cofs {

std::expected<std::unique_ptr<NvmeCopier>, std::string> NvmeCopier::probe(
    const DeviceStack& stack, uint64_t block_count, int lock_fd, RequestSink& sink) {
  COFS_ASSERT(!stack.disks.empty());
  std::unique_ptr<NvmeCopier> copier(new NvmeCopier);
  std::vector<NvmeDestination> destinations;
  std::optional<NvmeLimits> limits;
  for (const StackDisk& disk : stack.disks) {
    COFS_ASSERT(disk.kind == DiskKind::kNvme);
    auto space = NvmeNamespace::open(disk);
    if (!space) return std::unexpected(space.error());
    auto own = nvme_copy_limits(space->identify(), disk.lba_bytes);
    if (!own) return std::unexpected(fmt::format("nvme: {} {}", disk.name, own.error()));
    limits = limits ? smaller_limits(*limits, *own) : *own;
    destinations.push_back({space->fd(), space->id()});
    copier->namespaces_.push_back(std::move(*space));
  }
  copier->limits_.path = CopyPath::kDevice;
  copier->limits_.engine = "nvme";
  copier->limits_.ranges_max = limits->ranges_max;
  copier->limits_.range_blocks_max = limits->range_blocks_max;
  copier->limits_.operation_blocks_max = limits->command_blocks_max;
  copier->limits_.in_flight_max = nvme_commands_in_flight(*limits);
  copier->limits_.regions = stack.copy_regions(block_count);
  auto thread = NvmeCopyThread::start(stack, std::move(destinations),
                                      copier->limits_.in_flight_max, lock_fd, sink);
  if (!thread) {
    return std::unexpected(fmt::format("nvme: cannot have an io_uring for commands: {}{}",
                                       std::strerror(thread.error()),
                                       thread.error() == EINVAL ? " (Linux 5.19 has them)" : ""));
  }
  copier->thread_ = std::move(*thread);
  return copier;
}

void NvmeCopier::start(IoRequest& request) {
  thread_->submit(request);
}

}  // namespace cofs
