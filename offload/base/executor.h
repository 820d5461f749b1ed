// The interfaces through which the core meets the world: Executor, Clock, Random, Journal (messages).
//
// At any time at most one thread is inside the core. In production the Executor is a combining
// monitor (offload/monitor.h); in tests it is a seeded queue on one thread (tests/testing/). So
// nothing inside the core locks, and a coroutine is atomic between two suspension points.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "offload/base/task.h"

namespace cofs {

// Work that must not be done inside the core (hashing, copying): run() is called with no other part
// of the core's state touched, possibly in parallel with the core; then `waiter` resumes inside it.
class OutsideJob {
 public:
  virtual ~OutsideJob() = default;
  virtual void run() = 0;
  std::coroutine_handle<> waiter;
  OutsideJob* next = nullptr;  // for the executor's list while it owns the job
};

class Executor {
 public:
  virtual ~Executor() = default;

  // Resumes `handle` inside the core, after what was posted before it has run until it waits (the
  // simulated executor may choose another order). Callable inside the core and from any thread.
  virtual void post(std::coroutine_handle<> handle) = 0;

  // Runs `job` outside the core, then resumes its waiter inside. The job outlives that.
  virtual void outside(OutsideJob& job) = 0;
};

// co_await outside(executor, fn): fn runs outside the core; whatever it refers to must stay untouched
// by others meanwhile.
template <class Function>
class OutsideAwaiter final : public OutsideJob {
 public:
  OutsideAwaiter(Executor& executor, Function function)
      : executor_(executor), function_(std::move(function)) {}
  void run() override { function_(); }
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) {
    waiter = awaiter;
    executor_.outside(*this);
  }
  void await_resume() {}

 private:
  Executor& executor_;
  Function function_;
};
template <class Function>
OutsideAwaiter<Function> outside(Executor& executor, Function function) {
  return OutsideAwaiter<Function>(executor, std::move(function));
}

// Starts `task` as a root of its own, inside the core, soon.
inline void spawn(Executor& executor, Task<void> task) { executor.post(detach(std::move(task))); }

struct WallTime {
  int64_t seconds = 0;       // since 1970-01-01 00:00 UTC; may be negative
  uint32_t nanoseconds = 0;  // [0, 999'999'999]
  auto operator<=>(const WallTime&) const = default;
};

// A timer that the core waits for; owned by the awaiting frame.
struct TimerRequest {
  uint64_t due_ns = 0;  // on the monotonic clock
  std::coroutine_handle<> waiter;
};

class Clock {
 public:
  virtual ~Clock() = default;
  virtual uint64_t monotonic_ns() = 0;
  virtual WallTime wall() = 0;
  // Posts the waiter once the clock reached due_ns, or cancel() was called for it, whichever is first.
  virtual void arm(TimerRequest& request) = 0;
  // Makes an armed request due now; nothing if it already fired.
  virtual void cancel(TimerRequest& request) = 0;
};

class SleepAwaiter {
 public:
  SleepAwaiter(Clock& clock, TimerRequest& request) : clock_(clock), request_(request) {}
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) {
    request_.waiter = awaiter;
    clock_.arm(request_);
  }
  void await_resume() {}

 private:
  Clock& clock_;
  TimerRequest& request_;
};
// co_await sleep_until(clock, request): until request.due_ns, or until somebody cancels it.
inline SleepAwaiter sleep_until(Clock& clock, TimerRequest& request) {
  return SleepAwaiter(clock, request);
}

class Random {
 public:
  virtual ~Random() = default;
  virtual uint64_t next() = 0;  // uniform over all 64-bit values
  // Bytes that nobody can guess, whatever was seen of next() and of earlier secrets.
  virtual void fill_secret(std::span<std::byte> bytes) = 0;
};

enum class Severity { kInfo, kWarning, kError };

// Where messages for a person go: one line each, without a newline.
class Journal {
 public:
  virtual ~Journal() = default;
  virtual void write(Severity severity, std::string_view line) = 0;
};

}  // namespace cofs
