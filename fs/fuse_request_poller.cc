#include "fs/fuse_request_poller.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include "offload/base/cpus.h"

namespace cofs {

namespace {

thread_local bool is_handling = false;  // a request that it took
thread_local bool is_asleep = false;    // in its read, or on its way there, with all others

constexpr uint32_t kCrowdedLooks = RequestPoller::kWindow / RequestPoller::kLookEvery / 2;

bool is_led(uint32_t period) { return period % 2 == 1; }
bool is_gathering(uint32_t period) { return period % 4 == 3; }

// While a gatherer's thread is in the core: to be cancelled there would leave the core as it is.
struct NoCancellation {
  NoCancellation() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before); }
  ~NoCancellation() { pthread_setcancelstate(before, nullptr); }
  int before = 0;
};

}  // namespace

thread_local RequestPoller::Lead RequestPoller::lead;

RequestPoller::RequestPoller(bool allowed, MakeGatherer make_gatherer)
    : allowed_(allowed && usable_cpus() > 1), make_gatherer_(std::move(make_gatherer)), may_gather_(bool(make_gatherer_)) {
  sem_init(&let_go_, 0, 0);
}

RequestPoller::~RequestPoller() { sem_destroy(&let_go_); }

RequestPoller::Counters RequestPoller::counters() const {
  return {periods_.load(std::memory_order_relaxed), found_.load(std::memory_order_relaxed),
          gatherings_.load(std::memory_order_relaxed), gathered_.load(std::memory_order_relaxed)};
}

bool RequestPoller::claim(std::atomic<uint32_t>& role, uint32_t period) {
  uint32_t before = role.load();
  return static_cast<int32_t>(period - before) > 0 && role.compare_exchange_strong(before, period);
}

bool RequestPoller::leads(uint32_t period) {
  if (lead.poller == this && lead.period == period) return lead.term == term_.load();
  if (!claim(led_, period)) return false;
  begin_lead(period);
  return true;
}

void RequestPoller::begin_lead(uint32_t period) {
  lead = {};
  lead.poller = this;
  lead.period = period;
  lead.term = term_.fetch_add(1) + 1;
}

void RequestPoller::wait(int fd) {
  if (!allowed_) return;
  if (std::exchange(is_handling, false)) handling_.fetch_sub(1, std::memory_order_relaxed);
  if (std::exchange(is_asleep, false)) asleep_.fetch_sub(1, std::memory_order_relaxed);
  const uint32_t period = period_.load();
  if (lead.gatherer && (lead.poller != this || lead.period != period)) stop_gathering(fd);
  if (!is_led(period)) {
    is_asleep = true;
    asleep_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  if (!leads(period)) {
    if (lead.gatherer) stop_gathering(fd);  // who parks has nothing under way
    park(period);
  }
  if (period_.load() != period) return;
  if (is_gathering(period)) {
    gather(fd, period);
  } else {
    poll_for_request(fd, period);
  }
}

void RequestPoller::gather(int fd, uint32_t period) {
  const NoCancellation here;
  if (!lead.gatherer) {
    if (may_gather_.exchange(false)) {
      lead.gatherer = make_gatherer_();
      if (lead.gatherer) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    }
    if (!lead.gatherer) {  // it cannot be had, which is not tried again, or another thread is about to end it
      end_period(period, false);
      return;
    }
  }
  lead.gatherer->turn();
  if (requests_.load(std::memory_order_relaxed) < kGatherWindow) return;
  if (lead.missed > kGatherWindow / 4 * 3) {  // they come one by one
    end_period(period, true);
  } else {
    end_window(period);
  }
}

void RequestPoller::found_nothing(int fd) {
  if (!lead.gatherer || lead.poller != this) {
    pollfd request{fd, POLLIN, 0};
    poll(&request, 1, -1);
    return;
  }
  {
    const NoCancellation here;
    lead.missed++;
    lead.gatherer->wait(fd);  // where nobody asks a parked thread ends the period
  }
  pthread_testcancel();
}

void RequestPoller::going_to_block(int fd) {
  if (!lead.gatherer || lead.poller != this) return;
  end_period(lead.period, false);
  stop_gathering(fd);
}

// The others may read already.
void RequestPoller::stop_gathering(int fd) {
  const NoCancellation here;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  lead.gatherer.reset();
  may_gather_.store(true);
}

void RequestPoller::took(int fd) {
  if (!allowed_) return;
  lead.takes++;
  if (lead.gatherer) gathered_.fetch_add(1, std::memory_order_relaxed);
  if (lead.takes % kLookEvery == 0) look_for_another(fd);
  if (std::exchange(is_asleep, false)) asleep_.fetch_sub(1, std::memory_order_relaxed);
  is_handling = true;
  const uint32_t others = handling_.fetch_add(1, std::memory_order_relaxed);
  if (others > 0) accompanied_.fetch_add(1, std::memory_order_relaxed);
  taken_.fetch_add(1, std::memory_order_relaxed);
  const Clock::time_point now = Clock::now();
  const Clock::rep took_at = now.time_since_epoch().count();
  const Clock::rep pause = took_at - took_at_.exchange(took_at, std::memory_order_relaxed);
  time_.fetch_add(std::clamp<Clock::rep>(pause, 0, Clock::duration(kPauseMax).count()), std::memory_order_relaxed);
  const uint32_t requests = requests_.fetch_add(1, std::memory_order_relaxed) + 1;
  if (requests == kWindow && !is_led(period_.load(std::memory_order_relaxed))) think_over(now);
}

// What begins gathering, and ends polling.
void RequestPoller::look_for_another(int fd) {
  const uint32_t period = period_.load(std::memory_order_relaxed);
  if (is_gathering(period)) return;
  pollfd another{fd, POLLIN, 0};
  if (poll(&another, 1, 0) != 0) crowded_.fetch_add(1, std::memory_order_relaxed);
}

RequestPoller::Clock::rep RequestPoller::begin_window() {
  requests_.store(0, std::memory_order_relaxed);
  accompanied_.store(0, std::memory_order_relaxed);
  crowded_.store(0, std::memory_order_relaxed);
  return time_.exchange(0, std::memory_order_relaxed);
}

// One thread at a time, but for windows that follow each other within a request: then a window is judged wrongly.
void RequestPoller::think_over(Clock::time_point now) {
  const bool one_by_one = accompanied_.load(std::memory_order_relaxed) <= kWindow / 8;
  const bool is_crowded = crowded_.load(std::memory_order_relaxed) > kCrowdedLooks;
  const Clock::rep time = begin_window();
  const Clock::rep time_now = now.time_since_epoch().count();
  const uint32_t windows = slept_windows_.fetch_add(1, std::memory_order_relaxed) + 1;
  const Clock::rep average = slept_window_.load(std::memory_order_relaxed);
  slept_window_.store(windows <= kSettleWindows ? time : average + (time - average) / 4, std::memory_order_relaxed);
  if (windows < kSleptWindowsMin) return;
  if (time > Clock::duration(kWindowMax).count()) return;
  if (one_by_one && !is_crowded && time_now >= rest_until_.load(std::memory_order_relaxed)) begin_period(1);
  if (is_crowded && may_gather_.load(std::memory_order_relaxed) && time_now >= gather_after_.load(std::memory_order_relaxed)) begin_period(3);
}

void RequestPoller::begin_period(uint32_t by) {
  uint32_t period = period_.load();
  if (is_led(period)) return;
  windows_.store(0, std::memory_order_relaxed);
  if (period_.compare_exchange_strong(period, period + by)) {
    (by == 1 ? periods_ : gatherings_).fetch_add(1, std::memory_order_relaxed);
  }
}

void RequestPoller::end_period(uint32_t period, bool paid) {
  const uint32_t next = period % 4 == 1 ? period + 3 : period + 1;
  if (!period_.compare_exchange_strong(period, next)) return;
  begin_window();
  slept_windows_.store(0, std::memory_order_relaxed);
  if (!paid) {
    std::atomic<Clock::rep>& rest = is_gathering(period) ? gather_after_ : rest_until_;
    rest.store((Clock::now() + kRest).time_since_epoch().count(), std::memory_order_relaxed);
  }
  // Whoever parks from now on sees that the period is over; who did before is counted.
  for (uint32_t parked = parked_.load(); parked > 0; parked--) sem_post(&let_go_);
}

void RequestPoller::park(uint32_t period) {
  // Cancellation unwinds this frame.
  struct Place {
    std::atomic<uint32_t>& parked;
    explicit Place(std::atomic<uint32_t>& count) : parked(count) { parked.fetch_add(1); }
    ~Place() { parked.fetch_sub(1); }
  } place(parked_);
  uint32_t taken = taken_.load(std::memory_order_relaxed);
  bool watches = false;
  while (period_.load() == period) {
    watches = watches || claim(watched_, period);
    if (!watches) {
      sem_wait(&let_go_);
      continue;
    }
    timespec until{};
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += std::chrono::nanoseconds(kStuckAfter).count();
    if (until.tv_nsec >= 1'000'000'000) {
      until.tv_nsec -= 1'000'000'000;
      until.tv_sec++;
    }
    if (sem_clockwait(&let_go_, CLOCK_MONOTONIC, &until) == 0 || errno != ETIMEDOUT) continue;
    const uint32_t before = std::exchange(taken, taken_.load(std::memory_order_relaxed));
    if (taken != before) continue;
    if (handling_.load(std::memory_order_relaxed) > 0 && !is_gathering(period)) {
      take_lead(period);
      return;
    }
    end_period(period, !is_gathering(period));
  }
}

// By the thread that watches. Another one, or the leader that was, watches from now on.
void RequestPoller::take_lead(uint32_t period) {
  begin_lead(period);
  watched_.store(period - 1);
  sem_post(&let_go_);
}

void RequestPoller::poll_for_request(int fd, uint32_t period) {
  // Some sleep there since before the period. The kernel would wake them for each request; so they have the next ones, in turn, and are parked
  // when they come back.
  if (asleep_.load(std::memory_order_relaxed) > 0) return;
  pollfd request{fd, POLLIN, 0};
  const Clock::time_point began = Clock::now();
  Clock::time_point now = began;
  bool found = poll(&request, 1, 0) != 0;
  while (!found && now - began < kPollTime) {
    sched_yield();
    found = poll(&request, 1, 0) != 0;
    now = Clock::now();
  }
  if (now - began < kPollTime) {
    found_.fetch_add(1, std::memory_order_relaxed);
  } else {
    lead.missed++;
  }
  const bool was_kept_away = now - began > kStuckAfter;
  if (was_kept_away || lead.missed > kWindow / 4 || crowded_.load(std::memory_order_relaxed) > kCrowdedLooks) {
    end_period(period, false);
    return;
  }
  if (requests_.load(std::memory_order_relaxed) >= kWindow) end_window(period);
  if (found) return;
  // Asleep, but for long only where all are.
  if (poll(&request, 1, static_cast<int>(kIdleAfter.count())) == 0) end_period(period, true);
}

void RequestPoller::end_window(uint32_t period) {
  const Clock::rep slept = slept_window_.load(std::memory_order_relaxed);
  const Clock::rep time = begin_window();
  const bool pays = is_gathering(period) ? time < slept * (kGatherWindow / kWindow) : time < slept / 100 * kPaysBelow;
  const uint32_t paid = windows_.fetch_add(pays ? 1 : 0, std::memory_order_relaxed) + (pays ? 1 : 0);
  // Where it paid before, requests have become others: they are measured anew, without a rest.
  if (!pays || paid == kPeriodWindows) end_period(period, paid > 0);
  lead.missed = 0;
}

}  // namespace cofs
