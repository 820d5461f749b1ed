// Giving moved blocks their new places in vmap, by compare and set: only what still lies where it was
// copied from moves; what was overwritten or freed meanwhile does not.
//
// Replay runs apply_move_vmap() on the records that publishing logged, on the state they were made on.

#include <algorithm>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {

// Puts the record of moved blocks, as part of the record before it where the two are one run.
Task<Result<>> put_moved(Store::Impl* store, uint64_t virtual_block, const VmapValue* moved) {
  auto put = co_await store->tree.put(Key::vmap(virtual_block), encode_vmap(*moved));
  COFS_CO_TRY(put);
  auto before = co_await store->tree.last_at_or_before(Key::vmap(0), Key::vmap(virtual_block - 1));
  COFS_CO_TRY(before);
  if (!before->has_value()) co_return Result<>();
  auto left = parse_vmap((*before)->value, store->geometry);
  COFS_CO_TRY(left);
  const uint64_t blocks = left->checksums.size();
  if ((*before)->key.id + blocks != virtual_block || left->generation != moved->generation ||
      left->physical_block + blocks != moved->physical_block ||
      blocks + moved->checksums.size() > ondisk::kVmapBlocksMax) {
    co_return Result<>();
  }
  left->checksums.insert(left->checksums.end(), moved->checksums.begin(), moved->checksums.end());
  auto merged = co_await store->tree.put((*before)->key, encode_vmap(*left));
  COFS_CO_TRY(merged);
  auto erased = co_await store->tree.erase(Key::vmap(virtual_block));
  COFS_CO_TRY(erased);
  co_return Result<>();
}

// How many moves may be published together: each dirties a leaf, at worst, and all of them are one step
// for those who wait to read.
uint64_t moves_per_transaction(uint64_t dirty_nodes_floor) {
  return std::clamp<uint64_t>(dirty_nodes_floor / 8, 2, 16);
}

// Whether any block of it still lies where it was copied from. Touches all that moving it will need.
Task<Result<bool>> still_there(Store::Impl* store, const VmapMove* move) {
  bool there = false;
  uint64_t at = move->virtual_block;
  while (at < move->end()) {
    auto found = co_await find_vmap(store->tree, store->geometry, at, move->end());
    COFS_CO_TRY(found);
    if (!found->has_value()) break;
    const VmapPiece& piece = **found;
    at = piece.end;
    if (piece.physical() == move->from_physical + (piece.start - move->virtual_block)) there = true;
  }
  auto before =
      co_await store->tree.last_at_or_before(Key::vmap(0), Key::vmap(move->virtual_block - 1));
  COFS_CO_TRY(before);
  for (uint64_t block : {move->from_physical, move->to_physical}) {
    auto state = co_await store->segments.load(store->geometry.segment_of_block(block));
    COFS_CO_TRY(state);
  }
  co_return there;
}

}  // namespace

// Readers run between any two steps: a block is always mapped, to its old place or to its new one,
// which hold the same.
Task<Result<uint64_t>> Store::Impl::apply_move_vmap(VmapMove move) {
  uint64_t moved_blocks = 0;
  uint64_t at = move.virtual_block;
  while (at < move.end()) {
    auto found = co_await find_vmap(tree, geometry, at, move.end());
    COFS_CO_TRY(found);
    if (!found->has_value()) break;
    const VmapPiece& piece = **found;
    at = piece.end;
    if (piece.physical() != move.from_physical + (piece.start - move.virtual_block)) continue;
    const uint64_t count = piece.end - piece.start;
    VmapValue moved = piece.record.part(piece.start - piece.record_start, count);
    moved.physical_block = move.to_physical + (piece.start - move.virtual_block);
    moved.generation = move.to_generation;
    if (piece.record_end() > piece.end) {
      auto put = co_await tree.put(Key::vmap(piece.end),
                                   encode_vmap(piece.record.part(piece.end - piece.record_start,
                                                                 piece.record_end() - piece.end)));
      COFS_CO_TRY(put);
    }
    auto put = co_await put_moved(this, piece.start, &moved);
    COFS_CO_TRY(put);
    if (piece.record_start < piece.start) {
      auto head = co_await tree.put(
          Key::vmap(piece.record_start),
          encode_vmap(piece.record.part(0, piece.start - piece.record_start)));
      COFS_CO_TRY(head);
    }
    if (replaying) {
      auto revived = co_await segments.revive(geometry.segment_of_block(moved.physical_block), moved.generation);
      COFS_CO_TRY(revived);
    }
    auto counted = co_await segments.add_live(geometry.segment_of_block(moved.physical_block),
                                              static_cast<int64_t>(count), current_hold());
    COFS_CO_TRY(counted);
    counted = co_await segments.add_live(geometry.segment_of_block(piece.physical()),
                                         -static_cast<int64_t>(count), current_hold());
    COFS_CO_TRY(counted);
    moved_blocks += count;
  }
  co_return moved_blocks;
}

// REQUIRES: the data is durable at its new places, whose segments are pinned. Errors: those of reading
// metadata, with the moves before published; kShutdown.
Task<Result<uint64_t>> Store::Impl::gc_publish(const std::vector<VmapMove>* moves) {
  const uint64_t together = moves_per_transaction(reserves.dirty_nodes_floor);
  uint64_t moved_blocks = 0;
  for (size_t first = 0; first < moves->size();) {
    auto bounded = co_await keep_bounds();
    COFS_CO_TRY(bounded);
    auto guard = co_await apply_lock.lock();
    auto writable = check_writable();
    COFS_CO_TRY(writable);
    if (tree.dirty_nodes() >= dirty_nodes_limit()) continue;  // others came first
    std::vector<const VmapMove*> current;
    for (size_t i = first; i < std::min(moves->size(), first + together); i++) {
      const VmapMove* move = &(*moves)[i];
      auto there = co_await still_there(this, move);
      COFS_CO_TRY(there);
      if (*there) current.push_back(move);
    }
    const size_t records_before = pending_records.size();
    for (const VmapMove* move : current) {
      RecordWriter(pending_records)
          .move_vmap(move->virtual_block, move->from_physical, move->to_physical, move->count,
                     move->to_generation);
      auto moved = co_await apply_move_vmap(*move);
      if (!moved) {
        half_applied = true;
        fail_store(moved.error(), "a move could not be completed");
        co_return fail(Code::kShutdown, "a move could not be completed");
      }
      moved_blocks += *moved;
    }
    metadata_debt_bytes += pending_records.size() - records_before;
    guard.release();
    first += together;
    co_await let_others_run(env.executor);
  }
  counters.gc_relocated_bytes += bytes_of_blocks(moved_blocks);
  co_return moved_blocks;
}

}  // namespace cofs
