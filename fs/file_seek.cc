// SEEK_DATA and SEEK_HOLE: data is what is in memory or mapped and written; the rest is holes. Exact to
// the block; inline data is data from 0 to the size.
//
// Both are looked at a window at a time, whatever is in memory. Memory is noted before the tree is asked, so data that
// a flush moves meanwhile is seen at least once.

#include <algorithm>
#include <utility>

#include "fs/files_impl.h"

namespace cofs {

namespace {

// Where the first block of data (or the first that is not), at or after `cursor`, lies among sorted,
// possibly overlapping ranges of data that are complete up to `known`.
struct SeekStep {
  bool found = false;
  uint64_t block = 0;
};

SeekStep look(const std::vector<BlockRange>& data, uint64_t cursor, uint64_t known, bool for_data) {
  for (const BlockRange& range : data) {
    if (range.end() <= cursor) continue;
    if (range.start >= known) break;
    if (for_data) return SeekStep{true, std::max(range.start, cursor)};
    if (range.start > cursor) return SeekStep{true, cursor};
    cursor = range.end();
  }
  if (for_data || cursor >= known) return SeekStep{false, std::max(cursor, known)};
  return SeekStep{true, cursor};
}

}  // namespace

Task<Result<uint64_t>> Files::seek(uint64_t ino, uint64_t offset, bool for_data) {
  Impl& impl = *impl_;
  auto inode = co_await impl.get_file(ino);
  COFS_CO_TRY(inode);
  Inode& file = **inode;
  SharedMutex::Guard guard = co_await file.lock.lock_shared();
  if (file.deleted) co_return fail(Code::kStale, "seek", ino);
  const uint64_t size = file.size;
  if (offset >= size) co_return fail(Code::kNoSuchOffset, "seek", ino);
  if (impl.is_inline(file)) co_return for_data ? offset : size;

  const uint64_t end = blocks_of_bytes(size);
  uint64_t cursor = offset / kBlockBytes;
  while (cursor < end) {
    constexpr uint64_t kWindow = 64;
    std::vector<BlockRange> data = file.data.ranges_from(cursor, kWindow);
    const uint64_t memory_known = data.size() < kWindow ? end : data.back().start;
    auto mappings = co_await impl.store.map_range(ino, cursor, end - cursor, kWindow);
    COFS_CO_TRY(mappings);
    const uint64_t known =
        std::min(memory_known, mappings->size() < kWindow ? end : mappings->back().end());
    for (const Mapping& mapping : *mappings) {
      if (mapping.virtual_block != 0) {
        data.push_back(BlockRange{mapping.file_block, mapping.count});
      }
    }
    std::sort(data.begin(), data.end(),
              [](const BlockRange& a, const BlockRange& b) { return a.start < b.start; });
    const SeekStep step = look(data, cursor, known, for_data);
    if (step.found) {
      co_return std::min(std::max(offset, bytes_of_blocks(step.block)), size);
    }
    cursor = step.block;
  }
  if (for_data) co_return fail(Code::kNoSuchOffset, "seek: no data", ino);
  co_return size;
}

}  // namespace cofs
