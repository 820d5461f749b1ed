// The device fails: every one of its operations once, in turn, and many of them at random.
//
// What must hold: an answer is right or an error; an operation that answered an error has changed
// nothing (while the store is up); a failed log write or flush stops all changes; afterwards the volume
// opens, verifies, and holds what was synced. COFS_FAULT_STRIDE: every n-th operation only (default 1),
// COFS_FAULT_SEEDS: seeds of the random runs (default 60), COFS_SEED: the first.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"

namespace cofs {
namespace {

bool is_fault_code(Code code) {
  return code == Code::kIo || code == Code::kShutdown || code == Code::kReadOnly ||
         code == Code::kTimedOut;
}

class FaultRun {
 public:
  FaultRun(uint64_t seed, const VolumeOptions& options, const SimImage& image,
           const ModelState& state)
      : options_(options), volume_(seed, image, options), state_(state) {
    history_.emplace_back(state, "the start", 0);
  }

  SimDevice& device() { return volume_.device; }
  const ModelState& state() const { return state_; }
  bool stopped() const { return stopped_; }
  // After how many operations of the device errors are excused.
  void faults_from(uint64_t n) { faults_from_ = n; }

  // False: the volume could not be opened, because of the fault. wrong() tells if that is no excuse.
  bool open() {
    const Result<> opened = volume_.open();
    if (opened) return true;
    if (!faulty() || !is_fault_code(opened.error().code)) {
      wrong_ = "open: " + describe(opened.error());
    }
    stopped_ = true;
    return false;
  }

  bool step(const Operation& operation) {
    done_.push_back(operation);
    set_current_case(fmt::format("world seed {}, faults from {}, operation {}: {}",
                                 volume_.world.seed, faults_from_, done_.size() - 1,
                                 describe(operation)));
    const OperationResult result = volume_.perform(operation);
    const bool excused = result.error && faulty() && is_fault_code(result.error->code);
    const bool was_stopped = std::exchange(stopped_, volume_.fs().store().shut_down());
    if (excused) {
      excused_++;
      errors_ += fmt::format("  operation {} answered: {}{}\n", done_.size() - 1,
                             describe(*result.error), stopped_ ? " (the store has stopped)" : "");
      if (stopped_ && !was_stopped) remember_possible(operation);
      return true;
    }
    if (result.error && result.error->code == Code::kShutdown) {
      wrong_ = describe(operation) + ": shut down without a fault";
      return false;
    }
    if (was_stopped && result.ok() && changes_tree(operation.kind) && changed(operation)) {
      wrong_ = describe(operation) + ": succeeds after the store has shut down";
      return false;
    }
    wrong_ = state_.check(operation, result);
    if (!wrong_.empty()) return false;
    if (result.ok() && changes_tree(operation.kind)) {
      history_.emplace_back(state_, "after " + describe(operation), 0);
    }
    const bool durable =
        operation.kind == OperationKind::kSync || operation.kind == OperationKind::kCheckpoint;
    if (durable && result.ok()) floor_ = history_.size() - 1;
    return true;
  }

  // Ends the run, in good order if it can, and looks at what is left.
  void finish() {
    volume_.device.set_faults(SimFaults());
    if (volume_.is_open()) {
      if (!stopped_) check_while_open();
      if (!wrong_.empty()) return;
      const Result<> closed = volume_.close();
      if (closed) {
        floor_ = history_.size() - 1;
      } else if (!faulty() || !is_fault_code(closed.error().code)) {
        wrong_ = "close: " + describe(closed.error());
      }
    }
    volume_.settle();
    if (wrong_.empty()) reopen(volume_.device.image(), "as it stopped");
    if (wrong_.empty()) {
      reopen(volume_.device.crash_image(1, CrashMode::kDropAll), "after a power cut");
    }
  }
  const std::string& wrong() const { return wrong_; }
  uint64_t excused() const { return excused_; }
  // What was done and which errors it met, for messages.
  std::string story() const { return describe(done_) + errors_; }

 private:
  bool faulty() const { return volume_.device.operation_count() >= faults_from_; }

  // A succeeding operation that leaves everything as it was is no change.
  bool changed(const Operation& operation) const {
    ModelState after = state_;
    after.perform(operation);
    return after.tree_hash() != state_.tree_hash();
  }

  // The operation during which the store shut down may be in the log all the same.
  void remember_possible(const Operation& operation) {
    ModelState after = state_;
    const ModelAnswer answer = after.perform(operation);
    if (!answer.errors.empty()) return;
    if (is_copy(operation.kind)) {
      for (ModelState& partial : state_.partial_copies(operation, answer.expected.value)) {
        possible_.emplace_back(std::move(partial), "in the middle of the copy", 0);
      }
    }
    possible_.emplace_back(std::move(after), "after the failed " + describe(operation), 0);
  }

  void check_while_open() {
    auto tree = volume_.tree();
    if (!tree) {
      if (!faulty() || !is_fault_code(tree.error().code)) {
        wrong_ = "reading the tree: " + describe(tree.error());
      }
    } else {
      wrong_ = difference(state_, *tree);
      if (!wrong_.empty()) wrong_ = "the tree after the fault: " + wrong_;
    }
  }

  void reopen(const SimImage& image, const char* how) {
    VolumeOptions healthy = options_;
    healthy.device.faults = SimFaults();
    TestVolume volume(3, image, healthy);
    const Result<> opened = volume.open();
    if (!opened) {
      wrong_ = fmt::format("opening {}: {}", how, describe(opened.error()));
      return;
    }
    auto tree = volume.tree();
    if (!tree) {
      wrong_ = fmt::format("reading the tree {}: {}", how, describe(tree.error()));
      return;
    }
    std::string differs;
    std::vector<const Snapshot*> allowed;
    for (size_t i = floor_; i < history_.size(); ++i) allowed.push_back(&history_[i]);
    for (const Snapshot& snapshot : possible_) allowed.push_back(&snapshot);
    bool found = false;
    for (const Snapshot* snapshot : allowed) {
      differs = difference(snapshot->state, *tree);
      found = found || differs.empty();
      if (found) break;
    }
    if (!found) {
      wrong_ = fmt::format("the tree {} is none of {} allowed; not that {}: {}", how,
                           allowed.size(), history_.back().what,
                           difference(history_.back().state, *tree));
      return;
    }
    volume.settle();
    const std::string problems = volume.verify(true);
    if (!problems.empty()) wrong_ = fmt::format("verify() {}: {}", how, problems);
  }

  const VolumeOptions options_;
  TestVolume volume_;
  ModelState state_;
  std::vector<Operation> done_;
  std::vector<Snapshot> history_;
  std::vector<Snapshot> possible_;
  size_t floor_ = 0;
  uint64_t faults_from_ = 0;
  bool stopped_ = false;
  uint64_t excused_ = 0;
  std::string wrong_;
  std::string errors_;
};

VolumeOptions scripted_options(bool with_copies, uint32_t node_copies) {
  VolumeOptions options;
  options.device_blocks = 4096;
  options.format.segment_blocks = 32;
  options.format.node_bytes = 4096;
  options.format.metadata_copies = node_copies;
  options.store.background = false;
  options.store.cache_bytes = 4096;  // nearly none, so that there is much to read
  options.fs.inodes_cached_max = 1;
  options.device.counted = kCountAll;
  if (with_copies) {
    CopyLimits limits;
    limits.engine = "sim";
    limits.ranges_max = 4;
    limits.range_blocks_max = 16;
    limits.operation_blocks_max = 64;
    limits.in_flight_max = 2;
    options.device.copies.push_back(limits);
  }
  return options;
}

// The operations of the device that the script takes, from the opening to its end.
uint64_t count_operations(const VolumeOptions& options, const SimImage& image) {
  FaultRun run(2, options, image, ModelState());
  run.faults_from(UINT64_MAX);
  EXPECT_TRUE(run.open()) << run.wrong();
  for (const Operation& operation : scripted_mix()) {
    if (!run.step(operation)) ADD_FAILURE() << run.wrong();
  }
  const uint64_t count = run.device().operation_count();
  run.finish();
  EXPECT_EQ(run.wrong(), "") << "without a fault";
  return count;
}

void fail_each_operation_once(bool with_copies, uint32_t node_copies) {
  const VolumeOptions options = scripted_options(with_copies, node_copies);
  const SimImage image = TestVolume::formatted(2, options);
  const uint64_t stride =
      std::max<uint64_t>(1, number_from_environment("COFS_FAULT_STRIDE", 1));
  const uint64_t count = count_operations(options, image);
  if (testing::Test::HasFailure()) return;
  uint64_t stopped = 0;
  uint64_t failures = 0;
  for (uint64_t n = 1; n <= count && failures < 5; n += stride) {
    set_current_case(fmt::format("device operation {} of {} fails ({})", n, count,
                                 options.describe()));
    FaultRun run(2, options, image, ModelState());
    run.device().fail_at(n, SimFault::kError);
    run.faults_from(n);
    if (run.open()) {
      for (const Operation& operation : scripted_mix()) {
        if (!run.step(operation)) break;
      }
    }
    if (run.wrong().empty()) run.finish();
    stopped += run.stopped() ? 1 : 0;
    if (run.wrong().empty()) continue;
    failures++;
    ADD_FAILURE() << "device operation " << n << " of " << count << " fails: " << run.wrong()
                  << "\n" << run.story();
  }
  std::printf("device operations failed: %llu, the store stopped in %llu cases\n",
              static_cast<unsigned long long>(count / stride),
              static_cast<unsigned long long>(stopped));
}

TEST(Faults, EachDeviceOperationFailsOnce) { fail_each_operation_once(false, 1); }
TEST(Faults, EachDeviceOperationFailsOnceWithTwoNodeCopies) { fail_each_operation_once(false, 2); }
TEST(Faults, EachDeviceOperationFailsOnceWithDeviceCopies) { fail_each_operation_once(true, 2); }

std::string random_run(uint64_t seed, const SimFaults& faults, bool many_checkpoints,
                       uint64_t* operations) {
  VolumeOptions options = VolumeOptions::tiny(seed);
  options.device.counted = kCountAll;
  const SimImage image = TestVolume::formatted(seed, options);
  FaultRun run(seed, options, image, ModelState());
  if (!run.open()) return run.wrong();
  run.device().set_faults(faults);
  WorkloadShape shape = WorkloadShape::random(seed);
  if (many_checkpoints) shape.checkpoint_chance = 0.3;
  WorkloadGenerator generator(mix64(seed, 4), shape);
  for (int i = 0; i < 120 && !run.stopped(); ++i) {
    (*operations)++;
    if (!run.step(generator.next(run.state()))) break;
  }
  if (run.wrong().empty()) run.finish();
  return run.wrong().empty() ? "" : run.wrong() + "\n" + run.story();
}

void random_runs(const SimFaults& faults, bool many_checkpoints = false) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t count = number_from_environment("COFS_FAULT_SEEDS", 60);
  uint64_t operations = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    set_current_case(fmt::format("random faults, seed {}", seed));
    const std::string wrong = random_run(seed, faults, many_checkpoints, &operations);
    ASSERT_EQ(wrong, "") << "seed " << seed;
  }
  std::printf("seeds %llu to %llu, %llu operations\n", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + count - 1),
              static_cast<unsigned long long>(operations));
}

TEST(Faults, RandomReadErrors) {
  SimFaults faults;
  faults.read_error = 0.03;
  random_runs(faults);
}

TEST(Faults, RandomReadErrorsAroundCheckpoints) {
  SimFaults faults;
  faults.read_error = 0.1;
  random_runs(faults, true);
}

TEST(Faults, RandomWriteAndFlushErrors) {
  SimFaults faults;
  faults.write_error = 0.003;
  faults.flush_error = 0.01;
  faults.discard_error = 0.1;
  random_runs(faults);
}

// Neither reads nor writes for a while, again and again: the store may stop, where it is in the middle of something, or
// wait (fs/stall_test is about that).
std::string run_on_a_device_that_goes_away(uint64_t seed, uint64_t* operations, uint64_t* errors,
                                           uint64_t* stopped) {
  VolumeOptions options = VolumeOptions::tiny(seed);
  options.device.counted = kCountAll;
  options.store.cache_bytes = 64 * options.format.node_bytes;
  const SimImage image = TestVolume::formatted(seed, options);
  FaultRun run(seed, options, image, ModelState());
  if (!run.open()) return run.wrong();
  WorkloadShape shape = WorkloadShape::random(seed);
  shape.sync_chance = std::max(shape.sync_chance, 0.1);
  WorkloadGenerator generator(mix64(seed, 4), shape);
  SimRandom random(mix64(seed, 0x61));
  SimFaults gone;
  gone.read_error = 1;
  gone.write_error = 1;
  bool is_gone = false;
  for (int i = 0; i < 120 && !run.stopped(); ++i) {
    if (random.chance(is_gone ? 0.3 : 0.1)) {
      is_gone = !is_gone;
      run.device().set_faults(is_gone ? gone : SimFaults());
    }
    const Operation operation = generator.next(run.state());
    // It is done, and answers with the error of the commit that follows (docs/decisions/0007).
    if (is_gone && operation.kind == OperationKind::kUnlink) continue;
    (*operations)++;
    if (!run.step(operation)) break;
  }
  *errors += run.excused();
  *stopped += run.stopped() ? 1 : 0;
  if (run.wrong().empty()) run.finish();
  return run.wrong().empty() ? "" : run.wrong() + "\n" + run.story();
}

TEST(Faults, ADeviceThatGoesAwayAndComesBack) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t count = number_from_environment("COFS_FAULT_SEEDS", 60);
  uint64_t operations = 0;
  uint64_t errors = 0;
  uint64_t stopped = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    set_current_case(fmt::format("a device that goes away, seed {}", seed));
    ASSERT_EQ(run_on_a_device_that_goes_away(seed, &operations, &errors, &stopped), "") << "seed " << seed;
  }
  std::printf("%llu operations, %llu errors, the store stopped in %llu of %llu runs\n",
              static_cast<unsigned long long>(operations), static_cast<unsigned long long>(errors),
              static_cast<unsigned long long>(stopped), static_cast<unsigned long long>(count));
  EXPECT_GT(errors, 0U);
}

TEST(Faults, CopiesFailInAllWaysThatAreReported) {
  SimFaults faults;
  faults.copy_error = 0.1;
  faults.copy_partial = 0.1;
  faults.copy_timeout = 0.05;
  random_runs(faults);
}

// A device that says it copied and did not: whatever is read is right or an error.
TEST(Faults, CopiesThatAreSilentlyWrongAreNeverReadAsData) {
  uint64_t errors = 0;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    VolumeOptions options = scripted_options(true, 1);
    options.device.seed = seed;
    TestVolume volume(seed, TestVolume::formatted(seed, options), options);
    ASSERT_TRUE(volume.open());
    SimFaults faults;
    faults.copy_silent_wrong = 0.5;
    volume.device.set_faults(faults);
    ModelState state;
    Operation write(OperationKind::kWrite, "/a");
    write.length = 200'000;
    write.seed = seed;
    Operation copy(OperationKind::kCopyRange, "/a", "/b");
    copy.length = write.length;
    for (const Operation& operation :
         {Operation(OperationKind::kCreate, "/a"), Operation(OperationKind::kCreate, "/b"), write,
          Operation(OperationKind::kSync), copy, Operation(OperationKind::kSync)}) {
      ASSERT_EQ(state.check(operation, volume.perform(operation)), "") << "seed " << seed;
    }
    for (uint64_t offset = 0; offset < write.length; offset += kBlockBytes) {
      Operation read(OperationKind::kRead, "/b");
      read.offset = offset;
      read.length = kBlockBytes;
      const OperationResult result = volume.perform(read);
      if (result.error) {
        EXPECT_EQ(result.error->code, Code::kChecksum) << "seed " << seed;
        errors++;
      } else {
        ASSERT_EQ(state.check(read, result), "") << "seed " << seed;
      }
    }
    EXPECT_TRUE(volume.close());
  }
  EXPECT_GT(errors, 0U);
  std::printf("blocks refused: %llu\n", static_cast<unsigned long long>(errors));
}

}  // namespace
}  // namespace cofs
