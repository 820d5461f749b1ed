#include "offload/base/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "offload/base/units.h"

#ifdef __x86_64__
// The library's own choice among SSE2, AVX2 and AVX-512 by what the processor has (xxh_x86dispatch.h, which cannot be
// included beside XXH_INLINE_ALL): 4 KiB in a quarter to a half of the time.
extern "C" uint64_t XXH3_64bits_dispatch(const void* input, size_t size);
extern "C" uint64_t XXH3_64bits_withSeed_dispatch(const void* input, size_t size, uint64_t seed);
#else
#define XXH3_64bits_dispatch XXH3_64bits
#define XXH3_64bits_withSeed_dispatch XXH3_64bits_withSeed
#endif

namespace cofs {

uint64_t checksum64(std::span<const std::byte> bytes, uint64_t seed) {
  return XXH3_64bits_withSeed_dispatch(bytes.data(), bytes.size(), seed);
}

uint64_t block_hash(const std::byte* block) { return XXH3_64bits_dispatch(block, kBlockBytes); }

uint64_t mix64(uint64_t a, uint64_t b) {
  const uint64_t words[2] = {a, b};
  return XXH3_64bits(words, sizeof(words));
}

}  // namespace cofs
