// Finding victims: never one that may not be taken, none only where none gains, and all segments are
// looked at only where nothing else can tell.

#include "blockmap/gc_victims.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

constexpr uint32_t kSegmentBlocks = 64;

class NoNodes final : public NodeReader {
 public:
  Task<Result<BufferRef>> read_node(NodePointer) override {
    co_return fail(Code::kCorrupt, "nothing was written");
  }
};

Geometry geometry_of(uint64_t segments) {
  Geometry geometry;
  geometry.segment_blocks = kSegmentBlocks;
  geometry.segment_count = segments + 1;
  geometry.first_segment_block = kSegmentBlocks;
  geometry.block_count = (segments + 2) * kSegmentBlocks;
  geometry.node_bytes = ondisk::kNodeBytesDefault;
  return geometry;
}

// A segment table with a memory of its own, and a chooser that it tells.
class Segments {
 public:
  Segments(uint64_t seed, uint64_t count)
      : world(seed),
        geometry(geometry_of(count)),
        tree(nodes, world.buffers, TreeOptions(), NodePointer(), 0),
        table(geometry, tree),
        victims(geometry, table, world.random) {
    table.set_counts(count, 0);
    table.set_observer([this](uint64_t segment, const SegmentState& state) {
      victims.note(segment, state);
    });
  }

  uint64_t open(ondisk::Stream stream) {
    const auto segment = world.run(table.open_free(stream, now));
    EXPECT_TRUE(segment);
    return segment ? *segment : 0;
  }
  void add(uint64_t segment, int64_t blocks) {
    const auto added = world.run(table.add_live(segment, blocks, Hold()));
    ASSERT_TRUE(added) << describe(added.error());
  }
  void seal(uint64_t segment) {
    ASSERT_TRUE(world.run(table.seal(segment, now, Hold())));
  }
  uint64_t sealed(ondisk::Stream stream, uint32_t live) {
    const uint64_t segment = open(stream);
    add(segment, live);
    seal(segment);
    return segment;
  }
  void use_freed() {
    for (const uint64_t segment : table.release_held(HoldProgress())) table.add_usable(segment);
  }
  const SegmentState& state(uint64_t segment) { return **world.run(table.load(segment)); }
  std::optional<GcCandidate> choose(GcUrgency urgency) {
    const GcVictims::MayTake may_take = [this](uint64_t segment, const SegmentState&) {
      return !barred.contains(segment);
    };
    const auto found = world.run(victims.choose(urgency, now, &may_take));
    EXPECT_TRUE(found);
    return found ? *found : std::nullopt;
  }

  SimWorld world;
  Geometry geometry;
  NoNodes nodes;
  BTree tree;
  SegmentTable table;
  GcVictims victims;
  std::set<uint64_t> barred;
  uint64_t now = 1000;
};

constexpr GcUrgency kUrgencies[] = {GcUrgency::kIdle, GcUrgency::kPaced, GcUrgency::kUrgent};

// Against looking at all of them, through a random history.
TEST(GcVictims, NoneIsFoundOnlyWhereNoneGains) {
  uint64_t nothings = 0;
  uint64_t victims = 0;
  for (uint64_t seed = 1; seed <= 12; seed++) {
    SCOPED_TRACE(seed);
    const uint64_t count = seed % 3 == 0 ? 100 : 1500;
    Segments segments(seed, count);
    SimRandom random(seed);
    std::vector<uint64_t> open;
    std::vector<uint64_t> sealed;
    const auto is_sealed = [&](uint64_t segment) {
      return segments.state(segment).state == ondisk::SegmentState::kSealed;
    };
    for (int step = 0; step < 6000; step++) {
      segments.now += random.below(100);
      const uint64_t kind = random.below(20);
      if (kind < 4 && segments.table.usable_count() > 0) {
        open.push_back(segments.open(static_cast<ondisk::Stream>(random.below(ondisk::kStreamCount))));
      } else if (kind < 8 && !open.empty()) {
        const size_t at = random.below(open.size());
        // Most are too full to gain, some are empty.
        const uint64_t live = random.below(10) == 0 ? random.below(kSegmentBlocks)
                                                    : kSegmentBlocks - random.below(3);
        segments.add(open[at], static_cast<int64_t>(live));
        segments.seal(open[at]);
        if (is_sealed(open[at])) sealed.push_back(open[at]);
        open.erase(open.begin() + static_cast<ptrdiff_t>(at));
      } else if (kind < 14 && !sealed.empty()) {
        const size_t at = random.below(sealed.size());
        const uint64_t segment = sealed[at];
        const uint32_t live = segments.state(segment).live_blocks;
        if (live < kSegmentBlocks && random.below(8) == 0) {
          segments.add(segment, 1);  // survivors may be published into a sealed segment
        } else if (live != 0) {
          segments.add(segment, -static_cast<int64_t>(random.below(3) == 0 ? live : 1));
        }
        if (!is_sealed(segment)) sealed.erase(sealed.begin() + static_cast<ptrdiff_t>(at));
      } else if (kind == 14 && !sealed.empty()) {
        segments.barred.insert(sealed[random.below(sealed.size())]);
      } else if (kind == 15) {
        segments.barred.clear();
      } else if (kind == 16) {
        segments.use_freed();
      } else if (kind > 16) {
        const GcUrgency urgency = kUrgencies[random.below(3)];
        GcChoice all(kSegmentBlocks, segments.now, urgency);
        for (const uint64_t segment : sealed) {
          const SegmentState& state = segments.state(segment);
          const bool node = state.stream == ondisk::Stream::kMeta ||
                            state.stream == ondisk::Stream::kMetaMirror;
          if (node || state.live_blocks == 0 || segments.barred.contains(segment)) continue;
          GcCandidate candidate;
          candidate.segment = segment;
          candidate.live_blocks = state.live_blocks;
          candidate.age = state.age;
          all.consider(candidate);
        }
        const auto found = segments.choose(urgency);
        ASSERT_EQ(found.has_value(), all.best().has_value()) << step;
        if (!found) {
          nothings++;
          continue;
        }
        victims++;
        const SegmentState& state = segments.state(found->segment);
        EXPECT_TRUE(is_sealed(found->segment));
        EXPECT_FALSE(segments.barred.contains(found->segment));
        EXPECT_EQ(found->live_blocks, state.live_blocks);
        EXPECT_EQ(found->generation, state.generation);
        EXPECT_EQ(found->stream, state.stream);
        EXPECT_EQ(found->age, state.age);
        EXPECT_LE(found->live_blocks, gc_live_max(kSegmentBlocks, urgency));
        if (count <= 100) {
          EXPECT_EQ(gc_score(*found, kSegmentBlocks, segments.now, urgency),
                    gc_score(*all.best(), kSegmentBlocks, segments.now, urgency));
        }
        if (random.below(2) == 0) {  // it is emptied
          segments.add(found->segment, -static_cast<int64_t>(found->live_blocks));
          std::erase(sealed, found->segment);
        }
      }
    }
  }
  EXPECT_GT(nothings, 100U);
  EXPECT_GT(victims, 1000U);
}

// Where nothing gains, that is known; and the first segment that does gain is found, however many do not.
TEST(GcVictims, AllAreLookedAtOnce) {
  Segments segments(1, 20'000);
  std::vector<uint64_t> all;
  for (int i = 0; i < 19'000; i++) all.push_back(segments.sealed(ondisk::Stream::kData, kSegmentBlocks));
  EXPECT_FALSE(segments.choose(GcUrgency::kUrgent));
  EXPECT_EQ(segments.victims.full_searches(), 1U);
  for (int i = 0; i < 300; i++) {
    ASSERT_FALSE(segments.choose(kUrgencies[i % 3]));
    const uint64_t segment = all[static_cast<size_t>(i) * 61];
    segments.add(segment, -static_cast<int64_t>(kSegmentBlocks - 30));
    const auto found = segments.choose(kUrgencies[i % 3]);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->segment, segment);
    segments.add(segment, -30);
  }
  EXPECT_EQ(segments.victims.full_searches(), 1U);
}

// More of them gain than are kept in mind: all are looked at once for many victims.
TEST(GcVictims, AllAreLookedAtSeldom) {
  Segments segments(1, 40'000);
  SimRandom random(5);
  std::vector<uint64_t> all;
  for (int i = 0; i < 39'000; i++) all.push_back(segments.sealed(ondisk::Stream::kData, kSegmentBlocks));
  std::set<uint64_t> gaining;
  for (int i = 0; i < 600; i++) {  // so few that a sample seldom holds one
    const uint64_t segment = all[static_cast<size_t>(i) * 65];
    segments.add(segment, -static_cast<int64_t>(40 + random.below(10)));
    gaining.insert(segment);
  }
  while (!gaining.empty()) {
    const auto found = segments.choose(GcUrgency::kUrgent);
    ASSERT_TRUE(found);
    ASSERT_EQ(gaining.erase(found->segment), 1U);
    segments.add(found->segment, -static_cast<int64_t>(found->live_blocks));
  }
  EXPECT_FALSE(segments.choose(GcUrgency::kUrgent));
  EXPECT_LE(segments.victims.full_searches(), 4U);
}

// A sample is nearly as good as all of them: the victims lie among the best tenth, mostly.
TEST(GcVictims, ASampleIsGood) {
  Segments segments(3, 6000);
  SimRandom random(3);
  std::vector<double> scores;
  for (int i = 0; i < 5000; i++) {
    segments.now += kSegmentBlocks;
    segments.sealed(ondisk::Stream::kData, static_cast<uint32_t>(random.between(8, 60)));
  }
  segments.now += 100'000;
  const auto score_of = [&](uint64_t segment) {
    GcCandidate candidate;
    candidate.live_blocks = segments.state(segment).live_blocks;
    candidate.age = segments.state(segment).age;
    return gc_score(candidate, kSegmentBlocks, segments.now, GcUrgency::kPaced);
  };
  for (uint64_t segment = 0; segment < segments.geometry.segment_count; segment++) {
    if (segment == segments.geometry.reserved_segment()) continue;
    if (segments.state(segment).state == ondisk::SegmentState::kSealed) scores.push_back(score_of(segment));
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  ASSERT_EQ(scores.size(), 5000U);
  int good = 0;
  for (int i = 0; i < 300; i++) {
    const auto found = segments.choose(GcUrgency::kPaced);
    ASSERT_TRUE(found);
    if (score_of(found->segment) >= scores[500]) good++;
  }
  EXPECT_GT(good, 270);  // 300 * (1 - 0.9^30) are to be expected
  EXPECT_EQ(segments.victims.full_searches(), 0U);
}

// Who waits for room gets what is known to be emptiest where the sample has nothing that wins much.
TEST(GcVictims, WhoWaitsGetsTheEmptiest) {
  Segments segments(4, 6000);
  std::vector<uint64_t> all;
  for (int i = 0; i < 5000; i++) all.push_back(segments.sealed(ondisk::Stream::kData, 55));
  for (int i = 0; i < 40; i++) {
    const uint64_t segment = all[static_cast<size_t>(i) * 77];
    segments.add(segment, -40);
    const auto found = segments.choose(GcUrgency::kUrgent);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->segment, segment);
    segments.add(segment, -15);
  }
  EXPECT_EQ(segments.victims.full_searches(), 0U);
}

// The age of a segment is the moment when it was sealed, and what the tree keeps of it.
TEST(GcVictims, AgesCountFromSealing) {
  Segments segments(5, 200);
  const uint64_t segment = segments.open(ondisk::Stream::kGcWarm);
  EXPECT_EQ(segments.state(segment).age, 1000U);
  segments.now = 5000;
  segments.add(segment, 20);
  segments.seal(segment);
  segments.now = 9000;
  segments.add(segment, 5);  // survivors that were still being copied
  segments.add(segment, -10);
  EXPECT_EQ(segments.state(segment).age, 5000U);
  ASSERT_TRUE(segments.world.run(segments.table.flush_groups()));
  SegmentTable again(segments.geometry, segments.tree);
  const auto loaded = segments.world.run(again.load(segment));
  ASSERT_TRUE(loaded);
  EXPECT_EQ((*loaded)->age, 5000U);
  EXPECT_EQ((*loaded)->live_blocks, 15U);
}

}  // namespace
}  // namespace cofs
