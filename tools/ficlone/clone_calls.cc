#include "tools/ficlone/clone_calls.h"

#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/mman.h>

#include "fs/cofs_ioctl.h"

namespace cofs {

namespace {

constexpr uint64_t kOffsetMax = INT64_MAX;        // of a file
constexpr uint64_t kDedupeBytesMax = 1ull << 30;  // of one FIDEDUPERANGE, as in the kernel
constexpr size_t kDedupeArgumentMax = 4096;       // the kernel: a page
constexpr uint64_t kCopyBytesMax = 1ull
                                   << 62;  // of one copy_file_range; the kernel cuts it further
constexpr uint32_t kBlockBytesMax = 1u << 20;
constexpr uint32_t kFiemapExtentsMax = UINT32_MAX / sizeof(fiemap_extent);

// Memory for large arguments: not the stack, which may be a small one of a signal handler.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory_ = memory == MAP_FAILED ? nullptr : memory;
  }
  ~Scratch() {
    if (memory_ != nullptr) munmap(memory_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);  // null: no memory
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_;
};

// A descriptor of the caller, fetched for the length of one call.
class Fetched {
 public:
  Fetched(const CloneSystem& system, int64_t number)
      : system_(system), fd_(system.fetch(system.context, number)) {}
  ~Fetched() {
    if (fd_ >= 0) system_.release(system_.context, static_cast<int>(fd_));
  }
  Fetched(const Fetched&) = delete;
  Fetched& operator=(const Fetched&) = delete;
  bool failed() const { return fd_ < 0; }
  long error() const { return fd_; }
  int get() const { return static_cast<int>(fd_); }

 private:
  const CloneSystem& system_;
  long fd_;
};

bool is_aligned(uint64_t value, uint64_t block) {
  return value % block == 0;
}

// A range as the VFS takes it: both signed, and so is its end.
bool is_valid_range(uint64_t offset, uint64_t length) {
  return offset <= kOffsetMax && length <= kOffsetMax && offset + length <= kOffsetMax;
}

// The mount that was last found to be of cofs, by its unique id, and its block size (the lowest bits: the
// logarithm). One that is known needs to be asked no more: its id is never given to another.
uint64_t known_mount = 0;
constexpr unsigned kLogBits = 5;

uint64_t known_block_bytes(uint64_t mount) {
  const uint64_t known = __atomic_load_n(&known_mount, __ATOMIC_RELAXED);
  if (mount == 0 || known >> kLogBits != mount) return 0;
  return uint64_t{1} << (known & ((1u << kLogBits) - 1));
}

void remember_mount(uint64_t mount, uint64_t block_bytes) {
  if (mount == 0 || mount >> (64 - kLogBits) != 0) return;
  const auto log = static_cast<uint64_t>(__builtin_ctzll(block_bytes));
  __atomic_store_n(&known_mount, mount << kLogBits | log, __ATOMIC_RELAXED);
}

// What this file is, and the block size of its cofs; EOPNOTSUPP where it is on none.
long query(const CloneSystem& system, int fd, FileFacts* facts, uint64_t* block_bytes) {
  long result = system.stat(system.context, fd, facts);
  if (result < 0) return result;
  if (!facts->is_regular && !facts->is_directory) return -EOPNOTSUPP;
  *block_bytes = known_block_bytes(facts->mount);
  if (*block_bytes != 0) return 0;
  MountFacts mount{};
  result = system.statfs(system.context, fd, &mount);
  if (result < 0) return result;
  if (!mount.is_fuse) return -EOPNOTSUPP;
  cofs_query answer{};
  result = system.ioctl(system.context, fd, COFS_IOC_QUERY, &answer);
  // Servers of others answer what they like; a descriptor that was closed meanwhile is one.
  if (result < 0) return result == -EBADF ? result : -EOPNOTSUPP;
  const uint64_t block = answer.block_bytes;
  if (block < 512 || block > kBlockBytesMax || (block & (block - 1)) != 0) return -EOPNOTSUPP;
  remember_mount(facts->mount, block);
  *block_bytes = block;
  return 0;
}

struct RangePair {
  FileFacts source;
  FileFacts target;
  uint64_t source_offset = 0;
  uint64_t target_offset = 0;
  uint64_t length = 0;  // may become shorter
  uint64_t block = 0;
  bool is_dedupe = false;
};

bool same_file(const RangePair& pair) {
  return pair.source.device == pair.target.device && pair.source.inode == pair.target.inode;
}

// RLIMIT_FSIZE and the largest offset: 0, or EFBIG; a range that crosses them is cut.
long check_limits(const CloneSystem& system, uint64_t offset, uint64_t* length) {
  uint64_t limit = UINT64_MAX;
  long result = system.file_size_limit(system.context, &limit);
  if (result < 0) return result;
  if (offset >= limit) {
    system.raise_file_size_signal(system.context);
    return -EFBIG;
  }
  if (offset >= kOffsetMax) return -EFBIG;
  if (*length > limit - offset) *length = limit - offset;
  if (*length > kOffsetMax - offset) *length = kOffsetMax - offset;
  return 0;
}

// Alignment, ends of files, limits and overlap, in the order of the kernel's
// generic_remap_file_range_prep(). Returns 0 with the length that remains (0: nothing to do).
long check_ranges(const CloneSystem& system, RangePair* pair) {
  if (pair->length == 0) {
    if (pair->is_dedupe || pair->source_offset == pair->source.bytes) return 0;
    if (pair->source_offset > pair->source.bytes) return -EINVAL;
    pair->length = pair->source.bytes - pair->source_offset;
  }
  const uint64_t asked = pair->length;
  uint64_t length = asked;
  if (!is_aligned(pair->source_offset, pair->block) ||
      !is_aligned(pair->target_offset, pair->block)) {
    return -EINVAL;
  }
  if (!is_valid_range(pair->source_offset, length) ||
      !is_valid_range(pair->target_offset, length)) {
    return -EINVAL;
  }
  const uint64_t source_bytes = pair->source.bytes;
  if (pair->is_dedupe &&
      (pair->source_offset + length > source_bytes || pair->target_offset >= pair->target.bytes ||
       pair->target_offset + length > pair->target.bytes)) {
    return -EINVAL;
  }
  if (pair->source_offset >= source_bytes) return -EINVAL;
  if (length > source_bytes - pair->source_offset) length = source_bytes - pair->source_offset;
  const long limited = check_limits(system, pair->target_offset, &length);
  if (limited < 0) return limited;

  // A partial block can only be the source's last; in a dedupe it must be the target's last too.
  const bool to_source_end = pair->source_offset + length == source_bytes;
  const bool to_target_end = pair->target_offset + length == pair->target.bytes;
  if (!to_source_end || (pair->is_dedupe && !to_target_end)) length -= length % pair->block;
  if (same_file(*pair) && pair->target_offset + length > pair->source_offset &&
      pair->target_offset < pair->source_offset + length) {
    return -EINVAL;
  }
  if (pair->is_dedupe) {
    pair->length = length;
    return 0;
  }
  if (length != asked) return -EINVAL;
  if (!is_aligned(length, pair->block) && pair->target_offset + length < pair->target.bytes) {
    return -EINVAL;
  }
  return 0;
}

// What the server may not answer to a clone, lest the caller copies or asks elsewhere.
long final_error(long error, bool is_partial) {
  if (error != -EOPNOTSUPP && error != -ENOSYS && error != -EXDEV && error != -ENOTTY) return error;
  return is_partial ? -EIO : -EINVAL;
}

// The copies that carry an announced clone.
long carry(const CloneSystem& system, int source, int target, const RangePair& pair) {
  int64_t source_offset = static_cast<int64_t>(pair.source_offset);
  int64_t target_offset = static_cast<int64_t>(pair.target_offset);
  uint64_t left = pair.length;
  while (left > 0) {
    const uint64_t piece = left < kCopyBytesMax ? left : kCopyBytesMax;
    const long done = system.copy_file_range(system.context, source, &source_offset, target,
                                             &target_offset, piece);
    if (done == -EINTR) continue;
    if (done < 0) return final_error(done, left != pair.length);
    // The source became shorter meanwhile, or the answer is nonsense.
    if (done == 0) return -EINVAL;
    if (static_cast<uint64_t>(done) > left) return -EIO;
    left -= static_cast<uint64_t>(done);
  }
  return 0;
}

// The clone itself, after the kernel refused it with EOPNOTSUPP: so both are regular files of one
// filesystem, the source open for reading, the target for writing and not for appending.
long emulate_clone(const CloneSystem& system, int source, int target,
                   const file_clone_range& range) {
  RangePair pair;
  long result = query(system, source, &pair.source, &pair.block);
  if (result < 0) return result;
  pair.source_offset = range.src_offset;
  pair.target_offset = range.dest_offset;
  pair.length = range.src_length;
  result = system.stat(system.context, target, &pair.target);
  if (result < 0) return result;
  if (pair.source.device != pair.target.device) return -EXDEV;
  if (!is_valid_range(pair.source_offset, pair.length) ||
      !is_valid_range(pair.target_offset, pair.length)) {
    return -EINVAL;
  }
  result = check_ranges(system, &pair);
  if (result < 0 || pair.length == 0) return result;

  // What is dirty reaches the server first. copy_file_range does that too, but only for its own
  // range, and the source is taken for all pieces when the first one arrives.
  result = system.sync_range(system.context, source, static_cast<int64_t>(pair.source_offset),
                             static_cast<int64_t>(pair.length));
  if (result < 0) return final_error(result, false);
  cofs_announce announce{};
  announce.source_offset = pair.source_offset;
  announce.length = pair.length;
  announce.target_ino = pair.target.inode;
  announce.target_offset = pair.target_offset;
  result = system.ioctl(system.context, source, COFS_IOC_ANNOUNCE, &announce);
  if (result < 0) return final_error(result, false);
  result = carry(system, source, target, pair);
  if (result < 0) {
    announce.length = 0;
    system.ioctl(system.context, source, COFS_IOC_ANNOUNCE, &announce);
  }
  return result;
}

long clone_range(const CloneSystem& system, int target, const file_clone_range& range,
                 bool is_whole) {
  Fetched source(system, range.src_fd);
  if (source.failed()) return source.error();
  file_clone_range native = range;
  native.src_fd = source.get();
  long result;
  if (is_whole) {
    // FICLONE's argument is a number.
    result = system.ioctl(system.context, target, FICLONE,
                          reinterpret_cast<void*>(static_cast<uintptr_t>(source.get())));
  } else {
    result = system.ioctl(system.context, target, FICLONERANGE, &native);
  }
  if (result != -EOPNOTSUPP) return result;
  return emulate_clone(system, source.get(), target, range);
}

// Compares and shares through the server. Returns 0 with `deduped` and `differs` set.
long dedupe_pair(const CloneSystem& system, int source, int target, const RangePair& pair,
                 bool* differs) {
  *differs = false;
  uint64_t done = 0;
  while (done < pair.length) {
    cofs_dedupe_token token{};
    long result = system.ioctl(system.context, source, COFS_IOC_DEDUPE_TOKEN, &token);
    if (result < 0) return final_error(result, false);
    cofs_dedupe work{};
    memcpy(work.token, token.token, sizeof(work.token));
    work.source_offset = pair.source_offset + done;
    work.target_offset = pair.target_offset + done;
    work.length = pair.length - done;
    result = system.ioctl(system.context, target, COFS_IOC_DEDUPE, &work);
    if (result < 0) return final_error(result, false);
    if (work.status == COFS_DEDUPE_DIFFERS) {
      *differs = true;
      return 0;
    }
    if (work.status != COFS_DEDUPE_SAME || work.bytes_deduped == 0 ||
        work.bytes_deduped > pair.length - done) {
      return -EIO;
    }
    done += work.bytes_deduped;
  }
  return 0;
}

// One target of FIDEDUPERANGE: the status to report, or a negative errno.
long dedupe_target(const CloneSystem& system, int source, const FileFacts& source_facts,
                   uint64_t block_bytes, uint64_t source_offset, uint64_t length,
                   const file_dedupe_range_info& info, uint64_t* deduped) {
  Fetched target(system, info.dest_fd);
  if (target.failed()) return target.error();
  if (info.reserved != 0) return -EINVAL;
  RangePair pair;
  pair.is_dedupe = true;
  pair.block = block_bytes;
  pair.source = source_facts;
  pair.source_offset = source_offset;
  pair.target_offset = info.dest_offset;
  pair.length = length;
  MountFacts mount{};
  long result = system.stat(system.context, target.get(), &pair.target);
  if (result < 0) return result;
  result = system.statfs(system.context, target.get(), &mount);
  if (result < 0) return result;
  if (mount.is_read_only) return -EROFS;
  if (!is_valid_range(pair.target_offset, pair.length)) return -EINVAL;
  if (pair.source.device != pair.target.device) return -EXDEV;
  if (pair.target.is_directory) return -EISDIR;
  if (!pair.target.is_regular) return -EINVAL;
  result = check_ranges(system, &pair);
  if (result < 0) return result;
  bool differs = false;
  if (pair.length > 0) {
    // The bytes that are compared are those of the server.
    const int64_t bytes = static_cast<int64_t>(pair.length);
    result = system.sync_range(system.context, source, static_cast<int64_t>(source_offset), bytes);
    if (result < 0) return final_error(result, false);
    result = system.sync_range(system.context, target.get(), static_cast<int64_t>(info.dest_offset),
                               bytes);
    if (result < 0) return final_error(result, false);
    result = dedupe_pair(system, source, target.get(), pair, &differs);
    if (result < 0) return result;
  }
  if (differs) return FILE_DEDUPE_RANGE_DIFFERS;
  *deduped = length;  // the kernel reports what was asked for also where it was cut to whole blocks
  return FILE_DEDUPE_RANGE_SAME;
}

long emulate_dedupe(const CloneSystem& system, int source, file_dedupe_range* range) {
  FileFacts facts{};
  uint64_t block_bytes = 0;
  const long result = query(system, source, &facts, &block_bytes);
  if (result < 0) return result;
  if (!is_valid_range(range->src_offset, range->src_length)) return -EINVAL;
  if (range->src_offset + range->src_length > facts.bytes) return -EINVAL;
  const uint64_t length = range->src_length < kDedupeBytesMax ? range->src_length : kDedupeBytesMax;
  for (uint16_t i = 0; i < range->dest_count; i++) {
    file_dedupe_range_info& info = range->info[i];
    uint64_t deduped = 0;
    const long status =
        dedupe_target(system, source, facts, block_bytes, range->src_offset, length, info, &deduped);
    info.bytes_deduped = deduped;
    info.status = static_cast<int32_t>(status);
  }
  return 0;
}

long dedupe(const CloneSystem& system, int source, uint64_t argument) {
  uint16_t count = 0;
  const uint64_t count_address = argument + offsetof(file_dedupe_range, dest_count);
  long result = system.read_memory(system.context, count_address, &count, sizeof(count));
  if (result < 0) return result;
  const size_t bytes = sizeof(file_dedupe_range) + count * sizeof(file_dedupe_range_info);
  if (bytes > kDedupeArgumentMax) return -ENOMEM;
  Scratch memory(kDedupeArgumentMax);
  auto* range = memory.as<file_dedupe_range>();
  if (range == nullptr) return -ENOMEM;
  result = system.read_memory(system.context, argument, range, bytes);
  if (result < 0) return result;
  // Without a target the call tells whether the kernel serves it, and what is wrong with the
  // source.
  range->dest_count = 0;
  result = system.ioctl(system.context, source, FIDEDUPERANGE, range);
  if (result != -EOPNOTSUPP) return kServedByKernel;
  range->dest_count = count;  // as it was read first; another thread may have changed it since
  result = emulate_dedupe(system, source, range);
  if (result < 0) return result;
  return system.write_memory(system.context, argument, range, bytes);
}

uint32_t fiemap_flags_of(uint32_t flags) {
  uint32_t result = 0;
  if ((flags & COFS_EXTENT_LAST) != 0) result |= FIEMAP_EXTENT_LAST;
  if ((flags & COFS_EXTENT_DELAYED) != 0) result |= FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN;
  if ((flags & COFS_EXTENT_UNWRITTEN) != 0) result |= FIEMAP_EXTENT_UNWRITTEN;
  if ((flags & COFS_EXTENT_INLINE) != 0) {
    result |= FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_NOT_ALIGNED;
  }
  if ((flags & COFS_EXTENT_SHARED) != 0) result |= FIEMAP_EXTENT_SHARED;
  return result;
}

// Hands extents to the caller's array until it is full; with none, counts.
class ExtentSink {
 public:
  ExtentSink(const CloneSystem& system, uint64_t address, uint32_t room)
      : system_(system), address_(address), room_(room) {}
  bool is_full() const { return room_ != 0 && taken_ == room_; }
  uint32_t taken() const { return taken_; }

  long take(const cofs_map_extent& extent) {
    if (room_ != 0) {
      fiemap_extent out{};
      out.fe_logical = extent.logical;
      out.fe_physical = extent.physical;
      out.fe_length = extent.length;
      out.fe_flags = fiemap_flags_of(extent.flags);
      const uint64_t place = address_ + static_cast<uint64_t>(taken_) * sizeof(out);
      const long result = system_.write_memory(system_.context, place, &out, sizeof(out));
      if (result < 0) return result;
    }
    taken_++;
    return 0;
  }

 private:
  const CloneSystem& system_;
  uint64_t address_;
  uint32_t room_;
  uint32_t taken_ = 0;
};

long fill_extents(const CloneSystem& system, int fd, uint64_t start, uint64_t length, bool sync,
                  ExtentSink* sink) {
  Scratch memory(sizeof(cofs_map));
  auto* page = memory.as<cofs_map>();
  if (page == nullptr) return -ENOMEM;
  const uint64_t end = start + length;
  while (start < end) {
    const long result = map_extents(system, fd, start, end - start, sync, page);
    if (result < 0) return result;
    sync = false;
    for (uint32_t i = 0; i < page->count && !sink->is_full(); i++) {
      const long taken = sink->take(page->extents[i]);
      if (taken < 0) return taken;
    }
    if (page->more == 0 || sink->is_full()) return 0;
    const cofs_map_extent& last = page->extents[page->count - 1];
    start = last.logical + last.length;
  }
  return 0;
}

long emulate_fiemap(const CloneSystem& system, int fd, uint64_t argument, fiemap* head) {
  FileFacts facts{};
  uint64_t block_bytes = 0;
  long result = query(system, fd, &facts, &block_bytes);
  if (result < 0) return result;
  if (!facts.is_regular) return -EOPNOTSUPP;
  result = system.read_memory(system.context, argument, head, sizeof(*head));
  if (result < 0) return result;
  if (head->fm_extent_count > kFiemapExtentsMax) return -EINVAL;
  head->fm_mapped_extents = 0;
  const uint32_t unknown = head->fm_flags & ~FIEMAP_FLAG_SYNC;
  if (head->fm_length == 0) {
    result = -EINVAL;
  } else if (head->fm_start >= kOffsetMax) {
    result = -EFBIG;
  } else if (unknown != 0) {
    head->fm_flags = unknown;
    result = -EBADR;
  } else {
    uint64_t length = head->fm_length;
    if (length > kOffsetMax - head->fm_start) length = kOffsetMax - head->fm_start;
    const bool sync = (head->fm_flags & FIEMAP_FLAG_SYNC) != 0;
    if (sync) result = system.sync_range(system.context, fd, 0, 0);
    ExtentSink sink(system, argument + sizeof(fiemap), head->fm_extent_count);
    if (result >= 0) result = fill_extents(system, fd, head->fm_start, length, sync, &sink);
    head->fm_mapped_extents = sink.taken();
  }
  const long written = system.write_memory(system.context, argument, head, sizeof(*head));
  if (written < 0) return written;
  return result < 0 ? final_error(result, false) : 0;
}

long map(const CloneSystem& system, int fd, uint64_t argument) {
  // An empty range has no extents, and tells whether the kernel serves the call.
  fiemap head{};
  if (system.ioctl(system.context, fd, FS_IOC_FIEMAP, &head) != -EOPNOTSUPP) return kServedByKernel;
  return emulate_fiemap(system, fd, argument, &head);
}

}  // namespace

bool is_clone_request(uint64_t request) {
  switch (static_cast<uint32_t>(request)) {
    case static_cast<uint32_t>(FICLONE):
    case static_cast<uint32_t>(FICLONERANGE):
    case static_cast<uint32_t>(FIDEDUPERANGE):
    case static_cast<uint32_t>(FS_IOC_FIEMAP): return true;
    default: return false;
  }
}

bool is_cofs_file(const CloneSystem& system, int fd) {
  FileFacts facts{};
  uint64_t block_bytes = 0;
  return query(system, fd, &facts, &block_bytes) == 0;
}

long map_extents(const CloneSystem& system, int fd, uint64_t start, uint64_t length, bool sync,
                 cofs_map* page) {
  memset(page, 0, offsetof(cofs_map, extents));
  page->start = start;
  page->length = length;
  page->flags = sync ? COFS_MAP_SYNC : 0;
  const long result = system.ioctl(system.context, fd, COFS_IOC_MAP, page);
  if (result < 0) return result;
  if (page->count > COFS_MAP_EXTENTS || (page->more != 0 && page->count == 0)) return -EIO;
  uint64_t next = 0;
  for (uint32_t i = 0; i < page->count; i++) {
    const cofs_map_extent& extent = page->extents[i];
    const bool sane = extent.length > 0 && is_valid_range(extent.logical, extent.length) &&
                      extent.logical >= next && extent.logical + extent.length > start;
    if (!sane) return -EIO;
    next = extent.logical + extent.length;
  }
  return 0;
}

long clone_ioctl(const CloneSystem& system, int fd, uint32_t request, uint64_t argument) {
  switch (request) {
    case static_cast<uint32_t>(FICLONE): {
      file_clone_range whole{};
      whole.src_fd = static_cast<int32_t>(argument);
      return clone_range(system, fd, whole, true);
    }
    case static_cast<uint32_t>(FICLONERANGE): {
      file_clone_range range{};
      const long result = system.read_memory(system.context, argument, &range, sizeof(range));
      return result < 0 ? result : clone_range(system, fd, range, false);
    }
    case static_cast<uint32_t>(FIDEDUPERANGE): return dedupe(system, fd, argument);
    case static_cast<uint32_t>(FS_IOC_FIEMAP): return map(system, fd, argument);
    default: return -ENOTTY;
  }
}

}  // namespace cofs
