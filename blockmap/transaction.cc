// Transactions: collecting changes, then applying them as one.
//
// apply() first reads every node it will need (prefetch.cc), so that an unreadable node is found
// while nothing has changed; then it changes the tree and appends the log records. A failure in the
// second part leaves memory and log apart and therefore shuts the store down.

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {

Transaction::Transaction(Store* store, Mutex::Guard guard, Reservation reservation)
    : state_(std::make_unique<State>()) {
  state_->store = store;
  state_->guard = std::move(guard);
  state_->reservation = std::move(reservation);
}
Transaction::Transaction(Transaction&&) noexcept = default;
Transaction::~Transaction() = default;

void Transaction::put(const Key& key, Bytes value) {
  COFS_ASSERT(value.size() <= ondisk::kValueBytesMax);
  State::Op op;
  op.kind = State::Kind::kPut;
  op.key = key;
  op.value.assign(value.begin(), value.end());
  state_->ops.push_back(std::move(op));
}

void Transaction::erase(const Key& key) {
  State::Op op;
  op.kind = State::Kind::kErase;
  op.key = key;
  state_->ops.push_back(std::move(op));
}

void Transaction::map_extent(uint64_t ino, uint64_t file_block, uint64_t count,
                             uint64_t virtual_block, uint32_t flags) {
  COFS_ASSERT(count > 0);
  State::Op op;
  op.kind = State::Kind::kMapExtent;
  op.ino = ino;
  op.file_block = file_block;
  op.count = count;
  op.virtual_block = virtual_block;
  op.flags = flags;
  state_->ops.push_back(std::move(op));
}

void Transaction::share_extents(const ShareRange& range) {
  COFS_ASSERT(range.valid());
  State::Op op;
  op.kind = State::Kind::kShareExtents;
  op.ino = range.target_ino;
  op.file_block = range.target_block;
  op.count = range.count;
  op.share = range;
  state_->ops.push_back(std::move(op));
}

void Transaction::write_data(DataRun run) {
  COFS_ASSERT(run.count > 0 && run.hashes.size() == run.count);
  state_->data_blocks += run.count;
  State::Op op;
  op.kind = State::Kind::kWriteData;
  op.ino = run.ino;
  op.file_block = run.file_block;
  op.count = run.count;
  op.run = std::move(run);
  state_->ops.push_back(std::move(op));
}

void Transaction::map_staged(uint64_t ino, uint64_t file_block, StagedRun run) {
  State::Op op;
  op.kind = State::Kind::kMapStaged;
  op.ino = ino;
  op.file_block = file_block;
  op.count = run.count;
  op.staged = std::move(run);
  state_->ops.push_back(std::move(op));
}

bool Transaction::empty() const { return state_->ops.empty(); }
uint64_t Transaction::data_blocks() const { return state_->data_blocks; }

Task<Result<>> Transaction::apply() {
  COFS_ASSERT(!state_->applied);
  state_->applied = true;
  auto applied = co_await state_->store->impl_->apply(*state_, false);
  co_return applied;
}

Task<Result<>> Store::Impl::apply(Transaction::State& state, bool into_log) {
  using Kind = Transaction::State::Kind;
  auto writable = check_writable();
  COFS_CO_TRY(writable);
  auto fetched = co_await prefetch(state);
  COFS_CO_TRY(fetched);
  RecordWriter writer(pending_records);
  const size_t records_before = pending_records.size();
  Result<> result;
  for (Transaction::State::Op& op : state.ops) {
    switch (op.kind) {
      case Kind::kPut:
        writer.put(op.key, op.value);
        result = co_await apply_put(op.key, op.value);
        break;
      case Kind::kErase:
        writer.erase(op.key);
        result = co_await apply_erase(op.key);
        break;
      case Kind::kMapExtent:
        writer.map_extent(op.ino, op.file_block, op.count, op.virtual_block, op.flags);
        result = co_await apply_map_extent(op.ino, op.file_block, op.count, op.virtual_block,
                                           op.flags);
        break;
      case Kind::kShareExtents:
        writer.share_extents(op.share);
        result = co_await apply_share_extents(op.share);
        counters.shares++;
        break;
      case Kind::kWriteData:
        result = co_await place_run(&op.run, into_log);
        break;
      case Kind::kMapStaged:
        writer.insert_vmap(op.staged.virtual_block, op.staged.physical_block, op.staged.generation,
                           op.staged.checksums);
        result = co_await apply_insert_vmap(op.staged.virtual_block, op.staged.physical_block,
                                            op.staged.generation, &op.staged.checksums);
        if (!result) break;
        writer.map_extent(op.ino, op.file_block, op.staged.count, op.staged.virtual_block, 0);
        result = co_await apply_map_extent(op.ino, op.file_block, op.staged.count,
                                           op.staged.virtual_block, 0);
        break;
    }
    if (!result) break;
  }
  close_open_chunk();
  if (!result) {
    half_applied = true;
    fail_store(result.error(), "a change could not be completed");
    co_return fail(Code::kShutdown, "a change could not be completed");
  }
  metadata_debt_bytes += pending_records.size() - records_before;
  co_return Result<>();
}

}  // namespace cofs
