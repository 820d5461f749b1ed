// The segment table of a volume of 100 TiB: finding free segments among very many.
#include "blockmap/segment_table.h"

#include <gtest/gtest.h>

#include <set>

#include "blockmap/store.h"
#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

// A tree that is all in memory.
class NoNodes final : public NodeReader {
 public:
  Task<Result<BufferRef>> read_node(NodePointer pointer) override {
    co_return fail(Code::kIo, "there is nothing to be read", pointer.address[0]);
  }
};

struct HugeVolume {
  HugeVolume() : geometry(*plan_geometry(blocks_of_bytes(100ULL << 40), FormatOptions())) {
    table.set_counts(geometry.segment_count - 1, 0);
  }
  uint64_t open() {
    const auto opened = world.run(table.open_free(ondisk::Stream::kData, 1));
    EXPECT_TRUE(opened);
    return opened ? *opened : UINT64_MAX;
  }

  SimWorld world{1};
  NoNodes reader;
  Geometry geometry;
  BTree tree{reader, world.buffers, TreeOptions()};
  SegmentTable table{geometry, tree};
};

// More free segments than are kept by number: those that are not are found again.
TEST(SegmentTable, FindsFreeSegmentsBeyondThoseItKnows) {
  constexpr uint64_t kFreed = 70'000;
  constexpr uint64_t kOpened = 80'000;
  HugeVolume volume;
  const auto lent = volume.world.run(volume.table.borrow_run(0, kFreed));
  ASSERT_TRUE(lent);
  ASSERT_EQ(*lent, kFreed);
  EXPECT_EQ(volume.table.usable_count(), volume.geometry.segment_count - 1 - kFreed);
  for (uint64_t segment = 0; segment < kFreed; segment++) volume.table.add_usable(segment);
  EXPECT_EQ(volume.table.usable_count(), volume.geometry.segment_count - 1);
  std::set<uint64_t> opened;
  for (uint64_t i = 0; i < kOpened; i++) opened.insert(volume.open());
  EXPECT_EQ(opened.size(), kOpened);
  EXPECT_LT(*opened.rbegin(), kOpened + ondisk::kSegmentGroup);  // none was passed over
}

// What was full when the volume was mounted is not looked through for the first free segment.
TEST(SegmentTable, SearchesWhereTheLastOnesWereFound) {
  HugeVolume volume;
  constexpr uint64_t kLast = 1'000'000;
  volume.table.start_search_at(kLast);
  const uint64_t first = volume.open();
  EXPECT_GE(first + ondisk::kSegmentGroup, kLast);
  EXPECT_LT(first, kLast + ondisk::kSegmentGroup);
}

}  // namespace
}  // namespace cofs
