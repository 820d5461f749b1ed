// The words of the filesystem's interface: attributes, callers, results. No libfuse type, no errno.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "offload/base/buffer.h"
#include "offload/base/executor.h"

namespace cofs {

// Who asks. Permission checks are the kernel's (default_permissions); this decides ownership of new
// files and what a change of data or owner does to setuid and setgid bits.
struct Caller {
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t umask = 0;        // applied to new files unless the parent has a default ACL
  std::vector<uint32_t> groups;  // supplementary groups; only filled where an operation needs them
  Caller() = default;
  Caller(uint32_t u, uint32_t g, uint32_t mask) : uid(u), gid(g), umask(mask) {}
  bool in_group(uint32_t group) const {
    if (group == gid) return true;
    for (uint32_t g : groups) {
      if (g == group) return true;
    }
    return false;
  }
};

struct Attributes {
  uint64_t ino = 0;
  uint32_t mode = 0;  // type and permissions, as in stat(2)
  uint32_t nlink = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t rdev = 0;
  uint64_t size = 0;
  uint64_t blocks = 0;  // 4 KiB blocks allocated or promised (data in memory counts)
  uint32_t flags = 0;   // ondisk::kInodeImmutable, kInodeAppend
  WallTime access_time;
  WallTime modify_time;
  WallTime change_time;
  WallTime birth_time;
};

struct AttributeChange {
  std::optional<uint32_t> mode;  // permission bits
  std::optional<uint32_t> uid;
  std::optional<uint32_t> gid;
  std::optional<uint64_t> size;
  std::optional<WallTime> access_time;
  std::optional<WallTime> modify_time;
  std::optional<WallTime> change_time;  // only the kernel's own cache sets it
  bool times_are_now = false;           // as touch(1) wants, who may not say which
  std::optional<uint32_t> flags;      // immutable and append bits only
  bool kill_privileges = false;       // whoever asks is not privileged: setuid and setgid go
  AttributeChange() = default;
};

// Whether somebody who changes a file's data is not privileged, so that the file loses setuid, setgid and
// security.capability by it. Of his groups one is known; in a file of that group setgid stays where the group may not
// execute it, since Linux leaves it there to members.
class Unprivileged {
 public:
  Unprivileged() = default;
  Unprivileged(bool is) : is_(is) {}  // a member of no group
  Unprivileged(bool is, uint32_t gid) : is_(is), gid_(gid) {}
  explicit operator bool() const { return is_; }
  uint32_t gid() const { return gid_; }

 private:
  bool is_ = false;
  uint32_t gid_ = UINT32_MAX;  // no group's number
};

// What a file is opened for.
struct OpenIntent {
  bool write = false;
  bool append = false;    // each write goes to the end of the file
  bool truncate = false;
  Unprivileged kill_privileges;  // whoever truncates it so
};

// File data on its way in: the bytes [offset, offset + length) of a file in a buffer whose first byte
// stands for file offset (offset rounded down to a block); so blocks of the file are blocks of the
// buffer. hashes[i] is block_hash() of buffer block i where the write covers that block whole, else
// anything. Made outside the core by whoever received the bytes (WriteData::fill).
struct WriteData {
  uint64_t offset = 0;
  uint32_t length = 0;
  BufferRef buffer;
  std::vector<uint64_t> hashes;

  WriteData() = default;
  // Copies `length` (at most 1 MiB) bytes at `source` into a buffer of the pool and hashes the blocks.
  static WriteData fill(BufferPool& pool, uint64_t offset, const void* source, uint32_t length);
  // Takes a buffer that holds the bytes from its begin on, and hashes the blocks. REQUIRES: `offset` begins a block.
  static WriteData adopt(BufferRef buffer, uint64_t offset, uint32_t length);

 private:
  void hash_whole_blocks();
};

// File data on its way out: bytes [skip, skip + length) of the buffer.
struct ReadData {
  BufferRef buffer;
  uint32_t skip = 0;
  uint32_t length = 0;
  ReadData() = default;
  const std::byte* data() const { return buffer->data() + skip; }
};

struct DirectoryEntry {
  std::string name;
  uint64_t ino = 0;
  uint8_t type = 0;     // DT_*
  uint64_t cookie = 0;  // pass to read_directory to go on after this entry
};

// --- Copies between files ---

enum class CloneMode : uint8_t { kDevice, kShare };  // independent copies, or shared blocks
// What the attribute `user.cofs.clone` of an inode says; kMount: nothing. kUnknown: not looked at yet.
enum class CloneChoice : uint8_t { kUnknown, kMount, kDevice, kShare };
inline CloneMode clone_mode_of(CloneChoice choice, CloneMode mount) {
  if (choice == CloneChoice::kShare) return CloneMode::kShare;
  return choice == CloneChoice::kDevice ? CloneMode::kDevice : mount;
}

struct CopyRequest {
  uint64_t source = 0;         // inode numbers
  uint64_t source_offset = 0;  // bytes, as are the others
  uint64_t target = 0;
  uint64_t target_offset = 0;
  uint64_t length = 0;
  uint64_t source_handle = 0;  // of the open file that is read, for what it announced; 0: none
  Unprivileged kill_privileges;  // as with a write
  // Asked between two steps: true when nobody waits for the copy any more, which ends then. May be empty.
  std::function<bool()> abandoned;
  bool is_abandoned() const { return abandoned && abandoned(); }
  CopyRequest() = default;
};
struct CopyResult {
  uint64_t bytes = 0;
};

// An open file, as the server of the mount knows it.
struct OpenFile {
  uint64_t handle = 0;  // a number of this open alone
  uint64_t ino = 0;
  bool readable = false;
  bool writable = false;
  OpenFile() = default;
};

// A strict clone that follows (COFS_IOC_ANNOUNCE).
struct Announcement {
  uint64_t source_offset = 0;
  uint64_t length = 0;         // bytes; 0: nothing follows
  uint64_t target_ino = 0;
  uint64_t target_offset = 0;
  Announcement() = default;
};

using DedupeToken = std::array<uint8_t, 16>;
struct DedupeRequest {
  DedupeToken token{};
  uint64_t source_offset = 0;
  uint64_t target_offset = 0;
  uint64_t length = 0;
  DedupeRequest() = default;
};
struct DedupeResult {
  bool same = true;
  uint64_t bytes = 0;
};

// A piece of a file's map: bytes of the file and where they lie.
struct MappedPiece {
  uint64_t logical = 0;
  uint64_t physical = 0;  // on the volume's device; 0: it has no place (of its own)
  uint64_t length = 0;
  bool delayed = false;    // in memory, no place yet
  bool unwritten = false;
  bool is_inline = false;  // in the inode's record
  bool shared = false;
  bool last = false;       // nothing of the file follows
};
struct FileMap {
  std::vector<MappedPiece> pieces;
  bool more = false;  // there is more within the range, after these
  FileMap() = default;
};

struct FsStatistics {  // statfs: blocks of 4 KiB
  uint64_t total_blocks = 0;
  uint64_t free_blocks = 0;
  uint64_t available_blocks = 0;
  uint64_t inodes = 0;
  uint64_t free_inodes = 0;
};

}  // namespace cofs
