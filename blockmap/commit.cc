// Commits: everything done so far becomes durable with one flush.
//
// Under the apply lock: ask the client for what is only in memory, apply it, put all pending records
// into log chunks. After the lock: the chunks and the data go out together, then one flush. Callers
// that arrive meanwhile share the next commit. Small data goes into the chunk itself, so that a small
// fsync is one write; where nothing else is in the device's cache it is written durably, and needs no flush.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint64_t kLogPayloadBlocksMax = 32;  // 128 KiB; more goes to the DATA stream
constexpr uint64_t kRecordSlackBytes = 512;

// Bytes of the records that placing a run makes: one vmap and one extent record per 256 blocks.
uint64_t placement_record_bytes(const DataRun& run) {
  const uint64_t parts = run.count / ondisk::kVmapBlocksMax + 2;
  return parts * (2 * sizeof(ondisk::RecordHeader) + sizeof(ondisk::RecordInsertVmap) +
                  sizeof(ondisk::RecordMapExtent)) +
         uint64_t{run.count} * sizeof(le32);
}

}  // namespace

Task<Result<>> Store::Impl::collect_and_apply() {
  if (client == nullptr) co_return Result<>();
  Transaction data(store, Mutex::Guard(), Reservation());
  client->collect_data(data);
  bool into_log = false;
  const uint64_t blocks = data.data_blocks();
  const bool plenty = segments.usable_count() * 4 > geometry.segment_count;
  if (blocks > 0 && blocks <= kLogPayloadBlocksMax && plenty) {
    uint64_t record_bytes = pending_records.size() + kRecordSlackBytes;
    for (const Transaction::State::Op& op : data.state_->ops) {
      record_bytes += op.run.buffer ? placement_record_bytes(op.run)
                                    : sizeof(ondisk::RecordHeader) + sizeof(ondisk::RecordMapExtent) +
                                          sizeof(ondisk::Key) + op.value.size();
    }
    const uint64_t inode_bytes = client->inode_bytes_bound();
    if (inode_bytes < 65536 && record_bytes + inode_bytes < 61440) {
      record_bytes += inode_bytes;
      if (!log_payload_fits(blocks, record_bytes)) {
        auto advanced = co_await advance_log();
        if (!advanced) {
          fail_store(advanced.error(), "the log could not be continued");
          give_back(*data.state_, advanced.error());
          co_return advanced;
        }
      }
      if (log_payload_fits(blocks, record_bytes)) {
        const OpenSegment& log = streams[static_cast<size_t>(ondisk::Stream::kLog)];
        log_payload = std::make_unique<ChunkWrite>();
        log_payload->stream = ondisk::Stream::kLog;
        log_payload->segment = log.segment;
        log_payload->generation = log.generation;
        log_payload->block = log.next_block;
        log_payload->header_blocks = chunk_header_blocks(blocks, record_bytes);
        into_log = true;
      }
    }
  }
  auto applied = co_await apply(*data.state_, into_log);
  if (!applied) {
    // Where the store is up nothing was changed, and the client has its data again.
    drop_log_payload(applied.error());
    give_back(*data.state_, applied.error());
    client->collecting_failed();
    co_return applied;
  }
  Transaction inodes(store, Mutex::Guard(), Reservation());
  client->collect_inodes(inodes);
  applied = co_await apply(*inodes.state_, false);
  if (!applied) {
    if (!shut_down) fail_store(applied.error(), "inodes could not be recorded");
    drop_log_payload(applied.error());
  }
  co_return applied;
}

// Whoever gave the data hears that it will not be written, by this commit or at all.
void Store::Impl::give_back(const Transaction::State& data, const Error& error) {
  for (const Transaction::State::Op& op : data.ops) {
    if (op.run.sink != nullptr) op.run.sink->data_written(op.run.token, fail(error), 0);
  }
}

void Store::Impl::drop_log_payload(const Error& error) {
  if (!log_payload) return;
  finish_tickets(log_payload->tickets, fail(error));
  log_payload.reset();
}

Task<Result<>> Store::Impl::run_commit(FrozenState* freeze) {
  // Nothing can become durable before these writes; and nodes should not be read from a device that is gone.
  while (stall.writes != 0 && !shut_down) co_await write_done.wait();
  if (client != nullptr) {
    auto flushed = co_await client->flush_dirty_data();
    COFS_CO_TRY(flushed);
  }
  auto guard = co_await apply_lock.lock();
  auto writable = check_writable();
  COFS_CO_TRY(writable);
  start_due_headers();
  const uint64_t served = commit_requests;
  const bool was_idle = pending_records.empty();
  if (!was_idle || freeze != nullptr || client != nullptr) {
    auto prepared = co_await prepare_log();
    COFS_CO_TRY(prepared);
  }
  auto collected = co_await collect_and_apply();
  COFS_CO_TRY(collected);
  if (freeze != nullptr) {
    // Cleaning can wait for another checkpoint; what was collected for this commit can't.
    auto cleaned = co_await clean_node_segments();
    if (!cleaned) {
      env.journal.write(Severity::kWarning,
                        "node segments could not be cleaned: " + describe(cleaned.error()));
    }
  }
  std::vector<LogChunk> chunks;
  bool any = false;
  auto composed = co_await compose_log(&chunks, &any);
  if (!composed) {
    fail_store(composed.error(), "the log could not be continued");
    drop_log_payload(composed.error());
    for (LogChunk& chunk : chunks) finish_tickets(chunk.tickets, composed);
    co_return composed;
  }
  const uint64_t this_commit = commit_number;
  if (freeze != nullptr) {
    auto frozen = co_await freeze_tree(freeze);
    if (!frozen) {
      if (!shut_down) fail_store(frozen.error(), "a checkpoint could not be prepared");
      for (LogChunk& chunk : chunks) finish_tickets(chunk.tickets, frozen);
      co_return frozen;
    }
  }
  const uint64_t data_ordinal = write_ordinal;
  guard.release();
  unflushed_data_blocks = 0;

  for (size_t i = 0; i + 1 < chunks.size(); i++) {
    spawn(env.executor, write_log_chunk(&chunks[i], begin_write()));
  }
  const uint64_t ordinal = write_ordinal;
  bool needs_flush = durable_writes_fail || chunks.size() != 1 || freeze != nullptr ||
                     !writes_in_flight.empty() || ordinal != flushed_ordinal;
  if (!chunks.empty()) {
    LogChunk& last = chunks.back();
    Result<> written;
    if (needs_flush) {
      written = co_await write_retrying(last.range, &last.pieces);
    } else {
      written = co_await write_durably(&last, &needs_flush);
    }
    if (!written && !shut_down) fail_store(written.error(), "the log could not be written");
    finish_tickets(last.tickets, written);
  }
  co_await wait_for_writes(std::max(ordinal, data_ordinal));
  if (shut_down) co_return fail(Code::kShutdown, "the store has shut down");
  if (needs_flush && (any || ordinal != flushed_ordinal)) {
    auto flushed = co_await env.device.flush();
    if (!flushed) {
      // A flush that failed says nothing about which writes are durable: there is no way on.
      fail_store(flushed.error(), "the device could not flush");
      co_return fail(Code::kShutdown, "the device could not flush");
    }
    counters.flushes++;
    flushed_ordinal = std::max(flushed_ordinal, ordinal);
  }
  durable_commit = std::max(durable_commit, this_commit);
  commits_served = std::max(commits_served, served);
  release_segments();
  co_return Result<>();
}

// Writes a commit's only chunk; *needs_flush: the device did not take it as a durable write, and has it without that.
// A failure may be that of the flush which the kernel makes where a device knows no durable writes. What was written or copied
// meanwhile may be lost then, and a flush that comes later does not tell.
Task<Result<>> Store::Impl::write_durably(const LogChunk* chunk, bool* needs_flush) {
  if (shut_down) co_return fail(Code::kShutdown, "the store has shut down");
  const uint64_t ended_before = effects_ended;
  const Result<> durable = co_await env.device.write(chunk->range, chunk->pieces, true);
  Result<> written = durable;
  if (durable) {
    counters.durable_writes++;
  } else {
    *needs_flush = true;
    const bool in_doubt = effects_ended != ended_before || copies_running != 0;
    written = co_await env.device.write(chunk->range, chunk->pieces);
    if (written && in_doubt) {
      fail_store(durable.error(), "the device could not flush");
      co_return fail(Code::kShutdown, "the device could not flush");
    }
    if (written) {
      durable_writes_fail = true;
      env.journal.write(Severity::kWarning, "a durable write failed, and succeeded as a plain one (commits flush from now on): " +
                                                describe(durable.error()));
    } else {  // it is writes that the device refuses
      written = co_await write_persistently(chunk->range, &chunk->pieces, written.error(), nullptr);
    }
  }
  if (written) {
    counters.writes++;
    counters.write_bytes += bytes_of_blocks(chunk->range.count);
  }
  co_return written;
}

Task<> Store::Impl::write_log_chunk(LogChunk* chunk, uint64_t ordinal) {
  auto written = co_await write_retrying(chunk->range, &chunk->pieces);
  if (!written && !shut_down) fail_store(written.error(), "the log could not be written");
  finish_tickets(chunk->tickets, written);
  end_write(ordinal);
}

// A task of its own: whoever began it need not wait for its end, but goes on first if it does, so that what the commit
// freed is not taken by others.
Task<> Store::Impl::commit_for_all() {
  const uint64_t number = commits_begun;
  auto result = co_await run_commit(nullptr);
  if (!result) {
    failed_commit = number;
    commit_error = result.error();
  }
  committing = false;
  commit_done.notify_all();
  if (log_over_limit(1)) kick_background();
  commit_starter.pass();
}

Task<Result<>> Store::commit() {
  Impl& store = *impl_;
  if (store.options.read_only) co_return Result<>();
  const uint64_t request = ++store.commit_requests;
  const uint64_t own = store.commits_begun + 1;  // its failure is ours, too; of an earlier one, it is not
  const uint64_t attempts = store.stall.attempts;
  store.retry_stalled();
  while (true) {
    if (store.commits_served >= request) co_return Result<>();
    if (store.failed_commit >= own) co_return fail(store.commit_error);
    auto writable = store.check_writable();
    COFS_CO_TRY(writable);
    auto attempted = store.check_attempts(attempts);
    COFS_CO_TRY(attempted);
    if (store.committing) {
      co_await store.commit_done.wait();
      continue;
    }
    if (store.log_over_limit(2)) {  // the room for it is promised no further: a checkpoint is a commit, too
      auto done = co_await checkpoint();
      COFS_CO_TRY(done);
      continue;
    }
    store.committing = true;
    store.commits_begun++;
    detach(store.commit_for_all()).resume();
    if (store.committing) co_await store.commit_starter.wait();
  }
}

}  // namespace cofs
