// fallocate(2): preallocating, punching holes, zeroing ranges.
//
// Preallocation records unwritten extents over holes. In this store a later write into them takes new
// blocks; the store keeps as many back for them (blockmap/space.cc), and a writer who finds no other room
// takes these (file_write.cc). The call fails with kNoSpace if that many cannot be had.

#include <algorithm>
#include <cstring>
#include <utility>

#include "fs/files_impl.h"
#include "fs/xattr.h"

namespace cofs {

namespace {

// The bytes [offset, offset + length) in blocks: whole ones, and the block at each end covered in part.
// Blocks beyond the file's end hold nothing, so that a range that reaches it covers its last block.
struct BlockSplit {
  uint64_t first = 0;  // whole blocks: [first, end), empty if end <= first
  uint64_t end = 0;
  bool has_head = false;
  bool has_tail = false;
  uint64_t head_block = 0;
  uint64_t tail_block = 0;
  uint32_t head_from = 0;  // bytes [head_from, head_to) of head_block
  uint32_t head_to = kBlockBytes;
  uint32_t tail_to = 0;    // bytes [0, tail_to) of tail_block

  BlockSplit(uint64_t offset, uint64_t length, uint64_t size) {
    const uint64_t stop = offset + length;
    first = blocks_of_bytes(offset);
    end = stop / kBlockBytes;
    if (stop >= size) end = std::max(end, std::min(blocks_of_bytes(stop), blocks_of_bytes(size)));
    head_from = static_cast<uint32_t>(offset % kBlockBytes);
    has_head = head_from != 0;
    head_block = offset / kBlockBytes;
    if (has_head && stop < bytes_of_blocks(first)) {
      head_to = static_cast<uint32_t>(stop % kBlockBytes);
    }
    tail_block = end;
    tail_to = static_cast<uint32_t>(stop % kBlockBytes);
    has_tail = stop > bytes_of_blocks(end) && end >= first;
  }
};

}  // namespace

uint64_t Files::Impl::Holes::blocks() const {
  uint64_t sum = 0;
  for (const BlockRange& range : ranges) sum += range.count;
  return sum;
}

// The holes from `first` on, as far as step_extents() extents reach: neither mapped nor in memory.
Task<Result<Files::Impl::Holes>> Files::Impl::find_holes(Inode& inode, uint64_t first,
                                                         uint64_t end) {
  std::vector<BlockRange> used;
  for (const FileData::Piece& piece : inode.data.pieces(first, end - first)) {
    used.push_back(BlockRange{piece.file_block, piece.count});
  }
  const uint64_t extents_max = step_extents();
  auto mappings = co_await store.map_range(inode.ino, first, end - first, extents_max);
  COFS_CO_TRY(mappings);
  Holes holes;
  holes.end = mappings->size() < extents_max ? end : mappings->back().end();
  for (const Mapping& mapping : *mappings) {
    used.push_back(BlockRange{mapping.file_block, mapping.count});
    if ((mapping.flags & ondisk::kExtentMaybeShared) != 0) holes.shared_blocks += mapping.count;
  }
  std::sort(used.begin(), used.end(),
            [](const BlockRange& a, const BlockRange& b) { return a.start < b.start; });
  uint64_t cursor = first;
  for (const BlockRange& range : used) {
    const uint64_t stop = std::min(range.start, holes.end);
    if (cursor < stop) holes.ranges.push_back(BlockRange{cursor, stop - cursor});
    cursor = std::max(cursor, range.end());
  }
  if (cursor < holes.end) holes.ranges.push_back(BlockRange{cursor, holes.end - cursor});
  co_return std::move(holes);
}

// Space for data in all holes of the range; and, if it is to become zeros, where others share its blocks, which
// become free by nothing.
Task<Result<Reservation>> Files::Impl::reserve_holes(Inode& inode, uint64_t first, uint64_t end,
                                                     bool shared_too) {
  Reservation held;
  while (first < end) {
    auto holes = co_await find_holes(inode, first, end);
    COFS_CO_TRY(holes);
    const Cost cost = data_cost(holes->blocks() + (shared_too ? holes->shared_blocks : 0),
                                holes->ranges.size());
    auto more = co_await store.reserve(cost, SpaceClass::kUser);
    COFS_CO_TRY(more);
    held.merge(std::move(*more));
    first = holes->end;
  }
  co_return std::move(held);
}

// Unwritten extents over all holes of the range; then, with the last of them, the size and the times.
// What is kept for them comes from `space`.
Task<Result<>> Files::Impl::fill_holes(Inode& inode, uint64_t first, uint64_t end,
                                       uint64_t new_size, Reservation space) {
  for (;;) {
    auto holes = co_await find_holes(inode, first, end);
    COFS_CO_TRY(holes);
    uint64_t records = holes->ranges.size() + holes->blocks() / ondisk::kExtentBlocksMax;
    // The blocks are reserved, perhaps the last there are: the few bytes of records must not fail for that.
    auto transaction = co_await store.begin(Cost(0, records * kMapRecordBytes), SpaceClass::kDelete);
    COFS_CO_TRY(transaction);
    for (const BlockRange& hole : holes->ranges) {
      for (uint64_t block = hole.start; block < hole.end(); block += ondisk::kExtentBlocksMax) {
        const uint64_t count = std::min<uint64_t>(hole.end() - block, ondisk::kExtentBlocksMax);
        transaction->map_extent(inode.ino, block, count, 0, ondisk::kExtentUnwritten);
      }
    }
    if (!transaction->empty()) {
      auto applied = co_await transaction->apply();
      COFS_CO_TRY(applied);
      space.release(blocks_of_cost(data_cost(holes->blocks(), holes->ranges.size())));
    }
    first = holes->end;
    if (first < end) continue;
    inode.size = std::max(inode.size, new_size);
    trim_reservation(inode);
    mark_data_changed(inode);
    co_return Result<>();
  }
}

Task<Result<>> Files::Impl::preallocate(Inode& inode, uint64_t offset, uint64_t length,
                                        uint64_t new_size) {
  BlockHold hold(inode);
  auto blocks = co_await to_block_form(inode);
  COFS_CO_TRY(blocks);
  const uint64_t first = offset / kBlockBytes;
  const uint64_t end = blocks_of_bytes(offset + length);
  auto space = co_await reserve_holes(inode, first, end, false);
  COFS_CO_TRY(space);
  co_return co_await fill_holes(inode, first, end, new_size, std::move(*space));
}

// Zeroes the range: whole blocks become holes, or unwritten with the flag; the ends are rewritten.
Task<Result<>> Files::Impl::clear_range(Inode& inode, uint64_t offset, uint64_t length,
                                        uint32_t flags) {
  const BlockSplit split(offset, length, inode.size);
  std::vector<EdgeBlock> edges;
  if (split.has_head) {
    auto head = co_await prepare_zeroed(inode, split.head_block, split.head_from, split.head_to,
                                        &edges);
    COFS_CO_TRY(head);
  }
  if (split.has_tail) {
    auto tail = co_await prepare_zeroed(inode, split.tail_block, 0, split.tail_to, &edges);
    COFS_CO_TRY(tail);
  }
  Cost cost = data_cost(edges.size(), edges.size());
  cost.record_bytes += ondisk::kInlineDataMax;
  auto space = co_await store.reserve(cost, SpaceClass::kDelete);
  COFS_CO_TRY(space);
  const SpaceClass space_class = flags == 0 ? SpaceClass::kDelete : SpaceClass::kUser;
  const uint64_t end = std::max(split.first, split.end);
  uint64_t first = split.first;
  for (;;) {
    if (first != split.first) co_await let_others_in();
    auto transaction = co_await store.begin(Cost(0, kMapRecordBytes), space_class);
    COFS_CO_TRY(transaction);
    auto step = co_await add_unmap_step(*transaction, inode, first, end, flags);
    COFS_CO_TRY(step);
    if (!transaction->empty()) {
      auto applied = co_await transaction->apply();
      COFS_CO_TRY(applied);
    }
    DataChange change(*this, inode);
    inode.data.drop(first, *step - first);
    first = *step;
    mark_data_changed(inode);
    if (first < end) continue;
    if (is_inline(inode)) {
      const uint64_t bytes = inode.inline_data.size();
      const uint64_t from = std::min(offset, bytes);
      const uint64_t to = std::min(offset + length, bytes);
      std::memset(inode.inline_data.data() + from, 0, to - from);
    } else {
      add_edges(inode, &edges, std::move(*space));
    }
    trim_reservation(inode);
    co_return Result<>();
  }
}

Task<Result<>> Files::Impl::punch(Inode& inode, uint64_t offset, uint64_t length) {
  co_return co_await clear_range(inode, offset, length, 0);
}

Task<Result<>> Files::Impl::zero_range(Inode& inode, uint64_t offset, uint64_t length,
                                       uint64_t new_size) {
  BlockHold hold(inode);
  auto blocks = co_await to_block_form(inode);
  COFS_CO_TRY(blocks);
  const uint64_t first = offset / kBlockBytes;
  const uint64_t end = blocks_of_bytes(offset + length);
  auto space = co_await reserve_holes(inode, first, end, true);
  COFS_CO_TRY(space);
  auto cleared = co_await clear_range(inode, offset, length, ondisk::kExtentUnwritten);
  COFS_CO_TRY(cleared);
  // What is left are the blocks at the ends, where they were holes.
  co_return co_await fill_holes(inode, first, end, new_size, std::move(*space));
}

Task<Result<>> Files::allocate(uint64_t ino, AllocateMode mode, uint64_t offset, uint64_t length,
                               Unprivileged kill_privileges) {
  if (length == 0) co_return fail(Code::kInvalid, "allocate nothing", ino);
  if (offset > kFileBytesMax || length > kFileBytesMax - offset) {
    co_return fail(Code::kFileTooBig, "allocate", ino);
  }
  auto inode = co_await impl_->get_file(ino);
  COFS_CO_TRY(inode);
  auto room = co_await impl_->throttle();
  COFS_CO_TRY(room);
  Inode& file = **inode;
  SharedMutex::Guard guard = co_await file.lock.lock_exclusive();
  const bool only_adds = mode == AllocateMode::kAllocate || mode == AllocateMode::kKeepSize;
  auto allowed = Impl::check_changeable(file, only_adds);
  COFS_CO_TRY(allowed);
  auto finished = co_await impl_->finish_truncation(file);
  COFS_CO_TRY(finished);
  if (kill_privileges) {
    auto dropped = co_await drop_capability(impl_->store, file);
    COFS_CO_TRY(dropped);
  }
  const PrivilegeKill kill(file, kill_privileges);
  Result<> done;
  switch (mode) {
    case AllocateMode::kAllocate:
      done = co_await impl_->preallocate(file, offset, length, offset + length);
      break;
    case AllocateMode::kKeepSize:
      done = co_await impl_->preallocate(file, offset, length, 0);
      break;
    case AllocateMode::kPunchHole:
      done = co_await impl_->punch(file, offset, length);
      break;
    case AllocateMode::kZeroRange:
      done = co_await impl_->zero_range(file, offset, length, offset + length);
      break;
    case AllocateMode::kZeroKeepSize:
      done = co_await impl_->zero_range(file, offset, length, 0);
      break;
  }
  impl_->flush_if_due(*inode);
  co_return done;
}

}  // namespace cofs
