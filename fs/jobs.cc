#include "fs/jobs.h"

#include <string>
#include <utility>

namespace cofs {

Jobs::Jobs(Store& store)
    : store_(store),
      executor_(store.environment().executor),
      clock_(store.environment().clock),
      ended_(executor_) {}

Jobs::~Jobs() { COFS_ASSERT(!gc_job_.running && !scrub_job_.running); }

// --- All kinds ---------------------------------------------------------------------------------

Result<uint64_t> Jobs::begin(Job& job) {
  if (stopping_ || store_.shut_down()) return fail(Code::kShutdown, "the filesystem has stopped");
  if (job.running) return fail(Code::kBusy, "a job of this kind is running", job.number);
  const uint64_t number = job.number + 1;
  job = Job();
  job.running = true;
  job.number = number;
  job.state = JobState::kRunning;
  job.started_ns = clock_.monotonic_ns();
  return number;
}

// The last that a job's coroutine does with *this. `what` it was and did, for the journal.
void Jobs::end(Job& job, const Result<>& result, std::string what) {
  job.running = false;
  job.ended_ns = clock_.monotonic_ns();
  Journal& journal = store_.environment().journal;
  if (!result) {
    job.state = JobState::kFailed;
    job.error = result.error();
    journal.write(Severity::kError, what + "; it failed: " + describe(job.error));
  } else {
    job.state = job.cancelled ? JobState::kCancelled : JobState::kDone;
    journal.write(Severity::kInfo, what + (job.cancelled ? "; cancelled" : "; done"));
  }
  ended_.notify_all();
}

void Jobs::describe_job(const Job& job, JobFigures& figures) const {
  figures.state = job.state;
  figures.number = job.number;
  figures.elapsed_ns = (job.running ? clock_.monotonic_ns() : job.ended_ns) - job.started_ns;
  figures.error = job.error;
}

bool Jobs::cancel(JobKind kind) {
  Job& job = kind == JobKind::kGc ? gc_job_ : scrub_job_;
  if (!job.running) return false;
  job.cancelled = true;
  if (kind == JobKind::kScrub) store_.cancel_scrub(scrub_run_);
  return true;
}

void Jobs::cancel_all() {
  cancel(JobKind::kGc);
  cancel(JobKind::kScrub);
}

Task<> Jobs::stop() {
  stopping_ = true;
  cancel_all();
  while (gc_job_.running || scrub_job_.running) co_await ended_.wait();
}

// --- Garbage collection ------------------------------------------------------------------------

Result<uint64_t> Jobs::start_gc(uint32_t until_free_percent) {
  if (until_free_percent > 100) return fail(Code::kInvalid, "more than 100 percent");
  if (store_.read_only()) return fail(Code::kReadOnly, "mounted read-only");
  auto number = begin(gc_job_);
  COFS_TRY(number);
  gc_report_ = GcReport();
  gc_percent_ = until_free_percent;
  gc_free_enough_ = false;
  spawn(executor_, run_gc());
  return number;
}

GcJobFigures Jobs::gc() const {
  GcJobFigures figures;
  describe_job(gc_job_, figures);
  figures.report = gc_report_;
  figures.until_free_percent = gc_percent_;
  figures.free_enough = gc_free_enough_;
  return figures;
}

bool Jobs::is_free_enough() const {
  if (gc_percent_ == 0) return false;
  const SpaceReport space = store_.space();
  return space.ready_blocks() >= space.total_blocks / 100 * gc_percent_ +
                                     space.total_blocks % 100 * gc_percent_ / 100;
}

Task<> Jobs::run_gc() {
  auto collected = co_await collect();
  end(gc_job_, collected,
      "garbage collection by request: " + std::to_string(gc_report_.victims) + " segments emptied, " +
          std::to_string(bytes_of_blocks(gc_report_.moved_blocks)) + " bytes moved");
}

Task<Result<>> Jobs::collect() {
  GcRequest request;
  request.proceed = [this](const GcReport& so_far) {
    gc_report_ = so_far;
    gc_free_enough_ = is_free_enough();
    return !gc_job_.cancelled && !gc_free_enough_;
  };
  auto report = co_await store_.collect_garbage(std::move(request));
  COFS_CO_TRY(report);
  gc_report_ = *report;
  // What became free can be used now, whatever ended the collection.
  if (report->victims == 0 || stopping_) co_return Result<>();
  auto done = co_await store_.checkpoint();
  co_return done;
}

// --- Scrub -------------------------------------------------------------------------------------

Result<uint64_t> Jobs::start_scrub(uint64_t bytes_per_second) {
  auto number = begin(scrub_job_);
  COFS_TRY(number);
  scrub_run_ = ScrubRun();
  scrub_run_.bytes_per_second = bytes_per_second;
  spawn(executor_, run_scrub());
  return number;
}

JobFigures Jobs::scrub() const {
  JobFigures figures;
  describe_job(scrub_job_, figures);
  return figures;
}

Task<> Jobs::run_scrub() {
  auto scrubbed = co_await store_.scrub(&scrub_run_);
  const ScrubFigures& figures = scrub_run_.figures;
  scrub_totals_.bytes += figures.done_bytes;
  scrub_totals_.errors += figures.errors();
  scrub_totals_.repaired += figures.repaired;
  if (scrubbed && !scrub_job_.cancelled) {
    scrub_totals_.runs++;
    scrub_totals_.last_end = store_.environment().clock.wall().seconds;
  }
  end(scrub_job_, scrubbed,
      "scrub: " + std::to_string(figures.done_bytes) + " bytes verified, " +
          std::to_string(figures.errors()) + " errors, " + std::to_string(figures.repaired) +
          " repaired");
}

}  // namespace cofs
