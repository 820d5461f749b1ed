// Bounded exhaustive crash testing (after CrashMonkey's ACE): all sequences of one and of two operations
// on four files in two directories, each with and without a sync after each operation; the power goes
// right after each sync and at the end.
//
// COFS_ACE_STRIDE: about every n-th sequence of two only (default 1: all of them).
#include <gtest/gtest.h>

#include <cstdio>

#include "offload/base/checksum.h"
#include "tests/testing/crash_sweep.h"

namespace cofs {
namespace {

class Exhaustive {
 public:
  Exhaustive() {
    options_.volume.device_blocks = 2048;
    options_.volume.format.segment_blocks = 64;
    options_.volume.format.node_bytes = 4096;
    options_.volume.store.background = false;
    options_.random_images = 1;
    options_.nested_chance = 0;
    options_.verify_chance = 0.25;
    options_.reuse_chance = 0.01;
    options_.remount_chance = 0.01;
    prepare();
  }

  bool run(const std::vector<Operation>& operations) {
    CrashSweep sweep(number_++, options_, *base_, state_);
    sweep.only_after_syncs(true);
    const bool fine = sweep.run(operations);
    report_.add(sweep.report());
    return fine;
  }
  const SweepReport& report() const { return report_; }

 private:
  // The image with the starting tree on it, clean.
  void prepare() {
    TestVolume volume(1, TestVolume::formatted(1, options_.volume), options_.volume);
    ASSERT_TRUE(volume.open());
    for (const Operation& operation : exhaustive_start()) {
      ASSERT_EQ(state_.check(operation, volume.perform(operation)), "");
    }
    ASSERT_TRUE(volume.close());
    volume.settle();
    base_ = volume.device.image();
  }

  SweepOptions options_;
  std::optional<SimImage> base_;
  ModelState state_;
  SweepReport report_;
  uint64_t number_ = 1;
};

// The sequence with a sync after operation i where bit i of the mask is set.
std::vector<Operation> with_syncs(const std::vector<Operation>& operations, uint32_t mask) {
  std::vector<Operation> sequence;
  for (size_t i = 0; i < operations.size(); ++i) {
    sequence.push_back(operations[i]);
    if ((mask >> i & 1) != 0) sequence.push_back(Operation(OperationKind::kSync));
  }
  return sequence;
}

void report(const Exhaustive& exhaustive) {
  std::printf("%s\n", exhaustive.report().summary(1).c_str());
  for (const std::string& violation : exhaustive.report().violations) ADD_FAILURE() << violation;
}

TEST(Ace, SequencesOfOne) {
  Exhaustive exhaustive;
  bool fine = true;
  for (const Operation& operation : exhaustive_operations()) {
    for (const uint32_t mask : {0U, 1U}) {
      if (fine) fine = exhaustive.run(with_syncs({operation}, mask));
    }
  }
  report(exhaustive);
}

TEST(Ace, SequencesOfTwo) {
  const uint64_t stride = std::max<uint64_t>(1, number_from_environment("COFS_ACE_STRIDE", 1));
  Exhaustive exhaustive;
  const std::vector<Operation> operations = exhaustive_operations();
  uint64_t number = 0;
  bool fine = true;
  for (const Operation& first : operations) {
    for (const Operation& second : operations) {
      for (const uint32_t mask : {0U, 1U, 2U, 3U}) {
        const bool chosen = mix64(number++, 9) % stride == 0;
        if (fine && chosen) fine = exhaustive.run(with_syncs({first, second}, mask));
      }
    }
  }
  report(exhaustive);
}

}  // namespace
}  // namespace cofs
