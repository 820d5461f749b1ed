#include "tools/ficlone/mount_sync.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fs/cofs_ioctl.h"
#include "tools/ficlone/clone_calls.h"

namespace cofs {

namespace {

constexpr size_t kLineMax = 8192;  // a mount point of PATH_MAX, escaped, and the rest

bool has_type_cofs(const char* line) {
  const char* rest = strstr(line, " - ");
  if (rest == nullptr) return false;
  rest += 3;
  return strncmp(rest, "fuse.cofs ", 10) == 0 || strncmp(rest, "fuseblk.cofs ", 13) == 0;
}

// The fifth field, with \040 and the like undone, in place. Null if there is none.
char* mount_point_of(char* line) {
  for (int field = 0; field < 4; field++) {
    line = strchr(line, ' ');
    if (line == nullptr) return nullptr;
    line++;
  }
  char* out = line;
  for (char* in = line; *in != ' ' && *in != '\0'; out++) {
    if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] != '\0' && in[3] != '\0') {
      *out = static_cast<char>((in[1] - '0') * 64 + (in[2] - '0') * 8 + (in[3] - '0'));
      in += 4;
    } else {
      *out = *in++;
    }
  }
  *out = '\0';
  return line;
}

void sync_mount_point(const CloneSystem& system, const char* path) {
  const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return;
  sync_mount_of(system, fd);
  close(fd);
}

}  // namespace

long sync_mount_of(const CloneSystem& system, int fd) {
  if (!is_cofs_file(system, fd)) return 0;
  return system.ioctl(system.context, fd, COFS_IOC_SYNC, nullptr);
}

void sync_all_mounts(const CloneSystem& system) {
  const int kept = errno;
  const int table = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
  if (table >= 0) {
    char line[kLineMax];
    size_t used = 0;
    bool is_skipping = false;  // the rest of a line that is longer than any can be
    int synced = 0;
    ssize_t got;
    while (synced < kSyncedMountsMax && (got = read(table, line + used, kLineMax - 1 - used)) > 0) {
      used += static_cast<size_t>(got);
      char* begin = line;
      char* end;
      while ((end = static_cast<char*>(
                  memchr(begin, '\n', used - static_cast<size_t>(begin - line)))) != nullptr) {
        *end = '\0';
        char* mount_point = !is_skipping && has_type_cofs(begin) ? mount_point_of(begin) : nullptr;
        if (mount_point != nullptr && synced < kSyncedMountsMax) {
          sync_mount_point(system, mount_point);
          synced++;
        }
        is_skipping = false;
        begin = end + 1;
      }
      used -= static_cast<size_t>(begin - line);
      memmove(line, begin, used);
      if (used == kLineMax - 1) {
        used = 0;
        is_skipping = true;
      }
    }
    close(table);
  }
  errno = kept;
}

}  // namespace cofs
