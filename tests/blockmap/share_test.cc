// The record of shared extents and the superblock's counts: what is accepted, and what is refused.
#include <gtest/gtest.h>

#include <cstring>

#include "blockmap/chunk.h"
#include "blockmap/records.h"
#include "blockmap/volume.h"

namespace cofs {
namespace {

ShareRange range_of(uint64_t source, uint64_t source_block, uint64_t target, uint64_t target_block,
                    uint64_t count) {
  ShareRange range;
  range.source_ino = source;
  range.source_block = source_block;
  range.target_ino = target;
  range.target_block = target_block;
  range.count = count;
  return range;
}

Result<ShareRange> through_the_log(const ShareRange& range) {
  std::vector<std::byte> log;
  RecordWriter(log).share_extents(range);
  Result<ShareRange> parsed = fail(Code::kCorrupt, "no record");
  const auto split = for_each_record(log, [&](const Record& record) -> Result<> {
    EXPECT_EQ(record.type, ondisk::RecordType::kShareExtents);
    parsed = parse_share_extents(record.body);
    return {};
  });
  EXPECT_TRUE(split);
  return parsed;
}

TEST(ShareRecord, ComesBackAsItWas) {
  const auto parsed = through_the_log(range_of(7, 1ULL << 40, 9, 3, 1ULL << 33));
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->source_ino, 7U);
  EXPECT_EQ(parsed->source_block, 1ULL << 40);
  EXPECT_EQ(parsed->target_ino, 9U);
  EXPECT_EQ(parsed->target_block, 3U);
  EXPECT_EQ(parsed->count, 1ULL << 33);
}

TEST(ShareRecord, ImpossibleRangesAreRefused) {
  EXPECT_FALSE(through_the_log(range_of(7, 0, 9, 0, 0)));
  EXPECT_FALSE(through_the_log(range_of(0, 0, 9, 0, 1)));
  EXPECT_FALSE(through_the_log(range_of(7, 0, 0, 0, 1)));
  EXPECT_FALSE(through_the_log(range_of(7, UINT64_MAX, 9, 0, 2)));
  EXPECT_FALSE(through_the_log(range_of(7, 0, 9, UINT64_MAX - 1, 3)));
  EXPECT_FALSE(through_the_log(range_of(7, 0, 7, 9, 10)));
  EXPECT_FALSE(through_the_log(range_of(7, 9, 7, 0, 10)));
  EXPECT_TRUE(through_the_log(range_of(7, 0, 7, 10, 10)));
  EXPECT_TRUE(through_the_log(range_of(7, 10, 7, 0, 10)));
  const std::vector<std::byte> body(sizeof(ondisk::RecordShareExtents) - 1);
  EXPECT_FALSE(parse_share_extents(body));
}

TEST(Superblock, CountsOfSharedBlocksMustBePossible) {
  FormatOptions options;
  auto geometry = plan_geometry(65'536, options);
  ASSERT_TRUE(geometry);
  geometry->volume_key = 1;
  const auto parsed = [&](uint64_t live, uint64_t shared, uint64_t extra) {
    VolumeState state;
    state.sequence = 1;
    state.log.sequence = 1;
    state.live_data_blocks = live;
    state.shared_blocks = shared;
    state.extra_references = extra;
    std::vector<std::byte> block(kBlockBytes);
    encode_superblock(*geometry, state, block);
    Geometry read_geometry;
    VolumeState read;
    const auto result = parse_superblock(block, 65'536, read_geometry, read);
    if (result) {
      EXPECT_EQ(read.shared_blocks, shared);
      EXPECT_EQ(read.extra_references, extra);
    }
    return result.has_value();
  };
  EXPECT_TRUE(parsed(0, 0, 0));
  EXPECT_TRUE(parsed(10, 10, 10));
  EXPECT_TRUE(parsed(10, 1, 1'000));
  EXPECT_FALSE(parsed(10, 11, 20));
  EXPECT_FALSE(parsed(10, 5, 4));
}

}  // namespace
}  // namespace cofs
