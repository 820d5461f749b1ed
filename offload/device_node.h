// open_device_node: a device opened by its number, also where /dev has no node for it (containers, an
// initramfs without udev).
#pragma once

#include <sys/types.h>

#include <expected>
#include <string>

#include "offload/target.h"

namespace cofs {

struct DeviceNode {
  mode_t type = 0;    // S_IFBLK or S_IFCHR
  dev_t number = 0;
  std::string name;   // the kernel's, where it is expected under /dev: "nvme0n1", "mapper/control"
};

// Opens /dev/NAME if that is the device; otherwise makes a node for the moment of opening, in a directory
// that only we can enter, which takes root. `flags` as for open(2). The error is an errno: of opening the
// node if there is one, else of making one.
std::expected<OwnedFd, int> open_device_node(const DeviceNode& node, int flags);

// A shell command that makes the missing node, for messages: "mknod /dev/ng0n1 c 241 0".
std::string mknod_command(const DeviceNode& node);

}  // namespace cofs
