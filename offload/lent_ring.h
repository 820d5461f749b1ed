// LentRing: reads and writes of a FileDevice in the ring of a thread that serves something else by it, too (the queues of
// FUSE over io_uring). What the thread collects starts, and ends, in that thread: nobody is woken for it.
//
// All calls are made by that thread, which submits and reaps the ring. It is handed out by FileDevice::lend(), and must be
// gone before the device.
#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>
#include <vector>

#include "offload/completion_poller.h"
#include "offload/transfer_queue.h"

namespace cofs {

class LentRing {
 public:
  // In flight at once; the ring must have as many entries for it, beside its owner's.
  static constexpr uint32_t kTransfersMax = 192;
  static constexpr uint32_t kEntries = 256;  // of a ring that is made for it, a power of two

  // `poller` is for poll().
  LentRing(std::unique_ptr<Ring> ring, int fd, RequestSink& sink, CompletionPoller poller);
  ~LentRing();
  LentRing(const LentRing&) = delete;

  Ring& ring() { return *ring_; }
  // An entry of the device's ended.
  void completed(void* tag, int32_t outcome);
  // Takes out what ended, for the device to account for and post.
  std::vector<IoRequest*>& finished() { return transfers_.finished(); }
  // Puts into the ring what was collected; to be called after the core was left, before the ring is submitted.
  void fill();
  // To be called before the thread sleeps for a completion: while it pays (CompletionPoller), and a single request is in the
  // ring, it submits the ring, and returns when something has completed or some microseconds later.
  void poll();
  // From now on this thread's requests go elsewhere. True when none is in the ring.
  bool close();

 private:
  std::unique_ptr<Ring> ring_;
  TransferQueue transfers_;
  CompletionPoller poller_;
  const void* single_ = nullptr;  // the tag of the request that poller_ has begun with
  CompletionPoller::Clock::time_point poll_until_;
};

}  // namespace cofs
