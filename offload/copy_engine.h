// CopyEngine: copies many source ranges of a device to one target run, by the best path that can.
//
// It merges adjacent sources, splits by the limits of the path, keeps several operations in flight,
// continues after a partial copy from the known-good prefix, and falls back (device, host file, host
// read/write) from there; every fallback is counted with its reason. Where rates are known, it leaves
// range lengths to the host at which the device is much slower. The target must be fresh space:
// it never overlaps a source, and nothing may refer to it before gather() returned.
// It believes a device that reports success: whoever owns the data checks it by checksum, and
// condemns a path that lied.
//
// Timeouts are the engine's own: a command that takes too long is abandoned, its target in doubt
// until the device has answered after all; what keeps the target from reuse is held until then.
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
#include "offload/copy_rates.h"
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
  // "": all that the device offers, best first, chosen by the rates where they are known. Otherwise the
  // only one to be used, by its name in CopyLimits; "host": none of them.
  std::string engine;
  bool allow_host = true;  // false: for a caller that must not pull data through the host
  uint32_t failures_before_demotion = 3;  // in a row, on one path; it is then left for this mount
  uint64_t timeout_ns = 30'000'000'000;   // of one command; its driver is given twice this
  uint32_t host_chunk_blocks = 128;       // 512 KiB reads and writes
  uint32_t host_in_flight = 8;
};

struct CopyOutcome {
  uint64_t good_blocks = 0;  // prefix of the target that holds the sources' data
  Result<> result;           // why it is shorter than asked, if it is
  std::array<uint64_t, kCopyPathCount> blocks{};  // by path
  // True when a command timed out: it may still write into the target. The good prefix is good, but the
  // rest must be copied to another place.
  bool target_in_doubt = false;
};

class CopyEngine {
 public:
  CopyEngine(Device& device, Executor& executor, Clock& clock, BufferPool& buffers,
             Journal& journal, CopyEngineOptions options);
  // REQUIRES: no gather is running, and settle() is done.
  ~CopyEngine();
  CopyEngine(const CopyEngine&) = delete;

  // Copies `sources`, in order, to the run that begins at `target_start`. The sources' span must live
  // until the task is done. A host-path read error is returned with the prefix before it.
  // `target_hold` is kept until no command of this call can write to the target any more. What it does is
  // counted in `counters`, if they are given (they must live as long), else in counters(). Without
  // `may_use_host` nothing is read or written: what no other path can copy is not copied.
  Task<CopyOutcome> gather(std::span<const BlockRange> sources, uint64_t target_start,
                           std::shared_ptr<void> target_hold = nullptr,
                           CopyCounters* counters = nullptr, bool may_use_host = true);
  // The same by the host alone, whatever the options say: to repair what a device copied wrongly.
  Task<CopyOutcome> gather_by_host(std::span<const BlockRange> sources, uint64_t target_start,
                                   std::shared_ptr<void> target_hold = nullptr,
                                   CopyCounters* counters = nullptr);

  // The paths of this kind are not used any more: what they copied was wrong.
  void condemn(CopyPath path, std::string_view why);
  // Only where no engine is forced.
  void set_rates(CopyRates rates) { rates_ = std::move(rates); }
  const CopyRates& rates() const { return rates_; }
  // Until the device has answered every abandoned command; gives up what was held for those that
  // nobody will hear of. To be called before the end.
  Task<void> settle();

  const CopyCounters& counters() const { return counters_; }
  // The path that the next copy of long ranges will try first.
  CopyPath preferred() const;
  // The same for ranges of this length, by name: "nvme", "host".
  std::string_view engine_for(uint64_t range_blocks) const;

 private:
  // A way that the device offers, in the order of its preference.
  struct Path {
    CopyLimits limits;
    uint32_t index = 0;  // into the device's copies
    bool allowed = false;
    bool demoted = false;
    uint32_t failures_in_row = 0;
    uint64_t commands_issued = 0;
    uint64_t blamed_up_to = 0;  // commands up to this one were in flight at a failure that counted
    std::unique_ptr<Semaphore> permits;  // operations in flight, of all gathers together

    bool usable() const { return allowed && !demoted; }
  };
  struct Operation;  // one piece of a gather, as planned for its first path
  struct Gather;     // one call of gather()
  struct Command;    // one copy command; may outlive the gather that gave up waiting for it

  Result<> check(std::span<const BlockRange> sources, uint64_t target_start) const;
  // Why a path is not to be taken for ranges of this length; empty: it may be.
  std::string_view why_not(const Path& path, uint64_t range_blocks) const;
  const Path* best_path(uint64_t range_blocks) const;
  void count_missing_paths(Gather& run);
  static void refuse(Gather& run, const Path& path, std::string_view reason);
  struct Suspect;  // a path that failed, and with which command
  void charge(const Suspect& suspect);
  void demote(Path& path, const std::string& why);

  Task<CopyOutcome> run_gather(Gather& run);

  Task<void> work(Gather& run);
  Task<void> copy_operation(Gather& run, size_t index);
  Task<uint64_t> copy_by(Path& path, Gather& run, Operation& operation,
                         std::span<const BlockRange> sources, uint64_t target_start);
  // The command's result: kTimedOut where it was abandoned.
  Task<Result<>> issue(std::shared_ptr<Command> command);
  static Task<void> await_device(CopyEngine* engine, std::shared_ptr<Command> command);
  Task<uint64_t> copy_by_host(Gather& run, Operation& operation,
                              std::span<const BlockRange> sources, uint64_t target_start);

  Device& device_;
  Executor& executor_;
  Clock& clock_;
  Journal& journal_;
  CopyEngineOptions options_;
  CopyCounters counters_;
  CopyRates rates_;
  std::vector<Path> paths_;
  HostCopier host_;
  WaitGroup abandoned_;                           // commands
  std::vector<std::shared_ptr<void>> kept_;       // held for commands that nobody will hear of
};

}  // namespace cofs
