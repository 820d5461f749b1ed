// Store: making volumes, opening and closing them, background work, failures.

#include "blockmap/store.h"

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

TreeOptions tree_options(const Geometry& geometry, const StoreOptions& options) {
  TreeOptions out;
  out.node_bytes = geometry.node_bytes;
  out.cache_bytes = options.cache_bytes;
  out.volume_key = geometry.volume_key;
  return out;
}

}  // namespace

Store::Impl::Impl(Environment environment, StoreOptions opts, const Geometry& geom,
                  const VolumeState& state)
    : env(environment),
      options(opts),
      geometry(geom),
      volume(state),
      nodes(env, geometry, counters),
      tree(nodes, env.buffers, tree_options(geometry, options), state.root, state.root_level),
      segments(geometry, tree),
      gc_victims(geometry, segments, env.random),
      copier(env.device, env.executor, env.clock, env.buffers, env.journal, options.copy),
      apply_lock(env.executor),
      commit_done(env.executor),
      commit_starter(env.executor),
      checkpoint_done(env.executor),
      checkpoint_starter(env.executor),
      write_done(env.executor),
      stall(env.executor),
      reader_done(env.executor),
      task_done(env.executor),
      gc(env.executor) {
  segments.set_counts(state.free_segments, state.node_segments);
  segments.start_search_at(state.log.segment);
  segments.set_observer([this](uint64_t segment, const SegmentState& segment_state) {
    gc_victims.note(segment, segment_state);
    if (segment_state.state == ondisk::SegmentState::kFree) gc.skips.erase(segment);
  });
  next_virtual = state.next_virtual;
  next_inode = state.next_inode;
  inode_count = state.inode_count;
  live_data_blocks = state.live_data_blocks;
  live_node_blocks = state.live_node_blocks;
  shared_blocks = state.shared_blocks;
  extra_references = state.extra_references;
  unwritten_blocks = state.unwritten_blocks;
  epoch = state.epoch;
  copy_rates = state.copy_rates;
  commit_number = state.commit;
  durable_commit = state.commit;
  checkpoint_sequence = state.sequence;
  log_sequence = state.log.sequence;
  log_previous = state.log.previous;
  reserves = plan_reserves(geometry, options.dirty_nodes_max);
}

Store::Impl::~Impl() { COFS_ASSERT(tasks_running == 0 && !background_running); }

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) { impl_->store = this; }
Store::~Store() = default;

Task<Result<>> Store::format(Environment environment, FormatOptions options) {
  auto planned = plan_geometry(environment.device.geometry().block_count, options);
  COFS_CO_TRY(planned);
  Geometry geometry = *planned;
  for (size_t i = 0; i < geometry.uuid.size(); i += 8) {
    const uint64_t word = environment.random.next();
    std::copy_n(reinterpret_cast<const uint8_t*>(&word), 8, geometry.uuid.begin() + i);
  }
  geometry.uuid[6] = static_cast<uint8_t>((geometry.uuid[6] & 0x0f) | 0x40);  // RFC 4122 version 4
  geometry.uuid[8] = static_cast<uint8_t>((geometry.uuid[8] & 0x3f) | 0x80);
  do {
    geometry.volume_key = environment.random.next();
  } while (geometry.volume_key == 0);
  geometry.created_seconds = environment.clock.wall().seconds;
  VolumeState state;
  state.sequence = 1;
  state.clean = true;
  state.free_segments = geometry.segment_count - 1;
  BufferRef buffer = environment.buffers.allocate(1);
  encode_superblock(geometry, state, std::span(buffer->data(), kBlockBytes));
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), 1}};
  for (int copy = 0; copy < kSuperblockCopies; copy++) {
    BlockRange range;
    range.start = geometry.superblock_block(copy);
    range.count = 1;
    auto written = co_await environment.device.write(range, memory);
    COFS_CO_TRY(written);
  }
  auto flushed = co_await environment.device.flush();
  co_return flushed;
}

// --- State -------------------------------------------------------------------------------------

Result<> Store::Impl::check_writable() const {
  if (shut_down) return fail(Code::kShutdown, "the filesystem stopped after an earlier failure");
  if (options.read_only && !replaying) return fail(Code::kReadOnly, "mounted read-only");
  return {};
}

Result<> Store::Impl::check_readable() const {
  if (half_applied) return fail(Code::kShutdown, "the filesystem stopped in the middle of a change");
  return {};
}

void Store::Impl::fail_store(const Error& error, const char* what) {
  if (!shut_down) {
    env.journal.write(Severity::kError, std::string("filesystem stopped (read-only from now on): ") +
                                            what + ": " + describe(error));
  }
  shut_down = true;
  wake_stalled();
  reader_done.notify_all();
  end_waiting_writes();
  kick_background();
}

void Store::set_client(CommitClient* client) { impl_->client = client; }
bool Store::shut_down() const { return impl_->shut_down; }
bool Store::read_only() const { return impl_->options.read_only; }
uint64_t Store::allocate_inode() { return impl_->next_inode++; }
const StoreCounters& Store::counters() const { return impl_->counters; }
MemoryReport Store::memory() const {
  MemoryReport report;
  report.node_bytes = impl_->tree.cached_bytes();
  report.dirty_nodes = impl_->tree.dirty_nodes();
  report.frozen_nodes = impl_->frozen_nodes;
  report.pending_bytes = impl_->pending_records.size();
  return report;
}
const CopyCounters& Store::copy_counters() const { return impl_->copier.counters(); }
const CopyCounters& Store::gc_copy_counters() const { return impl_->gc.copies; }
const CopyRates& Store::copy_rates() const { return impl_->copier.rates(); }
std::string_view Store::copy_engine_for(uint64_t range_blocks) const {
  return impl_->copier.engine_for(range_blocks);
}
VolumeInfo Store::info() const { return impl_->volume_info; }
uint64_t Store::dirty_nodes_floor() const { return impl_->reserves.dirty_nodes_floor; }

uint64_t Store::dirty_nodes_limit() const { return impl_->dirty_nodes_limit(); }
Environment& Store::environment() { return impl_->env; }

// --- Background --------------------------------------------------------------------------------

void Store::Impl::kick_background() {
  if (background_asleep) env.clock.cancel(background_timer);
  if (stopping || shut_down) kick_gc();
}

Task<> Store::Impl::background() {
  uint64_t next_commit_ns = env.clock.monotonic_ns() + options.commit_interval_ns;
  while (!stopping && !shut_down) {
    background_timer.due_ns = next_commit_ns;
    background_asleep = true;
    co_await sleep_until(env.clock, background_timer);
    background_asleep = false;
    if (stopping || shut_down) break;
    const uint64_t now = env.clock.monotonic_ns();
    const bool checkpoint_due =
        log_over_limit(1) || tree.dirty_nodes() * 2 > dirty_nodes_limit() ||
        (gc_on() && segments.held_count() > segments.usable_count()) ||
        (tree.dirty_nodes() != 0 && now - last_checkpoint_ns > options.checkpoint_interval_ns);
    // A failure has been reported, and is waited out or has shut the store down; the loop then ends.
    if (!check_stall()) {
      // It is tried again by a clock of its own.
    } else if (checkpoint_due) {
      (void)co_await store->checkpoint();
    } else {
      (void)co_await store->commit();
    }
    next_commit_ns = env.clock.monotonic_ns() + options.commit_interval_ns;
  }
  background_running = false;
  task_done.notify_all();
}

Task<> Store::Impl::wait_for_tasks() {
  stopping = true;
  kick_background();
  while (tasks_running != 0 || background_running || committing || checkpointing) {
    if (committing) {
      co_await commit_done.wait();
    } else if (checkpointing) {
      co_await checkpoint_done.wait();
    } else {
      co_await task_done.wait();
    }
  }
}

Task<Result<>> Store::close() {
  Impl& store = *impl_;
  Result<> result;
  store.stopping = true;
  stop_waiting();
  co_await store.stop_gc();
  co_await store.copier.settle();
  if (!store.options.read_only && !store.shut_down) {
    // Leave nothing that the last, clean checkpoint could be interrupted by.
    store.kick_background();
    while (store.background_running) co_await store.task_done.wait();
    while (store.tasks_running != 0) co_await store.task_done.wait();  // pins are given up by then
    while (store.committing) co_await store.commit_done.wait();
    store.close_requested = true;
    result = co_await checkpoint();
  }
  co_await store.wait_for_tasks();
  if (store.shut_down && result) {
    result = fail(Code::kShutdown, "the filesystem stopped after an earlier failure");
  }
  co_return result;
}

Task<> Store::abandon() {
  Impl& store = *impl_;
  store.shut_down = true;
  store.wake_stalled();
  store.reader_done.notify_all();
  store.end_waiting_writes();
  co_await store.stop_gc();
  co_await store.copier.settle();
  co_await store.wait_for_tasks();
}

}  // namespace cofs
