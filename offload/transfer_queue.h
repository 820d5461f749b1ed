// TransferQueue: reads and writes of one file on their way through a ring, by the thread that owns the ring.
//
// The thread adds requests, has them put into the ring, and tells what completed; what it then takes out is finished,
// with its result set. Invariant: a request is in waiting_, in a Transfer, or in finished_. Not for: waiting, or
// telling anybody; that is the thread's (RingThread, LentRing).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "offload/request_list.h"
#include "offload/transfer.h"
#include "offload/uring.h"

namespace cofs {

class TransferQueue {
 public:
  // All must outlive it. `in_flight_max` at most as many entries as the ring has for it.
  TransferQueue(Ring& ring, int fd, RequestSink& sink, uint32_t in_flight_max);
  TransferQueue(const TransferQueue&) = delete;

  // The one that the calling thread declared, if any: what it adds there starts without waking anybody.
  static TransferQueue* of_this_thread();
  // REQUIRES: the thread comes back to it (fill) without waiting for what was added.
  static void set_of_this_thread(TransferQueue* queue);

  // Takes over kRead and kWrite requests, leaving the list empty.
  void add(RequestList& requests) { waiting_.append(requests); }
  // Puts into the ring what fits.
  void fill();
  // False: an entry was refused, the ring must be submitted before fill() can go on.
  bool is_filled() const { return to_queue_.empty(); }
  // `tag` as it was put into the ring.
  void completed(void* tag, int32_t outcome);
  // What is finished since it was last cleared; the caller clears it.
  std::vector<IoRequest*>& finished() { return finished_; }
  // What is in the ring, or on its way there.
  size_t in_flight() const { return transfers_.size() - idle_.size(); }
  // What is in the ring by itself, if it was the last to be put there; else null.
  const Transfer* single() const { return in_flight() == 1 ? last_ : nullptr; }
  // Nothing is in the ring, nor on its way there.
  bool is_idle() const { return idle_.size() == transfers_.size() && waiting_.empty(); }

 private:
  Ring& ring_;
  int fd_;
  RequestSink& sink_;
  RequestList waiting_;  // for an idle Transfer
  std::vector<std::unique_ptr<Transfer>> transfers_;
  std::vector<Transfer*> idle_;
  std::vector<Transfer*> to_queue_;  // begun, with a call to be made
  std::vector<IoRequest*> finished_;
  const Transfer* last_ = nullptr;  // begun, and not ended
};

}  // namespace cofs
