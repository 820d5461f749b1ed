#include "fs/fuse_queues.h"

#include <algorithm>
#include <thread>

#include "fs/fuse_ops.h"
#include "offload/file_device.h"

#ifdef COFS_LIBFUSE_RING
#include <cofs_ring.h>
#endif

namespace cofs {

namespace {

constexpr uint32_t kDepthMin = 8;
constexpr uint32_t kDepthMax = 32;
// What all queues together may take at most (beyond the least depth), a request of a mebibyte each.
constexpr uint32_t kRequestsMax = 512;

}  // namespace

thread_local FuseQueueThread* FuseQueueThread::current_thread = nullptr;

FuseQueueThread::FuseQueueThread(Monitor& monitor, FileDevice& device, std::unique_ptr<LentRing> ring)
    : monitor_(monitor), device_(device), ring_(std::move(ring)) {
  current_thread = this;
}

FuseQueueThread::~FuseQueueThread() { current_thread = nullptr; }

void FuseQueueThread::end_batch() {
  device_.take_finished(*ring_, batch_);
  monitor_.post_batch(batch_);
  batch_.clear();
  ring_->fill();
}

bool FuseQueueThread::may_end() {
  return ring_->close();
}

uint32_t FuseQueues::depth() {
  const uint32_t queues = std::max(1U, std::thread::hardware_concurrency());
  return std::clamp(kRequestsMax / queues, kDepthMin, kDepthMax);
}

#ifdef COFS_LIBFUSE_RING

struct FuseQueues::Guest {
  cofs_ring_guest calls{};
};

bool FuseQueues::are_ours() { return true; }

FuseQueues::FuseQueues(FuseServer& server) : server_(server), guest_(std::make_unique<Guest>()) {
  cofs_ring_guest& calls = guest_->calls;
  calls.context = &server;
  calls.thread_started = [](void* context, unsigned, io_uring* ring, unsigned spare_file) -> void* {
    FuseServer& served = *static_cast<FuseServer*>(context);
    FileDevice& device = *served.options().device;
    auto lent = device.lend(*ring, spare_file);
    if (!lent) return nullptr;
    return new FuseQueueThread(served.monitor(), device, std::move(*lent));
  };
  calls.completed = [](void* thread, void* tag, int outcome) {
    static_cast<FuseQueueThread*>(thread)->completed(tag, outcome);
  };
  calls.batch_ended = [](void* thread) { static_cast<FuseQueueThread*>(thread)->end_batch(); };
  calls.before_sleep = [](void* thread) { static_cast<FuseQueueThread*>(thread)->before_sleep(); };
  calls.may_end = [](void* thread) { return static_cast<FuseQueueThread*>(thread)->may_end() ? 1 : 0; };
  calls.thread_ends = [](void* thread) { delete static_cast<FuseQueueThread*>(thread); };
  cofs_ring_set_guest(&calls);
}

FuseQueues::~FuseQueues() = default;

void FuseQueues::release() { cofs_ring_release(server_.session()); }

#else

struct FuseQueues::Guest {};

bool FuseQueues::are_ours() { return false; }
FuseQueues::FuseQueues(FuseServer& server) : server_(server) {}
FuseQueues::~FuseQueues() = default;
void FuseQueues::release() { (void)server_; }

#endif

}  // namespace cofs
