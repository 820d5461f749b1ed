// How much memory clean nodes may take beside changed ones.
#include "blockmap/node_cache.h"

#include <gtest/gtest.h>

#include <vector>

namespace cofs {
namespace {

constexpr uint32_t kNodeBytes = 65'536;
constexpr uint64_t kCacheBytes = 16ULL << 20;

// Changed nodes have their own room first; what they take beyond it comes from the clean ones' room, of which a quarter
// stays.
TEST(NodeCache, CleanNodesGiveWayToChangedOnes) {
  NodeCache cache(kNodeBytes, kCacheBytes);
  const uint64_t per_node = cache.bytes_of_level(0);
  std::vector<Node*> dirty;
  uint64_t least = kCacheBytes;
  for (uint64_t taken = 0; taken + per_node < NodeCache::kChangedBytes + 2 * kCacheBytes; taken += per_node) {
    const uint64_t beyond = taken - std::min(taken, NodeCache::kChangedBytes);
    EXPECT_EQ(cache.clean_bytes_max(),
              std::max(kCacheBytes / 4, kCacheBytes - std::min(kCacheBytes, beyond)));
    least = std::min(least, cache.clean_bytes_max());
    dirty.push_back(cache.create_leaf(LeafImage()));
    cache.set_dirty(dirty.back());
  }
  EXPECT_EQ(least, kCacheBytes / 4);
  EXPECT_FALSE(cache.gives_way());  // there is no clean one
  for (Node* node : dirty) {
    cache.clear_dirty(node);
    cache.refresh(node);
  }
  EXPECT_EQ(cache.clean_bytes_max(), kCacheBytes);
  for (Node* node : dirty) cache.destroy(node);
}

}  // namespace
}  // namespace cofs
