// What is kept back: little of any volume, and enough for what it is for.
#include "blockmap/reserves.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "blockmap/store.h"

namespace cofs {
namespace {

constexpr uint64_t kMiB = blocks_of_bytes(1ULL << 20);

Geometry geometry_of(uint64_t blocks) {
  const auto geometry = plan_geometry(blocks, FormatOptions());
  EXPECT_TRUE(geometry);
  return *geometry;
}

double percent(uint64_t part, uint64_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

TEST(Reserves, TakeLittle) {
  struct Row {
    const char* name;
    uint64_t mib;
    double percent_max;
  };
  const Row rows[] = {{"64 MiB", 64, 10},
                      {"256 MiB", 256, 8},
                      {"1 GiB", 1 << 10, 4},
                      {"16 GiB", 16 << 10, 2},
                      {"1 TiB", 1 << 20, 0.5},
                      {"100 TiB", 100 << 20, 0.1}};
  std::printf("%8s %8s %6s %6s %11s %7s %4s %7s   (percent of the volume)\n", "volume", "segments",
              "log", "nodes", "checkpoint", "delete", "gc", "all");
  for (const Row& row : rows) {
    const Geometry geometry = geometry_of(row.mib * kMiB);
    const Reserves reserves = plan_reserves(geometry, 0);
    const uint64_t segments = geometry.segment_count;
    const double all = percent(reserves.fixed_segments(), segments);
    std::printf("%8s %8llu %6.2f %6.2f %11.2f %7.2f %4.2f %7.3f\n", row.name,
                static_cast<unsigned long long>(segments), percent(reserves.log_segments, segments),
                percent(reserves.node_segments_due(0), segments),
                percent(reserves.checkpoint_segments(0), segments),
                percent(Reserves::kDeleteSegments, segments),
                percent(Reserves::kGcSegments, segments), all);
    EXPECT_LE(all, row.percent_max) << row.name;
    EXPECT_EQ(reserves.fixed_segments(),
              reserves.log_segments + reserves.node_segments_due(0) +
                  reserves.checkpoint_segments(0) + Reserves::kDeleteSegments +
                  Reserves::kGcSegments);
  }
}

// Every geometry that can be formatted leaves something to users, and room for the nodes it speaks of.
TEST(Reserves, FitEveryGeometry) {
  for (uint32_t segment_blocks = 16; segment_blocks <= 16'384; segment_blocks *= 2) {
    for (uint32_t node_bytes = ondisk::kNodeBytesMin; node_bytes <= ondisk::kNodeBytesMax;
         node_bytes *= 2) {
      for (uint32_t copies = 1; copies <= 2; copies++) {
        FormatOptions options;
        options.segment_blocks = segment_blocks;
        options.node_bytes = node_bytes;
        options.metadata_copies = copies;
        const auto geometry = plan_geometry(256 + 1 + uint64_t{segment_blocks} * 400, options);
        if (!geometry) continue;  // nodes too large for such segments
        const Reserves reserves = plan_reserves(*geometry, 0);
        SCOPED_TRACE(std::to_string(segment_blocks) + " blocks, nodes of " +
                     std::to_string(node_bytes) + ", copies " + std::to_string(copies));
        EXPECT_LE(reserves.dirty_nodes_floor, reserves.dirty_nodes_max);
        EXPECT_LE(reserves.log_floor_blocks, reserves.log_max_blocks);
        EXPECT_GE(reserves.nodes_per_segment, 1U);
        EXPECT_LT(reserves.nodes_per_segment * geometry->node_blocks(), segment_blocks);
        EXPECT_LT(reserves.segment_data_blocks, segment_blocks);
        // Both rise with what they are for.
        EXPECT_GT(reserves.checkpoint_segments(reserves.dirty_nodes_floor +
                                               2 * reserves.nodes_per_segment),
                  reserves.checkpoint_segments(0));
        EXPECT_GT(reserves.node_segments_due(2 * reserves.nodes_per_segment),
                  reserves.node_segments_due(0));
        EXPECT_GE(reserves.node_segments_due(3 * reserves.nodes_per_segment),
                  3 * copies * 3 / 2 + copies);
      }
    }
  }
}

}  // namespace
}  // namespace cofs
