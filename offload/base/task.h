// Task<T>: a lazily started coroutine awaited by exactly one other, and spawn() for those that nobody
// awaits. The core (blockmap/, fs/) is written in these.
//
// A task starts when it is awaited, on the awaiter's stack. When it finishes without having suspended,
// the awaiter goes on without suspending either, so loops over ready work use no stack and no queue;
// when it finishes later, it resumes its awaiter directly. (Symmetric transfer is not used: g++ 12
// makes it a real call without optimisation, and loops then overflow the stack.)
//
// Rules for g++ 12.2 (measured; tests/offload/coroutine_traps_test.cc): never `co_await` in the
// condition of if, while or switch; give every class that is passed by value to a coroutine a
// constructor (no aggregates, no braces).
#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <utility>

#include "offload/base/error.h"
#include "offload/base/frame_pool.h"

namespace cofs {

template <class T>
class Task;

namespace task_detail {

// The compiler takes a frame's memory by its promise's operators.
struct InFramePool {
  static void* operator new(size_t bytes) { return allocate_frame(bytes); }
  static void operator delete(void* frame, size_t bytes) noexcept { free_frame(frame, bytes); }
};

struct PromiseBase : InFramePool {
  std::coroutine_handle<> awaiter;  // set once the awaiter really suspended

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> self) noexcept {
      // The awaiter may destroy this frame; nothing is touched after the call.
      if (std::coroutine_handle<> awaiter = self.promise().awaiter) awaiter.resume();
    }
    void await_resume() noexcept {}
  };

  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  [[noreturn]] void unhandled_exception() { std::terminate(); }
};

template <class T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <class U>
  void return_value(U&& v) {
    value.emplace(std::forward<U>(v));
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() {}
};

}  // namespace task_detail

template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = task_detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  Task(const Task&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() { return false; }
  bool await_suspend(std::coroutine_handle<> awaiter) {
    handle_.resume();
    if (handle_.done()) return false;
    handle_.promise().awaiter = awaiter;
    return true;
  }
  T await_resume() {
    COFS_ASSERT(handle_.done());
    if constexpr (!std::is_void_v<T>) return std::move(*handle_.promise().value);
  }

 private:
  Handle handle_;
};

namespace task_detail {

template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}

// A root: owns its frame, starts suspended, destroys itself at the end.
struct Root {
  struct promise_type : InFramePool {
    Root get_return_object() {
      return Root{std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    [[noreturn]] void unhandled_exception() { std::terminate(); }
  };
  std::coroutine_handle<promise_type> handle;
};

inline Root make_root(Task<void> task) { co_await std::move(task); }

}  // namespace task_detail

// Turns a task into a root coroutine, not yet started: whoever resumes the handle starts it, and its
// frame frees itself when it ends. To be given to Executor::post, exactly once.
inline std::coroutine_handle<> detach(Task<void> task) {
  return task_detail::make_root(std::move(task)).handle;
}

}  // namespace cofs
