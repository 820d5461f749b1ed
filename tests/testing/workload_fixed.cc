// The workloads that are not drawn: the operations of exhaustive sequences, and the mix for fault sweeps.
#include <sys/stat.h>

#include "tests/testing/workload.h"

namespace cofs {
namespace {

using Kind = OperationKind;

Operation data(Kind kind, const char* path, uint64_t offset, uint64_t length, uint64_t seed) {
  Operation op(kind, path);
  op.offset = offset;
  op.length = length;
  op.seed = seed;
  return op;
}

Operation allocate(const char* path, AllocateMode mode, uint64_t offset, uint64_t length) {
  Operation op(Kind::kAllocate, path);
  op.offset = offset;
  op.length = length;
  op.flags = static_cast<uint32_t>(mode);
  return op;
}

Operation make(Kind kind, const char* path, uint32_t mode = 0644) {
  Operation op(kind, path);
  op.mode = mode;
  return op;
}

Operation rename(const char* from, const char* to, uint32_t flags = 0) {
  Operation op(Kind::kRename, from, to);
  op.flags = flags;
  return op;
}

Operation xattr(Kind kind, const char* path, const char* name, uint64_t length = 0,
                uint64_t seed = 0) {
  Operation op(kind, path);
  op.text = name;
  op.length = length;
  op.seed = seed;
  return op;
}

Operation copy(const char* from, uint64_t offset, const char* to, uint64_t offset2,
               uint64_t length) {
  Operation op(Kind::kCopyRange, from, to);
  op.offset = offset;
  op.offset2 = offset2;
  op.length = length;
  return op;
}

Operation symlink(const char* path, const char* target) {
  Operation op(Kind::kMakeSymlink, path);
  op.text = target;
  return op;
}

Operation slot_op(Kind kind, int slot, const char* path = "") {
  Operation op(kind, path);
  op.slot = slot;
  return op;
}

}  // namespace

std::vector<Operation> exhaustive_start() {
  return {
      make(Kind::kMakeDirectory, "/A", 0755),
      make(Kind::kMakeDirectory, "/B", 0755),
      make(Kind::kCreate, "/A/foo"),
      data(Kind::kWrite, "/A/foo", 0, 5 * kBlockBytes + 100, 11),
      xattr(Kind::kSetXattr, "/A/foo", "user.old", 20, 12),
      make(Kind::kCreate, "/B/bar"),
      data(Kind::kWrite, "/B/bar", 0, 300, 13),
  };
}

std::vector<Operation> exhaustive_operations() {
  return {
      make(Kind::kCreate, "/A/bar"),
      make(Kind::kCreate, "/B/foo"),
      make(Kind::kMakeDirectory, "/A/C", 0755),
      make(Kind::kMakeDirectory, "/B/foo", 0755),
      make(Kind::kMakeNode, "/A/bar", S_IFIFO | 0600),
      symlink("/A/bar", "foo"),
      data(Kind::kWrite, "/A/foo", 0, kBlockBytes, 21),              // overwrite
      data(Kind::kWrite, "/A/foo", 1000, 2 * kBlockBytes, 22),       // unaligned
      data(Kind::kWrite, "/A/foo", 16 * kBlockBytes, kBlockBytes, 23),  // beyond the end
      data(Kind::kWrite, "/B/bar", 100, 50, 24),                     // inline
      data(Kind::kWrite, "/B/bar", 0, 3 * kBlockBytes, 25),          // no longer inline
      data(Kind::kAppend, "/A/foo", 0, 2 * kBlockBytes, 26),
      data(Kind::kAppend, "/B/bar", 0, 64, 27),
      data(Kind::kTruncate, "/A/foo", 0, 0, 0),
      data(Kind::kTruncate, "/A/foo", kBlockBytes + 77, 0, 0),
      data(Kind::kTruncate, "/A/foo", 40 * kBlockBytes, 0, 0),
      data(Kind::kTruncate, "/B/bar", 10, 0, 0),
      allocate("/A/foo", AllocateMode::kAllocate, 4 * kBlockBytes, 6 * kBlockBytes),
      allocate("/A/foo", AllocateMode::kKeepSize, 8 * kBlockBytes, 4 * kBlockBytes),
      allocate("/A/foo", AllocateMode::kPunchHole, kBlockBytes, 2 * kBlockBytes),
      allocate("/A/foo", AllocateMode::kPunchHole, 100, 2 * kBlockBytes),
      allocate("/A/foo", AllocateMode::kZeroRange, 2 * kBlockBytes, 6 * kBlockBytes),
      allocate("/B/bar", AllocateMode::kZeroKeepSize, 10, 1000),
      copy("/A/foo", 0, "/B/bar", 0, 4 * kBlockBytes),
      copy("/A/foo", 0, "/A/foo", 8 * kBlockBytes, 4 * kBlockBytes),
      copy("/A/foo", 33, "/B/bar", 77, 3 * kBlockBytes),
      copy("/B/bar", 0, "/A/foo", 2 * kBlockBytes, 4096),
      Operation(Kind::kLink, "/A/foo", "/A/bar"),
      Operation(Kind::kLink, "/A/foo", "/B/foo"),
      Operation(Kind::kLink, "/B/bar", "/A/bar"),
      Operation(Kind::kUnlink, "/A/foo"),
      Operation(Kind::kUnlink, "/A/bar"),
      Operation(Kind::kUnlink, "/B/foo"),
      Operation(Kind::kUnlink, "/B/bar"),
      Operation(Kind::kRemoveDirectory, "/A/C"),
      Operation(Kind::kRemoveDirectory, "/B"),
      rename("/A/foo", "/A/bar"),
      rename("/A/foo", "/B/bar"),
      rename("/B/bar", "/A/foo"),
      rename("/A/bar", "/A/foo"),
      rename("/A", "/B/foo"),
      rename("/A/C", "/B/C"),
      rename("/A/foo", "/B/bar", 2),
      rename("/A", "/B", 2),
      rename("/A/foo", "/B/foo", 4),
      make(Kind::kChmod, "/A/foo", 0600),
      xattr(Kind::kSetXattr, "/A/foo", "user.old", 30, 28),
      xattr(Kind::kSetXattr, "/B/bar", "user.new", 3000, 29),
      xattr(Kind::kRemoveXattr, "/A/foo", "user.old"),
  };
}

std::vector<Operation> scripted_mix() {
  std::vector<Operation> script = exhaustive_start();
  const std::vector<Operation> more = {
      Operation(Kind::kSync),
      slot_op(Kind::kOpen, 0, "/A/foo"),
      data(Kind::kWrite, "/A/foo", 1000, 60'000, 31),
      make(Kind::kCreate, "/A/bar"),
      data(Kind::kWrite, "/A/bar", 0, 200'000, 32),
      Operation(Kind::kSync),
      Operation(Kind::kLink, "/A/bar", "/B/foo"),
      copy("/A/bar", 0, "/A/foo", 8 * kBlockBytes, 100'000),
      copy("/A/bar", 5, "/B/bar", 77, 10'000),
      allocate("/A/bar", AllocateMode::kPunchHole, 5000, 50'000),
      Operation(Kind::kCheckpoint),
      data(Kind::kRead, "/A/foo", 0, 100'000, 0),
      data(Kind::kTruncate, "/A/bar", 120'001, 0, 0),
      xattr(Kind::kSetXattr, "/B/bar", "user.long", 9000, 33),
      symlink("/B/link", "somewhere"),
      rename("/B/bar", "/A/moved"),
      Operation(Kind::kUnlink, "/A/foo"),
      data(Kind::kRead, "/A/bar", 0, 130'000, 0),
      Operation(Kind::kSync),
      make(Kind::kMakeDirectory, "/A/C", 0755),
      rename("/A/C", "/B/C"),
      data(Kind::kWrite, "/A/bar", 50'000, 70'000, 34),
      slot_op(Kind::kClose, 0),
      rename("/A/moved", "/B/foo", 2),
      data(Kind::kAppend, "/A/moved", 0, 5000, 35),
      Operation(Kind::kCheckpoint),
      data(Kind::kRead, "/A/moved", 0, 130'000, 0),
      xattr(Kind::kRemoveXattr, "/B/foo", "user.long"),
      Operation(Kind::kRemoveDirectory, "/B/C"),
      data(Kind::kWrite, "/B/foo", 0, 20'000, 36),
      Operation(Kind::kSync),
  };
  script.insert(script.end(), more.begin(), more.end());
  return script;
}

}  // namespace cofs
