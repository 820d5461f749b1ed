// Monitor: the production Executor, a combining monitor. Whoever posts work while nobody is inside
// enters and runs everything that can run; others only add to the queue and go on.
//
// Invariants. (1) At most one thread is inside at a time; what it leaves behind is handed to the
// next by the mutex. (2) While something is queued, a thread is inside or on its way in: a thread
// that leaves work behind, or posts while it acts on its lists, comes back or calls the helper. (3)
// Inside, I/O, replies and outside jobs are only collected; the thread that collected them acts on
// them after it left, in parallel with others.
//
// Under load there may always be work for the thread that happens to be inside, while it has duties
// of its own (completions to reap, timers to watch). So a stay is bounded; what is left then goes
// to a helper, the only thread the monitor has, which stays as long as there is work. Otherwise the
// helper sleeps. The monitor must outlive everything that posts to it.
#pragma once

#include <condition_variable>
#include <coroutine>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "offload/base/executor.h"

namespace cofs {

// Something small to do right after leaving the core (a reply, a submission). It lives until run()
// was called, and may free itself there. run() may post; it must not wait for other work of the
// core.
class Deferred {
 public:
  virtual void run() = 0;
  Deferred* next = nullptr;  // for the monitor's list

 protected:
  ~Deferred() = default;
};

class Monitor final : public Executor {
 public:
  // A thread leaves after so many steps even if more is queued, so that what it collected gets
  // done.
  static constexpr uint32_t kStepsPerEntryMax = 64;
  // A thread that came back so often has its own work done long since, and serves others: time to
  // go.
  static constexpr uint32_t kEntriesPerStayMax = 32;

  Monitor();
  // Waits until the last thread is out. REQUIRES: nothing is queued.
  ~Monitor() override;
  Monitor(const Monitor&) = delete;

  // From any thread, inside or outside. The caller may run the core, and act on what that collects,
  // before this returns; never when it is called inside or by a Deferred or an OutsideJob.
  void post(std::coroutine_handle<> handle) override;
  // The same for many at the price of one entry.
  void post_batch(std::span<const std::coroutine_handle<>> handles);

  // REQUIRES: inside().
  void outside(OutsideJob& job) override;
  // Runs `action` once this thread has left the core. Actions run in order, before the outside
  // jobs. REQUIRES: inside().
  void defer(Deferred& action);

  // True when the calling thread is inside this monitor.
  bool inside() const;
  // Changes each time a thread enters: collectors tell their batches apart by it. REQUIRES:
  // inside().
  uint64_t entry() const { return entry_; }
  // For a Deferred: true when the calling thread collected nothing else that is still to be done,
  // left no work queued, and has no duties: it may then block for one small I/O without keeping
  // anybody waiting.
  bool acting_alone() const;
  // Declares that the calling thread has duties besides the core (completions, timers): it never
  // acts alone. `serves` false: it has none any more.
  static void mark_service_thread(bool serves = true);
  // True when the calling thread is inside, or acts on what it collected.
  bool visited_by_this_thread() const { return visit_of_this_thread() != nullptr; }

 private:
  // A thread's stay, from its entry until it has nothing left to act on; lives on that thread's
  // stack.
  struct Visit {
    const Monitor* monitor = nullptr;
    Visit* outer = nullptr;  // the same thread's stay in another monitor
    bool inside = false;
    bool left_work = false;
    uint32_t entries = 0;
    uint32_t entries_max = 0;
    Deferred* deferred = nullptr;
    OutsideJob* jobs = nullptr;
  };
  static thread_local Visit* current_visit;

  template <class Item>
  struct List {
    Item* head = nullptr;
    Item* tail = nullptr;
    void push(Item& item) {
      item.next = nullptr;
      (head == nullptr ? head : tail->next) = &item;
      tail = &item;
    }
    Item* take() {
      tail = nullptr;
      return std::exchange(head, nullptr);
    }
  };

  Visit* visit_of_this_thread() const;
  void stay(uint32_t entries_max);  // REQUIRES: this thread has just set occupied_
  bool come_back(Visit& visit);     // after acting: true when the thread is inside again
  void help();                      // the helper's life
  void drain(Visit& visit);  // inside, until nothing can run or the limit is reached; then leaves
  void act(Visit& visit);    // outside

  std::mutex mutex_;
  std::condition_variable all_out_;
  std::vector<std::coroutine_handle<>> arrivals_;  // guarded by mutex_
  bool occupied_ = false;                          // guarded by mutex_
  uint32_t visitors_ = 0;                          // guarded by mutex_
  std::condition_variable helper_called_;
  bool help_wanted_ = false;  // guarded by mutex_
  bool stop_ = false;         // guarded by mutex_

  // Belong to the thread inside; while nobody is, to the holder of mutex_.
  std::deque<std::coroutine_handle<>> ready_;
  List<Deferred> deferred_;
  List<OutsideJob> jobs_;
  uint64_t entry_ = 0;

  std::thread helper_;
};

namespace monitor_detail {

// Where a thread waits for its task. Signalled after the core was left, when the task's frames are
// gone.
class Completion final : public Deferred {
 public:
  void run() override;
  void wait();

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool done_ = false;
};

template <class T>
Task<void> await_and_signal(Task<T> task, std::optional<T>& value, Monitor& monitor,
                            Completion& completion) {
  {
    Task<T> finished_here = std::move(task);
    value.emplace(co_await finished_here);
  }
  monitor.defer(completion);
}
inline Task<void> await_and_signal(Task<void> task, Monitor& monitor, Completion& completion) {
  {
    Task<void> finished_here = std::move(task);
    co_await finished_here;
  }
  monitor.defer(completion);
}

}  // namespace monitor_detail

// Starts `task` inside the core and blocks the calling thread until it is done: for mount, mkfs,
// fsck and tests. REQUIRES: the calling thread is not inside, nor acting for the monitor.
template <class T>
T run_blocking(Monitor& monitor, Task<T> task) {
  COFS_ASSERT(!monitor.visited_by_this_thread());
  monitor_detail::Completion completion;
  if constexpr (std::is_void_v<T>) {
    spawn(monitor, monitor_detail::await_and_signal(std::move(task), monitor, completion));
    completion.wait();
  } else {
    std::optional<T> value;
    spawn(monitor, monitor_detail::await_and_signal(std::move(task), value, monitor, completion));
    completion.wait();
    return std::move(*value);
  }
}

}  // namespace cofs
