// CompletionPoller: whether a thread that waits for one durable write of the device looks for its end before it sleeps.
//
// Who sleeps until the device is done pays for being woken, on an idle CPU often more than the device takes. Looking costs
// processor time instead, and helps only where the device answers soon. So both are measured, all the time: one wait in 32 is
// spent in the other way, and the rest look while that takes less than 90 % of the time that sleeping takes, on moving
// averages. Where others want the CPU, who yields it while looking may have it back much later: then it is not looked for a while, nor
// tried. docs/decisions/0020 has the figures, and why only durable writes are polled for.
//
// One wait at a time: it is used by one thread, or by several in turns.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace cofs {

class CompletionPoller {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::chrono::microseconds kPollTime{60};  // after which a thread sleeps even so
  // What looking may take, in percent of sleeping.
  static constexpr int64_t kPaysBelow = 90;
  // Longer waits count as this: they come of something else, such as another program's time on the CPU.
  static constexpr std::chrono::microseconds kWaitMax{200};
  // A moving average is one of as many waits. Before each way had so many, both are tried equally often.
  static constexpr int64_t kAverageOf = 16;
  static constexpr uint32_t kTryEvery = 32;
  // A thread that looks and has waited for so long was kept from its CPU, or the device is slow; and for how long it then only sleeps.
  static constexpr std::chrono::milliseconds kKeptAfter{1};
  static constexpr std::chrono::milliseconds kRest{200};

  // `allowed` false: always sleep. On a single CPU looking takes from others what they need to be done. `found` counts the writes
  // whose end was found by looking; it must outlive this.
  CompletionPoller(bool allowed, std::atomic<uint64_t>& found) : allowed_(allowed), found_(found) {}

  // A write is started now. Returns until when the thread is to look for its end; `now`: it is to sleep.
  Clock::time_point begin(Clock::time_point now);
  // It has ended. REQUIRES: begin() was called since.
  void end(Clock::time_point now);

 private:
  struct Average {
    int64_t count = 0;  // at most kAverageOf
    int64_t nanoseconds = 0;
    void add(int64_t sample);
  };
  bool shall_poll(Clock::time_point now);

  const bool allowed_;
  std::atomic<uint64_t>& found_;
  uint32_t waits_ = 0;
  Clock::time_point rest_until_;
  Average slept_;
  Average polled_;
  // Of the wait that has begun:
  bool polls_ = false;
  Clock::time_point began_;
};

}  // namespace cofs
