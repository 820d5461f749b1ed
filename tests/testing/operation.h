// Operation: one filesystem call as data, so that a workload can be generated, printed, replayed, and
// applied both to a FileSystem and to the model.
//
// Files are named by absolute path, or by a slot: a small table of open files that outlive their names.
// perform() plays the kernel's part: it resolves paths by lookup, and forgets inodes that lost their
// last name and are not open. Not for: deciding what the right answer is (tests/testing/model_fs.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fs/filesystem.h"

namespace cofs {

enum class OperationKind : uint8_t {
  kCreate,           // path, mode; flags 1: not exclusive
  kMakeDirectory,    // path, mode
  kMakeNode,         // path, mode, offset = rdev
  kMakeSymlink,      // path; text = target
  kMakeUnnamed,      // path = directory; slot is filled
  kLink,             // path or slot → path2
  kUnlink,           // path
  kRemoveDirectory,  // path
  kRename,           // path → path2, flags
  kOpen,             // path; slot is filled; flags 1: truncate
  kClose,            // slot
  kWrite,            // file, offset, length, seed; flags 1: kill privileges, 2: direct
  kAppend,           // file, length, seed
  kTruncate,         // file, offset = size
  kAllocate,         // file, offset, length; flags = AllocateMode
  kCopyRange,        // file, offset → path2, offset2; length
  kClone,            // the same, announced; flags = blocks of a piece, 0: all at once
  kChmod,            // path, mode
  kChown,            // path, offset = uid, offset2 = gid
  kSetTimes,         // path, offset = seconds
  kSetXattr,         // path, text = name, length, seed; flags 1: create only, 2: replace only
  kRemoveXattr,      // path, text = name
  // Questions: nothing changes, the answer is compared.
  kRead,             // file, offset, length
  kReadDirectory,    // path; length = entries per call
  kReadSymlink,      // path
  kStat,             // file
  kGetXattr,         // path, text = name
  kListXattrs,       // path
  kSeekData,         // file, offset
  kSeekHole,         // file, offset
  kDedupe,           // file, offset → path2, offset2; length: nothing changes that can be seen
  kStatfs,
  // Durability and time.
  kSync,
  kCheckpoint,
  kPass,             // length = nanoseconds go by
};

struct Operation {
  OperationKind kind = OperationKind::kSync;
  std::string path;
  std::string path2;
  std::string text;
  int slot = -1;  // below 0: by path
  uint64_t offset = 0;
  uint64_t offset2 = 0;
  uint64_t length = 0;
  uint64_t seed = 0;  // of the bytes written; 0: zeros
  uint32_t mode = 0;
  uint32_t flags = 0;

  Operation() = default;
  explicit Operation(OperationKind k, std::string p = {}, std::string p2 = {})
      : kind(k), path(std::move(p)), path2(std::move(p2)) {}
};

// One line, for failure messages.
std::string describe(const Operation& operation);
std::string describe(const std::vector<Operation>& operations);
std::string_view name_of(OperationKind kind);
// Whether the operation can change what a reader of the tree sees.
bool changes_tree(OperationKind kind);
// Whether it copies bytes from file to file, and may be caught, or end, half-way.
bool is_copy(OperationKind kind);

// The bytes that a write with `seed` puts at [offset, +length) of a file: any two seeds or places differ.
std::string pattern_bytes(uint64_t seed, uint64_t offset, uint64_t length);

// What came back. Of the fields only those that the kind names are filled.
struct OperationResult {
  std::optional<Error> error;
  uint64_t value = 0;   // kCopyRange, kClone: bytes; kDedupe: bytes that are the same; kSeek…: offset; kWrite, kAppend: unused
  std::string bytes;    // kRead, kReadSymlink, kGetXattr
  std::vector<std::pair<std::string, uint8_t>> entries;  // kReadDirectory: without "." and ".."
  std::vector<std::string> names;                        // kListXattrs
  Attributes attributes;                                 // kStat
  FsStatistics statistics;                               // kStatfs
  bool ok() const { return !error.has_value(); }
};

inline constexpr int kSlotCount = 4;

// The caller's open files. kClosed: nothing is open in the slot.
class OpenFiles {
 public:
  static constexpr uint64_t kClosed = 0;
  OpenFiles() { inodes_.fill(kClosed); }
  uint64_t at(int slot) const { return inodes_.at(static_cast<size_t>(slot)); }
  void set(int slot, uint64_t ino) { inodes_.at(static_cast<size_t>(slot)) = ino; }
  bool holds(uint64_t ino) const {
    for (uint64_t open : inodes_) {
      if (open == ino) return true;
    }
    return false;
  }

 private:
  std::array<uint64_t, kSlotCount> inodes_;
};

// Does it (all but kPass). The operation, the files and the filesystem outlive the task.
Task<OperationResult> perform(FileSystem& fs, OpenFiles& files, const Operation& operation);

// The inode that a path names.
Task<Result<uint64_t>> resolve_path(FileSystem& fs, const std::string& path);

}  // namespace cofs
