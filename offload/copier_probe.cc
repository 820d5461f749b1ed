#include "offload/copier_probe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "offload/device_node.h"
#include "offload/device_stack.h"
#include "offload/file_cloner.h"
#include "offload/nvme_copier.h"
#include "offload/token_copier.h"
#include "offload/xcopy_copier.h"

namespace cofs {
namespace {

constexpr size_t kRegionsChecked = 64;        // more are checked by sample
constexpr uint64_t kSuperblockBlock = 16;     // on a volume of ours: the one block that is like no other

using AlignedBlock = std::unique_ptr<std::byte, decltype(&std::free)>;

AlignedBlock make_block() {
  return {static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, kBlockBytes)), &std::free};
}

bool read_block(int fd, uint64_t byte, std::byte* block) {
  return pread(fd, block, kBlockBytes, static_cast<off_t>(byte)) ==
         static_cast<ssize_t>(kBlockBytes);
}

// Compares what the target and the disks hold at places that should be the same. The error is for a
// person.
std::expected<void, std::string> check_places(const OpenedTarget& target, const DeviceStack& stack) {
  // Opened once more: the target's own descriptor may be without O_DIRECT, and the page cache knows the
  // partition and the disk as two devices.
  const std::string again = fmt::format("/proc/self/fd/{}", target.fd());
  const OwnedFd whole(open(again.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!whole.valid()) {
    return std::unexpected(
        fmt::format("{}: cannot be read directly: {}", target.path(), std::strerror(errno)));
  }
  std::vector<OwnedFd> disks;
  for (const StackDisk& disk : stack.disks) {
    auto fd = open_device_node({S_IFBLK, disk.number, disk.name}, O_RDONLY | O_DIRECT);
    if (!fd) {
      return std::unexpected(fmt::format("{}: cannot be opened to check where {} lies on it: {}",
                                         disk.name, target.path(), std::strerror(fd.error())));
    }
    disks.push_back(std::move(*fd));
  }
  const AlignedBlock by_target = make_block();
  const AlignedBlock by_disk = make_block();
  const auto agrees = [&](uint64_t block) {
    const std::optional<StackLocation> place = stack.locate(BlockRange{block, 1});
    if (!place) return true;  // not on one disk alone, so never copied by one
    if (!read_block(whole.get(), bytes_of_blocks(block), by_target.get())) return true;  // damaged
    return read_block(disks[place->disk].get(), place->byte, by_disk.get()) &&
           std::memcmp(by_target.get(), by_disk.get(), kBlockBytes) == 0;
  };
  std::vector<uint64_t> blocks = {kSuperblockBlock};
  const size_t step = std::max<size_t>(1, stack.regions.size() / kRegionsChecked);
  for (size_t i = 0; i < stack.regions.size(); i += step) {
    const BlockRange region = stack.regions[i].blocks;
    for (uint64_t block : {region.start, region.start + region.count / 2, region.end() - 1}) {
      blocks.push_back(block);
    }
  }
  for (uint64_t block : blocks) {
    if (!agrees(block)) {
      return std::unexpected(fmt::format(
          "{}: block {} is not where the device tables say it lies on its disk", target.path(), block));
    }
  }
  return {};
}

template <class Copier>
void take(std::expected<std::unique_ptr<Copier>, std::string> probed, bool automatic,
          ProbedCopiers& out) {
  if (probed) {
    out.offers.push_back({std::move(*probed), automatic});
  } else {
    out.refusals.push_back(std::move(probed.error()));
  }
}

void probe_scsi(const DeviceStack& stack, uint64_t block_count, RequestSink& sink,
                ProbedCopiers& out) {
  auto disks = open_scsi_disks(stack);
  if (!disks) {
    out.refusals.push_back(disks.error());
    return;
  }
  take(XcopyCopier::probe(stack, block_count, *disks, sink), true, out);
  const bool has_xcopy = !out.offers.empty();
  take(TokenCopier::probe(stack, block_count, *disks, sink), !has_xcopy, out);
}

}  // namespace

ProbedCopiers probe_copiers(const OpenedTarget& target, uint64_t block_count, RequestSink& sink) {
  ProbedCopiers out;
  if (!target.is_block_device()) {
    take(FileCloner::probe(target, sink), true, out);
    return out;
  }
  if (target.read_only()) {
    out.refusals.emplace_back("device: the target is opened read-only");
    return out;
  }
  const auto stack = read_device_stack(target);
  if (!stack) {
    out.refusals.push_back("device: " + stack.error());
    return out;
  }
  if (auto checked = check_places(target, *stack); !checked) {
    out.refusals.push_back("device: " + checked.error());
    return out;
  }
  if (stack->disks.front().kind == DiskKind::kNvme) {
    take(NvmeCopier::probe(*stack, block_count, target.lock_fd(), sink), true, out);
  } else {
    probe_scsi(*stack, block_count, sink, out);
  }
  return out;
}

}  // namespace cofs
