// Copies a file or a tree on one mounted volume as `cp -a` does, with the data of files cloned: by
// an announced copy that shares blocks or has the device copy them, and never takes data through
// the host. Modes, owners, times, extended attributes (ACLs among them), hard links, symbolic
// links, holes and special files are kept. Works below directories that it holds open, so that a
// directory that is exchanged meanwhile leads nowhere else. Not for: copies between filesystems.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "offload/target.h"

namespace cofs {

struct CloneTotals {
  uint64_t files = 0;  // regular ones, each link of several counted
  uint64_t directories = 0;
  uint64_t others = 0;      // symbolic links and special files
  uint64_t size_bytes = 0;  // as of files cloned
  uint64_t shared_bytes = 0;
  uint64_t copied_bytes = 0;  // by the device, or the filesystem below the image
  uint64_t inline_bytes = 0;  // small files, in their records
};

struct CloneOptions {
  bool is_recursive = false;
  bool replaces = false;  // files that are there already
};

class TreeCloner {
 public:
  // After each file: its target's path, and what became of its data.
  using Report = std::function<void(const std::string& path, const CloneTotals& file)>;

  TreeCloner(CloneOptions options, Report report) : options_(options), report_(std::move(report)) {}

  // `target` is the name that the copy gets. Errors: "PATH: why"; what was copied until then stays,
  // the file it happened at is not there.
  std::expected<void, std::string> clone(const std::string& source, const std::string& target);

  const CloneTotals& totals() const { return totals_; }

 private:
  // A name in an open directory; `path` is for messages.
  struct Place {
    int directory;
    std::string name;
    std::string path;
  };
  using Outcome = std::expected<void, std::string>;

  Outcome clone_entry(const Place& source, const Place& target);
  Outcome clone_directory(const Place& source, const Place& target, const struct stat& info);
  Outcome clone_file(const Place& source, const Place& target, const struct stat& info);
  Outcome clone_link(const Place& source, const Place& target, const struct stat& info);
  Outcome clone_special(const Place& source, const Place& target, const struct stat& info);
  Outcome clone_children(const Place& source, const Place& target, int source_fd, int target_fd);
  Outcome link_again(const Place& target, const std::string& earlier);
  // Makes something under `target`'s name or, where that is taken and may be replaced, under
  // another, and then exchanges it. `make` returns an errno or 0, and tells whether the name is
  // there by its doing.
  using Make = std::function<int(const Place& place, bool& is_made)>;
  Outcome put(const Place& target, const Make& make);

  CloneOptions options_;
  Report report_;
  CloneTotals totals_;
  uint64_t device_ = 0;  // of the source
  std::pair<uint64_t, uint64_t> target_root_{0, 0};
  std::map<std::pair<uint64_t, uint64_t>, std::string>
      links_;  // (device, inode) → path of the copy
};

}  // namespace cofs
