#include "offload/ring_thread.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "offload/monitor.h"

namespace cofs {

namespace {
thread_local RingThread* current_ring_thread = nullptr;
}

RingThread* RingThread::current() {
  return current_ring_thread;
}

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
  for (uint32_t i = 0; i + 1 < options_.entries; i++) {
    transfers_.push_back(std::make_unique<Transfer>());
    idle_.push_back(transfers_.back().get());
  }
  completions_.resize(options_.entries);
  return 0;
}

void RingThread::run() {
  pthread_setname_np(pthread_self(), "cofs-io");
  Monitor::mark_service_thread();
  current_ring_thread = this;
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
  ring_.reset();  // only its own thread can give up at once what it holds
}

bool RingThread::take_incoming(bool& may_sleep) {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      asleep_ = false;
      waiting_.append(incoming_);
    }
    fill_ring();
    std::lock_guard lock(mutex_);
    if (!incoming_.empty()) continue;
    bool all_done = idle_.size() == transfers_.size() && waiting_.empty();
    if (stop_ && all_done) return false;
    may_sleep = to_queue_.empty() && wake_armed_;
    asleep_ = may_sleep;
    return true;
  }
}

bool RingThread::enqueue(Transfer& transfer) {
  return transfer.is_write() ? ring_->write(fd_, transfer.vectors(), transfer.offset(), &transfer)
                             : ring_->read(fd_, transfer.vectors(), transfer.offset(), &transfer);
}

void RingThread::fill_ring() {
  if (!wake_armed_) wake_armed_ = ring_->read(wake_fd_.get(), {&wake_vector_, 1}, 0, nullptr);
  while (!to_queue_.empty() && enqueue(*to_queue_.back())) to_queue_.pop_back();
  while (to_queue_.empty() && !idle_.empty() && !waiting_.empty()) {
    Transfer* transfer = idle_.back();
    idle_.pop_back();
    transfer->begin(*waiting_.pop());
    if (!enqueue(*transfer)) to_queue_.push_back(transfer);
  }
}

void RingThread::reap() {
  uint32_t count = ring_->reap(completions_);
  for (uint32_t i = 0; i < count; i++) {
    auto* transfer = static_cast<Transfer*>(completions_[i].tag);
    if (transfer == nullptr) {
      wake_armed_ = false;
    } else if (!transfer->advance(completions_[i].outcome)) {
      to_queue_.push_back(transfer);
    } else {
      IoRequest& request = transfer->request();
      if (!request.result) sink_.transfer_failed(request, transfer->error_number());
      finished_.push_back(&request);
      idle_.push_back(transfer);
    }
  }
  if (finished_.empty()) return;
  {
    std::lock_guard lock(mutex_);
    asleep_ = false;  // what the core submits meanwhile is seen without a wake-up
  }
  busy_.store(true, std::memory_order_relaxed);
  sink_.finished(finished_);
  busy_.store(false, std::memory_order_relaxed);
  finished_.clear();
}

}  // namespace cofs
