// CrashSweep: runs a workload once, and asks of every moment of it: had the power gone now, would the
// volume come back as it must?
//
// While the workload runs, the sweep takes crash images of the device after each step in which the
// device got or finished work (cheap: images share pages), together with what may be found on them.
// What may be found is promise 2 of the design: the tree as it was after some operation, not before
// the last sync that was reported done (nor before `commit_interval_ns` ago where the store commits by
// itself), not after the operation that was under way. A copy may be caught at a block boundary.
// Then each image is mounted in a world of its own: recovery, comparison, verify(); for some, more
// operations, a clean remount, or further crashes during the recovery.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/model_fs.h"
#include "tests/testing/test_volume.h"
#include "tests/testing/workload.h"

namespace cofs {

struct SweepOptions {
  VolumeOptions volume;
  uint32_t random_images = 3;     // per moment, besides the extreme ones
  double moment_chance = 1;       // of a moment being used
  double nested_chance = 0.02;    // of an image: crashes during its recovery are swept, too
  double verify_chance = 1;       // of an image: verify(); a fourth of these read all data
  double reuse_chance = 0.1;      // of an image: further operations, sync, verify
  double remount_chance = 0.1;    // of an image: close and open again
  // Of an operation: from a moment in it on the device refuses writes, for a while or until told. What is answered by
  // kIo then has changed nothing, or all that it was to change; nothing waits for the device, and nothing is lost.
  double outage_chance = 0;
  uint64_t states_max = UINT64_MAX;  // of all workloads together; then sampling gets sparse and ends
  SweepOptions() = default;
};

struct SweepReport {
  uint64_t states = 0;       // crash images tried, nested ones included
  uint64_t nested = 0;       // of them, images of a crash during recovery
  uint64_t workloads = 0;
  uint64_t operations = 0;
  uint64_t moments = 0;
  uint64_t refusals = 0;     // operations that were answered by an error because of an outage
  std::vector<std::string> violations;
  void add(const SweepReport& other);
  std::string summary(uint64_t seed) const;  // "crash states tried: …, violations: …, seed: …"
};

// The state after an operation (or in the middle of a copy).
struct Snapshot {
  ModelState state;
  std::string what;
  uint64_t time_ns = 0;  // when the operation ended
  uint64_t hash = 0;
  Snapshot(ModelState s, std::string w, uint64_t t);
};

class CrashSweep {
 public:
  // `base` holds a cleanly closed volume whose tree is `state`.
  CrashSweep(uint64_t seed, const SweepOptions& options, SimImage base, ModelState state);

  // The operations one after the other on the volume, from its clean state to a clean close, then the
  // check of all crash images taken on the way. The next run goes on from there. False: something is
  // wrong with the run itself, or with a crash; report() says what.
  bool run(const std::vector<Operation>& operations);
  // The same with operations drawn as it goes.
  bool run_random(const WorkloadShape& shape, size_t count);
  // Takes images only right after each kSync and at the end, not at each moment.
  void only_after_syncs(bool on) { only_after_syncs_ = on; }

  // Violations are expected: they are only collected, not printed.
  void quiet() { quiet_ = true; }

  const SweepReport& report() const { return report_; }
  const ModelState& state() const { return state_; }

 private:
  // A crash image and the snapshots that may be on it: history_[floor, count) and those of `during`.
  struct Moment {
    SimImage image;
    size_t floor;
    size_t count;
    std::shared_ptr<const std::vector<Snapshot>> during;
    std::string label;
  };

  bool run_operations(WorkloadGenerator* generator, const std::vector<Operation>* script,
                      size_t count);
  bool step(TestVolume& volume, const Operation& operation);
  void predict(const Operation& operation);
  void change_outage(TestVolume& volume);
  bool accept_refusal(TestVolume& volume, const Operation& operation, uint64_t started_ns);
  void record(const Operation& operation, const OperationResult& result, const ModelState& after,
              uint64_t now_ns);
  void observe(TestVolume& volume);
  void take(TestVolume& volume, CrashMode mode, uint64_t seed);
  size_t floor_at(uint64_t now_ns) const;

  void check_moments();
  void check(const Moment& moment, bool nested);
  const Snapshot* match(const Moment& moment, const ModelState& tree, std::string* wrong) const;
  bool go_on(TestVolume& volume, const Snapshot& found, const std::string& label);
  bool same_tree(TestVolume& volume, const ModelState& state, const std::string& label);
  void violation(const std::string& label, const std::string& what);

  const uint64_t seed_;
  SweepOptions options_;
  SimRandom random_;
  SimImage base_;
  ModelState state_;
  bool only_after_syncs_ = false;
  bool quiet_ = false;
  SweepReport report_;

  // Of the run under way.
  std::vector<Operation> done_;
  std::vector<Snapshot> history_;
  std::shared_ptr<const std::vector<Snapshot>> during_;
  std::vector<Moment> moments_;
  size_t floor_ = 0;
  size_t last_unsettled_ = 0;
};

// The number in an environment variable, or the default.
uint64_t number_from_environment(const char* name, uint64_t otherwise);

}  // namespace cofs
