// RingThread: a permanent thread that owns a Ring and keeps many reads and writes in flight. Others
// hand it lists of requests; it wakes only if it sleeps.
//
// Invariant: a request handed over is in incoming_ or in the thread's TransferQueue. The
// thread sleeps only with the wake-up armed and incoming_ empty, both seen under the mutex that
// submit() takes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "offload/request_list.h"
#include "offload/target.h"
#include "offload/transfer_queue.h"
#include "offload/uring.h"

namespace cofs {

struct RingThreadOptions {
  uint32_t entries = 256;       // operations in flight, a power of two; what is beyond them waits
  std::span<std::byte> memory;  // to be registered with the ring; empty: none
  int held_fd = -1;             // see Ring::create
};

class RingThread {
 public:
  // Starts the thread and waits until it has its ring. The error is an errno: the ring cannot be
  // had.
  static std::expected<std::unique_ptr<RingThread>, int> start(int fd, RequestSink& sink,
                                                               const RingThreadOptions& options);
  // Waits until all that was submitted is finished.
  ~RingThread();
  RingThread(const RingThread&) = delete;

  // Takes over kRead and kWrite requests, leaving the list empty. From any thread.
  void submit(RequestList& requests);

  // A hint: the thread hands over completions just now, and will not look at new requests before.
  bool busy() const { return busy_.load(std::memory_order_relaxed); }
  const char* flavour() const { return ring_->flavour(); }
  // The errno with which the kernel refused to register the memory, 0 if it did not.
  int registration_error() const { return registration_error_; }

 private:
  RingThread(int fd, RequestSink& sink, const RingThreadOptions& options);
  int wait_until_started();
  void run();
  int set_up();
  // Takes what others handed over; false when the thread shall end.
  bool take_incoming(bool& may_sleep);
  void fill_ring();
  void reap();
  void wake();

  int fd_;
  RequestSink& sink_;
  RingThreadOptions options_;
  OwnedFd wake_fd_;
  std::unique_ptr<Ring> ring_;
  int registration_error_ = 0;

  std::mutex mutex_;
  std::condition_variable started_changed_;
  bool started_ = false;  // guarded by mutex_
  int start_error_ = 0;   // guarded by mutex_
  RequestList incoming_;  // guarded by mutex_
  bool asleep_ = false;   // guarded by mutex_: needs a wake-up to see incoming_
  bool stop_ = false;     // guarded by mutex_
  std::atomic<bool> busy_{false};

  // Of the thread alone.
  std::unique_ptr<TransferQueue> transfers_;
  std::vector<RingCompletion> completions_;
  bool wake_armed_ = false;
  uint64_t wake_count_ = 0;  // what the read of wake_fd_ brings
  iovec wake_vector_{};

  std::thread thread_;
};

}  // namespace cofs
