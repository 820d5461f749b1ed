// Checkpoints: the tree goes to the device, so that the log before it is not needed any more.
//
// A checkpoint is a commit that also freezes the dirty nodes, under the same apply lock: every dirty
// node and every segment count gets its place first (counts live in the tree themselves; a round that
// changes no further node ends it). The frozen images are written while the store goes on, then a
// flush, then the superblock, in a copy that is not the newest, then a flush; then a second copy, so
// that one damaged superblock loses nothing.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint32_t kNodesPerBatch = 64;      // frozen images serialized and written together
constexpr uint64_t kCleanGroupsPerRound = 64;
constexpr uint64_t kCleanNodesMin = 16;
constexpr uint64_t kCleanGroupNodes = 8;  // of segment records, that the checkpoint will change, too
constexpr uint64_t kLogSegmentsKept = 3;  // open, next and the one after: a checkpoint does not let go of them
constexpr size_t kMeta = static_cast<size_t>(ondisk::Stream::kMeta);
constexpr size_t kMirror = static_cast<size_t>(ondisk::Stream::kMetaMirror);

}  // namespace

VolumeState Store::Impl::current_state() const {
  VolumeState state = volume;
  state.epoch = epoch;
  state.clean = false;
  state.next_virtual = next_virtual;
  state.next_inode = next_inode;
  state.commit = commit_number;
  state.log.sequence = log_sequence;
  state.log.previous = log_previous;
  const OpenSegment& log = streams[static_cast<size_t>(ondisk::Stream::kLog)];
  state.log.segment = log.segment;
  state.log.block = log.open ? log.next_block : 0;
  state.log.generation = log.generation;
  state.log.next_segment = log_next.segment;
  state.log.next_generation = log_next.generation;
  state.log.after_segment = log_after.segment;
  state.log.after_generation = log_after.generation;
  state.free_segments = segments.durable_free_count();
  state.node_segments = segments.node_segments();
  state.live_data_blocks = live_data_blocks;
  state.live_node_blocks = live_node_blocks;
  state.inode_count = inode_count;
  state.shared_blocks = shared_blocks;
  state.extra_references = extra_references;
  state.unwritten_blocks = unwritten_blocks;
  state.copy_rates = copy_rates;
  for (size_t i = 0; i < streams.size(); i++) {
    state.streams[i] = OpenPosition();
    if (!streams[i].open || !streams[i].header_written) continue;
    state.streams[i].segment = streams[i].segment;
    state.streams[i].next_block = streams[i].next_block;
    state.streams[i].generation = streams[i].generation;
  }
  return state;
}

Task<Result<>> Store::Impl::drop_node_image(NodePointer pointer) {
  Hold hold;
  hold.checkpoint = checkpoint_sequence + 1;
  for (uint32_t copy = 0; copy < geometry.metadata_copies; copy++) {
    if (pointer.address[copy] == 0) continue;
    auto counted =
        co_await segments.add_live(geometry.segment_of_block(pointer.address[copy]),
                                   -int64_t{geometry.node_blocks()}, hold);
    COFS_CO_TRY(counted);
    live_node_blocks -= geometry.node_blocks();
  }
  co_return Result<>();
}

// Gives up to one chunk of dirty nodes their places in both node streams.
Task<Result<size_t>> Store::Impl::assign_chunk(const std::vector<DirtyNode>* dirty, size_t from,
                                               uint64_t sequence) {
  const uint32_t copies = geometry.metadata_copies;
  uint64_t n = std::min<uint64_t>(dirty->size() - from, kChunkEntriesPerBlock);
  for (uint32_t copy = 0; copy < copies; copy++) {
    const auto stream = copy == 0 ? ondisk::Stream::kMeta : ondisk::Stream::kMetaMirror;
    OpenSegment& slot = streams[copy == 0 ? kMeta : kMirror];
    if (stream_room(slot, n) < geometry.node_blocks()) {
      auto sealed = co_await seal_stream(stream);
      COFS_CO_TRY(sealed);
      auto opened = co_await open_stream(stream);
      COFS_CO_TRY(opened);
    }
    n = std::min<uint64_t>(n, stream_room(slot, n) / geometry.node_blocks());
  }
  COFS_ASSERT(n > 0);
  std::unique_ptr<ChunkWrite> chunks[2];
  for (uint32_t copy = 0; copy < copies; copy++) {
    OpenSegment& slot = streams[copy == 0 ? kMeta : kMirror];
    chunks[copy] = std::make_unique<ChunkWrite>();
    ChunkWrite& chunk = *chunks[copy];
    chunk.stream = copy == 0 ? ondisk::Stream::kMeta : ondisk::Stream::kMetaMirror;
    chunk.segment = slot.segment;
    chunk.generation = slot.generation;
    chunk.block = slot.next_block;
    chunk.with_segment_header = !slot.header_written;
    chunk.with_payload = false;
    chunk.payload_blocks = static_cast<uint32_t>(n * geometry.node_blocks());
    slot.header_written = true;
    slot.next_block = chunk.payload_start() + chunk.payload_blocks;
  }
  for (uint64_t i = 0; i < n; i++) {
    const DirtyNode& node = (*dirty)[from + i];
    uint64_t address[2] = {0, 0};
    for (uint32_t copy = 0; copy < copies; copy++) {
      ChunkWrite& chunk = *chunks[copy];
      ondisk::SummaryEntry entry{};
      entry.kind = static_cast<uint8_t>(ondisk::SummaryKind::kNode);
      entry.block = chunk.payload_start() + static_cast<uint32_t>(i * geometry.node_blocks());
      entry.count = geometry.node_blocks();
      entry.level = node.level;
      entry.key_space = static_cast<uint8_t>(node.first_key.space);
      entry.key_type = static_cast<uint8_t>(node.first_key.type);
      entry.key_n = node.first_key.n;
      entry.id = node.first_key.id;
      entry.offset = node.first_key.offset;
      chunk.entries.push_back(entry);
      address[copy] = geometry.block_of_segment(chunk.segment) + entry.block;
    }
    tree.assign(node, address, sequence);
  }
  for (uint32_t copy = 0; copy < copies; copy++) {
    OpenSegment& slot = streams[copy == 0 ? kMeta : kMirror];
    slot.add_chunk(chunks[copy]->entries);
    auto counted = co_await segments.add_live(
        chunks[copy]->segment, static_cast<int64_t>(n * geometry.node_blocks()), Hold());
    COFS_CO_TRY(counted);
    live_node_blocks += n * geometry.node_blocks();
    start_chunk(std::move(chunks[copy]));
  }
  for (uint64_t i = 0; i < n; i++) {
    auto dropped = co_await drop_node_image((*dirty)[from + i].old_pointer);
    COFS_CO_TRY(dropped);
  }
  co_return static_cast<size_t>(n);
}

// Places all dirty nodes and puts all segment counts into the tree.
Task<Result<>> Store::Impl::assign_nodes(uint64_t sequence) {
  while (true) {
    std::vector<DirtyNode> dirty;
    tree.for_each_unassigned([&](const DirtyNode& node) { dirty.push_back(node); });
    size_t done = 0;
    while (done < dirty.size()) {
      auto n = co_await assign_chunk(&dirty, done, sequence);
      COFS_CO_TRY(n);
      done += *n;
      co_await let_others_run(env.executor);
    }
    for (const NodePointer& pointer : tree.take_dropped()) {
      auto dropped = co_await drop_node_image(pointer);
      COFS_CO_TRY(dropped);
    }
    auto changed = co_await segments.flush_groups();
    COFS_CO_TRY(changed);
    if (!*changed) co_return Result<>();
  }
}

// The log before this point is not needed once the checkpoint is durable: its segments may go.
Task<Result<>> Store::Impl::release_log_chain() {
  Hold hold;
  hold.checkpoint = checkpoint_sequence + 1;
  hold.readers = reader_ordinal;  // file data may lie in the log
  const OpenSegment& log = streams[static_cast<size_t>(ondisk::Stream::kLog)];
  std::vector<uint64_t> chain;
  chain.swap(log_chain);
  for (uint64_t segment : chain) {
    if ((log.open && segment == log.segment) || (log_next.ready && segment == log_next.segment) ||
        (log_after.ready && segment == log_after.segment)) {
      log_chain.push_back(segment);
      continue;
    }
    auto unpinned = co_await segments.unpin(segment, hold);
    COFS_CO_TRY(unpinned);
  }
  log_blocks = 0;
  pieces_logged = 0;
  co_return Result<>();
}

Task<Result<>> Store::Impl::freeze_tree(FrozenState* frozen) {
  auto released = co_await release_log_chain();
  COFS_CO_TRY(released);
  const uint64_t sequence = checkpoint_sequence + 1;
  auto assigned = co_await assign_nodes(sequence);
  COFS_CO_TRY(assigned);
  frozen->tree = tree.freeze();
  frozen_nodes = frozen->tree->size();
  frozen->volume = current_state();
  frozen->volume.sequence = sequence;
  frozen->volume.clean = close_requested;
  checkpoint_sequence = sequence;
  metadata_debt_bytes = 0;
  segments.trim();
  co_return Result<>();
}

namespace {

struct ImageBatch {  // frozen images of one batch, in the order of their addresses
  struct Image {
    uint64_t address[2];
    std::byte* data;
  };
  BufferRef buffer;
  std::vector<Image> images;
};

}  // namespace

// Writes both copies of a batch; neighbours go out in one request.
static Task<Result<>> write_images(Store::Impl* store, ImageBatch* batch, int copy) {
  std::sort(batch->images.begin(), batch->images.end(),
            [copy](const ImageBatch::Image& a, const ImageBatch::Image& b) {
              return a.address[copy] < b.address[copy];
            });
  const uint32_t node_blocks = store->geometry.node_blocks();
  size_t i = 0;
  while (i < batch->images.size()) {
    std::vector<MemoryPiece> pieces;
    const uint64_t start = batch->images[i].address[copy];
    do {
      pieces.push_back(MemoryPiece{batch->images[i].data, node_blocks});
      i++;
    } while (i < batch->images.size() &&
             batch->images[i].address[copy] == start + pieces.size() * node_blocks);
    BlockRange range;
    range.start = start;
    range.count = pieces.size() * node_blocks;
    auto written = co_await store->write_retrying(range, &pieces);
    COFS_CO_TRY(written);
    store->counters.node_bytes += bytes_of_blocks(range.count);
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::write_frozen(FrozenState& frozen) {
  const size_t total = frozen.tree->size();
  const uint32_t per_batch =
      std::min(kNodesPerBatch, BufferPool::kBufferBlocksMax / geometry.node_blocks());
  for (size_t first = 0; first < total; first += per_batch) {
    const size_t n = std::min<size_t>(per_batch, total - first);
    ImageBatch batch;
    batch.buffer = env.buffers.allocate(static_cast<uint32_t>(n) * geometry.node_blocks());
    co_await outside(env.executor, [&] {
      for (size_t i = 0; i < n; i++) {
        std::byte* image = batch.buffer->block(static_cast<uint32_t>(i) * geometry.node_blocks());
        frozen.tree->serialize(first + i, std::span(image, geometry.node_bytes));
      }
    });
    for (size_t i = 0; i < n; i++) {
      const FrozenNode& node = frozen.tree->node(first + i);
      batch.images.push_back(ImageBatch::Image{
          {node.pointer.address[0], node.pointer.address[1]},
          batch.buffer->block(static_cast<uint32_t>(i) * geometry.node_blocks())});
    }
    for (uint32_t copy = 0; copy < geometry.metadata_copies; copy++) {
      auto written = co_await write_images(this, &batch, static_cast<int>(copy));
      COFS_CO_TRY(written);
    }
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::write_superblock(VolumeState state) {
  BufferRef buffer = env.buffers.allocate(1);
  encode_superblock(geometry, state, std::span(buffer->data(), kBlockBytes));
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), 1}};
  // A closed volume has no older copy left: one would bring back an older tree, if the others were lost.
  const int copies = state.clean ? kSuperblockCopies : 2;
  for (int written_copies = 0; written_copies < copies; written_copies++) {
    BlockRange range;
    range.start = geometry.superblock_block(superblock_slot);
    range.count = 1;
    auto written = co_await write_retrying(range, &memory);
    COFS_CO_TRY(written);
    if (written_copies == 0) {
      auto flushed = co_await env.device.flush();
      COFS_CO_TRY(flushed);
      counters.flushes++;
      volume = state;
    }
    superblock_slot = (superblock_slot + 1) % kSuperblockCopies;
  }
  write_ordinal++;  // the later copies: the next commit flushes
  if (state.clean) {  // there is none
    auto flushed = co_await env.device.flush();
    COFS_CO_TRY(flushed);
    counters.flushes++;
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::run_checkpoint() {
  while (committing) co_await commit_done.wait();
  auto writable = check_writable();
  COFS_CO_TRY(writable);
  committing = true;
  FrozenState frozen;
  auto committed = co_await run_commit(&frozen);
  committing = false;
  commit_done.notify_all();
  if (!committed) {
    frozen_nodes = 0;
    if (frozen.tree) tree.abandon(*frozen.tree);
    co_return committed;
  }
  auto written = co_await write_frozen(frozen);
  if (written) {
    written = co_await env.device.flush();
    counters.flushes++;
  }
  if (written) {
    frozen.volume.root = frozen.tree->root();
    frozen.volume.root_level = frozen.tree->root_level();
    written = co_await write_superblock(frozen.volume);
  }
  if (!written) {
    tree.abandon(*frozen.tree);
    frozen_nodes = 0;
    if (!shut_down) fail_store(written.error(), "a checkpoint could not be written");
    co_return fail(Code::kShutdown, "a checkpoint could not be written");
  }
  tree.finish(*frozen.tree);
  frozen_nodes = 0;
  counters.checkpoints++;
  last_checkpoint_ns = env.clock.monotonic_ns();
  release_segments();
  co_return Result<>();
}

// As commit_for_all().
Task<> Store::Impl::checkpoint_for_all() {
  const uint64_t number = checkpoints_begun;
  const uint64_t served = checkpoint_requests;
  auto result = co_await run_checkpoint();
  checkpointing = false;
  if (result) {
    checkpoints_served = served;
  } else {
    failed_checkpoint = number;
    checkpoint_error = result.error();
  }
  checkpoint_done.notify_all();
  checkpoint_starter.pass();
}

Task<Result<>> Store::checkpoint() {
  Impl& store = *impl_;
  if (store.options.read_only) co_return Result<>();
  const uint64_t request = ++store.checkpoint_requests;
  const uint64_t own = store.checkpoints_begun + 1;
  const uint64_t attempts = store.stall.attempts;
  store.retry_stalled();
  while (true) {
    if (store.checkpoints_served >= request) co_return Result<>();
    if (store.failed_checkpoint >= own) co_return fail(store.checkpoint_error);
    auto writable = store.check_writable();
    COFS_CO_TRY(writable);
    auto attempted = store.check_attempts(attempts);
    COFS_CO_TRY(attempted);
    if (store.checkpointing) {
      co_await store.checkpoint_done.wait();
      continue;
    }
    store.checkpointing = true;
    store.checkpoints_begun++;
    detach(store.checkpoint_for_all()).resume();
    if (store.checkpointing) co_await store.checkpoint_starter.wait();
  }
}

// Superblocks are encoded when they are written: one that is under way may have the new label already, but only
// that of the checkpoint asked for here is known to.
Task<Result<>> Store::set_label(std::string label) {
  Impl& store = *impl_;
  if (!valid_label(label)) co_return fail(Code::kInvalid, kLabelRule);
  auto writable = store.check_writable();
  COFS_CO_TRY(writable);
  store.volume_info.label = label;
  store.geometry.label = std::move(label);
  co_return co_await checkpoint();
}

// --- Cleaning of node segments -----------------------------------------------------------------

// Makes the live nodes of one segment dirty, so that the checkpoint under way writes them elsewhere.
Task<Result<>> Store::Impl::move_nodes_out(uint64_t segment, uint32_t generation) {
  uint32_t block = 1;
  BufferRef buffer = env.buffers.allocate(1);
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), 1}};
  while (block < geometry.segment_blocks) {
    BlockRange range;
    range.start = geometry.block_of_segment(segment) + block;
    range.count = 1;
    auto read = co_await env.device.read(range, memory);
    COFS_CO_TRY(read);
    counters.read_bytes += kBlockBytes;
    auto header = parse_chunk_header(geometry, segment, generation, block,
                                     std::span(buffer->data(), kBlockBytes));
    if (!header || header->header_blocks != 1) break;  // the end, or nothing that can be trusted
    auto chunk = parse_chunk(geometry, *header, std::span(buffer->data(), kBlockBytes));
    if (!chunk) break;
    for (const ondisk::SummaryEntry& entry : chunk->entries) {
      if (entry.kind != static_cast<uint8_t>(ondisk::SummaryKind::kNode)) continue;
      const Key key(static_cast<ondisk::KeySpace>(entry.key_space), entry.id,
                    static_cast<ondisk::KeyType>(entry.key_type), entry.offset, entry.key_n);
      auto dirtied = co_await tree.dirty_node_at(entry.level, key,
                                                 geometry.block_of_segment(segment) + entry.block);
      COFS_CO_TRY(dirtied);
      if (*dirtied) counters.nodes_cleaned++;
    }
    block += header->header_blocks + header->payload_blocks;
  }
  co_return Result<>();
}

// Keeps node segments at least two thirds live, counted over the volume (docs/ARCHITECTURE.md, Space), with
// what this checkpoint replaces: it wins back as much as it takes.
// The nodes moved become a part of this checkpoint, so what it needs is known by now: cleaning takes what
// room there is beside that, what the log may need before the checkpoint is durable, and promises. It may use
// the reserves of the next checkpoint, which can't begin before, and so goes on where users have filled all.
Task<Result<>> Store::Impl::clean_node_segments() {
  const uint64_t replaced = (tree.dirty_nodes() + std::min(reserves.group_nodes, kCleanGroupNodes)) *
                            geometry.metadata_copies;
  const uint64_t have = segments.node_segments() * reserves.nodes_per_segment + replaced;
  const uint64_t due = node_segments_due() * reserves.nodes_per_segment;
  if (have <= due) co_return Result<>();
  struct Candidate {
    uint64_t segment;
    uint32_t generation;
    uint32_t live;
  };
  std::vector<Candidate> candidates;
  auto visited = co_await segments.visit_some(
      clean_cursor, kCleanGroupsPerRound, [&](uint64_t segment, const SegmentState& state) {
        const bool node_stream = state.stream == ondisk::Stream::kMeta ||
                                 state.stream == ondisk::Stream::kMetaMirror;
        if (state.state == ondisk::SegmentState::kSealed && node_stream &&
            state.live_blocks < reserves.nodes_per_segment * geometry.node_blocks() * 9 / 10) {
          candidates.push_back(Candidate{segment, state.generation, state.live_blocks});
        }
      });
  COFS_CO_TRY(visited);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.live < b.live; });
  const uint64_t budget =
      std::max(reserves.dirty_nodes_max, tree.dirty_nodes() + kCleanNodesMin);
  // The log begins anew with this checkpoint, and may grow to its limit before the old one can go.
  const uint64_t log_anew =
      (reserves.log_segments - std::min(reserves.log_segments, kLogSegmentsKept)) *
      reserves.segment_data_blocks;
  const uint64_t kept = log_anew + ledger.outstanding;
  uint64_t surplus = have - due;  // places for nodes to be won
  for (const Candidate& candidate : candidates) {
    const uint64_t nodes_here = candidate.live / geometry.node_blocks();
    const uint64_t segments_needed =
        (tree.dirty_nodes() + 2 * nodes_here + reserves.group_nodes) / reserves.nodes_per_segment + 1;
    const uint64_t needed =
        segments_needed * geometry.metadata_copies * reserves.segment_data_blocks + kept;
    if (surplus == 0 || tree.dirty_nodes() >= budget || needed > usable_blocks()) break;
    auto moved = co_await move_nodes_out(candidate.segment, candidate.generation);
    COFS_CO_TRY(moved);
    surplus -= std::min(surplus, reserves.nodes_per_segment - nodes_here);
  }
  co_return Result<>();
}

}  // namespace cofs
