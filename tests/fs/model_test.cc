// FileSystem against the model: random operations without crashes, every answer compared, with the
// whole tree and verify() compared now and then, and over remounts.
//
// COFS_MODEL_SEEDS: how many seeds (default 40); COFS_SEED: the first.
#include <gtest/gtest.h>

#include <fmt/format.h>
#include <sys/stat.h>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"
#include "tests/testing/model_fs.h"
#include "tests/testing/test_volume.h"
#include "tests/testing/workload.h"

namespace cofs {
namespace {

Operation write_op(const char* path, uint64_t offset, uint64_t length, uint64_t seed) {
  Operation op(OperationKind::kWrite, path);
  op.offset = offset;
  op.length = length;
  op.seed = seed;
  return op;
}

// --- The model by itself ---

TEST(Model, BlocksOfZerosAreNotKept) {
  ModelNode node;
  node.write(100, "abc");
  node.write(3 * kBlockBytes, pattern_bytes(5, 0, kBlockBytes));
  EXPECT_EQ(node.blocks.size(), 2U);
  EXPECT_EQ(node.size, 4 * uint64_t{kBlockBytes});
  EXPECT_EQ(node.read(98, 6), (std::string{'\0', '\0', 'a', 'b', 'c', '\0'}));
  EXPECT_EQ(node.next_nonzero_block(kBlockBytes), 3 * uint64_t{kBlockBytes});
  node.zero(0, kBlockBytes);
  EXPECT_EQ(node.blocks.size(), 1U);
  node.resize(3 * kBlockBytes + 10);
  node.resize(4 * kBlockBytes);
  EXPECT_EQ(node.read(3 * kBlockBytes + 10, 100), std::string(100, '\0'));
}

TEST(Model, StatesAreValues) {
  ModelState state;
  state.perform(Operation(OperationKind::kMakeDirectory, "/a"));
  state.perform(Operation(OperationKind::kCreate, "/a/f"));
  const ModelState before = state;
  const uint64_t hash = before.tree_hash();
  state.perform(write_op("/a/f", 0, 5000, 7));
  EXPECT_NE(state.tree_hash(), hash);
  EXPECT_EQ(before.tree_hash(), hash);
  EXPECT_EQ(difference(before, before), "");
  EXPECT_NE(difference(before, state), "");
  state.perform(Operation(OperationKind::kUnlink, "/a/f"));
  EXPECT_EQ(state.perform(Operation(OperationKind::kRemoveDirectory, "/a")).errors.size(), 0U);
}

TEST(Model, HardLinksAreTold) {
  ModelState linked;
  linked.perform(Operation(OperationKind::kCreate, "/x"));
  linked.perform(Operation(OperationKind::kLink, "/x", "/y"));
  linked.perform(Operation(OperationKind::kCreate, "/z"));
  ModelState other;
  other.perform(Operation(OperationKind::kCreate, "/y"));
  other.perform(Operation(OperationKind::kLink, "/y", "/z"));
  other.perform(Operation(OperationKind::kCreate, "/x"));
  EXPECT_NE(difference(linked, other), "");
}

TEST(Model, RenameRules) {
  ModelState state;
  for (const char* path : {"/d", "/d/e", "/x"}) {
    state.perform(Operation(OperationKind::kMakeDirectory, path));
  }
  state.perform(Operation(OperationKind::kCreate, "/f"));
  auto errors = [&](const char* from, const char* to, uint32_t flags) {
    ModelState copy = state;
    Operation op(OperationKind::kRename, from, to);
    op.flags = flags;
    return copy.perform(op).errors;
  };
  EXPECT_EQ(errors("/d", "/d/e/g", 0), std::vector{Code::kInvalid});
  EXPECT_EQ(errors("/d/e", "/d", 0), std::vector{Code::kNotEmpty});
  EXPECT_EQ(errors("/d/e", "/d", 2), std::vector{Code::kInvalid});
  EXPECT_EQ(errors("/f", "/x", 0), std::vector{Code::kIsDirectory});
  EXPECT_EQ(errors("/x", "/f", 0), std::vector{Code::kNotDirectory});
  EXPECT_EQ(errors("/f", "/x", 1), std::vector{Code::kExists});
  EXPECT_EQ(errors("/f", "/new", 2), std::vector{Code::kNoEntry});
  EXPECT_TRUE(errors("/d/e", "/x", 0).empty());
  EXPECT_TRUE(errors("/d", "/f", 2).empty());
}

// --- The filesystem ---

class Comparison {
 public:
  Comparison(uint64_t seed, const VolumeOptions& options)
      : seed_(seed),
        options_(options),
        volume_(mix64(seed, 1), TestVolume::formatted(seed, options), options) {}

  bool open() { return fine("open", volume_.open()); }
  bool step(const Operation& operation) {
    done_.push_back(operation);
    set_current_case(fmt::format("seed {} ({}), operation {}: {}", seed_, options_.describe(),
                                 done_.size() - 1, describe(operation)));
    const OperationResult result = volume_.perform(operation);
    if (result.error && result.error->code == Code::kNoSpace) times_full_++;
    return fine(state_.check(operation, result));
  }
  bool same_tree() {
    auto tree = volume_.tree();
    if (!tree) return fine("reading the tree: " + describe(tree.error()));
    return fine(difference(state_, *tree));
  }
  bool verify() {
    volume_.settle();
    return fine(volume_.verify(true));
  }
  bool remount() {
    if (!fine("close", volume_.close())) return false;
    state_.close_all();
    return open() && same_tree();
  }
  const ModelState& state() const { return state_; }
  uint64_t times_full() const { return times_full_; }

 private:
  bool fine(const std::string& wrong) {
    if (wrong.empty()) return true;
    ADD_FAILURE() << "seed " << seed_ << " (" << options_.describe() << "): " << wrong << "\n"
                  << describe(done_);
    return false;
  }
  bool fine(const char* what, const Result<>& result) {
    return fine(result ? "" : std::string(what) + ": " + describe(result.error()));
  }

  const uint64_t seed_;
  const VolumeOptions options_;
  TestVolume volume_;
  ModelState state_;
  std::vector<Operation> done_;
  uint64_t times_full_ = 0;
};

bool run_comparison(uint64_t seed, const VolumeOptions& options, size_t operations) {
  set_current_case(fmt::format("seed {} ({})", seed, options.describe()));
  Comparison comparison(seed, options);
  if (!comparison.open()) return false;
  WorkloadShape shape = WorkloadShape::random(seed);
  if (options.store.background) shape.pass_chance = 0.05;
  WorkloadGenerator generator(mix64(seed, 2), shape);
  SimRandom random(mix64(seed, 3));
  for (size_t i = 0; i < operations; ++i) {
    if (!comparison.step(generator.next(comparison.state()))) return false;
    if (random.below(60) == 0 && !comparison.same_tree()) return false;
    if (random.below(100) == 0 && !comparison.verify()) return false;
    if (random.below(120) == 0 && !comparison.remount()) return false;
  }
  return comparison.same_tree() && comparison.verify() && comparison.remount() &&
         comparison.verify();
}

TEST(FileSystemModel, RandomOperationsOnTinyVolumes) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t count = number_from_environment("COFS_MODEL_SEEDS", 40);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    VolumeOptions options = VolumeOptions::tiny(seed);
    options.store.background = seed % 3 == 0;
    if (!run_comparison(seed, options, 300)) break;
  }
  std::printf("seeds %llu to %llu\n", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + count - 1));
}

TEST(FileSystemModel, RandomOperationsOnARoomyVolume) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t count = (number_from_environment("COFS_MODEL_SEEDS", 40) + 7) / 8;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    VolumeOptions options;
    options.device_blocks = 64 * 1024;
    options.device.seed = seed;
    options.store.background = true;
    if (!run_comparison(seed, options, 600)) break;
  }
}

// Promise 4: a full volume says so, and deleting cures it, again and again.
bool fill_and_empty(uint64_t seed) {
  VolumeOptions options = VolumeOptions::tiny(seed);
  options.device_blocks = std::min<uint64_t>(options.device_blocks, 3000);
  set_current_case(fmt::format("full volume, seed {} ({})", seed, options.describe()));
  Comparison comparison(seed, options);
  if (!comparison.open()) return false;
  WorkloadShape shape = WorkloadShape::random(seed);
  shape.question_chance = 0.1;
  shape.file_bytes_max = 4 << 20;
  shape.write_bytes_max = 256 << 10;
  WorkloadGenerator generator(mix64(seed, 5), shape);
  for (int round = 0; round < 3; ++round) {
    const uint64_t full_before = comparison.times_full();
    for (int i = 0; i < 300; ++i) {
      if (!comparison.step(generator.next(comparison.state()))) return false;
    }
    // The rest of the space, then more of everything with none left.
    for (uint64_t i = 0; i < 400 && comparison.times_full() < full_before + 3; ++i) {
      const std::string path = fmt::format("/fill{}", i / 4);
      Operation create(OperationKind::kCreate, path);
      create.flags = 1;
      if (!comparison.step(create)) return false;
      if (!comparison.state().find(path)) continue;
      if (!comparison.step(write_op(path.c_str(), i % 4 << 18, 1 << 18, i + 1))) return false;
    }
    for (int i = 0; i < 100; ++i) {
      if (!comparison.step(generator.next(comparison.state()))) return false;
    }
    EXPECT_GT(comparison.times_full(), full_before) << "never full, seed " << seed;
    if (!comparison.same_tree()) return false;
    for (int slot = 0; slot < kSlotCount; ++slot) {
      Operation close(OperationKind::kClose);
      close.slot = slot;
      if (comparison.state().slot_open(slot) && !comparison.step(close)) return false;
    }
    for (const std::string& path :
         comparison.state().paths([](const ModelNode& node) { return !node.is_directory(); })) {
      if (!comparison.step(Operation(OperationKind::kUnlink, path))) return false;
    }
    const uint64_t full_now = comparison.times_full();
    if (!comparison.step(Operation(OperationKind::kSync))) return false;
    Operation create(OperationKind::kCreate, "/cured");
    const bool cured = comparison.step(create) &&
                       comparison.step(write_op("/cured", 0, 1 << 20, seed)) &&
                       comparison.times_full() == full_now;
    EXPECT_TRUE(cured) << "deleting did not help, seed " << seed << ", round " << round;
    if (!cured || !comparison.verify() || !comparison.remount()) return false;
    if (!comparison.step(Operation(OperationKind::kUnlink, "/cured"))) return false;
  }
  return true;
}

TEST(FileSystemModel, AFullVolumeIsCuredByDeleting) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t count = (number_from_environment("COFS_MODEL_SEEDS", 40) + 3) / 4;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    if (!fill_and_empty(seed)) break;
  }
}

TEST(FileSystemModel, TheFixedScriptsGiveTheModelsAnswers) {
  VolumeOptions options;
  options.device_blocks = 8192;
  options.store.background = false;
  for (const auto& script : {scripted_mix(), exhaustive_start()}) {
    Comparison comparison(1, options);
    ASSERT_TRUE(comparison.open());
    for (const Operation& operation : script) ASSERT_TRUE(comparison.step(operation));
    EXPECT_TRUE(comparison.same_tree() && comparison.verify() && comparison.remount());
  }
}

}  // namespace
}  // namespace cofs
