#include "offload/copy_engine.h"

#include <algorithm>
#include <utility>

#include "offload/copy_plan.h"

namespace cofs {
namespace {

size_t column(CopyPath path) { return static_cast<size_t>(path); }

bool on_device(BlockRange range, uint64_t block_count) {
  return range.count <= block_count && range.start <= block_count - range.count;
}

struct SubmitAwaiter {
  Device& device;
  IoRequest& request;
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) {
    request.waiter = awaiter;
    device.submit(request);
  }
  void await_resume() {}
};

}  // namespace

struct CopyEngine::Suspect {
  Path* path = nullptr;
  Error error;
  uint64_t command = 0;
};

struct CopyEngine::Operation {
  uint64_t target_offset = 0;
  uint64_t count = 0;
  std::vector<BlockRange> sources;
  uint64_t good = 0;  // the sum of blocks
  std::array<uint64_t, kCopyPathCount> blocks{};
  Result<> result;    // why good < count
  // Paths that failed here, not yet charged for it: if the host cannot read the sources either, it
  // was not their fault.
  std::vector<Suspect> suspects;
  bool source_failed = false;
};

struct CopyEngine::Gather {
  Gather(Executor& executor, uint64_t target, std::shared_ptr<void> hold, CopyCounters& counted)
      : target_start(target), target_hold(std::move(hold)), counters(counted), workers(executor) {}

  void plan_whole(std::vector<BlockRange> sources, uint64_t count) {
    Operation& operation = operations.emplace_back();
    operation.count = count;
    operation.sources = std::move(sources);
  }
  void plan_for(const CopyLimits& limits, std::span<const BlockRange> sources) {
    const CopyPlan plan(sources, limits, target_start);
    for (const CopyOperation& planned : plan.operations()) {
      Operation& operation = operations.emplace_back();
      operation.target_offset = planned.target_offset;
      operation.count = planned.count;
      const std::span<const BlockRange> own = plan.sources_of(planned);
      operation.sources.assign(own.begin(), own.end());
    }
    stop_after = operations.size();
  }
  bool timed_out() const { return target_in_doubt; }

  uint64_t target_start;
  std::shared_ptr<void> target_hold;
  CopyCounters& counters;
  uint64_t range_blocks = 0;  // the sources' mean length
  bool host_only = false;
  bool may_use_host = true;
  uint64_t worker_count = 1;
  std::vector<Operation> operations;
  size_t next = 0;
  size_t stop_after = 1;  // the first operation that failed on all paths; later ones are of no use
  bool target_in_doubt = false;
  Error doubt;
  WaitGroup workers;
};

// Shared by its gather and the coroutine that waits for the device; whoever is last frees it.
struct CopyEngine::Command {
  IoRequest request;
  std::vector<BlockRange> sources;
  std::shared_ptr<void> target_hold;
  TimerRequest timer;
  bool finished = false;
  bool abandoned = false;
};

CopyEngine::CopyEngine(Device& device, Executor& executor, Clock& clock, BufferPool& buffers,
                       Journal& journal, CopyEngineOptions options)
    : device_(device),
      executor_(executor),
      clock_(clock),
      journal_(journal),
      options_(std::move(options)),
      host_(device, executor, buffers, options_.host_chunk_blocks, options_.host_in_flight),
      abandoned_(executor) {
  const std::vector<CopyLimits>& copies = device.geometry().copies;
  for (uint32_t i = 0; i < copies.size(); i++) {
    if (options_.engine.empty() && !copies[i].automatic) continue;
    Path& path = paths_.emplace_back();
    path.limits = copies[i];
    path.index = i;
    path.allowed = options_.engine.empty() || options_.engine == path.limits.engine;
    path.permits = std::make_unique<Semaphore>(executor, std::max(1U, path.limits.in_flight_max));
  }
}

CopyEngine::~CopyEngine() { COFS_ASSERT(abandoned_.pending() == 0); }

Task<void> CopyEngine::settle() {
  co_await abandoned_.wait();
  kept_.clear();
}

std::string_view CopyEngine::why_not(const Path& path, uint64_t range_blocks) const {
  if (!path.allowed) return "not allowed";
  if (path.demoted) return "demoted";
  if (!options_.engine.empty() || !options_.allow_host) return {};
  return better_not(rates_, path.limits.engine, range_blocks);
}

const CopyEngine::Path* CopyEngine::best_path(uint64_t range_blocks) const {
  auto found = std::ranges::find_if(
      paths_, [&](const Path& path) { return why_not(path, range_blocks).empty(); });
  return found == paths_.end() ? nullptr : &*found;
}

CopyPath CopyEngine::preferred() const {
  const Path* path = best_path(kRateRangeBlocks.back());
  return path == nullptr ? CopyPath::kHost : path->limits.path;
}

std::string_view CopyEngine::engine_for(uint64_t range_blocks) const {
  const Path* path = best_path(range_blocks);
  return path == nullptr ? std::string_view("host") : std::string_view(path->limits.engine);
}

// Ranges come from metadata, which may be wrong: a value, not an assertion.
Result<> CopyEngine::check(std::span<const BlockRange> sources, uint64_t target_start) const {
  const uint64_t block_count = device_.geometry().block_count;
  uint64_t total = 0;
  for (const BlockRange& source : sources) {
    if (!on_device(source, block_count)) {
      return fail(Code::kInvalid, "copy source off the device", source.start);
    }
    total += source.count;
    if (total > block_count) break;  // no target can hold it; and no overflow
  }
  const BlockRange target{target_start, total};
  if (!on_device(target, block_count)) {
    return fail(Code::kInvalid, "copy target off the device", target_start);
  }
  for (const BlockRange& source : sources) {
    if (source.count != 0 && source.start < target.end() && target.start < source.end()) {
      return fail(Code::kInvalid, "copy source inside the target", source.start);
    }
  }
  return {};
}

void CopyEngine::refuse(Gather& run, const Path& path, std::string_view reason) {
  run.counters.refused[path.limits.engine + ": " + std::string(reason)]++;
}

// A gather goes to the host because the device has nothing else: say why it has nothing.
void CopyEngine::count_missing_paths(Gather& run) {
  const std::vector<std::string>& reasons = device_.geometry().copy_refusals;
  for (const std::string& reason : reasons) run.counters.refused[reason]++;
  if (reasons.empty()) run.counters.refused["no copy engine offered"]++;
}

// A reset of the device ends all commands in flight at once: that is one failure, not as many.
void CopyEngine::charge(const Suspect& suspect) {
  Path& path = *suspect.path;
  if (suspect.command <= path.blamed_up_to) return;
  path.blamed_up_to = path.commands_issued;
  path.failures_in_row++;
  if (path.demoted || path.failures_in_row < options_.failures_before_demotion) return;
  demote(path, "after " + std::to_string(path.failures_in_row) +
                   " failures in a row, the last: " + describe(suspect.error));
}

void CopyEngine::demote(Path& path, const std::string& why) {
  path.demoted = true;
  journal_.write(Severity::kWarning, "copy engine " + path.limits.engine +
                                         " is left until the next mount " + why +
                                         "; copies go by " + std::string(name_of(preferred())));
}

void CopyEngine::condemn(CopyPath path_kind, std::string_view why) {
  for (Path& path : paths_) {
    if (path.limits.path == path_kind && path.usable()) demote(path, std::string(why));
  }
}

Task<CopyOutcome> CopyEngine::gather(std::span<const BlockRange> sources, uint64_t target_start,
                                     std::shared_ptr<void> target_hold, CopyCounters* counters,
                                     bool may_use_host) {
  CopyOutcome outcome;
  outcome.result = check(sources, target_start);
  if (!outcome.result) co_return outcome;
  std::vector<BlockRange> merged = merged_sources(sources);
  if (merged.empty()) co_return outcome;

  Gather run(executor_, target_start, std::move(target_hold),
             counters == nullptr ? counters_ : *counters);
  run.may_use_host = options_.allow_host && may_use_host;
  const uint64_t count = blocks_in(merged);
  run.range_blocks = count / merged.size();
  const Path* path = best_path(run.range_blocks);
  if (path != nullptr) {
    run.plan_for(path->limits, merged);
    run.worker_count =
        std::min<uint64_t>(std::max(1U, path->limits.in_flight_max), run.operations.size());
  } else {
    if (paths_.empty()) count_missing_paths(run);
    run.plan_whole(std::move(merged), count);
  }
  outcome = co_await run_gather(run);
  co_return outcome;
}

Task<CopyOutcome> CopyEngine::gather_by_host(std::span<const BlockRange> sources,
                                             uint64_t target_start,
                                             std::shared_ptr<void> target_hold,
                                             CopyCounters* counters) {
  CopyOutcome outcome;
  outcome.result = check(sources, target_start);
  if (!outcome.result) co_return outcome;
  std::vector<BlockRange> merged = merged_sources(sources);
  if (merged.empty()) co_return outcome;
  Gather run(executor_, target_start, std::move(target_hold),
             counters == nullptr ? counters_ : *counters);
  run.host_only = true;
  const uint64_t count = blocks_in(merged);
  run.plan_whole(std::move(merged), count);
  outcome = co_await run_gather(run);
  co_return outcome;
}

Task<CopyOutcome> CopyEngine::run_gather(Gather& run) {
  CopyOutcome outcome;
  run.workers.add(run.worker_count);
  for (uint64_t i = 1; i < run.worker_count; i++) spawn(executor_, work(run));
  co_await work(run);
  co_await run.workers.wait();

  for (const Operation& operation : run.operations) {
    outcome.good_blocks += operation.good;
    for (size_t i = 0; i < kCopyPathCount; i++) outcome.blocks[i] += operation.blocks[i];
    if (operation.good < operation.count) {
      outcome.result = operation.result;
      break;
    }
  }
  if (run.target_in_doubt) {
    outcome.target_in_doubt = true;
    outcome.result = fail(run.doubt);
  }
  co_return outcome;
}

Task<void> CopyEngine::work(Gather& run) {
  while (!run.timed_out() && run.next < run.operations.size() && run.next <= run.stop_after) {
    const size_t index = run.next++;
    co_await copy_operation(run, index);
  }
  run.workers.done();
}

// Takes one operation along the paths, each continuing where the one before ended.
Task<void> CopyEngine::copy_operation(Gather& run, size_t index) {
  Operation& operation = run.operations[index];
  std::vector<BlockRange> rest = operation.sources;
  const uint64_t target_start = run.target_start + operation.target_offset;
  operation.result = fail(Code::kNotSupported, "no copy path is allowed", target_start);
  for (Path& path : paths_) {
    if (rest.empty() || run.timed_out() || run.host_only) break;
    if (const std::string_view reason = why_not(path, run.range_blocks); !reason.empty()) {
      refuse(run, path, reason);
      continue;
    }
    const uint64_t good =
        co_await copy_by(path, run, operation, rest, target_start + operation.good);
    operation.good += good;
    rest = sources_after(rest, good);
  }
  if (!rest.empty() && (run.may_use_host || run.host_only) && !run.timed_out()) {
    const uint64_t good =
        co_await copy_by_host(run, operation, rest, target_start + operation.good);
    operation.good += good;
  }
  if (operation.good < operation.count) run.stop_after = std::min(run.stop_after, index);
  if (!operation.source_failed) {
    for (const Suspect& suspect : operation.suspects) charge(suspect);
  }
  if (operation.good == operation.count) operation.result = Result<>();
}

// Copies a prefix of `sources` by one path, and returns its length. One operation after another: the
// pieces are several only where an earlier path with wider limits has failed.
Task<uint64_t> CopyEngine::copy_by(Path& path, Gather& run, Operation& operation,
                                   std::span<const BlockRange> sources, uint64_t target_start) {
  const CopyPlan plan(sources, path.limits, target_start);
  const size_t path_column = column(path.limits.path);
  uint64_t copied = 0;
  for (const CopyOperation& piece : plan.operations()) {
    if (!piece.copyable) {
      refuse(run, path, "source and target on different disks");
      co_return copied;
    }
    co_await path.permits->acquire();
    if (path.demoted || run.timed_out()) {  // meanwhile
      path.permits->release();
      if (!run.timed_out()) refuse(run, path, "demoted");
      co_return copied;
    }
    auto command = std::make_shared<Command>();
    const std::span<const BlockRange> piece_sources = plan.sources_of(piece);
    command->sources.assign(piece_sources.begin(), piece_sources.end());
    command->target_hold = run.target_hold;
    command->request.op = IoRequest::Op::kCopy;
    command->request.copy_index = path.index;
    command->request.range = BlockRange{target_start + piece.target_offset, piece.count};
    command->request.sources = command->sources;
    run.counters.operations[path_column]++;
    const uint64_t command_number = ++path.commands_issued;
    const Result<> result = co_await issue(command);
    path.permits->release();

    const uint64_t good =
        command->finished ? std::min(command->request.good_blocks, piece.count) : 0;
    copied += good;
    operation.blocks[path_column] += good;
    run.counters.bytes[path_column] += bytes_of_blocks(good);
    if (result && good == piece.count) {
      path.failures_in_row = 0;
      continue;
    }
    const Error error =
        result ? Error(Code::kIo, "copy ended early", command->request.range.start) : result.error();
    operation.result = fail(error);
    std::string reason(name_of(error.code));
    if (*error.what != '\0') reason += std::string(", ") + error.what;
    refuse(run, path, reason);
    if (error.code == Code::kTimedOut) {
      // The copy may still land: writing the same blocks another way would race with it.
      if (command->finished) kept_.push_back(run.target_hold);
      run.target_in_doubt = true;
      run.doubt = error;
      charge(Suspect{&path, error, command_number});
    } else {
      operation.suspects.push_back(Suspect{&path, error, command_number});
    }
    co_return copied;
  }
  co_return copied;
}

Task<Result<>> CopyEngine::issue(std::shared_ptr<Command> command) {
  command->request.timeout_ns = 2 * options_.timeout_ns;
  command->timer.due_ns = clock_.monotonic_ns() + options_.timeout_ns;
  spawn(executor_, await_device(this, command));
  co_await sleep_until(clock_, command->timer);
  if (command->finished) co_return command->request.result;
  command->abandoned = true;
  abandoned_.add();
  co_return fail(Code::kTimedOut, "the device did not answer in time",
                 command->request.range.start);
}

Task<void> CopyEngine::await_device(CopyEngine* engine, std::shared_ptr<Command> command) {
  co_await SubmitAwaiter{engine->device_, command->request};
  command->finished = true;
  if (!command->abandoned) {
    engine->clock_.cancel(command->timer);
    co_return;
  }
  const Result<>& result = command->request.result;
  engine->journal_.write(Severity::kInfo,
                         "a copy that had timed out was answered: " +
                             (result ? std::string("done") : describe(result.error())));
  if (!result && result.error().code == Code::kTimedOut) {
    engine->kept_.push_back(std::move(command->target_hold));  // not even now is it known
  }
  command->target_hold.reset();
  engine->abandoned_.done();
}

Task<uint64_t> CopyEngine::copy_by_host(Gather& run, Operation& operation,
                                        std::span<const BlockRange> sources,
                                        uint64_t target_start) {
  const HostCopyResult host = co_await host_.copy(sources, target_start);
  const size_t path_column = column(CopyPath::kHost);
  run.counters.operations[path_column] += host.operations;
  run.counters.bytes[path_column] += bytes_of_blocks(host.good_blocks);
  operation.blocks[path_column] += host.good_blocks;
  if (!host.result) operation.result = host.result;
  operation.source_failed = host.source_failed;
  if (host.target_in_doubt) {
    kept_.push_back(run.target_hold);
    run.target_in_doubt = true;
    run.doubt = host.result.error();
  }
  co_return host.good_blocks;
}

}  // namespace cofs
