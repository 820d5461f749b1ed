#include "tools/ficlone/own_process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

namespace cofs {

namespace {

constexpr unsigned kStatxUniqueMount = 0x4000;  // STATX_MNT_ID_UNIQUE of Linux 6.8

template <class... Arguments>
long raw(long number, Arguments... arguments) {
  const int kept = errno;
  long result = syscall(number, arguments...);
  if (result < 0) result = -errno;
  errno = kept;
  return result;
}

// Through the kernel, which answers a bad address with EFAULT where memcpy would end the program.
// Where a sandbox forbids that call, the address is taken as good.
long move_memory(bool is_read, uint64_t address, void* bytes, size_t count) {
  iovec local = {bytes, count};
  iovec remote = {reinterpret_cast<void*>(static_cast<uintptr_t>(address)), count};
  const long number = is_read ? SYS_process_vm_readv : SYS_process_vm_writev;
  const long moved = raw(number, getpid(), &local, 1, &remote, 1, 0);
  if (moved == -ENOSYS || moved == -EPERM) {
    memcpy(is_read ? bytes : remote.iov_base, is_read ? remote.iov_base : bytes, count);
    return 0;
  }
  return moved == static_cast<long>(count) ? 0 : -EFAULT;
}

long read_own(void*, uint64_t address, void* bytes, size_t count) {
  return move_memory(true, address, bytes, count);
}
long write_own(void*, uint64_t address, const void* bytes, size_t count) {
  return move_memory(false, address, const_cast<void*>(bytes), count);
}

long fetch_own(void*, int64_t number) {
  return number >= 0 && number <= INT32_MAX ? static_cast<long>(number) : -EBADF;
}
void release_own(void*, int) {}

long ioctl_raw(void*, int fd, uint32_t request, void* argument) {
  return raw(SYS_ioctl, fd, request, argument);
}

long stat_raw(void*, int fd, FileFacts* facts) {
  struct statx info;
  const long result =
      raw(SYS_statx, fd, "", AT_EMPTY_PATH,
          STATX_TYPE | STATX_INO | STATX_SIZE | kStatxUniqueMount, &info);
  if (result < 0) return result;
  facts->device = makedev(info.stx_dev_major, info.stx_dev_minor);
  facts->inode = info.stx_ino;
  facts->bytes = info.stx_size;
  facts->mount = (info.stx_mask & kStatxUniqueMount) != 0 ? info.stx_mnt_id : 0;
  facts->is_regular = S_ISREG(info.stx_mode);
  facts->is_directory = S_ISDIR(info.stx_mode);
  return 0;
}

long statfs_raw(void*, int fd, MountFacts* facts) {
  struct statfs info;
  const long result = raw(SYS_fstatfs, fd, &info);
  if (result < 0) return result;
  facts->is_fuse = info.f_type == FUSE_SUPER_MAGIC;
  facts->is_read_only = (info.f_flags & ST_RDONLY) != 0;
  return 0;
}

long copy_raw(void*, int source, int64_t* source_offset, int target, int64_t* target_offset,
              size_t length) {
  return raw(SYS_copy_file_range, source, source_offset, target, target_offset, length, 0);
}

long sync_raw(void*, int fd, int64_t offset, int64_t length) {
  return raw(SYS_sync_file_range, fd, offset, length,
             SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}

long own_limit(void*, uint64_t* bytes) {
  rlimit limit;
  const long result = raw(SYS_prlimit64, 0, RLIMIT_FSIZE, nullptr, &limit);
  if (result < 0) return result;
  *bytes = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
  return 0;
}

void raise_own(void*) {
  raw(SYS_tgkill, getpid(), raw(SYS_gettid), SIGXFSZ);
}

constexpr CloneSystem kOwnProcess = {nullptr,     read_own,  write_own, fetch_own,
                                     release_own, ioctl_raw, stat_raw,  statfs_raw,
                                     copy_raw,    sync_raw,  own_limit, raise_own};

}  // namespace

const CloneSystem& own_process() {
  return kOwnProcess;
}

}  // namespace cofs
