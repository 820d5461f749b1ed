#include "offload/target_geometry.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>

namespace cofs {

namespace {

// A number from the request queue's attributes of a block device, or of the whole disk of a
// partition.
std::optional<uint64_t> queue_attribute(dev_t device, const char* name) {
  for (const char* up : {"", "../"}) {
    std::ifstream file(
        fmt::format("/sys/dev/block/{}:{}/{}queue/{}", major(device), minor(device), up, name));
    uint64_t value = 0;
    if (file >> value) return value;
  }
  return std::nullopt;
}

Result<> add_block_device(const OpenedTarget& target, DeviceGeometry& geometry) {
  int lba_bytes = 0;
  if (ioctl(target.fd(), BLKSSZGET, &lba_bytes) != 0 || lba_bytes <= 0) {
    return fail(code_of_errno(errno), "cannot get the logical block size of the device");
  }
  geometry.lba_bytes = static_cast<uint32_t>(lba_bytes);
  if (geometry.lba_bytes > kBlockBytes) {
    return fail(Code::kNotSupported, "device's logical blocks are larger than 4096 bytes",
                geometry.lba_bytes);
  }
  struct stat status {};
  if (fstat(target.fd(), &status) != 0) return fail(Code::kIo, "cannot stat the target");
  uint64_t most = queue_attribute(status.st_rdev, "discard_max_bytes").value_or(0);
  uint64_t granularity = queue_attribute(status.st_rdev, "discard_granularity").value_or(0);
  geometry.can_discard = most > 0 && !target.read_only();
  geometry.discard_granularity_blocks =
      static_cast<uint32_t>(std::clamp<uint64_t>(blocks_of_bytes(granularity), 1, UINT32_MAX));
  return {};
}

Result<> add_image(const OpenedTarget& target, DeviceGeometry& geometry) {
  struct stat status {};
  if (fstat(target.fd(), &status) != 0) return fail(Code::kIo, "cannot stat the target");
  geometry.discard_granularity_blocks = static_cast<uint32_t>(
      std::max<uint64_t>(1, blocks_of_bytes(static_cast<uint64_t>(status.st_blksize))));
  // A hole beyond the end changes nothing, and is refused where holes cannot be punched at all.
  geometry.can_discard =
      !target.read_only() && fallocate(target.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                       static_cast<off_t>(target.size_bytes()), kBlockBytes) == 0;
  return {};
}

}  // namespace

Result<DeviceGeometry> geometry_of(const OpenedTarget& target) {
  DeviceGeometry geometry;
  geometry.name = target.path();
  geometry.block_count = target.size_bytes() >> kBlockShift;
  geometry.is_block_device = target.is_block_device();
  if (geometry.block_count == 0) {
    return fail(Code::kInvalid, "target is smaller than one block of 4096 bytes",
                target.size_bytes());
  }
  Result<> added =
      target.is_block_device() ? add_block_device(target, geometry) : add_image(target, geometry);
  COFS_TRY(added);
  return geometry;
}

}  // namespace cofs
