#include "offload/base/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "offload/base/units.h"

namespace cofs {

uint64_t checksum64(std::span<const std::byte> bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

uint64_t block_hash(const std::byte* block) { return XXH3_64bits(block, kBlockBytes); }

uint64_t mix64(uint64_t a, uint64_t b) {
  const uint64_t words[2] = {a, b};
  return XXH3_64bits(words, sizeof(words));
}

}  // namespace cofs
