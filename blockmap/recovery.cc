// Opening a volume: the newest superblock, the log after it, and the start of a new mount.
//
// The log is a chain: each chunk carries the next sequence number, the checksum of the one before and
// the mount's epoch, and names the segment where the chain goes on. Complete commits are applied in
// order. All but the last are known durable (the next one's watermark says so); the last counts only
// if every data block that it maps verifies. Recovery writes nothing but fresh space until its
// checkpoint is durable, and frees nothing for use before (Hold), so a crash in it changes nothing.

#include <algorithm>
#include <cstring>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {

// Numbers handed out before a crash and lost with it are never handed out again.
constexpr uint64_t kNumbersSkipped = 1ULL << 20;
constexpr uint32_t kWindowBlocks = 256;  // 1 MiB of log is read at a time

Task<Result<>> read_into(Environment* env, uint64_t block, uint32_t blocks, std::byte* target) {
  const std::vector<MemoryPiece> memory = {MemoryPiece{target, blocks}};
  BlockRange range;
  range.start = block;
  range.count = blocks;
  auto read = co_await env->device.read(range, memory);
  co_return read;
}

// The places where superblocks may lie, without knowing the geometry: the ends, then the middle for
// each possible segment size.
std::vector<uint64_t> superblock_candidates(uint64_t device_blocks) {
  std::vector<uint64_t> blocks = {65536 / kBlockBytes, device_blocks - 1};
  for (uint64_t segment_blocks = 16; segment_blocks <= 16384; segment_blocks *= 2) {
    const uint64_t first = segment_blocks >= 256 ? 256 : 32;
    if (device_blocks <= first + 1) break;
    const uint64_t count = (device_blocks - 1 - first) / segment_blocks;
    blocks.push_back(first + (count / 2) * segment_blocks);
  }
  return blocks;
}

struct FoundVolume {
  Geometry geometry;
  VolumeState state;
  bool found = false;
  std::array<uint64_t, kSuperblockCopies> sequences{};  // per copy; 0: not valid
};

Task<Result<>> find_volume(Environment* env, FoundVolume* out) {
  const uint64_t device_blocks = env->device.geometry().block_count;
  if (device_blocks < 64) co_return fail(Code::kNotCofs, "the target is too small for a volume");
  BufferRef buffer = env->buffers.allocate(1);
  Error worst(Code::kNotCofs, "no superblock found");
  const auto consider = [&](const Result<>& read) {
    if (!read) {
      if (worst.code == Code::kNotCofs) worst = read.error();
      return;
    }
    Geometry geometry;
    VolumeState state;
    const auto parsed =
        parse_superblock(std::span(buffer->data(), kBlockBytes), device_blocks, geometry, state);
    if (!parsed) {
      if (parsed.error().code != Code::kNotCofs) worst = parsed.error();
      return;
    }
    if (!out->found || state.sequence > out->state.sequence) {
      out->geometry = geometry;
      out->state = state;
      out->found = true;
    }
  };
  const std::vector<uint64_t> candidates = superblock_candidates(device_blocks);
  for (size_t i = 0; i < candidates.size(); i++) {
    if (i >= 2 && out->found) break;  // the geometry tells the middle
    auto read = co_await read_into(env, candidates[i], 1, buffer->data());
    consider(read);
  }
  if (!out->found) co_return fail(worst);
  for (int copy = 0; copy < kSuperblockCopies; copy++) {
    auto read = co_await read_into(env, out->geometry.superblock_block(copy), 1, buffer->data());
    consider(read);
  }
  // Which copies are the newest: the next write must not hit those.
  for (int copy = 0; copy < kSuperblockCopies; copy++) {
    auto read = co_await read_into(env, out->geometry.superblock_block(copy), 1, buffer->data());
    if (!read) continue;
    Geometry geometry;
    VolumeState state;
    const auto parsed =
        parse_superblock(std::span(buffer->data(), kBlockBytes), device_blocks, geometry, state);
    if (parsed && geometry.volume_key == out->geometry.volume_key) {
      out->sequences[static_cast<size_t>(copy)] = state.sequence;
    }
  }
  co_return Result<>();
}

// Follows the chain of log chunks.
class LogReader {
 public:
  LogReader(Environment* env, const Geometry* geometry, LogPosition position, uint64_t epoch)
      : env_(env), geometry_(geometry), position_(position), epoch_(epoch) {}

  // The next chunk of the chain; none at its end. Errors: kIo.
  Task<Result<std::optional<Chunk>>> next() {
    if (position_.block != 0) {
      auto here = co_await read_at(position_.segment, position_.generation, position_.block);
      COFS_CO_TRY(here);
      if (here->has_value()) co_return here;
    }
    if (position_.next_generation == 0) co_return std::optional<Chunk>();
    auto there = co_await read_at(position_.next_segment, position_.next_generation, 1);
    co_return there;
  }
  const LogPosition& position() const { return position_; }
  uint64_t bytes_read() const { return bytes_read_; }

  // After the end of the chain: whether a later chunk of this epoch exists that says the missing one
  // had been durable. Then the log is damaged, not just unfinished.
  Task<Result<bool>> damaged(uint64_t last_commit) {
    std::vector<std::byte> first(kBlockBytes);
    struct Place {
      uint64_t segment;
      uint32_t generation;
      uint32_t from;
    };
    const Place places[3] = {
        {position_.segment, position_.generation, position_.block},
        {position_.next_segment, position_.next_generation, 1},
        {position_.after_segment, position_.after_generation, 1}};
    for (const Place& place : places) {
      if (place.from == 0 || place.generation == 0) continue;
      if (place.segment >= geometry_->segment_count ||
          place.segment == geometry_->reserved_segment()) {
        continue;
      }
      for (uint32_t block = place.from; block < geometry_->segment_blocks; block++) {
        auto read = co_await read_window(place.segment, block, 1, first.data());
        if (!read) continue;
        auto header =
            parse_chunk_header(*geometry_, place.segment, place.generation, block, first);
        if (!header || header->epoch != epoch_ || header->sequence <= position_.sequence ||
            header->watermark <= last_commit) {
          continue;
        }
        auto chunk = co_await read_chunk(*header, block);
        if (chunk) co_return true;
      }
    }
    co_return false;
  }

 private:
  // `count` blocks of a segment, out of a window that is read ahead: the chain is mostly contiguous.
  Task<Result<>> read_window(uint64_t segment, uint32_t block, uint32_t count, std::byte* target) {
    for (uint32_t done = 0; done < count;) {
      const uint64_t at = geometry_->block_of_segment(segment) + block + done;
      if (!window_ || at < window_range_.start || at >= window_range_.end()) {
        window_ = env_->buffers.allocate(kWindowBlocks);
        window_range_.start = at;
        window_range_.count =
            std::min<uint64_t>(kWindowBlocks, geometry_->segment_blocks - block - done);
        auto read = co_await read_into(env_, at, static_cast<uint32_t>(window_range_.count),
                                       window_->data());
        if (!read) {  // perhaps because of a block that the chain does not need
          window_range_.count = 1;
          read = co_await read_into(env_, at, 1, window_->data());
        }
        if (!read) window_.reset();
        COFS_CO_TRY(read);
      }
      const uint64_t n = std::min<uint64_t>(count - done, window_range_.end() - at);
      std::memcpy(target + bytes_of_blocks(done),
                  window_->block(static_cast<uint32_t>(at - window_range_.start)),
                  bytes_of_blocks(n));
      done += static_cast<uint32_t>(n);
    }
    co_return Result<>();
  }

  Task<Result<Chunk>> read_chunk(ondisk::ChunkHeader header, uint32_t block) {
    std::vector<std::byte> area(bytes_of_blocks(header.header_blocks));
    auto read = co_await read_window(header.segment, block, header.header_blocks, area.data());
    COFS_CO_TRY(read);
    bytes_read_ += area.size();
    co_return parse_chunk(*geometry_, header, area);
  }

  Task<Result<std::optional<Chunk>>> read_at(uint64_t segment, uint32_t generation,
                                             uint32_t block) {
    if (segment >= geometry_->segment_count || segment == geometry_->reserved_segment() ||
        block >= geometry_->segment_blocks) {
      co_return std::optional<Chunk>();
    }
    std::vector<std::byte> first(kBlockBytes);
    auto read = co_await read_window(segment, block, 1, first.data());
    COFS_CO_TRY(read);
    auto header = parse_chunk_header(*geometry_, segment, generation, block, first);
    if (!header || header->sequence != position_.sequence ||
        header->previous_checksum != position_.previous || header->epoch != epoch_ ||
        header->stream != static_cast<uint8_t>(ondisk::Stream::kLog)) {
      co_return std::optional<Chunk>();
    }
    auto chunk = co_await read_chunk(*header, block);
    if (!chunk) {
      if (chunk.error().code == Code::kCorrupt) co_return std::optional<Chunk>();
      co_return fail(chunk.error());
    }
    position_.sequence++;
    position_.previous = header->checksum;
    position_.segment = segment;
    position_.generation = generation;
    position_.block = block + header->header_blocks + header->payload_blocks;
    position_.next_segment = header->next_segment;
    position_.next_generation = header->next_generation;
    position_.after_segment = header->after_segment;
    position_.after_generation = header->after_generation;
    co_return std::optional<Chunk>(std::move(*chunk));
  }

  Environment* env_;
  const Geometry* geometry_;
  LogPosition position_;
  uint64_t epoch_;
  uint64_t bytes_read_ = 0;
  BufferRef window_;
  BlockRange window_range_;
};

struct LoggedCommit {
  uint64_t number = 0;
  std::vector<std::byte> records;
};

}  // namespace

Task<Result<>> Store::Impl::replay_commit(const std::vector<std::byte>* records) {
  // for_each_record can't wait: take the records apart first.
  std::vector<Record> parsed;
  auto split = for_each_record(*records, [&](const Record& record) {
    parsed.push_back(record);
    return Result<>();
  });
  COFS_CO_TRY(split);
  for (const Record& record : parsed) {
    auto applied = co_await apply_record(record);
    COFS_CO_TRY(applied);
  }
  co_return Result<>();
}

// Whether all data that a commit maps is on the device.
Task<Result<>> Store::Impl::verify_commit(const std::vector<std::byte>* records, bool* intact) {
  *intact = false;
  std::vector<InsertedVmap> inserts;
  auto split = for_each_record(*records, [&](const Record& record) -> Result<> {
    if (record.type != ondisk::RecordType::kInsertVmap) return {};
    auto in = parse_insert_vmap(record.body, geometry);
    COFS_TRY(in);
    inserts.push_back(std::move(*in));
    return {};
  });
  COFS_CO_TRY(split);
  for (size_t next = 0; next < inserts.size();) {
    // What was written here and there in files lies together on the device: one read.
    const uint64_t start = inserts[next].physical_block;
    size_t end = next;
    uint32_t count = 0;
    while (end < inserts.size() && inserts[end].physical_block == start + count &&
           count + inserts[end].checksums.size() <= BufferPool::kBufferBlocksMax) {
      count += static_cast<uint32_t>(inserts[end++].checksums.size());
    }
    BufferRef buffer = env.buffers.allocate(count);
    auto read = co_await read_into(&env, start, count, buffer->data());
    COFS_CO_TRY(read);
    counters.read_bytes += bytes_of_blocks(count);
    for (uint32_t block = 0; next < end; next++) {
      const InsertedVmap& insert = inserts[next];
      for (uint64_t i = 0; i < insert.checksums.size(); i++) {
        const uint32_t checksum = key_block_checksum(block_hash(buffer->block(block++)),
                                                     insert.virtual_block + i, geometry.volume_key);
        if (checksum != insert.checksums[i]) co_return Result<>();
      }
    }
  }
  *intact = true;
  co_return Result<>();
}

Task<Result<>> Store::Impl::recover() {
  replaying = true;
  if (volume.log.block != 0) replayed_open_segments.insert(volume.log.segment);
  if (volume.log.next_generation != 0) replayed_open_segments.insert(volume.log.next_segment);
  if (volume.log.after_generation != 0) replayed_open_segments.insert(volume.log.after_segment);
  for (const OpenPosition& stream : volume.streams) {
    if (stream.next_block != 0) replayed_open_segments.insert(stream.segment);
  }
  LogReader reader(&env, &geometry, volume.log, volume.epoch);
  std::optional<LoggedCommit> complete;  // read whole, not yet applied
  LoggedCommit current;
  uint64_t last_commit = volume.commit;
  while (true) {
    auto chunk = co_await reader.next();
    COFS_CO_TRY(chunk);
    if (!chunk->has_value()) break;
    const ondisk::ChunkHeader& header = (*chunk)->header;
    const bool starts = current.records.empty() && current.number == 0;
    if (starts) current.number = header.commit;
    if (header.commit != current.number || header.commit != last_commit + 1) {
      co_return fail(Code::kCorrupt, "log: commits out of order", header.commit);
    }
    if (complete && header.watermark >= complete->number) {
      auto replayed = co_await replay_commit(&complete->records);
      COFS_CO_TRY(replayed);
      commit_number = complete->number;
      volume_info.replayed_commits++;
      complete.reset();
    }
    current.records.insert(current.records.end(), (*chunk)->records.begin(),
                           (*chunk)->records.end());
    if ((header.flags & ondisk::kChunkCommitEnd) != 0) {
      if (complete) co_return fail(Code::kCorrupt, "log: a commit without its watermark");
      last_commit = current.number;
      complete = std::move(current);
      current = LoggedCommit();
    }
  }
  auto damaged = co_await reader.damaged(last_commit);
  COFS_CO_TRY(damaged);
  if (*damaged) {
    co_return fail(Code::kCorrupt, "log: a chunk that had been written whole is damaged",
                   geometry.block_of_segment(reader.position().segment) + reader.position().block);
  }
  if (complete) {
    bool intact = false;
    auto verified = co_await verify_commit(&complete->records, &intact);
    COFS_CO_TRY(verified);
    if (intact) {
      auto replayed = co_await replay_commit(&complete->records);
      COFS_CO_TRY(replayed);
      commit_number = complete->number;
      volume_info.replayed_commits++;
    }
  }
  durable_commit = commit_number;
  volume_info.replayed_log_bytes = reader.bytes_read();
  next_virtual += kNumbersSkipped;
  next_inode += kNumbersSkipped;
  // Numbers of commits that were not kept must not come again with another content: the new epoch
  // already tells their chunks apart.
  log_sequence = reader.position().sequence + kNumbersSkipped;
  log_previous = 0;
  auto sealed = co_await seal_leftovers();
  COFS_CO_TRY(sealed);
  replaying = false;
  co_return Result<>();
}

// Nothing goes on filling a segment that a crash interrupted.
Task<Result<>> Store::Impl::seal_leftovers() {
  for (uint64_t segment : replayed_open_segments) {
    auto state = co_await segments.load(segment);
    COFS_CO_TRY(state);
    if ((*state)->state != ondisk::SegmentState::kOpen) continue;
    auto sealed = co_await segments.seal(segment, next_virtual, current_hold());
    COFS_CO_TRY(sealed);
  }
  replayed_open_segments.clear();
  co_return Result<>();
}

// A clean volume's streams go on where they were.
Task<Result<>> Store::Impl::resume_streams() {
  for (size_t i = 0; i < streams.size(); i++) {
    const OpenPosition& position = volume.streams[i];
    if (position.next_block == 0) continue;
    auto state = co_await segments.load(position.segment);
    COFS_CO_TRY(state);
    if ((*state)->state != ondisk::SegmentState::kOpen ||
        (*state)->generation != position.generation ||
        (*state)->stream != static_cast<ondisk::Stream>(i)) {
      co_return fail(Code::kCorrupt, "superblock: a stream's segment is not open",
                     position.segment);
    }
    if (i == static_cast<size_t>(ondisk::Stream::kLog)) continue;
    streams[i].open = true;
    streams[i].segment = position.segment;
    streams[i].generation = position.generation;
    streams[i].next_block = position.next_block;
    streams[i].header_written = true;
    streams[i].entries_complete = false;
  }
  const LogPosition& log = volume.log;
  if (log.block != 0) {
    auto state = co_await segments.load(log.segment);
    COFS_CO_TRY(state);
    if ((*state)->state != ondisk::SegmentState::kOpen ||
        (*state)->generation != log.generation ||
        (*state)->stream != ondisk::Stream::kLog) {
      co_return fail(Code::kCorrupt, "superblock: the log's segment is not open", log.segment);
    }
    OpenSegment& slot = streams[static_cast<size_t>(ondisk::Stream::kLog)];
    slot.open = true;
    slot.segment = log.segment;
    slot.generation = log.generation;
    slot.next_block = log.block;
    slot.header_written = log.block > 1;
    slot.entries_complete = false;
    segments.pin(log.segment);
    log_chain.push_back(log.segment);
  }
  auto next = co_await resume_successor(log.next_segment, log.next_generation, &log_next);
  COFS_CO_TRY(next);
  auto after = co_await resume_successor(log.after_segment, log.after_generation, &log_after);
  co_return after;
}

Task<Result<>> Store::Impl::resume_successor(uint64_t segment, uint32_t generation,
                                             LogSuccessor* successor) {
  if (generation == 0) co_return Result<>();
  auto state = co_await segments.load(segment);
  COFS_CO_TRY(state);
  if ((*state)->state != ondisk::SegmentState::kOpen || (*state)->generation != generation ||
      (*state)->stream != ondisk::Stream::kLog) {
    co_return fail(Code::kCorrupt, "superblock: a segment that the log was to use is not open",
                   segment);
  }
  successor->segment = segment;
  successor->generation = generation;
  successor->ready = true;
  segments.pin(segment);
  log_chain.push_back(segment);
  co_return Result<>();
}

// Numbers that are handed out must never have been in use: the tree says which are.
Task<Result<>> Store::Impl::check_counters() {
  const Key last_file(ondisk::KeySpace::kFiles, UINT64_MAX, static_cast<ondisk::KeyType>(UINT8_MAX),
                      UINT64_MAX, UINT16_MAX);
  auto inode = co_await tree.last_at_or_before(Key::inode(0), last_file);
  COFS_CO_TRY(inode);
  if (inode->has_value() && (*inode)->key.id >= next_inode) {
    co_return fail(Code::kCorrupt, "superblock: the next inode number is in use", next_inode);
  }
  auto mapped = co_await tree.last_at_or_before(Key::vmap(0), Key::vmap(UINT64_MAX));
  COFS_CO_TRY(mapped);
  if (!mapped->has_value()) co_return Result<>();
  auto vmap = parse_vmap((*mapped)->value, geometry);
  COFS_CO_TRY(vmap);
  if ((*mapped)->key.id >= next_virtual ||
      vmap->checksums.size() > next_virtual - (*mapped)->key.id) {
    co_return fail(Code::kCorrupt, "superblock: the next virtual block is in use", next_virtual);
  }
  co_return Result<>();
}

// From here on chunks carry a new epoch: a superblock must say so before the first of them.
Task<Result<>> Store::Impl::begin_mount() {
  const bool clean = volume.clean;
  epoch = volume.epoch + 1;
  volume.mount_count++;
  if (!clean) {
    auto checkpointed = co_await store->checkpoint();
    co_return checkpointed;
  }
  auto prepared = co_await prepare_log();
  COFS_CO_TRY(prepared);
  VolumeState state = volume;
  state.sequence = volume.sequence + 1;
  state.epoch = epoch;
  state.clean = false;
  const VolumeState now = current_state();
  state.log = now.log;
  checkpoint_sequence = state.sequence;
  auto written = co_await write_superblock(state);
  co_return written;
}

Task<Result<CopyRates>> Store::stored_copy_rates(Environment environment) {
  FoundVolume found;
  auto searched = co_await find_volume(&environment, &found);
  COFS_CO_TRY(searched);
  co_return found.state.copy_rates;
}

Task<Result<bool>> Store::needs_recovery(Environment environment) {
  FoundVolume found;
  auto searched = co_await find_volume(&environment, &found);
  COFS_CO_TRY(searched);
  co_return !found.state.clean;
}

Task<Result<std::unique_ptr<Store>>> Store::open(Environment environment, StoreOptions options) {
  FoundVolume found;
  auto searched = co_await find_volume(&environment, &found);
  COFS_CO_TRY(searched);
  std::unique_ptr<Store> store(
      new Store(std::make_unique<Impl>(environment, options, found.geometry, found.state)));
  Impl& impl = *store->impl_;
  int oldest = 0;
  for (int copy = 1; copy < kSuperblockCopies; copy++) {
    if (found.sequences[static_cast<size_t>(copy)] < found.sequences[static_cast<size_t>(oldest)]) {
      oldest = copy;
    }
  }
  impl.superblock_slot = oldest;
  impl.volume_info.label = impl.geometry.label;
  impl.volume_info.uuid = impl.geometry.uuid_text();
  impl.volume_info.block_count = impl.geometry.block_count;
  impl.volume_info.segment_blocks = impl.geometry.segment_blocks;
  impl.volume_info.node_bytes = impl.geometry.node_bytes;
  impl.volume_info.metadata_copies = impl.geometry.metadata_copies;
  impl.volume_info.over_provision_percent = impl.geometry.over_provision_percent;
  impl.volume_info.mount_count = found.state.mount_count;
  impl.volume_info.was_clean = found.state.clean;
  impl.last_checkpoint_ns = environment.clock.monotonic_ns();
  Result<> opened;
  if (!options.read_only) {  // what a killed server wrote may lie in the device's cache alone, and all that follows relies on it
    opened = co_await environment.device.flush();
    impl.counters.flushes++;
  }
  if (opened && found.state.clean) {
    opened = co_await impl.resume_streams();
  } else if (opened) {
    opened = co_await impl.recover();
  }
  if (opened) opened = co_await impl.check_counters();
  if (opened && !options.read_only) opened = co_await impl.begin_mount();
  if (!opened) {
    impl.shut_down = true;
    co_await impl.wait_for_tasks();
    impl.replaying = false;
    co_return fail(opened.error());
  }
  if (!options.read_only && options.background) {
    impl.background_running = true;
    spawn(environment.executor, impl.background());
    if (impl.gc_on()) {
      impl.tasks_running++;
      spawn(environment.executor, impl.gc_background());
    }
  }
  impl.stall.allowed = true;
  impl.start_measuring();
  co_return store;
}

}  // namespace cofs
