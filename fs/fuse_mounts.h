// What is mounted where, as /proc/self/mountinfo says: without touching any mount, so that it works
// for dead ones and inside a server too.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace cofs {

struct MountEntry {
  std::string device;       // "major:minor" of the filesystem
  std::string root;         // of the filesystem, what is seen there: "/" but for bind mounts
  std::string mount_point;  // absolute, without symbolic links
  std::string options;      // per mount: "rw,nosuid,…"
  std::string type;         // "fuse.cofs", "ext4", …
  std::string source;

  bool is_cofs() const { return type == "fuse.cofs" || type == "fuseblk.cofs"; }
};

// In mount order; empty if the file cannot be read.
std::vector<MountEntry> read_mounts();

// The topmost mount whose mount point is exactly `path`.
std::optional<MountEntry> mount_at(const std::string& path);

// `path` absolute and without symbolic links. Its last component is not entered, so this works for
// the mount point of a dead server. Empty, with errno set, if a directory on the way does not
// exist.
std::string resolve_mount_point(const std::string& path);

}  // namespace cofs
