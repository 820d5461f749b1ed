// Reading file data: from memory where it is newer, from the device where it is not, zeros elsewhere.
//
// What is in memory is noted (its buffers referenced) before the first wait. Under the inode's lock no
// other block of the file changes afterwards: flushing only moves blocks that are in memory.

#include <algorithm>
#include <cstring>
#include <utility>

#include "fs/files_impl.h"

namespace cofs {

namespace {

struct DeviceRead {
  BlockRange virtual_blocks;
  std::byte* target = nullptr;
};

// Reads of one request, shared by the workers that do them.
struct ReadBatch {
  ReadBatch(Store& s, Executor& executor) : store(s), group(executor) {}
  Store& store;
  std::vector<DeviceRead> reads;
  size_t next = 0;
  Result<> result;  // the first error
  WaitGroup group;
};

Task<> read_worker(ReadBatch* batch) {
  while (batch->next < batch->reads.size() && batch->result) {
    const DeviceRead& read = batch->reads[batch->next++];
    auto done = co_await batch->store.read_blocks(read.virtual_blocks, read.target);
    if (!done && batch->result) batch->result = fail(done.error());
  }
  batch->group.done();
}

Task<Result<>> read_all(ReadBatch* batch, Executor& executor) {
  if (batch->reads.empty()) co_return Result<>();
  if (batch->reads.size() == 1) {
    const DeviceRead& read = batch->reads[0];
    co_return co_await batch->store.read_blocks(read.virtual_blocks, read.target);
  }
  const uint64_t workers = std::min<uint64_t>(batch->reads.size(), kReadsInFlightMax);
  batch->group.add(workers);
  for (uint64_t i = 0; i < workers; i++) spawn(executor, read_worker(batch));
  co_await batch->group.wait();
  co_return batch->result;
}

// A stretch of the request to be filled: not in memory.
struct Gap {
  uint64_t first = 0;
  uint64_t end = 0;
};

std::vector<Gap> gaps_between(const std::vector<FileData::Piece>& pieces, uint64_t first,
                              uint64_t end) {
  std::vector<Gap> gaps;
  uint64_t cursor = first;
  for (const FileData::Piece& piece : pieces) {
    if (cursor < piece.file_block) gaps.push_back(Gap{cursor, piece.file_block});
    cursor = piece.end();
  }
  if (cursor < end) gaps.push_back(Gap{cursor, end});
  return gaps;
}

// Fills the gaps from the mappings: appends device reads, merged where they follow each other both in
// the file and in virtual space, and zeroes the rest. `memory` stands for file block `base`.
void plan_reads(const std::vector<Gap>& gaps, const std::vector<Mapping>& mappings, uint64_t base,
                std::byte* memory, std::vector<DeviceRead>* reads) {
  const auto at = [&](uint64_t block) { return memory + bytes_of_blocks(block - base); };
  size_t index = 0;
  for (const Gap& gap : gaps) {
    uint64_t cursor = gap.first;
    while (index > 0 && mappings[index - 1].end() > gap.first) index--;
    for (; index < mappings.size() && mappings[index].file_block < gap.end; index++) {
      const Mapping& mapping = mappings[index];
      if (mapping.end() <= gap.first || mapping.virtual_block == 0) continue;
      const uint64_t from = std::max(mapping.file_block, gap.first);
      const uint64_t to = std::min(mapping.end(), gap.end);
      std::memset(at(cursor), 0, bytes_of_blocks(from - cursor));
      cursor = to;
      const uint64_t virtual_block = mapping.virtual_block + (from - mapping.file_block);
      if (!reads->empty()) {
        DeviceRead& last = reads->back();
        if (last.virtual_blocks.end() == virtual_block &&
            last.target + bytes_of_blocks(last.virtual_blocks.count) == at(from)) {
          last.virtual_blocks.count += to - from;
          continue;
        }
      }
      reads->push_back(DeviceRead{BlockRange{virtual_block, to - from}, at(from)});
    }
    std::memset(at(cursor), 0, bytes_of_blocks(gap.end - cursor));
  }
}

void copy_inline(const std::string& bytes, uint64_t first, uint32_t count, std::byte* target) {
  std::memset(target, 0, bytes_of_blocks(count));
  if (first == 0) std::memcpy(target, bytes.data(), bytes.size());
}

}  // namespace

Task<Result<>> Files::Impl::read_file_blocks(Inode& inode, uint64_t first, uint32_t count,
                                             std::byte* target, bool* any_data) {
  if (any_data != nullptr) *any_data = true;
  if (is_inline(inode)) {
    copy_inline(inode.inline_data, first, count, target);
    co_return Result<>();
  }
  const std::vector<FileData::Piece> pieces = inode.data.pieces(first, count);
  const std::vector<Gap> gaps = gaps_between(pieces, first, first + count);
  ReadBatch batch(store, environment.executor);
  if (!gaps.empty()) {
    const uint64_t gap_end = gaps.back().end;
    const uint64_t gap_start = gaps.front().first;
    auto mappings = co_await store.map_range(inode.ino, gap_start, gap_end - gap_start,
                                             gap_end - gap_start);
    COFS_CO_TRY(mappings);
    plan_reads(gaps, *mappings, first, target, &batch.reads);
  }
  const auto copy_pieces = [&pieces, first, target] {
    for (const FileData::Piece& piece : pieces) {
      std::memcpy(target + bytes_of_blocks(piece.file_block - first), piece.data(),
                  bytes_of_blocks(piece.count));
    }
  };
  uint64_t in_memory = 0;
  for (const FileData::Piece& piece : pieces) in_memory += piece.count;
  if (in_memory > kOutsideBlocks) {
    co_await outside(environment.executor, copy_pieces);
  } else {
    copy_pieces();
  }
  if (any_data != nullptr) *any_data = !pieces.empty() || !batch.reads.empty();
  co_return co_await read_all(&batch, environment.executor);
}

Task<Result<ReadData>> Files::Impl::read_locked(Inode& inode, uint64_t offset, uint32_t length) {
  ReadData data;
  data.skip = static_cast<uint32_t>(offset % kBlockBytes);
  data.length = length;
  const uint64_t first = offset / kBlockBytes;
  const uint64_t blocks = std::max<uint64_t>(blocks_of_bytes(uint64_t{data.skip} + length), 1);
  const uint32_t count = static_cast<uint32_t>(blocks);
  if (length == 0) {
    data.buffer = environment.buffers.allocate(1);
    co_return std::move(data);
  }
  if (!is_inline(inode)) {
    // All of it in one buffer of ours: that buffer is the answer, since it never changes.
    std::vector<FileData::Piece> pieces = inode.data.pieces(first, count);
    if (pieces.size() == 1 && pieces[0].count == count) {
      data.buffer = std::move(pieces[0].buffer);
      data.skip += pieces[0].buffer_block * kBlockBytes;
      co_return std::move(data);
    }
  }
  data.buffer = environment.buffers.allocate(count);
  auto done = co_await read_file_blocks(inode, first, count, data.buffer->data(), nullptr);
  COFS_CO_TRY(done);
  co_return std::move(data);
}

void Files::Impl::note_access(Inode& inode) {
  if (options.read_only || store.read_only()) return;
  const WallTime now = environment.clock.wall();
  if (!should_update_access_time(inode, now, options.access_times)) return;
  inode.access_time = now;
  inodes.mark_dirty(inode);
}

Task<Result<ReadData>> Files::read(uint64_t ino, uint64_t offset, uint32_t length) {
  auto inode = co_await impl_->get_file(ino);
  COFS_CO_TRY(inode);
  Inode& file = **inode;
  SharedMutex::Guard guard = co_await file.lock.lock_shared();
  if (file.deleted) co_return fail(Code::kStale, "read", ino);
  const uint64_t left = offset < file.size ? file.size - offset : 0;
  const uint64_t bytes = std::min({uint64_t{length}, left, uint64_t{kReadBytesMax}});
  auto data = co_await impl_->read_locked(file, offset, static_cast<uint32_t>(bytes));
  if (data && bytes > 0 && !file.deleted) impl_->note_access(file);
  co_return std::move(data);
}

}  // namespace cofs
