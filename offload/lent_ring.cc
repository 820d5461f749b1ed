#include "offload/lent_ring.h"

#include "offload/monitor.h"

namespace cofs {

LentRing::LentRing(std::unique_ptr<Ring> ring, int fd, RequestSink& sink)
    : ring_(std::move(ring)), transfers_(*ring_, fd, sink, kTransfersMax) {
  Monitor::mark_service_thread();
  TransferQueue::set_of_this_thread(&transfers_);
}

LentRing::~LentRing() {
  TransferQueue::set_of_this_thread(nullptr);
  Monitor::mark_service_thread(false);
  COFS_ASSERT(transfers_.is_idle());
}

void LentRing::fill() {
  transfers_.fill();
  while (!transfers_.is_filled()) {
    ring_->submit(false);  // whatever it says: the kernel takes entries, or will the next time
    transfers_.fill();
  }
  // A read without company is what somebody waits for: handed over before the thread goes to sleep, it is answered a twentieth
  // sooner (docs/PERFORMANCE.md). Where there are several the one call for all is worth more.
  if (transfers_.in_flight() == 1) ring_->submit(false);
}

bool LentRing::close() {
  TransferQueue::set_of_this_thread(nullptr);
  return transfers_.is_idle() && transfers_.finished().empty();
}

}  // namespace cofs
