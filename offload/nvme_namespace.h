// NvmeNamespace: the character device of an NVMe namespace, found for its block device, and what
// Identify says of it. The only place where libnvme enters.
//
// The two devices' names agree only by chance: numbers are given as namespaces are found, and are
// not namespace IDs. So each character device under the same controller (or subsystem, for a
// multipath head) is asked, and must give the namespace ID and the identity that the block device
// gives. Nothing is written, and no Copy is sent, to find out.
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "offload/device_stack.h"
#include "offload/nvme_limits.h"
#include "offload/target.h"

namespace cofs {

class NvmeNamespace {
 public:
  // Opens for reading and writing, as the kernel demands for Copy by ordinary users. Where /dev
  // lacks a node (containers), it makes one for the moment of opening, which takes root. The error
  // is the reason for a person: "nvme: cannot open /dev/ng0n1: Permission denied; …".
  static std::expected<NvmeNamespace, std::string> open(const StackDisk& disk);

  int fd() const { return fd_.get(); }
  uint32_t id() const { return id_; }
  const NvmeIdentify& identify() const { return identify_; }

 private:
  NvmeNamespace() = default;

  OwnedFd fd_;
  uint32_t id_ = 0;
  NvmeIdentify identify_;
};

}  // namespace cofs
