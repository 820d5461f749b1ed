// The unit of everything: the 4 KiB block. LBA is the device's own unit and stays inside offload/.
#pragma once

#include <cstdint>

namespace cofs {

inline constexpr uint32_t kBlockBytes = 4096;
inline constexpr uint32_t kBlockShift = 12;

// A half-open run of blocks [start, start + count) in whichever space the context names.
struct BlockRange {
  uint64_t start = 0;
  uint64_t count = 0;

  uint64_t end() const { return start + count; }
  bool operator==(const BlockRange&) const = default;
};

constexpr uint64_t bytes_of_blocks(uint64_t blocks) { return blocks << kBlockShift; }
constexpr uint64_t blocks_of_bytes(uint64_t bytes) {
  return (bytes >> kBlockShift) + ((bytes & (kBlockBytes - 1)) != 0 ? 1 : 0);
}

}  // namespace cofs
