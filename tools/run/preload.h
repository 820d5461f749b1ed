// The preloaded library of `cofs run` in this process's environment: how it gets in, and out again.
#pragma once

#include <string>

namespace cofs {

// For the program that this process becomes. `as_xfs`: statfs shall call cofs xfs. Returns why the
// library cannot be used, or nothing.
std::string add_preload(bool as_xfs);

// Starts this program again without the library if it was loaded with it; returns if there is
// nothing to do. For servers: their calls are about what is below the mount, and they live longer
// than what they were started by.
void leave_preload();

}  // namespace cofs
