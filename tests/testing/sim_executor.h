// SimExecutor: the core's executor in tests. One thread, a queue, and a seeded choice of what runs next.
//
// With shuffle on, the next task is any of the queued ones, and a job given to outside() may run at
// once or several steps later, as on another thread. With shuffle off it is a plain FIFO.
// It never runs anything by itself: SimWorld drives it.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <vector>

#include "offload/base/executor.h"
#include "tests/testing/sim_random.h"

namespace cofs {

class SimExecutor final : public Executor {
 public:
  SimExecutor(uint64_t seed, bool shuffle) : random_(seed), shuffle_(shuffle) {}

  void post(std::coroutine_handle<> handle) override;
  void outside(OutsideJob& job) override;

  // Runs one queued task until it waits (or one outside job). False: nothing was queued.
  bool run_one();
  bool idle() const { return queue_.empty(); }
  bool shuffle() const { return shuffle_; }
  void set_shuffle(bool shuffle) { shuffle_ = shuffle; }
  uint64_t steps() const { return steps_; }

  // Gives up everything queued without resuming it; the handles are returned so that the caller can
  // keep their frames reachable.
  std::vector<std::coroutine_handle<>> abandon();

 private:
  struct Item {
    std::coroutine_handle<> handle;
    OutsideJob* job = nullptr;  // set: run this, then queue its waiter
  };

  SimRandom random_;
  bool shuffle_;
  std::deque<Item> queue_;
  uint64_t steps_ = 0;
};

}  // namespace cofs
