// Sharing: a file range that names the blocks of another one, and the counts of references.
//
// A block with one reference has no record; vref counts the others. Who drops a reference looks there
// only where the extent says that it may be shared, so both sides of a sharing carry that flag before a
// reference is added. The source's extents are flagged whole (a flag too many costs a lookup), and
// neighbours that only the flag kept apart become one.

#include <algorithm>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kBatch = 256;     // extents looked at together
constexpr uint64_t kTogether = 64;   // pieces shared until others run

// Blocks that follow each other in the source and in virtual space.
struct SharedPiece {
  uint64_t source_block = 0;
  uint64_t virtual_block = 0;
  uint64_t count = 0;
};

void add_piece(std::vector<SharedPiece>& pieces, const SharedPiece& piece) {
  if (!pieces.empty()) {
    SharedPiece& last = pieces.back();
    if (last.source_block + last.count == piece.source_block &&
        last.virtual_block + last.count == piece.virtual_block) {
      last.count += piece.count;
      return;
    }
  }
  pieces.push_back(piece);
}

// Sets the flag of extents that are given in file order.
class SharedMarker {
 public:
  SharedMarker(BTree& tree, uint64_t ino) : tree_(tree), ino_(ino) {}

  // Readers see the blocks mapped between any two steps: of two extents that overlap they take the first. Those
  // that were between the two begin anew (Store::map_range).
  Task<Result<>> mark(const FileExtent* extent) {
    FileExtent flagged = *extent;
    flagged.value.flags |= ondisk::kExtentMaybeShared;
    if (has_run_ && run_.end() == flagged.file_block && run_.value.continues_with(flagged.value)) {
      run_.value = run_.value.grown(flagged.value.count);
      auto put = co_await tree_.put(Key::extent(ino_, run_.file_block), encode_extent(run_.value));
      COFS_CO_TRY(put);
      auto erased = co_await tree_.erase(Key::extent(ino_, flagged.file_block));
      COFS_CO_TRY(erased);
      co_return Result<>();
    }
    run_ = flagged;
    has_run_ = true;
    if (flagged.value.flags == extent->value.flags) co_return Result<>();
    auto put = co_await tree_.put(Key::extent(ino_, flagged.file_block), encode_extent(flagged.value));
    co_return put;
  }

 private:
  BTree& tree_;
  const uint64_t ino_;
  FileExtent run_;  // the last one, as it is in the tree now
  bool has_run_ = false;
};

}  // namespace

Task<Result<>> Store::Impl::apply_share_extents(ShareRange range) {
  auto cleared = co_await apply_map_extent(range.target_ino, range.target_block, range.count, 0, 0);
  COFS_CO_TRY(cleared);
  extent_changes_of(range.source_ino)++;
  // The whole source first: within one file the target's extents may join those of the source.
  std::vector<SharedPiece> pieces;
  SharedMarker marker(tree, range.source_ino);
  uint64_t at = range.source_block;
  while (at < range.source_end()) {
    auto extents =
        co_await overlapping_extents(tree, range.source_ino, at, range.source_end(), kBatch);
    COFS_CO_TRY(extents);
    for (const FileExtent& extent : *extents) {
      SharedPiece piece;
      piece.source_block = std::max(extent.file_block, at);
      at = std::min(extent.end(), range.source_end());
      if (extent.value.virtual_block == 0) continue;
      piece.virtual_block = extent.value.virtual_block + (piece.source_block - extent.file_block);
      piece.count = at - piece.source_block;
      add_piece(pieces, piece);
      auto marked = co_await marker.mark(&extent);
      COFS_CO_TRY(marked);
    }
    if (extents->size() < kBatch) break;
    if (!replaying) co_await let_others_run(env.executor);
  }
  int64_t mapped = 0;
  uint64_t done = 0;
  for (const SharedPiece& piece : pieces) {
    if (++done % kTogether == 0 && !replaying) co_await let_others_run(env.executor);
    auto added = co_await add_references(piece.virtual_block, piece.count);
    COFS_CO_TRY(added);
    auto inserted = co_await insert_extents(
        range.target_ino, range.target_block + (piece.source_block - range.source_block), piece.count,
        piece.virtual_block, ondisk::kExtentMaybeShared);
    COFS_CO_TRY(inserted);
    mapped += static_cast<int64_t>(piece.count);
  }
  metadata_debt_bytes += pieces.size() * kSharedPieceBytes;
  pieces_logged += pieces.size();
  if (mapped != 0 && client != nullptr && !replaying) {
    client->mapped_blocks_changed(range.target_ino, mapped);
  }
  co_return Result<>();
}

// One more reference to each block. REQUIRES: room for it (prefetch_references).
Task<Result<>> Store::Impl::add_references(uint64_t virtual_block, uint64_t count) {
  const uint64_t end = virtual_block + count;
  uint64_t at = virtual_block;
  while (at < end) {
    auto found = co_await find_vref(tree, at, end);
    COFS_CO_TRY(found);
    const uint64_t gap_end = found->has_value() ? (*found)->start : end;
    if (gap_end > at) {  // exactly one reference so far
      const VrefRange fresh(at, gap_end - at, 2);
      auto put = co_await tree.put(Key::vref(at), encode_vref(fresh));
      COFS_CO_TRY(put);
      shared_blocks += gap_end - at;
      extra_references += gap_end - at;
      at = gap_end;
    }
    if (!found->has_value()) break;
    const VrefRange ref = **found;
    if (ref.references == UINT32_MAX) co_return fail(Code::kTooManyLinks, "references to a block");
    const uint64_t cut_end = std::min(ref.end(), end);
    auto changed = co_await change_vref(tree, ref, at, cut_end, ref.references + 1);
    COFS_CO_TRY(changed);
    extra_references += cut_end - at;
    at = cut_end;
  }
  co_return Result<>();
}

// Drops one reference from each block; blocks without another reference are freed.
Task<Result<>> Store::Impl::drop_virtual(uint64_t virtual_block, uint64_t count,
                                         bool maybe_shared) {
  if (!maybe_shared) {
    auto freed = co_await free_virtual(virtual_block, count);
    co_return freed;
  }
  const uint64_t end = virtual_block + count;
  uint64_t at = virtual_block;
  while (at < end) {
    auto found = co_await find_vref(tree, at, end);
    COFS_CO_TRY(found);
    if (!found->has_value()) {
      auto freed = co_await free_virtual(at, end - at);
      co_return freed;
    }
    const VrefRange ref = **found;  // the first one that overlaps [at, end)
    if (ref.start > at) {
      auto freed = co_await free_virtual(at, ref.start - at);
      COFS_CO_TRY(freed);
      at = ref.start;
    }
    const uint64_t cut_end = std::min(ref.end(), end);
    auto changed = co_await change_vref(tree, ref, at, cut_end, ref.references - 1);
    COFS_CO_TRY(changed);
    const uint64_t blocks = cut_end - at;
    const uint64_t unshared = ref.references == 2 ? blocks : 0;
    if (extra_references < blocks || shared_blocks < unshared) {
      co_return fail(Code::kCorrupt, "the count of shared blocks does not add up");
    }
    extra_references -= blocks;
    shared_blocks -= unshared;
    at = cut_end;
  }
  co_return Result<>();
}

// --- Looking ---

Task<Result<std::vector<BlockPlace>>> Store::locate(BlockRange virtual_blocks, uint64_t limit) {
  Impl& store = *impl_;
  auto readable = store.check_readable();
  COFS_CO_TRY(readable);
  std::vector<BlockPlace> places;
  uint64_t at = virtual_blocks.start;
  while (at < virtual_blocks.end() && places.size() < limit) {
    auto found = co_await find_vmap(store.tree, store.geometry, at, virtual_blocks.end());
    COFS_CO_TRY(found);
    if (!found->has_value() || (*found)->start != at) {
      co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    }
    const uint64_t physical = (*found)->physical();
    const uint64_t piece_end = (*found)->end;
    auto ref = co_await find_vref(store.tree, at, piece_end);
    COFS_CO_TRY(ref);
    BlockPlace place;
    place.virtual_block = at;
    place.physical_block = physical;
    place.shared = ref->has_value() && (*ref)->start <= at;
    uint64_t end = piece_end;
    if (ref->has_value()) end = std::min(end, place.shared ? (*ref)->end() : (*ref)->start);
    place.count = end - at;
    at = end;
    if (!places.empty()) {
      BlockPlace& last = places.back();
      if (last.shared == place.shared && last.physical_block + last.count == physical) {
        last.count += place.count;
        continue;
      }
    }
    places.push_back(place);
  }
  co_return places;
}

}  // namespace cofs
