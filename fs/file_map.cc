// A file's map: where its bytes lie, what is only in memory, and what others share.
//
// Dirty data has no place yet and hides what the tree still says of its blocks; data that is being written
// has one. Extents are cut where the place or the sharing changes.

#include <algorithm>
#include <utility>

#include "fs/files_impl.h"

namespace cofs {

namespace {

void add_piece(FileMap* map, MappedPiece piece) {
  if (!map->pieces.empty()) {
    MappedPiece& last = map->pieces.back();
    const bool same = last.delayed == piece.delayed && last.unwritten == piece.unwritten &&
                      last.shared == piece.shared && !last.is_inline;
    const bool follows = last.logical + last.length == piece.logical &&
                         (piece.physical == 0 ? last.physical == 0
                                              : last.physical + last.length == piece.physical);
    if (same && follows) {
      last.length += piece.length;
      return;
    }
  }
  map->pieces.push_back(piece);
}

}  // namespace

// What the tree says of some blocks that are not dirty.
Task<Result<>> Files::Impl::map_stored(const Mapping& mapping, uint64_t limit, FileMap* map) {
  MappedPiece piece;
  piece.logical = bytes_of_blocks(mapping.file_block);
  if (mapping.virtual_block == 0) {
    piece.unwritten = true;
    piece.length = bytes_of_blocks(mapping.count);
    add_piece(map, piece);
    co_return Result<>();
  }
  auto places = co_await store.locate(BlockRange{mapping.virtual_block, mapping.count}, limit);
  COFS_CO_TRY(places);
  for (const BlockPlace& place : *places) {
    piece.physical = bytes_of_blocks(place.physical_block);
    piece.length = bytes_of_blocks(place.count);
    piece.shared = place.shared;
    add_piece(map, piece);
    piece.logical += piece.length;
  }
  co_return Result<>();
}

// Whether data or preallocated blocks lie at or behind `block`.
Task<Result<bool>> Files::Impl::anything_after(Inode& inode, uint64_t block) {
  if (inode.data.next_block(block)) co_return true;
  auto mappings = co_await store.map_range(inode.ino, block, kFileBlocksMax - block, 1);
  COFS_CO_TRY(mappings);
  co_return !mappings->empty();
}

Task<Result<FileMap>> Files::map_extents(uint64_t ino, uint64_t start, uint64_t length,
                                         uint64_t limit, bool sync) {
  Impl& impl = *impl_;
  auto inode = co_await impl.get_file(ino);
  COFS_CO_TRY(inode);
  Inode& file = **inode;
  const SharedMutex::Guard guard = co_await file.lock.lock_shared();
  if (file.deleted) co_return fail(Code::kStale, "map", ino);
  FileMap map;
  if (start > kFileBytesMax || length == 0 || limit == 0) co_return map;
  const uint64_t first = start / kBlockBytes;
  const uint64_t asked_end = blocks_of_bytes(start + std::min(length, kFileBytesMax - start + 1));
  // Further, since an extent that goes on behind the range is told whole.
  const uint64_t end = std::min(asked_end + ondisk::kExtentBlocksMax, kFileBlocksMax);
  if (sync) {
    auto settled = co_await impl.settle_range(*inode, first, asked_end - first);
    COFS_CO_TRY(settled);
  }
  if (impl.is_inline(file)) {
    if (file.size == 0 || start >= file.size) co_return map;
    MappedPiece piece;
    piece.length = file.size;
    piece.is_inline = piece.last = true;
    map.pieces.push_back(piece);
    co_return map;
  }
  // What is dirty is noted before the first wait: under the lock it can only get a place.
  const std::vector<BlockRange> dirty = file.data.dirty_ranges(first, end - first);
  size_t next_dirty = 0;
  uint64_t cursor = first;
  const auto is_behind = [asked_end](const MappedPiece& piece) {
    return piece.logical >= bytes_of_blocks(asked_end);
  };
  while (cursor < end && map.pieces.size() <= limit &&
         (map.pieces.empty() ? cursor < asked_end : !is_behind(map.pieces.back()))) {
    if (next_dirty < dirty.size() && dirty[next_dirty].start <= cursor) {
      MappedPiece piece;
      piece.logical = bytes_of_blocks(dirty[next_dirty].start);
      piece.length = bytes_of_blocks(dirty[next_dirty].count);
      piece.delayed = true;
      add_piece(&map, piece);
      cursor = dirty[next_dirty++].end();
      continue;
    }
    const uint64_t stop = next_dirty < dirty.size() ? dirty[next_dirty].start : end;
    auto mappings = co_await impl.store.map_range(ino, cursor, stop - cursor, limit + 1);
    COFS_CO_TRY(mappings);
    for (const Mapping& mapping : *mappings) {
      if (map.pieces.size() > limit) break;
      auto mapped = co_await impl.map_stored(mapping, limit + 2, &map);
      COFS_CO_TRY(mapped);
    }
    cursor = mappings->size() > limit ? mappings->back().end() : stop;
  }
  while (!map.pieces.empty() && is_behind(map.pieces.back())) map.pieces.pop_back();
  map.more = map.pieces.size() > limit;
  if (map.more) map.pieces.resize(limit);
  if (map.pieces.empty()) co_return map;
  const MappedPiece& last = map.pieces.back();
  auto after = co_await impl.anything_after(file, (last.logical + last.length) / kBlockBytes);
  COFS_CO_TRY(after);
  map.pieces.back().last = !*after;
  co_return map;
}

}  // namespace cofs
