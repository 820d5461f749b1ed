// What can be found out about a target without writing to it: sizes, and what discarding it takes.
#pragma once

#include "offload/device.h"
#include "offload/target.h"

namespace cofs {

// The geometry without its copies. Discarding counts as possible on an image where the host
// filesystem can punch holes, on a block device where its queue says so; never on a read-only
// target. Errors: kInvalid (smaller than a block), kNotSupported (the device's own unit is larger
// than our block).
Result<DeviceGeometry> geometry_of(const OpenedTarget& target);

}  // namespace cofs
