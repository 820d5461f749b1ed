// Space: what is free, what is spoken for, and how a reservation makes room.
//
// Usable segments minus: the log's due (it may grow to twice its limit before a checkpoint ends), the
// nodes' due (cleaning keeps node segments at least half live, so nodes may take twice their size),
// growth of the tree not yet checkpointed, promises, and the reserves of the more urgent classes. What
// is dead in segments that hold live data is room, too, once garbage collection has won it: who finds
// no other room has that done.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kUnflushedBlocksMax = (256ULL << 20) / kBlockBytes;  // recovery verifies these
constexpr int kRoomAttempts = 3;

}  // namespace

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    release();
    ledger_ = std::exchange(other.ledger_, nullptr);
    blocks_ = std::exchange(other.blocks_, 0);
  }
  return *this;
}

void Reservation::merge(Reservation&& other) {
  if (other.ledger_ == nullptr) return;
  if (ledger_ == nullptr) ledger_ = other.ledger_;
  COFS_ASSERT(ledger_ == other.ledger_);
  blocks_ += std::exchange(other.blocks_, 0);
}

Reservation Reservation::take(uint64_t blocks) {
  const uint64_t taken = std::min(blocks, blocks_);
  blocks_ -= taken;
  return Reservation(ledger_, taken);
}

void Reservation::release(uint64_t blocks) {
  if (ledger_ == nullptr) return;
  const uint64_t released = std::min(blocks, blocks_);
  COFS_ASSERT(ledger_->outstanding >= released);
  ledger_->outstanding -= released;
  blocks_ -= released;
}

uint64_t blocks_of_cost(const Cost& cost) {
  const uint64_t data =
      cost.data_blocks == 0 ? 0 : cost.data_blocks + cost.data_blocks / 64 + 1;
  return data + (cost.record_bytes * 8 + kBlockBytes - 1) / kBlockBytes;
}

uint64_t Store::Impl::usable_blocks() const {
  const OpenSegment& data = streams[static_cast<size_t>(ondisk::Stream::kData)];
  const uint64_t room_in_open = stream_room(data, 2);
  return segments.usable_count() * (geometry.segment_blocks - segment_overhead()) + room_in_open;
}

uint64_t Store::Impl::metadata_debt() const {
  const uint64_t worst = metadata_debt_bytes * 8 / kBlockBytes;
  return std::min(worst,
                  tree.dirty_nodes() * geometry.node_blocks() * geometry.metadata_copies * 2);
}

uint64_t Store::Impl::log_headroom() const {
  const uint64_t wanted = 2 * geometry.log_limit_blocks / geometry.segment_blocks + 4;
  const uint64_t have = log_chain.size();
  return wanted > have ? (wanted - have) * geometry.segment_blocks : 0;
}

uint64_t Store::Impl::node_headroom() const {
  const uint64_t due = 2 * live_node_blocks + 2 * geometry.metadata_copies * geometry.segment_blocks;
  const uint64_t have = segments.node_segments() * geometry.segment_blocks;
  return due > have ? due - have : 0;
}

uint64_t Store::Impl::checkpoint_reserve() const {
  return dirty_nodes_max * geometry.metadata_copies * geometry.node_blocks() * 3 / 2 +
         2 * geometry.segment_blocks;
}

uint64_t Store::Impl::delete_reserve() const {
  return dirty_nodes_max * geometry.metadata_copies * geometry.node_blocks() +
         2 * geometry.segment_blocks;
}

// Room for the survivors of one victim in either stream, and one segment that a crash may cost.
uint64_t Store::Impl::gc_reserve() const { return gc_on() ? 3 * geometry.segment_blocks : 0; }

int64_t Store::Impl::room(SpaceClass space_class) const {
  uint64_t taken = log_headroom() + node_headroom() + metadata_debt() + ledger.outstanding;
  if (space_class != SpaceClass::kCheckpoint) taken += checkpoint_reserve();
  if (space_class == SpaceClass::kUser || space_class == SpaceClass::kDelete) taken += gc_reserve();
  if (space_class == SpaceClass::kUser) taken += delete_reserve();
  return static_cast<int64_t>(usable_blocks()) - static_cast<int64_t>(taken);
}

uint64_t Store::Impl::available(SpaceClass space_class) const {
  return static_cast<uint64_t>(std::max<int64_t>(room(space_class), 0));
}

bool Store::Impl::log_over_limit(uint64_t factor) const {
  return log_blocks + shared_pieces_logged / kSharedPiecesPerLogBlock >
         factor * geometry.log_limit_blocks;
}

Task<Result<Reservation>> Store::reserve(Cost cost, SpaceClass space_class) {
  Impl& store = *impl_;
  auto writable = store.check_writable();
  COFS_CO_TRY(writable);
  store.gc.foreground++;
  auto bounded = co_await store.keep_bounds();
  COFS_CO_TRY(bounded);
  if (store.unflushed_data_blocks > kUnflushedBlocksMax) {
    auto done = co_await commit();
    COFS_CO_TRY(done);
  }
  if (space_class == SpaceClass::kUser) {
    auto paid = co_await store.gc_pay(cost.data_blocks);
    COFS_CO_TRY(paid);
  }
  const uint64_t blocks = blocks_of_cost(cost);
  uint64_t collections = store.gc_on() ? 2 * store.geometry.segment_count : 0;
  for (int attempt = 0;; attempt++) {
    if (store.available(space_class) >= blocks) {
      store.ledger.outstanding += blocks;
      co_return Reservation(&store.ledger, blocks);
    }
    const bool may_gain = store.segments.held_count() != 0 || store.tree.dirty_nodes() != 0 ||
                          store.ledger.outstanding != 0 ||
                          store.segments.usable_count() + store.segments.held_count() <
                              store.segments.free_count();
    if (collections != 0 && (attempt > 0 || !may_gain)) {
      auto more = co_await store.gc_make_room(blocks, space_class);
      COFS_CO_TRY(more);
      collections = *more ? collections - 1 : 0;
      if (*more) attempt = 0;
      continue;
    }
    if (attempt >= kRoomAttempts || !may_gain) co_return fail(Code::kNoSpace, "the volume is full");
    auto done = co_await checkpoint();
    COFS_CO_TRY(done);
    co_await store.wait_for_readers();
    co_await store.wait_for_discards();
  }
}

Task<Result<Transaction>> Store::begin(Cost cost, SpaceClass space_class) {
  auto reservation = co_await reserve(cost, space_class);
  COFS_CO_TRY(reservation);
  auto transaction = co_await begin(std::move(*reservation));
  co_return transaction;
}

Task<Result<Transaction>> Store::begin(Reservation reservation) {
  auto guard = co_await impl_->apply_lock.lock();
  auto writable = impl_->check_writable();
  COFS_CO_TRY(writable);
  co_return Transaction(this, std::move(guard), std::move(reservation));
}

SpaceReport Store::space() const {
  const Impl& store = *impl_;
  SpaceReport report;
  const uint64_t overhead = store.segment_overhead();
  const uint64_t usable_segments = store.geometry.segment_count - 1;
  const uint64_t reserves = store.checkpoint_reserve() + store.gc_reserve() + store.delete_reserve();
  const uint64_t fixed = reserves + 2 * store.geometry.log_limit_blocks +
                         4 * store.geometry.segment_blocks +
                         2 * store.geometry.metadata_copies * store.geometry.segment_blocks;
  const uint64_t all = usable_segments * (store.geometry.segment_blocks - overhead);
  report.total_blocks = all > fixed ? all - fixed : 0;
  // Segments that only wait for a commit count: a writer that needs them makes that commit. So does
  // what garbage collection can win.
  const uint64_t waiting = (store.segments.free_count() - store.segments.usable_count()) *
                           (store.geometry.segment_blocks - overhead);
  const uint64_t taken = store.log_headroom() + store.node_headroom() + store.metadata_debt() +
                         store.ledger.outstanding + reserves;
  report.winnable_blocks = store.gc_winnable_blocks();
  const uint64_t have = store.usable_blocks() + waiting + report.winnable_blocks;
  report.free_blocks = have;
  const uint64_t available = have > taken ? have - taken : 0;
  report.available_blocks = available - available / 64;
  report.live_data_blocks = store.live_data_blocks;
  report.node_blocks = store.live_node_blocks;
  report.shared_blocks = store.shared_blocks;
  report.extra_references = store.extra_references;
  report.reserved_blocks = store.ledger.outstanding;
  report.free_segments = store.segments.free_count();
  report.segment_count = store.geometry.segment_count;
  report.inode_count = store.inode_count;
  const uint64_t used =
      (usable_segments - store.segments.free_count()) * store.geometry.segment_blocks;
  const uint64_t live = store.live_data_blocks + store.live_node_blocks;
  report.dead_blocks = used > live ? used - live : 0;
  return report;
}

}  // namespace cofs
