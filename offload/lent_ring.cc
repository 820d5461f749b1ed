#include "offload/lent_ring.h"

#include "offload/monitor.h"

namespace cofs {

LentRing::LentRing(std::unique_ptr<Ring> ring, int fd, RequestSink& sink, CompletionPoller poller)
    : ring_(std::move(ring)), transfers_(*ring_, fd, sink, kTransfersMax), poller_(poller) {
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
  if (transfers_.in_flight() != 1) return;
  const Transfer* single = transfers_.single();
  if (single != nullptr && single != single_ && single->request().durable) {
    poll_until_ = poller_.begin(CompletionPoller::Clock::now());
    single_ = single;
  }
  // A read without company is what somebody waits for: handed over before the thread goes to sleep, it is answered a twentieth
  // sooner (docs/PERFORMANCE.md). Where there are several the one call for all is worth more.
  ring_->submit(false);
}

void LentRing::completed(void* tag, int32_t outcome) {
  if (tag == single_) {
    poller_.end(CompletionPoller::Clock::now());
    single_ = nullptr;
  }
  transfers_.completed(tag, outcome);
}

void LentRing::poll() {
  if (single_ == nullptr || transfers_.in_flight() != 1) return;
  if (CompletionPoller::Clock::now() < poll_until_) ring_->poll(poll_until_);
}

bool LentRing::close() {
  TransferQueue::set_of_this_thread(nullptr);
  return transfers_.is_idle() && transfers_.finished().empty();
}

}  // namespace cofs
