// RequestPoller: how the threads that read requests from the kernel's device wait for the next one.
//
// As a rule they sleep there, all of them, and the kernel wakes one for each request. A program that asks for one thing after
// the other then pays two wake-ups, mostly across CPUs, for a request that may take a tenth of that. So while requests come
// so, one thread, the leader, polls for a moment after each before it sleeps, as sockets do with net.core.busy_poll, and yields its CPU
// all the while; the others are parked, lest the kernel wake them for what the leader takes. Whether that pays is measured:
// a window of requests by polling must take less time than one did by sleeping before, on average, else there is a rest. (A longer pause between two requests,
// which comes of something else, counts as kPauseMax.) It is given up early where
// several requests are there at once, or where they come late (the program thinks, or
// others need the CPU). docs/decisions/0017 has the figures.
//
// Where many requests are there at once, one thread may gather them: it reads them all and does without waiting what they want from the device
// (Gatherer), so that no request is handed from thread to thread. That is measured in the same way.
//
// Invariants. In an odd period one thread leads, and no other begins to read, but for a leader that returns just as its lead is taken; in an
// even one all may read. The thread that ends
// a period lets all parked ones go. Where no request is taken for kStuckAfter, a parked thread takes the lead if a leader that polls is kept by a
// request, and else ends the period. Waiting threads may be cancelled (pthread_cancel), as libfuse does at its end.
// Period numbers: 4k all sleep, 4k + 1 one polls, 4k + 3 one gathers.
// Not for: requests by io_uring (tools/libfuse/ring_queues.c), nor a library that reads by itself (fs/fuse_request_reader.h).
#pragma once

#include <semaphore.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

namespace cofs {

class RequestPoller {
 public:
  // What a thread does beside reading requests while it gathers them. All calls are made by that thread, which is not
  // cancelled in them.
  class Gatherer {
   public:
    // Waits until it is idle.
    virtual ~Gatherer() = default;
    // Before each read.
    virtual void turn() = 0;
    // Until a request may be there, or something that is under way ended, or for kGatherNap.
    virtual void wait(int fd) = 0;
  };
  // Null: it cannot be had.
  using MakeGatherer = std::function<std::unique_ptr<Gatherer>()>;

  static constexpr uint32_t kWindow = 256;   // requests, after which it is thought over
  static constexpr uint32_t kGatherWindow = 4 * kWindow;  // the same while one thread gathers
  static constexpr uint32_t kLookEvery = 4;  // requests: whether there are more
  // Requests come fast if a window takes no longer: otherwise wake-ups are little of what they take.
  static constexpr std::chrono::microseconds kWindowMax{kWindow * 150};
  static constexpr std::chrono::microseconds kPauseMax{200};
  // What a window of polling may take, in percent of one of sleeping.
  static constexpr uint32_t kPaysBelow = 90;
  // Windows of sleeping after a period until they count, for the scheduler has to find good places for all again; and until another period
  // may begin.
  static constexpr uint32_t kSettleWindows = 4;
  static constexpr uint32_t kSleptWindowsMin = 8;
  static constexpr uint32_t kPeriodWindows = 256;  // after which sleeping is measured anew
  static constexpr std::chrono::microseconds kPollTime{60};
  static constexpr std::chrono::milliseconds kIdleAfter{1};
  static constexpr std::chrono::milliseconds kStuckAfter{1};
  static constexpr std::chrono::milliseconds kRest{200};
  static constexpr std::chrono::milliseconds kGatherNap{100};

  // False: always sleep, which is also what happens with a single CPU. Without `make_gatherer` nobody gathers.
  explicit RequestPoller(bool allowed, MakeGatherer make_gatherer = {});
  // REQUIRES: no thread is in wait().
  ~RequestPoller();
  RequestPoller(const RequestPoller&) = delete;

  // To be called by a thread of the library before it reads from `fd`, and took() after it has got a request. It
  // returns when a request may be there, or when the thread is to sleep in its read.
  void wait(int fd);
  void took(int fd);
  // The read failed with EAGAIN: a thread that gathers has made `fd` non-blocking. Returns when wait() is to be called again.
  void found_nothing(int fd);
  // To be called after took() where the handler is going to wait for the core or the device: this thread gathers no more.
  void going_to_block(int fd);

  struct Counters {
    uint64_t periods = 0;   // in which there was polling
    uint64_t requests = 0;  // that a poll found, nobody being woken
    uint64_t gatherings = 0;  // periods in which one thread gathered
    uint64_t gathered = 0;    // requests that it took
  };
  Counters counters() const;

 private:
  using Clock = std::chrono::steady_clock;

  // What a thread knows of its leadership.
  struct Lead {
    const RequestPoller* poller = nullptr;
    uint32_t period = 0;
    uint32_t term = 0;
    uint32_t takes = 0;
    // In this window:
    uint32_t missed = 0;   // polls that found none in time; reads that found none while gathering
    std::unique_ptr<Gatherer> gatherer;
  };
  static thread_local Lead lead;

  bool leads(uint32_t period);
  void begin_lead(uint32_t period);
  // Returns when the thread may read: the period is over, or it leads.
  void park(uint32_t period);
  void take_lead(uint32_t period);
  void poll_for_request(int fd, uint32_t period);
  void gather(int fd, uint32_t period);
  void stop_gathering(int fd);
  void end_window(uint32_t period);
  void look_for_another(int fd);
  void think_over(Clock::time_point now);
  Clock::rep begin_window();  // returns the time of the one before
  // By 1: polling, by 3: gathering.
  void begin_period(uint32_t by);
  // Does nothing if the period is over already. Unless it `paid` there is a rest.
  void end_period(uint32_t period, bool paid);
  // True once in each period.
  static bool claim(std::atomic<uint32_t>& role, uint32_t period);

  const bool allowed_;
  const MakeGatherer make_gatherer_;
  std::atomic<bool> may_gather_;  // no thread does
  sem_t let_go_;  // may have more tokens than there are parked threads: these look at the period again
  std::atomic<uint32_t> period_{0};
  std::atomic<uint32_t> led_{0};      // the last period that has a leader
  std::atomic<uint32_t> term_{0};     // changes with the leader
  std::atomic<uint32_t> windows_{0};  // of this period, that paid
  std::atomic<uint32_t> watched_{0};  // the last one in which a parked thread has an eye on the leader
  std::atomic<uint32_t> parked_{0};
  std::atomic<uint32_t> handling_{0};  // threads between took() and wait()
  std::atomic<uint32_t> asleep_{0};    // threads in their read since an even period
  std::atomic<uint32_t> taken_{0};
  std::atomic<Clock::rep> took_at_{0};
  // Of this window:
  std::atomic<uint32_t> requests_{0};
  std::atomic<uint32_t> accompanied_{0};  // that came while another thread handled one
  std::atomic<uint32_t> crowded_{0};      // looks that found another one behind the one that was taken
  std::atomic<Clock::rep> time_{0};
  std::atomic<uint32_t> slept_windows_{0};   // since the last period
  std::atomic<Clock::rep> slept_window_{0};  // the time of one, on a moving average
  std::atomic<Clock::rep> rest_until_{0};
  std::atomic<Clock::rep> gather_after_{0};  // a rest, too

  std::atomic<uint64_t> periods_{0};
  std::atomic<uint64_t> found_{0};
  std::atomic<uint64_t> gatherings_{0};
  std::atomic<uint64_t> gathered_{0};
};

}  // namespace cofs
