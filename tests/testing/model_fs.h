// ModelState: what a POSIX tree ought to be, as an immutable value. The oracle of every filesystem test.
//
// A state is a vector of shared nodes; a change copies the nodes it touches, so a workload can keep the
// state after each of its operations and a crash test can ask which of them it sees again. Nodes are
// numbered by the model and know no inode numbers. All-zero blocks are not kept, so two files are equal
// exactly when their bytes are. Times are compared only where an operation set them explicitly and
// nothing changed them since. Not for: space (a caller that met kNoSpace keeps the former state).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/testing/operation.h"

namespace cofs {

// A block of a file that is not all zeros.
struct ModelBlock {
  std::array<char, kBlockBytes> bytes;
  uint64_t hash = 0;
};
using ModelBlockRef = std::shared_ptr<const ModelBlock>;

struct ModelNode {
  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t nlink = 0;
  uint64_t rdev = 0;
  uint64_t size = 0;    // of files and symlinks
  uint32_t parent = 0;  // of directories
  bool linkable = false;  // made without a name (O_TMPFILE) and not linked yet
  std::optional<WallTime> modify_time;  // where it is known
  std::map<std::string, std::string> xattrs;
  std::string target;                       // of symlinks
  std::map<std::string, uint32_t> entries;  // of directories: node numbers
  std::map<uint64_t, ModelBlockRef> blocks; // of files

  bool is_directory() const;
  bool is_regular() const;
  bool is_symlink() const;

  std::string read(uint64_t offset, uint64_t length) const;  // clipped to the size
  void write(uint64_t offset, std::string_view bytes);       // grows the size
  void zero(uint64_t offset, uint64_t length);               // within the size or not; size stays
  void resize(uint64_t new_size);
  // setuid and setgid: what a change of data by somebody of this group, or of none, clears
  void drop_privileges(std::optional<uint32_t> group = {});
  void change_owner();     // clears setuid, and setgid with group execute
  // The first byte at or after `offset` that is not zero, at block granularity; none: nullopt.
  std::optional<uint64_t> next_nonzero_block(uint64_t offset) const;
  // Of everything but entries, link targets and the time.
  uint64_t content_hash() const;

 private:
  void edit_block(uint64_t block, uint64_t from, std::string_view bytes);
};

// What the operation must answer. `errors` empty: it must succeed with the fields given.
struct ModelAnswer {
  std::vector<Code> errors;
  OperationResult expected;
  std::shared_ptr<const ModelNode> node;  // kStat, kSeekData, kSeekHole: whom it is about
};

class ModelState {
 public:
  static constexpr uint32_t kRoot = 0;
  static constexpr int32_t kClosed = -1;

  ModelState();  // an empty root directory, mode 0755, owner 0:0

  // Does the operation if it can be done and says what must come back. `copied`: how many bytes a
  // a copy really copied; by default all it could.
  ModelAnswer perform(const Operation& operation, std::optional<uint64_t> copied = std::nullopt);

  // perform() on a copy, compared with what the filesystem answered. Takes over the new state if the
  // operation succeeded there. "" or one line saying what is wrong. kNoSpace is allowed, but not to
  // what frees space or only asks.
  std::string check(const Operation& operation, const OperationResult& result);

  // The states that a copy of `bytes` may be caught in on its way: after each block boundary.
  std::vector<ModelState> partial_copies(const Operation& operation, uint64_t bytes) const;

  // No file is open any more (a crash, an unmount); files without a name are gone.
  void close_all();

  const ModelNode& node(uint32_t number) const { return *nodes_.at(number); }
  std::optional<uint32_t> find(const std::string& path) const;
  bool slot_open(int slot) const { return slots_.at(static_cast<size_t>(slot)) != kClosed; }
  const ModelNode& slot_node(int slot) const {
    return node(static_cast<uint32_t>(slots_.at(static_cast<size_t>(slot))));
  }
  // All paths below the root, of the kind that `wanted` accepts.
  std::vector<std::string> paths(bool (*wanted)(const ModelNode&)) const;

  // What lies below a directory, as a tree of its own.
  ModelState subtree(uint32_t directory) const;

  // For building a state out of a tree that was read.
  uint32_t add(ModelNode node);
  ModelNode& edit(uint32_t number);

  // Equal states have equal hashes; times and files without a name do not count.
  uint64_t tree_hash() const;

 private:
  using Answer = ModelAnswer;
  struct Walk {
    std::vector<Code> errors;
    uint32_t parent = 0;
    std::string name;
    std::optional<uint32_t> node;
  };
  Walk walk(const std::string& path) const;
  std::optional<uint32_t> file_of(const Operation& op, std::vector<Code>& errors) const;
  uint64_t hash_below(uint32_t number) const;
  void touch(uint32_t directory);
  void drop_link(uint32_t number);
  bool open_anywhere(uint32_t number) const;
  uint32_t child_group(uint32_t parent) const;

  // model_names.cc
  Answer make(const Operation& op);
  Answer make_unnamed(const Operation& op);
  Answer link(const Operation& op);
  Answer remove(const Operation& op);
  Answer rename(const Operation& op);
  std::vector<Code> rename_errors(const Operation& op, const Walk& from, const Walk& to) const;
  void exchange(const Walk& from, const Walk& to);
  Answer set_attributes(const Operation& op);
  Answer xattr(const Operation& op);
  Answer read_directory(const Operation& op) const;
  Answer inquire(const Operation& op) const;
  // model_data.cc
  Answer open_close(const Operation& op);
  Answer write(const Operation& op);
  Answer truncate(const Operation& op);
  Answer allocate(const Operation& op);
  Answer copy(const Operation& op, std::optional<uint64_t> copied);
  Answer dedupe(const Operation& op) const;
  // The two files of a copy or dedupe; nothing with answer.errors filled.
  struct TwoFiles {
    uint32_t source = 0;
    uint32_t target = 0;
  };
  std::optional<TwoFiles> two_files(const Operation& op, Answer& answer) const;
  bool clone_allowed(const Operation& op, TwoFiles files) const;
  Answer read(const Operation& op) const;

  std::vector<std::shared_ptr<const ModelNode>> nodes_;
  std::array<int32_t, kSlotCount> slots_;
};

// "" if the trees are the same, else what differs first. Known times of `model` must be those in `tree`.
std::string difference(const ModelState& model, const ModelState& tree);
// "" if `result` is what `answer` wants.
std::string mismatch(const Operation& operation, const ModelAnswer& answer,
                     const OperationResult& result);
// A line per object, for failure messages.
std::string describe(const ModelState& state);

}  // namespace cofs
