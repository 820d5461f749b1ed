// The log: a chain of chunks through LOG segments. Composing runs under the apply lock; the composed
// chunks are written by the commit, in any order: the chain's checksums and sequence numbers show
// recovery where it ends.

#include <algorithm>

#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr uint32_t kLogHeaderBlocksMax = 128;  // of one chunk: 512 KiB of records
constexpr size_t kLog = static_cast<size_t>(ondisk::Stream::kLog);

}  // namespace

// Makes sure there is a log segment and that its two successors are known.
Task<Result<>> Store::Impl::prepare_log() {
  OpenSegment& log = streams[kLog];
  if (!log.open) {
    auto opened = co_await open_stream(ondisk::Stream::kLog);
    COFS_CO_TRY(opened);
    segments.pin(log.segment);
    log_chain.push_back(log.segment);
  }
  if (!log_next.ready) {
    auto reserved = co_await reserve_successor(&log_next);
    COFS_CO_TRY(reserved);
  }
  if (!log_after.ready) {
    auto reserved = co_await reserve_successor(&log_after);
    COFS_CO_TRY(reserved);
  }
  co_return Result<>();
}

Task<Result<>> Store::Impl::reserve_successor(LogSuccessor* successor) {
  auto segment = co_await segments.open_free(ondisk::Stream::kLog, next_virtual);
  COFS_CO_TRY(segment);
  auto state = co_await segments.load(*segment);
  COFS_CO_TRY(state);
  successor->segment = *segment;
  successor->generation = (*state)->generation;
  successor->ready = true;
  segments.pin(*segment);
  log_chain.push_back(*segment);
  RecordWriter(pending_records)
      .open_segment(*segment, successor->generation, ondisk::Stream::kLog, next_virtual);
  co_return Result<>();
}

Task<Result<>> Store::Impl::advance_log() {
  COFS_ASSERT(log_next.ready);
  auto sealed = co_await seal_stream(ondisk::Stream::kLog);
  COFS_CO_TRY(sealed);
  OpenSegment& log = streams[kLog];
  log.open = true;
  log.segment = log_next.segment;
  log.generation = log_next.generation;
  log.next_block = 1;
  log_next = std::exchange(log_after, LogSuccessor());
  auto prepared = co_await prepare_log();
  co_return prepared;
}

// Whether payload and records fit behind one header in the current log segment.
bool Store::Impl::log_payload_fits(uint64_t payload_blocks, uint64_t record_bytes) const {
  const OpenSegment& log = streams[kLog];
  const uint64_t header = chunk_header_blocks(payload_blocks, record_bytes);
  return header <= 16 && log.next_block + header + payload_blocks +
                                 footer_blocks(log.entries.size() + payload_blocks) <=
                             geometry.segment_blocks;
}

// Puts all pending records (and the payload placed in the log) into chunks of one commit.
Task<Result<>> Store::Impl::compose_log(std::vector<LogChunk>* chunks, bool* any) {
  *any = !pending_records.empty() || log_payload != nullptr;
  if (!*any) co_return Result<>();
  commit_number++;
  counters.commits++;
  std::vector<std::byte> records;
  records.swap(pending_records);
  size_t taken = 0;
  while (true) {
    OpenSegment& log = streams[kLog];
    std::unique_ptr<ChunkWrite> payload;
    uint32_t header_blocks = 0;
    size_t n = records.size() - taken;
    if (log_payload != nullptr) {
      payload = std::move(log_payload);
      header_blocks = payload->header_blocks;
      COFS_ASSERT(payload->segment == log.segment && payload->block == log.next_block);
      COFS_ASSERT(chunk_header_blocks(payload->entries.size(), n) <= header_blocks);
    } else {
      const uint64_t end = geometry.segment_blocks - footer_blocks(log.entries.size());
      const uint64_t room = log.next_block < end ? end - log.next_block : 0;
      const uint64_t blocks_max = std::min<uint64_t>(room, kLogHeaderBlocksMax);
      if (blocks_max > 0) {
        n = whole_records_prefix(std::span(records).subspan(taken),
                                 bytes_of_blocks(blocks_max) - sizeof(ondisk::ChunkHeader));
      }
      if (blocks_max == 0 || n == 0) {
        auto advanced = co_await advance_log();
        COFS_CO_TRY(advanced);
        continue;
      }
      header_blocks = chunk_header_blocks(0, n);
    }
    const uint32_t segment_header = log.header_written ? 0 : 1;
    BufferRef head = env.buffers.allocate(segment_header + header_blocks);
    if (segment_header != 0) {
      COFS_ASSERT(log.next_block == 1);
      encode_segment_header(geometry, log.segment, log.generation, ondisk::Stream::kLog,
                            std::span(head->data(), kBlockBytes));
      log.header_written = true;
    }
    ondisk::ChunkHeader header{};
    header.sequence = log_sequence++;
    header.previous_checksum = log_previous;
    header.epoch = epoch;
    header.commit = commit_number;
    header.watermark = durable_commit;
    header.segment = log.segment;
    header.generation = log.generation;
    header.next_segment = log_next.segment;
    header.next_generation = log_next.generation;
    header.after_segment = log_after.segment;
    header.after_generation = log_after.generation;
    header.payload_blocks = payload ? payload->payload_blocks : 0;
    header.stream = static_cast<uint8_t>(ondisk::Stream::kLog);
    header.flags = taken + n == records.size() ? ondisk::kChunkCommitEnd : uint8_t{0};
    std::vector<ondisk::SummaryEntry> entries;
    if (payload) entries = payload->entries;
    encode_chunk(geometry, header, entries, std::span(records).subspan(taken, n),
                 std::span(head->block(segment_header), bytes_of_blocks(header_blocks)));
    log_previous = header.checksum;

    LogChunk chunk;
    chunk.range.start = geometry.block_of_segment(log.segment) + log.next_block - segment_header;
    chunk.range.count = segment_header + header_blocks + header.payload_blocks;
    chunk.pieces.push_back(MemoryPiece{head->data(), segment_header + header_blocks});
    chunk.buffers.push_back(std::move(head));
    if (payload) {
      chunk.pieces.insert(chunk.pieces.end(), payload->pieces.begin(), payload->pieces.end());
      chunk.buffers.insert(chunk.buffers.end(), payload->buffers.begin(), payload->buffers.end());
      chunk.tickets = payload->tickets;
    }
    log.next_block += header_blocks + header.payload_blocks;
    log.add_chunk(entries);
    log_blocks += chunk.range.count;
    counters.log_bytes += bytes_of_blocks(chunk.range.count);
    chunks->push_back(std::move(chunk));
    taken += n;
    if (taken == records.size()) break;
  }
  co_return Result<>();
}

}  // namespace cofs
