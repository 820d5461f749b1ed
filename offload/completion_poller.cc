#include "offload/completion_poller.h"

#include <algorithm>

namespace cofs {

void CompletionPoller::Average::add(int64_t sample) {
  count = std::min(count + 1, kAverageOf);
  nanoseconds += (sample - nanoseconds) / count;
}

bool CompletionPoller::shall_poll(Clock::time_point now) {
  if (now < rest_until_) return false;
  // Multiples of the golden ratio: spread evenly, and not in step with what a program does in turns.
  const uint32_t dice = ++waits_ * 0x9e3779b9U;
  if (slept_.count < kAverageOf || polled_.count < kAverageOf) return dice < 1U << 31;
  const bool pays = polled_.nanoseconds * 100 < slept_.nanoseconds * kPaysBelow;
  const bool tries_other = dice < UINT32_MAX / kTryEvery;
  return pays != tries_other;
}

CompletionPoller::Clock::time_point CompletionPoller::begin(Clock::time_point now) {
  if (!allowed_) return now;
  polls_ = shall_poll(now);
  began_ = now;
  return polls_ ? now + kPollTime : now;
}

void CompletionPoller::end(Clock::time_point now) {
  if (!allowed_) return;
  if (polls_ && now - began_ >= kKeptAfter) rest_until_ = now + kRest;
  if (polls_ && now - began_ < kPollTime) found_.fetch_add(1, std::memory_order_relaxed);
  const int64_t took = std::chrono::nanoseconds(std::min<Clock::duration>(now - began_, kWaitMax)).count();
  (polls_ ? polled_ : slept_).add(took);
}

}  // namespace cofs
