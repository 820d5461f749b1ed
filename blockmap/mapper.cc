// The mapping side of the store: file ranges to virtual blocks, virtual blocks to places. References:
// share.cc.
//
// The same functions run for live transactions and for replay. Readers run between any two steps, so
// every step leaves the mapping of unaffected blocks complete: what remains of a record that is cut is
// put under its new key before the old key is changed, and a reader that sees both takes the first.

#include <algorithm>
#include <cstring>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {
constexpr uint64_t kPiecesOfAnyRecord = 2;
}  // namespace

Hold Store::Impl::current_hold() const {
  Hold hold;
  if (replaying) {
    hold.checkpoint = checkpoint_sequence + 1;  // the one that ends recovery
  } else {
    hold.commit = commit_number + 1;
    // A log segment with data in it may be needed until the last frozen checkpoint is durable.
    hold.checkpoint = checkpoint_sequence;
    hold.readers = reader_ordinal;
  }
  return hold;
}

Task<Result<>> Store::Impl::apply_put(Key key, Bytes value) {
  if (key.type == ondisk::KeyType::kInode) {
    auto old = co_await tree.get(key);
    COFS_CO_TRY(old);
    if (!old->has_value()) inode_count++;
  }
  auto put = co_await tree.put(key, value);
  co_return put;
}

Task<Result<>> Store::Impl::apply_erase(Key key) {
  auto erased = co_await tree.erase(key);
  COFS_CO_TRY(erased);
  if (*erased && key.type == ondisk::KeyType::kInode) inode_count--;
  co_return Result<>();
}

Task<Result<>> Store::Impl::apply_map_extent(uint64_t ino, uint64_t file_block, uint64_t count,
                                             uint64_t virtual_block, uint32_t flags) {
  constexpr uint64_t kBatch = 256;
  extent_changes_of(ino)++;
  const uint64_t pieces_before = pieces_logged;
  const uint64_t end = file_block + count;
  int64_t delta = 0;
  const bool maps = virtual_block != 0 || (flags & ondisk::kExtentUnwritten) != 0;
  // Cut what was there, batch by batch (each batch removes what it saw).
  while (true) {
    auto extents = co_await overlapping_extents(tree, ino, file_block, end, kBatch);
    COFS_CO_TRY(extents);
    for (const FileExtent& extent : *extents) {
      const uint64_t cut_start = std::max(extent.file_block, file_block);
      const uint64_t cut_end = std::min(extent.end(), end);
      if (extent.end() > end) {
        auto put = co_await tree.put(Key::extent(ino, end),
                                     encode_extent(extent.value.tail(end - extent.file_block)));
        COFS_CO_TRY(put);
      }
      if (extent.file_block < file_block) {
        auto put = co_await tree.put(Key::extent(ino, extent.file_block),
                                     encode_extent(extent.value.head(file_block - extent.file_block)));
        COFS_CO_TRY(put);
      } else {
        auto erased = co_await tree.erase(Key::extent(ino, extent.file_block));
        COFS_CO_TRY(erased);
      }
      delta -= static_cast<int64_t>(cut_end - cut_start);
      pieces_logged++;
      if (extent.value.virtual_block != 0) {
        auto dropped = co_await drop_virtual(
            extent.value.virtual_block + (cut_start - extent.file_block), cut_end - cut_start,
            (extent.value.flags & ondisk::kExtentMaybeShared) != 0);
        COFS_CO_TRY(dropped);
      } else {  // volumes of before this was counted have more of them than they know of
        unwritten_blocks -= std::min(unwritten_blocks, cut_end - cut_start);
      }
    }
    if (extents->size() < kBatch) break;
  }
  // One extent with one place is what any record may cost.
  pieces_logged -= std::min(pieces_logged - pieces_before, kPiecesOfAnyRecord);
  if (maps) {
    delta += static_cast<int64_t>(count);
    if (virtual_block == 0) unwritten_blocks += count;
    auto inserted = co_await insert_extents(ino, file_block, count, virtual_block, flags);
    COFS_CO_TRY(inserted);
  }
  if (delta != 0 && client != nullptr && !replaying) client->mapped_blocks_changed(ino, delta);
  co_return Result<>();
}

// Maps a hole, joining what is before and behind it where that makes one run.
Task<Result<>> Store::Impl::insert_extents(uint64_t ino, uint64_t file_block, uint64_t count,
                                           uint64_t virtual_block, uint32_t flags) {
  uint64_t done = 0;
  while (done < count) {
    ExtentValue value;
    value.count = static_cast<uint32_t>(std::min<uint64_t>(count - done, ondisk::kExtentBlocksMax));
    value.flags = flags;
    value.virtual_block = virtual_block == 0 ? 0 : virtual_block + done;
    uint64_t start = file_block + done;
    done += value.count;
    // Grow the left neighbour instead, where the two are one run.
    auto left = co_await tree.last_at_or_before(Key::extent(ino, 0), Key::extent(ino, start));
    COFS_CO_TRY(left);
    if (left->has_value()) {
      auto neighbour = parse_extent((*left)->value);
      COFS_CO_TRY(neighbour);
      if ((*left)->key.offset + neighbour->count == start && neighbour->continues_with(value)) {
        value = neighbour->grown(value.count);
        start = (*left)->key.offset;
      }
    }
    auto right = co_await tree.get(Key::extent(ino, start + value.count));
    COFS_CO_TRY(right);
    bool erase_right = false;
    const uint64_t right_key = start + value.count;
    if (right->has_value()) {
      auto neighbour = parse_extent(**right);
      COFS_CO_TRY(neighbour);
      if (value.continues_with(*neighbour)) {
        value = value.grown(neighbour->count);
        erase_right = true;
      }
    }
    auto put = co_await tree.put(Key::extent(ino, start), encode_extent(value));
    COFS_CO_TRY(put);
    if (erase_right) {
      auto erased = co_await tree.erase(Key::extent(ino, right_key));
      COFS_CO_TRY(erased);
    }
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::apply_insert_vmap(uint64_t virtual_block, uint64_t physical_block,
                                              uint32_t generation,
                                              const std::vector<uint32_t>* checksums) {
  VmapValue value;
  value.physical_block = physical_block;
  value.generation = generation;
  value.checksums = *checksums;
  auto put = co_await tree.put(Key::vmap(virtual_block), encode_vmap(value));
  COFS_CO_TRY(put);
  if (replaying) {
    auto revived = co_await segments.revive(geometry.segment_of_block(physical_block), generation);
    COFS_CO_TRY(revived);
  }
  const auto blocks = static_cast<int64_t>(checksums->size());
  auto counted =
      co_await segments.add_live(geometry.segment_of_block(physical_block), blocks, current_hold());
  COFS_CO_TRY(counted);
  live_data_blocks += checksums->size();
  co_return Result<>();
}

Task<Result<>> Store::Impl::free_virtual(uint64_t virtual_block, uint64_t count) {
  const uint64_t end = virtual_block + count;
  uint64_t at = virtual_block;
  while (at < end) {
    auto found = co_await tree.last_at_or_before(Key::vmap(0), Key::vmap(at));
    COFS_CO_TRY(found);
    if (!found->has_value()) co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    const uint64_t start = (*found)->key.id;
    auto value = parse_vmap((*found)->value, geometry);
    COFS_CO_TRY(value);
    const uint64_t record_end = start + value->checksums.size();
    if (record_end <= at) co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    const uint64_t cut_end = std::min(record_end, end);
    if (record_end > cut_end) {
      auto put = co_await tree.put(Key::vmap(cut_end),
                                   encode_vmap(value->part(cut_end - start, record_end - cut_end)));
      COFS_CO_TRY(put);
    }
    if (start < at) {
      auto put = co_await tree.put(Key::vmap(start), encode_vmap(value->part(0, at - start)));
      COFS_CO_TRY(put);
    } else {
      auto erased = co_await tree.erase(Key::vmap(start));
      COFS_CO_TRY(erased);
    }
    const auto freed = static_cast<int64_t>(cut_end - at);
    auto counted = co_await segments.add_live(geometry.segment_of_block(value->physical_block),
                                              -freed, current_hold());
    COFS_CO_TRY(counted);
    if (live_data_blocks < cut_end - at) {
      co_return fail(Code::kCorrupt, "the count of live blocks does not add up");
    }
    live_data_blocks -= cut_end - at;
    gc.dropped_blocks += cut_end - at;
    pieces_logged++;
    at = cut_end;
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::apply_record(const Record& record) {
  Bytes body = record.body;
  const auto malformed = [] { return fail(Code::kCorrupt, "log record: malformed"); };
  switch (record.type) {
    case ondisk::RecordType::kPut:
    case ondisk::RecordType::kErase: {
      ondisk::Key encoded;
      if (body.size() < sizeof(encoded)) co_return malformed();
      std::memcpy(&encoded, body.data(), sizeof(encoded));
      const Bytes value = body.subspan(sizeof(encoded));
      if (value.size() > ondisk::kValueBytesMax) co_return malformed();
      const Key key = Key::decode(encoded);
      if (key.space == ondisk::KeySpace::kFiles) next_inode = std::max(next_inode, key.id + 1);
      if (record.type == ondisk::RecordType::kPut) {
        auto put = co_await apply_put(key, value);
        co_return put;
      }
      if (!value.empty()) co_return malformed();
      auto erased = co_await apply_erase(key);
      co_return erased;
    }
    case ondisk::RecordType::kMapExtent: {
      ondisk::RecordMapExtent in;
      if (body.size() != sizeof(in)) co_return malformed();
      std::memcpy(&in, body.data(), sizeof(in));
      // What maps something is one extent's worth at most; only a hole may be of any length.
      const bool maps = in.virtual_block != 0 || (in.flags & ondisk::kExtentUnwritten) != 0;
      if (in.count == 0 || in.file_block + in.count < in.file_block ||
          (in.flags & ~ondisk::kExtentFlagsKnown) != 0 ||
          (maps && in.count > ondisk::kExtentBlocksMax)) {
        co_return malformed();
      }
      if (in.virtual_block != 0) next_virtual = std::max(next_virtual, in.virtual_block + in.count);
      auto mapped =
          co_await apply_map_extent(in.ino, in.file_block, in.count, in.virtual_block, in.flags);
      co_return mapped;
    }
    case ondisk::RecordType::kInsertVmap: {
      auto in = parse_insert_vmap(body, geometry);
      COFS_CO_TRY(in);
      next_virtual = std::max(next_virtual, in->virtual_block + in->checksums.size());
      auto inserted = co_await apply_insert_vmap(in->virtual_block, in->physical_block,
                                                 in->generation, &in->checksums);
      co_return inserted;
    }
    case ondisk::RecordType::kOpenSegment: {
      ondisk::RecordOpenSegment in;
      if (body.size() != sizeof(in)) co_return malformed();
      std::memcpy(&in, body.data(), sizeof(in));
      if (in.stream >= ondisk::kStreamCount) co_return malformed();
      const auto stream = static_cast<ondisk::Stream>(in.stream);
      auto opened = co_await segments.open_named(in.segment, in.generation, stream, in.age);
      COFS_CO_TRY(opened);
      replayed_open_segments.insert(in.segment);
      co_return Result<>();
    }
    case ondisk::RecordType::kShareExtents: {
      auto in = parse_share_extents(body);
      COFS_CO_TRY(in);
      auto shared = co_await apply_share_extents(*in);
      co_return shared;
    }
    case ondisk::RecordType::kMoveVmap: {
      auto in = parse_move_vmap(body, geometry);
      COFS_CO_TRY(in);
      auto moved = co_await apply_move_vmap(*in);
      COFS_CO_TRY(moved);
      co_return Result<>();
    }
  }
  co_return fail(Code::kUnknownFeature, "log record: unknown type",
                 static_cast<uint64_t>(record.type));
}

}  // namespace cofs
