// The parts of garbage collection that can be seen alone: moves against a model, footers and records
// from bytes that nobody can trust.

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>

#include "blockmap/chunk.h"
#include "blockmap/records.h"
#include "blockmap/store_impl.h"
#include "tests/testing/sim_device.h"
#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

constexpr uint32_t kSegmentBlocks = 64;

// The inside of a store on an empty volume, without log or background.
class Inside {
 public:
  explicit Inside(uint64_t seed) : world(seed), device(world, SimImage(4096), SimDeviceOptions()) {
    FormatOptions format;
    format.segment_blocks = kSegmentBlocks;
    format.node_bytes = 4096;
    geometry = *plan_geometry(4096, format);
    geometry.volume_key = 77;
    VolumeState state;
    state.sequence = 1;
    state.free_segments = geometry.segment_count - 1;
    Environment env{device, world.executor, world.clock, world.random, world.journal, world.buffers};
    store = std::make_unique<Store::Impl>(env, StoreOptions(), geometry, state);
  }
  uint64_t open_segment(ondisk::Stream stream) {
    const auto segment = world.run(store->segments.open_free(stream, 1));
    EXPECT_TRUE(segment);
    return *segment;
  }
  uint32_t generation(uint64_t segment) {
    return (*world.run(store->segments.load(segment)))->generation;
  }
  uint32_t live(uint64_t segment) {
    return (*world.run(store->segments.load(segment)))->live_blocks;
  }

  SimWorld world;
  SimDevice device;
  Geometry geometry;
  std::unique_ptr<Store::Impl> store;
};

struct Place {
  uint64_t physical = 0;
  uint32_t generation = 0;
  uint32_t checksum = 0;
  bool operator==(const Place&) const = default;
};

// What vmap says, block by block, and that no record overlaps another.
std::map<uint64_t, Place> places(Inside& inside) {
  std::map<uint64_t, Place> found;
  const auto scanned = inside.world.run(inside.store->tree.scan(
      Key::vmap(0), Key::vmap(UINT64_MAX), UINT64_MAX, [&](const Key& key, Bytes value) {
        const auto vmap = parse_vmap(value, inside.geometry);
        EXPECT_TRUE(vmap);
        for (uint64_t i = 0; i < vmap->checksums.size(); i++) {
          Place place;
          place.physical = vmap->physical_block + i;
          place.generation = vmap->generation;
          place.checksum = vmap->checksums[i];
          EXPECT_TRUE(found.emplace(key.id + i, place).second);
        }
        return true;
      }));
  EXPECT_TRUE(scanned);
  return found;
}

// Random insertions, deletions and moves, many of which name places where the blocks are not (any more).
TEST(GcMove, ComparesAndSets) {
  for (uint64_t seed = 1; seed <= 60; seed++) {
    SCOPED_TRACE(seed);
    Inside inside(seed);
    SimRandom random(seed);
    std::map<uint64_t, Place> model;
    std::vector<uint64_t> segments;
    std::map<uint64_t, uint32_t> used;
    for (int i = 0; i < 6; i++) segments.push_back(inside.open_segment(ondisk::Stream::kData));
    uint64_t next_virtual = 1;
    const auto start_of = [&](uint64_t segment) { return inside.geometry.block_of_segment(segment); };
    for (int step = 0; step < 80; step++) {
      const uint64_t segment = segments[random.below(segments.size())];
      const auto count = static_cast<uint32_t>(random.between(1, 9));
      const uint64_t kind = random.below(10);
      if (kind < 4) {
        uint32_t& next = used.try_emplace(segment, 1).first->second;
        if (next + count > kSegmentBlocks) continue;
        std::vector<uint32_t> checksums(count);
        for (uint32_t i = 0; i < count; i++) {
          checksums[i] = static_cast<uint32_t>(random.next());
          Place place;
          place.physical = start_of(segment) + next + i;
          place.generation = inside.generation(segment);
          place.checksum = checksums[i];
          model[next_virtual + i] = place;
        }
        ASSERT_TRUE(inside.world.run(inside.store->apply_insert_vmap(
            next_virtual, start_of(segment) + next, inside.generation(segment), &checksums)));
        next += count;
        next_virtual += count + random.below(2);
      } else if (kind < 6) {
        const auto at = model.lower_bound(random.below(next_virtual) + 1);
        if (at == model.end()) continue;
        const uint64_t first = at->first;
        uint64_t n = 0;
        while (n < count && model.contains(first + n)) n++;
        ASSERT_TRUE(inside.world.run(inside.store->free_virtual(first, n)));
        for (uint64_t i = 0; i < n; i++) model.erase(first + i);
      } else {
        const auto at = model.lower_bound(random.below(next_virtual) + 1);
        if (at == model.end()) continue;
        uint32_t& next = used.try_emplace(segment, 1).first->second;
        if (next + count > kSegmentBlocks) continue;
        VmapMove move;
        move.virtual_block = at->first;
        move.count = count;
        move.from_physical = at->second.physical;
        if (random.below(4) == 0) move.from_physical ^= 1;  // not there
        move.to_physical = start_of(segment) + next;
        move.to_generation = inside.generation(segment);
        const uint64_t from_segment = inside.geometry.segment_of_block(move.from_physical);
        if (!inside.geometry.inside_segment(move.from_physical, count) || from_segment == segment) {
          continue;
        }
        next += count;
        uint64_t expected = 0;
        for (uint32_t i = 0; i < count; i++) {
          const auto block = model.find(move.virtual_block + i);
          if (block == model.end() || block->second.physical != move.from_physical + i) continue;
          block->second.physical = move.to_physical + i;
          block->second.generation = move.to_generation;
          expected++;
        }
        const auto moved = inside.world.run(inside.store->apply_move_vmap(move));
        ASSERT_TRUE(moved) << describe(moved.error());
        EXPECT_EQ(*moved, expected);
        const auto again = inside.world.run(inside.store->apply_move_vmap(move));
        ASSERT_TRUE(again);
        EXPECT_EQ(*again, 0U);
      }
      ASSERT_TRUE(places(inside) == model) << "step " << step;
      EXPECT_EQ(inside.store->live_data_blocks, model.size());
      for (const uint64_t s : segments) {
        uint64_t live = 0;
        for (const auto& [block, place] : model) {
          if (inside.geometry.segment_of_block(place.physical) == s) live++;
        }
        EXPECT_EQ(inside.live(s), live);
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

// Runs that lie together again become one record again.
TEST(GcMove, JoinsWhatLiesTogether) {
  Inside inside(1);
  const uint64_t from = inside.geometry.block_of_segment(inside.open_segment(ondisk::Stream::kData));
  const uint64_t target = inside.open_segment(ondisk::Stream::kGcWarm);
  const uint64_t to = inside.geometry.block_of_segment(target);
  for (uint64_t i = 0; i < 10; i++) {
    const std::vector<uint32_t> checksums = {static_cast<uint32_t>(i)};
    ASSERT_TRUE(inside.world.run(inside.store->apply_insert_vmap(100 + i, from + 1 + 2 * i, 1,
                                                                 &checksums)));
  }
  for (uint64_t i = 0; i < 10; i++) {
    VmapMove move;
    move.virtual_block = 100 + i;
    move.from_physical = from + 1 + 2 * i;
    move.to_physical = to + 2 + i;
    move.count = 1;
    move.to_generation = inside.generation(target);
    ASSERT_EQ(*inside.world.run(inside.store->apply_move_vmap(move)), 1U);
  }
  const auto record = inside.world.run(inside.store->tree.get(Key::vmap(100)));
  ASSERT_TRUE(record && record->has_value());
  const auto vmap = parse_vmap(**record, inside.geometry);
  ASSERT_TRUE(vmap);
  EXPECT_EQ(vmap->checksums, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(vmap->physical_block, to + 2);
}

TEST(GcMove, ReplayChecksTheRecord) {
  Inside inside(2);
  const Geometry& geometry = inside.geometry;
  std::vector<std::byte> bytes;
  RecordWriter(bytes).move_vmap(5, geometry.block_of_segment(1) + 3, geometry.block_of_segment(2) + 1,
                                4, 9);
  const Bytes body = std::span(bytes).subspan(sizeof(ondisk::RecordHeader));
  const auto good = parse_move_vmap(body, geometry);
  ASSERT_TRUE(good);
  EXPECT_EQ(good->virtual_block, 5U);
  EXPECT_EQ(good->from_physical, geometry.block_of_segment(1) + 3);
  EXPECT_EQ(good->to_physical, geometry.block_of_segment(2) + 1);
  EXPECT_EQ(good->count, 4U);
  EXPECT_EQ(good->to_generation, 9U);
  EXPECT_FALSE(parse_move_vmap(body.first(body.size() - 1), geometry));
  const auto refused = [&](auto change) {
    ondisk::RecordMoveVmap record;
    std::memcpy(&record, body.data(), sizeof(record));
    change(record);
    return !parse_move_vmap(std::as_bytes(std::span(&record, 1)), geometry);
  };
  EXPECT_TRUE(refused([](auto& r) { r.count = 0; }));
  EXPECT_TRUE(refused([](auto& r) { r.count = 257; }));
  EXPECT_TRUE(refused([](auto& r) { r.virtual_block = 0; }));
  EXPECT_TRUE(refused([](auto& r) { r.virtual_block = 1ULL << 62; }));
  EXPECT_TRUE(refused([&](auto& r) { r.to_physical = geometry.block_of_segment(2); }));
  EXPECT_TRUE(refused([&](auto& r) { r.from_physical = geometry.block_of_segment(2) - 2; }));
  EXPECT_TRUE(refused([](auto& r) { r.to_physical = UINT64_MAX - 1; }));
  EXPECT_TRUE(refused([](auto& r) { r.from_physical = 0; }));
}

// A log segment that a checkpoint under way has given up is none before that checkpoint is durable: until then
// recovery reads it.
TEST(GcVictim, ALogSegmentOnlyAfterItsCheckpoint) {
  Inside inside(4);
  SegmentState log;
  log.state = ondisk::SegmentState::kSealed;
  log.stream = ondisk::Stream::kLog;
  log.live_blocks = 5;
  SegmentState data = log;
  data.stream = ondisk::Stream::kData;
  inside.store->checkpoint_sequence = inside.store->volume.sequence;
  EXPECT_TRUE(inside.store->gc_may_take(7, log));
  EXPECT_TRUE(inside.store->gc_may_take(7, data));
  inside.store->checkpoint_sequence++;  // frozen, not written yet
  EXPECT_FALSE(inside.store->gc_may_take(7, log));
  EXPECT_TRUE(inside.store->gc_may_take(7, data));
  inside.store->volume.sequence++;
  EXPECT_TRUE(inside.store->gc_may_take(7, log));
  // Nor while the log's chain has it.
  inside.store->segments.pin(7);
  EXPECT_FALSE(inside.store->gc_may_take(7, log));
}

TEST(GcSummary, AFooterIsBelievedOnlyWhole) {
  Inside inside(3);
  const Geometry& geometry = inside.geometry;
  for (const size_t entries : {size_t{1}, size_t{100}, size_t{126}, size_t{127}, size_t{300}}) {
    std::vector<ondisk::SummaryEntry> written(entries);
    for (size_t i = 0; i < entries; i++) {
      written[i].block = static_cast<uint32_t>(i);
      written[i].id = 1000 + i;
    }
    const uint32_t blocks = footer_blocks(entries);
    std::vector<std::byte> tail(bytes_of_blocks(blocks + 2), std::byte{0x5a});
    const auto area = std::span(tail).last(bytes_of_blocks(blocks));
    encode_footer(geometry, 7, 3, written, area);
    const auto read = parse_footer(geometry, 7, 3, tail);
    ASSERT_TRUE(read);
    ASSERT_EQ(read->size(), entries);
    EXPECT_EQ(std::memcmp(read->data(), written.data(), entries * sizeof(written[0])), 0);
    EXPECT_FALSE(parse_footer(geometry, 8, 3, tail));
    EXPECT_FALSE(parse_footer(geometry, 7, 4, tail));
    EXPECT_FALSE(parse_footer(geometry, 7, 3, std::span(tail).first(tail.size() - kBlockBytes)));
    SimRandom random(entries);
    for (int i = 0; i < 200; i++) {
      const uint64_t at = random.below(area.size());
      const std::byte old = area[at];
      area[at] ^= static_cast<std::byte>(1U << random.below(8));
      EXPECT_FALSE(parse_footer(geometry, 7, 3, tail)) << "byte " << at;
      area[at] = old;
    }
  }
}

}  // namespace
}  // namespace cofs
