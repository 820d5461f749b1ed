// What a transaction will touch, read before it changes anything: a node that cannot be read is then an
// error of that transaction, and not one in its middle, which would stop the store.
//
// Read are the leaves of what goes (extents, references, places) and of what comes, and the records of the segments that
// lose blocks. For a sharing, which nobody needs, also the neighbours that take over what an emptied leaf covered; other
// changes are not refused because of a node that they will hardly need. A cache that is too small for all of it
// only makes nodes be read twice.

#include <algorithm>
#include <cstring>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kBatch = 256;  // extents looked at together
// Of one extent that goes, so many blocks (64 GiB): the leaves of more would not stay in a cache of the usual size.
constexpr uint64_t kFreedBlocksMax = 1ULL << 24;

}  // namespace

Task<Result<>> Store::Impl::prefetch(const Transaction::State& state) {
  using Kind = Transaction::State::Kind;
  for (const Transaction::State::Op& op : state.ops) {
    if (op.kind == Kind::kPut || op.kind == Kind::kErase) {
      auto value = co_await tree.get(op.key);
      COFS_CO_TRY(value);
      continue;
    }
    if (op.kind == Kind::kShareExtents) {
      auto shared = co_await prefetch_share(op.share);
      COFS_CO_TRY(shared);
    }
    auto unmapped = co_await prefetch_unmap(op.ino, op.file_block, op.count,
                                            op.kind == Kind::kShareExtents);
    COFS_CO_TRY(unmapped);
  }
  co_return Result<>();
}

// For apply_map_extent().
Task<Result<>> Store::Impl::prefetch_unmap(uint64_t ino, uint64_t file_block, uint64_t count,
                                           bool neighbours) {
  const uint64_t end = file_block + count;
  auto leaves =
      co_await prefetch_neighbours(neighbours, Key::extent(ino, file_block), Key::extent(ino, end));
  COFS_CO_TRY(leaves);
  auto last = co_await tree.get(Key::extent(ino, end));
  COFS_CO_TRY(last);
  uint64_t at = file_block;
  while (at < end) {
    auto extents = co_await overlapping_extents(tree, ino, at, end, kBatch);
    COFS_CO_TRY(extents);
    for (const FileExtent& extent : *extents) {
      const uint64_t from = std::max(extent.file_block, at);
      at = std::min(extent.end(), end);
      if (extent.value.virtual_block == 0) continue;
      const BlockRange blocks{extent.value.virtual_block + (from - extent.file_block), at - from};
      const bool maybe_shared = (extent.value.flags & ondisk::kExtentMaybeShared) != 0;
      Result<> dropped;
      if (maybe_shared) {
        dropped = co_await prefetch_drop(blocks, neighbours);
      } else {
        dropped = co_await prefetch_free(blocks, neighbours);
      }
      COFS_CO_TRY(dropped);
    }
    if (extents->size() < kBatch) break;
  }
  co_return Result<>();
}

// Beside what the caller reads between these keys.
Task<Result<>> Store::Impl::prefetch_neighbours(bool wanted, Key from, Key to) {
  if (!wanted) co_return Result<>();
  auto loaded = co_await tree.load_around(from, to);
  co_return loaded;
}

// For drop_virtual() of what may be shared.
Task<Result<>> Store::Impl::prefetch_drop(BlockRange virtual_blocks, bool neighbours) {
  const uint64_t end = virtual_blocks.end();
  uint64_t at = virtual_blocks.start;
  auto leaves = co_await prefetch_neighbours(neighbours, Key::vref(at), Key::vref(end));
  COFS_CO_TRY(leaves);
  while (at < end) {
    auto found = co_await find_vref(tree, at, end);
    COFS_CO_TRY(found);
    const std::optional<VrefRange>& ref = *found;
    const uint64_t gap_end = ref ? std::max(ref->start, at) : end;
    if (gap_end > at) {
      auto freed = co_await prefetch_free(BlockRange{at, gap_end - at}, neighbours);
      COFS_CO_TRY(freed);
    }
    at = ref ? std::min(ref->end(), end) : end;
  }
  co_return Result<>();
}

// For free_virtual().
Task<Result<>> Store::Impl::prefetch_free(BlockRange virtual_blocks, bool neighbours) {
  const Key first = Key::vmap(virtual_blocks.start);
  const Key last = Key::vmap(virtual_blocks.start + std::min(virtual_blocks.count, kFreedBlocksMax));
  auto leaves = co_await prefetch_neighbours(neighbours, first, last);
  COFS_CO_TRY(leaves);
  std::vector<uint64_t> losing;  // a segment of each group; these follow each other, as a rule
  const auto add_segment = [&](Bytes value) {
    ondisk::Vmap vmap;
    if (value.size() < sizeof(vmap)) return;  // which free_virtual() will refuse
    std::memcpy(&vmap, value.data(), sizeof(vmap));
    const uint64_t segment = geometry.segment_of_block(vmap.physical_block);
    if (losing.empty() || losing.back() / ondisk::kSegmentGroup != segment / ondisk::kSegmentGroup) {
      losing.push_back(segment);
    }
  };
  auto before = co_await tree.last_at_or_before(Key::vmap(0), first);
  COFS_CO_TRY(before);
  if (before->has_value()) add_segment((*before)->value);
  auto scanned = co_await tree.scan(first, last, UINT64_MAX, [&](const Key&, Bytes value) {
    add_segment(value);
    return true;
  });
  COFS_CO_TRY(scanned);
  for (const uint64_t segment : losing) {
    auto loaded = co_await segments.load(segment);
    COFS_CO_TRY(loaded);
  }
  co_return Result<>();
}

// For apply_share_extents(), but for what the target named. What cannot be done is found here. Errors: those of
// reading, kTooManyLinks, kInvalid.
Task<Result<>> Store::Impl::prefetch_share(ShareRange range) {
  if (!range.valid()) co_return fail(Code::kInvalid, "a range to be shared", range.source_ino);
  uint64_t at = range.source_block;
  while (at < range.source_end()) {
    auto extents =
        co_await overlapping_extents(tree, range.source_ino, at, range.source_end(), kBatch);
    COFS_CO_TRY(extents);
    for (const FileExtent& extent : *extents) {
      const uint64_t from = std::max(extent.file_block, at);
      at = std::min(extent.end(), range.source_end());
      if (extent.value.virtual_block == 0) continue;
      const uint64_t start = extent.value.virtual_block + (from - extent.file_block);
      auto room = co_await prefetch_references(BlockRange{start, at - from});
      COFS_CO_TRY(room);
    }
    if (extents->size() < kBatch) break;
    co_await let_others_run(env.executor);
  }
  co_return Result<>();
}

// For add_references().
Task<Result<>> Store::Impl::prefetch_references(BlockRange virtual_blocks) {
  const uint64_t end = virtual_blocks.end();
  uint64_t at = virtual_blocks.start;
  while (at < end) {
    auto found = co_await find_vref(tree, at, end);
    COFS_CO_TRY(found);
    if (!found->has_value()) break;
    const VrefRange& ref = **found;
    if (ref.references == UINT32_MAX) {
      co_return fail(Code::kTooManyLinks, "references to a block", ref.start);
    }
    at = ref.end();
  }
  if (at > end) {  // the last count is cut in two
    auto rest = co_await tree.get(Key::vref(end));
    COFS_CO_TRY(rest);
  }
  co_return Result<>();
}

}  // namespace cofs
