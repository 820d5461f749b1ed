// Copies: bytes from one file to another (or within one), by the copy engine, or by sharing, wherever whole
// blocks allow it.
//
// The request is cut into a head, whole blocks, and a tail. Where source and target offsets are
// congruent the blocks between go through the engine, in batches: the source's mapping is read, its
// data copied to new space, and the new mapping, the size and the times published in one transaction;
// so what was replied is all there or not at all. Holes and unwritten extents of the source become
// holes. Heads, tails, inline data and incongruent offsets are read and written here, in memory.
//
// The device copies what is on the device, so dirty source data is flushed and its writes awaited
// first. The source's lock keeps it as it is from then on.

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>

#include "fs/files_impl.h"
#include "fs/xattr.h"

namespace cofs {

// Whole blocks to be copied and published together.
struct Files::Impl::CopyBatch {
  explicit CopyBatch(Executor& executor) : done(executor) {}
  struct Piece {
    uint64_t count = 0;
    bool is_data = false;
  };
  uint64_t source_block = 0;
  uint64_t target_block = 0;
  uint64_t count = 0;
  std::vector<Piece> pieces;        // in file order, sums to count
  std::vector<BlockRange> sources;  // virtual ranges of the data pieces, in order, merged
  uint64_t data_blocks = 0;
  bool may_use_host = true;

  // What became of it.
  Reservation space;
  std::vector<StagedRun> runs;  // a prefix of the data
  Result<> copied;              // why it is not all of it
  bool refused = false;         // there was no space for it
  WaitGroup done;

  void add(uint64_t blocks, bool is_data) {
    if (blocks == 0) return;
    count += blocks;
    if (is_data) data_blocks += blocks;
    if (!pieces.empty() && pieces.back().is_data == is_data) {
      pieces.back().count += blocks;
    } else {
      pieces.push_back(Piece{blocks, is_data});
    }
  }
  void add_source(uint64_t virtual_block, uint64_t blocks) {
    if (!sources.empty() && sources.back().end() == virtual_block) {
      sources.back().count += blocks;
    } else {
      sources.push_back(BlockRange{virtual_block, blocks});
    }
  }
};

namespace {

// Staged runs, consumed in order.
class StagedQueue {
 public:
  explicit StagedQueue(std::vector<StagedRun> runs) : runs_(std::move(runs)) {
    for (const StagedRun& run : runs_) left_ += run.count;
  }
  uint64_t left() const { return left_; }
  // The next piece of at most `count` blocks. REQUIRES: left() > 0.
  StagedRun next(uint64_t count) {
    StagedRun& run = runs_[index_];
    const uint32_t blocks = static_cast<uint32_t>(std::min<uint64_t>(count, run.count));
    left_ -= blocks;
    if (blocks < run.count) return run.split_front(blocks);
    index_++;
    return std::move(run);
  }

 private:
  std::vector<StagedRun> runs_;
  size_t index_ = 0;
  uint64_t left_ = 0;
};

}  // namespace

Task<Result<>> Files::Impl::copy_by_host(CopyJob& job, uint64_t length) {
  const uint64_t stop = job.done + length;
  while (job.done < stop) {
    // A write carries at most a megabyte; ending at a block of the target keeps the next one whole.
    uint64_t bytes = std::min<uint64_t>(stop - job.done, kReadBytesMax);
    const uint64_t over = (job.target_at() + bytes) % kBlockBytes;
    if (bytes == kReadBytesMax && over != 0) bytes -= over;
    const uint32_t piece = static_cast<uint32_t>(bytes);
    auto read = co_await read_locked(*job.source, job.source_at(), piece);
    COFS_CO_TRY(read);
    WriteData data;
    const auto refill = [&data, &job, &read, this, piece] {
      data = WriteData::fill(environment.buffers, job.target_at(), read->data(), piece);
    };
    if (piece > bytes_of_blocks(kOutsideBlocks)) {
      co_await outside(environment.executor, refill);
    } else {
      refill();
    }
    auto written = co_await write_locked(*job.target, data);
    COFS_CO_TRY(written);
    flush_if_due(job.target);
    edge_bytes += piece;
    job.done += piece;
  }
  co_return Result<>();
}

// The next batch of source blocks [first, first + count): cut where it would hold too much data or too
// many extents, or replace too many.
Task<Result<>> Files::Impl::plan_batch(CopyJob& job, uint64_t first, uint64_t count,
                                       CopyBatch* batch) {
  batch->source_block = first;
  batch->may_use_host = !job.strict();
  batch->target_block =
      (job.target_offset + (bytes_of_blocks(first) - job.source_offset)) / kBlockBytes;
  const uint64_t extents_max = step_extents();
  auto replaced = co_await store.map_range(job.target->ino, batch->target_block, count,
                                           extents_max + 1);
  COFS_CO_TRY(replaced);
  if (replaced->size() > extents_max) {
    count = (*replaced)[extents_max - 1].end() - batch->target_block;
  }
  auto mappings = co_await store.map_range(job.source->ino, first, count, kCopyBatchExtents);
  COFS_CO_TRY(mappings);
  const uint64_t end = mappings->size() < kCopyBatchExtents ? first + count : mappings->back().end();
  uint64_t cursor = first;
  for (const Mapping& mapping : *mappings) {
    batch->add(mapping.file_block - cursor, false);
    cursor = mapping.file_block;
    const bool is_data = mapping.virtual_block != 0;
    const uint64_t room = kCopyBatchBlocks - batch->data_blocks;
    const uint64_t blocks = is_data ? std::min(mapping.count, room) : mapping.count;
    batch->add(blocks, is_data);
    if (is_data) batch->add_source(mapping.virtual_block, blocks);
    cursor += blocks;
    if (batch->data_blocks == kCopyBatchBlocks || batch->pieces.size() >= kCopyBatchPieces) {
      co_return Result<>();
    }
  }
  batch->add(end - cursor, false);
  co_return Result<>();
}

// Applying, after the mapping of the next `blocks` blocks changed: the rest of the change.
void Files::Impl::publish_copy(CopyJob& job, uint64_t blocks) {
  const uint64_t first = job.target_at() / kBlockBytes;
  job.done += std::min(bytes_of_blocks(blocks), job.left());
  replace_blocks(*job.target, BlockRange{first, blocks}, job.target_at());
}

// Copies a planned batch to new space.
Task<> Files::Impl::copy_batch(CopyBatch* batch) {
  // Runs end where pieces, vmap records and segments do.
  const uint64_t segments = 2 * batch->data_blocks / store.info().segment_blocks;
  const Cost cost =
      data_cost(batch->data_blocks, batch->pieces.size() + segments +
                                        batch->data_blocks / ondisk::kVmapBlocksMax + 4);
  co_await store.pace(batch->data_blocks);
  auto space = co_await store.reserve(cost, SpaceClass::kUser);
  if (space) {
    batch->space = std::move(*space);
    if (!batch->sources.empty()) {
      batch->runs = co_await store.copy_blocks(&batch->sources, &batch->space, &batch->copied,
                                               batch->may_use_host);
    }
  } else {
    batch->copied = fail(space.error());
    batch->refused = true;
  }
  batch->done.done();
}

// Maps what was copied of a batch, as much of it as the engine managed. Returns why it is not all.
Task<Result<>> Files::Impl::publish_batch(CopyJob& job, CopyBatch& batch) {
  if (batch.refused) co_return batch.copied;
  Result<> copied = batch.copied;
  StagedQueue staged(std::move(batch.runs));
  if (staged.left() < batch.data_blocks && copied) {
    copied = fail(Code::kIo, "copy engine copied less than asked", job.target->ino);
  }
  auto transaction = co_await store.begin_within_bounds(std::move(batch.space));
  COFS_CO_TRY(transaction);
  COFS_ASSERT(job.target_at() == bytes_of_blocks(batch.target_block));
  uint64_t blocks = 0;
  for (const CopyBatch::Piece& piece : batch.pieces) {
    uint64_t left = piece.count;
    const uint64_t target = batch.target_block;
    if (!piece.is_data) {
      transaction->map_extent(job.target->ino, target + blocks, left, 0, 0);
      blocks += left;
      continue;
    }
    while (left > 0 && staged.left() > 0) {
      StagedRun run = staged.next(left);
      const uint32_t count = run.count;
      transaction->map_staged(job.target->ino, target + blocks, std::move(run));
      blocks += count;
      left -= count;
    }
    if (left > 0) break;
  }
  if (blocks > 0) {
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    publish_copy(job, blocks);
  }
  co_return copied;
}

// Source blocks [first, +count) to the target, whose offset is congruent; or less, without an error, where space is short. While one batch is published the
// next is being copied, so that the device does not wait.
Task<Result<>> Files::Impl::copy_blocks(CopyJob& job, uint64_t first, uint64_t count) {
  const uint64_t end = first + count;
  std::deque<std::unique_ptr<CopyBatch>> under_way;
  Result<> result;
  bool is_short = false;
  while (true) {
    while (result && first < end && under_way.size() < kCopyBatchesUnderWay) {
      result = job.check_wanted();
      if (!result) break;
      auto batch = std::make_unique<CopyBatch>(environment.executor);
      result = co_await plan_batch(job, first, end - first, batch.get());
      if (!result) break;
      first += batch->count;
      batch->done.add();
      spawn(environment.executor, copy_batch(batch.get()));
      under_way.push_back(std::move(batch));
    }
    if (under_way.empty()) co_return result;
    const std::unique_ptr<CopyBatch> batch = std::move(under_way.front());
    under_way.pop_front();
    co_await batch->done.wait();
    if (!result || is_short) continue;
    result = co_await publish_batch(job, *batch);
    if (!result && batch->refused && result.error().code == Code::kNoSpace) {
      result = co_await copy_into_preallocated(job, *batch, result);
      is_short = true;
      first = end;
    }
  }
}

// A batch that there was no space for: what was preallocated for its target is kept for its target, and given up by
// writing there. Copies as much as is taken into memory at once; the copy is short then. Returns `refusal` where nothing
// was preallocated; and for a source with holes, which would become zeros.
Task<Result<>> Files::Impl::copy_into_preallocated(CopyJob& job, CopyBatch& batch, Result<> refusal) {
  COFS_ASSERT(job.target_at() == bytes_of_blocks(batch.target_block));
  if (job.strict() || batch.data_blocks != batch.count) co_return refusal;
  auto kept = co_await find_preallocated(*job.target, batch.target_block, batch.count);
  COFS_CO_TRY(kept);
  if (kept->empty()) co_return refusal;
  const uint64_t bytes = std::min(bytes_of_blocks(batch.count), job.left());
  co_return co_await copy_by_host(job, std::min(bytes, kHostCopyBytesMax));
}

// Source blocks [first, end) to the target, as the job's policy says.
Task<Result<>> Files::Impl::move_blocks(CopyJob& job, uint64_t first, uint64_t end) {
  if (job.policy == CopyPolicy::kCopy) co_return co_await copy_blocks(job, first, end - first);
  if (job.policy == CopyPolicy::kStrictDevice) {
    auto copied = co_await copy_blocks(job, first, end - first);
    const bool is_device_at_fault = !copied && copied.error().code != Code::kNoSpace &&
                                    copied.error().code != Code::kInterrupted && !store.shut_down();
    if (!is_device_at_fault) co_return copied;
    first = blocks_of_bytes(job.source_at());  // the device could not: the rest is shared
    co_return co_await share_blocks(job, first, end - first);
  }
  auto shared = co_await share_blocks(job, first, end - first);
  if (shared || shared.error().code != Code::kTooManyLinks) co_return shared;
  if (job.policy == CopyPolicy::kStrictShare) {
    co_return fail(Code::kInvalid, "a clone of blocks that have as many references as can be counted",
                   job.source->ino);
  }
  first = blocks_of_bytes(job.source_at());
  co_return co_await copy_blocks(job, first, end - first);
}

Task<Result<>> Files::Impl::run_copy(CopyJob& job) {
  Inode& source = *job.source;
  Inode& target = *job.target;
  auto finished = co_await finish_truncation(target);
  COFS_CO_TRY(finished);
  const bool congruent = job.source_offset % kBlockBytes == job.target_offset % kBlockBytes;
  const uint64_t first = blocks_of_bytes(job.source_offset);
  const uint64_t source_end = job.source_offset + job.length;
  uint64_t end = source_end / kBlockBytes;
  // The block at the source's end counts as whole if the target ends there too: what follows in it is
  // zero. (Within one file, it might be the block that a head is copied into.)
  const bool ends_both = source_end == source.size &&
                         job.target_offset + job.length >= target.size &&
                         (!job.same_file() || job.source_offset % kBlockBytes == 0);
  if (ends_both) end = blocks_of_bytes(source_end);
  if (congruent && end > first && !is_inline(source)) {
    auto settled = co_await settle_range(job.source, first, end - first);
    COFS_CO_TRY(settled);
  }
  if (!congruent || end <= first || is_inline(source)) {
    if (job.strict() && !is_inline(source)) {
      co_return fail(Code::kInvalid, "a clone that is not made of whole blocks", source.ino);
    }
    co_return co_await copy_by_host(job, std::min(job.length, kHostCopyBytesMax));
  }
  if (job.strict() && (job.source_offset % kBlockBytes != 0 || bytes_of_blocks(end) < source_end)) {
    co_return fail(Code::kInvalid, "a clone that is not made of whole blocks", source.ino);
  }
  BlockHold source_hold(source);
  BlockHold target_hold(target);
  auto blocks = co_await to_block_form(target);
  COFS_CO_TRY(blocks);
  auto head = co_await copy_by_host(job, bytes_of_blocks(first) - job.source_offset);
  COFS_CO_TRY(head);
  auto middle = co_await move_blocks(job, first, end);
  COFS_CO_TRY(middle);
  if (job.source_at() < bytes_of_blocks(end)) co_return Result<>();  // short, or all was copied
  co_return co_await copy_by_host(job, job.left());
}

Task<Result<uint64_t>> Files::copy_locked(InodeRef source, InodeRef target, CopyRequest request,
                                          CopyPolicy policy) {
  auto allowed = Impl::check_changeable(*target, request.target_offset >= target->size);
  COFS_CO_TRY(allowed);
  const uint64_t size = source->size;
  uint64_t length = request.length;
  if (policy == CopyPolicy::kCopy || policy == CopyPolicy::kStrictDevice) {
    length = std::min(length, impl_->options.copy_bytes_max);
  }
  length = std::min(length, request.source_offset < size ? size - request.source_offset : 0);
  if (length == 0) co_return 0;
  if (request.target_offset >= kFileBytesMax) co_return fail(Code::kFileTooBig, "copy", target->ino);
  length = std::min(length, kFileBytesMax - request.target_offset);
  if (source.get() == target.get() && request.source_offset < request.target_offset + length &&
      request.target_offset < request.source_offset + length) {
    co_return fail(Code::kInvalid, "copy onto itself", target->ino);
  }
  if (request.kill_privileges) {
    auto dropped = co_await drop_capability(impl_->store, *target);
    COFS_CO_TRY(dropped);
  }
  const PrivilegeKill kill(*target, request.kill_privileges);
  Impl::CopyJob job(source, target, request, length, policy);
  auto result = co_await impl_->run_copy(job);
  if (!result && job.done == 0) co_return fail(result.error());
  co_return job.done;
}

void Files::copied(InodeRef source, InodeRef target) {
  impl_->note_access(*source);
  impl_->flush_if_due(target);
}

bool Files::device_copies() const {
  return impl_->store.copy_engine_for(kRateRangeBlocks.back()) != "host";
}

}  // namespace cofs
