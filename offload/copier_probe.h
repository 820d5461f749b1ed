// probe_copiers: which ways of copying a target offers, and why it does not offer the others.
//
// An image file may be cloned within by its host filesystem. A block device is followed down to its
// disks (offload/device_stack.h), and they are asked for NVMe Copy, or for SCSI EXTENDED COPY and token
// copy. Before any disk is trusted with copies, blocks are read through the target and from the place
// on the disk that the stack says they have: a copy to a wrong place would destroy what is there.
// Nothing is written.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "offload/device_copier.h"
#include "offload/target.h"

namespace cofs {

struct ProbedCopiers {
  struct Offer {
    std::unique_ptr<DeviceCopier> copier;
    bool automatic = true;  // false: to be used only where it is asked for by its name
  };
  std::vector<Offer> offers;          // best first
  std::vector<std::string> refusals;  // one line each, beginning with the engine or the device
};

// `target` and `sink` must outlive the copiers.
ProbedCopiers probe_copiers(const OpenedTarget& target, uint64_t block_count, RequestSink& sink);

}  // namespace cofs
