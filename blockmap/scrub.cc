#include "blockmap/scrub.h"

#include <algorithm>

namespace cofs {
namespace {

constexpr size_t kProblemsKept = 1000;
constexpr size_t kNodesPerBatch = 32;
constexpr uint64_t kRestFactor = 3;  // of a batch's time, when others are at work
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr int kSuperblockRounds = 3;  // each mends two copies

std::string number(uint64_t value) { return std::to_string(value); }

}  // namespace

// --- The run -----------------------------------------------------------------------------------

Task<Result<>> Store::scrub(ScrubRun* run) {
  Scrubber scrubber(*impl_, *run);
  auto done = co_await scrubber.run();
  if (done && impl_->shut_down) co_return fail(Code::kShutdown, "the filesystem has stopped");
  co_return done;
}

void Store::cancel_scrub(ScrubRun& run) {
  run.cancelled = true;
  if (run.asleep) impl_->env.clock.cancel(run.timer);
}

Task<Result<>> Scrubber::run() {
  const auto reckon = [this] {
    run_.figures.total_bytes =
        bytes_of_blocks(store_.live_data_blocks + store_.live_node_blocks + kSuperblockCopies);
  };
  run_.figures = ScrubFigures();
  reckon();
  auto superblocks = co_await scrub_superblocks();
  COFS_CO_TRY(superblocks);
  // What only is in memory can not be read back; after this most of it is on the device.
  if (!store_.options.read_only && !ended()) {
    auto done = co_await store_.store->checkpoint();
    COFS_CO_TRY(done);
  }
  reckon();
  auto nodes = co_await scrub_nodes();
  COFS_CO_TRY(nodes);
  auto data = co_await scrub_data();
  co_return data;
}

void Scrubber::problem(Severity severity, const std::string& line) {
  const uint64_t count = ++run_.figures.problem_count;
  if (count > kProblemsKept) return;
  store_.env.journal.write(severity, "scrub: " + line);
  run_.figures.problems.push_back(line);
  if (count == kProblemsKept) {
    store_.env.journal.write(severity, "scrub: further problems are counted, not told");
  }
}

// --- Pace --------------------------------------------------------------------------------------

void Scrubber::begin_batch() {
  batch_started_ns_ = store_.env.clock.monotonic_ns();
  foreground_ = store_.gc.foreground;
}

// Rests as long as the rate asks for; without one, while others are at work, so that they have three
// quarters of the time.
Task<> Scrubber::end_batch(uint64_t bytes) {
  run_.figures.done_bytes += bytes;
  const uint64_t now = store_.env.clock.monotonic_ns();
  uint64_t until = now;
  if (run_.bytes_per_second != 0) {
    const double ns = static_cast<double>(bytes) * static_cast<double>(kSecondNs) /
                      static_cast<double>(run_.bytes_per_second);
    next_due_ns_ = std::max(next_due_ns_, batch_started_ns_) + static_cast<uint64_t>(ns);
    until = next_due_ns_;
  } else if (store_.gc.foreground != foreground_) {
    until = now + kRestFactor * (now - batch_started_ns_);
  }
  // A second at a time: the store may have failed meanwhile.
  while (!ended()) {
    const uint64_t at = store_.env.clock.monotonic_ns();
    if (until <= at) break;
    run_.timer.due_ns = std::min(until, at + kSecondNs);
    run_.asleep = true;
    co_await sleep_until(store_.env.clock, run_.timer);
    run_.asleep = false;
  }
}

// --- Superblocks -------------------------------------------------------------------------------

// No checkpoint may write from here on.
Task<Result<>> Scrubber::hold_checkpoints() {
  while (store_.checkpointing) {
    auto stalled = store_.check_stall();
    COFS_CO_TRY(stalled);
    co_await store_.checkpoint_done.wait();
  }
  store_.checkpointing = true;
  co_return Result<>();
}

// What is wrong with each copy; empty: nothing. Ends what hold_checkpoints() began.
Task<std::array<std::string, kSuperblockCopies>> Scrubber::superblock_faults() {
  std::array<std::string, kSuperblockCopies> faults;
  std::array<uint64_t, kSuperblockCopies> sequences{};
  BufferRef buffer = store_.env.buffers.allocate(1);
  const std::vector<MemoryPiece> memory = {MemoryPiece{buffer->data(), 1}};
  for (int copy = 0; copy < kSuperblockCopies; copy++) {
    BlockRange range;
    range.start = store_.geometry.superblock_block(copy);
    range.count = 1;
    auto read = co_await store_.env.device.read(range, memory);
    if (!read) {
      faults[static_cast<size_t>(copy)] = describe(read.error());
      continue;
    }
    store_.counters.read_bytes += kBlockBytes;
    Geometry geometry;
    VolumeState state;
    auto parsed = parse_superblock(std::span(buffer->data(), kBlockBytes),
                                   store_.geometry.block_count, geometry, state);
    if (!parsed) {
      faults[static_cast<size_t>(copy)] = describe(parsed.error());
    } else if (geometry.uuid != store_.geometry.uuid || state.sequence > store_.volume.sequence) {
      faults[static_cast<size_t>(copy)] = "not of this volume";
    } else {
      sequences[static_cast<size_t>(copy)] = state.sequence;
    }
  }
  store_.checkpointing = false;
  store_.checkpoint_done.notify_all();
  // A mount that may write has written the newest one to all but the copy that is next.
  for (int copy = 0; copy < kSuperblockCopies && !store_.options.read_only; copy++) {
    const auto i = static_cast<size_t>(copy);
    if (faults[i].empty() && copy != store_.superblock_slot &&
        sequences[i] != store_.volume.sequence) {
      faults[i] = "older than it must be";
    }
  }
  co_return faults;
}

Task<Result<>> Scrubber::scrub_superblocks() {
  begin_batch();
  auto held = co_await hold_checkpoints();
  COFS_CO_TRY(held);
  auto faults = co_await superblock_faults();
  const auto bad = [&faults] {
    return std::count_if(faults.begin(), faults.end(),
                         [](const std::string& fault) { return !fault.empty(); });
  };
  const auto found = bad();
  run_.figures.superblock_errors += static_cast<uint64_t>(found);
  for (int copy = 0; copy < kSuperblockCopies; copy++) {
    const std::string& fault = faults[static_cast<size_t>(copy)];
    if (fault.empty()) continue;
    problem(Severity::kError, "superblock copy " + number(static_cast<uint64_t>(copy) + 1) +
                                  " at block " + number(store_.geometry.superblock_block(copy)) +
                                  " is bad: " + fault);
  }
  // A checkpoint writes two copies, one behind the other: the bad ones first, where there are two. The copy
  // with the newest checkpoint is not written over before the next one is durable elsewhere.
  for (int round = 0; round < kSuperblockRounds && bad() != 0; round++) {
    if (ended() || store_.options.read_only) break;
    for (int copy = 0; copy < kSuperblockCopies; copy++) {
      const int before = (copy + kSuperblockCopies - 1) % kSuperblockCopies;
      if (!faults[static_cast<size_t>(copy)].empty() && faults[static_cast<size_t>(before)].empty()) {
        store_.superblock_slot = copy;
      }
    }
    auto done = co_await store_.store->checkpoint();
    COFS_CO_TRY(done);
    held = co_await hold_checkpoints();
    COFS_CO_TRY(held);
    faults = co_await superblock_faults();
  }
  if (bad() < found) run_.figures.repaired += static_cast<uint64_t>(found - bad());
  co_await end_batch(bytes_of_blocks(kSuperblockCopies));
  co_return Result<>();
}

// --- Tree nodes --------------------------------------------------------------------------------

Task<Result<>> Scrubber::scrub_nodes() {
  Key cursor;
  std::array<std::optional<Key>, ondisk::kTreeLevelMax + 1> seen;  // inner nodes: the last one by level
  while (!ended()) {
    std::vector<BTree::PathNode> batch;
    bool more = true;
    while (more && batch.size() < kNodesPerBatch) {
      BTree::Path path = co_await store_.tree.path_to(cursor);
      for (const BTree::PathNode& node : path.nodes) {
        std::optional<Key>& last = seen[node.level];
        if (last && node.first_key <= *last) continue;
        last = node.first_key;
        batch.push_back(node);
      }
      more = path.next.has_value();
      if (more) cursor = *path.next;
    }
    auto checked = co_await check_nodes(std::move(batch));
    COFS_CO_TRY(checked);
    if (!more) break;
  }
  auto finished = co_await finish_repairs();
  co_return finished;
}

Task<> Scrubber::read_node_copy(NodePointer pointer, int copy, Result<>* result, WaitGroup* group) {
  auto image = co_await store_.nodes.read_copy(pointer, copy);
  if (!image) *result = fail(image.error());
  group->done();
}

Task<Result<>> Scrubber::check_nodes(std::vector<BTree::PathNode> batch) {
  begin_batch();
  const uint32_t copies = store_.geometry.metadata_copies;
  // Nodes that are not clean are written anew anyway.
  std::erase_if(batch, [](const BTree::PathNode& node) {
    return !node.clean || node.pointer.address[0] == 0;
  });
  std::vector<Result<>> results(batch.size() * copies);
  WaitGroup group(store_.env.executor);
  for (size_t i = 0; i < results.size(); i++) {
    group.add();
    spawn(store_.env.executor, read_node_copy(batch[i / copies].pointer,
                                              static_cast<int>(i % copies), &results[i], &group));
  }
  co_await group.wait();
  for (size_t i = 0; i < batch.size() && !ended(); i++) {
    auto judged = co_await judge_node(&batch[i], &results[i * copies]);
    COFS_CO_TRY(judged);
  }
  co_await end_batch(uint64_t{batch.size()} * copies * store_.geometry.node_bytes);
  co_return Result<>();
}

// Says what is bad with a node, if anything is and it is still there, and mends it if that can be done.
Task<Result<>> Scrubber::judge_node(const BTree::PathNode* node, const Result<>* copies) {
  const uint32_t count = store_.geometry.metadata_copies;
  const auto bad = std::count_if(copies, copies + count, [](const Result<>& copy) { return !copy; });
  if (bad == 0 && node->result) co_return Result<>();
  const BTree::Path now = co_await store_.tree.path_to(node->first_key);
  const bool still_there =
      std::any_of(now.nodes.begin(), now.nodes.end(), [node](const BTree::PathNode& other) {
        return other.level == node->level && other.clean && other.pointer == node->pointer;
      });
  if (!still_there) co_return Result<>();
  run_.figures.node_errors++;
  auto repaired = co_await repair_node(node);
  COFS_CO_TRY(repaired);
  for (uint32_t copy = 0; copy < count; copy++) {
    if (copies[copy]) continue;
    problem(*repaired ? Severity::kWarning : Severity::kError,
            "copy " + number(copy + 1) + " of the tree node at block " +
                number(node->pointer.address[copy]) + " is bad: " + describe(copies[copy].error()) +
                (*repaired ? "; it is written anew" : ""));
  }
  if (bad == 0) {  // its checksums are right, and it is no node
    problem(Severity::kError, "the tree node at block " + number(node->pointer.address[0]) +
                                  " is wrong: " + describe(node->result.error()));
  }
  co_return Result<>();
}

// Makes a node dirty, so that the next checkpoint writes all its copies: from its good copy, or from memory.
Task<Result<bool>> Scrubber::repair_node(const BTree::PathNode* node) {
  if (store_.options.read_only) co_return false;
  if (repairs_pending_ * 4 >= store_.dirty_nodes_limit()) {
    auto finished = co_await finish_repairs();
    COFS_CO_TRY(finished);
  }
  auto bounded = co_await store_.keep_bounds();
  COFS_CO_TRY(bounded);
  auto guard = co_await store_.apply_lock.lock();
  auto writable = store_.check_writable();
  COFS_CO_TRY(writable);
  auto dirtied =
      co_await store_.tree.dirty_node_at(node->level, node->first_key, node->pointer.address[0]);
  if (!dirtied) co_return false;  // no copy can be read
  repairs_pending_++;             // also where somebody else has made it dirty meanwhile
  co_return true;
}

Task<Result<>> Scrubber::finish_repairs() {
  if (repairs_pending_ == 0) co_return Result<>();
  auto done = co_await store_.store->checkpoint();
  COFS_CO_TRY(done);
  run_.figures.repaired += std::exchange(repairs_pending_, 0);
  co_return Result<>();
}

}  // namespace cofs
