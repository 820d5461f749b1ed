#include "offload/completion_poller.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace cofs {
namespace {

using namespace std::chrono_literals;
using Clock = CompletionPoller::Clock;

class CompletionPollerTest : public testing::Test {
 public:
  // As many writes, of which each takes so long by sleeping, and by looking. Returns how many of them were looked for.
  uint32_t wait(uint32_t writes, Clock::duration slept, Clock::duration polled) {
    uint32_t looked_for = 0;
    for (uint32_t i = 0; i < writes; i++) {
      const Clock::time_point until = poller.begin(now);
      EXPECT_TRUE(until == now || until == now + CompletionPoller::kPollTime);
      const bool looks = until > now;
      looked_for += looks ? 1 : 0;
      now += looks ? polled : slept;
      poller.end(now);
      now += 100us;
    }
    return looked_for;
  }

  std::atomic<uint64_t> found{0};
  CompletionPoller poller{true, found};
  Clock::time_point now = Clock::time_point() + 1s;
};

TEST_F(CompletionPollerTest, LooksWhereItPays) {
  const uint32_t looked_for = wait(1000, 40us, 25us);
  EXPECT_GT(looked_for, 930u);
  EXPECT_LT(looked_for, 1000u);  // sleeping is measured all the time
  EXPECT_EQ(found, looked_for);
}

TEST_F(CompletionPollerTest, SleepsWhereLittleIsGained) {
  const uint32_t looked_for = wait(1000, 40us, 38us);
  EXPECT_LT(looked_for, 70u);
  EXPECT_GT(looked_for, 0u);
}

// Nothing is found within the time of looking, which then goes to waste.
TEST_F(CompletionPollerTest, SleepsWhereTheDeviceIsSlow) {
  EXPECT_LT(wait(1000, 300us, 300us), 70u);
  EXPECT_EQ(found, 0u);
}

TEST_F(CompletionPollerTest, FollowsTheDevice) {
  wait(1000, 40us, 25us);
  EXPECT_LT(wait(2000, 90us, 90us), 150u);
  EXPECT_GT(wait(2000, 40us, 25us), 1000u);
}

// One that stalls now and then, whatever the thread does, is judged by the rest.
TEST_F(CompletionPollerTest, StallsChangeLittle) {
  uint32_t looked_for = 0;
  for (int i = 0; i < 100; i++) {
    looked_for += wait(39, 60us, 25us);
    wait(1, 900us, 900us);
  }
  EXPECT_GT(looked_for, 39u * 85);
}

// Who yields the CPU to a program that keeps it has it back some milliseconds later.
TEST_F(CompletionPollerTest, RestsWhereTheCpuIsWanted) {
  const Clock::time_point began = now;
  const uint32_t looked_for = wait(10'000, 60us, 3ms);
  const auto rests = (now - began) / CompletionPoller::kRest;
  EXPECT_GE(looked_for, 1u);
  EXPECT_LE(looked_for, rests + 1);
  // Later it is free again.
  wait(5000, 60us, 25us);
  EXPECT_GT(wait(1000, 60us, 25us), 900u);
}

TEST_F(CompletionPollerTest, NeverLooksWhereItMayNot) {
  CompletionPoller forbidden(false, found);
  for (int i = 0; i < 100; i++) {
    EXPECT_EQ(forbidden.begin(now), now);
    forbidden.end(now + 40us);
  }
  EXPECT_EQ(found, 0u);
}

}  // namespace
}  // namespace cofs
