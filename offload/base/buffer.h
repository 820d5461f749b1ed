// Memory for device I/O: block-aligned, reference-counted buffers out of one long-lived arena that a
// device can register with io_uring once, and out of further regions where that is not enough.
//
// A Buffer is written by whoever holds the only reference, or read by all. Reference counts are
// atomic: buffers are filled by FUSE threads, kept by the core, and read by I/O threads.
//
// Memory is not bound to a size: regions are halved down to what is asked for, and what is given back is joined
// with its other half (a buddy allocator). So the pool takes about what was in use at once, whatever sizes that
// had, and not the sum of what each size ever needed; regions beyond the arena go back to the kernel.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
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
  uint32_t place_ = 0;       // the pool's number of its first block
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
// their pages are warm. Beyond the arena, memory is unregistered.
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
  // The arena, and what was taken beside it.
  uint64_t bytes_held() const { return held_.load(std::memory_order_relaxed); }
  // Asserts that free and used blocks are accounted for, and that no two free halves lie side by side: for tests.
  void check_invariants();

 private:
  friend class BufferRef;
  static constexpr uint32_t kClasses = 10;
  static constexpr uint32_t kNone = UINT32_MAX;

  // At the first block of each free range; other blocks' are meaningless.
  struct Slot {
    uint32_t next = kNone;
    uint32_t previous = kNone;
    uint8_t free_class = kClasses;  // kClasses: it is not the start of a free range
  };
  // kBufferBlocksMax blocks, of which the arena's last region may have fewer.
  struct Region {
    std::byte* base = nullptr;
    uint32_t blocks = 0;
    bool in_arena = false;
    std::array<Slot, kBufferBlocksMax> slots;
  };
  using Lists = std::array<uint32_t, kClasses>;  // the first free range of each class

  void release(Buffer* buffer);
  void add_region(std::byte* base, uint32_t blocks, bool in_arena);
  bool grow();
  void give_up_quick();
  uint32_t take(Lists& lists, uint32_t size_class);
  std::byte* put(uint32_t place, uint32_t size_class);  // the address of a region to be unmapped, or null
  void link(uint32_t place, uint32_t size_class);
  void unlink(uint32_t place);
  Region& region_of(uint32_t place) { return *regions_[place / kBufferBlocksMax]; }
  Slot& slot(uint32_t place) { return region_of(place).slots[place % kBufferBlocksMax]; }
  Lists& lists_of(const Region& region) { return region.in_arena ? arena_free_ : heap_free_; }

  std::byte* arena_ = nullptr;
  uint64_t arena_bytes_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Region>> regions_;  // null: unmapped again
  std::vector<uint32_t> unused_regions_;          // numbers of those
  uint32_t spare_regions_ = 0;                    // beyond the arena, all free, kept for the next who asks
  Lists arena_free_;
  Lists heap_free_;
  std::array<std::vector<Buffer*>, kClasses> quick_;  // of the arena, as they were given back
  std::vector<Buffer*> blank_;                        // without memory
  std::atomic<uint64_t> in_use_{0};
  std::atomic<uint64_t> held_{0};
};

}  // namespace cofs
