// Jobs: work in the server that somebody asked for and nobody waits for: a garbage collection, a scrub.
//
// There is at most one of each kind at a time. A job runs as a coroutine of its own beside the users'
// requests; its figures can be read at any time, and those of the last one stay until the next begins. It
// ends by itself, when it is cancelled, when the store has shut down, and at stop(), which waits for no more
// than the unit of work that is under way. Not for: what the store does on its own account
// (blockmap/gc_pacing.cc).
#pragma once

#include <cstdint>
#include <string>

#include "blockmap/store.h"
#include "offload/base/sync.h"

namespace cofs {

enum class JobKind : uint8_t { kGc, kScrub };

enum class JobState : uint8_t {
  kNever,      // none since the mount
  kRunning,
  kDone,       // it came to its end
  kCancelled,  // by cancel(), or because the filesystem was being closed
  kFailed,     // `error` says why
};

struct JobFigures {
  JobState state = JobState::kNever;
  uint64_t number = 0;      // of the jobs of its kind since the mount, from 1
  uint64_t elapsed_ns = 0;  // so far, or until it ended
  Error error;              // kFailed
};

struct GcJobFigures : JobFigures {
  GcReport report;                  // `end` means something once the job is done
  uint32_t until_free_percent = 0;  // 0: until nothing gains
  bool free_enough = false;         // that was reached
};

// Of all scrubs that ended since the mount.
struct ScrubTotals {
  uint64_t runs = 0;       // that came to their end
  uint64_t bytes = 0;      // read and verified
  uint64_t errors = 0;
  uint64_t repaired = 0;
  int64_t last_end = 0;    // seconds since 1970, of the last one that came to its end; 0: none did
};

class Jobs {
 public:
  explicit Jobs(Store& store);
  Jobs(const Jobs&) = delete;
  ~Jobs();

  // Starts a collection: until nothing gains, or until `until_free_percent` (0 … 100; 0: no such bound) of
  // the volume's total can be written without collecting more. Returns its number. Errors: kBusy one runs;
  // kInvalid; kReadOnly; kShutdown.
  Result<uint64_t> start_gc(uint32_t until_free_percent);
  GcJobFigures gc() const;

  // Starts a scrub (Store::scrub) that reads at most so many bytes a second; 0: see ScrubRun. Also on a
  // volume mounted read-only, where nothing is repaired. Errors: kBusy, kShutdown.
  Result<uint64_t> start_scrub(uint64_t bytes_per_second);
  JobFigures scrub() const;
  const ScrubRun& scrub_run() const { return scrub_run_; }  // of the one that runs, or the last one
  const ScrubTotals& scrub_totals() const { return scrub_totals_; }

  // Asks the job of this kind to end soon. False: none runs.
  bool cancel(JobKind kind);
  void cancel_all();
  // Cancels all and waits until they have ended; none is started from then on.
  Task<> stop();

 private:
  struct Job {
    bool running = false;
    bool cancelled = false;
    uint64_t number = 0;
    uint64_t started_ns = 0;
    uint64_t ended_ns = 0;
    JobState state = JobState::kNever;
    Error error;
  };
  Result<uint64_t> begin(Job& job);
  void end(Job& job, const Result<>& result, std::string what);
  void describe_job(const Job& job, JobFigures& figures) const;
  Task<> run_gc();
  Task<> run_scrub();
  Task<Result<>> collect();
  bool is_free_enough() const;

  Store& store_;
  Executor& executor_;
  Clock& clock_;
  bool stopping_ = false;
  Event ended_;
  Job gc_job_;
  Job scrub_job_;
  ScrubRun scrub_run_;
  ScrubTotals scrub_totals_;
  GcReport gc_report_;
  uint32_t gc_percent_ = 0;
  bool gc_free_enough_ = false;
};

}  // namespace cofs
