// The statistics of a mounted volume as JSON: made by the server, shown by `cofs stat`. The names
// of the members are a contract with scripts.
#pragma once

#include <string>

#include "fs/filesystem.h"
#include "fs/fuse_server.h"

namespace cofs {

// To be called inside the core.
std::string statistics_text(FileSystem& fs, const FuseServer& server);

}  // namespace cofs
