// SteadyClock and SystemRandom: the production Clock and Random.
//
// A permanent thread sleeps until the earliest timer is due and posts its waiter to the monitor;
// like any poster it may then run the core itself. Timers are exact to the kernel's scheduling,
// never early.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "offload/base/executor.h"
#include "offload/monitor.h"

namespace cofs {

class SteadyClock final : public Clock {
 public:
  explicit SteadyClock(Monitor& monitor);
  // REQUIRES: no timer is armed.
  ~SteadyClock() override;
  SteadyClock(const SteadyClock&) = delete;

  uint64_t monotonic_ns() override;
  WallTime wall() override;
  // Both from any thread.
  void arm(TimerRequest& request) override;
  void cancel(TimerRequest& request) override;

 private:
  void run();

  Monitor& monitor_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::pair<uint64_t, TimerRequest*>> armed_;  // by due time; guarded by mutex_
  bool stop_ = false;                                   // guarded by mutex_
  std::thread thread_;
};

// xoshiro256** seeded by the kernel: not cryptographic, so secrets come from the kernel each time. Not
// thread-safe: it belongs to the core.
class SystemRandom final : public Random {
 public:
  SystemRandom();
  uint64_t next() override;
  void fill_secret(std::span<std::byte> bytes) override;

 private:
  std::array<uint64_t, 4> state_;
};

}  // namespace cofs
