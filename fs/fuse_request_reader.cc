#include "fs/fuse_request_reader.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// What stands before the data of a write (linux/fuse.h; the same since version 7.9 of the protocol).
constexpr size_t kHeadBytes = sizeof(fuse_in_header) + sizeof(fuse_write_in);
static_assert(kHeadBytes == 80);
constexpr size_t kFsyncBytes = sizeof(fuse_in_header) + sizeof(fuse_fsync_in);
constexpr uint32_t kPayloadBlocksMax = blocks_of_bytes(FuseServer::kRequestBytesMax);
// Less is copied: a buffer of the pool's largest class must not be held by a few blocks, since memory is counted in
// blocks.
constexpr uint32_t kTakenBytesMin = FuseServer::kRequestBytesMax / 2;

// One per thread that reads requests.
struct Payload {
  BufferRef buffer;       // where the next payload goes
  bool is_there = false;  // it has the data of the write that is being handled
  uint32_t length = 0;    // of that
};
thread_local Payload payload;

// The kernel (Linux 6.18) sends FUSE_SYNCFS for block devices, which libfuse (up to 3.18.3) has no handler for. It would
// answer ENOSYS, which the kernel takes as "nothing to do", and never ask again. An fsync of the root directory commits
// everything here (docs/decisions/0003), and is answered alike, by an error or none.
ssize_t make_sync_an_fsync(fuse_in_header head, void* memory) {
  fuse_fsync_in arguments{};  // data and attributes
  arguments.fh = kSyncfsHandle;
  head.opcode = FUSE_FSYNCDIR;
  head.nodeid = FUSE_ROOT_ID;
  head.len = kFsyncBytes;
  std::memcpy(memory, &head, sizeof(head));
  std::memcpy(static_cast<std::byte*>(memory) + sizeof(head), &arguments, sizeof(arguments));
  return kFsyncBytes;
}

ssize_t read_apart(int fd, void* memory, BufferPool& pool) {
  if (!payload.buffer) payload.buffer = pool.allocate(kPayloadBlocksMax);
  const std::array<iovec, 2> parts = {
      iovec{memory, kHeadBytes}, iovec{payload.buffer->data(), FuseServer::kRequestBytesMax}};
  const ssize_t got = readv(fd, parts.data(), parts.size());
  if (got < static_cast<ssize_t>(kHeadBytes)) return got;
  fuse_in_header head;
  std::memcpy(&head, memory, sizeof(head));
  const size_t rest_bytes = static_cast<size_t>(got) - kHeadBytes;
  if (head.opcode == FUSE_WRITE) {
    payload.is_there = true;
    payload.length = static_cast<uint32_t>(rest_bytes);
  } else {
    std::memcpy(static_cast<std::byte*>(memory) + kHeadBytes, payload.buffer->data(), rest_bytes);
  }
  return got;
}

ssize_t read_request(int fd, void* memory, size_t size, void* userdata) {
  FuseServer& server = *static_cast<FuseServer*>(userdata);
  // The library's buffer is as large as the requests that were agreed on; smaller ones need no place of their own.
  const bool apart = size >= kHeadBytes + FuseServer::kRequestBytesMax;
  ssize_t got = 0;
  for (;;) {
    server.poller().wait(fd);
    payload.is_there = false;
    got = apart ? read_apart(fd, memory, server.buffers()) : read(fd, memory, size);
    if (got >= 0 || errno != EAGAIN) break;
    server.poller().found_nothing(fd);
  }
  if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) return got;
  server.poller().took(fd);
  fuse_in_header head;
  std::memcpy(&head, memory, sizeof(head));
  if (head.opcode == FUSE_DESTROY) server.poller().going_to_block(fd);  // on_destroy()
  if (head.opcode == FUSE_SYNCFS && size >= kFsyncBytes) return make_sync_an_fsync(head, memory);
  return got;
}

ssize_t write_reply(int fd, iovec* parts, int count, void*) { return writev(fd, parts, count); }

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
// A descriptor of its own for a thread, on the same connection.
int clone_descriptor(int session_fd) {
  const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  auto source = static_cast<uint32_t>(session_fd);
  if (ioctl(fd, FUSE_DEV_IOC_CLONE, &source) == 0) return fd;
  close(fd);
  return -1;
}
#endif

}  // namespace

int install_request_reader(fuse_session* session) { return install_device_read(session, read_request); }

int install_device_read(fuse_session* session, DeviceRead* read) {
  fuse_custom_io functions{};
  functions.read = read;
  functions.writev = write_reply;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  functions.clone_fd = clone_descriptor;
  // By its own name: under the other one only what FUSE_USE_VERSION knows of the structure is taken.
  return -fuse_session_custom_io_317(session, &functions, sizeof(functions),
                                     fuse_session_fd(session));
#else
  return -fuse_session_custom_io(session, &functions, fuse_session_fd(session));
#endif
}

std::optional<WriteData> take_payload(BufferPool& pool, uint64_t offset, const void* bytes,
                                      uint32_t length) {
  if (!payload.is_there) return WriteData::fill(pool, offset, bytes, length);
  payload.is_there = false;
  if (length > payload.length) return {};
  if (length < kTakenBytesMin || offset % kBlockBytes != 0) {
    return WriteData::fill(pool, offset, payload.buffer->data(), length);
  }
  return WriteData::adopt(std::move(payload.buffer), offset, length);
}

}  // namespace cofs
