#include "offload/device_node.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace cofs {
namespace {

std::expected<OwnedFd, int> open_if_meant(const std::string& path, const DeviceNode& node,
                                          int flags) {
  OwnedFd fd(open(path.c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) return std::unexpected(errno);
  struct stat status {};
  if (fstat(fd.get(), &status) != 0) return std::unexpected(errno);
  if ((status.st_mode & S_IFMT) != node.type || status.st_rdev != node.number) {
    return std::unexpected(ENOENT);
  }
  return fd;
}

std::expected<OwnedFd, int> open_by_private_node(const std::string& parent, const DeviceNode& node,
                                                 int flags) {
  std::string directory = parent + "/.cofs-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) return std::unexpected(errno);
  const std::string path = directory + "/node";
  std::expected<OwnedFd, int> fd = std::unexpected(0);
  if (mknod(path.c_str(), node.type | 0600, node.number) == 0) {
    fd = open_if_meant(path, node, flags);
    unlink(path.c_str());
  } else {
    fd = std::unexpected(errno);
  }
  rmdir(directory.c_str());
  return fd;
}

}  // namespace

std::expected<OwnedFd, int> open_device_node(const DeviceNode& node, int flags) {
  std::expected<OwnedFd, int> fd = open_if_meant("/dev/" + node.name, node, flags);
  if (fd || (fd.error() != ENOENT && fd.error() != ENOTDIR)) return fd;
  // Filesystems that every user may write to are often mounted without device nodes.
  for (const char* parent : {"/dev", "/run", "/tmp"}) {
    std::expected<OwnedFd, int> own = open_by_private_node(parent, node, flags);
    if (own) return own;
    if (fd.error() == ENOENT) fd = std::unexpected(own.error());
  }
  return fd;
}

std::string mknod_command(const DeviceNode& node) {
  return fmt::format("mknod /dev/{} {} {} {}", node.name, node.type == S_IFCHR ? 'c' : 'b',
                     major(node.number), minor(node.number));
}

}  // namespace cofs
