#include "offload/base/frame_pool.h"

#include <array>
#include <mutex>
#include <utility>
#include <vector>

namespace cofs::frame_pool_detail {

namespace {

constexpr uint32_t kGivenAtOnce = kKeptByThread / 2;
constexpr size_t kDepotBytesMax = size_t{1} << 20;  // of each size

constexpr size_t frame_bytes(size_t index) { return (index + 1) * kGrainBytes; }

class Depot {
 public:
  // False: it is full.
  bool put(size_t index, Chain chain) {
    std::lock_guard lock(mutex_);
    std::vector<Chain>& chains = chains_[index];
    if ((chains.size() + 1) * kGivenAtOnce * frame_bytes(index) > kDepotBytesMax) return false;
    chains.push_back(chain);
    return true;
  }
  Chain take(size_t index) {
    std::lock_guard lock(mutex_);
    std::vector<Chain>& chains = chains_[index];
    if (chains.empty()) return {};
    const Chain chain = chains.back();
    chains.pop_back();
    return chain;
  }

 private:
  std::mutex mutex_;
  std::array<std::vector<Chain>, kSizes> chains_;
};

// Never destroyed: threads may end after main() does.
Depot& depot() {
  static Depot& only = *new Depot;
  return only;
}

void give(size_t index, Chain chain) noexcept {
  if (depot().put(index, chain)) return;
  while (chain.head != nullptr) {
    ::operator delete(std::exchange(chain.head, chain.head->next), frame_bytes(index));
  }
}

// Empties the cache when its thread ends.
struct Closer {
  ~Closer() {
    cache.is_closed = true;
    for (size_t i = 0; i < kSizes; i++) {
      if (cache.chains[i].head != nullptr) give(i, std::exchange(cache.chains[i], {}));
    }
  }
};

void close_at_end_of_thread() {
  thread_local Closer closer;
  static_cast<void>(closer);
}

}  // namespace

constinit thread_local Cache cache{};

void* refill(size_t index) {
  if (cache.is_closed) return ::operator new(frame_bytes(index));
  close_at_end_of_thread();
  Chain chain = depot().take(index);
  if (chain.head == nullptr) return ::operator new(frame_bytes(index));
  FreeFrame* frame = std::exchange(chain.head, chain.head->next);
  chain.count--;
  cache.chains[index] = chain;
  return frame;
}

void spill(size_t index) noexcept {
  close_at_end_of_thread();
  Chain& kept = cache.chains[index];
  Chain given{kept.head, 0};
  FreeFrame* last = nullptr;
  for (FreeFrame* frame = kept.head; frame != nullptr && given.count < kGivenAtOnce; frame = frame->next) {
    last = frame;
    given.count++;
  }
  kept.head = std::exchange(last->next, nullptr);
  kept.count -= given.count;
  give(index, given);
}

}  // namespace cofs::frame_pool_detail
