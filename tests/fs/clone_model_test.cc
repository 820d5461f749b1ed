// Heavy sharing against the model: clones, dedupes, overwrites, truncations and punches over 64 files that
// are mostly copies of each other, with garbage collection as busy as it can be, and over crashes.
//
// COFS_CLONE_SEEDS: how many seeds (default 12); COFS_SEED: the first.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"
#include "tests/testing/model_fs.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kFiles = 64;
constexpr uint64_t kFileBlocks = 24;

VolumeOptions busy_volume(uint64_t seed) {
  VolumeOptions options = VolumeOptions::tiny(seed);
  options.device_blocks += 2048;
  options.store.gc = GcMode::kAggressive;
  if (seed % 3 == 0) {  // plain copies are made by the host, strict ones shared
    options.fs.clone_mode = CloneMode::kDevice;
    options.device.copies.clear();
  } else {
    options.fs.clone_mode = CloneMode::kShare;
  }
  return options;
}

class SharingWorkload {
 public:
  explicit SharingWorkload(uint64_t seed) : random_(mix64(seed, 0xc1)) {}

  // The files, some of them with data; then whatever the state allows.
  Operation next(const ModelState& state) {
    if (made_ < kFiles) {
      Operation create(OperationKind::kCreate, path_of(made_++));
      create.mode = 0644;
      return create;
    }
    if (filled_ < 4) return write(path_of(filled_++), 0, kFileBlocks * kBlockBytes);
    const std::string path = any_file();
    const uint64_t size = state.node(*state.find(path)).size;
    switch (random_.below(20)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4: return clone(OperationKind::kClone, path, size);
      case 5:
      case 6: return clone(OperationKind::kCopyRange, path, size);
      case 7:
      case 8: return clone(OperationKind::kDedupe, path, size);
      case 9:
      case 10:
      case 11:
      case 12: return write(path, random_.below(kFileBlocks * kBlockBytes), random_.between(1, 20'000));
      case 13: {
        Operation truncate(OperationKind::kTruncate, path);
        truncate.offset = random_.below(3) == 0 ? random_.below(kFileBlocks) * kBlockBytes
                                                : random_.below(kFileBlocks * kBlockBytes);
        return truncate;
      }
      case 14:
      case 15: {
        Operation punch(OperationKind::kAllocate, path);
        punch.flags = static_cast<uint32_t>(random_.below(3) == 0 ? AllocateMode::kZeroRange
                                                                  : AllocateMode::kPunchHole);
        punch.offset = random_.below(kFileBlocks * kBlockBytes);
        punch.length = random_.between(1, 30'000);
        return punch;
      }
      case 16: return Operation(OperationKind::kSync);
      case 17: return Operation(random_.below(3) == 0 ? OperationKind::kCheckpoint : OperationKind::kSync);
      case 18: {
        Operation read(OperationKind::kRead, path);
        read.length = kFileBlocks * kBlockBytes;
        return read;
      }
      default: return clone(OperationKind::kClone, path, size);
    }
  }

 private:
  static std::string path_of(uint64_t i) { return fmt::format("/f{}", i); }
  std::string any_file() { return path_of(random_.below(kFiles)); }

  Operation write(std::string path, uint64_t offset, uint64_t length) {
    Operation op(OperationKind::kWrite, std::move(path));
    op.offset = offset;
    op.length = length;
    op.seed = random_.next() | 1;
    return op;
  }
  Operation clone(OperationKind kind, std::string path, uint64_t size) {
    Operation op(kind, std::move(path), any_file());
    op.length = size;
    if (random_.below(3) == 0) {  // a part of it, to somewhere else
      op.offset = size == 0 ? 0 : random_.below(size) / kBlockBytes * kBlockBytes;
      op.length = std::min(size - op.offset, random_.between(1, 6) * kBlockBytes);
      op.offset2 = random_.below(kFileBlocks) * kBlockBytes;
    }
    if (kind == OperationKind::kClone && random_.below(3) == 0) {
      op.flags = static_cast<uint32_t>(random_.between(1, 5));
    }
    return op;
  }

  SimRandom random_;
  uint64_t made_ = 0;
  uint64_t filled_ = 0;
};

std::string content_of(TestVolume& volume, const std::string& path) {
  Operation read(OperationKind::kRead, path);
  read.length = 1 << 20;
  const OperationResult result = volume.perform(read);
  return result.ok() ? result.bytes : "error: " + describe(*result.error);
}

// Every answer, and after every step the files that it was about and one that it was not.
bool run_steps(uint64_t seed, size_t count) {
  const VolumeOptions options = busy_volume(seed);
  TestVolume volume(mix64(seed, 1), TestVolume::formatted(seed, options), options);
  SharingWorkload workload(seed);
  SimRandom random(mix64(seed, 2));
  ModelState state;
  std::vector<Operation> done;
  const auto fine = [&](const std::string& wrong) {
    if (wrong.empty()) return true;
    ADD_FAILURE() << "seed " << seed << " (" << options.describe() << "): " << wrong << "\n"
                  << describe(done);
    return false;
  };
  const auto opened = volume.open();
  if (!opened) return fine(describe(opened.error()));
  uint64_t most_shared = 0;
  for (size_t i = 0; i < count; i++) {
    done.push_back(workload.next(state));
    const Operation& operation = done.back();
    set_current_case(fmt::format("seed {}, operation {}: {}", seed, i, describe(operation)));
    if (!fine(state.check(operation, volume.perform(operation)))) return false;
    for (const std::string& path :
         {operation.path, operation.path2, fmt::format("/f{}", random.below(kFiles))}) {
      if (path.empty()) continue;
      const auto found = state.find(path);
      if (!found || !state.node(*found).is_regular()) continue;
      if (content_of(volume, path) != state.node(*found).read(0, 1 << 20)) {
        return fine(path + " differs after " + describe(operation));
      }
    }
    if (i % 40 == 39 || i + 1 == count) {
      volume.settle();
      if (!fine(volume.verify(i % 200 == 199))) return false;  // recomputes every reference
    }
    most_shared = std::max(most_shared, volume.fs().store().space().extra_references);
    if (random.below(150) == 0) {
      const auto closed = volume.close();
      if (!closed) return fine(describe(closed.error()));
      state.close_all();
      const auto again = volume.open();
      if (!again) return fine(describe(again.error()));
    }
  }
  EXPECT_GT(most_shared, 50U) << "seed " << seed << " shares next to nothing";
  auto tree = volume.tree();
  return tree ? fine(difference(state, *tree)) : fine(describe(tree.error()));
}

TEST(CloneModel, EveryStepIsAsTheModelSays) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t seeds = number_from_environment("COFS_CLONE_SEEDS", 12);
  for (uint64_t seed = first; seed < first + seeds; seed++) {
    if (!run_steps(seed, 400)) break;
  }
}

TEST(CloneModel, CrashesShowAStateThatWas) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t seeds = number_from_environment("COFS_CLONE_SEEDS", 12);
  SweepReport report;
  for (uint64_t seed = first; seed < first + seeds && report.violations.empty(); seed++) {
    SweepOptions options;
    options.volume = busy_volume(seed);
    options.moment_chance = 0.1;
    options.random_images = 2;
    options.verify_chance = 0.5;
    options.nested_chance = 0.005;
    CrashSweep sweep(seed, options, TestVolume::formatted(seed, options.volume), ModelState());
    SharingWorkload workload(seed);
    ModelState state;
    for (int part = 0; part < 3; part++) {
      std::vector<Operation> script;
      for (int i = 0; i < 80; i++) {
        script.push_back(workload.next(state));
        state.perform(script.back());
      }
      if (!sweep.run(script)) break;
      state = sweep.state();
    }
    report.add(sweep.report());
  }
  std::printf("%s\n", report.summary(first).c_str());
  EXPECT_GT(report.states, 0U);
  for (const std::string& violation : report.violations) ADD_FAILURE() << violation;
}

}  // namespace
}  // namespace cofs
