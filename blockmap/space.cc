// Space: what is free, what is spoken for, and how a reservation makes room.
//
// Usable segments minus: what the log and the nodes may still take, growth of the tree not yet
// checkpointed, promises, what files have preallocated, and the reserves of the more urgent classes; how much
// and why is told in reserves.cc. What is dead in segments that hold live data is room, too, once garbage collection has won
// it: who finds no other room has that done.
//
// The log and the dirty nodes may go beyond their floors as far as there is room that nobody was
// promised (log_limit, dirty_nodes_limit): what they take is counted as soon as it is taken, and a
// checkpoint gives it back.

#include <algorithm>
#include <utility>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kUnflushedBlocksMax = (256ULL << 20) / kBlockBytes;  // recovery verifies these
constexpr int kRoomAttempts = 3;
constexpr uint64_t kBlocksPerRecordBlock = 8;  // reserved for records: in the log, in nodes, in their copies
constexpr uint64_t kLogSpareShare = 32;    // of the spare blocks that the log may take beyond its floor
constexpr uint64_t kNodesSpareShare = 64;  // and images of dirty nodes
// What 256 blocks of data take, in tenths: 4 of headers, 1,024 bytes of checksums and 48 of a vmap record, both times 8.
constexpr uint64_t kDataPart = 2560;
constexpr uint64_t kDataWhole = 2621;

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
  return data + (cost.record_bytes * kBlocksPerRecordBlock + kBlockBytes - 1) / kBlockBytes;
}

uint64_t data_within(uint64_t blocks) {
  constexpr uint64_t kPerRun = 8;  // its own records, and what is rounded up
  return blocks > kPerRun ? (blocks - kPerRun) * kDataPart / kDataWhole : 0;
}

uint64_t blocks_for_data(uint64_t data_blocks) {
  return (data_blocks * kDataWhole + kDataPart - 1) / kDataPart;
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
  const uint64_t wanted = reserves.log_segments;
  const uint64_t have = log_chain.size();
  return wanted > have ? (wanted - have) * reserves.segment_data_blocks : 0;
}

uint64_t Store::Impl::node_segments_due() const {
  return reserves.node_segments_due(live_node_blocks /
                                    (geometry.metadata_copies * geometry.node_blocks()));
}

uint64_t Store::Impl::node_headroom() const {
  const uint64_t due = node_segments_due();
  const uint64_t have = segments.node_segments();
  return due > have ? (due - have) * reserves.segment_data_blocks : 0;
}

uint64_t Store::Impl::checkpoint_reserve(uint64_t dirty_nodes) const {
  return reserves.checkpoint_segments(dirty_nodes) * reserves.segment_data_blocks;
}

uint64_t Store::Impl::delete_reserve() const {
  return Reserves::kDeleteSegments * reserves.segment_data_blocks;
}

uint64_t Store::Impl::preallocated() const { return blocks_for_data(unwritten_blocks); }

uint64_t Store::Impl::gc_reserve() const {
  return gc_on() ? Reserves::kGcSegments * reserves.segment_data_blocks : 0;
}

int64_t Store::Impl::room(SpaceClass space_class) const {
  uint64_t taken = log_headroom() + node_headroom() + metadata_debt() + ledger.outstanding;
  if (space_class != SpaceClass::kCheckpoint) taken += checkpoint_reserve(tree.dirty_nodes());
  if (space_class == SpaceClass::kUser || space_class == SpaceClass::kDelete) taken += gc_reserve();
  if (space_class == SpaceClass::kUser) taken += delete_reserve() + preallocated();
  return static_cast<int64_t>(usable_blocks()) - static_cast<int64_t>(taken);
}

// Of what is for users: what lives, and what is promised. What is dead counts for nobody.
uint64_t Store::Impl::user_blocks_taken() const {
  const uint64_t nodes_due = (node_segments_due() - reserves.node_segments_due(0)) *
                             reserves.segment_data_blocks;
  return live_data_blocks + preallocated() + nodes_due + metadata_debt() + ledger.outstanding;
}

uint64_t Store::Impl::available(SpaceClass space_class) const {
  const auto have = static_cast<uint64_t>(std::max<int64_t>(room(space_class), 0));
  if (space_class != SpaceClass::kUser || reserves.over_provision_percent == 0) return have;
  const uint64_t taken = user_blocks_taken();
  const uint64_t limit = reserves.user_blocks();
  return limit > taken ? std::min(have, limit - taken) : 0;
}

// What nobody was promised, and no floor needs.
uint64_t Store::Impl::spare_blocks() const {
  const uint64_t taken = log_headroom() + node_headroom() + metadata_debt() + ledger.outstanding +
                         checkpoint_reserve(0) + gc_reserve() + delete_reserve() + preallocated();
  const uint64_t have = usable_blocks();
  return have > taken ? have - taken : 0;
}

uint64_t Store::Impl::log_limit() const {
  return std::min(reserves.log_max_blocks,
                  reserves.log_floor_blocks + spare_blocks() / kLogSpareShare);
}

uint64_t Store::Impl::dirty_nodes_limit() const {
  const uint64_t node_blocks = uint64_t{geometry.metadata_copies} * geometry.node_blocks();
  return std::min(reserves.dirty_nodes_max,
                  reserves.dirty_nodes_floor + spare_blocks() / (kNodesSpareShare * node_blocks));
}

// What is applied and not composed yet will be in the log, too.
bool Store::Impl::log_over_limit(uint64_t factor) const {
  return log_blocks + blocks_of_bytes(pending_records.size()) +
             pieces_logged / kPiecesPerLogBlock >
         factor * log_limit();
}

bool Store::has_room(const Cost& cost, SpaceClass space_class) const {
  return impl_->available(space_class) >= blocks_of_cost(cost);
}

uint64_t Store::likely_nodes_max() const {
  const Impl& store = *impl_;
  const uint64_t limit = store.dirty_nodes_limit();
  const uint64_t dirty = store.tree.dirty_nodes();
  const uint64_t node_blocks =
      uint64_t{store.geometry.metadata_copies} * store.geometry.node_blocks();
  const uint64_t room = store.available(SpaceClass::kUser) / (2 * node_blocks);
  return store.reserves.step_nodes() + (limit > dirty ? std::min(limit - dirty, room) : 0);
}

uint64_t Transaction::nodes_max() const {
  const Store::Impl& store = *state_->store->impl_;
  const uint64_t limit = store.dirty_nodes_limit();
  const uint64_t dirty = store.tree.dirty_nodes();
  return store.reserves.step_nodes() + (limit > dirty ? limit - dirty : 0);
}

Cost Store::cost_of_nodes(uint64_t nodes) const {
  const uint64_t covered = impl_->reserves.step_nodes();
  if (nodes <= covered) return Cost();
  const uint64_t blocks = (nodes - covered) * impl_->geometry.metadata_copies *
                          impl_->geometry.node_blocks();
  return Cost(0, blocks * kBlockBytes / kBlocksPerRecordBlock);
}

Task<Result<Reservation>> Store::reserve(Cost cost, SpaceClass space_class, uint64_t kept) {
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
  const uint64_t blocks = blocks_of_cost(cost);
  // Over-provisioning is kept from data, so that collecting stays cheap. Names, attributes and clones are few
  // blocks, and change when there is no room for data, too.
  const auto available = [&] {
    if (cost.data_blocks != 0 && kept == 0) return store.available(space_class);
    int64_t room = store.room(space_class);
    // What is written here and there takes a little more than is kept, until it is on the device: half of what
    // deleting has may be lent.
    if (kept != 0) room += static_cast<int64_t>(blocks_for_data(kept) + store.delete_reserve() / 2);
    return static_cast<uint64_t>(std::max<int64_t>(room, 0));
  };
  const uint64_t collections_max = store.gc_on() ? 2 * store.geometry.segment_count : 0;
  uint64_t collections = 0;
  bool gains = collections_max != 0;
  bool may_free = store.client != nullptr && space_class == SpaceClass::kUser;
  for (int attempt = 0;;) {
    if (available() >= blocks) {
      store.ledger.outstanding += blocks;
      co_return Reservation(&store.ledger, blocks);
    }
    if (std::exchange(may_free, false)) {
      const bool freed = co_await store.client->free_space();
      if (freed) continue;
    }
    // Where only over-provisioning is in the way, moving wins nothing.
    if (gains && store.room(space_class) < static_cast<int64_t>(blocks)) {
      if (collections++ == 0) store.counters.gc_stalls++;
      auto more = co_await store.gc_make_room(blocks, space_class);
      COFS_CO_TRY(more);
      gains = *more && collections < collections_max;
      continue;
    }
    const bool may_gain = store.segments.held_count() != 0 || store.tree.dirty_nodes() != 0 ||
                          store.ledger.outstanding != 0 ||
                          store.segments.usable_count() + store.segments.held_count() <
                              store.segments.free_count();
    if (attempt++ >= kRoomAttempts || !may_gain) co_return fail(Code::kNoSpace, "the volume is full");
    auto done = co_await checkpoint();
    COFS_CO_TRY(done);
    co_await store.wait_for_readers();
    co_await store.wait_for_discards();
  }
}

Task<Result<Transaction>> Store::begin(Cost cost, SpaceClass space_class) {
  auto reservation = co_await reserve(cost, space_class);
  COFS_CO_TRY(reservation);
  while (true) {
    auto guard = co_await impl_->apply_lock.lock();
    auto writable = impl_->check_writable();
    COFS_CO_TRY(writable);
    // Others may have made nodes dirty since: the checkpoint's reserve is for one more operation.
    if (impl_->tree.dirty_nodes() < impl_->dirty_nodes_limit()) {
      co_return Transaction(this, std::move(guard), std::move(*reservation));
    }
    guard.release();
    auto done = co_await checkpoint();
    COFS_CO_TRY(done);
  }
}

Task<Result<Transaction>> Store::begin_within_bounds(Reservation reservation) {
  while (true) {
    auto bounded = co_await impl_->keep_bounds();
    COFS_CO_TRY(bounded);
    auto guard = co_await impl_->apply_lock.lock();
    auto writable = impl_->check_writable();
    COFS_CO_TRY(writable);
    if (impl_->tree.dirty_nodes() >= impl_->dirty_nodes_limit()) continue;  // others came first
    co_return Transaction(this, std::move(guard), std::move(reservation));
  }
}

Task<Result<Transaction>> Store::begin(Reservation reservation) {
  auto guard = co_await impl_->apply_lock.lock();
  auto writable = impl_->check_writable();
  COFS_CO_TRY(writable);
  co_return Transaction(this, std::move(guard), std::move(reservation));
}

}  // namespace cofs
