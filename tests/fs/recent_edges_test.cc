#include "fs/recent_edges.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

namespace cofs {
namespace {

class RecentEdgesTest : public testing::Test {
 public:
  void keep(uint64_t ino, uint64_t block, char fill) {
    std::array<std::byte, kBlockBytes> content;
    content.fill(static_cast<std::byte>(fill));
    edges.keep(ino, block, content.data(), pool);
  }
  // What is kept of the block, if it was written as this one; 0: nothing.
  char at(uint64_t ino, uint64_t block, uint64_t virtual_block) const {
    std::array<std::byte, kBlockBytes> target;
    if (!edges.copy(ino, block, virtual_block, target.data())) return 0;
    EXPECT_TRUE(edges.knows(ino, block));
    EXPECT_EQ(std::memcmp(target.data(), target.data() + 1, kBlockBytes - 1), 0);
    return static_cast<char>(target[0]);
  }

  BufferPool pool{1 << 20};
  RecentEdges edges;
};

TEST_F(RecentEdgesTest, ABlockIsKnownByWhatItWasWrittenAs) {
  keep(5, 10, 'a');
  EXPECT_FALSE(edges.knows(5, 10));
  edges.placing(5, 8, 4, 1);
  EXPECT_EQ(at(5, 10, 102), 0);
  edges.placed(1, 100);
  EXPECT_EQ(at(5, 10, 102), 'a');
  EXPECT_EQ(at(5, 10, 103), 0);
  EXPECT_EQ(at(5, 11, 102), 0);
  EXPECT_EQ(at(6, 10, 102), 0);
  EXPECT_EQ(at(5, 10, 0), 0);
}

TEST_F(RecentEdgesTest, WhatIsWrittenOverIsForgotten) {
  keep(5, 10, 'a');
  edges.placing(5, 10, 1, 1);
  keep(5, 10, 'b');  // while the old content is under way
  edges.placed(1, 100);
  EXPECT_EQ(at(5, 10, 100), 0);
  edges.placing(5, 10, 1, 2);
  edges.placed(2, 200);
  EXPECT_EQ(at(5, 10, 200), 'b');
  edges.forget(5, 0, 10);
  edges.forget(5, 11, 100);
  edges.forget(4, 0, UINT64_MAX);
  EXPECT_EQ(at(5, 10, 200), 'b');
  edges.forget(5, 9, 2);
  EXPECT_FALSE(edges.knows(5, 10));
  // A number that is placed later does not bring it back.
  edges.placing(5, 10, 1, 3);
  edges.placed(3, 300);
  EXPECT_EQ(at(5, 10, 300), 0);
}

TEST_F(RecentEdgesTest, WhatWasNotPlacedIsPlacedLater) {
  keep(5, 10, 'a');
  edges.placing(5, 10, 1, 1);
  edges.not_placed(1);
  edges.placed(1, 100);
  EXPECT_FALSE(edges.knows(5, 10));
  edges.placing(5, 9, 2, 2);
  edges.placed(2, 200);
  EXPECT_EQ(at(5, 10, 201), 'a');
}

TEST_F(RecentEdgesTest, WhatWasReadIsKnownAtOnce) {
  std::array<std::byte, kBlockBytes> content;
  content.fill(std::byte{'a'});
  edges.keep_placed(5, 10, 100, content.data(), pool);
  EXPECT_EQ(at(5, 10, 100), 'a');
  EXPECT_EQ(at(5, 10, 101), 0);
  keep(5, 10, 'b');
  EXPECT_EQ(at(5, 10, 100), 0);
}

TEST_F(RecentEdgesTest, TheOldestGoes) {
  for (uint64_t block = 0; block <= RecentEdges::kBlocks; block++) keep(5, block, 'a');
  edges.placing(5, 0, RecentEdges::kBlocks + 1, 1);
  edges.placed(1, 100);
  EXPECT_FALSE(edges.knows(5, 0));
  for (uint64_t block = 1; block <= RecentEdges::kBlocks; block++) EXPECT_EQ(at(5, block, 100 + block), 'a');
}

}  // namespace
}  // namespace cofs
