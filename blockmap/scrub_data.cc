// Scrubbing file data, by virtual number, and naming the files that hold what is damaged.
//
// A block may look damaged because it is still being written, or because its place was given to something
// else while it was on the way here; the first is waited for, the second ended by a reader's ticket. See
// look_again().

#include <algorithm>

#include "blockmap/scrub.h"

namespace cofs {
namespace {

constexpr uint32_t kBatchBlocks = BufferPool::kBufferBlocksMax;
constexpr size_t kDamagedMax = 10'000;  // blocks whose files are looked for

std::string number(uint64_t value) { return std::to_string(value); }

// A contiguous part of a batch.
struct ScrubRead {
  BlockRange physical;
  uint32_t first = 0;  // of the batch's blocks
};

}  // namespace

struct Scrubber::DataBatch {
  explicit DataBatch(BufferPool& buffers) : buffer(buffers.allocate(kBatchBlocks)) {}
  BufferRef buffer;
  std::vector<uint64_t> virtual_blocks;
  std::vector<uint32_t> checksums;
  std::vector<ScrubRead> reads;
  std::vector<bool> suspect;  // could not be read, or is not what its checksum says
};

Task<Result<>> Scrubber::scrub_data() {
  cursor_ = 0;
  end_ = store_.next_virtual;  // what is written from now on was written a moment ago
  while (!ended()) {
    begin_batch();
    DataBatch batch(store_.env.buffers);
    bool more = false;
    {
      const ReaderTicket ticket(&store_);
      auto collected = co_await collect(&batch);
      COFS_CO_TRY(collected);
      more = *collected;
      const uint64_t ordinal = store_.write_ordinal;
      auto settled = co_await store_.settle_writes(ordinal);
      COFS_CO_TRY(settled);
      co_await read_batch(&batch);
    }
    for (size_t i = 0; i < batch.suspect.size() && !ended(); i++) {
      if (!batch.suspect[i]) continue;
      auto looked = co_await look_again(batch.virtual_blocks[i]);
      COFS_CO_TRY(looked);
    }
    co_await end_batch(bytes_of_blocks(batch.virtual_blocks.size()));
    if (!more) break;
  }
  if (damaged_.empty()) co_return Result<>();
  auto found = co_await find_owners();
  COFS_CO_TRY(found);
  auto reported = co_await report_unowned();
  co_return reported;
}

// Fills the batch from the cursor on. False: there is nothing behind it.
Task<Result<bool>> Scrubber::collect(DataBatch* batch) {
  while (batch->virtual_blocks.size() < kBatchBlocks) {
    if (cursor_ >= end_) co_return false;
    auto found = co_await find_vmap(store_.tree, store_.geometry, cursor_, end_);
    if (!found) {
      if (store_.shut_down) co_return fail(found.error());
      // A part of vmap that cannot be read: the pass over the nodes has said so.
      const BTree::Path path = co_await store_.tree.path_to(Key::vmap(cursor_));
      if (!path.next || path.next->space != ondisk::KeySpace::kVmap) co_return false;
      cursor_ = std::max(cursor_ + 1, path.next->id);
      continue;
    }
    if (!found->has_value()) co_return false;
    const VmapPiece& piece = **found;
    const auto done = static_cast<uint32_t>(batch->virtual_blocks.size());
    const uint64_t count = std::min<uint64_t>(piece.end - piece.start, kBatchBlocks - done);
    const uint64_t physical = piece.physical();
    if (batch->reads.empty() || batch->reads.back().physical.end() != physical) {
      ScrubRead read;
      read.physical.start = physical;
      read.first = done;
      batch->reads.push_back(read);
    }
    batch->reads.back().physical.count += count;
    for (uint64_t i = 0; i < count; i++) {
      batch->virtual_blocks.push_back(piece.start + i);
      batch->checksums.push_back(piece.record.checksums[piece.start - piece.record_start + i]);
    }
    cursor_ = piece.start + count;
  }
  co_return true;
}

// Reads everything, neighbours at once; marks what is not as it should be.
Task<> Scrubber::read_batch(DataBatch* batch) {
  const auto count = static_cast<uint32_t>(batch->virtual_blocks.size());
  batch->suspect.assign(count, false);
  std::vector<Result<>> results(batch->reads.size());
  WaitGroup group(store_.env.executor);
  const auto read_one = [](Scrubber* self, DataBatch* of, size_t index, Result<>* result,
                           WaitGroup* all) -> Task<> {
    const ScrubRead& read = of->reads[index];
    const std::vector<MemoryPiece> memory = {
        MemoryPiece{of->buffer->block(read.first), static_cast<uint32_t>(read.physical.count)}};
    *result = co_await self->store_.env.device.read(read.physical, memory);
    if (*result) self->store_.counters.read_bytes += bytes_of_blocks(read.physical.count);
    all->done();
  };
  for (size_t i = 0; i < results.size(); i++) {
    group.add();
    spawn(store_.env.executor, read_one(this, batch, i, &results[i], &group));
  }
  co_await group.wait();
  const uint64_t volume_key = store_.geometry.volume_key;
  co_await outside(store_.env.executor, [&] {
    for (size_t i = 0; i < results.size(); i++) {
      const ScrubRead& read = batch->reads[i];
      for (uint32_t at = read.first; at < read.first + read.physical.count; at++) {
        batch->suspect[at] =
            !results[i] || key_block_checksum(block_hash(batch->buffer->block(at)),
                                              batch->virtual_blocks[at],
                                              volume_key) != batch->checksums[at];
      }
    }
  });
}

// Reads one block again, where it lies by now, when nothing that had been placed before is still on its way
// to the device. Damaged is what is wrong then.
Task<Result<>> Scrubber::look_again(uint64_t virtual_block) {
  {
    auto guard = co_await store_.apply_lock.lock();  // data that goes into the log is placed under it
  }
  const uint64_t commit = store_.commit_number;
  while (store_.committing && store_.durable_commit < commit && !store_.shut_down) {
    auto stalled = store_.check_stall();
    COFS_CO_TRY(stalled);
    co_await store_.commit_done.wait();
  }
  const uint64_t ordinal = store_.write_ordinal;
  auto settled = co_await store_.settle_writes(ordinal);
  COFS_CO_TRY(settled);
  const ReaderTicket ticket(&store_);
  auto found = co_await find_vmap(store_.tree, store_.geometry, virtual_block, virtual_block + 1);
  COFS_CO_TRY(found);
  if (!found->has_value()) co_return Result<>();
  const VmapPiece& piece = **found;
  BlockRange range;
  range.start = piece.physical();
  range.count = 1;
  BufferRef buffer = store_.env.buffers.allocate(1);
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), 1}};
  auto read = co_await store_.env.device.read(range, memory);
  if (read) store_.counters.read_bytes += kBlockBytes;
  const uint32_t expected = piece.record.checksums[virtual_block - piece.record_start];
  if (read && key_block_checksum(block_hash(buffer->data()), virtual_block,
                                 store_.geometry.volume_key) == expected) {
    co_return Result<>();
  }
  run_.figures.data_errors++;
  if (damaged_.size() == kDamagedMax) {
    too_many_++;
    co_return Result<>();
  }
  Damage damage;
  damage.virtual_block = virtual_block;
  damage.physical_block = range.start;
  damage.why = read ? "wrong bytes" : describe(read.error());
  damaged_.push_back(std::move(damage));
  co_return Result<>();
}

// --- Whose it is -------------------------------------------------------------------------------

// Neighbours in a file that are damaged are one problem.
void Scrubber::see_extent(const Key& key, Bytes value) {
  auto extent = parse_extent(value);
  if (!extent || extent->virtual_block == 0) return;
  const uint64_t end = extent->virtual_block + extent->count;
  auto at = std::lower_bound(
      damaged_.begin(), damaged_.end(), extent->virtual_block,
      [](const Damage& damage, uint64_t block) { return damage.virtual_block < block; });
  while (at != damaged_.end() && at->virtual_block < end) {
    const Damage& first = *at;
    uint64_t count = 0;
    while (at != damaged_.end() && at->virtual_block == first.virtual_block + count &&
           at->virtual_block < end) {
      at->owned = true;
      ++at;
      count++;
    }
    const uint64_t block = key.offset + (first.virtual_block - extent->virtual_block);
    problem(Severity::kError, "inode " + number(key.id) + ": " + number(bytes_of_blocks(count)) +
                                  " bytes at offset " + number(bytes_of_blocks(block)) +
                                  " are damaged (block " + number(first.physical_block) +
                                  " of the device: " + first.why + ")");
  }
}

// One walk over all extents, leaf by leaf.
Task<Result<>> Scrubber::find_owners() {
  std::sort(damaged_.begin(), damaged_.end(), [](const Damage& a, const Damage& b) {
    return a.virtual_block < b.virtual_block;
  });
  Key cursor;
  const Key end = Key::vmap(0);
  while (cursor < end && !ended()) {
    const BTree::Path path = co_await store_.tree.path_to(cursor);
    const Key stop = path.next && *path.next < end ? *path.next : end;
    // What can't be read was said when the nodes were looked at.
    auto scanned = co_await store_.tree.scan(cursor, stop, UINT64_MAX,
                                             [this](const Key& key, Bytes value) {
                                               if (key.type == ondisk::KeyType::kExtent) {
                                                 see_extent(key, value);
                                               }
                                               return true;
                                             });
    if (!scanned && store_.shut_down) co_return scanned;
    cursor = stop;
  }
  co_return Result<>();
}

// What no file was found to hold: it may have been deleted meanwhile, and then counts no more. And what
// was too much to look for.
Task<Result<>> Scrubber::report_unowned() {
  if (too_many_ != 0) {
    problem(Severity::kError, number(too_many_) + " further blocks of file data are damaged, whose files "
                                                  "were not looked for");
  }
  for (const Damage& damage : damaged_) {
    if (damage.owned || ended()) continue;
    auto found = co_await find_vmap(store_.tree, store_.geometry, damage.virtual_block,
                                    damage.virtual_block + 1);
    COFS_CO_TRY(found);
    if (!found->has_value()) {
      run_.figures.data_errors--;
      continue;
    }
    problem(Severity::kError, "file data in block " + number(damage.physical_block) +
                                  " of the device is damaged (" + damage.why +
                                  "), its file was not found");
  }
  co_return Result<>();
}

}  // namespace cofs
