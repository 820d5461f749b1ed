#include "offload/base/buffer.h"

#include <sys/mman.h>

#include <bit>
#include <cstdlib>

#include "offload/base/error.h"

namespace cofs {

void BufferRef::reset() {
  Buffer* buffer = buffer_;
  buffer_ = nullptr;
  if (buffer == nullptr) return;
  if (buffer->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    buffer->pool_->release(buffer);
  }
}

BufferPool::BufferPool(uint64_t arena_bytes) {
  if (arena_bytes == 0) return;
  void* memory = mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;  // everything then comes from the heap
  arena_ = static_cast<std::byte*>(memory);
  arena_bytes_ = arena_bytes;
}

BufferPool::~BufferPool() {
  COFS_ASSERT(bytes_in_use() == 0);
  for (Buffer* buffer : all_) {
    if (!buffer->in_arena_) std::free(buffer->data_);
    delete buffer;
  }
  if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

BufferRef BufferPool::allocate(uint32_t blocks) {
  COFS_ASSERT(blocks >= 1 && blocks <= kBufferBlocksMax);
  const uint32_t size_class = static_cast<uint32_t>(std::bit_width(blocks - 1));
  const uint32_t capacity = 1U << size_class;
  const uint64_t bytes = uint64_t{capacity} * kBlockBytes;
  in_use_.fetch_add(bytes, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  if (!free_[size_class].empty()) {
    Buffer* buffer = free_[size_class].back();
    free_[size_class].pop_back();
    return BufferRef(buffer);
  }
  auto* buffer = new Buffer;
  buffer->blocks_ = capacity;
  buffer->size_class_ = static_cast<uint8_t>(size_class);
  buffer->pool_ = this;
  if (arena_used_ + bytes <= arena_bytes_) {
    buffer->data_ = arena_ + arena_used_;
    buffer->in_arena_ = true;
    arena_used_ += bytes;
  } else {
    buffer->data_ = static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, bytes));
    COFS_ASSERT(buffer->data_ != nullptr);
  }
  all_.push_back(buffer);
  return BufferRef(buffer);
}

void BufferPool::release(Buffer* buffer) {
  in_use_.fetch_sub(uint64_t{buffer->blocks_} * kBlockBytes, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  free_[buffer->size_class_].push_back(buffer);
}

}  // namespace cofs
