// Stalls: the device refuses a write, and may take it later.
//
// A write that fails, and fails again at once, stays pending with its data in memory: the store is stalled. It
// is tried again whenever somebody asks for a commit, and by the clock. Nothing is reordered and nothing given
// up, so that when the device takes it, everything goes on as after a very slow write. No commit can become
// durable meanwhile; whoever waits for one, or for room that only finished writes make, is told kIo.
//
// Who asked while an attempt was under way causes another one, and is told only of attempts that began after
// it asked: a device that works by then never answers with an old error.
//
// A store that is being opened or closed does not wait: there a write that is refused stops it (kShutdown).

#include <algorithm>
#include <string>
#include <utility>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr char kEndedStalled[] =
    "the mount ended while the device refused writes; what was not durable is lost";
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kRetryNs = 2 * kSecondNs;  // between two attempts that nobody asked for

}  // namespace

static void give_answer(WriteAnswer** answer, const Result<>& result) {
  if (answer == nullptr || *answer == nullptr) return;
  WriteAnswer& given = *std::exchange(*answer, nullptr);
  given.result = result;
  given.group->done();
}

Task<Result<>> Store::Impl::write_retrying(BlockRange range, const std::vector<MemoryPiece>* memory,
                                           WriteAnswer** answer) {
  Result<> written = fail(Code::kShutdown, "the store has shut down");
  if (!shut_down) {
    written = co_await env.device.write(range, *memory);
    if (!written) written = co_await write_persistently(range, memory, written.error(), answer);
  }
  if (written) {
    counters.writes++;
    counters.write_bytes += bytes_of_blocks(range.count);
  }
  give_answer(answer, written);
  co_return written;
}

Task<Result<>> Store::Impl::write_persistently(BlockRange range, const std::vector<MemoryPiece>* memory,
                                               Error first, WriteAnswer** answer) {
  bool is_stalled = false;
  Result<> written = fail(first);
  while (true) {
    const uint64_t asked = stall.asked;
    const uint64_t attempt = ++stall.attempts;
    written = co_await env.device.write(range, *memory);
    if (written || shut_down) break;
    if (!stall.allowed) {
      if (asked != stall.asked) continue;  // the last attempt is one that began after the word to end
      if (is_stalled) fail_store(written.error(), kEndedStalled);
      break;
    }
    if (!is_stalled) begin_stall(written.error());
    is_stalled = true;
    stall.last_failed = std::max(stall.last_failed, attempt);
    wake_stalled();
    give_answer(answer, written);
    while (asked == stall.asked && !shut_down) co_await stall.retry.wait();
    if (shut_down) break;
  }
  if (is_stalled) {
    end_stall();
  } else if (written) {
    env.journal.write(Severity::kWarning,
                      "a write failed, and succeeded when tried again: " + describe(first));
  }
  co_return written;
}

void Store::Impl::begin_stall(const Error& error) {
  if (stall.writes++ != 0) return;
  stall.count++;
  stall.error = error;
  stall.since = env.clock.wall();
  stall.since_ns = env.clock.monotonic_ns();
  env.journal.write(Severity::kError,
                    "the device refuses writes (" + describe(error) +
                        "): they are kept in memory and tried again, and fsync fails until it takes them; to unmount "
                        "before that loses what is not durable");
  if (stall.clocked) return;
  stall.clocked = true;
  tasks_running++;
  spawn(env.executor, retry_by_the_clock());
}

void Store::Impl::end_stall() {
  if (--stall.writes != 0) return;
  if (stall.asleep) env.clock.cancel(stall.timer);
  write_done.notify_all();
  if (shut_down) return;
  const uint64_t seconds = (env.clock.monotonic_ns() - stall.since_ns) / kSecondNs;
  env.journal.write(Severity::kWarning, "the device takes writes again, after " + std::to_string(seconds) +
                                            " seconds: nothing was lost");
}

// Those who wait for a commit, a checkpoint or writes look whether they are to go on waiting.
void Store::Impl::wake_stalled() {
  commit_starter.wake();
  commit_done.notify_all();
  checkpoint_starter.wake();
  checkpoint_done.notify_all();
  write_done.notify_all();
}

void Store::Impl::retry_stalled() {
  stall.asked++;
  if (stall.writes != 0) stall.retry.notify_all();
}

// The store is down: pending writes end.
void Store::Impl::end_waiting_writes() {
  stall.retry.notify_all();
  if (stall.asleep) env.clock.cancel(stall.timer);
}

Task<> Store::Impl::retry_by_the_clock() {
  while (stall.writes != 0 && !shut_down) {
    stall.timer.due_ns = env.clock.monotonic_ns() + kRetryNs;
    stall.asleep = true;
    co_await sleep_until(env.clock, stall.timer);
    stall.asleep = false;
    if (!shut_down) retry_stalled();
  }
  stall.clocked = false;
  tasks_running--;
  task_done.notify_all();
}

Result<> Store::Impl::check_stall() const {
  if (stall.writes == 0) return {};
  return fail(Code::kIo, stall.error.what, stall.error.where);
}

// For those who wait for a commit or a checkpoint: no attempt after `attempts` has failed.
Result<> Store::Impl::check_attempts(uint64_t attempts) const {
  if (stall.last_failed <= attempts) return {};
  return fail(Code::kIo, stall.error.what, stall.error.where);
}

// For who must not wait for the device to take writes again, with a lock that others want, say.
Task<Result<>> Store::Impl::settle_writes(uint64_t up_to) {
  while (!writes_in_flight.empty() && *writes_in_flight.begin() <= up_to) {
    auto stalled = check_stall();
    COFS_CO_TRY(stalled);
    co_await write_done.wait();
  }
  co_return Result<>();
}

Result<> Store::check_stall() const { return impl_->check_stall(); }

StallReport Store::stall() const {
  const StallState& state = impl_->stall;
  StallReport report;
  report.stalled = state.writes != 0;
  if (report.stalled) report.seconds = (impl_->env.clock.monotonic_ns() - state.since_ns) / kSecondNs;
  report.count = state.count;
  report.since = state.since;
  report.error = state.error;
  return report;
}

void Store::stop_waiting() {
  impl_->stall.allowed = false;
  impl_->retry_stalled();
}

}  // namespace cofs
