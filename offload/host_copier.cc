#include "offload/host_copier.h"

#include <algorithm>
#include <vector>

namespace cofs {
namespace {

// Reads of one chunk in flight at once, when its sources are scattered: together with the chunks in
// flight this bounds the device's queue.
constexpr size_t kChunkReadsMax = 32;

}  // namespace

// Several reads in flight at once, awaited together. All of them name this coroutine as their waiter; it
// is resumed once for each, and counts.
class HostCopier::ReadBatch {
 public:
  void add(BlockRange range, std::byte* to) {
    pieces_.push_back(MemoryPiece{to, static_cast<uint32_t>(range.count)});
    IoRequest& request = requests_.emplace_back();
    request.op = IoRequest::Op::kRead;
    request.range = range;
  }
  const std::vector<IoRequest>& requests() const { return requests_; }
  const std::vector<MemoryPiece>& pieces() const { return pieces_; }

  Task<void> run(Device& device) {
    if (requests_.empty()) co_return;
    co_await First{*this, device};
    for (size_t done = 1; done < requests_.size(); done++) {
      submit_next(device);
      co_await std::suspend_always{};
    }
  }

 private:
  struct First {
    ReadBatch& batch;
    Device& device;
    bool await_ready() { return false; }
    void await_suspend(std::coroutine_handle<> self) {
      batch.self_ = self;
      for (size_t i = 0; i < kChunkReadsMax; i++) batch.submit_next(device);
    }
    void await_resume() {}
  };
  void submit_next(Device& device) {
    if (submitted_ == requests_.size()) return;
    IoRequest& request = requests_[submitted_];
    request.memory = std::span(&pieces_[submitted_], 1);
    request.waiter = self_;
    submitted_++;
    device.submit(request);
  }

  std::vector<MemoryPiece> pieces_;
  std::vector<IoRequest> requests_;
  size_t submitted_ = 0;
  std::coroutine_handle<> self_;
};

// One call of copy(): lives in its frame, shared by its workers.
struct HostCopier::Run {
  Run(Executor& executor, std::span<const BlockRange> sources, uint64_t target,
      const CopyLimits& limits)
      : plan(sources, limits),
        target_start(target),
        good(plan.operations().size(), 0),
        stop_after(plan.operations().size()),
        workers(executor) {}

  // A chunk failed: those after it are of no use any more.
  void failed(size_t index, const Error& why, bool by_source) {
    if (index >= stop_after) return;
    stop_after = index;
    result = fail(why);
    source_failed = by_source;
  }
  bool wants(size_t index) const {
    return index < good.size() && index <= stop_after && !target_in_doubt;
  }

  CopyPlan plan;
  uint64_t target_start;
  std::vector<uint64_t> good;  // blocks, by chunk
  size_t next = 0;
  size_t stop_after;           // the first chunk that failed
  uint64_t operations = 0;
  Result<> result;
  bool source_failed = false;
  bool target_in_doubt = false;
  Error doubt;
  WaitGroup workers;
};

HostCopier::HostCopier(Device& device, Executor& executor, BufferPool& buffers,
                       uint32_t chunk_blocks, uint32_t in_flight)
    : device_(device),
      executor_(executor),
      buffers_(buffers),
      in_flight_(in_flight),
      permits_(executor, in_flight) {
  COFS_ASSERT(chunk_blocks >= 1 && chunk_blocks <= BufferPool::kBufferBlocksMax);
  COFS_ASSERT(in_flight >= 1);
  chunk_limits_.path = CopyPath::kHost;
  chunk_limits_.ranges_max = chunk_blocks;
  chunk_limits_.range_blocks_max = chunk_blocks;
  chunk_limits_.operation_blocks_max = chunk_blocks;
}

Task<HostCopyResult> HostCopier::copy(std::span<const BlockRange> sources, uint64_t target_start) {
  Run run(executor_, sources, target_start, chunk_limits_);
  const size_t workers = std::min<size_t>(in_flight_, run.good.size());
  run.workers.add(workers);
  for (size_t i = 1; i < workers; i++) spawn(executor_, copy_chunks(run));
  if (workers != 0) co_await copy_chunks(run);
  co_await run.workers.wait();
  co_return summarise(run);
}

HostCopyResult HostCopier::summarise(Run& run) {
  HostCopyResult copied;
  copied.operations = run.operations;
  copied.source_failed = run.source_failed;
  copied.target_in_doubt = run.target_in_doubt;
  copied.result = run.target_in_doubt ? Result<>(fail(run.doubt)) : run.result;
  for (size_t i = 0; i < run.good.size(); i++) {
    copied.good_blocks += run.good[i];
    if (run.good[i] < run.plan.operations()[i].count) break;
  }
  return copied;
}

Task<void> HostCopier::copy_chunks(Run& run) {
  while (run.wants(run.next)) {
    const size_t index = run.next++;
    co_await permits_.acquire();
    if (run.wants(index)) co_await copy_chunk(run, index);
    permits_.release();
  }
  run.workers.done();
}

Task<void> HostCopier::copy_chunk(Run& run, size_t index) {
  const CopyOperation& chunk = run.plan.operations()[index];
  run.operations++;
  BufferRef buffer = buffers_.allocate(static_cast<uint32_t>(chunk.count));
  const uint64_t good = co_await read_chunk(run, index, *buffer.get());
  if (good == 0 || !run.wants(index)) co_return;
  const MemoryPiece piece{buffer->data(), static_cast<uint32_t>(good)};
  const BlockRange target{run.target_start + chunk.target_offset, good};
  const Result<> written = co_await device_.write(target, std::span(&piece, 1));
  if (written) {
    run.good[index] = good;
    co_return;
  }
  if (written.error().code == Code::kTimedOut) {
    run.target_in_doubt = true;
    run.doubt = written.error();
  }
  run.failed(index, written.error(), false);
}

// Returns how many blocks of the chunk were read, from its front. A range that fails is read again block
// by block: this gets past a passing fault, and finds the exact block of a lasting one.
Task<uint64_t> HostCopier::read_chunk(Run& run, size_t index, Buffer& buffer) {
  ReadBatch batch;
  uint32_t at = 0;
  for (const BlockRange& source : run.plan.sources_of(run.plan.operations()[index])) {
    batch.add(source, buffer.block(at));
    at += static_cast<uint32_t>(source.count);
  }
  co_await batch.run(device_);
  uint64_t good = 0;
  for (size_t i = 0; i < batch.requests().size(); i++) {
    const IoRequest& whole = batch.requests()[i];
    if (whole.result) {
      good += whole.range.count;
      continue;
    }
    ReadBatch retry;
    for (uint64_t block = 0; block < whole.range.count; block++) {
      retry.add(BlockRange{whole.range.start + block, 1},
                batch.pieces()[i].data + bytes_of_blocks(block));
    }
    co_await retry.run(device_);
    for (const IoRequest& single : retry.requests()) {
      if (!single.result) {
        Error error = single.result.error();
        error.where = single.range.start;
        run.failed(index, error, true);
        co_return good;
      }
      good++;
    }
  }
  co_return good;
}

}  // namespace cofs
