#include "tests/testing/sim_clock.h"

#include <algorithm>
#include <utility>

namespace cofs {
namespace {
constexpr uint64_t kSecondNs = 1'000'000'000;
}

WallTime SimClock::wall() {
  WallTime time;
  time.seconds =
      kWallStartSeconds + wall_shift_seconds_ + static_cast<int64_t>(now_ns_ / kSecondNs);
  time.nanoseconds = static_cast<uint32_t>(now_ns_ % kSecondNs);
  return time;
}

void SimClock::arm(TimerRequest& request) {
  COFS_ASSERT(!timers_.contains(&request));
  timers_[&request] = schedule(request.due_ns, [this, timer = &request] {
    timers_.erase(timer);
    executor_.post(timer->waiter);
  });
}

void SimClock::cancel(TimerRequest& request) {
  auto found = timers_.find(&request);
  if (found == timers_.end()) return;
  events_.erase(found->second);
  timers_.erase(found);
  executor_.post(request.waiter);
}

SimClock::EventId SimClock::schedule(uint64_t due_ns, std::function<void()> action) {
  EventId id;
  id.due_ns = std::max(due_ns, now_ns_);
  id.sequence = next_sequence_++;
  events_.emplace(id, std::move(action));
  return id;
}

std::optional<uint64_t> SimClock::next_due() const {
  if (events_.empty()) return std::nullopt;
  return events_.begin()->first.due_ns;
}

bool SimClock::advance() {
  if (events_.empty()) return false;
  auto event = events_.extract(events_.begin());
  now_ns_ = event.key().due_ns;
  event.mapped()();
  return true;
}

void SimClock::pass_until(uint64_t time_ns) {
  const std::optional<uint64_t> due = next_due();
  COFS_ASSERT(!due || *due >= time_ns);
  now_ns_ = std::max(now_ns_, time_ns);
}

std::vector<std::function<void()>> SimClock::abandon() {
  std::vector<std::function<void()>> actions;
  for (auto& [id, action] : events_) actions.push_back(std::move(action));
  events_.clear();
  timers_.clear();
  abandoned_ = true;
  return actions;
}

}  // namespace cofs
