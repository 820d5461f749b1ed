#include "fs/fuse_request_gatherer.h"

#include <liburing.h>
#include <poll.h>

#include <array>
#include <chrono>
#include <utility>

#include "fs/fuse_queues.h"
#include "offload/file_device.h"

namespace cofs {

namespace {

constexpr uint32_t kEntries = 256;
static_assert(kEntries >= LentRing::kTransfersMax);
constexpr uint32_t kTurnsPerBatch = 4;    // requests that enter the core together
constexpr uint32_t kTurnsPerSubmit = 16;  // after which the kernel is told, whether there are more requests or not

class RingGatherer final : public RequestPoller::Gatherer {
 public:
  static std::unique_ptr<RingGatherer> make(Monitor& monitor, FileDevice& device) {
    std::unique_ptr<RingGatherer> self(new RingGatherer);
    const uint32_t flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (io_uring_queue_init(kEntries, &self->ring_, flags) != 0) return nullptr;
    self->is_set_up_ = true;
    const std::array<int, 1> files = {-1};
    if (io_uring_register_files(&self->ring_, files.data(), files.size()) != 0) return nullptr;
    auto lent = device.lend(self->ring_, 0, false);
    if (!lent) return nullptr;
    self->thread_ = std::make_unique<FuseQueueThread>(monitor, device, std::move(*lent));
    return self;
  }

  ~RingGatherer() override {
    if (thread_) {
      for (thread_->end_batch(); !thread_->may_end(); thread_->end_batch()) {
        io_uring_submit_and_wait(&ring_, 1);
        reap();
      }
      thread_.reset();
    }
    if (!is_set_up_) return;
    io_uring_unregister_files(&ring_);
    io_uring_queue_exit(&ring_);
  }

  void turn() override {
    turns_++;
    if (turns_ % kTurnsPerSubmit == 0) {
      io_uring_submit_and_get_events(&ring_);
      reap();
    }
    if (turns_ % kTurnsPerBatch == 0) thread_->end_batch();
  }

  void wait(int fd) override {
    thread_->end_batch();
    if (!is_watching_) {
      io_uring_sqe* entry = io_uring_get_sqe(&ring_);
      if (entry != nullptr) {
        io_uring_prep_poll_add(entry, fd, POLLIN);
        io_uring_sqe_set_data(entry, nullptr);
        is_watching_ = true;
      }
    }
    // Not for good: who ends the thread waits for this.
    __kernel_timespec nap{0, std::chrono::nanoseconds(RequestPoller::kGatherNap).count()};
    io_uring_cqe* first = nullptr;
    io_uring_submit_and_wait_timeout(&ring_, &first, 1, &nap, nullptr);
    reap();
    thread_->end_batch();
  }

 private:
  RingGatherer() = default;

  void reap() {
    io_uring_cqe* entry = nullptr;
    unsigned head = 0;
    unsigned count = 0;
    io_uring_for_each_cqe(&ring_, head, entry) {
      if (void* tag = io_uring_cqe_get_data(entry); tag != nullptr) {
        thread_->completed(tag, entry->res);
      } else {
        is_watching_ = false;
      }
      count++;
    }
    io_uring_cq_advance(&ring_, count);
  }

  io_uring ring_{};
  bool is_set_up_ = false;
  std::unique_ptr<FuseQueueThread> thread_;
  bool is_watching_ = false;  // the ring has an entry that ends when a request comes
  uint32_t turns_ = 0;
};

}  // namespace

std::unique_ptr<RequestPoller::Gatherer> make_request_gatherer(Monitor& monitor, FileDevice& device) {
  return RingGatherer::make(monitor, device);
}

}  // namespace cofs
