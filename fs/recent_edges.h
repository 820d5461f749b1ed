// RecentEdges: the blocks that writes covered in part, as they were written last, and those that they are about to: a few of them.
//
// Who appends to a file, or writes records one after the other, comes back to the block where he ended. If that was
// synced meanwhile it is no longer dirty, and would have to be read to be completed: a read of the device per append, and
// an error where the device just then can't be read. Not a cache for readers: the kernel has one.
//
// A kept block counts only while the file still names the virtual block that it was written as; since such a number
// is never used for anything else, nobody has to tell of truncations, clones and the like. It is known once the block
// was placed: until then whoever makes the block dirty again must say so (keep(), forget()).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "offload/base/buffer.h"

namespace cofs {

class RecentEdges {
 public:
  static constexpr size_t kBlocks = 64;

  // Under the apply lock, as the following: this is what block `file_block`, now dirty, holds. Copies it.
  void keep(uint64_t ino, uint64_t file_block, const std::byte* content, BufferPool& pool);
  // A block that was read and is not dirty: the file names this virtual block there. For who has the file's lock.
  void keep_placed(uint64_t ino, uint64_t file_block, uint64_t virtual_block, const std::byte* content, BufferPool& pool);
  // These blocks are dirty with something else.
  void forget(uint64_t ino, uint64_t file_block, uint64_t count);
  // A run of dirty blocks is being placed, and is called `token` until one of the last two says how it ended.
  void placing(uint64_t ino, uint64_t file_block, uint64_t count, uint64_t token);
  void placed(uint64_t token, uint64_t first_virtual);
  void not_placed(uint64_t token);

  // Whether copy() may find it.
  bool knows(uint64_t ino, uint64_t file_block) const;
  // The block's content, if what is kept was written as this virtual block.
  bool copy(uint64_t ino, uint64_t file_block, uint64_t virtual_block, std::byte* target) const;

 private:
  struct Entry {
    uint64_t ino = 0;  // 0: nothing is kept
    uint64_t file_block = 0;
    uint64_t token = 0;          // 0: not being placed
    uint64_t offset = 0;         // in the run of that name
    uint64_t virtual_block = 0;  // 0: not known yet
    BufferRef buffer;
  };
  const Entry* find(uint64_t ino, uint64_t file_block) const;

  std::array<Entry, kBlocks> entries_;
  size_t next_ = 0;  // the oldest
};

}  // namespace cofs
