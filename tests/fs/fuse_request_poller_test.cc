// RequestPoller on a pipe, which wakes its readers as the kernel's device does: one for each byte.
#include "fs/fuse_request_poller.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <functional>
#include <memory>
#include <semaphore>
#include <thread>
#include <utility>
#include <vector>

namespace cofs {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPatience = 60s;

bool has_cpus() {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) > 1;
}

std::chrono::nanoseconds processor_time() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// Threads that serve requests of a byte, and a program that asks.
class Server {
 public:
  static constexpr char kQuick = 'q';
  static constexpr char kBlocking = 'b';  // its handler waits for release()
  static constexpr char kEnd = 'e';       // its handler never returns: a parked thread notices

  explicit Server(bool allowed, RequestPoller::MakeGatherer make_gatherer = {}, int threads = 3)
      : poller(allowed, std::move(make_gatherer)) {
    EXPECT_EQ(pipe(requests_.data()), 0);
    EXPECT_EQ(pipe(replies_.data()), 0);
    for (int i = 0; i < threads; i++) threads_.emplace_back([this] { serve(); });
  }
  // As libfuse ends its threads. AddressSanitizer takes the frames of a cancelled thread for its own (a wild pointer, it says).
  ~Server() {
#ifdef __SANITIZE_ADDRESS__
    for (size_t i = 0; i < threads_.size(); i++) send(kEnd);
#else
    for (std::thread& thread : threads_) pthread_cancel(thread.native_handle());
#endif
    for (std::thread& thread : threads_) thread.join();
    for (int fd : {requests_[0], requests_[1], replies_[0], replies_[1]}) close(fd);
  }

  void send(char request) { EXPECT_EQ(write(requests_[1], &request, 1), 1); }
  char reply() {
    char request = 0;
    EXPECT_EQ(read(replies_[0], &request, 1), 1);
    return request;
  }
  void ask(int count) {
    for (int i = 0; i < count; i++) {
      send(kQuick);
      EXPECT_EQ(reply(), kQuick);
    }
  }
  // Asks until `done`; false if that takes too long.
  bool ask_until(const std::function<bool()>& done) {
    for (const auto end = Clock::now() + kPatience; Clock::now() < end; ask(64)) {
      if (done()) return true;
    }
    return false;
  }
  void release() { released_.release(); }

  RequestPoller poller;

 private:
  void serve() {
    for (;;) {
      poller.wait(requests_[0]);
      char request = 0;
      if (read(requests_[0], &request, 1) != 1) {
        if (errno != EAGAIN) return;
        poller.found_nothing(requests_[0]);
        continue;
      }
      poller.took(requests_[0]);
      if (request == kEnd) return;
      int before = 0;
      pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
      if (request == kBlocking) released_.acquire();
      EXPECT_EQ(write(replies_[1], &request, 1), 1);
      pthread_setcancelstate(before, nullptr);
    }
  }

  std::array<int, 2> requests_{};
  std::array<int, 2> replies_{};
  std::counting_semaphore<> released_{0};
  std::vector<std::thread> threads_;
};

// One that has nothing beside the requests.
class LazyGatherer final : public RequestPoller::Gatherer {
 public:
  explicit LazyGatherer(std::atomic<int>& living) : living_(living) { EXPECT_EQ(living_++, 0); }
  ~LazyGatherer() override { living_--; }
  void turn() override {}
  void wait(int fd) override {
    pollfd request{fd, POLLIN, 0};
    poll(&request, 1, static_cast<int>(RequestPoller::kGatherNap.count()));
  }

 private:
  std::atomic<int>& living_;
};

class GatheringServer {
 public:
  Server& operator*() { return server_; }
  Server* operator->() { return &server_; }
  void ask_at_once(int count) {
    for (int i = 0; i < count; i++) server_.send(Server::kQuick);
    for (int i = 0; i < count; i++) EXPECT_EQ(server_.reply(), Server::kQuick);
  }
  uint64_t gathered() const { return server_.poller.counters().gathered; }
  // Until so many more were gathered; false if that takes too long.
  bool gather(uint64_t count) {
    const uint64_t before = gathered();
    for (const auto end = Clock::now() + kPatience; Clock::now() < end; ask_at_once(500)) {
      if (gathered() >= before + count) return true;
    }
    return false;
  }
  int gatherers() const { return living_; }

 private:
  std::atomic<int> living_{0};
  Server server_{true, [this] { return std::make_unique<LazyGatherer>(living_); }};
};

TEST(RequestPollerTest, PollsWhileRequestsComeOneByOne) {
  if (!has_cpus()) GTEST_SKIP() << "one CPU";
  Server server(true);
  EXPECT_TRUE(server.ask_until([&] { return server.poller.counters().requests >= 1000; }));
  EXPECT_GE(server.poller.counters().periods, 1u);
}

TEST(RequestPollerTest, NeverWhereItIsNotAllowed) {
  Server server(false);
  server.ask(5000);
  EXPECT_EQ(server.poller.counters().periods, 0u);
}

TEST(RequestPollerTest, CostsNothingWhenNobodyAsks) {
  if (!has_cpus()) GTEST_SKIP() << "one CPU";
  Server server(true);
  ASSERT_TRUE(server.ask_until([&] { return server.poller.counters().requests >= 1000; }));
  std::this_thread::sleep_for(100ms);
  const auto before = processor_time();
  std::this_thread::sleep_for(1s);
  EXPECT_LT(processor_time() - before, 100ms);
}

TEST(RequestPollerTest, SlowProgramsAreNotPolledFor) {
  Server server(true);
  for (int i = 0; i < 600; i++) {
    server.ask(1);
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(server.poller.counters().periods, 0u);
}

// While the leader is kept, the others are parked: one of them must see to it.
TEST(RequestPollerTest, AKeptLeaderHoldsUpNobody) {
  if (!has_cpus()) GTEST_SKIP() << "one CPU";
  Server server(true);
  int led = 0;
  for (const auto end = Clock::now() + kPatience; led < 20 && Clock::now() < end;) {
    server.ask(100);
    const uint64_t before = server.poller.counters().requests;
    server.send(Server::kBlocking);
    server.send(Server::kQuick);
    EXPECT_EQ(server.reply(), Server::kQuick);  // hangs where nobody does
    if (server.poller.counters().requests > before) led++;
    server.release();
    EXPECT_EQ(server.reply(), Server::kBlocking);
  }
  EXPECT_EQ(led, 20);
}

TEST(RequestPollerTest, WhileALeaderIsKeptAnotherOnePolls) {
  if (!has_cpus()) GTEST_SKIP() << "one CPU";
  Server server(true);
  uint64_t most = 0;
  for (const auto end = Clock::now() + kPatience; most < 300 && Clock::now() < end;) {
    server.ask(1000);
    server.send(Server::kBlocking);
    const uint64_t before = server.poller.counters().requests;
    server.ask(1000);  // one handler is kept all the while, so that no period begins
    most = std::max(most, server.poller.counters().requests - before);
    server.release();
    EXPECT_EQ(server.reply(), Server::kBlocking);
  }
  EXPECT_GE(most, 300u);
}

TEST(RequestPollerTest, OneGathersWhereManyAreThereAtOnce) {
  if (!has_cpus()) GTEST_SKIP() << "one CPU";
  GatheringServer server;
  EXPECT_TRUE(server.gather(5000));
  EXPECT_GE(server->poller.counters().gatherings, 1u);
  // One by one they are left to all again.
  const auto end = Clock::now() + kPatience;
  while (server.gatherers() > 0 && Clock::now() < end) server->ask(100);
  EXPECT_EQ(server.gatherers(), 0);
  const uint64_t before = server.gathered();
  server->ask(5000);
  EXPECT_LT(server.gathered() - before, 2500u);
}

TEST(RequestPollerTest, WhoGathersAndIsKeptHoldsUpNobody) {
  if (!has_cpus()) GTEST_SKIP() << "one CPU";
  GatheringServer server;
  int gathered = 0;
  for (const auto end = Clock::now() + kPatience; gathered < 20 && Clock::now() < end;) {
    server.ask_at_once(1000);
    if (server.gatherers() > 0) gathered++;
    server->send(Server::kBlocking);
    server->send(Server::kQuick);
    EXPECT_EQ(server->reply(), Server::kQuick);  // hangs where nobody reads
    server->release();
    EXPECT_EQ(server->reply(), Server::kBlocking);
  }
  EXPECT_EQ(gathered, 20);
}

TEST(RequestPollerTest, EndsWhileOneGathers) {
  for (int i = 0; i < 50; i++) {
    GatheringServer server;
    server.ask_at_once(2000 + i * 40);
  }
}

TEST(RequestPollerTest, EndsInTheMidstOfIt) {
  for (int i = 0; i < 50; i++) {
    Server server(true);
    server.ask(2000 + i * 40);
  }
}

// Several programs at once: nothing is lost, whichever way the threads wait.
TEST(RequestPollerTest, ManyAtOnce) {
  Server server(true);
  for (int round = 0; round < 200; round++) {
    server.ask(300);
    for (int i = 0; i < 100; i++) server.send(Server::kQuick);
    for (int i = 0; i < 100; i++) EXPECT_EQ(server.reply(), Server::kQuick);
  }
  GatheringServer gathering;
  for (int round = 0; round < 200; round++) {
    gathering->ask(300);
    gathering.ask_at_once(1000);
  }
}

}  // namespace
}  // namespace cofs
