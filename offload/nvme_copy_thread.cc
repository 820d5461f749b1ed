#include "offload/nvme_copy_thread.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "offload/monitor.h"

namespace cofs {

namespace {

// Lists begin on pages, so that the driver maps them without copying.
constexpr size_t kListAlignment = 4096;
static_assert(kNvmeCopyRangesMax * sizeof(NvmeSourceRange) % kListAlignment == 0);

}  // namespace

void NvmeCopyThread::FreeMemory::operator()(NvmeSourceRange* memory) const {
  std::free(memory);
}

NvmeCopyThread::NvmeCopyThread(const DeviceStack& stack, std::vector<NvmeDestination> destinations,
                               uint32_t commands_in_flight, int held_fd, RequestSink& sink)
    : stack_(stack),
      destinations_(std::move(destinations)),
      commands_in_flight_(commands_in_flight),
      held_fd_(held_fd),
      sink_(sink) {}

std::expected<std::unique_ptr<NvmeCopyThread>, int> NvmeCopyThread::start(
    const DeviceStack& stack, std::vector<NvmeDestination> destinations,
    uint32_t commands_in_flight, int held_fd, RequestSink& sink) {
  COFS_ASSERT(commands_in_flight >= 1);
  std::unique_ptr<NvmeCopyThread> self(
      new NvmeCopyThread(stack, std::move(destinations), commands_in_flight, held_fd, sink));
  // Not O_NONBLOCK: the ring then waits for the event instead of reporting EAGAIN.
  self->wake_fd_ = OwnedFd(eventfd(0, EFD_CLOEXEC));
  if (!self->wake_fd_.valid()) return std::unexpected(errno);
  self->thread_ = std::thread([raw = self.get()] { raw->run(); });
  int error = self->wait_until_started();
  if (error != 0) return std::unexpected(error);
  return self;
}

int NvmeCopyThread::wait_until_started() {
  std::unique_lock lock(mutex_);
  started_changed_.wait(lock, [this] { return started_; });
  return start_error_;
}

NvmeCopyThread::~NvmeCopyThread() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake();
  thread_.join();
}

void NvmeCopyThread::submit(IoRequest& request) {
  bool needs_wake = false;
  {
    std::lock_guard lock(mutex_);
    incoming_.push(request);
    needs_wake = std::exchange(asleep_, false);
  }
  if (needs_wake) wake();
}

void NvmeCopyThread::wake() {
  uint64_t one = 1;
  // Fails only if interrupted: the counter cannot overflow before it is read.
  while (write(wake_fd_.get(), &one, sizeof(one)) < 0) COFS_ASSERT(errno == EINTR);
}

int NvmeCopyThread::set_up() {
  // One entry more than commands, for the wake-up; sizes of rings are powers of two.
  uint32_t entries = std::bit_ceil(commands_in_flight_ + 1);
  auto ring = CommandRing::create(entries, held_fd_);
  if (!ring) return ring.error();
  ring_ = std::move(*ring);
  size_t bytes = size_t{commands_in_flight_} * kNvmeCopyRangesMax * sizeof(NvmeSourceRange);
  lists_.reset(static_cast<NvmeSourceRange*>(std::aligned_alloc(kListAlignment, bytes)));
  if (lists_ == nullptr) return ENOMEM;
  for (uint32_t i = 0; i < commands_in_flight_; i++) {
    std::span list(lists_.get() + size_t{i} * kNvmeCopyRangesMax, kNvmeCopyRangesMax);
    commands_.push_back(std::make_unique<NvmeCommand>(stack_, destinations_, list));
    idle_.push_back(commands_.back().get());
  }
  completions_.resize(entries);
  return 0;
}

void NvmeCopyThread::run() {
  pthread_setname_np(pthread_self(), "cofs-nvme");
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
  ring_.reset();  // only its own thread can give up at once what it holds
}

bool NvmeCopyThread::take_incoming(bool& may_sleep) {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      asleep_ = false;
      waiting_.append(incoming_);
    }
    fill_ring();
    std::lock_guard lock(mutex_);
    if (!incoming_.empty()) continue;
    bool all_done = idle_.size() == commands_.size() && waiting_.empty();
    if (stop_ && all_done) return false;
    may_sleep = to_queue_.empty() && wake_armed_;
    asleep_ = may_sleep;
    return true;
  }
}

bool NvmeCopyThread::enqueue(NvmeCommand& command) {
  return ring_->command(command.fd(), kNvmeUringCommandIo, command.payload(), &command);
}

void NvmeCopyThread::fill_ring() {
  if (!wake_armed_) wake_armed_ = ring_->read_event(wake_fd_.get(), wake_count_, nullptr);
  while (!to_queue_.empty() && enqueue(*to_queue_.back())) to_queue_.pop_back();
  while (to_queue_.empty() && !idle_.empty() && !waiting_.empty()) {
    NvmeCommand* command = idle_.back();
    idle_.pop_back();
    command->begin(*waiting_.pop());
    if (!enqueue(*command)) to_queue_.push_back(command);
  }
}

void NvmeCopyThread::reap() {
  uint32_t count = ring_->reap(completions_);
  for (uint32_t i = 0; i < count; i++) {
    auto* command = static_cast<NvmeCommand*>(completions_[i].tag);
    if (command == nullptr) {
      wake_armed_ = false;
    } else if (!command->finish(completions_[i])) {
      to_queue_.push_back(command);
    } else {
      finished_.push_back(&command->request());
      idle_.push_back(command);
    }
  }
  if (finished_.empty()) return;
  {
    std::lock_guard lock(mutex_);
    asleep_ = false;  // what the core submits meanwhile is seen without a wake-up
  }
  sink_.finished(finished_);
  finished_.clear();
}

}  // namespace cofs
