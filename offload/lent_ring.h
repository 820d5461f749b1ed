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

#include "offload/transfer_queue.h"

namespace cofs {

class LentRing {
 public:
  // In flight at once; the ring must have as many entries for it, beside its owner's.
  static constexpr uint32_t kTransfersMax = 192;
  static constexpr uint32_t kEntries = 256;  // of a ring that is made for it, a power of two

  LentRing(std::unique_ptr<Ring> ring, int fd, RequestSink& sink);
  ~LentRing();
  LentRing(const LentRing&) = delete;

  Ring& ring() { return *ring_; }
  // An entry of the device's ended.
  void completed(void* tag, int32_t outcome) { transfers_.completed(tag, outcome); }
  // Takes out what ended, for the device to account for and post.
  std::vector<IoRequest*>& finished() { return transfers_.finished(); }
  // Puts into the ring what was collected; to be called after the core was left, before the ring is submitted.
  void fill();
  // From now on this thread's requests go elsewhere. True when none is in the ring.
  bool close();

 private:
  std::unique_ptr<Ring> ring_;
  TransferQueue transfers_;
};

}  // namespace cofs
