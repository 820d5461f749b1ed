// What is agreed on with the kernel and with libfuse before the first request, whatever is behind the mount: the
// capabilities that are asked for, the threads that take requests, and how far the kernel reads ahead.
//
// Apart from FuseServer so that a server that does nothing (tools/bench/memory_server.cc) gets the same requests, by the same
// threads, as cofs does.
#pragma once

#include <memory>

#include "fs/fuse_mounts.h"

struct fuse_conn_info;
struct fuse_req;
struct fuse_loop_config;

namespace cofs {

struct ConnectionWishes {
  bool writeback = false;
  bool ring = false;  // requests by io_uring
};

// What the kernel's INIT is answered with; no more than it can.
void agree(fuse_conn_info& connection, ConnectionWishes wishes);
// After agree(): requests say when setuid and setgid must go.
bool kills_privileges(const fuse_conn_info& connection);

using LoopConfig = std::unique_ptr<fuse_loop_config, void (*)(fuse_loop_config*)>;
LoopConfig loop_config();

// Ends a request to forget inodes, which has no answer. Linux (6.18) sends them by the device also where all others come by
// io_uring (`by_ring`), to a thread that then has nothing else to do. It waits a while before it returns, so that the kernel has
// more of them for the next request, instead of waking it, and disturbing the core, for each file that is removed.
void end_forget(fuse_req* request, bool by_ring);

// Has the kernel read ahead on this mount as far as one request goes. False: it does as it would.
bool raise_read_ahead(const MountEntry& mount);

}  // namespace cofs
