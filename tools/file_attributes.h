// Carries over what a file is beside its data, as `cp -a` does: owner, mode, extended attributes,
// times.
#pragma once

#include <sys/stat.h>

#include <string>

namespace cofs {

// From the open file `source` (with `info`) to the open file or directory `target`. Others than
// root keep what they may: an owner that cannot be set takes set-id bits with it, attributes
// outside of user.* that are refused are left out. Returns 0 or an errno.
int copy_attributes(int source, const struct stat& info, int target);

// The same for a name that is not opened: a symbolic link or a special file. Links have no mode.
int copy_attributes_of_name(int source_directory, const std::string& source_name,
                            const struct stat& info, int target_directory,
                            const std::string& target_name);

}  // namespace cofs
