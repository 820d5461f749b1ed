// sync(2) and syncfs(2) of a block device's mount: Linux (from 6.18 on) sends FUSE_SYNCFS for these, which libfuse (up to
// 3.18.3) has no handler for. It would answer ENOSYS, which the kernel takes as "nothing to do", and never ask again.
//
// So the request is changed on its way in, where libfuse lets its reading be replaced: it becomes an fsync of the root
// directory, which here commits everything (docs/decisions/0003) and is answered alike, by an error or none.
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

#include "fs/fuse_ops.h"

namespace cofs {

namespace {

constexpr size_t kFsyncBytes = sizeof(fuse_in_header) + sizeof(fuse_fsync_in);

// `size` bytes of a request were read into `buffer`, which has room for `room`; how many there are then.
size_t make_sync_an_fsync(void* buffer, size_t size, size_t room) {
  fuse_in_header header;
  if (size < sizeof(header) || room < kFsyncBytes) return size;
  std::memcpy(&header, buffer, sizeof(header));
  if (header.opcode != FUSE_SYNCFS) return size;
  const fuse_fsync_in arguments{};  // no open file; data and attributes
  header.opcode = FUSE_FSYNCDIR;
  header.nodeid = FUSE_ROOT_ID;
  header.len = kFsyncBytes;
  std::memcpy(buffer, &header, sizeof(header));
  std::memcpy(static_cast<char*>(buffer) + sizeof(header), &arguments, sizeof(arguments));
  return kFsyncBytes;
}

ssize_t read_request(int fd, void* buffer, size_t room, void*) {
  const ssize_t size = read(fd, buffer, room);
  return size <= 0 ? size : static_cast<ssize_t>(make_sync_an_fsync(buffer, static_cast<size_t>(size), room));
}

ssize_t write_reply(int fd, iovec* parts, int count, void*) {
  return writev(fd, parts, count);
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
// As the library does it by itself.
int clone_channel(int fd) {
  const int cloned = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  uint32_t of = static_cast<uint32_t>(fd);
  if (cloned >= 0 && ioctl(cloned, FUSE_DEV_IOC_CLONE, &of) != 0) {
    close(cloned);
    return -1;
  }
  return cloned;
}
#endif

}  // namespace

bool accept_sync_requests(fuse_session* session) {
  fuse_custom_io io{};
  io.read = read_request;
  io.writev = write_reply;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  io.clone_fd = clone_channel;
  // The name without a number is for programs that say FUSE_USE_VERSION 317, and leaves clone_fd out for others.
  return fuse_session_custom_io_317(session, &io, sizeof(io), fuse_session_fd(session)) == 0;
#else
  return fuse_session_custom_io(session, &io, fuse_session_fd(session)) == 0;
#endif
}

}  // namespace cofs
