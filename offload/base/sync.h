// Waiting inside the core: Mutex, SharedMutex, Event, Semaphore, WaitGroup. First come, first served.
//
// None of these is for threads: all calls are made inside the core. Wake-ups go through the executor,
// never nested, so releasing a lock runs nothing of the next holder before the releaser waits.
// Guards may be released in any later step of the coroutine; destroying one releases it.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "offload/base/executor.h"

namespace cofs {

class Mutex {
 public:
  explicit Mutex(Executor& executor) : executor_(executor) {}
  Mutex(const Mutex&) = delete;
  ~Mutex() { COFS_ASSERT(waiters_.empty()); }

  class Guard {
   public:
    Guard() = default;
    explicit Guard(Mutex* mutex) : mutex_(mutex) {}
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&& other) noexcept {
      if (this != &other) {
        release();
        mutex_ = std::exchange(other.mutex_, nullptr);
      }
      return *this;
    }
    ~Guard() { release(); }
    void release() {
      if (Mutex* mutex = std::exchange(mutex_, nullptr)) mutex->unlock();
    }
    bool held() const { return mutex_ != nullptr; }

   private:
    Mutex* mutex_ = nullptr;
  };

  struct Awaiter {
    Mutex& mutex;
    bool await_ready() {
      if (mutex.locked_) return false;
      mutex.locked_ = true;
      return true;
    }
    void await_suspend(std::coroutine_handle<> awaiter) { mutex.waiters_.push_back(awaiter); }
    Guard await_resume() { return Guard(&mutex); }
  };
  Awaiter lock() { return Awaiter{*this}; }
  bool locked() const { return locked_; }

 private:
  void unlock() {
    if (waiters_.empty()) {
      locked_ = false;
      return;
    }
    std::coroutine_handle<> next = waiters_.front();
    waiters_.pop_front();
    executor_.post(next);  // the lock passes to `next` as it is
  }

  Executor& executor_;
  bool locked_ = false;
  std::deque<std::coroutine_handle<>> waiters_;
};

// Many sharers or one owner; arrivals queue fairly, so neither kind starves. There is one in every
// inode in memory, so the queue is linked through the waiting frames and an idle one is small.
class SharedMutex {
 public:
  explicit SharedMutex(Executor& executor) : executor_(executor) {}
  SharedMutex(const SharedMutex&) = delete;
  ~SharedMutex() { COFS_ASSERT(first_ == nullptr); }

  class Guard {
   public:
    Guard() = default;
    Guard(SharedMutex* mutex, bool exclusive) : mutex_(mutex), exclusive_(exclusive) {}
    Guard(Guard&& other) noexcept
        : mutex_(std::exchange(other.mutex_, nullptr)), exclusive_(other.exclusive_) {}
    Guard& operator=(Guard&& other) noexcept {
      if (this != &other) {
        release();
        mutex_ = std::exchange(other.mutex_, nullptr);
        exclusive_ = other.exclusive_;
      }
      return *this;
    }
    ~Guard() { release(); }
    void release() {
      if (SharedMutex* mutex = std::exchange(mutex_, nullptr)) mutex->unlock(exclusive_);
    }
    bool held() const { return mutex_ != nullptr; }

   private:
    SharedMutex* mutex_ = nullptr;
    bool exclusive_ = false;
  };

  // Lives in the frame that awaits it, and stays there until it is resumed.
  struct Awaiter {
    SharedMutex& mutex;
    bool exclusive;
    std::coroutine_handle<> handle{};
    Awaiter* next = nullptr;

    bool await_ready() { return mutex.first_ == nullptr && mutex.try_enter(exclusive); }
    void await_suspend(std::coroutine_handle<> awaiter) {
      handle = awaiter;
      (mutex.first_ == nullptr ? mutex.first_ : mutex.last_->next) = this;
      mutex.last_ = this;
    }
    Guard await_resume() { return Guard(&mutex, exclusive); }
  };
  Awaiter lock_shared() { return Awaiter{*this, false}; }
  Awaiter lock_exclusive() { return Awaiter{*this, true}; }
  bool idle() const { return sharers_ == 0 && !owned_ && first_ == nullptr; }

 private:
  bool try_enter(bool exclusive) {
    if (owned_ || (exclusive && sharers_ != 0)) return false;
    if (exclusive) {
      owned_ = true;
    } else {
      sharers_++;
    }
    return true;
  }
  void unlock(bool exclusive) {
    if (exclusive) {
      owned_ = false;
    } else {
      sharers_--;
    }
    while (first_ != nullptr && try_enter(first_->exclusive)) {
      Awaiter* waiter = first_;
      first_ = waiter->next;
      executor_.post(waiter->handle);
    }
  }

  Executor& executor_;
  uint64_t sharers_ = 0;
  bool owned_ = false;
  Awaiter* first_ = nullptr;  // the queue
  Awaiter* last_ = nullptr;   // valid while first_ is set
};

// Wakes everybody who waits. A waiter re-checks its condition: `while (!ready) co_await event.wait();`
class Event {
 public:
  explicit Event(Executor& executor) : executor_(executor) {}
  Event(const Event&) = delete;
  ~Event() { COFS_ASSERT(waiters_.empty()); }

  struct Awaiter {
    Event& event;
    bool await_ready() { return false; }
    void await_suspend(std::coroutine_handle<> awaiter) { event.waiters_.push_back(awaiter); }
    void await_resume() {}
  };
  Awaiter wait() { return Awaiter{*this}; }
  void notify_all() {
    // (A deque would take memory for the exchange, and even for being empty.)
    const std::vector<std::coroutine_handle<>> waiters = std::exchange(waiters_, {});
    for (std::coroutine_handle<> waiter : waiters) executor_.post(waiter);
  }
  bool has_waiters() const { return !waiters_.empty(); }

 private:
  Executor& executor_;
  std::vector<std::coroutine_handle<>> waiters_;
};

// One who waits for what it has started. pass() lets it go on at once, in the middle of the caller, who is to be done
// by then: so nobody comes in between. wake() lets it go on when its turn comes.
class Handoff {
 public:
  explicit Handoff(Executor& executor) : executor_(executor) {}
  Handoff(const Handoff&) = delete;
  ~Handoff() { COFS_ASSERT(!waiter_); }

  struct Awaiter {
    Handoff& handoff;
    bool await_ready() { return false; }
    void await_suspend(std::coroutine_handle<> awaiter) {
      COFS_ASSERT(!handoff.waiter_);
      handoff.waiter_ = awaiter;
    }
    void await_resume() {}
  };
  Awaiter wait() { return Awaiter{*this}; }
  void pass() {
    if (const auto waiter = std::exchange(waiter_, nullptr)) waiter.resume();
  }
  void wake() {
    if (const auto waiter = std::exchange(waiter_, nullptr)) executor_.post(waiter);
  }

 private:
  Executor& executor_;
  std::coroutine_handle<> waiter_;
};

// Counts started pieces of work; wait() resumes when all of them are done. One waiter.
class WaitGroup {
 public:
  explicit WaitGroup(Executor& executor) : executor_(executor) {}
  WaitGroup(const WaitGroup&) = delete;
  ~WaitGroup() { COFS_ASSERT(pending_ == 0); }

  void add(uint64_t n = 1) { pending_ += n; }
  void done() {
    COFS_ASSERT(pending_ > 0);
    if (--pending_ == 0 && waiter_) executor_.post(std::exchange(waiter_, nullptr));
  }
  uint64_t pending() const { return pending_; }

  struct Awaiter {
    WaitGroup& group;
    bool await_ready() { return group.pending_ == 0; }
    void await_suspend(std::coroutine_handle<> awaiter) {
      COFS_ASSERT(!group.waiter_);
      group.waiter_ = awaiter;
    }
    void await_resume() {}
  };
  Awaiter wait() { return Awaiter{*this}; }

 private:
  Executor& executor_;
  uint64_t pending_ = 0;
  std::coroutine_handle<> waiter_;
};

// Permits for bounded work in flight.
class Semaphore {
 public:
  Semaphore(Executor& executor, uint64_t permits) : executor_(executor), permits_(permits) {}
  Semaphore(const Semaphore&) = delete;
  ~Semaphore() { COFS_ASSERT(waiters_.empty()); }

  struct Awaiter {
    Semaphore& semaphore;
    bool await_ready() {
      if (!semaphore.waiters_.empty() || semaphore.permits_ == 0) return false;
      semaphore.permits_--;
      return true;
    }
    void await_suspend(std::coroutine_handle<> awaiter) { semaphore.waiters_.push_back(awaiter); }
    void await_resume() {}
  };
  Awaiter acquire() { return Awaiter{*this}; }
  void release() {
    if (waiters_.empty()) {
      permits_++;
      return;
    }
    executor_.post(waiters_.front());  // the permit passes on
    waiters_.pop_front();
  }

 private:
  Executor& executor_;
  uint64_t permits_;
  std::deque<std::coroutine_handle<>> waiters_;
};

}  // namespace cofs
