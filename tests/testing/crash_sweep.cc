#include "tests/testing/crash_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint64_t kCommitSlackNs = 1'000'000'000;  // a commit takes its time, too
constexpr size_t kNestedImagesMax = 40;             // of one recovery
constexpr size_t kViolationsMax = 20;
constexpr size_t kFurtherOperations = 8;
constexpr double kOutageEndChance = 0.15;           // before an operation, of an outage that lasts until told
constexpr uint64_t kOutageNsMin = 20'000;
constexpr uint64_t kOutageDoublings = 12;
constexpr uint64_t kPromptNs = 1'000'000'000;       // an answer that takes longer has waited for the device

std::string_view name_of_mode(CrashMode mode) {
  switch (mode) {
    case CrashMode::kDropAll: return "drop all";
    case CrashMode::kKeepAll: return "keep all";
    case CrashMode::kKeepCompleted: return "keep completed";
    case CrashMode::kRandom: return "random";
  }
  return "";
}

}  // namespace

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 0);
}

void SweepReport::add(const SweepReport& other) {
  states += other.states;
  nested += other.nested;
  workloads += other.workloads;
  operations += other.operations;
  moments += other.moments;
  refusals += other.refusals;
  violations.insert(violations.end(), other.violations.begin(), other.violations.end());
}

std::string SweepReport::summary(uint64_t seed) const {
  return fmt::format(
      "crash states tried: {}, violations: {}, seed: {} ({} during recovery; {} workloads, {} "
      "operations, {} moments)",
      states, violations.size(), seed, nested, workloads, operations, moments);
}

Snapshot::Snapshot(ModelState s, std::string w, uint64_t t)
    : state(std::move(s)), what(std::move(w)), time_ns(t), hash(state.tree_hash()) {}

CrashSweep::CrashSweep(uint64_t seed, const SweepOptions& options, SimImage base, ModelState state)
    : seed_(seed),
      options_(options),
      random_(mix64(seed, 0xc5)),
      base_(std::move(base)),
      state_(std::move(state)) {}

void CrashSweep::violation(const std::string& label, const std::string& what) {
  std::string text = fmt::format("seed {}: {}\n  {}\n  {}\n{}", seed_, label, what,
                                 options_.volume.describe(), describe(done_));
  if (!quiet_) std::fprintf(stderr, "VIOLATION %s", text.c_str());
  if (report_.violations.size() < kViolationsMax) report_.violations.push_back(std::move(text));
}

bool CrashSweep::run(const std::vector<Operation>& operations) {
  return run_operations(nullptr, &operations, operations.size());
}

bool CrashSweep::run_random(const WorkloadShape& shape, size_t count) {
  WorkloadGenerator generator(random_.next(), shape);
  return run_operations(&generator, nullptr, count);
}

bool CrashSweep::run_operations(WorkloadGenerator* generator, const std::vector<Operation>* script,
                                size_t count) {
  const size_t violations_before = report_.violations.size();
  report_.workloads++;
  done_.clear();
  history_.clear();
  moments_.clear();
  during_.reset();
  floor_ = 0;
  last_unsettled_ = 0;
  history_.emplace_back(state_, "the start", 0);
  set_current_case(fmt::format("seed {}, workload {} ({})", seed_, report_.workloads,
                               options_.volume.describe()));
  {
    TestVolume volume(random_.next(), base_, options_.volume);
    const Result<> opened = volume.open();
    if (!opened) {
      violation("opening a clean volume", describe(opened.error()));
      return false;
    }
    if (!only_after_syncs_) volume.observer = [this, &volume] { observe(volume); };
    for (size_t i = 0; i < count; ++i) {
      const Operation operation = script != nullptr ? (*script)[i] : generator->next(state_);
      if (!step(volume, operation)) return false;
    }
    if (only_after_syncs_) observe(volume);
    during_.reset();
    volume.device.refuse_writes(0, 0);
    const Result<> closed = volume.close();
    volume.observer = nullptr;
    if (!closed) {
      violation("closing the volume", describe(closed.error()));
      return false;
    }
    volume.settle();
    state_.close_all();
    base_ = volume.device.image();
  }
  check_moments();
  return report_.violations.size() == violations_before;
}

bool CrashSweep::step(TestVolume& volume, const Operation& operation) {
  done_.push_back(operation);
  report_.operations++;
  if (options_.outage_chance > 0) change_outage(volume);
  predict(operation);
  const uint64_t started_ns = volume.world.clock.monotonic_ns();
  const bool was_stalled = volume.fs().store().stall().stalled;
  const uint64_t refused = volume.device.counters().writes_refused;
  const OperationResult result = volume.perform(operation);
  const bool may_be_refused = was_stalled || volume.device.counters().writes_refused != refused;
  if (may_be_refused && result.error && result.error->code == Code::kIo) {
    const bool accepted = accept_refusal(volume, operation, started_ns);
    during_.reset();
    return accepted;
  }
  ModelState after = state_;
  const std::string wrong = after.check(operation, result);
  if (wrong.empty()) {
    record(operation, result, after, volume.world.clock.monotonic_ns());
    state_ = std::move(after);
  }
  during_.reset();
  if (!wrong.empty()) {
    violation("an answer during the workload", wrong);
    return false;
  }
  const bool durable =
      operation.kind == OperationKind::kSync || operation.kind == OperationKind::kCheckpoint;
  if (durable && result.ok()) {
    floor_ = history_.size() - 1;
    if (random_.chance(options_.moment_chance)) {
      if (only_after_syncs_) {
        observe(volume);
      } else {
        take(volume, CrashMode::kDropAll, 0);
      }
    }
  }
  return true;
}

void CrashSweep::change_outage(TestVolume& volume) {
  const uint64_t now_ns = volume.world.clock.monotonic_ns();
  if (volume.fs().store().stall().stalled && random_.chance(kOutageEndChance)) {
    volume.device.refuse_writes(0, 0);
  }
  if (!random_.chance(options_.outage_chance)) return;
  const uint64_t from_ns = now_ns + random_.below(2) * random_.below(kOutageNsMin << random_.below(6));
  const uint64_t length_ns = kOutageNsMin << random_.below(kOutageDoublings);
  volume.device.refuse_writes(from_ns, random_.below(3) == 0 ? UINT64_MAX : from_ns + length_ns);
}

// The device fails writes, and the operation was answered so.
bool CrashSweep::accept_refusal(TestVolume& volume, const Operation& operation, uint64_t started_ns) {
  report_.refusals++;
  const uint64_t now_ns = volume.world.clock.monotonic_ns();
  if (now_ns - started_ns > kPromptNs && operation.kind != OperationKind::kPass) {
    violation("an error during an outage", fmt::format("it came after {} ns", now_ns - started_ns));
    return false;
  }
  if (!changes_tree(operation.kind)) return true;
  auto tree = volume.tree();
  if (!tree) {
    violation("reading the tree during an outage", describe(tree.error()));
    return false;
  }
  const std::string unlike_before = difference(state_, *tree);
  if (unlike_before.empty()) return true;
  ModelState after = state_;
  const ModelAnswer answer = after.perform(operation);
  std::vector<ModelState> possible;
  if (is_copy(operation.kind)) possible = state_.partial_copies(operation, answer.expected.value);
  possible.push_back(std::move(after));
  std::string unlike_after;
  for (ModelState& state : possible) {
    unlike_after = difference(state, *tree);
    if (!unlike_after.empty()) continue;
    history_.emplace_back(state, "after the refused " + describe(operation), now_ns);
    state_ = std::move(state);
    return true;
  }
  violation("an operation that an outage refused is done in part",
            fmt::format("not as before: {}\n  nor as after: {}", unlike_before, unlike_after));
  return false;
}

// What the operation may leave behind if the power goes while it is under way.
void CrashSweep::predict(const Operation& operation) {
  if (!changes_tree(operation.kind) || only_after_syncs_) return;
  auto states = std::make_shared<std::vector<Snapshot>>();
  ModelState after = state_;
  const ModelAnswer answer = after.perform(operation);
  if (!answer.errors.empty()) return;
  if (is_copy(operation.kind)) {
    for (ModelState& partial : state_.partial_copies(operation, answer.expected.value)) {
      states->emplace_back(std::move(partial), "in the middle of the copy", 0);
    }
  }
  states->emplace_back(std::move(after), "after the operation under way", 0);
  during_ = std::move(states);
}

// Appends the states that the operation, now done, went through.
void CrashSweep::record(const Operation& operation, const OperationResult& result,
                        const ModelState& after, uint64_t now_ns) {
  if (!changes_tree(operation.kind) || !result.ok()) return;
  if (is_copy(operation.kind)) {
    for (ModelState& partial : state_.partial_copies(operation, result.value)) {
      history_.emplace_back(std::move(partial), "in the middle of " + describe(operation), now_ns);
    }
  }
  history_.emplace_back(after, "after " + describe(operation), now_ns);
}

size_t CrashSweep::floor_at(uint64_t now_ns) const {
  size_t floor = floor_;
  const StoreOptions& store = options_.volume.store;
  if (!store.background || options_.outage_chance > 0) return floor;
  const uint64_t age_ns = store.commit_interval_ns + kCommitSlackNs;
  while (floor + 1 < history_.size() && history_[floor + 1].time_ns + age_ns < now_ns) floor++;
  return floor;
}

void CrashSweep::observe(TestVolume& volume) {
  const size_t unsettled = volume.device.unsettled_count();
  const bool flushed = unsettled < last_unsettled_;
  last_unsettled_ = unsettled;
  if (!random_.chance(options_.moment_chance)) return;
  report_.moments++;
  if (flushed || unsettled == 0) take(volume, CrashMode::kDropAll, 0);
  if (unsettled == 0) return;
  if (only_after_syncs_) take(volume, CrashMode::kDropAll, 0);
  if (only_after_syncs_ || random_.below(3) == 0) take(volume, CrashMode::kKeepAll, 0);
  if (random_.below(4) == 0) take(volume, CrashMode::kKeepCompleted, 0);
  for (uint32_t i = 0; i < options_.random_images; ++i) {
    take(volume, CrashMode::kRandom, random_.next());
  }
}

void CrashSweep::take(TestVolume& volume, CrashMode mode, uint64_t seed) {
  moments_.push_back(Moment{
      volume.device.crash_image(seed, mode), floor_at(volume.world.clock.monotonic_ns()),
      history_.size(), during_,
      fmt::format("workload {}, crash in operation {} at device operation {}, {} (image seed {:#x})",
                  report_.workloads, done_.empty() ? 0 : done_.size() - 1,
                  volume.device.operation_count(), name_of_mode(mode), seed)});
}

void CrashSweep::check_moments() {
  std::vector<Moment> moments = std::move(moments_);
  moments_.clear();
  for (const Moment& moment : moments) {
    if (report_.states >= options_.states_max) return;
    if (report_.violations.size() >= kViolationsMax) return;
    check(moment, false);
  }
}

const Snapshot* CrashSweep::match(const Moment& moment, const ModelState& tree,
                                  std::string* wrong) const {
  const uint64_t hash = tree.tree_hash();
  std::vector<const Snapshot*> allowed;
  if (moment.during != nullptr) {
    for (const Snapshot& snapshot : *moment.during) allowed.push_back(&snapshot);
  }
  for (size_t i = moment.count; i-- > moment.floor;) allowed.push_back(&history_[i]);
  for (const Snapshot* snapshot : allowed) {
    if (snapshot->hash != hash) continue;
    *wrong = difference(snapshot->state, tree);
    if (wrong->empty()) return snapshot;
  }
  if (!wrong->empty()) return nullptr;
  COFS_ASSERT(!allowed.empty());
  for (size_t i = 0; i < history_.size(); ++i) {
    if (history_[i].hash != hash) continue;
    *wrong = fmt::format("the tree is that {} (state {}), allowed are {} to {}", history_[i].what,
                         i, moment.floor, moment.count - 1);
    return nullptr;
  }
  const Snapshot& newest = *allowed.front();
  const Snapshot& oldest = *allowed.back();
  *wrong = fmt::format("the tree never was like this. It is not that {}: {}\n  nor that {}: {}\n{}",
                       oldest.what, difference(oldest.state, tree), newest.what,
                       difference(newest.state, tree), describe(tree));
  return nullptr;
}

void CrashSweep::check(const Moment& moment, bool nested) {
  report_.states++;
  if (nested) report_.nested++;
  const std::string label = moment.label;
  const uint64_t world_seed = random_.next();
  set_current_case(fmt::format("seed {}, {}, world seed {:#x} ({})", seed_, label, world_seed,
                               options_.volume.describe()));
  std::vector<std::pair<SimImage, bool>> deeper;  // image, and whether the volume was open by then
  TestVolume volume(world_seed, moment.image, options_.volume);
  const bool sweep_recovery = !nested && random_.chance(options_.nested_chance);
  if (sweep_recovery) {
    volume.observer = [&] {
      if (deeper.size() >= kNestedImagesMax || volume.device.unsettled_count() == 0) return;
      const CrashMode mode = random_.below(4) == 0 ? CrashMode::kKeepAll : CrashMode::kRandom;
      deeper.emplace_back(volume.device.crash_image(random_.next(), mode), volume.is_open());
    };
  }
  const Result<> opened = volume.open();
  if (!opened) {
    violation(label, "cannot be opened: " + describe(opened.error()));
    return;
  }
  auto tree = volume.tree();
  if (!tree) {
    violation(label, "cannot be read: " + describe(tree.error()));
    return;
  }
  std::string wrong;
  const Snapshot* found = match(moment, *tree, &wrong);
  if (found == nullptr) {
    violation(label, wrong);
    return;
  }
  if (random_.chance(options_.verify_chance)) {
    volume.settle();
    const std::string problems = volume.verify(random_.below(4) == 0);
    if (!problems.empty()) {
      violation(label, "verify() finds (state " + found->what + "):\n" + problems);
      return;
    }
  }
  volume.observer = nullptr;
  const bool reused = random_.chance(options_.reuse_chance);
  if (reused && !go_on(volume, *found, label)) return;
  if (!reused && random_.chance(options_.remount_chance)) {
    const Result<> closed = volume.close();
    if (!closed) violation(label, "cannot be closed: " + describe(closed.error()));
    if (closed && !same_tree(volume, found->state, label)) return;
  }
  for (auto& [image, was_open] : deeper) {
    Moment inner = moment;
    inner.image = image;
    inner.label = label + (was_open ? ", then another after recovery" : ", then another in recovery");
    if (was_open) {
      auto only = std::make_shared<std::vector<Snapshot>>();
      only->push_back(*found);
      inner.during = std::move(only);
      inner.floor = inner.count;
    }
    check(inner, true);
  }
}

// The volume must stay usable: some more operations, and everything still as it should be.
bool CrashSweep::go_on(TestVolume& volume, const Snapshot& found, const std::string& label) {
  ModelState state = found.state;
  state.close_all();
  WorkloadShape shape;
  shape.question_chance = 0.4;
  WorkloadGenerator generator(random_.next(), shape);
  std::vector<Operation> more;
  for (size_t i = 0; i <= kFurtherOperations; ++i) {
    const bool last = i == kFurtherOperations;
    more.push_back(last ? Operation(OperationKind::kSync) : generator.next(state));
    const std::string wrong = state.check(more.back(), volume.perform(more.back()));
    if (wrong.empty()) continue;
    violation(label + ", further operations", wrong + "\n" + describe(more));
    return false;
  }
  volume.settle();
  const std::string problems = volume.verify(true);
  if (!problems.empty()) {
    violation(label + ", further operations", problems + describe(more));
    return false;
  }
  const Result<> closed = volume.close();
  if (!closed) {
    violation(label + ", further operations", "close: " + describe(closed.error()));
    return false;
  }
  state.close_all();
  return same_tree(volume, state, label + ", further operations\n" + describe(more));
}

bool CrashSweep::same_tree(TestVolume& volume, const ModelState& state, const std::string& label) {
  const Result<> opened = volume.open();
  std::string wrong;
  if (!opened) {
    wrong = describe(opened.error());
  } else {
    auto tree = volume.tree();
    wrong = tree ? difference(state, *tree) : describe(tree.error());
  }
  if (!wrong.empty()) violation(label + ", opened again", wrong);
  return wrong.empty();
}

}  // namespace cofs
