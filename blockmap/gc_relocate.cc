// Garbage collection: moving what lives in one segment elsewhere, so that it becomes free.
//
// A victim is worked off in units of a few megabytes. For each: what still lives is looked up in vmap,
// a chunk is staged in the stream for survivors, the copy engine gathers the blocks into it (checksums
// are carried over: virtual numbers stay), the device is flushed, and the new places are published by
// compare and set (gc_publish.cc). The segment becomes free when the last of its blocks went, as always.
//
// A victim is never needed: whatever goes wrong with one, its blocks stay where they are and it is left
// alone for a while. All of this runs with gc.lock held.

#include <algorithm>

#include "blockmap/chunk_copy.h"
#include "blockmap/store_impl.h"

namespace cofs {

struct GcUnit {
  ondisk::Stream stream = ondisk::Stream::kGcWarm;
  std::vector<GcRange> pieces;     // what lives, each at most kVmapBlocksMax blocks
  std::vector<uint32_t> rekeyed;   // the checksums of all blocks, without their key
  size_t next = 0;                 // GcVictim::next and next_done once the unit is done
  uint64_t next_done = 0;
  bool gentle = false;             // others want the device as well
  std::vector<Store::Impl::ChunkCopy> copies;
  std::vector<VmapMove> moves;     // copied and durable

  uint64_t blocks() const { return rekeyed.size(); }
};

namespace {

constexpr uint64_t kUnitBlocks = blocks_of_bytes(4ULL << 20);
constexpr size_t kUnitPieces = 4 * kChunkEntriesPerBlock;
constexpr uint64_t kGentleBlocks = 128;  // copied at once beside others who want the device
constexpr uint64_t kLookupsPerStep = 32;  // then others may run
constexpr int kDoubtsMax = 3;
constexpr uint64_t kSkipNs = 60'000'000'000;
constexpr uint32_t kSkipDoublings = 6;

bool is_gc_stream(ondisk::Stream stream) {
  return stream == ondisk::Stream::kGcWarm || stream == ondisk::Stream::kGcCold;
}

// Adds blocks that live to the unit; neighbours become one piece.
void add_piece(GcUnit* unit, const VmapPiece& piece, uint64_t count, uint64_t volume_key) {
  const uint64_t physical = piece.physical();
  bool merged = false;
  if (!unit->pieces.empty()) {
    GcRange& last = unit->pieces.back();
    if (last.virtual_block + last.count == piece.start &&
        last.physical_block + last.count == physical &&
        last.count + count <= ondisk::kVmapBlocksMax) {
      last.count += count;
      merged = true;
    }
  }
  if (!merged) unit->pieces.push_back(GcRange{piece.start, physical, count});
  for (uint64_t i = 0; i < count; i++) {
    const uint32_t checksum = piece.record.checksums[piece.start - piece.record_start + i];
    unit->rekeyed.push_back(rekey_block_checksum(checksum, piece.start + i, 0, volume_key));
  }
}

}  // namespace

// --- Victims -----------------------------------------------------------------------------------

bool Store::Impl::gc_may_take(uint64_t segment, const SegmentState& state) const {
  if (segments.is_pinned(segment)) return false;
  // What was written last into a log segment is surely there once the checkpoint that released it is.
  if (state.stream == ondisk::Stream::kLog && volume.sequence != checkpoint_sequence) return false;
  const auto skip = gc.skips.find(segment);
  return skip == gc.skips.end() || skip->second.generation != state.generation ||
         skip->second.until_ns <= env.clock.monotonic_ns();
}

// Chooses a victim and reads what it holds. False: none gains.
Task<Result<bool>> Store::Impl::gc_take_victim(GcUrgency urgency) {
  COFS_ASSERT(!gc.victim);
  const uint64_t dropped = gc.dropped_blocks;
  uint64_t& nothing_at = gc.nothing_at[static_cast<size_t>(urgency)];
  if (urgency != GcUrgency::kUrgent && nothing_at != 0 &&
      dropped + 1 - nothing_at < gc_gain_min(geometry.segment_blocks, urgency)) {
    co_return false;  // nothing has changed since
  }
  const GcVictims::MayTake may_take = [this](uint64_t segment, const SegmentState& state) {
    return gc_may_take(segment, state);
  };
  auto choice = co_await gc_victims.choose(urgency, next_virtual, &may_take);
  COFS_CO_TRY(choice);
  nothing_at = choice->has_value() ? 0 : dropped + 1;
  if (!choice->has_value()) co_return false;
  counters.gc_victims++;
  gc.victim.emplace();
  gc.victim->segment = **choice;
  gc.moves_per_won_256 =
      gc_moves_per_won_256(geometry.segment_blocks, gc.victim->segment.live_blocks);
  const GcCandidate& segment = gc.victim->segment;
  // Its last chunks and its footer may still be under way, if it was sealed a moment ago.
  start_due_headers();
  auto settled = co_await settle_writes(write_ordinal);
  COFS_CO_TRY(settled);
  auto entries = co_await read_summary(segment.segment, segment.generation);
  if (!entries) {
    gc_skip("what it holds can not be read: " + describe(entries.error()));
    co_return true;
  }
  for (const ondisk::SummaryEntry& entry : *entries) {
    gc.victim->ranges.push_back(GcRange{
        entry.id, geometry.block_of_segment(segment.segment) + entry.block, entry.count});
  }
  std::sort(gc.victim->ranges.begin(), gc.victim->ranges.end(),
            [](const GcRange& a, const GcRange& b) { return a.virtual_block < b.virtual_block; });
  co_return true;
}

void Store::Impl::gc_skip(const std::string& why) {
  const GcCandidate& segment = gc.victim->segment;
  GcSkip& skip = gc.skips[segment.segment];
  if (skip.generation != segment.generation) skip = GcSkip();
  skip.generation = segment.generation;
  skip.until_ns =
      env.clock.monotonic_ns() + (kSkipNs << std::min(skip.failures, kSkipDoublings));
  skip.failures++;
  counters.gc_skipped++;
  env.journal.write(Severity::kWarning, "segment " + std::to_string(segment.segment) +
                                            " is left out of garbage collection for a while: " +
                                            why);
  gc.victim.reset();
}

// All that the victim's summary names has been tried.
Task<Result<GcStep>> Store::Impl::gc_finish_victim() {
  const GcCandidate segment = gc.victim->segment;
  auto state = co_await segments.load(segment.segment);
  COFS_CO_TRY(state);
  if ((*state)->generation == segment.generation &&
      (*state)->state == ondisk::SegmentState::kSealed && (*state)->live_blocks != 0) {
    gc_skip(std::to_string((*state)->live_blocks) +
            " blocks live in it that its summary does not name");
    co_return GcStep::kSkipped;
  }
  counters.gc_segments_freed++;
  gc.won_blocks += gc_gain_blocks(geometry.segment_blocks, segment.live_blocks);
  gc.skips.erase(segment.segment);
  gc.victim.reset();
  gc_release_soon();
  co_return GcStep::kFreed;
}

// --- One unit ----------------------------------------------------------------------------------

// What lives of the victim's next ranges.
Task<Result<>> Store::Impl::gc_collect(GcUnit* unit) {
  const GcVictim& victim = *gc.victim;
  unit->next = victim.next;
  unit->next_done = victim.next_done;
  uint64_t lookups = 0;
  while (unit->next < victim.ranges.size() && unit->blocks() < kUnitBlocks &&
         unit->pieces.size() < kUnitPieces) {
    const GcRange& range = victim.ranges[unit->next];
    const uint64_t end = range.virtual_block + range.count;
    auto found = co_await find_vmap(tree, geometry, range.virtual_block + unit->next_done, end);
    COFS_CO_TRY(found);
    if (++lookups % kLookupsPerStep == 0) co_await let_others_run(env.executor);
    if (!found->has_value()) {
      unit->next++;
      unit->next_done = 0;
      continue;
    }
    const VmapPiece& piece = **found;
    uint64_t count = piece.end - piece.start;
    const uint64_t place = range.physical_block + (piece.start - range.virtual_block);
    if (piece.physical() == place && piece.record.generation == victim.segment.generation) {
      count = std::min(count, kUnitBlocks - unit->blocks());
      add_piece(unit, piece, count, geometry.volume_key);
    }
    unit->next_done = piece.start + count - range.virtual_block;
    if (unit->next_done == range.count) {
      unit->next++;
      unit->next_done = 0;
    }
  }
  co_return Result<>();
}

// Whether the segments that the unit may open are there, within the reserve. Where none is kept (collected
// only by request) they come out of what users may have.
bool Store::Impl::gc_has_room(const GcUnit& unit) const {
  const OpenSegment& slot = streams[static_cast<size_t>(unit.stream)];
  const uint64_t headers = unit.pieces.size() / kChunkEntriesPerBlock + 2;
  const uint64_t wanted = unit.blocks() + headers;
  const uint64_t here =
      stream_room(slot, std::min<uint64_t>(unit.pieces.size(), kChunkEntriesPerBlock));
  if (wanted <= here) return true;
  const uint64_t each = geometry.segment_blocks - 2 - footer_blocks(geometry.segment_blocks);
  const uint64_t fresh = (wanted - here + each - 1) / each;
  const uint64_t others = stream_room(streams[static_cast<size_t>(ondisk::Stream::kData)], 2);
  const SpaceClass space_class = gc_on() ? SpaceClass::kGc : SpaceClass::kUser;
  return segments.usable_count() >= fresh &&
         room(space_class) >= static_cast<int64_t>(fresh * geometry.segment_blocks + others);
}

// Takes places for the unit's pieces, as far as there are any.
Task<Result<>> Store::Impl::gc_stage(GcUnit* unit) {
  auto guard = co_await apply_lock.lock();
  auto writable = check_writable();
  COFS_CO_TRY(writable);
  OpenSegment& slot = streams[static_cast<size_t>(unit->stream)];
  size_t index = 0;
  uint64_t piece_done = 0;
  uint64_t blocks_done = 0;
  while (index < unit->pieces.size()) {
    const auto entries = static_cast<size_t>(
        std::min<uint64_t>(unit->pieces.size() - index, kChunkEntriesPerBlock));
    if (stream_room(slot, entries) == 0) {
      auto sealed = co_await seal_stream(unit->stream);
      COFS_CO_TRY(sealed);
      auto opened = co_await open_stream(unit->stream);
      if (!opened && !unit->copies.empty()) break;
      COFS_CO_TRY(opened);
    }
    const uint64_t room_here = stream_room(slot, entries);
    ChunkCopy copy;
    copy.chunk = begin_staged_chunk(unit->stream);
    copy.rekeyed = unit->rekeyed.data() + blocks_done;
    copy.counters = &gc.copies;
    if (unit->gentle) copy.slice_blocks = kGentleBlocks;
    ChunkWrite& chunk = *copy.chunk;
    while (index < unit->pieces.size() && chunk.entries.size() < entries &&
           chunk.payload_blocks < room_here) {
      const GcRange& piece = unit->pieces[index];
      const uint64_t count =
          std::min(piece.count - piece_done, room_here - chunk.payload_blocks);
      ondisk::SummaryEntry entry{};
      entry.kind = static_cast<uint8_t>(ondisk::SummaryKind::kData);
      entry.block = chunk.payload_start() + chunk.payload_blocks;
      entry.count = static_cast<uint32_t>(count);
      entry.id = piece.virtual_block + piece_done;
      chunk.entries.push_back(entry);
      copy.sources.push_back(BlockRange{piece.physical_block + piece_done, count});
      chunk.payload_blocks += static_cast<uint32_t>(count);
      piece_done += count;
      blocks_done += count;
      if (piece_done == piece.count) {
        index++;
        piece_done = 0;
      }
    }
    finish_staged_chunk(chunk);
    copy.pin = std::make_shared<SegmentPin>(this, chunk.segment);
    unit->copies.push_back(std::move(copy));
  }
  co_return Result<>();
}

// Has the staged chunks filled, makes them durable, and publishes what was copied.
Task<Result<GcStep>> Store::Impl::gc_copy(GcUnit* unit) {
  // The victim's last writes may still be under way: a device copies what is on the device. (Summaries
  // of the chunks that were staged are waited for as well.)
  const uint64_t ordinal = write_ordinal;
  auto settled = co_await settle_writes(ordinal);
  COFS_CO_TRY(settled);
  WaitGroup group(env.executor);
  for (ChunkCopy& copy : unit->copies) {
    group.add();
    spawn(env.executor, copy_chunk(&copy, &group));
    if (unit->gentle) co_await group.wait();
  }
  co_await group.wait();
  Result<> failure;
  uint64_t copied = 0;
  bool in_doubt = false;
  for (const ChunkCopy& copy : unit->copies) {
    const CopyOutcome& outcome = copy.outcome;
    counters.gc_device_bytes +=
        bytes_of_blocks(outcome.blocks[static_cast<size_t>(CopyPath::kDevice)] +
                        outcome.blocks[static_cast<size_t>(CopyPath::kHostFile)]);
    counters.gc_host_bytes += bytes_of_blocks(outcome.blocks[static_cast<size_t>(CopyPath::kHost)]);
    if (outcome.target_in_doubt) in_doubt = true;
    if (!outcome.result && !outcome.target_in_doubt && failure) failure = outcome.result;
    const uint64_t segment_start = geometry.block_of_segment(copy.chunk->segment);
    uint64_t offset = 0;
    for (size_t i = 0; i < copy.sources.size() && offset < outcome.good_blocks; i++) {
      const ondisk::SummaryEntry& entry = copy.chunk->entries[i];
      VmapMove move;
      move.virtual_block = entry.id;
      move.from_physical = copy.sources[i].start;
      move.to_physical = segment_start + entry.block;
      move.count = static_cast<uint32_t>(
          std::min<uint64_t>(entry.count, outcome.good_blocks - offset));
      move.to_generation = copy.chunk->generation;
      offset += entry.count;
      copied += move.count;
      unit->moves.push_back(move);
    }
  }
  if (shut_down) co_return fail(Code::kShutdown, "the store has shut down");
  if (!unit->moves.empty()) {
    auto flushed = co_await env.device.flush();
    if (!flushed) {
      fail_store(flushed.error(), "the device could not flush");
      co_return fail(Code::kShutdown, "the device could not flush");
    }
    counters.flushes++;
    flushed_ordinal = std::max(flushed_ordinal, ordinal);
    auto published = co_await gc_publish(&unit->moves);
    COFS_CO_TRY(published);
    gc.paid_256 += copied * 256 * 256 / gc.moves_per_won_256;
  }
  if (copied == unit->blocks()) {
    gc.victim->next = unit->next;
    gc.victim->next_done = unit->next_done;
  } else if (!failure || (in_doubt && ++gc.victim->doubts >= kDoubtsMax)) {
    gc_skip(failure ? "copies out of it do not end in time"
                    : "it can not be copied: " + describe(failure.error()));
    co_return GcStep::kSkipped;
  }
  co_return GcStep::kMoved;
}

Task<> Store::Impl::wait_for_pins() {
  while (pins_releasing != 0) co_await task_done.wait();
}

Task<Result<GcStep>> Store::Impl::gc_work(GcUrgency urgency) {
  if (!gc.victim) {
    auto taken = co_await gc_take_victim(urgency);
    COFS_CO_TRY(taken);
    if (!*taken) co_return GcStep::kNothing;
    if (!gc.victim) co_return GcStep::kSkipped;
  }
  auto bounded = co_await keep_bounds();
  COFS_CO_TRY(bounded);
  GcUnit unit;
  const ReaderTicket ticket(this);  // the victim is not written again while it is copied
  auto state = co_await segments.load(gc.victim->segment.segment);
  COFS_CO_TRY(state);
  if ((*state)->generation != gc.victim->segment.generation ||
      (*state)->state != ondisk::SegmentState::kSealed) {
    gc.victim.reset();  // its users have emptied it
    co_return GcStep::kMoved;
  }
  unit.gentle = urgency == GcUrgency::kPaced;
  unit.stream = is_gc_stream(gc.victim->segment.stream) ? ondisk::Stream::kGcCold
                                                        : ondisk::Stream::kGcWarm;
  auto collected = co_await gc_collect(&unit);
  COFS_CO_TRY(collected);
  if (unit.pieces.empty()) {
    auto finished = co_await gc_finish_victim();
    co_return finished;
  }
  if (!gc_has_room(unit)) co_return GcStep::kNoRoom;
  auto staged = co_await gc_stage(&unit);
  if (!staged && staged.error().code == Code::kNoSpace) co_return GcStep::kNoRoom;
  COFS_CO_TRY(staged);
  auto step = co_await gc_copy(&unit);
  COFS_CO_TRY(step);
  if (*step == GcStep::kMoved && gc.victim->next == gc.victim->ranges.size()) {
    auto finished = co_await gc_finish_victim();
    co_return finished;
  }
  co_return step;
}

// One unit of work. Errors: kShutdown, kReadOnly, kIo while the device fails writes; of others only the victim hears.
Task<Result<GcStep>> Store::Impl::gc_step(GcUrgency urgency) {
  auto writable = check_writable();
  COFS_CO_TRY(writable);
  if (stopping) co_return GcStep::kNothing;
  auto stalled = check_stall();
  COFS_CO_TRY(stalled);
  auto step = co_await gc_work(urgency);
  co_await wait_for_pins();
  if (!step && !check_stall()) gc.victim.reset();  // it is none of its faults
  if (!step && !shut_down && gc.victim) {
    gc_skip(describe(step.error()));
    co_return GcStep::kSkipped;
  }
  co_return step;
}

}  // namespace cofs
