// The CloneSystem of calls made by this process itself, on its own descriptors and memory: for the
// preloaded library and for `cofs clone`. Async-signal-safe; errno is as it was afterwards.
#pragma once

#include "tools/ficlone/clone_calls.h"

namespace cofs {

// Raw system calls, so that nothing that a program put before the C library is called twice. Those
// on descriptors work for any process's calls if the descriptors are ours.
const CloneSystem& own_process();

}  // namespace cofs
