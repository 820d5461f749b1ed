// Buffered writing: complete the blocks covered in part, get space promised, then insert in one step.

#include <algorithm>
#include <cstring>
#include <utility>

#include "fs/files_impl.h"
#include "fs/xattr.h"
#include "offload/base/checksum.h"

namespace cofs {

namespace {

constexpr uint64_t kEdgesAhead = 16;

uint64_t end_of(const WriteData& data) { return data.offset + data.length; }
uint64_t first_block_of(const WriteData& data) { return data.offset / kBlockBytes; }
uint64_t block_count_of(const WriteData& data) {
  return blocks_of_bytes(end_of(data)) - first_block_of(data);
}

}  // namespace

// A block covered in part gets its other bytes from the file as it is; beyond the end they are zero.
Task<Result<>> Files::Impl::complete_edges(Inode& inode, WriteData& data) {
  const uint64_t first = first_block_of(data);
  const uint64_t last = first + block_count_of(data) - 1;
  const uint32_t head = static_cast<uint32_t>(data.offset % kBlockBytes);
  const uint32_t tail = static_cast<uint32_t>(end_of(data) % kBlockBytes);
  BufferRef old;
  for (uint64_t block = first; block <= last; block = block == last ? last + 1 : last) {
    const uint32_t from = block == first ? head : 0;
    const uint32_t to = block == last && tail != 0 ? tail : kBlockBytes;
    if (from == 0 && to == kBlockBytes) continue;
    std::byte* const target = data.buffer->block(static_cast<uint32_t>(block - first));
    const uint64_t start = bytes_of_blocks(block);
    const uint64_t valid = inode.size > start ? inode.size - start : 0;
    const bool needs_old = valid > 0 && (from > 0 || valid > to);
    if (needs_old) {
      if (!old) old = environment.buffers.allocate(1);
      const bool in_memory = inode.data.overlaps(block, 1);
      auto recalled = co_await recall_block(inode, block, old->data());
      COFS_CO_TRY(recalled);
      bool at_hand = *recalled;
      if (!at_hand && !in_memory && goes_on_from_another(inode, data)) {
        at_hand = co_await read_edges_ahead(inode, block, old->data());
      }
      if (!at_hand) {
        auto read = co_await read_file_blocks(inode, block, 1, old->data(), nullptr);
        COFS_CO_TRY(read);
      }
      std::memcpy(target, old->data(), from);
      std::memcpy(target + to, old->data() + to, kBlockBytes - to);
    } else {
      std::memset(target, 0, from);
      std::memset(target + to, 0, kBlockBytes - to);
    }
    data.hashes[block - first] = block_hash(target);
  }
  co_return Result<>();
}

bool Files::Impl::goes_on_from_another(const Inode& inode, const WriteData& data) const {
  if (data.offset == 0) return false;
  const uint64_t before = (data.offset - 1) / kBlockBytes;  // the block of the byte before it
  return inode.data.overlaps(before, 1) || recent_edges.knows(inode.ino, before);
}

Task<Result<bool>> Files::Impl::recall_block(Inode& inode, uint64_t file_block, std::byte* target) {
  if (!recent_edges.knows(inode.ino, file_block) || inode.data.overlaps(file_block, 1)) co_return false;
  auto mappings = co_await store.map_range(inode.ino, file_block, 1, 1);
  COFS_CO_TRY(mappings);
  if (mappings->empty()) co_return false;
  co_return recent_edges.copy(inode.ino, file_block, mappings->front().virtual_block, target);
}

// Who writes records over older ones, one after the other (a database's log, begun anew), comes to the next blocks soon: they are read
// together with this one, and kept. False: they cannot be read, which says nothing about this one.
Task<bool> Files::Impl::read_edges_ahead(Inode& inode, uint64_t file_block, std::byte* target) {
  const uint64_t most = std::min(kEdgesAhead, blocks_of_bytes(inode.size) - file_block);
  // What is in memory may be given another place meanwhile; what is not has its place for as long as the file is locked.
  uint64_t count = 1;
  while (count < most && !inode.data.overlaps(file_block + count, 1)) count++;
  auto mappings = co_await store.map_range(inode.ino, file_block, count, count);
  if (!mappings) co_return false;
  const BufferRef buffer = environment.buffers.allocate(static_cast<uint32_t>(count));
  auto read = co_await read_file_blocks(inode, file_block, static_cast<uint32_t>(count), buffer->data(), nullptr);
  if (!read) co_return false;
  for (const Mapping& mapping : *mappings) {
    if (mapping.virtual_block == 0) continue;  // preallocated
    for (uint64_t i = 0; i < mapping.count; i++) {
      const uint64_t block = mapping.file_block + i;
      if (block == file_block) continue;  // about to be written
      recent_edges.keep_placed(inode.ino, block, mapping.virtual_block + i, buffer->block(static_cast<uint32_t>(block - file_block)),
                               environment.buffers);
    }
  }
  std::memcpy(target, buffer->data(), kBlockBytes);
  co_return true;
}

// How many blocks are still to be reserved, beyond the file's own reservation and `held`.
uint64_t Files::Impl::write_deficit(const Inode& inode, const WriteData& data, uint64_t held) const {
  const uint64_t first = first_block_of(data);
  const uint64_t count = block_count_of(data);
  uint64_t dirty = inode.data.dirty_blocks() + count - inode.data.dirty_blocks_in(first, count);
  uint64_t runs = inode.data.dirty_runs() + 2;  // the new run may cut an old one in two
  if (is_inline(inode) && first > 0) {
    dirty++;
    runs++;
  }
  const uint64_t size = std::max(inode.size, end_of(data));
  const uint64_t wanted = wanted_blocks(inode, dirty, runs, size);
  const uint64_t have = inode.data.reservation.blocks() + held;
  return wanted > have ? wanted - have : 0;
}

// For a writer where there is no other room: so much as it needs, from the space that was kept when blocks of the
// range were preallocated. They become holes, which the write that follows fills. Empty if there are none.
Task<Result<Reservation>> Files::Impl::take_preallocated(Inode& inode, const WriteData& data, uint64_t deficit) {
  const uint64_t first = first_block_of(data);
  const uint64_t count = block_count_of(data);
  auto kept = co_await find_preallocated(inode, first, count);
  COFS_CO_TRY(kept);
  if (kept->empty()) co_return Reservation();
  uint64_t blocks = 0;
  for (const BlockRange& range : *kept) blocks += range.count;
  // Without blocks it may become a file of the inline form.
  const bool is_small = std::max(inode.size, end_of(data)) <= ondisk::kInlineDataMax;
  const uint64_t more = is_small ? blocks_of_cost(Cost(0, ondisk::kInlineDataMax)) : 0;
  auto space = co_await store.reserve(Cost(deficit + more, 0), SpaceClass::kUser, blocks);
  COFS_CO_TRY(space);
  auto transaction =
      co_await store.begin(Cost(0, kept->size() * kMapRecordBytes), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  // A flush meanwhile may have put data there.
  kept = co_await find_preallocated(inode, first, count);
  COFS_CO_TRY(kept);
  for (const BlockRange& range : *kept) {
    transaction->map_extent(inode.ino, range.start, range.count, 0, 0);
  }
  if (!transaction->empty()) {
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
  }
  co_return std::move(*space);
}

Task<Result<std::vector<BlockRange>>> Files::Impl::find_preallocated(Inode& inode, uint64_t first,
                                                                     uint64_t count) {
  auto mappings = co_await store.map_range(inode.ino, first, count, count);
  COFS_CO_TRY(mappings);
  std::vector<BlockRange> found;
  for (const Mapping& mapping : *mappings) {
    if (mapping.virtual_block == 0) found.push_back(BlockRange{mapping.file_block, mapping.count});
  }
  co_return std::move(found);
}

// Applying: of what becomes dirty, the blocks that were covered in part are kept.
void Files::Impl::note_edges(const Inode& inode, const WriteData& data) {
  uint64_t from = first_block_of(data);
  uint64_t end = from + block_count_of(data);
  const bool has_tail = end_of(data) % kBlockBytes != 0;
  if (data.offset % kBlockBytes != 0 || (has_tail && end - from == 1)) {
    recent_edges.keep(inode.ino, from++, data.buffer->data(), environment.buffers);
  }
  if (has_tail && from < end) {
    end--;
    const std::byte* tail = data.buffer->block(static_cast<uint32_t>(end - first_block_of(data)));
    recent_edges.keep(inode.ino, end, tail, environment.buffers);
  }
  recent_edges.forget(inode.ino, from, end - from);
}

// Applying, in one step: the data, the size and the times.
void Files::Impl::insert(Inode& inode, WriteData& data, Reservation space) {
  const uint64_t end = end_of(data);
  inode.data.reservation.merge(std::move(space));
  if (is_inline(inode)) {
    if (first_block_of(data) > 0) {
      make_blocks(inode, Reservation());
    } else {  // the new block holds the old bytes already
      inode.flags &= ~ondisk::kInodeInline;
      inode.inline_data.clear();
    }
  }
  DataChange change(*this, inode);
  const uint64_t first = first_block_of(data);
  const uint64_t count = block_count_of(data);
  note_edges(inode, data);
  FileData::Run run;
  run.count = static_cast<uint32_t>(count);
  run.buffer = std::move(data.buffer);
  run.hashes = std::move(data.hashes);
  run.hashes.resize(run.count);
  inode.data.add_dirty(first, std::move(run));
  inode.size = std::max(inode.size, end);
  trim_reservation(inode);
  mark_data_changed(inode);
}

Task<Result<>> Files::Impl::write_locked(Inode& inode, WriteData& data) {
  auto finished = co_await finish_truncation(inode);
  COFS_CO_TRY(finished);
  auto completed = co_await complete_edges(inode, data);
  COFS_CO_TRY(completed);
  Reservation space;
  for (;;) {
    const uint64_t deficit = write_deficit(inode, data, space.blocks());
    if (deficit > 0) {
      if (!store.has_room(Cost(deficit, 0), SpaceClass::kUser)) {
        auto kept = co_await take_preallocated(inode, data, deficit);
        COFS_CO_TRY(kept);
        if (kept->blocks() != 0) {
          space.merge(std::move(*kept));
          continue;
        }
      }
      auto more = co_await store.reserve(Cost(deficit, 0), SpaceClass::kUser);
      COFS_CO_TRY(more);
      space.merge(std::move(*more));
      continue;
    }
    auto transaction = co_await store.begin(Reservation());
    COFS_CO_TRY(transaction);
    // A flush meanwhile may have taken dirty blocks, and their promise, that were counted on.
    if (write_deficit(inode, data, space.blocks()) > 0) continue;
    insert(inode, data, std::move(space));
    break;
  }
  co_return Result<>();
}

// The same bytes, in a buffer whose blocks are the file's blocks at another offset.
Task<> Files::Impl::move_to_offset(WriteData& data, uint64_t offset) {
  const uint32_t skip = static_cast<uint32_t>(data.offset % kBlockBytes);
  if (offset % kBlockBytes == skip || data.length == 0) {
    data.offset = offset;
    co_return;
  }
  WriteData moved;
  const auto refill = [&moved, &data, this, offset, skip] {
    moved = WriteData::fill(environment.buffers, offset, data.buffer->data() + skip, data.length);
  };
  if (data.length > bytes_of_blocks(kOutsideBlocks)) {
    co_await outside(environment.executor, refill);
  } else {
    refill();
  }
  data = std::move(moved);
}

Task<Result<>> Files::Impl::admit_write(Inode& inode, const WriteData& data, Unprivileged kill_privileges) {
  auto allowed = check_changeable(inode, data.offset >= inode.size);
  COFS_CO_TRY(allowed);
  if (data.length == 0) co_return Result<>();
  if (data.offset > kFileBytesMax || data.length > kFileBytesMax - data.offset) {
    co_return fail(Code::kFileTooBig, "write", inode.ino);
  }
  if (kill_privileges) {
    auto dropped = co_await drop_capability(store, inode);
    COFS_CO_TRY(dropped);
  }
  co_return Result<>();
}

Task<Result<>> Files::write(uint64_t ino, WriteData data, bool append, Unprivileged kill_privileges) {
  auto inode = co_await impl_->get_file(ino);
  COFS_CO_TRY(inode);
  auto room = co_await impl_->throttle();
  COFS_CO_TRY(room);
  Inode& file = **inode;
  // Before the lock: nobody who reads the file waits for what a writer owes.
  co_await impl_->store.pace(data.length == 0 ? 0 : impl_->write_deficit(file, data, 0));
  SharedMutex::Guard guard = co_await file.lock.lock_exclusive();
  if (append) co_await impl_->move_to_offset(data, file.size);
  auto admitted = co_await impl_->admit_write(file, data, kill_privileges);
  COFS_CO_TRY(admitted);
  if (data.length == 0) co_return Result<>();
  const PrivilegeKill kill(file, kill_privileges);
  auto written = co_await impl_->write_locked(file, data);
  COFS_CO_TRY(written);
  impl_->flush_if_due(*inode);
  co_return Result<>();
}

}  // namespace cofs
