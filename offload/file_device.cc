#include "offload/file_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "offload/base/cpus.h"
#include "offload/copier_probe.h"
#include "offload/target_geometry.h"
#include "offload/transfer.h"

namespace cofs {

class FileDevice::Batch final : public Deferred {
 public:
  explicit Batch(FileDevice& device) : device_(device) {}
  void run() override {
    FileDevice& device = device_;
    RequestList requests = requests_;
    uint32_t count = count_;
    delete this;
    device.dispatching_.fetch_add(1,
                                  std::memory_order_relaxed);  // the device lives: see in_flight_
    device.dispatch(requests, count);
    device.dispatching_.fetch_sub(1, std::memory_order_release);
  }
  void add(IoRequest& request) {
    requests_.push(request);
    count_++;
  }

 private:
  ~Batch() = default;
  FileDevice& device_;
  RequestList requests_;
  uint32_t count_ = 0;
};

namespace {

bool is_foreground(const IoRequest& request) {
  return request.op != IoRequest::Op::kDiscard && request.op != IoRequest::Op::kCopy;
}

}  // namespace

Result<std::unique_ptr<FileDevice>> FileDevice::open(OpenedTarget target, Monitor& monitor,
                                                     BufferPool& buffers, Journal& journal,
                                                     const FileDeviceOptions& options) {
  Result<DeviceGeometry> geometry = geometry_of(target);
  COFS_TRY(geometry);
  std::unique_ptr<FileDevice> device(new FileDevice(std::move(target), monitor, journal, options));
  device->geometry_ = std::move(*geometry);
  if (options.direct) device->enable_direct_io(buffers);
  device->start_threads(options.register_memory ? buffers.arena() : std::span<std::byte>());
  device->find_copiers();
  return device;
}

FileDevice::FileDevice(OpenedTarget target, Monitor& monitor, Journal& journal,
                       const FileDeviceOptions& options)
    : target_(std::move(target)),
      monitor_(monitor),
      journal_(journal),
      options_(options),
      polls_(options.busy_poll && usable_cpus() > 1),
      in_place_poller_(polls_, polled_) {}

FileDevice::~FileDevice() {
  while (dispatching_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  // Each of these waits for what it still has; only then is the count final.
  ring_threads_.clear();
  substitutes_.reset();
  flusher_.reset();
  discarder_.reset();
  copiers_.clear();
  COFS_ASSERT(in_flight_.load() == 0);
}

void FileDevice::enable_direct_io(BufferPool& buffers) {
  int fd = target_.fd();
  int flags = fcntl(fd, F_GETFL);
  int error = 0;
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) {
    error = errno;
  } else {
    // Some filesystems take the flag and refuse the I/O. Other errors show when the block is
    // needed.
    BufferRef buffer = buffers.allocate(1);
    if (pread(fd, buffer->data(), kBlockBytes, 0) < 0 && errno == EINVAL) {
      error = EINVAL;
      fcntl(fd, F_SETFL, flags);
    }
  }
  if (error == 0) return;
  journal_.write(Severity::kWarning,
                 fmt::format("{}: the host refuses O_DIRECT ({}): I/O goes through its page cache",
                             geometry_.name, std::strerror(error)));
}

void FileDevice::start_threads(std::span<std::byte> memory) {
  flusher_ = std::make_unique<WorkerThreads>("cofs-flush", 1,
                                             [this](IoRequest& request) { serve_flush(request); });
  discarder_ = std::make_unique<WorkerThreads>(
      "cofs-discard", 1, [this](IoRequest& request) { serve_discard(request); });
  RingThreadOptions ring_options;
  ring_options.entries = options_.ring_entries;
  ring_options.memory = memory;
  memory_ = memory;
  ring_options.held_fd = target_.lock_fd();
  for (uint32_t i = 0; i < options_.ring_threads; i++) {
    auto thread = RingThread::start(target_.fd(), *this, ring_options);
    if (!thread) {
      journal_.write(Severity::kWarning,
                     fmt::format("{}: cannot have an io_uring ({})", geometry_.name,
                                 std::strerror(thread.error())));
      break;
    }
    int error = (*thread)->registration_error();
    if (error != 0) {
      ring_options.memory = memory_ = {};
      journal_.write(
          Severity::kInfo,
          fmt::format("{}: buffers are not registered with io_uring ({}{})", geometry_.name,
                      std::strerror(error), error == ENOMEM ? ": raise the memlock limit" : ""));
    }
    ring_threads_.push_back(std::move(*thread));
  }
  if (!ring_threads_.empty()) {
    // Not having it is told by nothing: durable writes then go to the threads, and nothing is polled for.
    if (geometry_.is_block_device) {
      in_place_ring_ = Ring::create_in_turns(1, target_.lock_fd()).value_or(nullptr);
    }
    return;
  }
  journal_.write(Severity::kWarning, fmt::format("{}: reading and writing by {} blocking threads",
                                                 geometry_.name, kSubstituteWorkers));
  substitutes_ = std::make_unique<WorkerThreads>(
      "cofs-io", kSubstituteWorkers, [this](IoRequest& request) { serve_transfer(request); });
}

void FileDevice::find_copiers() {
  ProbedCopiers probed = probe_copiers(target_, geometry_.block_count, *this);
  for (ProbedCopiers::Offer& offer : probed.offers) {
    CopyLimits& limits = geometry_.copies.emplace_back(offer.copier->limits());
    limits.automatic = offer.automatic;
    copiers_.push_back(std::move(offer.copier));
  }
  geometry_.copy_refusals = std::move(probed.refusals);
}

std::expected<std::unique_ptr<LentRing>, int> FileDevice::lend(io_uring& ring, uint32_t file) {
  auto borrowed = Ring::borrow(ring, target_.lock_fd(), file);
  if (!borrowed) return std::unexpected(borrowed.error());
  (*borrowed)->register_memory(memory_);  // what the others were refused is in the journal already
  RequestSink& sink = *this;
  return std::make_unique<LentRing>(std::move(*borrowed), target_.fd(), sink,
                                    CompletionPoller(polls_ && geometry_.is_block_device, polled_));
}

std::expected<std::unique_ptr<LentRing>, int> FileDevice::lend_new() {
  auto ring = Ring::create(LentRing::kEntries, target_.lock_fd());
  if (!ring) return std::unexpected(ring.error());
  RequestSink& sink = *this;
  return std::make_unique<LentRing>(std::move(*ring), target_.fd(), sink, CompletionPoller(false, polled_));
}

void FileDevice::take_finished(LentRing& ring, std::vector<std::coroutine_handle<>>& waiters) {
  std::vector<IoRequest*>& requests = ring.finished();
  if (requests.empty()) return;
  account_for(requests);
  for (const IoRequest* request : requests) waiters.push_back(request->waiter);
  requests.clear();
}

FileDeviceCounters FileDevice::counters() const {
  FileDeviceCounters counters;
  counters.inline_requests = inline_requests_.load(std::memory_order_relaxed);
  counters.handed_over = handed_over_.load(std::memory_order_relaxed);
  counters.polled = polled_.load(std::memory_order_relaxed);
  return counters;
}

void FileDevice::submit(IoRequest& request) {
  COFS_ASSERT(monitor_.inside());
  if (discard_refused_.load(std::memory_order_relaxed)) geometry_.can_discard = false;
  in_flight_.fetch_add(1, std::memory_order_relaxed);
  if (is_foreground(request)) foreground_.fetch_add(1, std::memory_order_relaxed);
  if (batch_ == nullptr || batch_entry_ != monitor_.entry()) {
    batch_ = new Batch(*this);
    batch_entry_ = monitor_.entry();
    monitor_.defer(*batch_);
  }
  batch_->add(request);
}

void FileDevice::dispatch(RequestList requests, uint32_t count) {
  bool alone = count == 1 && may_be_inline(*requests.head);
  RequestList transfers;
  while (IoRequest* request = requests.pop()) {
    request->in_batch = count > 1;
    request->result = check(*request);
    if (!request->result) {
      finish(*request);
      continue;
    }
    if (alone) {
      inline_requests_.fetch_add(1, std::memory_order_relaxed);
      serve_inline(*request);
      return;
    }
    handed_over_.fetch_add(1, std::memory_order_relaxed);
    switch (request->op) {
      case IoRequest::Op::kRead:
      case IoRequest::Op::kWrite: transfers.push(*request); break;
      case IoRequest::Op::kFlush: flusher_->submit(*request); break;
      case IoRequest::Op::kDiscard: discarder_->submit(*request); break;
      case IoRequest::Op::kCopy: copiers_[request->copy_index]->start(*request); break;
    }
  }
  submit_transfers(transfers);
}

Result<> FileDevice::check(const IoRequest& request) const {
  if (request.op == IoRequest::Op::kFlush) return {};
  auto on_device = [this](const BlockRange& range) {
    return range.count > 0 && range.start < geometry_.block_count &&
           range.count <= geometry_.block_count - range.start;
  };
  if (!on_device(request.range)) {
    return fail(Code::kInvalid, "range is not on the device", request.range.start);
  }
  if (request.op != IoRequest::Op::kRead && target_.read_only()) {
    return fail(Code::kReadOnly, "target is opened read-only", request.range.start);
  }
  if (request.op != IoRequest::Op::kCopy) return {};
  uint64_t blocks = 0;
  for (const BlockRange& source : request.sources) {
    if (!on_device(source)) {
      return fail(Code::kInvalid, "copy source is not on the device", source.start);
    }
    blocks += source.count;
  }
  COFS_ASSERT(blocks == request.range.count);
  if (request.copy_index >= copiers_.size()) {
    return fail(Code::kNotSupported, "device does not offer this way of copying",
                request.range.start);
  }
  return {};
}

bool FileDevice::may_be_inline(const IoRequest& request) {
  bool may_block = !request.durable || (options_.inline_flush && (!geometry_.is_block_device || in_place_ring_));
  bool small_transfer =
      (request.op == IoRequest::Op::kRead || request.op == IoRequest::Op::kWrite) &&
      request.range.count <= kInlineBlocksMax && options_.inline_io && may_block;
  bool flush = request.op == IoRequest::Op::kFlush && options_.inline_flush;
  if (!small_transfer && !flush) return false;
  int32_t burst = burst_left_.load(std::memory_order_relaxed);
  if (burst > 0) {
    burst_left_.store(burst - 1, std::memory_order_relaxed);  // lost updates only prolong it
    return false;
  }
  return foreground_.load(std::memory_order_relaxed) == 1 && monitor_.acting_alone();
}

void FileDevice::serve_inline(IoRequest& request) {
  if (request.op == IoRequest::Op::kFlush) {
    serve_flush(request);
    return;
  }
  // A blocking call that makes its write durable flushes a block device once more after it, an asynchronous one doesn't (Linux 6.18,
  // blkdev_write_iter).
  if (request.durable && geometry_.is_block_device) {
    serve_by_ring_in_place(request);
  } else {
    serve_transfer(request);
  }
}

void FileDevice::serve_by_ring_in_place(IoRequest& request) {
  Transfer transfer;
  transfer.begin(request);
  {
    std::lock_guard lock(in_place_mutex_);
    const auto began = CompletionPoller::Clock::now();
    const auto poll_until = in_place_poller_.begin(began);
    RingCompletion completion;
    do {
      const bool queued = transfer.queue(*in_place_ring_, target_.fd());
      COFS_ASSERT(queued);  // whoever has the ring leaves it empty
      if (poll_until > began) in_place_ring_->poll(poll_until);
      while (in_place_ring_->reap({&completion, 1}) == 0) {
        int outcome = in_place_ring_->submit(true);
        // ENOMEM: the kernel needs memory for each thread that uses a ring. The write stays queued.
        COFS_ASSERT(outcome == 0 || outcome == EINTR || outcome == EAGAIN || outcome == EBUSY || outcome == ENOMEM);
      }
    } while (!transfer.advance(completion.outcome));
    in_place_poller_.end(CompletionPoller::Clock::now());
  }
  if (!request.result) transfer_failed(request, transfer.error_number());
  finish(request);
}

void FileDevice::serve_transfer(IoRequest& request) {
  thread_local Transfer transfer;
  transfer.begin(request);
  transfer.run(target_.fd());
  if (!request.result) transfer_failed(request, transfer.error_number());
  finish(request);
}

void FileDevice::submit_transfers(RequestList& transfers) {
  if (transfers.empty()) return;
  if (TransferQueue* own = TransferQueue::of_this_thread(); own != nullptr) {
    own->add(transfers);
    return;
  }
  if (substitutes_) {
    while (IoRequest* request = transfers.pop()) substitutes_->submit(*request);
    return;
  }
  RingThread* chosen = nullptr;
  for (const auto& thread : ring_threads_) {
    if (chosen == nullptr && !thread->busy()) chosen = thread.get();
  }
  if (chosen == nullptr) chosen = ring_threads_.front().get();
  chosen->submit(transfers);
}

void FileDevice::serve_flush(IoRequest& request) {
  while (fdatasync(target_.fd()) != 0) {
    if (errno == EINTR) continue;
    int error = errno;
    report_failure("flush", 0, error);
    request.result = fail(io_code_of_errno(error), "device flush failed");
    break;
  }
  finish(request);
}

void FileDevice::serve_discard(IoRequest& request) {
  uint64_t start = bytes_of_blocks(request.range.start);
  uint64_t bytes = bytes_of_blocks(request.range.count);
  auto once = [&] {
    if (!target_.is_block_device()) {
      return fallocate(target_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(start), static_cast<off_t>(bytes));
    }
    std::array<uint64_t, 2> range{start, bytes};
    return ioctl(target_.fd(), BLKDISCARD, range.data());
  };
  int error = 0;
  while (once() != 0) {
    error = errno;
    if (error != EINTR) break;
    error = 0;
  }
  if (error == EOPNOTSUPP || error == ENOTTY || error == ENOSYS) {
    // A discard is advice: nothing is lost.
    if (!discard_refused_.exchange(true)) {
      journal_.write(Severity::kInfo, fmt::format("{}: cannot discard", geometry_.name));
    }
  } else if (error != 0) {
    report_failure("discard", request.range.start, error);
    request.result = fail(io_code_of_errno(error), "device discard failed", request.range.start);
  }
  finish(request);
}

void FileDevice::finish(IoRequest& request) {
  IoRequest* done = &request;
  finished({&done, 1});
}

void FileDevice::account_for(std::span<IoRequest* const> requests) {
  auto ended = static_cast<uint32_t>(std::ranges::count_if(
      requests, [](const IoRequest* request) { return is_foreground(*request); }));
  // Company at the end of a request that had come by itself: the next ones come in a burst, and are better done together. (What
  // came together is of one program, which goes on with single ones when all have ended, as SQLite does with its log.)
  const auto came_alone = [](const IoRequest* request) { return is_foreground(*request) && !request->in_batch; };
  if (ended > 0 && foreground_.fetch_sub(ended, std::memory_order_relaxed) > ended &&
      std::ranges::any_of(requests, came_alone)) {
    burst_left_.store(kBurstRequests, std::memory_order_relaxed);
  }
  in_flight_.fetch_sub(static_cast<uint32_t>(requests.size()), std::memory_order_release);
}

void FileDevice::finished(std::span<IoRequest* const> requests) {
  const size_t count = requests.size();
  Monitor& monitor = monitor_;
  account_for(requests);
  if (count == 1) {
    monitor.post(requests.front()->waiter);
    return;
  }
  std::vector<std::coroutine_handle<>> waiters;
  waiters.reserve(count);
  for (const IoRequest* request : requests) waiters.push_back(request->waiter);
  monitor.post_batch(waiters);
}

void FileDevice::transfer_failed(const IoRequest& request, int error_number) {
  report_failure(request.op == IoRequest::Op::kWrite ? "write" : "read",
                 request.result.error().where, error_number);
}

void FileDevice::report_failure(const char* what, uint64_t block, int error_number) {
  uint32_t before = failures_.fetch_add(1, std::memory_order_relaxed);
  if (before >= kFailureLinesMax) return;
  journal_.write(
      Severity::kError,
      fmt::format("{}: {} failed at block {}: {}{}", geometry_.name, what, block,
                  error_number == 0 ? "the target ended early" : std::strerror(error_number),
                  before + 1 == kFailureLinesMax ? " (further failures are not told)" : ""));
}

}  // namespace cofs
