// The CPUs that this process may run on.
#pragma once

#include <cstdint>

namespace cofs {

// At least 1; what sched_getaffinity(2) says of the calling thread now.
uint32_t usable_cpus();

}  // namespace cofs
