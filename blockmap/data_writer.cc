// Placing file data: virtual numbers, places in the open segments, chunks, and their writing.
//
// Space is taken and mapped under the apply lock; the writes run after it. What becomes of one that fails is
// told in stall.cc; where it is given up the store shuts down, since what was applied can no longer become durable.

#include <algorithm>
#include <utility>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint32_t kChunkPayloadMax = 1024;  // blocks: 4 MiB writes at most

}  // namespace

uint64_t Store::Impl::begin_write() {
  writes_in_flight.insert(++write_ordinal);
  tasks_running++;
  return write_ordinal;
}

void Store::Impl::end_write(uint64_t ordinal) {
  writes_in_flight.erase(ordinal);
  effects_ended++;
  tasks_running--;
  write_done.notify_all();
  task_done.notify_all();
}

Task<> Store::Impl::wait_for_writes(uint64_t up_to) {
  while (!writes_in_flight.empty() && *writes_in_flight.begin() <= up_to) {
    co_await write_done.wait();
  }
}

// Blocks a chunk's payload can still have in the stream's segment.
uint32_t Store::Impl::stream_room(const OpenSegment& stream, uint64_t more_entries) const {
  if (!stream.open) return 0;
  const uint64_t taken =
      uint64_t{stream.next_block} + 1 + footer_blocks(stream.entries.size() + more_entries);
  return taken >= geometry.segment_blocks
             ? 0
             : static_cast<uint32_t>(geometry.segment_blocks - taken);
}

uint64_t Store::blocks_in_whole_segments(uint64_t most) const {
  const OpenSegment& data = impl_->streams[static_cast<size_t>(ondisk::Stream::kData)];
  OpenSegment fresh;
  fresh.open = true;
  fresh.next_block = 1;
  const uint64_t each = impl_->stream_room(fresh, 1);
  const uint64_t here = impl_->stream_room(data, 1);
  if (here >= most) return most;
  const uint64_t blocks = here + (most - here) / each * each;
  return blocks < most / 2 ? most : blocks;
}

Task<Result<>> Store::Impl::open_stream(ondisk::Stream stream) {
  OpenSegment& slot = streams[static_cast<size_t>(stream)];
  COFS_ASSERT(!slot.open);
  auto segment = co_await segments.open_free(stream, next_virtual);
  COFS_CO_TRY(segment);
  auto state = co_await segments.load(*segment);
  COFS_CO_TRY(state);
  slot = OpenSegment();
  slot.open = true;
  slot.segment = *segment;
  slot.generation = (*state)->generation;
  slot.next_block = 1;
  if (stream != ondisk::Stream::kMeta && stream != ondisk::Stream::kMetaMirror) {
    RecordWriter(pending_records).open_segment(*segment, slot.generation, stream, next_virtual);
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::seal_stream(ondisk::Stream stream) {
  OpenSegment& slot = streams[static_cast<size_t>(stream)];
  if (!slot.open) co_return Result<>();
  const uint32_t blocks = footer_blocks(slot.entries.size());
  // The header of an only chunk says the same.
  if (slot.entries_complete && slot.chunks > 1 && slot.next_block + blocks <= geometry.segment_blocks &&
      blocks <= BufferPool::kBufferBlocksMax && !slot.entries.empty()) {
    BufferRef buffer = env.buffers.allocate(blocks);
    encode_footer(geometry, slot.segment, slot.generation, slot.entries,
                  std::span(buffer->data(), bytes_of_blocks(blocks)));
    spawn(env.executor,
          write_footer(slot.segment, std::move(buffer), blocks, begin_write()));
  }
  const uint64_t segment = slot.segment;
  slot = OpenSegment();
  Hold hold = current_hold();
  if (stream == ondisk::Stream::kMeta || stream == ondisk::Stream::kMetaMirror) {
    hold = Hold();
    hold.checkpoint = checkpoint_sequence + 1;
  }
  auto sealed = co_await segments.seal(segment, next_virtual, hold);
  co_return sealed;
}

Task<> Store::Impl::write_footer(uint64_t segment, BufferRef buffer, uint32_t blocks,
                                 uint64_t ordinal) {
  const uint64_t start = geometry.block_of_segment(segment) + geometry.segment_blocks - blocks;
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), blocks}};
  auto written = co_await write_retrying(BlockRange{start, blocks}, &memory);
  if (!written && !shut_down) fail_store(written.error(), "a segment footer could not be written");
  end_write(ordinal);
}

void Store::Impl::finish_tickets(const std::vector<RunTicket*>& tickets, const Result<>& result) {
  for (RunTicket* ticket : tickets) {
    if (!result) ticket->result = result;
    if (--ticket->parts != 0) continue;
    if (ticket->sink != nullptr) {
      ticket->sink->data_written(ticket->token, ticket->result, ticket->first_virtual);
    }
    delete ticket;
  }
}

Task<Result<>> Store::Impl::place_piece(const DataRun& run, uint32_t from, uint32_t count,
                                        uint64_t physical, uint32_t generation) {
  RecordWriter writer(pending_records);
  uint32_t done = 0;
  while (done < count) {
    const uint32_t n = std::min(count - done, ondisk::kVmapBlocksMax);
    const uint64_t virtual_block = next_virtual;
    next_virtual += n;
    std::vector<uint32_t> checksums(n);
    for (uint32_t i = 0; i < n; i++) {
      checksums[i] = key_block_checksum(run.hashes[from + done + i], virtual_block + i,
                                        geometry.volume_key);
    }
    writer.insert_vmap(virtual_block, physical + done, generation, checksums);
    auto inserted = co_await apply_insert_vmap(virtual_block, physical + done, generation, &checksums);
    COFS_CO_TRY(inserted);
    const uint64_t file_block = run.file_block + from + done;
    writer.map_extent(run.ino, file_block, n, virtual_block, 0);
    auto mapped = co_await apply_map_extent(run.ino, file_block, n, virtual_block, 0);
    COFS_CO_TRY(mapped);
    done += n;
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::place_run(const DataRun* run_to_place, bool into_log) {
  const DataRun& run = *run_to_place;
  auto* ticket = new RunTicket;
  ticket->sink = run.sink;
  ticket->token = run.token;
  ticket->first_virtual = next_virtual;
  ticket->parts = 1;  // held by this function, so that an error path ends it exactly once
  Result<> result;
  uint32_t done = 0;
  while (done < run.count && result) {
    ChunkWrite* chunk = nullptr;
    uint32_t room = 0;
    if (into_log) {
      chunk = log_payload.get();
      room = run.count - done;
    } else {
      OpenSegment& data = streams[static_cast<size_t>(ondisk::Stream::kData)];
      if (open_chunk != nullptr && (open_chunk->entries.size() >= kChunkEntriesPerBlock ||
                                    open_chunk->payload_blocks >= kChunkPayloadMax ||
                                    stream_room(data, open_chunk->entries.size() + 1) <=
                                        open_chunk->payload_blocks)) {
        close_open_chunk();
      }
      if (open_chunk == nullptr) {
        if (stream_room(data, 1) == 0) {
          result = co_await seal_stream(ondisk::Stream::kData);
          if (result) result = co_await open_stream(ondisk::Stream::kData);
          if (!result) break;
        }
        open_chunk_owner = std::make_unique<ChunkWrite>();
        open_chunk = open_chunk_owner.get();
        open_chunk->segment = data.segment;
        open_chunk->generation = data.generation;
        open_chunk->block = data.next_block;
        open_chunk->with_segment_header = !data.header_written;
        data.header_written = true;
      }
      chunk = open_chunk;
      room = std::min(stream_room(data, chunk->entries.size() + 1), kChunkPayloadMax) -
             chunk->payload_blocks;
    }
    const uint32_t n = std::min(run.count - done, room);
    COFS_ASSERT(n > 0);
    const uint32_t at = chunk->payload_start() + chunk->payload_blocks;
    if (!chunk->entries.empty() &&
        chunk->entries.back().id + chunk->entries.back().count == next_virtual) {
      chunk->entries.back().count = chunk->entries.back().count + n;
    } else {
      ondisk::SummaryEntry entry{};
      entry.kind = static_cast<uint8_t>(ondisk::SummaryKind::kData);
      entry.block = at;
      entry.count = n;
      entry.id = next_virtual;
      chunk->entries.push_back(entry);
    }
    chunk->pieces.push_back(MemoryPiece{run.buffer->block(run.buffer_block + done), n});
    chunk->buffers.push_back(run.buffer);
    chunk->tickets.push_back(ticket);
    ticket->parts++;
    chunk->payload_blocks += n;
    unflushed_data_blocks += n;
    counters.data_bytes += bytes_of_blocks(n);
    result = co_await place_piece(run, done, n,
                                  geometry.block_of_segment(chunk->segment) + at,
                                  chunk->generation);
    done += n;
  }
  const std::vector<RunTicket*> mine = {ticket};
  finish_tickets(mine, result);
  co_return result;
}

void Store::Impl::close_open_chunk() {
  if (open_chunk == nullptr) return;
  OpenSegment& data = streams[static_cast<size_t>(ondisk::Stream::kData)];
  COFS_ASSERT(data.open && data.segment == open_chunk->segment);
  data.next_block = open_chunk->payload_start() + open_chunk->payload_blocks;
  data.add_chunk(open_chunk->entries);
  open_chunk = nullptr;
  start_chunk(std::move(open_chunk_owner));
}

// Encodes the chunk's header and starts writing it (all but LOG chunks, which compose_log makes).
void Store::Impl::start_chunk(std::unique_ptr<ChunkWrite> chunk) {
  const uint32_t segment_header = chunk->with_segment_header ? 1 : 0;
  COFS_ASSERT(chunk->header_blocks >= chunk_header_blocks(chunk->entries.size(), 0));
  BufferRef head = env.buffers.allocate(segment_header + chunk->header_blocks);
  if (chunk->with_segment_header) {
    COFS_ASSERT(chunk->block == 1);
    encode_segment_header(geometry, chunk->segment, chunk->generation, chunk->stream,
                          std::span(head->data(), kBlockBytes));
  }
  ondisk::ChunkHeader header{};
  header.sequence = commit_number + 1;
  header.epoch = epoch;
  header.commit = commit_number + 1;
  header.segment = chunk->segment;
  header.generation = chunk->generation;
  header.payload_blocks = chunk->payload_blocks;
  header.stream = static_cast<uint8_t>(chunk->stream);
  encode_chunk(geometry, header, chunk->entries, {},
               std::span(head->block(segment_header), bytes_of_blocks(chunk->header_blocks)));
  chunk->pieces.insert(chunk->pieces.begin(),
                       MemoryPiece{head->data(), segment_header + chunk->header_blocks});
  chunk->buffers.push_back(std::move(head));
  spawn(env.executor, write_chunk(std::move(chunk), begin_write()));
}

Task<> Store::Impl::write_chunk(std::unique_ptr<ChunkWrite> chunk, uint64_t ordinal) {
  const uint32_t segment_header = chunk->with_segment_header ? 1 : 0;
  BlockRange range;
  range.start = geometry.block_of_segment(chunk->segment) + chunk->block - segment_header;
  range.count = segment_header + chunk->header_blocks +
                (chunk->with_payload ? chunk->payload_blocks : 0);
  auto written = co_await write_retrying(range, &chunk->pieces, &chunk->answer);
  if (!written && !shut_down) fail_store(written.error(), "file data could not be written");
  finish_tickets(chunk->tickets, written);
  chunk.reset();
  end_write(ordinal);
}

// A chunk without payload yet at the end of an open stream, which others fill by copying.
std::unique_ptr<ChunkWrite> Store::Impl::begin_staged_chunk(ondisk::Stream stream) {
  OpenSegment& slot = streams[static_cast<size_t>(stream)];
  auto chunk = std::make_unique<ChunkWrite>();
  chunk->stream = stream;
  chunk->segment = slot.segment;
  chunk->generation = slot.generation;
  chunk->block = slot.next_block;
  chunk->with_segment_header = !slot.header_written;
  chunk->with_payload = false;
  slot.header_written = true;
  return chunk;
}

// Its entries are known: the stream goes on behind it.
void Store::Impl::take_place(const ChunkWrite& chunk) {
  OpenSegment& slot = streams[static_cast<size_t>(chunk.stream)];
  slot.add_chunk(chunk.entries);
  slot.next_block = chunk.payload_start() + chunk.payload_blocks;
}

void Store::Impl::finish_staged_chunk(const ChunkWrite& chunk) {
  take_place(chunk);
  start_chunk(std::make_unique<ChunkWrite>(chunk));
}

// Takes a place for up to `blocks_wanted` blocks of file data. Under the apply lock. The chunk is still to be written.
Task<Result<std::unique_ptr<ChunkWrite>>> Store::Impl::place_chunk(uint64_t blocks_wanted) {
  COFS_ASSERT(open_chunk == nullptr);
  OpenSegment& data = streams[static_cast<size_t>(ondisk::Stream::kData)];
  if (stream_room(data, 1) == 0) {
    auto sealed = co_await seal_stream(ondisk::Stream::kData);
    COFS_CO_TRY(sealed);
    auto opened = co_await open_stream(ondisk::Stream::kData);
    COFS_CO_TRY(opened);
  }
  auto chunk = begin_staged_chunk(ondisk::Stream::kData);
  chunk->payload_blocks =
      static_cast<uint32_t>(std::min<uint64_t>(blocks_wanted, stream_room(data, 1)));
  ondisk::SummaryEntry entry{};
  entry.kind = static_cast<uint8_t>(ondisk::SummaryKind::kData);
  entry.block = chunk->payload_start();
  entry.count = chunk->payload_blocks;
  entry.id = next_virtual;
  next_virtual += chunk->payload_blocks;
  chunk->entries.push_back(entry);
  unflushed_data_blocks += chunk->payload_blocks;
  take_place(*chunk);
  co_return chunk;
}

// The same for blocks that somebody else writes; the chunk's header becomes due.
Task<Result<std::unique_ptr<ChunkWrite>>> Store::Impl::stage_chunk(uint64_t blocks_wanted) {
  auto chunk = co_await place_chunk(blocks_wanted);
  if (chunk) due_headers.push_back(std::make_unique<ChunkWrite>(**chunk));
  co_return chunk;
}

void Store::Impl::start_due_headers() {
  for (std::unique_ptr<ChunkWrite>& chunk : std::exchange(due_headers, {})) start_chunk(std::move(chunk));
}

}  // namespace cofs
