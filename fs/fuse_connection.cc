#include "fs/fuse_connection.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>
#include <tuple>

#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// Exactly these are asked for, whatever the library's defaults are; and HANDLE_KILLPRIV_V2 where the library
// passes on its flags. Without it the kernel asks for the attribute security.capability before every write.
//
// Not asked for: HANDLE_KILLPRIV (its requests do not say whose bits must go), AUTO_INVAL_DATA (nobody else
// changes the files), splice (data is copied to be checksummed), and locks (local to this host, the kernel does
// them alone).
constexpr unsigned kWanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC |
                             FUSE_CAP_EXPORT_SUPPORT | FUSE_CAP_DONT_MASK | FUSE_CAP_IOCTL_DIR |
                             FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_ASYNC_DIO |
                             FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_POSIX_ACL |
                             FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_EXPLICIT_INVAL_DATA;

constexpr std::chrono::milliseconds kForgetsGather(5);

// The library that runs may be older than the one that was compiled with, which the flag's place in a structure
// does not tell.
unsigned kill_capability() {
#ifdef COFS_FUSE_HAS_KILL_FLAG
  unsigned major = 0;
  unsigned minor = 0;
  unsigned patch = 0;
  if (std::sscanf(fuse_pkgversion(), "%u.%u.%u", &major, &minor, &patch) != 3) return 0;
  return std::tuple(major, minor, patch) >= std::tuple(3U, 18U, 3U) ? FUSE_CAP_HANDLE_KILLPRIV_V2 : 0;
#else
  return 0;
#endif
}

}  // namespace

void agree(fuse_conn_info& connection, ConnectionWishes wishes) {
  unsigned wanted = kWanted | kill_capability();
  if (wishes.writeback) wanted |= FUSE_CAP_WRITEBACK_CACHE;
#ifdef COFS_FUSE_HAS_RING
  if (wishes.ring) wanted |= FUSE_CAP_OVER_IO_URING;
#endif
  connection.want = wanted & connection.capable;
  connection.max_write = FuseServer::kRequestBytesMax;
  // The kernel offers its default of 128 KiB and takes no more; raise_read_ahead() goes on from
  // there.
  connection.max_readahead = FuseServer::kRequestBytesMax;
  connection.max_background = FuseServer::kBackgroundMax;
  connection.congestion_threshold = FuseServer::kBackgroundCongested;
  connection.time_gran = 1;
}

bool kills_privileges(const fuse_conn_info& connection) {
  return (connection.want & kill_capability()) != 0;
}

LoopConfig loop_config() {
  LoopConfig config(fuse_loop_cfg_create(), &fuse_loop_cfg_destroy);
  fuse_loop_cfg_set_clone_fd(config.get(), 1);
  // The kernel wakes those that wait for requests in turn, so each one more than can run is colder. No handler waits, but for the
  // device, in place, when its request has no company (offload/file_device.h): beside that one there is one for each processor.
  const uint32_t threads = std::clamp(std::thread::hardware_concurrency() + 1, 3U, FuseServer::kThreadsMax);
  fuse_loop_cfg_set_idle_threads(config.get(), threads);
  fuse_loop_cfg_set_max_threads(config.get(), threads);
  return config;
}

void end_forget(fuse_req_t request, bool by_ring) {
#ifdef COFS_FUSE_HAS_RING
  by_ring = by_ring && !fuse_req_is_uring(request);  // a queue's thread must not wait
#endif
  fuse_reply_none(request);
  if (by_ring) std::this_thread::sleep_for(kForgetsGather);
}

// The kernel gives the mount of a block device a number of pages of its own, under the device's number and a suffix: without
// that it would be the device's.
bool raise_read_ahead(const MountEntry& mount) {
  const char* const suffix = mount.type.starts_with("fuseblk") ? "-fuseblk" : "";
  std::ofstream setting("/sys/class/bdi/" + mount.device + suffix + "/read_ahead_kb");
  setting << FuseServer::kReadAheadKib << std::endl;
  return static_cast<bool>(setting);
}

}  // namespace cofs
