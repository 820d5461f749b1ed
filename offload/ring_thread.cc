#include "offload/ring_thread.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "offload/monitor.h"

namespace cofs {

RingThread::RingThread(int fd, RequestSink& sink, const RingThreadOptions& options)
    : fd_(fd), sink_(sink), options_(options) {}

std::expected<std::unique_ptr<RingThread>, int> RingThread::start(
    int fd, RequestSink& sink, const RingThreadOptions& options) {
  std::unique_ptr<RingThread> self(new RingThread(fd, sink, options));
  // Not O_NONBLOCK: the ring then waits for the event instead of reporting EAGAIN.
  self->wake_fd_ = OwnedFd(eventfd(0, EFD_CLOEXEC));
  if (!self->wake_fd_.valid()) return std::unexpected(errno);
  self->wake_vector_ = {&self->wake_count_, sizeof(self->wake_count_)};
  self->thread_ = std::thread([raw = self.get()] { raw->run(); });
  int error = self->wait_until_started();
  if (error != 0) return std::unexpected(error);
  return self;
}

int RingThread::wait_until_started() {
  std::unique_lock lock(mutex_);
  started_changed_.wait(lock, [this] { return started_; });
  return start_error_;
}

RingThread::~RingThread() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake();
  thread_.join();
}

void RingThread::submit(RequestList& requests) {
  if (requests.empty()) return;
  bool needs_wake = false;
  {
    std::lock_guard lock(mutex_);
    incoming_.append(requests);
    needs_wake = std::exchange(asleep_, false);
  }
  if (needs_wake) wake();
}

void RingThread::wake() {
  uint64_t one = 1;
  // Fails only if interrupted: the counter cannot overflow before it is read.
  while (write(wake_fd_.get(), &one, sizeof(one)) < 0) COFS_ASSERT(errno == EINTR);
}

int RingThread::set_up() {
  auto ring = Ring::create(options_.entries, options_.held_fd);
  if (!ring) return ring.error();
  ring_ = std::move(*ring);
  registration_error_ = ring_->register_memory(options_.memory);
  // One entry stays free for the wake-up.
  transfers_ = std::make_unique<TransferQueue>(*ring_, fd_, sink_, options_.entries - 1);
  TransferQueue::set_of_this_thread(transfers_.get());
  completions_.resize(options_.entries);
  return 0;
}

void RingThread::run() {
  pthread_setname_np(pthread_self(), "cofs-io");
  Monitor::mark_service_thread();
  int error = set_up();
  {
    std::lock_guard lock(mutex_);
    start_error_ = error;
    started_ = true;
    started_changed_.notify_all();
  }
  if (error != 0) return;
  bool may_sleep = false;
  while (take_incoming(may_sleep)) {
    int outcome = ring_->submit(may_sleep);
    COFS_ASSERT(outcome == 0 || outcome == EINTR || outcome == EAGAIN || outcome == EBUSY);
    reap();
  }
  TransferQueue::set_of_this_thread(nullptr);
  ring_.reset();  // only its own thread can give up at once what it holds
}

bool RingThread::take_incoming(bool& may_sleep) {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      asleep_ = false;
      transfers_->add(incoming_);
    }
    fill_ring();
    std::lock_guard lock(mutex_);
    if (!incoming_.empty()) continue;
    if (stop_ && transfers_->is_idle()) return false;
    may_sleep = transfers_->is_filled() && wake_armed_;
    asleep_ = may_sleep;
    return true;
  }
}

void RingThread::fill_ring() {
  if (!wake_armed_) wake_armed_ = ring_->read(wake_fd_.get(), {&wake_vector_, 1}, 0, nullptr);
  transfers_->fill();
}

void RingThread::reap() {
  uint32_t count = ring_->reap(completions_);
  for (uint32_t i = 0; i < count; i++) {
    if (completions_[i].tag == nullptr) {
      wake_armed_ = false;
    } else {
      transfers_->completed(completions_[i].tag, completions_[i].outcome);
    }
  }
  if (transfers_->finished().empty()) return;
  {
    std::lock_guard lock(mutex_);
    asleep_ = false;  // what the core submits meanwhile is seen without a wake-up
  }
  busy_.store(true, std::memory_order_relaxed);
  sink_.finished(transfers_->finished());
  busy_.store(false, std::memory_order_relaxed);
  transfers_->finished().clear();
}

}  // namespace cofs
