// Workloads: where operations come from. A seeded generator that looks at the model to ask for mostly
// possible things, and the bounded set of operations for exhaustive sequences.
//
// The name space is kept small (a few names in a few directories), so that operations meet on the same
// objects: that is where bugs are (ACE, CrashMonkey: two or three operations on few files find most).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/testing/model_fs.h"
#include "tests/testing/operation.h"
#include "tests/testing/sim_random.h"

namespace cofs {

struct WorkloadShape {
  uint32_t names = 4;               // per directory
  uint32_t directories_deep = 2;    // levels of directories below the root
  uint64_t file_bytes_max = 96 * 1024;  // where most reads and writes lie
  uint64_t write_bytes_max = 32 * 1024;
  double far_chance = 0.03;         // of an offset up to 16 TiB
  double wrong_chance = 0.08;       // of asking for something that should fail
  double question_chance = 0.25;    // of an operation that only asks
  double sync_chance = 0.10;
  double checkpoint_chance = 0.02;
  double pass_chance = 0;           // of time going by …
  uint64_t pass_ns_max = 3'000'000'000;  // … up to this
  uint32_t xattr_bytes_max = 5000;

  static WorkloadShape random(uint64_t seed);
};

class WorkloadGenerator {
 public:
  WorkloadGenerator(uint64_t seed, const WorkloadShape& shape) : random_(seed), shape_(shape) {}

  // An operation for a tree that is as `state` says.
  Operation next(const ModelState& state);

 private:
  using Kind = OperationKind;
  Kind choose_kind();
  Operation of_kind(Kind kind, const ModelState& state);
  void aim_at_file(Operation& op, const ModelState& state);
  std::string directory(const ModelState& state);
  std::string fresh_path(const ModelState& state);
  std::string existing(const ModelState& state, bool (*wanted)(const ModelNode&));
  std::string any_path(const ModelState& state);
  int slot(const ModelState& state, bool open);
  uint64_t file_offset(const ModelState& state, const Operation& op);
  uint64_t write_length();
  std::string xattr_name();
  std::string symlink_target();

  Operation make(Kind kind, const ModelState& state);
  Operation move(Kind kind, const ModelState& state);
  Operation change_data(Kind kind, const ModelState& state);
  Operation share(Kind kind, const ModelState& state);
  Operation change_attributes(Kind kind, const ModelState& state);
  Operation ask(Kind kind, const ModelState& state);

  SimRandom random_;
  WorkloadShape shape_;
};

// The tree that exhaustive sequences start from, and the operations they are made of: two directories A
// and B, files foo and bar in each (A/foo: several blocks, B/bar: a few bytes, the others absent).
std::vector<Operation> exhaustive_start();
std::vector<Operation> exhaustive_operations();

// A fixed mix of every kind of change with syncs and a checkpoint, for fault sweeps.
std::vector<Operation> scripted_mix();

}  // namespace cofs
