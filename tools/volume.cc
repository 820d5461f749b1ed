#include "tools/volume.h"

#include <malloc.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "blockmap/ondisk.h"
#include "fs/fuse_mounts.h"

namespace cofs {

namespace {

constexpr uint64_t kSuperblockBlock = 16;  // 64 KiB

bool has_cofs_superblock(const OpenedTarget& target) {
  alignas(kBlockBytes) std::byte block[kBlockBytes];
  ssize_t got = pread(target.fd(), block, sizeof(block), kSuperblockBlock * kBlockBytes);
  uint64_t magic = ondisk::kSuperblockMagic;
  le64 stored;
  std::memcpy(&stored, block, sizeof(stored));
  return got == static_cast<ssize_t>(sizeof(block)) && stored == magic;
}

}  // namespace

std::chrono::milliseconds lock_wait_for(const std::string& path) {
  std::string resolved = resolve_mount_point(path);
  for (const MountEntry& entry : read_mounts()) {
    if (!entry.is_cofs() || entry.source != resolved) continue;
    // A killed server's requests may still be under way, and keep the lock until they have ended.
    const bool is_dead = access(entry.mount_point.c_str(), F_OK) != 0 && errno == ENOTCONN;
    if (!is_dead) return std::chrono::milliseconds(0);
  }
  return std::chrono::seconds(10);
}

MachineOptions MachineOptions::for_tool(const std::string& path, TargetMode mode) {
  MachineOptions options;
  options.mode = mode;
  options.lock_wait = lock_wait_for(path);
  options.device.register_memory = false;
  return options;
}

MachineOptions MachineOptions::for_server(const std::string& path, TargetMode mode,
                                          uint64_t dirty_bytes) {
  MachineOptions options;
  options.mode = mode;
  options.lock_wait = lock_wait_for(path);
  options.arena_bytes = dirty_bytes + (32ULL << 20);
  return options;
}

// One thread at a time is inside the core, so that further arenas would save no waiting. What is large goes back to the
// kernel at once.
void bound_heap() {
  constexpr int kArenas = 2;
  constexpr int kMappedBytes = 256 << 10;
  constexpr int kTrimBytes = 4 << 20;
  mallopt(M_ARENA_MAX, kArenas);
  mallopt(M_MMAP_THRESHOLD, kMappedBytes);
  mallopt(M_TRIM_THRESHOLD, kTrimBytes);
}

Machine::Machine(uint64_t arena_bytes, Journal& journal)
    : journal_(journal), buffers_(arena_bytes), clock_(monitor_) {}

Result<std::unique_ptr<Machine>> Machine::open(const std::string& path,
                                               const MachineOptions& options, Journal& journal) {
  Result<OpenedTarget> target = open_target(path, options.mode, options.lock_wait);
  COFS_TRY(target);
  return open(std::move(*target), options, journal);
}

Result<std::unique_ptr<Machine>> Machine::open(OpenedTarget target, const MachineOptions& options,
                                               Journal& journal) {
  std::unique_ptr<Machine> machine(new Machine(options.arena_bytes, journal));
  Result<std::unique_ptr<FileDevice>> device = FileDevice::open(
      std::move(target), machine->monitor_, machine->buffers_, journal, options.device);
  COFS_TRY(device);
  machine->device_ = std::move(*device);
  return machine;
}

Environment Machine::environment() {
  return Environment{*device_, monitor_, clock_, random_, journal_, buffers_};
}

Result<std::unique_ptr<FileSystem>> Machine::open_filesystem(const StoreOptions& store_options,
                                                             const FsOptions& fs_options) {
  Result<std::unique_ptr<Store>> store =
      run_blocking(monitor_, Store::open(environment(), store_options));
  COFS_TRY(store);
  return run_blocking(monitor_, FileSystem::open(std::move(*store), environment(), fs_options));
}

Result<std::unique_ptr<FileSystem>> Machine::open_for_reading() {
  StoreOptions store_options;
  store_options.read_only = true;
  store_options.background = false;
  FsOptions fs_options;
  fs_options.read_only = true;
  fs_options.access_times = AccessTimes::kNone;
  return open_filesystem(store_options, fs_options);
}

void abandon(Machine& machine, std::unique_ptr<FileSystem> fs) {
  run_blocking(machine.monitor(), fs->abandon());
}

Result<std::optional<std::string>> present_contents(const OpenedTarget& target) {
  if (has_cofs_superblock(target)) return std::optional<std::string>("a cofs volume");
  Result<std::optional<std::string>> signature = recognised_signature(target);
  COFS_TRY(signature);
  if (!*signature) return std::optional<std::string>();
  return std::optional<std::string>("a signature of " + **signature);
}

}  // namespace cofs
