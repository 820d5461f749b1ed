// Files: what its operations share, and the way of dirty data to the store.
//
// Dirty data leaves memory in three ways: the background flush (a file has a megabyte, or the totals
// pass half their limits), flush_dirty_data() at the start of a commit, and collect_data() inside it.
// All of them take runs out of FileData under the apply lock; a run is in flight until the store
// reports its device write.

#include "fs/files.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "fs/files_impl.h"
#include "offload/base/checksum.h"

namespace cofs {

Files::Files(Store& store, InodeTable& inodes, Environment& environment, const FsOptions& options,
             DataSink& sink)
    : impl_(std::make_unique<Impl>(store, inodes, environment, options, sink)) {}
Files::~Files() = default;

uint64_t Files::edge_bytes_copied() const { return impl_->edge_bytes; }
uint64_t Files::shared_bytes() const { return bytes_of_blocks(impl_->shared_blocks); }

Task<Result<InodeRef>> Files::get_file(uint64_t ino) { return impl_->get_file(ino); }
Task<Result<>> Files::make_room() { return impl_->throttle(); }

Files::Impl::DataChange::~DataChange() {
  impl_.dirty_blocks += inode_.data.dirty_blocks() - blocks_;
  impl_.dirty_fragments += inode_.data.dirty_fragments() - fragments_;
  impl_.inodes.data_changed(inode_);
}

Task<Result<InodeRef>> Files::Impl::get_file(uint64_t ino) {
  auto inode = co_await inodes.get(ino);
  COFS_CO_TRY(inode);
  if ((*inode)->is_directory()) co_return fail(Code::kIsDirectory, "file data", ino);
  if (!(*inode)->is_regular()) co_return fail(Code::kInvalid, "file data: not a regular file", ino);
  co_return std::move(*inode);
}

Result<> Files::Impl::check_changeable(const Inode& inode, bool only_appends) {
  if (inode.deleted) return fail(Code::kStale, "file data", inode.ino);
  if ((inode.flags & ondisk::kInodeImmutable) != 0) {
    return fail(Code::kNotPermitted, "file is immutable", inode.ino);
  }
  if ((inode.flags & ondisk::kInodeAppend) != 0 && !only_appends) {
    return fail(Code::kNotPermitted, "file is append-only", inode.ino);
  }
  return {};
}

// --- Space and inline data ---------------------------------------------------------------------

uint64_t Files::Impl::wanted_blocks(const Inode& inode, uint64_t dirty, uint64_t runs,
                                    uint64_t size) {
  if (dirty == 0) return 0;
  Cost cost = data_cost(dirty, runs);
  const bool may_go_inline = size <= ondisk::kInlineDataMax && inode.blocks == 0;
  if (may_go_inline) cost.record_bytes += ondisk::kInlineDataMax;
  return blocks_of_cost(cost);
}

void Files::Impl::trim_reservation(Inode& inode) {
  const uint64_t held = inode.data.reservation.blocks();
  const uint64_t wanted = wanted_blocks(inode, inode.data.dirty_blocks(), inode.data.dirty_runs(),
                                        inode.size);
  if (held > wanted) inode.data.reservation.release(held - wanted);
}

void Files::Impl::replace_blocks(Inode& inode, BlockRange blocks, uint64_t end) {
  DataChange change(*this, inode);
  inode.data.drop(blocks.start, blocks.count);
  inode.size = std::max(inode.size, end);
  trim_reservation(inode);
  mark_data_changed(inode);
}

void Files::Impl::make_blocks(Inode& inode, Reservation space) {
  COFS_ASSERT(is_inline(inode));
  std::vector<EdgeBlock> edges(1);
  edges[0].buffer = environment.buffers.allocate(1);
  std::byte* const block = edges[0].buffer->data();
  const size_t bytes = inode.inline_data.size();
  std::memcpy(block, inode.inline_data.data(), bytes);
  std::memset(block + bytes, 0, kBlockBytes - bytes);
  inode.flags &= ~ondisk::kInodeInline;
  inode.inline_data.clear();
  DataChange change(*this, inode);
  add_edges(inode, &edges, std::move(space));
  inodes.mark_dirty(inode);
}

bool Files::Impl::move_inline(Inode& inode) {
  const FileData& data = inode.data;
  if (inode.size == 0 || inode.size > ondisk::kInlineDataMax || inode.blocks != 0 ||
      data.block_holds != 0 || data.in_flight_runs() != 0 || data.dirty_blocks() != 1) {
    return false;
  }
  const auto block = data.find(0);
  if (!block) return false;
  DataChange change(*this, inode);
  inode.inline_data.assign(reinterpret_cast<const char*>(block->data()), inode.size);
  inode.flags |= ondisk::kInodeInline;
  inode.data.drop(0, 1);
  inline_space.merge(std::exchange(inode.data.reservation, Reservation()));
  inodes.mark_dirty(inode);
  return true;
}

Task<Result<>> Files::Impl::to_block_form(Inode& inode) {
  COFS_ASSERT(inode.data.block_holds > 0);
  if (!is_inline(inode)) co_return Result<>();
  auto space = co_await store.reserve(data_cost(1, 1), SpaceClass::kUser);
  COFS_CO_TRY(space);
  auto transaction = co_await store.begin(Reservation());
  COFS_CO_TRY(transaction);
  if (!is_inline(inode)) co_return Result<>();
  make_blocks(inode, std::move(*space));
  trim_reservation(inode);
  co_return Result<>();
}

void Files::Impl::add_edges(Inode& inode, std::vector<EdgeBlock>* edges, Reservation space) {
  for (EdgeBlock& edge : *edges) {
    recent_edges.forget(inode.ino, edge.file_block, 1);
    FileData::Run run;
    run.count = 1;
    run.hashes.push_back(block_hash(edge.buffer->data()));
    run.buffer = std::move(edge.buffer);
    inode.data.add_dirty(edge.file_block, std::move(run));
  }
  inode.data.reservation.merge(std::move(space));
}

// --- Limits ------------------------------------------------------------------------------------

uint64_t Files::Impl::dirty_blocks_max() const {
  return std::max(options.dirty_bytes_max >> kBlockShift, kDirtyBlocksMin);
}

uint64_t Files::Impl::dirty_fragments_max() const {
  return std::max({store.dirty_nodes_floor() / 4, store.dirty_nodes_limit() / 8, kDirtyFragmentsMin});
}

// An extent may dirty two leaves of vmap (blockmap/reserves.cc).
uint64_t Files::Impl::step_extents() const {
  return std::clamp(store.dirty_nodes_floor() / 4, kStepExtentsMin, kStepExtentsMax);
}

bool Files::Impl::past_half() const {
  return dirty_blocks >= dirty_blocks_max() / 2 || dirty_fragments >= dirty_fragments_max() / 2;
}

bool Files::Impl::over_limit() const {
  return dirty_blocks + in_flight_blocks > dirty_blocks_max() ||
         dirty_fragments > dirty_fragments_max();
}

Task<Result<>> Files::Impl::throttle() {
  if (inodes.wants_commit()) {
    auto committed = co_await store.commit();
    COFS_CO_TRY(committed);
  }
  while (over_limit()) {
    if (store.shut_down()) co_return fail(Code::kShutdown, "write");
    auto stalled = store.check_stall();
    COFS_CO_TRY(stalled);
    // Past the limit either half of it is dirty, and flushing helps, or half is in flight and lands.
    const bool started = past_half();
    if (started) start_flush();
    co_await wait_for_progress();
    if (started && !flush_running) COFS_CO_TRY(flush_result);
  }
  co_return Result<>();
}

Task<> Files::Impl::wait_for_progress() {
  progress_waiters++;
  if (!watching) {
    watching = true;
    spawn(environment.executor, watch_store());
  }
  co_await progress.wait();
  progress_waiters--;
}

// A store that fails before it placed a run, or whose device takes no writes, reports on nothing; those who wait must
// hear of it.
Task<> Files::Impl::watch_store() {
  while (progress_waiters > 0) {
    TimerRequest timer;
    timer.due_ns = environment.clock.monotonic_ns() + kWatchNs;
    co_await sleep_until(environment.clock, timer);
    if (store.shut_down() || !store.check_stall()) progress.notify_all();
  }
  watching = false;
}

void Files::Impl::flush_if_due(InodeRef inode) {
  const bool eager = inode->data.dirty_blocks() >=
                     std::max(kEagerFlushBlocks, kEagerFlushStretch * inode->data.dirty_fragments());
  if (eager && !inode->data.flush_queued) {
    inode->data.flush_queued = true;
    due.push_back(inode);
  }
  if (!due.empty() || past_half()) start_flush();
}

void Files::Impl::start_flush() {
  if (flush_running || stopping) return;
  flush_running = true;
  spawn(environment.executor, background_flush());
}

Task<> Files::Impl::background_flush() {
  Result<> result;
  while (result && !stopping && !store.shut_down()) {
    std::vector<InodeRef> list = std::exchange(due, {});
    for (const InodeRef& inode : list) inode->data.flush_queued = false;
    // What is left of a file that is being written gets a place together with what follows it.
    uint64_t dirty_min = kEagerFlushBlocks;
    if (past_half()) {
      list = inodes_with_dirty_data();
      dirty_min = 1;
    }
    if (list.empty()) break;
    result = co_await flush_inodes(std::move(list), dirty_min);
  }
  if (store.shut_down() && result) result = fail(Code::kShutdown, "flush");
  if (!result && flush_result) {
    environment.journal.write(Severity::kError,
                              "cannot flush file data: " + describe(result.error()));
  }
  flush_result = result;
  flush_running = false;
  progress.notify_all();
}

std::vector<InodeRef> Files::Impl::inodes_with_dirty_data() {
  std::vector<InodeRef> list;
  inodes.for_each_with_data([&list](Inode& inode) {
    if (inode.data.dirty_blocks() > 0) list.push_back(InodeRef(&inode));
  });
  // The table keeps them by hash; a fixed order makes runs repeatable.
  std::sort(list.begin(), list.end(),
            [](const InodeRef& a, const InodeRef& b) { return a->ino < b->ino; });
  return list;
}

// --- Flushing ----------------------------------------------------------------------------------

Files::Impl::Taken Files::Impl::take_into(Transaction& transaction, const InodeRef& ref,
                                          uint64_t from, uint64_t blocks_max,
                                          uint64_t fragments_max) {
  Inode& inode = *ref;
  Taken result;
  result.end = kFileBlocksMax;
  DataChange change(*this, inode);
  const uint64_t fragments_before = inode.data.dirty_fragments();
  std::vector<FileData::Taken> runs = inode.data.take_dirty(from, kFileBlocksMax - from, blocks_max,
                                                            fragments_max, &next_token);
  if (runs.empty()) return result;
  for (FileData::Taken& taken : runs) {
    result.tokens.push_back(taken.token);
    result.blocks += taken.run.count;
    result.end = taken.file_block + taken.run.count;
    in_flight_blocks += taken.run.count;
    recent_edges.placing(inode.ino, taken.file_block, taken.run.count, taken.token);
    Flight flight;
    flight.inode = ref;
    flight.blocks = taken.run.count;
    flights.emplace(taken.token, std::move(flight));
    DataRun run;
    run.ino = inode.ino;
    run.file_block = taken.file_block;
    run.count = taken.run.count;
    run.buffer = std::move(taken.run.buffer);
    run.buffer_block = taken.run.buffer_block;
    run.hashes = std::move(taken.run.hashes);
    run.sink = &sink;
    run.token = taken.token;
    transaction.write_data(std::move(run));
  }
  // Taking the middle of a stretch leaves one fragment more, not less.
  const uint64_t fragments_after = inode.data.dirty_fragments();
  result.fragments = fragments_before > fragments_after ? fragments_before - fragments_after : 1;
  const uint64_t share = inode.data.dirty_blocks() == 0
                             ? inode.data.reservation.blocks()
                             : blocks_of_cost(data_cost(result.blocks, runs.size()));
  flights.at(result.tokens.front()).reservation = inode.data.reservation.take(share);
  return result;
}

void Files::Impl::take_back(const std::vector<uint64_t>& tokens) {
  for (const uint64_t token : tokens) {
    auto flight = flights.extract(token);
    if (flight.empty()) continue;  // the store reported it already
    in_flight_blocks -= flight.mapped().blocks;
    Inode& inode = *flight.mapped().inode;
    DataChange change(*this, inode);
    inode.data.put_back(token);
    inode.data.reservation.merge(std::move(flight.mapped().reservation));
    recent_edges.not_placed(token);
  }
  progress.notify_all();  // who waits for these writes has to see to them again
}

Task<Result<>> Files::Impl::flush_inodes(std::vector<InodeRef> list, uint64_t dirty_min) {
  const uint64_t fragments_max = std::max<uint64_t>(store.dirty_nodes_floor() / 8, 8);
  size_t next = 0;
  uint64_t cursor = 0;  // in list[next]: file order, so that data dirtied behind it waits its turn
  while (next < list.size()) {
    auto transaction = co_await store.begin(Reservation());
    COFS_CO_TRY(transaction);
    const uint64_t blocks_max = store.blocks_in_whole_segments(kFlushBlocksMax);
    Taken all;
    while (next < list.size() && all.blocks < blocks_max && all.fragments < fragments_max) {
      const InodeRef& inode = list[next];
      Taken taken;
      taken.end = kFileBlocksMax;
      if (inode->data.dirty_blocks() >= dirty_min && !move_inline(*inode)) {
        taken = take_into(*transaction, inode, cursor, blocks_max - all.blocks,
                          fragments_max - all.fragments);
      }
      all.blocks += taken.blocks;
      all.fragments += taken.fragments;
      all.tokens.insert(all.tokens.end(), taken.tokens.begin(), taken.tokens.end());
      cursor = taken.end;
      if (taken.tokens.empty()) {
        next++;
        cursor = 0;
      }
    }
    if (all.tokens.empty()) continue;
    auto applied = co_await transaction->apply();
    if (!applied) {
      take_back(all.tokens);
      co_return fail(applied.error());
    }
  }
  co_return Result<>();
}

Task<Result<>> Files::Impl::settle_range(InodeRef inode, uint64_t first, uint64_t count) {
  while (inode->data.overlaps(first, count)) {
    if (inode->data.overlaps_dirty(first, count)) {
      auto flushed = co_await flush_inodes(std::vector<InodeRef>(1, inode), 1);
      COFS_CO_TRY(flushed);
      continue;
    }
    if (store.shut_down()) co_return fail(Code::kShutdown, "wait for data writes", inode->ino);
    auto stalled = store.check_stall();
    COFS_CO_TRY(stalled);
    co_await wait_for_progress();
  }
  co_return Result<>();
}

// --- The store's side --------------------------------------------------------------------------

Task<Result<>> Files::flush_dirty_data() {
  if (impl_->dirty_blocks <= kCommitLeaveBlocks) co_return Result<>();
  co_return co_await impl_->flush_inodes(impl_->inodes_with_dirty_data(), 1);
}

void Files::collect_data(Transaction& transaction) {
  Impl& impl = *impl_;
  impl.inline_space_collected.release();  // the commit before this one has been applied
  for (const InodeRef& inode : impl.inodes_with_dirty_data()) {
    if (impl.move_inline(*inode)) continue;
    impl.take_into(transaction, inode, 0, UINT64_MAX, UINT64_MAX);
  }
  impl.inline_space_collected = std::exchange(impl.inline_space, Reservation());
}

// The next commit has to apply it.
void Files::collecting_failed() {
  impl_->inline_space.merge(std::exchange(impl_->inline_space_collected, Reservation()));
}

void Files::data_written(uint64_t token, const Result<>& result, uint64_t first_virtual) {
  Impl& impl = *impl_;
  auto flight = impl.flights.extract(token);
  if (flight.empty()) return;  // its transaction failed, and the data is dirty again
  impl.in_flight_blocks -= flight.mapped().blocks;
  {
    Inode& inode = *flight.mapped().inode;
    Impl::DataChange change(impl, inode);
    if (result) {
      inode.data.written(token);
      impl.recent_edges.placed(token, first_virtual);
    } else {
      // The store has shut down, or could not place it this time. The data stays: it can still be read.
      inode.data.put_back(token);
      inode.data.reservation.merge(std::move(flight.mapped().reservation));
      impl.recent_edges.not_placed(token);
    }
  }
  impl.progress.notify_all();
}

Task<> Files::drain() {
  Impl& impl = *impl_;
  impl.stopping = true;
  impl.due.clear();
  while (impl.flush_running || impl.watching || !impl.flights.empty()) {
    if (impl.store.shut_down() && !impl.flush_running && !impl.flights.empty()) {
      // A commit that failed may have taken runs that nobody will report on.
      std::vector<uint64_t> tokens;
      for (const auto& [token, flight] : impl.flights) tokens.push_back(token);
      impl.take_back(tokens);
      impl.progress.notify_all();
      continue;
    }
    // Polling, because a failing store does not always have a run to report on.
    TimerRequest timer;
    timer.due_ns = impl.environment.clock.monotonic_ns() + kDrainPollNs;
    co_await sleep_until(impl.environment.clock, timer);
  }
  impl.progress.notify_all();
}

}  // namespace cofs
