#include "tools/file_attributes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace cofs {

namespace {

constexpr size_t kXattrBytesMax = 65536;  // of a list or a value, in the kernel

// Extended attributes of an open file have calls of their own; those of a name that is not followed
// go by a path through the open directory.
struct XattrPlace {
  int fd = -1;
  std::string path;

  ssize_t list(char* names, size_t room) const {
    return fd >= 0 ? flistxattr(fd, names, room) : llistxattr(path.c_str(), names, room);
  }
  ssize_t get(const char* name, void* value, size_t room) const {
    return fd >= 0 ? fgetxattr(fd, name, value, room) : lgetxattr(path.c_str(), name, value, room);
  }
  int set(const char* name, const void* value, size_t bytes) const {
    return fd >= 0 ? fsetxattr(fd, name, value, bytes, 0)
                   : lsetxattr(path.c_str(), name, value, bytes, 0);
  }
};

bool may_be_left_out(const char* name, int error) {
  const bool is_refused = error == EPERM || error == EACCES || error == ENOTSUP || error == EINVAL;
  return geteuid() != 0 && is_refused && std::strncmp(name, "user.", 5) != 0;
}

int copy_xattrs(const XattrPlace& source, const XattrPlace& target) {
  std::vector<char> names(kXattrBytesMax);
  const ssize_t listed = source.list(names.data(), names.size());
  if (listed < 0) return errno == ENOTSUP ? 0 : errno;
  if (listed == 0) return 0;
  std::vector<char> value(kXattrBytesMax);
  for (const char* name = names.data(); name < names.data() + listed;
       name += std::strlen(name) + 1) {
    const ssize_t bytes = source.get(name, value.data(), value.size());
    if (bytes < 0) {
      if (errno == ENODATA || may_be_left_out(name, errno)) continue;
      return errno;
    }
    if (target.set(name, value.data(), static_cast<size_t>(bytes)) != 0 &&
        !may_be_left_out(name, errno)) {
      return errno;
    }
  }
  return 0;
}

mode_t mode_without_owner(mode_t mode, bool has_owner) {
  return mode & static_cast<mode_t>(has_owner ? 07777 : 01777);
}

}  // namespace

int copy_attributes(int source, const struct stat& info, int target) {
  bool has_owner = true;
  if (fchown(target, info.st_uid, info.st_gid) != 0) {
    if (errno != EPERM || geteuid() == 0) return errno;
    has_owner = false;
  }
  if (fchmod(target, mode_without_owner(info.st_mode, has_owner)) != 0) return errno;
  // After the owner, whose change takes file capabilities away.
  const int error = copy_xattrs({source, {}}, {target, {}});
  if (error != 0) return error;
  const timespec times[2] = {info.st_atim, info.st_mtim};
  return futimens(target, times) == 0 ? 0 : errno;
}

int copy_attributes_of_name(int source_directory, const std::string& source_name,
                            const struct stat& info, int target_directory,
                            const std::string& target_name) {
  const char* name = target_name.c_str();
  bool has_owner = true;
  if (fchownat(target_directory, name, info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno != EPERM || geteuid() == 0) return errno;
    has_owner = false;
  }
  if (!S_ISLNK(info.st_mode) &&
      fchmodat(target_directory, name, mode_without_owner(info.st_mode, has_owner), 0) != 0) {
    return errno;
  }
  const int error =
      copy_xattrs({-1, fmt::format("/proc/self/fd/{}/{}", source_directory, source_name)},
                  {-1, fmt::format("/proc/self/fd/{}/{}", target_directory, target_name)});
  if (error != 0) return error;
  const timespec times[2] = {info.st_atim, info.st_mtim};
  return utimensat(target_directory, name, times, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
}

}  // namespace cofs
