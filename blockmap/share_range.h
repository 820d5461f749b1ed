// ShareRange: a range of a file's blocks, and one of the same or another file that is to share them.
#pragma once

#include <cstdint>

namespace cofs {

struct ShareRange {
  uint64_t source_ino = 0;
  uint64_t source_block = 0;
  uint64_t target_ino = 0;
  uint64_t target_block = 0;
  uint64_t count = 0;  // blocks

  uint64_t source_end() const { return source_block + count; }
  uint64_t target_end() const { return target_block + count; }
  // Some blocks of two files, or of one file without overlap; nothing wraps.
  bool valid() const {
    if (count == 0 || source_ino == 0 || target_ino == 0 || source_end() < source_block ||
        target_end() < target_block) {
      return false;
    }
    return source_ino != target_ino || source_end() <= target_block || target_end() <= source_block;
  }
};

}  // namespace cofs
