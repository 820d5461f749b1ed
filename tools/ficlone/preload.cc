// libcofs-ficlone.so: loaded before the C library by LD_PRELOAD (`cofs run --method preload`), it
// makes FICLONE, FICLONERANGE, FIDEDUPERANGE and FIEMAP work on files of cofs for programs that
// call ioctl(3), and sync(3) and syncfs(3) commit on cofs mounts. All other calls, and these on
// other filesystems, go on as they are. Not for programs that make system calls themselves: static
// ones, Go.
//
// With COFS_FICLONE_AS_XFS=1 in the environment, statfs says that cofs is xfs, for programs that
// look for a name and not for what a filesystem can do (duperemove).
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tools/ficlone/clone_calls.h"
#include "tools/ficlone/mount_sync.h"
#include "tools/ficlone/own_process.h"

#define COFS_EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// What comes after this library; null before it is set up, when the system call is made directly.
struct NextCalls {
  int (*ioctl)(int, unsigned long, ...) = nullptr;
  void (*sync)() = nullptr;
  int (*syncfs)(int) = nullptr;
  int (*statfs)(const char*, struct statfs*) = nullptr;
  int (*fstatfs)(int, struct statfs*) = nullptr;
  bool as_xfs = false;
};
NextCalls next;

__attribute__((constructor)) void find_next_calls() {
  next.ioctl = reinterpret_cast<int (*)(int, unsigned long, ...)>(dlsym(RTLD_NEXT, "ioctl"));
  next.sync = reinterpret_cast<void (*)()>(dlsym(RTLD_NEXT, "sync"));
  next.syncfs = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, "syncfs"));
  next.statfs = reinterpret_cast<int (*)(const char*, struct statfs*)>(dlsym(RTLD_NEXT, "statfs"));
  next.fstatfs = reinterpret_cast<int (*)(int, struct statfs*)>(dlsym(RTLD_NEXT, "fstatfs"));
  const char* as_xfs = getenv("COFS_FICLONE_AS_XFS");
  next.as_xfs = as_xfs != nullptr && strcmp(as_xfs, "1") == 0;
}

int next_ioctl(int fd, unsigned long request, void* argument) {
  if (next.ioctl != nullptr) return next.ioctl(fd, request, argument);
  return static_cast<int>(syscall(SYS_ioctl, fd, request, argument));
}

// Only what is cofs: another FUSE filesystem keeps its type.
int as_xfs(int result, int fd, struct statfs* info) {
  if (result != 0 || !next.as_xfs || info->f_type != FUSE_SUPER_MAGIC || fd < 0) return result;
  if (cofs::is_cofs_file(cofs::own_process(), fd)) info->f_type = XFS_SUPER_MAGIC;
  return result;
}

int statfs_of_path(const char* path, struct statfs* info) {
  const int result = next.statfs != nullptr ? next.statfs(path, info)
                                            : static_cast<int>(syscall(SYS_statfs, path, info));
  if (result != 0 || !next.as_xfs || info->f_type != FUSE_SUPER_MAGIC) return result;
  const int kept = errno;
  // Pipes and devices are not opened: a path of theirs is on no cofs file.
  const int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd >= 0) {
    as_xfs(result, fd, info);
    close(fd);
  }
  errno = kept;
  return result;
}

int statfs_of_fd(int fd, struct statfs* info) {
  const int result = next.fstatfs != nullptr ? next.fstatfs(fd, info)
                                             : static_cast<int>(syscall(SYS_fstatfs, fd, info));
  return as_xfs(result, fd, info);
}

}  // namespace

COFS_EXPORTED int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (!cofs::is_clone_request(request)) return next_ioctl(fd, request, argument);

  const int kept = errno;
  const int result = next_ioctl(fd, request, argument);
  if (result >= 0 || errno != EOPNOTSUPP) return result;
  const long outcome = cofs::clone_ioctl(cofs::own_process(), fd, static_cast<uint32_t>(request),
                                         reinterpret_cast<uintptr_t>(argument));
  if (outcome == cofs::kServedByKernel) return next_ioctl(fd, request, argument);
  errno = outcome < 0 ? static_cast<int>(-outcome) : kept;
  return outcome < 0 ? -1 : 0;
}

COFS_EXPORTED void sync() noexcept {
  if (next.sync != nullptr) {
    next.sync();
  } else {
    syscall(SYS_sync);
  }
  cofs::sync_all_mounts(cofs::own_process());
}

COFS_EXPORTED int syncfs(int fd) noexcept {
  const int result =
      next.syncfs != nullptr ? next.syncfs(fd) : static_cast<int>(syscall(SYS_syncfs, fd));
  if (result != 0) return result;
  const long outcome = cofs::sync_mount_of(cofs::own_process(), fd);
  if (outcome >= 0) return 0;
  errno = static_cast<int>(-outcome);
  return -1;
}

COFS_EXPORTED int statfs(const char* path, struct statfs* info) noexcept {
  return statfs_of_path(path, info);
}
COFS_EXPORTED int fstatfs(int fd, struct statfs* info) noexcept {
  return statfs_of_fd(fd, info);
}

// The same on 64-bit machines.
static_assert(sizeof(struct statfs) == sizeof(struct statfs64));
COFS_EXPORTED int statfs64(const char* path, struct statfs64* info) noexcept {
  return statfs_of_path(path, reinterpret_cast<struct statfs*>(info));
}
COFS_EXPORTED int fstatfs64(int fd, struct statfs64* info) noexcept {
  return statfs_of_fd(fd, reinterpret_cast<struct statfs*>(info));
}
