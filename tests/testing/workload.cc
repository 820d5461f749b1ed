#include "tests/testing/workload.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint64_t kFarBytes = 16ULL << 40;
constexpr uint64_t kSharedBytesMax = 1ULL << 20;  // by one clone or dedupe; sparse files are larger

struct Weight {
  OperationKind kind;
  uint32_t weight;
};
constexpr Weight kChanges[] = {
    {OperationKind::kCreate, 10},       {OperationKind::kMakeDirectory, 5},
    {OperationKind::kMakeNode, 2},      {OperationKind::kMakeSymlink, 3},
    {OperationKind::kMakeUnnamed, 1},   {OperationKind::kLink, 5},
    {OperationKind::kUnlink, 6},        {OperationKind::kRemoveDirectory, 3},
    {OperationKind::kRename, 8},        {OperationKind::kOpen, 3},
    {OperationKind::kClose, 3},         {OperationKind::kWrite, 22},
    {OperationKind::kAppend, 7},        {OperationKind::kTruncate, 7},
    {OperationKind::kAllocate, 7},      {OperationKind::kCopyRange, 7},
    {OperationKind::kClone, 6},
    {OperationKind::kChmod, 3},         {OperationKind::kChown, 2},
    {OperationKind::kSetTimes, 3},      {OperationKind::kSetXattr, 6},
    {OperationKind::kRemoveXattr, 3},
};
constexpr Weight kQuestions[] = {
    {OperationKind::kRead, 12},       {OperationKind::kReadDirectory, 4},
    {OperationKind::kReadSymlink, 1}, {OperationKind::kStat, 6},
    {OperationKind::kGetXattr, 3},    {OperationKind::kListXattrs, 2},
    {OperationKind::kSeekData, 3},    {OperationKind::kSeekHole, 3},
    {OperationKind::kDedupe, 4},      {OperationKind::kStatfs, 1},
};

template <size_t N>
OperationKind draw(const Weight (&weights)[N], SimRandom& random) {
  uint64_t total = 0;
  for (const Weight& weight : weights) total += weight.weight;
  uint64_t pick = random.below(total);
  for (const Weight& weight : weights) {
    if (pick < weight.weight) return weight.kind;
    pick -= weight.weight;
  }
  return weights[0].kind;
}

bool is_file(const ModelNode& node) { return node.is_regular(); }
bool is_directory(const ModelNode& node) { return node.is_directory(); }
bool is_not_directory(const ModelNode& node) { return !node.is_directory(); }
bool is_link(const ModelNode& node) { return node.is_symlink(); }
bool is_anything(const ModelNode&) { return true; }

}  // namespace

WorkloadShape WorkloadShape::random(uint64_t seed) {
  SimRandom random(mix64(seed, 0x5a));
  WorkloadShape shape;
  shape.names = static_cast<uint32_t>(random.between(2, 6));
  shape.directories_deep = static_cast<uint32_t>(random.between(1, 3));
  shape.file_bytes_max = 4096ULL << random.below(8);
  shape.write_bytes_max = random.between(1, 4) * 16 * 1024;
  shape.far_chance = random.below(3) == 0 ? 0.05 : 0;
  shape.sync_chance = 0.02 * static_cast<double>(random.between(1, 10));
  shape.checkpoint_chance = 0.01 * static_cast<double>(random.below(6));
  shape.xattr_bytes_max = random.below(4) == 0 ? 66'000 : 3000;
  return shape;
}

Operation WorkloadGenerator::next(const ModelState& state) { return of_kind(choose_kind(), state); }

OperationKind WorkloadGenerator::choose_kind() {
  if (random_.chance(shape_.sync_chance)) return Kind::kSync;
  if (random_.chance(shape_.checkpoint_chance)) return Kind::kCheckpoint;
  if (random_.chance(shape_.pass_chance)) return Kind::kPass;
  if (random_.chance(shape_.question_chance)) return draw(kQuestions, random_);
  return draw(kChanges, random_);
}

Operation WorkloadGenerator::of_kind(Kind kind, const ModelState& state) {
  switch (kind) {
    case Kind::kCreate:
    case Kind::kMakeDirectory:
    case Kind::kMakeNode:
    case Kind::kMakeSymlink:
    case Kind::kMakeUnnamed: return make(kind, state);
    case Kind::kLink:
    case Kind::kUnlink:
    case Kind::kRemoveDirectory:
    case Kind::kRename:
    case Kind::kOpen:
    case Kind::kClose: return move(kind, state);
    case Kind::kWrite:
    case Kind::kAppend:
    case Kind::kTruncate:
    case Kind::kAllocate:
    case Kind::kCopyRange: return change_data(kind, state);
    case Kind::kClone:
    case Kind::kDedupe: return share(kind, state);
    case Kind::kChmod:
    case Kind::kChown:
    case Kind::kSetTimes:
    case Kind::kSetXattr:
    case Kind::kRemoveXattr: return change_attributes(kind, state);
    case Kind::kPass: {
      Operation op(kind);
      op.length = random_.between(1, shape_.pass_ns_max);
      return op;
    }
    case Kind::kSync:
    case Kind::kCheckpoint:
    case Kind::kStatfs: return Operation(kind);
    default: return ask(kind, state);
  }
}

std::string WorkloadGenerator::existing(const ModelState& state,
                                        bool (*wanted)(const ModelNode&)) {
  const std::vector<std::string> paths = state.paths(wanted);
  return paths.empty() ? any_path(state) : paths[random_.below(paths.size())];
}

std::string WorkloadGenerator::directory(const ModelState& state) {
  const std::vector<std::string> paths = state.paths(is_directory);
  const uint64_t pick = random_.below(paths.size() + 1);
  return pick == paths.size() ? "" : paths[pick];
}

std::string WorkloadGenerator::any_path(const ModelState& state) {
  return fmt::format("{}/n{}", directory(state), random_.below(shape_.names));
}

std::string WorkloadGenerator::fresh_path(const ModelState& state) {
  if (random_.chance(shape_.wrong_chance / 8)) {
    return directory(state) + "/" + std::string(random_.between(255, 256), 'L');
  }
  for (int attempt = 0; attempt < 8; ++attempt) {
    std::string path = any_path(state);
    if (!state.find(path) || random_.chance(shape_.wrong_chance)) return path;
  }
  return any_path(state);
}

int WorkloadGenerator::slot(const ModelState& state, bool open) {
  const auto first = static_cast<int>(random_.below(kSlotCount));
  for (int i = 0; i < kSlotCount; ++i) {
    const int candidate = (first + i) % kSlotCount;
    if (state.slot_open(candidate) == open) return candidate;
  }
  return -1;
}

void WorkloadGenerator::aim_at_file(Operation& op, const ModelState& state) {
  if (random_.below(6) == 0) op.slot = slot(state, true);
  if (op.slot < 0) {
    op.path = random_.chance(shape_.wrong_chance / 2) ? any_path(state) : existing(state, is_file);
  }
}

uint64_t WorkloadGenerator::write_length() {
  switch (random_.below(4)) {
    case 0: return random_.between(1, 200);
    case 1: return random_.between(1, 3) * kBlockBytes;
    default: return random_.between(1, shape_.write_bytes_max);
  }
}

uint64_t WorkloadGenerator::file_offset(const ModelState& state, const Operation& op) {
  if (random_.chance(shape_.far_chance)) return random_.below(kFarBytes);
  uint64_t size = 0;
  if (op.slot >= 0) {
    size = state.slot_node(op.slot).size;
  } else if (const auto found = state.find(op.path)) {
    size = state.node(*found).size;
  }
  switch (random_.below(6)) {
    case 0: return 0;
    case 1: return size;
    case 2: return random_.below(shape_.file_bytes_max / kBlockBytes + 1) * kBlockBytes;
    case 3: return random_.below(2300);  // around what is kept inline
    case 4: return random_.below(std::min(size, shape_.file_bytes_max) + 1);
    default: return random_.below(shape_.file_bytes_max);
  }
}

std::string WorkloadGenerator::xattr_name() {
  static const char* const kPrefixes[] = {"user.", "user.", "user.", "trusted.", "security."};
  if (random_.chance(shape_.wrong_chance / 2)) return "bogus.name";
  std::string name = kPrefixes[random_.below(std::size(kPrefixes))];
  name += static_cast<char>('a' + random_.below(4));
  if (random_.below(10) == 0) name += std::string(200, 'x');
  return name;
}

std::string WorkloadGenerator::symlink_target() {
  const uint64_t length = random_.below(6) == 0 ? random_.between(1000, 4095)
                                                : random_.between(1, 60);
  std::string target;
  while (target.size() < length) target += fmt::format("/t{}", random_.below(1000));
  target.resize(length);
  return target;
}

Operation WorkloadGenerator::make(Kind kind, const ModelState& state) {
  Operation op(kind, fresh_path(state));
  op.mode = static_cast<uint32_t>(random_.below(01000));
  if (kind == Kind::kMakeUnnamed) {
    op.slot = slot(state, false);
    if (op.slot < 0) return Operation(Kind::kStatfs);
    const std::string parent = directory(state);
    op.path = parent.empty() ? "/" : parent;
  } else if (kind == Kind::kMakeNode) {
    static constexpr uint32_t kTypes[] = {S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK, S_IFREG};
    op.mode |= kTypes[random_.below(std::size(kTypes))];
    op.offset = random_.below(1U << 20);
  } else if (kind == Kind::kMakeSymlink) {
    op.text = symlink_target();
  } else if (kind == Kind::kMakeDirectory) {
    const auto deep = static_cast<uint64_t>(std::count(op.path.begin(), op.path.end(), '/'));
    if (deep > shape_.directories_deep) op.kind = Kind::kCreate;
  }
  if (op.kind == Kind::kCreate) op.flags = random_.below(4) == 0 ? 1 : 0;
  return op;
}

Operation WorkloadGenerator::move(Kind kind, const ModelState& state) {
  const bool wrong = random_.chance(shape_.wrong_chance);
  Operation op(kind);
  switch (kind) {
    case Kind::kLink:
      op.path = wrong ? any_path(state) : existing(state, is_not_directory);
      if (random_.below(4) == 0) op.slot = slot(state, true);
      op.path2 = fresh_path(state);
      break;
    case Kind::kUnlink:
      op.path = wrong ? any_path(state) : existing(state, is_not_directory);
      break;
    case Kind::kRemoveDirectory:
      op.path = wrong ? any_path(state) : existing(state, is_directory);
      break;
    case Kind::kRename: {
      static constexpr uint32_t kFlags[] = {0, 0, 0, 0, 1, 2, 2, 4, 5};
      op.flags = kFlags[random_.below(std::size(kFlags))];
      if (wrong && random_.below(3) == 0) op.flags = static_cast<uint32_t>(random_.below(16));
      op.path = wrong ? any_path(state) : existing(state, is_anything);
      op.path2 = random_.below(2) == 0 || op.flags == 2 ? existing(state, is_anything)
                                                         : any_path(state);
      break;
    }
    case Kind::kOpen:
      op.slot = slot(state, false);
      if (op.slot < 0 || state.paths(is_file).empty()) return Operation(Kind::kStatfs);
      op.path = existing(state, is_file);
      op.flags = random_.below(8) == 0 ? 1 : 0;
      break;
    default:
      op.slot = slot(state, true);
      if (op.slot < 0) return Operation(Kind::kStatfs);
  }
  return op;
}

Operation WorkloadGenerator::change_data(Kind kind, const ModelState& state) {
  Operation op(kind);
  aim_at_file(op, state);
  op.offset = file_offset(state, op);
  op.length = write_length();
  op.seed = random_.below(12) == 0 ? 0 : random_.next() | 1;
  if (kind == Kind::kWrite) {
    op.flags = random_.below(8) == 0 ? 1 : 0;
    if (op.seed >> 61 == 1) {
      op.flags |= 2;
      const bool is_whole = (op.seed >> 60 & 1) == 0;
      if (is_whole) op.offset = op.offset / kBlockBytes * kBlockBytes;
      if (is_whole) op.length = blocks_of_bytes(op.length) * kBlockBytes;
    }
  } else if (kind == Kind::kAppend) {
    op.offset = 0;
  } else if (kind == Kind::kTruncate) {
    op.length = op.seed = 0;
  } else if (kind == Kind::kAllocate) {
    op.seed = 0;
    op.flags = static_cast<uint32_t>(random_.below(5));
    if (random_.below(3) == 0) op.offset = op.offset / kBlockBytes * kBlockBytes;
    if (random_.chance(shape_.wrong_chance / 4)) op.length = 0;
  } else if (kind == Kind::kCopyRange) {
    op.seed = 0;
    op.path2 = existing(state, is_file);
    op.offset2 = file_offset(state, op);
    if (random_.below(3) != 0) {  // what the device can copy
      op.offset = op.offset / kBlockBytes * kBlockBytes;
      op.offset2 = op.offset2 / kBlockBytes * kBlockBytes;
    }
    if (random_.below(2) == 0) op.length *= 2;
  }
  return op;
}

// Whole files most of the time, so that dedupes find something; sometimes what must be refused.
Operation WorkloadGenerator::share(Kind kind, const ModelState& state) {
  Operation op(kind);
  aim_at_file(op, state);
  op.path2 = existing(state, is_file);
  uint64_t size = 0;
  if (op.slot >= 0) {
    size = state.slot_node(op.slot).size;
  } else if (const auto found = state.find(op.path)) {
    size = state.node(*found).size;
  }
  op.length = size;
  if (random_.below(2) == 0) {
    op.offset = file_offset(state, op) / kBlockBytes * kBlockBytes;
    if (op.offset > size) op.offset = 0;
    op.length = size - op.offset;
    if (random_.below(2) == 0) {
      op.length = std::min(op.length, random_.between(1, 8) * kBlockBytes);
    }
    op.offset2 = random_.below(2) == 0 ? op.offset
                                       : random_.below(shape_.file_bytes_max / kBlockBytes + 1) *
                                             kBlockBytes;
  }
  op.length = std::min(op.length, kSharedBytesMax);
  if (random_.chance(shape_.wrong_chance)) {
    op.length += random_.below(kBlockBytes);
    if (random_.below(2) == 0) op.offset2 += random_.below(kBlockBytes);
  }
  if (kind == Kind::kClone && random_.below(2) == 0) {
    op.flags = static_cast<uint32_t>(random_.between(1, 4));
  }
  return op;
}

Operation WorkloadGenerator::change_attributes(Kind kind, const ModelState& state) {
  Operation op(kind, random_.chance(shape_.wrong_chance) ? any_path(state)
                                                         : existing(state, is_anything));
  if (kind == Kind::kChmod) {
    const auto found = state.find(op.path);
    op.mode = static_cast<uint32_t>(random_.below(01000));
    if (found && random_.below(4) == 0) {
      if (state.node(*found).is_directory()) op.mode |= S_ISGID;
      if (state.node(*found).is_regular()) op.mode |= S_ISUID | S_ISGID;
    }
  } else if (kind == Kind::kChown) {
    op.offset = random_.below(5000);
    op.offset2 = random_.below(5000);
  } else if (kind == Kind::kSetTimes) {
    op.offset = random_.below(4'000'000'000);
  } else {
    op.text = xattr_name();
    if (kind == Kind::kSetXattr) {
      op.length = random_.below(4) == 0 ? random_.below(shape_.xattr_bytes_max + 1)
                                        : random_.below(100);
      op.seed = random_.next() | 1;
      op.flags = random_.below(4) == 0 ? static_cast<uint32_t>(random_.between(1, 2)) : 0;
    }
  }
  return op;
}

Operation WorkloadGenerator::ask(Kind kind, const ModelState& state) {
  Operation op(kind);
  switch (kind) {
    case Kind::kRead:
    case Kind::kSeekData:
    case Kind::kSeekHole:
      aim_at_file(op, state);
      op.offset = file_offset(state, op);
      if (kind == Kind::kRead) op.length = random_.between(1, 2 * shape_.write_bytes_max);
      break;
    case Kind::kReadDirectory:
      op.path = directory(state);
      if (op.path.empty()) op.path = "/";
      op.length = random_.between(1, 20);
      break;
    case Kind::kReadSymlink: op.path = existing(state, is_link); break;
    case Kind::kGetXattr: op.text = xattr_name(); [[fallthrough]];
    default: op.path = existing(state, is_anything);
  }
  return op;
}

}  // namespace cofs
