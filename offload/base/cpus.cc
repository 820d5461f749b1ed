#include "offload/base/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <vector>

namespace cofs {

uint32_t usable_cpus() {
  // The kernel refuses a set that is smaller than its own (EINVAL), of which it tells no size.
  constexpr size_t kSetsMax = 64;  // of 1,024 CPUs each
  for (size_t sets = 1; sets <= kSetsMax; sets *= 2) {
    std::vector<cpu_set_t> cpus(sets);
    const size_t bytes = sets * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, cpus.data()) == 0) {
      return static_cast<uint32_t>(std::max(1, CPU_COUNT_S(bytes, cpus.data())));
    }
    if (errno != EINVAL) break;
  }
  return 1;
}

}  // namespace cofs
