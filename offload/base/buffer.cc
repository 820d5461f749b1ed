#include "offload/base/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "offload/base/error.h"

namespace cofs {
namespace {

// Of each class so much stays as it is, neither joined nor split: what a busy size needs.
constexpr uint64_t kQuickBytesMax = 1ULL << 20;
constexpr uint32_t kSpareRegionsMax = 4;  // 8 MiB

constexpr uint64_t bytes_of_class(uint32_t size_class) { return uint64_t{kBlockBytes} << size_class; }
constexpr uint64_t kRegionBytes = uint64_t{BufferPool::kBufferBlocksMax} * kBlockBytes;

std::byte* map_memory(uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

}  // namespace

void BufferRef::reset() {
  Buffer* buffer = buffer_;
  buffer_ = nullptr;
  if (buffer == nullptr) return;
  if (buffer->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    buffer->pool_->release(buffer);
  }
}

BufferPool::BufferPool(uint64_t arena_bytes) {
  arena_free_.fill(kNone);
  heap_free_.fill(kNone);
  arena_bytes -= arena_bytes % kBlockBytes;
  if (arena_bytes == 0) return;
  arena_ = map_memory(arena_bytes);
  if (arena_ == nullptr) return;  // everything then comes from further regions
  arena_bytes_ = arena_bytes;
  // A fork would copy at once what the device has pinned, and libfuse forks for mount(8).
  madvise(arena_, arena_bytes, MADV_DONTFORK);
  for (uint64_t at = 0; at < arena_bytes; at += kRegionBytes) {
    const uint64_t bytes = std::min(arena_bytes - at, kRegionBytes);
    add_region(arena_ + at, static_cast<uint32_t>(bytes / kBlockBytes), true);
  }
}

BufferPool::~BufferPool() {
  COFS_ASSERT(bytes_in_use() == 0);
  give_up_quick();
  for (Buffer* buffer : blank_) delete buffer;
  for (const auto& region : regions_) {
    if (region != nullptr && !region->in_arena) munmap(region->base, kRegionBytes);
  }
  if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

// --- Regions: halving and joining -------------------------------------------------------------------

void BufferPool::add_region(std::byte* base, uint32_t blocks, bool in_arena) {
  auto region = std::make_unique<Region>();
  region->base = base;
  region->blocks = blocks;
  region->in_arena = in_arena;
  uint32_t number = static_cast<uint32_t>(regions_.size());
  if (unused_regions_.empty()) {
    regions_.push_back(std::move(region));
  } else {
    number = unused_regions_.back();
    unused_regions_.pop_back();
    regions_[number] = std::move(region);
  }
  held_.fetch_add(uint64_t{blocks} * kBlockBytes, std::memory_order_relaxed);
  // As large pieces as their places allow: of a whole region one.
  for (uint32_t at = 0; at < blocks;) {
    const auto aligned = static_cast<uint32_t>(at == 0 ? kClasses - 1 : std::countr_zero(at));
    const auto fits = static_cast<uint32_t>(std::bit_width(blocks - at) - 1);
    const uint32_t size_class = std::min(aligned, fits);
    link(number * kBufferBlocksMax + at, size_class);
    at += 1U << size_class;
  }
}

// One region more; false: there is no memory.
bool BufferPool::grow() {
  std::byte* base = map_memory(kRegionBytes);
  if (base == nullptr) return false;
  add_region(base, kBufferBlocksMax, false);
  spare_regions_++;
  return true;
}

void BufferPool::link(uint32_t place, uint32_t size_class) {
  uint32_t& first = lists_of(region_of(place))[size_class];
  Slot& here = slot(place);
  here.free_class = static_cast<uint8_t>(size_class);
  here.previous = kNone;
  here.next = first;
  if (first != kNone) slot(first).previous = place;
  first = place;
}

void BufferPool::unlink(uint32_t place) {
  Slot& here = slot(place);
  if (here.next != kNone) slot(here.next).previous = here.previous;
  if (here.previous != kNone) {
    slot(here.previous).next = here.next;
  } else {
    lists_of(region_of(place))[here.free_class] = here.next;
  }
  here.free_class = kClasses;
}

// A range of the class, from the smallest that is large enough; kNone: there is none.
uint32_t BufferPool::take(Lists& lists, uint32_t size_class) {
  uint32_t from = size_class;
  while (from < kClasses && lists[from] == kNone) from++;
  if (from == kClasses) return kNone;
  const uint32_t place = lists[from];
  unlink(place);
  if (from == kClasses - 1 && !region_of(place).in_arena) spare_regions_--;
  while (from > size_class) {
    from--;
    link(place + (1U << from), from);
  }
  return place;
}

std::byte* BufferPool::put(uint32_t place, uint32_t size_class) {
  Region& region = region_of(place);
  while (size_class < kClasses - 1) {
    const uint32_t other = place ^ (1U << size_class);
    if (other % kBufferBlocksMax >= region.blocks || slot(other).free_class != size_class) break;
    unlink(other);
    place = std::min(place, other);
    size_class++;
  }
  if (size_class < kClasses - 1 || region.in_arena || spare_regions_ < kSpareRegionsMax) {
    if (size_class == kClasses - 1 && !region.in_arena) spare_regions_++;
    link(place, size_class);
    return nullptr;
  }
  std::byte* base = region.base;
  held_.fetch_sub(kRegionBytes, std::memory_order_relaxed);
  regions_[place / kBufferBlocksMax].reset();
  unused_regions_.push_back(place / kBufferBlocksMax);
  return base;
}

void BufferPool::give_up_quick() {
  for (auto& buffers : quick_) {
    for (Buffer* buffer : buffers) {
      put(buffer->place_, buffer->size_class_);
      blank_.push_back(buffer);
    }
    buffers.clear();
  }
}

// --- Buffers ----------------------------------------------------------------------------------------

BufferRef BufferPool::allocate(uint32_t blocks) {
  COFS_ASSERT(blocks >= 1 && blocks <= kBufferBlocksMax);
  const auto size_class = static_cast<uint32_t>(std::bit_width(blocks - 1));
  in_use_.fetch_add(bytes_of_class(size_class), std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  if (!quick_[size_class].empty()) {
    Buffer* buffer = quick_[size_class].back();
    quick_[size_class].pop_back();
    return BufferRef(buffer);
  }
  uint32_t place = take(arena_free_, size_class);
  if (place == kNone) place = take(heap_free_, size_class);
  if (place == kNone) {  // what is kept for other sizes, before there is more of it
    give_up_quick();
    place = take(arena_free_, size_class);
  }
  if (place == kNone) {
    const bool grown = grow();
    COFS_ASSERT(grown);
    place = take(heap_free_, size_class);
  }
  Buffer* buffer = nullptr;
  if (blank_.empty()) {
    buffer = new Buffer;
    buffer->pool_ = this;
  } else {
    buffer = blank_.back();
    blank_.pop_back();
  }
  const Region& region = region_of(place);
  buffer->data_ = region.base + uint64_t{place % kBufferBlocksMax} * kBlockBytes;
  buffer->blocks_ = 1U << size_class;
  buffer->size_class_ = static_cast<uint8_t>(size_class);
  buffer->in_arena_ = region.in_arena;
  buffer->place_ = place;
  return BufferRef(buffer);
}

void BufferPool::release(Buffer* buffer) {
  const uint32_t size_class = buffer->size_class_;
  const uint64_t bytes = bytes_of_class(size_class);
  in_use_.fetch_sub(bytes, std::memory_order_relaxed);
  std::byte* unmapped = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (buffer->in_arena_ && (quick_[size_class].size() + 1) * bytes <= kQuickBytesMax) {
      quick_[size_class].push_back(buffer);
      return;
    }
    unmapped = put(buffer->place_, size_class);
    blank_.push_back(buffer);
  }
  if (unmapped != nullptr) munmap(unmapped, kRegionBytes);
}

void BufferPool::check_invariants() {
  std::lock_guard lock(mutex_);
  uint64_t free_bytes = 0;
  uint64_t spare = 0;
  for (uint32_t number = 0; number < regions_.size(); number++) {
    if (regions_[number] == nullptr) continue;
    const Region& region = *regions_[number];
    for (uint32_t at = 0; at < region.blocks; at++) {
      const uint32_t size_class = region.slots[at].free_class;
      if (size_class == kClasses) continue;
      COFS_ASSERT(at % (1U << size_class) == 0 && at + (1U << size_class) <= region.blocks);
      free_bytes += bytes_of_class(size_class);
      if (size_class == kClasses - 1) {
        if (!region.in_arena) spare++;
        continue;
      }
      const uint32_t other = at ^ (1U << size_class);
      COFS_ASSERT(other >= region.blocks || region.slots[other].free_class != size_class);
    }
  }
  COFS_ASSERT(spare == spare_regions_ && spare <= kSpareRegionsMax);
  for (uint32_t size_class = 0; size_class < kClasses; size_class++) {
    free_bytes += quick_[size_class].size() * bytes_of_class(size_class);
  }
  COFS_ASSERT(free_bytes + bytes_in_use() == bytes_held());
}

}  // namespace cofs
