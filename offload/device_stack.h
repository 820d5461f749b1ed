// DeviceStack: what lies under the block device that a volume is on: which blocks of it are where
// on which whole disk.
//
// A partition adds its start; a dm-linear or LVM linear volume is translated piece by piece, also
// where it lies on partitions or on other linear volumes; everything else that changes data or
// spreads it (dm-crypt, striped, RAID, loop) ends the search with a reason. Read once, at open: a
// table that is reloaded under a mounted volume is noticed by nobody, as with any mounted
// filesystem.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "offload/device.h"
#include "offload/device_mapper.h"
#include "offload/target.h"

namespace cofs {

enum class DiskKind : uint8_t { kNvme, kScsi, kOther };

// A whole disk that takes commands. `name` is the kernel's: "nvme0n1", "sda".
struct StackDisk {
  DiskKind kind = DiskKind::kOther;
  std::string name;
  dev_t number = 0;
  uint32_t lba_bytes = 512;  // 512 … 4096, a power of two
};

// Blocks of the target that lie in one piece on one disk. A block that straddles two pieces is in
// no region.
struct StackRegion {
  BlockRange blocks;
  uint32_t disk = 0;       // index into DeviceStack::disks
  uint64_t disk_byte = 0;  // where blocks.start lies; a multiple of the disk's lba_bytes
};

struct StackLocation {
  uint32_t disk = 0;
  uint64_t byte = 0;
};

struct DeviceStack {
  std::vector<StackDisk> disks;      // all of one kind
  std::vector<StackRegion> regions;  // at least one; ascending; all within the target

  // Where a range lies that is within one region; nothing otherwise.
  std::optional<StackLocation> locate(BlockRange range) const;
  // What a planner needs to know: the regions without their places. Empty where one covers all.
  std::vector<CopyRegion> copy_regions(uint64_t block_count) const;
};

// Looks at /sys, and at the device mapper's tables. The error says what cannot be seen through, for
// a person: "loop0 is a loop device: no copy command", "vg0-secret: dm-crypt transforms its data".
// `target` must be a block device.
std::expected<DeviceStack, std::string> read_device_stack(const OpenedTarget& target);

// Where the answers come from. Tests give others than the machine's.
struct StackSources {
  std::string sysfs = "/sys";
  DmTableReader* tables = nullptr;  // never null when used
};

// The same for a device of this number and size.
std::expected<DeviceStack, std::string> read_device_stack(dev_t device, uint64_t size_bytes,
                                                          const StackSources& sources);

}  // namespace cofs
