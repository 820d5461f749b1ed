#include "offload/transfer_queue.h"

namespace cofs {

namespace {
thread_local TransferQueue* current_queue = nullptr;
}

TransferQueue* TransferQueue::of_this_thread() { return current_queue; }

void TransferQueue::set_of_this_thread(TransferQueue* queue) { current_queue = queue; }

TransferQueue::TransferQueue(Ring& ring, int fd, RequestSink& sink, uint32_t in_flight_max)
    : ring_(ring), fd_(fd), sink_(sink) {
  for (uint32_t i = 0; i < in_flight_max; i++) {
    transfers_.push_back(std::make_unique<Transfer>());
    idle_.push_back(transfers_.back().get());
  }
}

void TransferQueue::fill() {
  while (!to_queue_.empty() && to_queue_.back()->queue(ring_, fd_)) to_queue_.pop_back();
  while (to_queue_.empty() && !idle_.empty() && !waiting_.empty()) {
    Transfer* transfer = idle_.back();
    idle_.pop_back();
    transfer->begin(*waiting_.pop());
    last_ = transfer;
    if (!transfer->queue(ring_, fd_)) to_queue_.push_back(transfer);
  }
}

void TransferQueue::completed(void* tag, int32_t outcome) {
  auto* transfer = static_cast<Transfer*>(tag);
  if (!transfer->advance(outcome)) {
    to_queue_.push_back(transfer);
    return;
  }
  IoRequest& request = transfer->request();
  if (!request.result) sink_.transfer_failed(request, transfer->error_number());
  finished_.push_back(&request);
  idle_.push_back(transfer);
  if (last_ == transfer) last_ = nullptr;
}

}  // namespace cofs
