// Memory for coroutine frames, which come and go by the dozen with each request: often made by one thread and freed by
// another, for which a general allocator takes locks.
//
// Each thread keeps some free frames of each size. What it has beyond goes to a depot that all share, many at a time, and comes from
// there to threads that run out. Frames stay with the pool until the process ends, but for very large ones and those
// that the depot has no room for. Under sanitizers all frames come from and go to the heap, so that they are watched there.
// Not for: anything but frames (offload/base/task.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace cofs {

// The size in bytes that a frame was allocated with is to be given when it is freed, by any thread.
void* allocate_frame(size_t bytes);
void free_frame(void* frame, size_t bytes) noexcept;

namespace frame_pool_detail {

struct FreeFrame {
  FreeFrame* next;
};
struct Chain {
  FreeFrame* head;
  uint32_t count;
};

constexpr size_t kGrainBytes = 64;
constexpr size_t kSizes = 32;         // 64 bytes to 2 KiB
constexpr uint32_t kKeptByThread = 64;  // of each size

constexpr size_t size_index(size_t bytes) { return (bytes - 1) / kGrainBytes; }

// Without a constructor, so that access to it needs no check.
struct Cache {
  Chain chains[kSizes];
  bool is_closed;  // the thread ends
};
extern constinit thread_local Cache cache;

void* refill(size_t index);
void spill(size_t index) noexcept;

}  // namespace frame_pool_detail

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline void* allocate_frame(size_t bytes) { return ::operator new(bytes); }
inline void free_frame(void* frame, size_t bytes) noexcept { ::operator delete(frame, bytes); }
#else
inline void* allocate_frame(size_t bytes) {
  namespace detail = frame_pool_detail;
  const size_t index = detail::size_index(bytes);
  if (index >= detail::kSizes) return ::operator new(bytes);
  detail::Chain& chain = detail::cache.chains[index];
  if (chain.head == nullptr) return detail::refill(index);
  detail::FreeFrame* frame = chain.head;
  chain.head = frame->next;
  chain.count--;
  return frame;
}

inline void free_frame(void* frame, size_t bytes) noexcept {
  namespace detail = frame_pool_detail;
  const size_t index = detail::size_index(bytes);
  if (index >= detail::kSizes) return ::operator delete(frame, bytes);
  detail::Chain& chain = detail::cache.chains[index];
  chain.head = new (frame) detail::FreeFrame{chain.head};
  if (++chain.count > detail::kKeptByThread || detail::cache.is_closed) detail::spill(index);
}
#endif

}  // namespace cofs
