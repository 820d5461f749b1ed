// Reading: mappings, and blocks by virtual number, verified against the checksums in the vmap.

#include <algorithm>
#include <array>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kVerifyInsideMax = 4;  // blocks hashed inside the core; more goes outside
constexpr size_t kPiecesInFlightMax = 32;

Result<> verify_piece(const ReadPiece& piece, uint64_t volume_key) {
  for (uint64_t i = 0; i < piece.physical.count; i++) {
    const uint64_t hash = block_hash(piece.target + bytes_of_blocks(i));
    const uint64_t key = piece.keyed ? piece.virtual_block + i : 0;
    if (key_block_checksum(hash, key, volume_key) != piece.checksums[i]) {
      return fail(Code::kChecksum, "file data: checksum", piece.physical.start + i);
    }
  }
  return {};
}

Task<> read_piece(Store::Impl* store, ReadPiece* piece) {
  const std::array<MemoryPiece, 1> memory = {
      MemoryPiece{piece->target, static_cast<uint32_t>(piece->physical.count)}};
  piece->result = co_await store->env.device.read(piece->physical, memory);
  if (!piece->result) co_return;
  store->counters.read_bytes += bytes_of_blocks(piece->physical.count);
  if (piece->physical.count <= kVerifyInsideMax) {
    piece->result = verify_piece(*piece, store->geometry.volume_key);
  } else {
    co_await outside(store->env.executor, [&] {
      piece->result = verify_piece(*piece, store->geometry.volume_key);
    });
  }
  if (!piece->result) {
    store->counters.checksum_failures++;
    store->env.journal.write(Severity::kError, describe(piece->result.error()));
  }
}

Task<> read_piece_for(Store::Impl* store, ReadPiece* piece, WaitGroup* group) {
  co_await read_piece(store, piece);
  group->done();
}

}  // namespace

Task<Result<std::optional<std::vector<std::byte>>>> Store::get(Key key) {
  auto readable = impl_->check_readable();
  COFS_CO_TRY(readable);
  auto value = co_await impl_->tree.get(key);
  co_return value;
}

Task<Result<std::optional<TreeEntry>>> Store::first_at_or_after(Key from, Key to) {
  auto readable = impl_->check_readable();
  COFS_CO_TRY(readable);
  auto entry = co_await impl_->tree.first_at_or_after(from, to);
  co_return entry;
}

Task<Result<>> Store::scan(Key from, Key to, uint64_t limit,
                           std::function<bool(const Key&, Bytes)> visit) {
  auto readable = impl_->check_readable();
  COFS_CO_TRY(readable);
  auto result = co_await impl_->tree.scan(from, to, limit, std::move(visit));
  co_return result;
}

Task<Result<std::vector<Mapping>>> Store::map_range(uint64_t ino, uint64_t file_block,
                                                    uint64_t count, uint64_t limit) {
  auto readable = impl_->check_readable();
  COFS_CO_TRY(readable);
  std::vector<Mapping> mappings;
  const uint64_t end = file_block + count;
  uint64_t next = file_block;  // everything before has been answered (see mapper.cc on overlaps)
  Result<> parsed;
  const auto add = [&](const Key& key, Bytes bytes) {
    auto extent = parse_extent(bytes);
    if (!extent) {
      parsed = fail(extent.error());
      return false;
    }
    const uint64_t start = std::max(key.offset, next);
    const uint64_t stop = std::min(key.offset + extent->count, end);
    if (start >= stop) return true;
    Mapping mapping;
    mapping.file_block = start;
    mapping.count = stop - start;
    mapping.flags = extent->flags;
    if (extent->virtual_block != 0) {
      mapping.virtual_block = extent->virtual_block + (start - key.offset);
    }
    mappings.push_back(mapping);
    next = stop;
    return true;
  };
  if (count == 0 || limit == 0) co_return mappings;
  while (true) {
    const uint64_t changes = impl_->extent_changes_of(ino);
    mappings.clear();
    next = file_block;
    auto before =
        co_await impl_->tree.last_at_or_before(Key::extent(ino, 0), Key::extent(ino, file_block));
    COFS_CO_TRY(before);
    if (before->has_value()) add((*before)->key, (*before)->value);
    COFS_CO_TRY(parsed);
    if (mappings.size() < limit && next < end) {
      auto scanned = co_await impl_->tree.scan(Key::extent(ino, std::max(next, file_block + 1)),
                                               Key::extent(ino, end), limit - mappings.size(), add);
      COFS_CO_TRY(scanned);
      COFS_CO_TRY(parsed);
    }
    if (impl_->extent_changes_of(ino) == changes) break;
  }
  co_return mappings;
}

// --- The grace of readers ---

ReaderTicket::ReaderTicket(Store::Impl* store) : store_(store) { begin(); }

void ReaderTicket::begin() {
  COFS_ASSERT(ordinal_ == 0);
  ordinal_ = ++store_->reader_ordinal;
  store_->readers.insert(ordinal_);
}

void ReaderTicket::end() {
  if (ordinal_ == 0) return;
  const bool oldest = *store_->readers.begin() == ordinal_;
  store_->readers.erase(ordinal_);
  ordinal_ = 0;
  if (!oldest || !store_->segments.waits_for_readers()) return;
  if (!store_->shut_down) store_->release_segments();
  store_->reader_done.notify_all();
}

// REQUIRES: the caller is no reader itself.
Task<> Store::Impl::wait_for_readers() {
  const uint64_t begun = reader_ordinal;
  while (!shut_down && segments.waits_for_readers() && !readers.empty() &&
         *readers.begin() <= begun) {
    co_await reader_done.wait();
  }
}

Task<Result<>> Store::read_blocks(BlockRange virtual_blocks, std::byte* target) {
  Impl& store = *impl_;
  const ReaderTicket ticket(&store);
  store.gc.foreground++;
  std::vector<ReadPiece> pieces;
  uint64_t at = virtual_blocks.start;
  while (at < virtual_blocks.end()) {
    auto found = co_await store.tree.last_at_or_before(Key::vmap(0), Key::vmap(at));
    COFS_CO_TRY(found);
    if (!found->has_value()) co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    auto value = parse_vmap((*found)->value, store.geometry);
    COFS_CO_TRY(value);
    const uint64_t start = (*found)->key.id;
    const uint64_t end = start + value->checksums.size();
    if (end <= at) co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    const uint64_t n = std::min(end, virtual_blocks.end()) - at;
    const auto first = value->checksums.begin() + static_cast<std::ptrdiff_t>(at - start);
    const uint64_t physical = value->physical_block + (at - start);
    if (!pieces.empty() && pieces.back().physical.end() == physical) {
      ReadPiece& last = pieces.back();
      last.physical.count += n;
      last.checksums.insert(last.checksums.end(), first, first + static_cast<std::ptrdiff_t>(n));
    } else {
      ReadPiece piece;
      piece.physical.start = physical;
      piece.physical.count = n;
      piece.virtual_block = at;
      piece.target = target + bytes_of_blocks(at - virtual_blocks.start);
      piece.checksums.assign(first, first + static_cast<std::ptrdiff_t>(n));
      pieces.push_back(std::move(piece));
    }
    at += n;
  }
  auto read = co_await store.read_pieces(&pieces);
  co_return read;
}

Task<Result<>> Store::Impl::read_pieces(std::vector<ReadPiece>* pieces) {
  if (pieces->size() == 1) {
    co_await read_piece(this, pieces->data());
    co_return pieces->front().result;
  }
  for (size_t first = 0; first < pieces->size(); first += kPiecesInFlightMax) {
    WaitGroup group(env.executor);
    const size_t end = std::min(pieces->size(), first + kPiecesInFlightMax);
    for (size_t i = first; i < end; i++) {
      group.add();
      spawn(env.executor, read_piece_for(this, &(*pieces)[i], &group));
    }
    co_await group.wait();
  }
  for (const ReadPiece& piece : *pieces) {
    if (!piece.result) co_return piece.result;
  }
  co_return Result<>();
}

}  // namespace cofs
