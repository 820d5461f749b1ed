// The waiting objects: order, hand-over, and exclusion whatever the executor runs next.
#include "offload/base/sync.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

SimWorldOptions in_order() {
  SimWorldOptions options;
  options.shuffle = false;
  return options;
}

struct Sleep {
  // Waits at least one step, however short the time.
  static Task<void> for_ns(SimWorld* world, uint64_t ns) {
    TimerRequest timer;
    timer.due_ns = world->clock.monotonic_ns() + ns;
    co_await sleep_until(world->clock, timer);
  }
};

struct MutexUser {
  static Task<void> run(SimWorld* world, Mutex* mutex, std::string* log, char name, int* inside) {
    Mutex::Guard guard = co_await mutex->lock();
    EXPECT_EQ(++*inside, 1);
    *log += name;
    co_await Sleep::for_ns(world, 10);
    --*inside;
  }
};

TEST(Mutex, FirstComeFirstServed) {
  SimWorld world(1, in_order());
  Mutex mutex(world.executor);
  std::string log;
  int inside = 0;
  for (char name = 'a'; name <= 'h'; name++) {
    spawn(world.executor, MutexUser::run(&world, &mutex, &log, name, &inside));
  }
  world.run_until_idle();
  EXPECT_EQ(log, "abcdefgh");
  EXPECT_FALSE(mutex.locked());
}

TEST(Mutex, ExcludesUnderEveryOrder) {
  for (uint64_t seed = 0; seed < 100; seed++) {
    SimWorld world(seed);
    Mutex mutex(world.executor);
    std::string log;
    int inside = 0;
    for (char name = 'a'; name <= 'h'; name++) {
      spawn(world.executor, MutexUser::run(&world, &mutex, &log, name, &inside));
    }
    world.run_until_idle();
    EXPECT_EQ(log.size(), 8U) << "seed " << seed;
  }
}

TEST(Mutex, ReleasingRunsNothingOfTheNextHolder) {
  struct Case {
    static Task<void> holder(Mutex* mutex, Event* go, std::string* log) {
      Mutex::Guard guard = co_await mutex->lock();
      co_await go->wait();
      guard.release();
      *log += 'r';  // before the next holder, which waits for its turn
      EXPECT_TRUE(mutex->locked());  // it was handed over, nobody can come between
      Mutex::Guard again = co_await mutex->lock();
      *log += 'h';
    }
    static Task<void> waiter(Mutex* mutex, std::string* log) {
      Mutex::Guard guard = co_await mutex->lock();
      *log += 'w';
    }
  };
  SimWorld world(1, in_order());
  Mutex mutex(world.executor);
  Event go(world.executor);
  std::string log;
  spawn(world.executor, Case::holder(&mutex, &go, &log));
  spawn(world.executor, Case::waiter(&mutex, &log));
  world.run_until_idle();
  go.notify_all();
  world.run_until_idle();
  EXPECT_EQ(log, "rwh");
}

struct SharedUser {
  static Task<void> run(SimWorld* world, SharedMutex* mutex, bool exclusive, char name,
                        std::string* log, int* sharers, int* owners) {
    SharedMutex::Guard guard =
        co_await (exclusive ? mutex->lock_exclusive() : mutex->lock_shared());
    (exclusive ? *owners : *sharers)++;
    EXPECT_TRUE(*owners == 0 || (*owners == 1 && *sharers == 0));
    *log += name;
    co_await Sleep::for_ns(world, 10);
    (exclusive ? *owners : *sharers)--;
  }
};

TEST(SharedMutex, ArrivalsQueueFairly) {
  SimWorld world(1, in_order());
  SharedMutex mutex(world.executor);
  std::string log;
  int sharers = 0;
  int owners = 0;
  const std::string arrivals = "ssXssXXs";
  for (char name : arrivals) {
    spawn(world.executor,
          SharedUser::run(&world, &mutex, name == 'X', name, &log, &sharers, &owners));
  }
  world.run_until_idle();
  EXPECT_EQ(log, arrivals);  // no sharer overtakes an owner that waits
  EXPECT_TRUE(mutex.idle());
}

TEST(SharedMutex, ExcludesUnderEveryOrder) {
  for (uint64_t seed = 0; seed < 100; seed++) {
    SimWorld world(seed);
    SharedMutex mutex(world.executor);
    std::string log;
    int sharers = 0;
    int owners = 0;
    for (int i = 0; i < 20; i++) {
      const bool exclusive = world.choices.below(3) == 0;
      spawn(world.executor,
            SharedUser::run(&world, &mutex, exclusive, 'x', &log, &sharers, &owners));
    }
    world.run_until_idle();
    EXPECT_EQ(log.size(), 20U) << "seed " << seed;
    EXPECT_TRUE(mutex.idle()) << "seed " << seed;
  }
}

TEST(Event, WakesAllWhoWaitAndNobodyLater) {
  struct Case {
    static Task<void> wait(Event* event, int* woken) {
      co_await event->wait();
      ++*woken;
    }
  };
  SimWorld world(1);
  Event event(world.executor);
  int woken = 0;
  for (int i = 0; i < 3; i++) spawn(world.executor, Case::wait(&event, &woken));
  world.run_until_idle();
  EXPECT_TRUE(event.has_waiters());
  event.notify_all();
  spawn(world.executor, Case::wait(&event, &woken));
  world.run_until_idle();
  EXPECT_EQ(woken, 3);  // the fourth came after
  event.notify_all();
  world.run_until_idle();
  EXPECT_EQ(woken, 4);
}

struct SemaphoreUser {
  static Task<void> run(SimWorld* world, Semaphore* semaphore, char name, std::string* log,
                        int* inside, int* inside_max) {
    co_await semaphore->acquire();
    *log += name;
    *inside_max = std::max(*inside_max, ++*inside);
    co_await Sleep::for_ns(world, 10);
    --*inside;
    semaphore->release();
  }
};

TEST(Semaphore, GrantsItsPermitsInOrder) {
  SimWorld world(1, in_order());
  Semaphore semaphore(world.executor, 3);
  std::string log;
  int inside = 0;
  int inside_max = 0;
  for (char name = 'a'; name <= 'j'; name++) {
    spawn(world.executor,
          SemaphoreUser::run(&world, &semaphore, name, &log, &inside, &inside_max));
  }
  world.run_until_idle();
  EXPECT_EQ(log, "abcdefghij");
  EXPECT_EQ(inside_max, 3);
}

TEST(Semaphore, NeverMoreThanItsPermitsUnderEveryOrder) {
  for (uint64_t seed = 0; seed < 100; seed++) {
    SimWorld world(seed);
    Semaphore semaphore(world.executor, 2);
    std::string log;
    int inside = 0;
    int inside_max = 0;
    for (int i = 0; i < 12; i++) {
      spawn(world.executor,
            SemaphoreUser::run(&world, &semaphore, 'x', &log, &inside, &inside_max));
    }
    world.run_until_idle();
    EXPECT_EQ(log.size(), 12U) << "seed " << seed;
    EXPECT_EQ(inside_max, 2) << "seed " << seed;
  }
}

TEST(WaitGroup, WaitsForAllAndNotWhenThereIsNothing) {
  struct Case {
    static Task<void> work(SimWorld* world, WaitGroup* group, uint64_t ns) {
      co_await Sleep::for_ns(world, ns);
      group->done();
    }
    static Task<uint64_t> wait(SimWorld* world, WaitGroup* group) {
      co_await group->wait();
      co_return world->clock.monotonic_ns();
    }
  };
  SimWorld world(1);
  WaitGroup group(world.executor);
  EXPECT_EQ(world.run(Case::wait(&world, &group)), 0U);
  group.add(3);
  for (uint64_t ns : {30U, 10U, 20U}) spawn(world.executor, Case::work(&world, &group, ns));
  EXPECT_EQ(group.pending(), 3U);
  EXPECT_GE(world.run(Case::wait(&world, &group)), 30U);
  EXPECT_EQ(group.pending(), 0U);
}

TEST(Outside, TheJobRunsOnceBeforeItsWaiter) {
  struct Case {
    static Task<int> run(SimWorld* world) {
      int runs = 0;
      co_await outside(world->executor, [&runs] { runs++; });
      co_return runs;
    }
  };
  for (uint64_t seed = 0; seed < 20; seed++) {
    SimWorld world(seed);
    EXPECT_EQ(world.run(Case::run(&world)), 1) << "seed " << seed;
  }
}

}  // namespace
}  // namespace cofs
