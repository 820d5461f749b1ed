// Memory for device I/O: block-aligned, reference-counted buffers out of one long-lived arena that a
// device can register with io_uring once.
//
// A Buffer is written by whoever holds the only reference, or read by all. Reference counts are
// atomic: buffers are filled by FUSE threads, kept by the core, and read by I/O threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "offload/base/units.h"

namespace cofs {

class BufferPool;

class Buffer {
 public:
  std::byte* data() const { return data_; }
  uint32_t block_count() const { return blocks_; }
  std::byte* block(uint32_t index) const { return data_ + uint64_t{index} * kBlockBytes; }
  std::span<std::byte> bytes() const { return {data_, uint64_t{blocks_} * kBlockBytes}; }

 private:
  friend class BufferPool;
  friend class BufferRef;
  std::byte* data_ = nullptr;
  uint32_t blocks_ = 0;      // capacity of the size class
  uint8_t size_class_ = 0;
  bool in_arena_ = false;
  std::atomic<uint32_t> references_{0};
  BufferPool* pool_ = nullptr;
};

class BufferRef {
 public:
  BufferRef() = default;
  explicit BufferRef(Buffer* buffer) : buffer_(buffer) {
    if (buffer_ != nullptr) buffer_->references_.fetch_add(1, std::memory_order_relaxed);
  }
  BufferRef(const BufferRef& other) : BufferRef(other.buffer_) {}
  BufferRef(BufferRef&& other) noexcept : buffer_(other.buffer_) { other.buffer_ = nullptr; }
  BufferRef& operator=(BufferRef other) noexcept {
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~BufferRef() { reset(); }
  void reset();

  Buffer* operator->() const { return buffer_; }
  Buffer* get() const { return buffer_; }
  explicit operator bool() const { return buffer_ != nullptr; }
  // True when nobody else can see the buffer, so that it may be written.
  bool unique() const { return buffer_->references_.load(std::memory_order_acquire) == 1; }

 private:
  Buffer* buffer_ = nullptr;
};

// Thread-safe. Buffers come in size classes of 1, 2, 4, … 512 blocks; recently used ones first, so that
// their pages are warm. Beyond the arena, memory comes from the heap (unregistered).
class BufferPool {
 public:
  static constexpr uint32_t kBufferBlocksMax = 512;  // 2 MiB

  // `arena_bytes` of address space are reserved at once, touched only when used.
  explicit BufferPool(uint64_t arena_bytes);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;

  // A buffer of at least `blocks` blocks, 1 <= blocks <= kBufferBlocksMax. Contents are arbitrary.
  BufferRef allocate(uint32_t blocks);

  std::span<std::byte> arena() const { return {arena_, arena_bytes_}; }
  uint64_t bytes_in_use() const { return in_use_.load(std::memory_order_relaxed); }

 private:
  friend class BufferRef;
  static constexpr int kClasses = 10;
  void release(Buffer* buffer);

  std::byte* arena_ = nullptr;
  uint64_t arena_bytes_ = 0;
  uint64_t arena_used_ = 0;
  std::mutex mutex_;
  std::vector<Buffer*> free_[kClasses];
  std::vector<Buffer*> all_;
  std::atomic<uint64_t> in_use_{0};
};

}  // namespace cofs
