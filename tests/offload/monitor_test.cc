#include "offload/monitor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "offload/base/sync.h"
#include "offload/steady_clock.h"

namespace cofs {
namespace {

using namespace std::chrono_literals;

struct Yield {
  Executor& executor;
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> handle) { executor.post(handle); }
  void await_resume() {}
};

// State that only the core touches: plain integers, so that any second thread inside shows as a
// wrong count (and as a race under -fsanitize=thread).
struct Shared {
  uint64_t steps = 0;
  uint64_t tasks = 0;
  std::atomic<int> inside{0};
  std::atomic<int> inside_most{0};

  void step() {
    int now = inside.fetch_add(1) + 1;
    if (now > inside_most.load()) inside_most.store(now);
    steps++;
    inside.fetch_sub(1);
  }
};

Task<void> count_steps(Monitor& monitor, Shared& shared, uint64_t steps) {
  for (uint64_t i = 0; i < steps; i++) {
    EXPECT_TRUE(monitor.inside());
    shared.step();
    co_await Yield{monitor};
  }
  shared.tasks++;
}

TEST(Monitor, RunsTasksPostedByFourThreadsExactlyOnce) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kTasks = 5000;
  constexpr uint64_t kSteps = 7;
  Shared shared;
  {
    Monitor monitor;
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; t++) {
      threads.emplace_back([&] {
        for (uint64_t i = 0; i < kTasks; i++) spawn(monitor, count_steps(monitor, shared, kSteps));
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_FALSE(monitor.inside());
  }
  EXPECT_EQ(shared.tasks, kThreads * kTasks);
  EXPECT_EQ(shared.steps, kThreads * kTasks * kSteps);
  EXPECT_EQ(shared.inside_most.load(), 1);
}

TEST(Monitor, PostingThreadRunsTheTaskItself) {
  Monitor monitor;
  std::thread::id ran_by;
  auto body = [&]() -> Task<void> {
    ran_by = std::this_thread::get_id();
    co_return;
  };
  spawn(monitor, body());
  EXPECT_EQ(ran_by, std::this_thread::get_id());
}

TEST(Monitor, PostFromInsideDoesNotRecurse) {
  Monitor monitor;
  int depth = 0;
  int runs = 0;
  auto child = [&]() -> Task<void> {
    depth++;
    EXPECT_EQ(depth, 1);
    runs++;
    depth--;
    co_return;
  };
  auto parent = [&]() -> Task<void> {
    depth++;
    for (int i = 0; i < 200; i++) spawn(monitor, child());
    EXPECT_EQ(runs, 0);
    depth--;
    co_return;
  };
  spawn(monitor, parent());
  EXPECT_EQ(runs, 200);
}

class Reply final : public Deferred {
 public:
  Reply(Monitor& monitor, std::atomic<uint64_t>& replies, std::atomic<uint64_t>& wrong)
      : monitor_(monitor), replies_(replies), wrong_(wrong) {}
  void run() override {
    if (monitor_.inside()) wrong_++;
    replies_++;
    delete this;
  }

 private:
  Monitor& monitor_;
  std::atomic<uint64_t>& replies_;
  std::atomic<uint64_t>& wrong_;
};

// A task as the server's are: some steps, outside work, then a reply.
Task<void> serve(Monitor& monitor, Shared& shared, std::atomic<uint64_t>& replies,
                 std::atomic<uint64_t>& wrong) {
  shared.step();
  uint64_t sum = 0;
  co_await outside(monitor, [&] {
    if (monitor.inside()) wrong++;
    for (uint64_t i = 0; i < 100; i++) sum += i;
  });
  if (sum != 4950) wrong++;
  shared.step();
  monitor.defer(*new Reply(monitor, replies, wrong));
}

TEST(Monitor, ActsOutsideWhileOthersGoOnInside) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kTasks = 5000;
  Shared shared;
  std::atomic<uint64_t> replies{0};
  std::atomic<uint64_t> wrong{0};
  {
    Monitor monitor;
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; t++) {
      threads.emplace_back([&] {
        for (uint64_t i = 0; i < kTasks; i++) {
          spawn(monitor, serve(monitor, shared, replies, wrong));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(replies.load(), kThreads * kTasks);
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_EQ(shared.steps, kThreads * kTasks * 2);
}

TEST(Monitor, LongOutsideJobDoesNotKeepOthersOut) {
  Monitor monitor;
  std::atomic<bool> job_runs{false};
  std::atomic<bool> release{false};
  auto long_job = [&]() -> Task<void> {
    co_await outside(monitor, [&] {
      job_runs = true;
      while (!release) std::this_thread::yield();
    });
  };
  std::thread worker([&] { spawn(monitor, long_job()); });
  while (!job_runs) std::this_thread::yield();
  bool ran = false;
  auto other = [&]() -> Task<void> {
    ran = true;
    co_return;
  };
  spawn(monitor, other());
  EXPECT_TRUE(ran);  // by this thread, while the other one is busy outside
  release = true;
  worker.join();
}

class PostAgain final : public Deferred {
 public:
  PostAgain(Monitor& monitor, uint64_t left) : monitor_(monitor), left_(left) {}
  void run() override {
    EXPECT_TRUE(monitor_.acting_alone());
    if (left_ > 0) spawn(monitor_, defer_next());
    most_depth_ = std::max(most_depth_, ++depth_);
    depth_--;
  }
  Task<void> defer_next() {
    left_--;
    depth_++;
    monitor_.defer(*this);
    depth_--;
    co_return;
  }
  uint64_t left() const { return left_; }
  int most_depth() const { return most_depth_; }

 private:
  Monitor& monitor_;
  uint64_t left_;
  int depth_ = 0;
  int most_depth_ = 0;
};

TEST(Monitor, DeferredThatPostsReentersIteratively) {
  std::optional<PostAgain> again;
  {
    Monitor monitor;
    again.emplace(monitor, 200'000);  // would overflow the stack if it recursed
    spawn(monitor, again->defer_next());
  }  // waits until nothing is left
  EXPECT_EQ(again->left(), 0u);
  EXPECT_EQ(again->most_depth(), 1);
}

TEST(Monitor, BusyCoreDoesNotKeepAPostingThread) {
  Monitor monitor;
  std::atomic<bool> stop{false};
  auto endless = [&]() -> Task<void> {
    while (!stop) co_await Yield{monitor};
  };
  spawn(monitor, endless());  // this thread enters, and the helper takes over
  for (int i = 0; i < 1000; i++) spawn(monitor, []() -> Task<void> { co_return; }());
  stop = true;
}

TEST(Monitor, EndlessTaskDoesNotStarveRepliesOrArrivals) {
  Monitor monitor;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> replies{0};
  std::atomic<uint64_t> wrong{0};
  auto endless = [&]() -> Task<void> {
    while (!stop) co_await Yield{monitor};
  };
  std::thread runner([&] { spawn(monitor, endless()); });
  Shared shared;
  for (int i = 0; i < 100; i++) spawn(monitor, serve(monitor, shared, replies, wrong));
  auto deadline = std::chrono::steady_clock::now() + 10s;
  while (replies < 100 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(replies.load(), 100u);
  stop = true;
  runner.join();
  EXPECT_EQ(wrong.load(), 0u);
}

TEST(Monitor, PostBatchIsOneEntry) {
  Monitor monitor;
  std::vector<uint64_t> entries;
  auto body = [&]() -> Task<void> {
    entries.push_back(monitor.entry());
    co_return;
  };
  std::vector<std::coroutine_handle<>> handles;
  for (int i = 0; i < 16; i++) handles.push_back(detach(body()));
  monitor.post_batch(handles);
  ASSERT_EQ(entries.size(), 16u);
  for (uint64_t entry : entries) EXPECT_EQ(entry, entries.front());
}

TEST(Monitor, TwoMonitorsOnOneThread) {
  Monitor outer;
  Monitor inner;
  int inner_runs = 0;
  auto inner_body = [&]() -> Task<void> {
    EXPECT_TRUE(inner.inside());
    EXPECT_TRUE(outer.inside());
    inner_runs++;
    co_return;
  };
  auto outer_body = [&]() -> Task<void> {
    spawn(inner, inner_body());
    EXPECT_EQ(inner_runs, 1);
    EXPECT_FALSE(inner.inside());
    co_return;
  };
  spawn(outer, outer_body());
  EXPECT_EQ(inner_runs, 1);
}

Task<Result<uint64_t>> slow_answer(Clock& clock) {
  TimerRequest timer;
  timer.due_ns = clock.monotonic_ns() + 20'000'000;
  co_await sleep_until(clock, timer);
  co_return uint64_t{42};
}

TEST(Monitor, RunBlockingWaitsForAnAnswerFromAnotherThread) {
  Monitor monitor;
  SteadyClock clock(monitor);
  auto answer = run_blocking(monitor, slow_answer(clock));
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(*answer, 42u);
}

Task<void> keep_until_done(std::shared_ptr<int> kept, Clock& clock) {
  TimerRequest timer;
  timer.due_ns = clock.monotonic_ns() + 1'000'000;
  co_await sleep_until(clock, timer);
  (*kept)++;
}

TEST(Monitor, RunBlockingReturnsAfterTheFramesAreGone) {
  Monitor monitor;
  SteadyClock clock(monitor);
  for (int i = 0; i < 200; i++) {
    auto kept = std::make_shared<int>(0);
    run_blocking(monitor, keep_until_done(kept, clock));
    ASSERT_EQ(*kept, 1);
    ASSERT_EQ(kept.use_count(), 1);
  }
}

TEST(SteadyClock, FiresInOrderNeverEarlyAndOnCancel) {
  Monitor monitor;
  SteadyClock clock(monitor);
  std::vector<int> order;
  uint64_t begin = clock.monotonic_ns();
  TimerRequest far;
  far.due_ns = begin + 3'600'000'000'000'000;
  auto sleeper = [&](int name, uint64_t after_ns) -> Task<void> {
    TimerRequest timer;
    timer.due_ns = begin + after_ns;
    co_await sleep_until(clock, timer);
    EXPECT_GE(clock.monotonic_ns(), timer.due_ns);
    order.push_back(name);
    if (name == 3) clock.cancel(far);
  };
  auto all = [&]() -> Task<void> {
    spawn(monitor, sleeper(3, 30'000'000));
    spawn(monitor, sleeper(1, 10'000'000));
    spawn(monitor, sleeper(2, 20'000'000));
    spawn(monitor, sleeper(0, 0));
    co_await sleep_until(clock, far);
    order.push_back(4);
    clock.cancel(far);  // fired already: nothing
  };
  run_blocking(monitor, all());
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_GT(clock.wall().seconds, 1'700'000'000);
}

TEST(SystemRandom, TwoSequencesDiffer) {
  SystemRandom a;
  SystemRandom b;
  int equal = 0;
  int ones = 0;
  for (int i = 0; i < 1000; i++) {
    uint64_t value = a.next();
    equal += value == b.next() ? 1 : 0;
    ones += std::popcount(value);
  }
  EXPECT_EQ(equal, 0);
  EXPECT_NEAR(ones, 32000, 1000);
}

}  // namespace
}  // namespace cofs
