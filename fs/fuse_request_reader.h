// How requests come from the kernel's device: so that the data of a write lands in a buffer of the pool, where it can
// stay until it is on the device, instead of being copied there from the library's buffer.
//
// The library calls our read function (its "custom I/O") on each of its threads. A request's head goes to the library's
// buffer, all the rest to a buffer of the pool that belongs to the thread. Of a write that rest is the data, which the
// handler takes with take_payload(); of any other request it is moved behind the head, where the library looks for it.
// And FUSE_SYNCFS becomes an fsync of the root directory on its way, since the library does not know it.
// Not used over io_uring (tools/libfuse/ring_queues.c), where the kernel writes to memory that it shares with the library.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "fs/types.h"

struct fuse_session;

namespace cofs {

// Has the session, which is mounted and serves nothing yet, read its requests so. Its userdata must be the FuseServer.
// Returns 0, or an errno: ENOTSUP where the library was built without custom I/O, and reads by itself then.
int install_request_reader(fuse_session* session);

// The same for any server, by a read function of its own: what read(2) returns, with the session's userdata.
using DeviceRead = ssize_t(int fd, void* memory, size_t size, void* userdata);
int install_device_read(fuse_session* session, DeviceRead* read);

// The data of the write that this thread's handler was called for, as WriteData::fill() would make it. `bytes`, `length`
// (at most 1 MiB) and `offset` are the handler's arguments; what `bytes` points to is looked at only where the request
// did not come through our reader. Once per request. Nothing: the request is shorter than it says.
std::optional<WriteData> take_payload(BufferPool& pool, uint64_t offset, const void* bytes,
                                      uint32_t length);

}  // namespace cofs
