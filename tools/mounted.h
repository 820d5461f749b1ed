// The client side of the private ioctls (fs/cofs_ioctl.h), for commands that talk to a mounted
// volume.
#pragma once

#include <expected>
#include <string>

#include "offload/target.h"

namespace cofs {

class MountedVolume {
 public:
  // `path` is any file or directory on the mount. Errors: one line for a person.
  static std::expected<MountedVolume, std::string> open(const std::string& path);

  std::expected<void, std::string> sync();
  std::expected<std::string, std::string> statistics();
  std::expected<int, std::string> server_pid();

 private:
  explicit MountedVolume(OwnedFd fd) : fd_(std::move(fd)) {}
  OwnedFd fd_;
};

}  // namespace cofs
