// SimClock: virtual time, and the one queue of everything that will happen (timers, device completions).
//
// Time stands still while tasks run and jumps to the next event when SimWorld says so. Events at the
// same time happen in the order in which they were scheduled.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "offload/base/executor.h"

namespace cofs {

class SimClock final : public Clock {
 public:
  // 2026-01-01 00:00 UTC: what wall() says at monotonic time 0.
  static constexpr int64_t kWallStartSeconds = 1'767'225'600;

  explicit SimClock(Executor& executor) : executor_(executor) {}
  SimClock(const SimClock&) = delete;

  uint64_t monotonic_ns() override { return now_ns_; }
  WallTime wall() override;
  void arm(TimerRequest& request) override;
  void cancel(TimerRequest& request) override;

  // Moves the wall clock alone, as an administrator would; may go back.
  void shift_wall(int64_t seconds) { wall_shift_seconds_ += seconds; }

  struct EventId {
    uint64_t due_ns = 0;
    uint64_t sequence = 0;
    auto operator<=>(const EventId&) const = default;
  };
  // Runs `action` when the time comes; a due time in the past is now.
  EventId schedule(uint64_t due_ns, std::function<void()> action);
  // Nothing if the event already happened.
  void cancel(const EventId& event) { events_.erase(event); }

  std::optional<uint64_t> next_due() const;
  // Goes to the next event and runs it. False: there is none.
  bool advance();
  // Lets time pass without running anything; REQUIRES: no event is due before `time_ns`.
  void pass_until(uint64_t time_ns);

  // Gives up all events without running them (they are returned to keep what they refer to
  // reachable). From then on nothing ever happens.
  std::vector<std::function<void()>> abandon();
  bool abandoned() const { return abandoned_; }

 private:
  Executor& executor_;
  uint64_t now_ns_ = 0;
  uint64_t next_sequence_ = 0;
  int64_t wall_shift_seconds_ = 0;
  bool abandoned_ = false;
  std::map<EventId, std::function<void()>> events_;
  std::unordered_map<TimerRequest*, EventId> timers_;  // looked up only, never walked
};

}  // namespace cofs
