// The client side of the private ioctls (fs/cofs_ioctl.h), for commands that talk to a mounted
// volume.
#pragma once

#include <expected>
#include <string>

#include "offload/target.h"

namespace cofs {

// What an errno of a private ioctl means, for a person.
std::string ioctl_words(int error_number);

class MountedVolume {
 public:
  // `path` is any file or directory on the mount. Errors: one line for a person.
  static std::expected<MountedVolume, std::string> open(const std::string& path);

  std::expected<void, std::string> sync();
  std::expected<std::string, std::string> statistics();
  // What the last scrub found, a line for each problem.
  std::expected<std::string, std::string> scrub_problems();
  std::expected<int, std::string> server_pid();
  // One private ioctl of cofs_ioctl.h; `argument` points to its structure. An errno, 0: it was done.
  int call(unsigned long command, void* argument);

 private:
  std::expected<std::string, std::string> text(unsigned long command);

  explicit MountedVolume(OwnedFd fd) : fd_(std::move(fd)) {}
  OwnedFd fd_;
};

}  // namespace cofs
