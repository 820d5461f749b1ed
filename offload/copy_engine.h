// CopyEngine: copies many source ranges of a device to one target run, by the cheapest path that can.
//
// It merges adjacent sources, splits by the limits of the path, keeps several operations in flight,
// continues after a partial copy from the known-good prefix, and falls back (device, host file, host
// read/write) from there; every fallback is counted with its reason. The target must be fresh space:
// it never overlaps a source, and nothing may refer to it before gather() returned.
// It believes a device that reports success: whoever owns the data checks it by checksum.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "offload/base/buffer.h"
#include "offload/base/sync.h"
#include "offload/base/task.h"
#include "offload/device.h"
#include "offload/host_copier.h"

namespace cofs {

struct CopyCounters {
  // Known to be copied, by path; also what lies beyond the prefix that a failed gather reports.
  std::array<uint64_t, kCopyPathCount> bytes{};
  // Commands, clone calls, or read+write pairs, failed ones included.
  std::array<uint64_t, kCopyPathCount> operations{};
  std::map<std::string, uint64_t> refused;            // reason → operations that went another way
};

struct CopyEngineOptions {
  // Paths that may be used, best first. kHost may be left out for a caller that must not pull data
  // through the host.
  bool allow_device = true;
  bool allow_host_file = true;
  bool allow_host = true;
  uint32_t failures_before_demotion = 3;  // in a row, on one path; it is then left for this mount
  uint64_t timeout_ns = 30'000'000'000;   // of one device operation
  uint32_t host_chunk_blocks = 128;       // 512 KiB reads and writes
  uint32_t host_in_flight = 8;
};

struct CopyOutcome {
  uint64_t good_blocks = 0;  // prefix of the target that holds the sources' data
  Result<> result;           // why it is shorter than asked, if it is
  std::array<uint64_t, kCopyPathCount> blocks{};  // by path
  // True when an operation timed out: it may still write into the target, which must not be reused
  // before the device is known to be done with it (until the next mount).
  bool target_in_doubt = false;
};

class CopyEngine {
 public:
  CopyEngine(Device& device, Executor& executor, BufferPool& buffers, Journal& journal,
             CopyEngineOptions options);

  // Copies `sources`, in order, to the run that begins at `target_start`. The sources' span must live
  // until the task is done. A host-path read error is returned with the prefix before it.
  Task<CopyOutcome> gather(std::span<const BlockRange> sources, uint64_t target_start);

  const CopyCounters& counters() const { return counters_; }
  // The path that the next copy will try first.
  CopyPath preferred() const;

 private:
  // A way that the device offers, in the order of its preference.
  struct Path {
    CopyLimits limits;
    bool allowed = false;
    bool demoted = false;
    uint32_t failures_in_row = 0;
    std::unique_ptr<Semaphore> permits;  // operations in flight, of all gathers together

    bool usable() const { return allowed && !demoted; }
  };
  struct Operation;  // one piece of a gather, as planned for its first path
  struct Gather;     // one call of gather()

  Result<> check(std::span<const BlockRange> sources, uint64_t target_start) const;
  const Path* first_usable() const;
  void count_missing_paths();
  void refuse(const Path& path, std::string_view reason);
  void charge(Path& path, const Error& error);

  Task<void> work(Gather& run);
  Task<void> copy_operation(Gather& run, size_t index);
  Task<uint64_t> copy_by(Path& path, Gather& run, Operation& operation,
                         std::span<const BlockRange> sources, uint64_t target_start);
  Task<uint64_t> copy_by_host(Gather& run, Operation& operation,
                              std::span<const BlockRange> sources, uint64_t target_start);

  Device& device_;
  Executor& executor_;
  Journal& journal_;
  CopyEngineOptions options_;
  CopyCounters counters_;
  std::vector<Path> paths_;
  HostCopier host_;
};

}  // namespace cofs
