#include "fs/fuse_request_gatherer.h"

#include <array>
#include <cstdint>
#include <utility>

#include "fs/fuse_queues.h"
#include "offload/file_device.h"
#include "offload/uring.h"

namespace cofs {

namespace {

constexpr uint32_t kTurnsPerBatch = 4;   // requests that enter the core together
constexpr uint32_t kTurnsPerSubmit = 6;  // after which the device begins, whether there are more requests or not

class RingGatherer final : public RequestPoller::Gatherer {
 public:
  RingGatherer(Monitor& monitor, FileDevice& device, std::unique_ptr<LentRing> lent)
      : thread_(monitor, device, std::move(lent)), ring_(thread_.ring()) {}

  // What submitting says does not matter: entries that the kernel did not take stay queued for the next time.
  ~RingGatherer() override {
    for (thread_.end_batch(); !thread_.may_end(); thread_.end_batch()) {
      ring_.submit(true);
      reap();
    }
  }

  void turn() override {
    turns_++;
    if (turns_ % kTurnsPerSubmit == 0) {
      ring_.submit(false);
      reap();
    }
    if (turns_ % kTurnsPerBatch == 0) thread_.end_batch();
  }

  void wait(int fd) override {
    thread_.end_batch();
    if (!is_watching_) is_watching_ = ring_.watch(fd, nullptr);
    // Not for good: who ends the thread waits for this.
    ring_.submit_for(RequestPoller::kGatherNap);
    reap();
    thread_.end_batch();
  }

 private:
  void reap() {
    std::array<RingCompletion, 64> completions;
    uint32_t count = 0;
    do {
      count = ring_.reap(completions);
      for (uint32_t i = 0; i < count; i++) {
        if (completions[i].tag != nullptr) {
          thread_.completed(completions[i].tag, completions[i].outcome);
        } else {
          is_watching_ = false;
        }
      }
    } while (count == completions.size());
  }

  FuseQueueThread thread_;
  Ring& ring_;
  bool is_watching_ = false;  // the ring has an entry that ends when a request comes
  uint32_t turns_ = 0;
};

}  // namespace

std::unique_ptr<RequestPoller::Gatherer> make_request_gatherer(Monitor& monitor, FileDevice& device) {
  auto lent = device.lend_new();
  if (!lent) return nullptr;
  return std::make_unique<RingGatherer>(monitor, device, std::move(*lent));
}

}  // namespace cofs
