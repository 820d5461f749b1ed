// Staging: data to new space, before it is part of any file, so that whoever wrote it learns whether the device took it.
//
// Each chunk is one write, and pending like any other if the device refuses it (stall.cc), since those behind it in the
// segment are found by its header. Who waits for it does not wait for that, and does not map it.

#include <algorithm>
#include <string>
#include <utility>

#include "blockmap/chunk_copy.h"
#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {

StagedRun StagedRun::split_front(uint32_t blocks) {
  COFS_ASSERT(blocks < count);
  StagedRun front = *this;  // with all that keeps the place
  front.count = blocks;
  front.checksums.resize(blocks);
  checksums.erase(checksums.begin(), checksums.begin() + static_cast<std::ptrdiff_t>(blocks));
  virtual_block += blocks;
  physical_block += blocks;
  count -= blocks;
  return front;
}

// Takes places for all of the data and starts writing it; each chunk has an answer, which the caller keeps. Under the
// apply lock.
Task<Result<std::vector<StagedRun>>> Store::Impl::place_staged(const StagedData* data,
                                                               std::vector<WriteAnswer>* answers,
                                                               WaitGroup* group) {
  const auto count = static_cast<uint32_t>(data->hashes.size());
  std::vector<StagedRun> runs;
  std::vector<std::unique_ptr<ChunkWrite>> chunks;
  Result<> result;
  for (uint32_t done = 0; done < count;) {
    auto placed = co_await place_chunk(count - done);
    if (!placed) {
      result = fail(placed.error());
      break;
    }
    ChunkWrite& chunk = **placed;
    chunk.with_payload = true;
    chunk.pieces.push_back(MemoryPiece{data->buffer->block(done), chunk.payload_blocks});
    chunk.buffers.push_back(data->buffer);
    StagedRun run;
    run.virtual_block = chunk.entries[0].id;
    run.physical_block = geometry.block_of_segment(chunk.segment) + chunk.payload_start();
    run.generation = chunk.generation;
    run.count = chunk.payload_blocks;
    run.checksums.resize(run.count);
    for (uint32_t i = 0; i < run.count; i++) {
      run.checksums[i] = key_block_checksum(data->hashes[done + i], run.virtual_block + i, geometry.volume_key);
    }
    counters.data_bytes += bytes_of_blocks(run.count);
    run.pin = std::make_shared<SegmentPin>(this, chunk.segment);
    done += run.count;
    while (run.count > ondisk::kVmapBlocksMax) runs.push_back(run.split_front(ondisk::kVmapBlocksMax));
    runs.push_back(std::move(run));
    chunks.push_back(std::move(*placed));
  }
  // Those that have a place are written in any case.
  answers->resize(chunks.size());
  for (size_t i = 0; i < chunks.size(); i++) {
    WriteAnswer& answer = (*answers)[i];
    answer.group = group;
    group->add();
    chunks[i]->answer = &answer;
    start_chunk(std::move(chunks[i]));
  }
  COFS_CO_TRY(result);
  co_return runs;
}

Task<Result<std::vector<StagedRun>>> Store::stage_data(const StagedData* data, Reservation* reservation) {
  Impl& store = *impl_;
  std::vector<WriteAnswer> answers;
  WaitGroup group(store.env.executor);
  auto guard = co_await store.apply_lock.lock();
  auto writable = store.check_writable();
  COFS_CO_TRY(writable);
  auto runs = co_await store.place_staged(data, &answers, &group);
  if (!runs && runs.error().code == Code::kNoSpace) {
    store.fail_store(runs.error(), "no place for data that was promised one");
  }
  if (runs) reservation->release(data->hashes.size());
  guard.release();
  co_await group.wait();
  COFS_CO_TRY(runs);
  for (const WriteAnswer& answer : answers) {
    if (answer.result) continue;
    const Error& error = answer.result.error();  // as check_stall(): a device that is full is no full volume
    co_return fail(store.shut_down ? Code::kShutdown : Code::kIo, error.what, error.where);
  }
  co_return runs;
}

}  // namespace cofs
