// Copying: file blocks to new places by the copy engine, the check of what a device says it copied, and
// the measurement of the ways of copying.
//
// The host never sees the data of a copy, so its checksums are carried over (docs/decisions/0001). They
// also prove it: a sample of what a device copied is read back and compared.

#include <algorithm>
#include <array>
#include <utility>

#include "blockmap/chunk_copy.h"
#include "blockmap/records.h"
#include "blockmap/store_impl.h"
#include "offload/copy_meter.h"

namespace cofs {

SegmentPin::SegmentPin(Store::Impl* store, uint64_t segment) : store_(store), segment_(segment) {
  store_->segments.pin(segment_);
}

SegmentPin::~SegmentPin() {
  store_->tasks_running++;
  store_->pins_releasing++;
  spawn(store_->env.executor, release(store_, segment_));
}

Task<> SegmentPin::release(Store::Impl* store, uint64_t segment) {
  auto guard = co_await store->apply_lock.lock();
  auto unpinned = co_await store->segments.unpin(segment, store->current_hold());
  if (!unpinned && !store->shut_down) store->fail_store(unpinned.error(), "releasing a segment");
  guard.release();
  store->tasks_running--;
  store->pins_releasing--;
  store->task_done.notify_all();
}

// Blocks to be copied, in order.
struct PhysicalSource {
  std::vector<BlockRange> ranges;
  std::vector<uint32_t> rekeyed;  // checksums without their virtual key: for any target number
};

namespace {

constexpr int kDoubtsMax = 8;              // of one call: by then every engine is demoted
constexpr size_t kChunksInFlight = 64;     // small segments make small chunks
constexpr uint64_t kMeasureBlocksMax = blocks_of_bytes(32ULL << 20);
constexpr uint64_t kMeasureSegmentsMin = 8;  // usable ones: fewer are not lent for measuring

// Where the blocks lie, and their checksums freed of the source's key.
Task<Result<>> resolve(Store::Impl* store, BlockRange blocks, PhysicalSource* out) {
  uint64_t at = blocks.start;
  while (at < blocks.end()) {
    auto found = co_await store->tree.last_at_or_before(Key::vmap(0), Key::vmap(at));
    COFS_CO_TRY(found);
    if (!found->has_value()) co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    auto value = parse_vmap((*found)->value, store->geometry);
    COFS_CO_TRY(value);
    const uint64_t start = (*found)->key.id;
    const uint64_t end = start + value->checksums.size();
    if (end <= at) co_return fail(Code::kCorrupt, "a virtual block without a place", at);
    const uint64_t n = std::min(end, blocks.end()) - at;
    BlockRange physical;
    physical.start = value->physical_block + (at - start);
    physical.count = n;
    if (!out->ranges.empty() && out->ranges.back().end() == physical.start) {
      out->ranges.back().count += n;
    } else {
      out->ranges.push_back(physical);
    }
    for (uint64_t i = 0; i < n; i++) {
      out->rekeyed.push_back(rekey_block_checksum(value->checksums[at - start + i], at + i, 0,
                                                  store->geometry.volume_key));
    }
    at += n;
  }
  co_return Result<>();
}

Task<Result<>> resolve_all(Store::Impl* store, const std::vector<BlockRange>* virtual_sources,
                           PhysicalSource* out) {
  *out = PhysicalSource();
  for (const BlockRange& blocks : *virtual_sources) {
    auto resolved = co_await resolve(store, blocks, out);
    COFS_CO_TRY(resolved);
  }
  co_return Result<>();
}

// The part [from, from + count) of the ranges, counted in blocks.
std::vector<BlockRange> slice(const std::vector<BlockRange>& ranges, uint64_t from, uint64_t count) {
  std::vector<BlockRange> out;
  for (const BlockRange& range : ranges) {
    if (count == 0) break;
    if (from >= range.count) {
      from -= range.count;
      continue;
    }
    BlockRange part;
    part.start = range.start + from;
    part.count = std::min(count, range.count - from);
    out.push_back(part);
    count -= part.count;
    from = 0;
  }
  return out;
}

// A random `count` of the numbers [0, total), ascending.
std::vector<uint64_t> sample_of(Random& random, uint64_t total, uint64_t count) {
  std::vector<uint64_t> sample;
  sample.reserve(count);
  for (uint64_t i = 0; i < total && sample.size() < count; i++) {
    if (random.next() % (total - i) < count - sample.size()) sample.push_back(i);
  }
  return sample;
}

// The blocks of a sample, to be read into `memory`. `place` says where block i of the copy lies.
template <class Place>
std::vector<ReadPiece> pieces_of(const std::vector<uint64_t>& sample, const uint32_t* checksums,
                                 std::byte* memory, Place place) {
  std::vector<ReadPiece> pieces;
  for (size_t n = 0; n < sample.size(); n++) {
    const uint64_t physical = place(sample[n]);
    if (pieces.empty() || pieces.back().physical.end() != physical) {
      ReadPiece& piece = pieces.emplace_back();
      piece.physical.start = physical;
      piece.keyed = false;
      piece.target = memory + bytes_of_blocks(n);
    }
    pieces.back().physical.count++;
    pieces.back().checksums.push_back(checksums[sample[n]]);
  }
  return pieces;
}

}  // namespace

// Reads back a sample of what a device copied to [target, +count). False: it is wrong although the
// sources are right. `rekeyed` has the checksums of the copied blocks, without a key.
Task<bool> Store::Impl::verify_copy(const std::vector<BlockRange>* sources, uint64_t target,
                                    uint64_t count, const uint32_t* rekeyed) {
  copy_verify_credit += count * options.copy_verify_percent;
  const uint64_t wanted = copy_verify_credit / 100;
  copy_verify_credit %= 100;
  const std::vector<uint64_t> sample = sample_of(env.random, count, std::min(wanted, count));
  std::vector<uint64_t> part;
  for (size_t at = 0; at < sample.size(); at += BufferPool::kBufferBlocksMax) {
    const size_t end = std::min<size_t>(sample.size(), at + BufferPool::kBufferBlocksMax);
    part.assign(sample.begin() + static_cast<std::ptrdiff_t>(at),
                sample.begin() + static_cast<std::ptrdiff_t>(end));
    const BufferRef buffer = env.buffers.allocate(static_cast<uint32_t>(part.size()));
    std::vector<ReadPiece> pieces = pieces_of(part, rekeyed, buffer->data(),
                                              [&](uint64_t i) { return target + i; });
    auto copied = co_await read_pieces(&pieces);
    counters.copy_verified_bytes += bytes_of_blocks(part.size());
    if (copied) continue;
    pieces = pieces_of(part, rekeyed, buffer->data(), [&](uint64_t i) {
      return slice(*sources, i, 1).front().start;
    });
    auto original = co_await read_pieces(&pieces);
    if (original) co_return false;
    // The source is damaged, and the copy as well: reading either of them says so.
  }
  co_return true;
}

// Repairs a copy that the device got wrong.
Task<CopyOutcome> Store::Impl::recopy_by_host(const ChunkCopy* copy, uint64_t target) {
  CopyOutcome outcome =
      co_await copier.gather_by_host(copy->sources, target, copy->pin, copy->counters);
  env.journal.write(
      Severity::kError,
      "the device reported a copy done that is wrong, at block " + std::to_string(target) +
          (outcome.result ? ": copied again by the host"
                          : ": copying it again by the host failed: " +
                                describe(outcome.result.error())) +
          "; what it copied before may be wrong too: `cofs fsck --data` finds out");
  co_return outcome;
}

// Takes places for the blocks from `from` on, as many chunks as are worth having in flight.
Task<Result<std::vector<Store::Impl::ChunkCopy>>> Store::Impl::stage_copy(
    const PhysicalSource* source, uint64_t from, Reservation* reservation, bool may_use_host) {
  std::vector<ChunkCopy> copies;
  const uint64_t total = source->rekeyed.size();
  auto guard = co_await apply_lock.lock();
  while (from < total && copies.size() < kChunksInFlight) {
    auto staged = co_await stage_chunk(total - from);
    if (!staged) {
      fail_store(staged.error(), "no place for a copy that was promised one");
      co_return fail(staged.error());
    }
    ChunkCopy copy;
    copy.chunk = std::move(*staged);
    copy.pin = std::make_shared<SegmentPin>(this, copy.chunk->segment);
    copy.sources = slice(source->ranges, from, copy.blocks());
    copy.rekeyed = source->rekeyed.data() + from;
    copy.may_use_host = may_use_host;
    reservation->release(copy.blocks());
    from += copy.blocks();
    copies.push_back(std::move(copy));
  }
  co_return copies;
}

// Has the copy engine copy the chunk's payload, slice by slice.
static Task<CopyOutcome> gather_slices(CopyEngine* copier, const Store::Impl::ChunkCopy* copy,
                                       uint64_t target) {
  CopyOutcome whole;
  for (uint64_t done = 0; done < copy->blocks(); done = whole.good_blocks) {
    const uint64_t count = std::min(copy->blocks() - done, copy->slice_blocks);
    const std::vector<BlockRange> sources = slice(copy->sources, done, count);
    CopyOutcome part = co_await copier->gather(sources, target + done, copy->pin, copy->counters,
                                                 copy->may_use_host);
    whole.good_blocks += part.good_blocks;
    for (size_t i = 0; i < kCopyPathCount; i++) whole.blocks[i] += part.blocks[i];
    whole.result = part.result;
    whole.target_in_doubt = part.target_in_doubt;
    if (part.good_blocks < count) break;
  }
  co_return whole;
}

Task<> Store::Impl::copy_chunk(ChunkCopy* copy, WaitGroup* group) {
  const ChunkWrite& chunk = *copy->chunk;
  const uint64_t target = geometry.block_of_segment(chunk.segment) + chunk.payload_start();
  CopyOutcome& outcome = copy->outcome;
  copies_running++;
  outcome = co_await gather_slices(&copier, copy, target);
  if (outcome.blocks[static_cast<size_t>(CopyPath::kDevice)] != 0) {
    const bool right =
        co_await verify_copy(&copy->sources, target, outcome.good_blocks, copy->rekeyed);
    if (!right) {
      counters.copy_verify_failures++;
      copier.condemn(CopyPath::kDevice, "because it reported a copy done that was wrong");
    }
    if (!right && outcome.target_in_doubt) {
      outcome.good_blocks = 0;  // the host must not write where the device still may: elsewhere, then
    } else if (!right && !copy->may_use_host) {
      outcome.good_blocks = 0;
      outcome.result = fail(Code::kIo, "the device reported a copy done that is wrong", target);
    } else if (!right) {
      outcome = co_await recopy_by_host(copy, target);
    }
  }
  copies_running--;
  effects_ended++;
  write_ordinal++;  // the device's cache has what no flush has made durable
  group->done();
}

// What was copied of a chunk, to be mapped.
void Store::Impl::add_staged_runs(const ChunkCopy& copy, std::vector<StagedRun>* runs) const {
  const ChunkWrite& chunk = *copy.chunk;
  const uint64_t target = geometry.block_of_segment(chunk.segment) + chunk.payload_start();
  for (uint64_t n = 0; n < copy.outcome.good_blocks;) {
    StagedRun run;
    run.count = static_cast<uint32_t>(
        std::min<uint64_t>(copy.outcome.good_blocks - n, ondisk::kVmapBlocksMax));
    run.virtual_block = chunk.entries[0].id + n;
    run.physical_block = target + n;
    run.generation = chunk.generation;
    for (uint32_t i = 0; i < run.count; i++) {
      run.checksums.push_back(rekey_block_checksum(copy.rekeyed[n + i], 0, run.virtual_block + i,
                                                   geometry.volume_key));
    }
    run.pin = copy.pin;
    n += run.count;
    runs->push_back(std::move(run));
  }
}

Task<std::vector<StagedRun>> Store::copy_blocks(const std::vector<BlockRange>* virtual_sources,
                                                Reservation* reservation, Result<>* error,
                                                bool may_use_host) {
  Impl& store = *impl_;
  std::vector<StagedRun> runs;
  PhysicalSource source;
  ReaderTicket ticket(&store);
  *error = store.check_writable();
  if (*error) *error = co_await resolve_all(&store, virtual_sources, &source);
  const uint64_t total = source.rekeyed.size();
  uint64_t done = 0;
  int doubts = 0;
  while (*error && done < total) {
    auto copies = co_await store.stage_copy(&source, done, reservation, may_use_host);
    if (!copies) {
      *error = fail(copies.error());
      break;
    }
    WaitGroup group(store.env.executor);
    for (Impl::ChunkCopy& copy : *copies) {
      group.add();
      spawn(store.env.executor, store.copy_chunk(&copy, &group));
    }
    co_await group.wait();
    uint64_t lost = 0;  // copied behind a gap, or not at all
    const Impl::ChunkCopy* gap = nullptr;
    for (const Impl::ChunkCopy& copy : *copies) {
      if (gap == nullptr) {
        store.add_staged_runs(copy, &runs);
        done += copy.outcome.good_blocks;
        lost += copy.blocks() - copy.outcome.good_blocks;
        if (copy.outcome.good_blocks < copy.blocks()) gap = &copy;
      } else {
        lost += copy.blocks();
      }
    }
    if (gap == nullptr) continue;
    if (!gap->outcome.target_in_doubt || ++doubts == kDoubtsMax) {
      *error = gap->outcome.result;
      if (*error) *error = fail(Code::kIo, "copy ended early");
      break;
    }
    // The rest goes to another place; the segment is not used again before the device has answered.
    ticket.end();  // room may be made by waiting for readers, and by moving the sources
    auto more = co_await reserve(Cost(lost, 0), SpaceClass::kUser);
    ticket.begin();
    if (more) {
      reservation->merge(std::move(*more));
      *error = co_await resolve_all(&store, virtual_sources, &source);
    } else {
      *error = fail(more.error());
    }
  }
  co_return runs;
}

Task<Result<std::vector<uint32_t>>> Store::content_checksums(BlockRange virtual_blocks) {
  auto readable = impl_->check_readable();
  COFS_CO_TRY(readable);
  PhysicalSource source;
  auto resolved = co_await resolve(impl_.get(), virtual_blocks, &source);
  COFS_CO_TRY(resolved);
  co_return std::move(source.rekeyed);
}

// --- Measuring ---------------------------------------------------------------------------------

void Store::Impl::start_measuring() {
  const DeviceGeometry& device = env.device.geometry();
  const bool known = copy_rates.signature == copy_signature(device);
  if (known) copier.set_rates(copy_rates);
  const bool wanted = options.copy_measuring == CopyMeasuring::kAlways ||
                      (options.copy_measuring == CopyMeasuring::kOnce && !known);
  if (!wanted || options.read_only || device.copies.empty() || !options.copy.engine.empty()) return;
  tasks_running++;
  spawn(env.executor, measure());
}

Task<> Store::Impl::measure() {
  auto measured = co_await measure_in_free_segment();
  if (measured) {
    copier.set_rates(*measured);
    copy_rates = *measured;  // the next checkpoint keeps them
  } else if (measured.error().code != Code::kBusy && measured.error().code != Code::kNoSpace) {
    env.journal.write(Severity::kWarning,
                      "the ways of copying could not be measured: " + describe(measured.error()));
  }
  tasks_running--;
  task_done.notify_all();
}

Task<Result<CopyRates>> Store::Impl::measure_in_free_segment() {
  uint64_t segment = 0;
  {
    auto guard = co_await apply_lock.lock();
    if (geometry.segment_blocks < kMeterBlocksMin ||
        segments.usable_count() < kMeasureSegmentsMin) {
      co_return fail(Code::kNoSpace, "no segment to spare");
    }
    auto borrowed = co_await segments.borrow_free();
    COFS_CO_TRY(borrowed);
    segment = *borrowed;
  }
  MeterOptions meter;
  meter.scratch.start = geometry.block_of_segment(segment);
  meter.scratch.count = std::min<uint64_t>(geometry.segment_blocks, kMeasureBlocksMax);
  meter.command_timeout_ns = options.copy.timeout_ns;
  meter.stop = [this] { return stopping || shut_down; };
  auto outcome = co_await measure_copies(&env.device, &env.executor, &env.clock, &env.buffers,
                                         &env.journal, meter);
  // Where something timed out, the segment is not used before the next mount.
  const bool in_doubt =
      outcome ? outcome->scratch_in_doubt : outcome.error().code == Code::kTimedOut;
  if (!in_doubt) {
    auto guard = co_await apply_lock.lock();
    segments.add_usable(segment);
  }
  COFS_CO_TRY(outcome);
  co_return outcome->rates;
}

}  // namespace cofs
