// Sharing: the target's blocks become the source's, by one short transaction however long the range is.
//
// The source's mapping cannot change meanwhile: its lock is held, and what was dirty in the range has
// been written (another file reads blocks by their place, so a write under way would not do). A range of
// very many extents is shared in steps, as large as the room for dirty nodes allows, each a transaction that
// publishes blocks, size and times together: a crash shows the clone up to the end of one of them, as a reply
// cut short would.

#include <algorithm>
#include <cstring>
#include <utility>

#include "fs/files_impl.h"

namespace cofs {

// What is shared may dirty a leaf of references each, what is replaced two of places. The leaves of extents, of which even
// the smallest holds some forty when it is half full, and the nodes above add an eighth.
Task<Result<Files::Impl::ShareStep>> Files::Impl::plan_share(ShareRange range, uint64_t nodes_max) {
  ShareStep step;
  const uint64_t leaves_max = nodes_max * 7 / 8;
  const uint64_t replaced_max = leaves_max / 4;
  auto replaced =
      co_await store.map_range(range.target_ino, range.target_block, range.count, replaced_max + 1);
  COFS_CO_TRY(replaced);
  if (replaced->size() > replaced_max) {
    replaced->pop_back();
    range.count = replaced->back().end() - range.target_block;
  }
  const uint64_t extents_max = std::min(leaves_max - 2 * replaced->size(), kShareExtentsMax);
  auto mappings =
      co_await store.map_range(range.source_ino, range.source_block, range.count, extents_max + 1);
  COFS_CO_TRY(mappings);
  if (mappings->size() > extents_max) {
    mappings->pop_back();
    range.count = mappings->back().end() - range.source_block;
  }
  step.blocks = range.count;
  step.extents = mappings->size();
  const uint64_t leaves = mappings->size() + 2 * replaced->size();
  step.nodes = leaves + leaves / 7;  // of leaves_max: no more than nodes_max
  co_return step;
}

// A transaction that shares the range's first blocks, as many as there is room for; the range becomes these.
Task<Result<Transaction>> Files::Impl::begin_share(ShareRange* range) {
  auto step = co_await plan_share(*range, store.likely_nodes_max());
  COFS_CO_TRY(step);
  Cost cost = store.cost_of_nodes(step->nodes);
  cost.record_bytes += (step->extents + 1) * kShareRecordBytes;
  auto transaction = co_await store.begin(cost, SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  // Others may have been first. The mappings are as they were: their inodes are locked.
  while (step->nodes > transaction->nodes_max()) {
    step = co_await plan_share(*range, transaction->nodes_max());
    COFS_CO_TRY(step);
  }
  range->count = step->blocks;
  transaction->share_extents(*range);
  co_return transaction;
}

Task<Result<>> Files::Impl::share_blocks(CopyJob& job, uint64_t first, uint64_t count) {
  while (count > 0) {
    auto wanted = job.check_wanted();
    COFS_CO_TRY(wanted);
    ShareRange range;
    range.source_ino = job.source->ino;
    range.source_block = first;
    range.target_ino = job.target->ino;
    range.target_block = job.target_at() / kBlockBytes;
    range.count = count;
    auto transaction = co_await begin_share(&range);
    COFS_CO_TRY(transaction);
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    publish_copy(job, range.count);
    shared_blocks += range.count;
    first += range.count;
    count -= range.count;
  }
  co_return Result<>();
}

// --- Dedupe ------------------------------------------------------------------------------------

// The virtual block behind each block of the file; 0 where there is none: a hole, or preallocated.
Task<Result<std::vector<uint64_t>>> Files::Impl::blocks_named(Inode& inode, uint64_t first,
                                                              uint32_t count) {
  std::vector<uint64_t> named(count, 0);
  auto mappings = co_await store.map_range(inode.ino, first, count, count);
  COFS_CO_TRY(mappings);
  for (const Mapping& mapping : *mappings) {
    if (mapping.virtual_block == 0) continue;
    for (uint64_t i = 0; i < mapping.count; i++) {
      named[mapping.file_block - first + i] = mapping.virtual_block + i;
    }
  }
  co_return named;
}

// Equal checksums prove nothing, different ones do: bytes are compared where no checksum differs.
Task<Result<Files::Impl::Comparison>> Files::Impl::compare_blocks(Inode& a, uint64_t a_block, Inode& b,
                                                                  uint64_t b_block,
                                                                  uint32_t count) {
  Comparison comparison;
  auto a_named = co_await blocks_named(a, a_block, count);
  COFS_CO_TRY(a_named);
  auto b_named = co_await blocks_named(b, b_block, count);
  COFS_CO_TRY(b_named);
  // Inline data has no blocks, and so the same names as a hole.
  if (!is_inline(a) && !is_inline(b) && *a_named == *b_named) co_return comparison;
  // Where b has no block there is nothing to win, and what is preallocated there would be lost. What is shared
  // already may be shared again, between others: fewer transactions.
  bool goes_on = false;  // the last gain
  for (uint32_t i = 0; i < count; i++) {
    const uint64_t block = b_block + i;
    if ((*b_named)[i] == 0) {
      goes_on = false;
    } else if ((*a_named)[i] != (*b_named)[i]) {
      if (!goes_on) comparison.gains.push_back(BlockRange{block, 0});
      comparison.gains.back().count = block + 1 - comparison.gains.back().start;
      goes_on = true;
    }
  }
  for (uint32_t i = 0; i < count && comparison.same;) {
    uint32_t n = 1;  // blocks that follow each other on both sides
    const uint64_t at_a = (*a_named)[i];
    const uint64_t at_b = (*b_named)[i];
    while (i + n < count && (*a_named)[i + n] == at_a + n && (*b_named)[i + n] == at_b + n) n++;
    i += n;
    if (at_a == 0 || at_b == 0 || at_a == at_b) continue;
    auto a_sums = co_await store.content_checksums(BlockRange{at_a, n});
    COFS_CO_TRY(a_sums);
    auto b_sums = co_await store.content_checksums(BlockRange{at_b, n});
    COFS_CO_TRY(b_sums);
    comparison.same = *a_sums == *b_sums;
  }
  if (!comparison.same) co_return comparison;
  const BufferRef a_bytes = environment.buffers.allocate(count);
  const BufferRef b_bytes = environment.buffers.allocate(count);
  auto read = co_await read_file_blocks(a, a_block, count, a_bytes->data(), nullptr);
  COFS_CO_TRY(read);
  read = co_await read_file_blocks(b, b_block, count, b_bytes->data(), nullptr);
  COFS_CO_TRY(read);
  co_await outside(environment.executor, [&] {
    comparison.same = std::memcmp(a_bytes->data(), b_bytes->data(), bytes_of_blocks(count)) == 0;
  });
  co_return comparison;
}

// The mapping changes, and nothing that a program sees.
Task<Result<>> Files::Impl::share_quietly(ShareRange range) {
  const uint64_t end = range.source_end();
  while (range.source_block < end) {
    range.count = end - range.source_block;
    auto transaction = co_await begin_share(&range);
    COFS_CO_TRY(transaction);
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    shared_blocks += range.count;
    range.source_block += range.count;
    range.target_block += range.count;
  }
  co_return Result<>();
}

Task<Result<bool>> Files::share_if_same(InodeRef source, InodeRef target, uint64_t source_offset,
                                        uint64_t target_offset, uint64_t length) {
  Impl& impl = *impl_;
  const uint64_t source_block = source_offset / kBlockBytes;
  const uint64_t target_block = target_offset / kBlockBytes;
  const uint64_t count = blocks_of_bytes(length);
  auto finished = co_await impl.finish_truncation(*target);
  COFS_CO_TRY(finished);
  auto settled = co_await impl.settle_range(source, source_block, count);
  COFS_CO_TRY(settled);
  settled = co_await impl.settle_range(target, target_block, count);
  COFS_CO_TRY(settled);
  const Impl::BlockHold source_hold(*source);
  const Impl::BlockHold target_hold(*target);
  std::vector<BlockRange> gains;  // of the target's blocks
  for (uint64_t at = 0; at < count;) {
    const uint32_t n = static_cast<uint32_t>(std::min<uint64_t>(count - at, kCompareBlocks));
    auto compared = co_await impl.compare_blocks(*source, source_block + at, *target,
                                                 target_block + at, n);
    COFS_CO_TRY(compared);
    if (!compared->same) co_return false;
    for (const BlockRange& part : compared->gains) {
      if (!gains.empty() && gains.back().end() == part.start) {
        gains.back().count += part.count;
      } else {
        gains.push_back(part);
      }
    }
    at += n;
  }
  if (impl.is_inline(*source) || impl.is_inline(*target)) co_return true;  // no blocks to share
  for (const BlockRange& part : gains) {
    ShareRange range;
    range.source_ino = source->ino;
    range.source_block = source_block + (part.start - target_block);
    range.target_ino = target->ino;
    range.target_block = part.start;
    range.count = part.count;
    auto shared = co_await impl.share_quietly(range);
    COFS_CO_TRY(shared);
  }
  co_return true;
}

}  // namespace cofs
