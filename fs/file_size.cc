// Changing a file's size, and freeing data in steps.
//
// A truncation that fits one transaction is one. A longer one first makes the new size and a kLoggedOp
// record durable together, in the transaction that frees the first part, and erases the record with
// the last part; a crash in between is completed by finish_logged_operations(), a failure in between
// by the next operation that could make the file grow.

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "fs/files_impl.h"

namespace cofs {

namespace {

constexpr uint64_t kLoggedOpRecordBytes = sizeof(ondisk::Key) + sizeof(ondisk::LoggedOp);
constexpr uint64_t kStepRecordBytes = kMapRecordBytes + kLoggedOpRecordBytes;

void put_logged_truncation(Transaction& transaction, uint64_t ino, uint64_t size) {
  ondisk::LoggedOp record{};
  record.kind = ondisk::kLoggedTruncate;
  record.argument = size;
  transaction.put(Key::logged_op(ino), std::as_bytes(std::span(&record, 1)));
}

struct LoggedTruncation {
  uint64_t ino = 0;
  uint64_t size = 0;
  bool valid = false;
};

// A record is valid if and only if its length, kind and reserved bytes are those of a truncation.
LoggedTruncation parse_logged_truncation(const Key& key, Bytes value) {
  LoggedTruncation parsed;
  parsed.ino = key.id;
  if (key.type != ondisk::KeyType::kLoggedOp || value.size() != sizeof(ondisk::LoggedOp)) {
    return parsed;
  }
  ondisk::LoggedOp record;
  std::memcpy(&record, value.data(), sizeof record);
  bool reserved_zero = true;
  for (const uint8_t byte : record.reserved) reserved_zero = reserved_zero && byte == 0;
  parsed.size = record.argument;
  parsed.valid = record.kind == ondisk::kLoggedTruncate && reserved_zero &&
                 parsed.size <= kFileBytesMax && key.offset == 0 && key.n == 0;
  return parsed;
}

}  // namespace

Task<Result<uint64_t>> Files::Impl::add_unmap_step(Transaction& transaction, Inode& inode,
                                                   uint64_t first, uint64_t end, uint32_t flags) {
  if (first >= end) co_return end;
  const uint64_t extents_max = step_extents();
  auto mappings = co_await store.map_range(inode.ino, first, end - first, extents_max + 1);
  COFS_CO_TRY(mappings);
  const bool last = mappings->size() <= extents_max;
  uint64_t step_end = last ? end : (*mappings)[extents_max - 1].end();
  uint64_t blocks = 0;
  for (const Mapping& mapping : *mappings) {
    if (mapping.virtual_block == 0) continue;
    blocks += mapping.count;
    if (blocks <= kStepBlocksMax) continue;
    step_end = std::min(step_end, mapping.end() - (blocks - kStepBlocksMax));
    break;
  }
  if (flags != 0) {  // one record holds no more
    step_end = std::min(step_end, first + ondisk::kExtentBlocksMax);
  }
  if (!mappings->empty() || flags != 0) {
    transaction.map_extent(inode.ino, first, step_end - first, 0, flags);
  }
  co_return step_end;
}

Task<Result<>> Files::Impl::prepare_zeroed(Inode& inode, uint64_t file_block, uint32_t from,
                                           uint32_t to, std::vector<EdgeBlock>* edges) {
  EdgeBlock edge;
  edge.file_block = file_block;
  edge.buffer = environment.buffers.allocate(1);
  bool any_data = false;
  auto read = co_await read_file_blocks(inode, file_block, 1, edge.buffer->data(), &any_data);
  COFS_CO_TRY(read);
  if (!any_data) co_return Result<>();
  std::memset(edge.buffer->data() + from, 0, to - from);
  edges->push_back(std::move(edge));
  co_return Result<>();
}

Task<Result<>> Files::Impl::grow(Inode& inode, uint64_t size) {
  auto finished = co_await finish_truncation(inode);
  COFS_CO_TRY(finished);
  // Inline data either gets longer or becomes a block; which it is now may change while waiting.
  Cost cost;
  if (inode.size <= ondisk::kInlineDataMax && inode.size > 0) cost = data_cost(1, 1);
  cost.record_bytes += ondisk::kInlineDataMax;
  auto space = co_await store.reserve(cost, SpaceClass::kUser);
  COFS_CO_TRY(space);
  auto transaction = co_await store.begin(Reservation());
  COFS_CO_TRY(transaction);
  if (is_inline(inode)) {
    if (size <= ondisk::kInlineDataMax) {
      inode.inline_data.resize(size, '\0');
      inline_space.merge(std::move(*space));
    } else {
      make_blocks(inode, std::move(*space));
    }
  }
  inode.size = size;
  trim_reservation(inode);
  mark_data_changed(inode);
  co_return Result<>();
}

Task<Result<>> Files::Impl::shrink(Inode& inode, uint64_t size) {
  const uint64_t first_gone = blocks_of_bytes(size);
  const uint32_t tail = static_cast<uint32_t>(size % kBlockBytes);
  std::vector<EdgeBlock> edges;
  Reservation space;
  if (tail != 0 && size < inode.size) {
    auto prepared = co_await prepare_zeroed(inode, first_gone - 1, tail, kBlockBytes, &edges);
    COFS_CO_TRY(prepared);
    Cost cost = data_cost(1, 1);
    cost.record_bytes += ondisk::kInlineDataMax;
    auto reserved = co_await store.reserve(cost, SpaceClass::kDelete);
    COFS_CO_TRY(reserved);
    space = std::move(*reserved);
  }
  uint64_t step_end = kFileBlocksMax;
  {
    auto transaction = co_await store.begin(Cost(0, kStepRecordBytes), SpaceClass::kDelete);
    COFS_CO_TRY(transaction);
    auto step = co_await add_unmap_step(*transaction, inode, first_gone, kFileBlocksMax, 0);
    COFS_CO_TRY(step);
    step_end = *step;
    const bool more = step_end < kFileBlocksMax;
    if (more) put_logged_truncation(*transaction, inode.ino, size);
    if (!more && unfinished_truncations.contains(inode.ino)) {
      transaction->erase(Key::logged_op(inode.ino));
    }
    if (!transaction->empty()) {
      auto applied = co_await transaction->apply();
      COFS_CO_TRY(applied);
    }
    DataChange change(*this, inode);
    inode.data.drop(first_gone, kFileBlocksMax - first_gone);
    if (is_inline(inode)) {
      inode.inline_data.resize(size);
      if (size == 0) inode.flags &= ~ondisk::kInodeInline;
    } else {
      add_edges(inode, &edges, std::move(space));
    }
    inode.size = size;
    trim_reservation(inode);
    mark_data_changed(inode);
    if (more) {
      unfinished_truncations.insert(inode.ino);
    } else {
      unfinished_truncations.erase(inode.ino);
    }
  }
  if (step_end < kFileBlocksMax) co_return co_await truncate_steps(inode, step_end);
  co_return Result<>();
}

Task<Result<>> Files::Impl::truncate_steps(Inode& inode, uint64_t first) {
  while (first < kFileBlocksMax) {
    co_await let_others_in();
    auto transaction = co_await store.begin(Cost(0, kStepRecordBytes), SpaceClass::kDelete);
    COFS_CO_TRY(transaction);
    auto step = co_await add_unmap_step(*transaction, inode, first, kFileBlocksMax, 0);
    COFS_CO_TRY(step);
    if (*step == kFileBlocksMax) transaction->erase(Key::logged_op(inode.ino));
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    first = *step;
  }
  unfinished_truncations.erase(inode.ino);
  co_return Result<>();
}

Task<Result<>> Files::Impl::finish_truncation(Inode& inode) {
  if (!unfinished_truncations.contains(inode.ino)) co_return Result<>();
  co_return co_await truncate_steps(inode, blocks_of_bytes(inode.size));
}

Task<Result<>> Files::set_size(Inode& inode, uint64_t size) {
  if (size > kFileBytesMax) co_return fail(Code::kFileTooBig, "truncate", inode.ino);
  if (size > inode.size) co_return co_await impl_->grow(inode, size);
  // One under way is continued by the shorter one: its steps begin at the new end.
  co_return co_await impl_->shrink(inode, size);
}

Task<Result<>> Files::free_data(Inode& inode) {
  Impl& impl = *impl_;
  uint64_t first = 0;
  while (first < kFileBlocksMax) {
    if (first != 0) co_await impl.let_others_in();
    auto transaction = co_await impl.store.begin(Cost(0, kStepRecordBytes), SpaceClass::kDelete);
    COFS_CO_TRY(transaction);
    auto step = co_await impl.add_unmap_step(*transaction, inode, first, kFileBlocksMax, 0);
    COFS_CO_TRY(step);
    const bool last = *step == kFileBlocksMax;
    if (last && impl.unfinished_truncations.contains(inode.ino)) {
      transaction->erase(Key::logged_op(inode.ino));
    }
    if (!transaction->empty()) {
      auto applied = co_await transaction->apply();
      COFS_CO_TRY(applied);
    }
    Impl::DataChange change(impl, inode);
    inode.data.drop(0, kFileBlocksMax);
    inode.data.reservation.release();
    if (last) {
      impl.unfinished_truncations.erase(inode.ino);
      inode.inline_data.clear();
      inode.flags &= ~ondisk::kInodeInline;
      inode.size = 0;
      impl.inodes.mark_dirty(inode);
    }
    first = *step;
  }
  co_return Result<>();
}

Task<Result<>> Files::finish_logged_operations() {
  Impl& impl = *impl_;
  std::vector<LoggedTruncation> found;
  bool valid = true;
  uint64_t where = 0;
  auto scanned = co_await impl.store.scan(
      Key::logged_op(0), Key(ondisk::KeySpace::kVolume, 0, ondisk::KeyType{}), UINT64_MAX,
      [&](const Key& key, Bytes value) {
        found.push_back(parse_logged_truncation(key, value));
        if (!found.back().valid) where = key.id;
        valid = valid && found.back().valid;
        return valid;
      });
  COFS_CO_TRY(scanned);
  if (!valid) co_return fail(Code::kCorrupt, "logged operation record", where);
  for (const LoggedTruncation& operation : found) {
    auto inode = co_await impl.inodes.get(operation.ino);
    if (!inode && inode.error().code != Code::kStale) co_return fail(inode.error());
    if (!inode) {
      auto transaction = co_await impl.store.begin(Cost(0, 0), SpaceClass::kDelete);
      COFS_CO_TRY(transaction);
      transaction->erase(Key::logged_op(operation.ino));
      auto applied = co_await transaction->apply();
      COFS_CO_TRY(applied);
      continue;
    }
    SharedMutex::Guard guard = co_await (*inode)->lock.lock_exclusive();
    const uint64_t size = std::max(operation.size, (*inode)->size);
    impl.unfinished_truncations.insert(operation.ino);
    auto done = co_await impl.truncate_steps(**inode, blocks_of_bytes(size));
    COFS_CO_TRY(done);
    impl.environment.journal.write(
        Severity::kInfo, "completed an interrupted truncation of inode " +
                             std::to_string(operation.ino));
  }
  co_return Result<>();
}

}  // namespace cofs
