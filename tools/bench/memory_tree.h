// MemoryTree: the names, attributes and data of a filesystem that is in memory only, for memory_server. It checks what a
// benchmark's programs can do wrong, not what the kernel of a FUSE server sees to.
//
// Thread safety: whoever calls holds `lock`, exclusively unless it is said otherwise.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cofs {

// Memory for data. Nothing is given back to the system.
class ChunkPool {
 public:
  static constexpr size_t kChunkBytes = 16U << 10;
  static constexpr size_t kSlabBytes = 64U << 20;  // what is asked of the system at once

  // So much is there from the beginning, as cofs's buffers soon are: a multiple of kSlabBytes.
  explicit ChunkPool(size_t ready_bytes);
  char* take();  // its bytes are any
  void give_back(char* chunk);

 private:
  void add_slab();

  std::vector<char*> free_;
};

// Names in the order in which they came. A place is never used again, so that a listing can go on from where it was.
class MemoryDirectory {
 public:
  struct Entry {
    std::string name;  // empty: removed
    uint64_t ino = 0;
  };

  uint64_t find(std::string_view name) const;  // 0: there is none
  void add(std::string_view name, uint64_t ino);
  void remove(std::string_view name);  // REQUIRES: it is there
  bool empty() const { return places_.empty(); }
  const std::deque<Entry>& entries() const { return entries_; }

 private:
  std::deque<Entry> entries_;  // elements stay where they are
  std::unordered_map<std::string_view, size_t> places_;
};

struct MemoryInode {
  struct stat status {};
  uint64_t lookups = 0;       // that the kernel has not forgotten
  std::vector<char*> chunks;  // of a file; null, or beyond the end: zeros
  MemoryDirectory directory;  // of a directory
  uint64_t parent = 0;        // of a directory
  std::string target;         // of a symbolic link
};

struct NewNode {
  mode_t mode = 0;  // with the type
  uid_t uid = 0;
  gid_t gid = 0;
  std::string_view target;  // of a symbolic link
};

class MemoryTree {
 public:
  static constexpr uint64_t kRoot = 1;
  static constexpr uint64_t kFileBytesMax = 1ULL << 40;
  static constexpr uint64_t kKeptBytes = 64U << 20;  // of a file; what is beyond reads as zeros

  explicit MemoryTree(size_t ready_bytes);

  std::shared_mutex lock;

  // REQUIRES: the kernel knows it, or it has a name.
  MemoryInode& at(uint64_t ino) { return *inodes_[ino]; }
  const MemoryInode& at(uint64_t ino) const { return *inodes_[ino]; }

  // Null: the name is there.
  MemoryInode* make(uint64_t parent, std::string_view name, const NewNode& node);
  // These return an errno, or 0.
  int link(uint64_t ino, uint64_t parent, std::string_view name);
  int remove(uint64_t parent, std::string_view name);
  int rename(uint64_t parent, std::string_view name, uint64_t new_parent, std::string_view new_name, bool may_replace);

  void resize(MemoryInode& inode, uint64_t bytes);
  // Makes room for a write; and the write itself, for which the lock may be shared.
  void prepare_write(MemoryInode& inode, uint64_t offset, size_t length);
  static void write(const MemoryInode& inode, uint64_t offset, const char* bytes, size_t length);

  void forget(uint64_t ino, uint64_t lookups);

 private:
  void release_if_unused(uint64_t ino);

  std::vector<std::unique_ptr<MemoryInode>> inodes_;  // by number, which is never used again
  ChunkPool pool_;
};

timespec wall_time();
// Sets the times of a change.
void touch(MemoryInode& inode);

// Calls visit(number of the chunk, where in it, how many bytes) for each of the range.
template <class Visit>
void for_chunks(uint64_t offset, size_t length, Visit visit) {
  while (length != 0) {
    const size_t within = offset % ChunkPool::kChunkBytes;
    const size_t room = ChunkPool::kChunkBytes - within;
    const size_t part = length < room ? length : room;
    visit(offset / ChunkPool::kChunkBytes, within, part);
    offset += part;
    length -= part;
  }
}

}  // namespace cofs
