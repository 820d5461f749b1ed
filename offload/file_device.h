// FileDevice: the production Device, on an image file or a block device, by O_DIRECT where it can
// be had.
//
// submit() only collects. The thread that collected a batch dispatches it after it left the
// monitor: one small request with no company is done in place (inline), all others go to permanent
// threads: reads and writes to threads that own a ring, flushes, discards and clones to workers. A thread that lends
// its ring keeps its reads and writes.
// See docs/ARCHITECTURE.md.
//
// Invariants. A request is in one list or one thread's hands; in_flight_ counts those whose waiter
// was not posted, foreground_ those of them that an inline request would make wait (reads, writes,
// flushes). A waiter may destroy the device: so the destructor joins the permanent threads, and
// waits for the others, which count as dispatching_ until they touch the device no more.
#pragma once

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "offload/completion_poller.h"
#include "offload/device_copier.h"
#include "offload/lent_ring.h"
#include "offload/monitor.h"
#include "offload/request_list.h"
#include "offload/ring_thread.h"
#include "offload/target.h"
#include "offload/uring.h"
#include "offload/worker_threads.h"

namespace cofs {

struct FileDeviceOptions {
  bool direct = true;        // O_DIRECT; without it the host's page cache holds all data once more
  bool inline_io = true;     // reads and writes in place when alone
  bool inline_flush = true;  // the same for flushes
  bool busy_poll = true;     // for a durable write to a block device, while it pays
  bool register_memory = true;  // the buffer pool's arena with the rings; pins all of it
  uint32_t ring_threads = 2;    // the second takes over while the first runs the core
  uint32_t ring_entries = 256;  // a power of two
};

struct FileDeviceCounters {
  uint64_t inline_requests = 0;  // done by the thread that left the core
  uint64_t handed_over = 0;      // done by a permanent thread
  uint64_t polled = 0;           // whose end was found without sleeping
};

class FileDevice final : public Device, private RequestSink {
 public:
  // The journal must take lines from any thread. `target` must be open for writing if anything is
  // to be written. What cannot be had (O_DIRECT, io_uring, registered memory) is replaced, with a
  // journal line. Errors: kInvalid, kNotSupported (see geometry_of), kIo.
  static Result<std::unique_ptr<FileDevice>> open(OpenedTarget target, Monitor& monitor,
                                                  BufferPool& buffers, Journal& journal,
                                                  const FileDeviceOptions& options);
  // REQUIRES: no request is in flight; not called by one of the device's threads, inside the core,
  // or by a Deferred.
  ~FileDevice() override;

  const DeviceGeometry& geometry() const override { return geometry_; }
  void submit(IoRequest& request) override;

  // Reads and writes that the calling thread collects go into `ring`, of which it has the use; `file` is the index of a
  // registered file that may be set there. The error is an errno.
  std::expected<std::unique_ptr<LentRing>, int> lend(io_uring& ring, uint32_t file);
  // The same with a ring that is made for the calling thread, for a while: buffers' memory is not registered with it.
  std::expected<std::unique_ptr<LentRing>, int> lend_new();
  // Accounts for what a lent ring finished, and adds who waits for it to `waiters`; the caller posts them.
  void take_finished(LentRing& ring, std::vector<std::coroutine_handle<>>& waiters);

  OpenedTarget& target() { return target_; }
  FileDeviceCounters counters() const;

 private:
  // What one thread collected in one stay in the monitor; frees itself.
  class Batch;
  // Larger I/O takes long enough for the way through a thread not to matter.
  static constexpr uint64_t kInlineBlocksMax = blocks_of_bytes(128 * 1024);
  // After company was seen, this many requests are not done inline.
  static constexpr int32_t kBurstRequests = 32;
  // As many failures are told one by one; the counters of the store go on.
  static constexpr uint32_t kFailureLinesMax = 20;
  static constexpr uint32_t kSubstituteWorkers = 8;  // in place of the rings

  FileDevice(OpenedTarget target, Monitor& monitor, Journal& journal,
             const FileDeviceOptions& options);
  void enable_direct_io(BufferPool& buffers);
  void start_threads(std::span<std::byte> memory);
  void find_copiers();

  void dispatch(RequestList requests, uint32_t count);
  Result<> check(const IoRequest& request) const;
  bool may_be_inline(const IoRequest& request);
  void serve_inline(IoRequest& request);
  void submit_transfers(RequestList& transfers);
  void serve_transfer(IoRequest& request);
  void serve_by_ring_in_place(IoRequest& request);
  void serve_flush(IoRequest& request);
  void serve_discard(IoRequest& request);

  void finish(IoRequest& request);
  void account_for(std::span<IoRequest* const> requests);
  void finished(std::span<IoRequest* const> requests) override;
  void transfer_failed(const IoRequest& request, int error_number) override;
  void report_failure(const char* what, uint64_t block, int error_number);

  OpenedTarget target_;
  Monitor& monitor_;
  Journal& journal_;
  const FileDeviceOptions options_;
  DeviceGeometry geometry_;
  const bool polls_;  // see CompletionPoller

  // Inside the core.
  Batch* batch_ = nullptr;  // valid while batch_entry_ is the monitor's
  uint64_t batch_entry_ = 0;

  std::atomic<uint32_t> in_flight_{0};
  std::atomic<uint32_t> foreground_{0};
  std::atomic<uint32_t> dispatching_{0};
  std::atomic<int32_t> burst_left_{0};
  std::atomic<bool> discard_refused_{false};
  std::atomic<uint32_t> failures_{0};
  std::atomic<uint64_t> inline_requests_{0};
  std::atomic<uint64_t> handed_over_{0};
  std::atomic<uint64_t> polled_{0};

  std::vector<std::unique_ptr<DeviceCopier>> copiers_;  // in the order of geometry_.copies
  std::unique_ptr<WorkerThreads> flusher_;
  std::unique_ptr<WorkerThreads> discarder_;
  std::unique_ptr<WorkerThreads> substitutes_;  // only where there is no io_uring
  std::span<std::byte> memory_;                 // to be registered with rings
  std::vector<std::unique_ptr<RingThread>> ring_threads_;
  // For durable writes to block devices that are done in place; null: none are.
  std::mutex in_place_mutex_;
  // Used by the holder of in_place_mutex_:
  std::unique_ptr<Ring> in_place_ring_;
  CompletionPoller in_place_poller_;
};

}  // namespace cofs
