#include "offload/steady_clock.h"

#include <pthread.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <vector>

namespace cofs {

SteadyClock::SteadyClock(Monitor& monitor) : monitor_(monitor), thread_([this] { run(); }) {}

SteadyClock::~SteadyClock() {
  {
    std::lock_guard lock(mutex_);
    COFS_ASSERT(armed_.empty());
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t SteadyClock::monotonic_ns() {
  // libstdc++'s steady_clock is CLOCK_MONOTONIC, so that this and the thread's wait agree.
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

WallTime SteadyClock::wall() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  WallTime time;
  time.seconds = now.tv_sec;
  time.nanoseconds = static_cast<uint32_t>(now.tv_nsec);
  return time;
}

void SteadyClock::arm(TimerRequest& request) {
  std::lock_guard lock(mutex_);
  auto [place, inserted] = armed_.emplace(request.due_ns, &request);
  COFS_ASSERT(inserted);
  if (place == armed_.begin()) changed_.notify_all();
}

void SteadyClock::cancel(TimerRequest& request) {
  {
    std::lock_guard lock(mutex_);
    if (armed_.erase({request.due_ns, &request}) == 0) return;  // fired already
  }
  monitor_.post(request.waiter);
}

void SteadyClock::run() {
  pthread_setname_np(pthread_self(), "cofs-clock");
  Monitor::mark_service_thread();
  std::vector<std::coroutine_handle<>> due;
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (armed_.empty()) {
      changed_.wait(lock);
      continue;
    }
    uint64_t now = monotonic_ns();
    uint64_t first = armed_.begin()->first;
    if (first > now) {
      // At most an hour at once: a far due time must not overflow the kernel's.
      constexpr uint64_t kSleepNsMax = 3'600'000'000'000;
      uint64_t sleep_ns = std::min(first - now, kSleepNsMax);
      changed_.wait_until(lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(
                                    static_cast<int64_t>(now + sleep_ns))));
      continue;
    }
    while (!armed_.empty() && armed_.begin()->first <= now) {
      due.push_back(armed_.begin()->second->waiter);
      armed_.erase(armed_.begin());
    }
    lock.unlock();
    monitor_.post_batch(due);
    due.clear();
    lock.lock();
  }
}

SystemRandom::SystemRandom() {
  fill_secret(std::as_writable_bytes(std::span(state_)));
  state_[0] |= 1;  // never the all-zero state
}

void SystemRandom::fill_secret(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    ssize_t got = getrandom(bytes.data(), bytes.size(), 0);
    COFS_ASSERT(got > 0 || errno == EINTR);  // cannot fail otherwise once the machine is up
    if (got > 0) bytes = bytes.subspan(static_cast<size_t>(got));
  }
}

uint64_t SystemRandom::next() {
  uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

}  // namespace cofs
