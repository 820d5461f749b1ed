// The forms in which the core is written, on the compiler at hand. g++ 12.2 miscompiles `if
// (co_await x)` in a coroutine without locals, and destroys aggregates passed by value to a
// coroutine twice; the rules of offload/base/task.h avoid both. These tests show that what we write
// instead is right (run them under the address sanitizer too), and that loops over ready work need
// no stack.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offload/base/executor.h"
#include "offload/base/sync.h"
#include "offload/base/task.h"

namespace cofs {
namespace {

class Queue final : public Executor {
 public:
  void post(std::coroutine_handle<> handle) override { handles_.push_back(handle); }
  void outside(OutsideJob& job) override {
    job.run();
    post(job.waiter);
  }
  void run() {
    while (!handles_.empty()) {
      std::coroutine_handle<> handle = handles_.front();
      handles_.pop_front();
      handle.resume();
    }
  }

 private:
  std::deque<std::coroutine_handle<>> handles_;
};

struct Yield {
  Executor& executor;
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> handle) { executor.post(handle); }
  void await_resume() {}
};

// Counts live instances: a double destruction makes it negative.
class Counted {
 public:
  explicit Counted(int v) : value(v) { live++; }
  Counted(const Counted& other) : value(other.value) { live++; }
  Counted(Counted&& other) noexcept : value(other.value) { live++; }
  Counted& operator=(const Counted&) = default;
  ~Counted() { live--; }
  int value;
  static inline int live = 0;
};

// An argument as the rules want it: a class with a constructor, although it could be an aggregate.
struct Argument {
  Argument(std::string n, std::vector<int> v, Counted c)
      : name(std::move(n)), values(std::move(v)), counted(c) {}
  std::string name;
  std::vector<int> values;
  Counted counted;
};

Task<bool> truth(Executor& executor, bool value, bool suspend) {
  if (suspend) co_await Yield{executor};
  co_return value;
}
Task<int> number(Executor& executor, int value, bool suspend) {
  if (suspend) co_await Yield{executor};
  co_return value;
}

Task<int> branch(Executor& executor, bool value, bool suspend) {
  auto v = co_await truth(executor, value, suspend);
  if (v) co_return 1;
  co_return 2;
}
Task<int> branch_with_initialiser(Executor& executor, bool value, bool suspend) {
  if (auto v = co_await truth(executor, value, suspend); v) co_return 1;
  co_return 2;
}
Task<int> loop_until(Executor& executor, int limit, bool suspend) {
  int rounds = 0;
  while (true) {
    auto more = co_await truth(executor, rounds < limit, suspend);
    if (!more) break;
    rounds++;
  }
  co_return rounds;
}
Task<int> choose(Executor& executor, int value, bool suspend) {
  auto v = co_await number(executor, value, suspend);
  switch (v) {
    case 0: co_return 10;
    case 1: co_return 11;
    default: co_return 12;
  }
}

template <class T>
Task<void> store(Task<T> task, std::optional<T>& result) {
  result.emplace(co_await std::move(task));
}
template <class T>
T run(Queue& queue, Task<T> task) {
  std::optional<T> result;
  spawn(queue, store(std::move(task), result));
  queue.run();
  EXPECT_TRUE(result.has_value());
  return std::move(*result);
}

TEST(CoroutineTraps, ConditionsByALocal) {
  Queue queue;
  for (bool suspend : {false, true}) {
    EXPECT_EQ(run(queue, branch(queue, true, suspend)), 1);
    EXPECT_EQ(run(queue, branch(queue, false, suspend)), 2);
    EXPECT_EQ(run(queue, branch_with_initialiser(queue, true, suspend)), 1);
    EXPECT_EQ(run(queue, branch_with_initialiser(queue, false, suspend)), 2);
    EXPECT_EQ(run(queue, loop_until(queue, 5, suspend)), 5);
    for (int i = 0; i < 3; i++) EXPECT_EQ(run(queue, choose(queue, i, suspend)), 10 + i);
  }
}

Task<size_t> by_value(Executor& executor, Argument argument, bool suspend) {
  if (suspend) co_await Yield{executor};
  co_return argument.name.size() + argument.values.size() +
      static_cast<size_t>(argument.counted.value);
}
Task<size_t> by_reference(Executor& executor, const Argument& argument, bool suspend) {
  if (suspend) co_await Yield{executor};
  co_return argument.name.size();
}
Task<size_t> pass_on(Executor& executor, bool suspend) {
  Argument local("a name that is too long for the small string", std::vector<int>(3, 1),
                 Counted(4));
  size_t sum = co_await by_reference(executor, local, suspend);
  sum += co_await by_value(executor, std::move(local), suspend);
  sum += co_await by_value(executor, Argument("temporary", std::vector<int>(1, 1), Counted(1)),
                           suspend);
  co_return sum;
}
Task<int> by_unique(Executor& executor, std::unique_ptr<Counted> counted, bool suspend) {
  if (suspend) co_await Yield{executor};
  co_return counted->value;
}

TEST(CoroutineTraps, ClassesWithConstructorsByValue) {
  Queue queue;
  for (bool suspend : {false, true}) {
    size_t name = std::string("a name that is too long for the small string").size();
    EXPECT_EQ(run(queue, pass_on(queue, suspend)), name + (name + 3 + 4) + (9 + 1 + 1));
    EXPECT_EQ(run(queue, by_unique(queue, std::make_unique<Counted>(7), suspend)), 7);
    EXPECT_EQ(Counted::live, 0);
  }
}

Task<Result<Counted>> fallible(Executor& executor, int value, bool suspend) {
  if (suspend) co_await Yield{executor};
  if (value < 0) co_return fail(Code::kInvalid, "negative");
  co_return Counted(value);
}
Task<Result<int>> chain(Executor& executor, int value, bool suspend) {
  auto first = co_await fallible(executor, value, suspend);
  COFS_CO_TRY(first);
  auto second = co_await fallible(executor, first->value - 10, suspend);
  COFS_CO_TRY(second);
  co_return second->value;
}

TEST(CoroutineTraps, ErrorsPassThroughTry) {
  Queue queue;
  for (bool suspend : {false, true}) {
    EXPECT_EQ(run(queue, chain(queue, 15, suspend)).value(), 5);
    EXPECT_EQ(run(queue, chain(queue, 5, suspend)).error().code, Code::kInvalid);
    EXPECT_EQ(run(queue, chain(queue, -1, suspend)).error().code, Code::kInvalid);
    EXPECT_EQ(Counted::live, 0);
  }
}

// Ready work in a loop: 10 million awaits that never suspend, on a stack of ordinary size.
Task<uint64_t> sum_ready(Executor& executor, uint64_t rounds) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < rounds; i++) {
    auto one = co_await number(executor, 1, false);
    sum += static_cast<uint64_t>(one);
  }
  co_return sum;
}

TEST(CoroutineTraps, TenMillionReadyAwaitsNeedNoStack) {
  Queue queue;
  EXPECT_EQ(run(queue, sum_ready(queue, 10'000'000)), 10'000'000u);
}

// The stack at each step of a loop over a child that suspends every other time.
Task<void> touch(Executor& executor, bool suspend, uintptr_t& lowest) {
  if (suspend) co_await Yield{executor};
  lowest = std::min(lowest, reinterpret_cast<uintptr_t>(__builtin_frame_address(0)));
}
Task<void> mixed_loop(Executor& executor, uint64_t rounds, uintptr_t& lowest) {
  for (uint64_t i = 0; i < rounds; i++) co_await touch(executor, i % 2 == 0, lowest);
}

TEST(CoroutineTraps, SuspendingLoopsNeedNoStack) {
  Queue queue;
  uintptr_t lowest = UINTPTR_MAX;
  auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  spawn(queue, mixed_loop(queue, 1'000'000, lowest));
  queue.run();
  EXPECT_LT(here - lowest, 64u * 1024);
}

Task<uint64_t> nest(Executor& executor, uint64_t depth) {
  if (depth == 0) {
    co_await Yield{executor};
    co_return 0;
  }
  uint64_t below = co_await nest(executor, depth - 1);
  co_return below + 1;
}

TEST(CoroutineTraps, NestedTasksReturnThroughAllLevels) {
  Queue queue;
  for (uint64_t depth : {0, 1, 2, 100, 1000}) EXPECT_EQ(run(queue, nest(queue, depth)), depth);
}

Task<void> worker(Executor& executor, Counted counted, uint64_t& sum, WaitGroup& group) {
  for (int i = 0; i < 10; i++) co_await Yield{executor};
  sum += static_cast<uint64_t>(counted.value);
  group.done();
}
Task<uint64_t> spawn_many(Executor& executor, int count) {
  uint64_t sum = 0;
  WaitGroup group(executor);
  for (int i = 0; i < count; i++) {
    group.add();
    spawn(executor, worker(executor, Counted(i), sum, group));
  }
  co_await group.wait();
  co_return sum;
}

TEST(CoroutineTraps, SpawnedTasksFreeThemselves) {
  Queue queue;
  EXPECT_EQ(run(queue, spawn_many(queue, 1000)), 499'500u);
  EXPECT_EQ(Counted::live, 0);
}

Task<int> guarded(Executor& executor, Mutex& mutex, int& inside) {
  for (int i = 0; i < 100; i++) {
    Mutex::Guard guard = co_await mutex.lock();
    EXPECT_EQ(++inside, 1);
    co_await Yield{executor};
    inside--;
  }
  co_return 1;
}
Task<void> guarded_and_done(Executor& executor, Mutex& mutex, int& inside, int& finished) {
  finished += co_await guarded(executor, mutex, inside);
}

TEST(CoroutineTraps, GuardsAcrossSuspensions) {
  Queue queue;
  Mutex mutex(queue);
  int inside = 0;
  int finished = 0;
  for (int i = 0; i < 8; i++) spawn(queue, guarded_and_done(queue, mutex, inside, finished));
  queue.run();
  EXPECT_EQ(finished, 8);
  EXPECT_FALSE(mutex.locked());
}

// A task that is dropped before it ran frees its arguments once.
TEST(CoroutineTraps, DroppedTaskFreesItsArguments) {
  Queue queue;
  { Task<int> dropped = by_unique(queue, std::make_unique<Counted>(1), true); }
  EXPECT_EQ(Counted::live, 0);
}

}  // namespace
}  // namespace cofs
