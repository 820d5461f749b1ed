// Machine: a target opened with everything that a Store needs around it in production; and the
// opening of the filesystem on it, for the commands.
//
// All functions block; they must not be called from a thread that works for the monitor. The
// target's lock is held as long as the Machine lives.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "fs/filesystem.h"
#include "offload/file_device.h"
#include "offload/monitor.h"
#include "offload/steady_clock.h"
#include "offload/target.h"

namespace cofs {

struct MachineOptions {
  TargetMode mode = TargetMode::kReadOnly;
  std::chrono::milliseconds lock_wait{0};
  uint64_t arena_bytes = 16ULL << 20;  // of I/O buffers; more come from the heap
  FileDeviceOptions device;

  // For a command that works on a volume for a short time.
  static MachineOptions for_tool(const std::string& path, TargetMode mode);
  // For a server: buffers for `dirty_bytes` of data, known to the kernel.
  static MachineOptions for_server(const std::string& path, TargetMode mode, uint64_t dirty_bytes);
};

// How long a command should wait for the target's lock: the server of a mount just undone may still
// be closing; one that is mounted will not go away.
std::chrono::milliseconds lock_wait_for(const std::string& path);

// For a server, before it starts threads: the heap's memory follows what is needed, instead of staying what each
// thread once needed.
void bound_heap();

class Machine {
 public:
  static Result<std::unique_ptr<Machine>> open(const std::string& path,
                                               const MachineOptions& options, Journal& journal);
  // For a target that was opened already.
  static Result<std::unique_ptr<Machine>> open(OpenedTarget target, const MachineOptions& options,
                                               Journal& journal);
  Machine(const Machine&) = delete;

  Environment environment();
  Monitor& monitor() { return monitor_; }
  FileDevice& device() { return *device_; }

  Result<std::unique_ptr<FileSystem>> open_filesystem(const StoreOptions& store_options,
                                                      const FsOptions& fs_options);
  // Nothing is written, the log of an unclean volume is replayed in memory.
  Result<std::unique_ptr<FileSystem>> open_for_reading();

 private:
  Machine(uint64_t arena_bytes, Journal& journal);

  Monitor monitor_;
  Journal& journal_;
  BufferPool buffers_;
  SteadyClock clock_;
  SystemRandom random_;
  std::unique_ptr<FileDevice> device_;
};

// What would be lost if the target were overwritten: "a cofs volume", "a signature of xfs"; nothing if
// nothing is recognised. Errors: kIo.
Result<std::optional<std::string>> present_contents(const OpenedTarget& target);

// Stops the filesystem without writing anything more.
void abandon(Machine& machine, std::unique_ptr<FileSystem> fs);

}  // namespace cofs
