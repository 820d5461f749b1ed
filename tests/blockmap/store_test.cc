// The store against a plain model: random transactions, commits, checkpoints, remounts and crashes.
// After a crash the state must be that after some transaction, not older than the last commit.

#include "blockmap/store.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <set>

#include "tests/testing/sim_device.h"
#include "tests/testing/sim_world.h"

namespace cofs {
namespace {

constexpr uint64_t kInodes = 4;
constexpr uint64_t kFileBlocks = 48;

// What a store holds: per (inode, block) the seed of its content; per inode a value.
struct Model {
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> blocks;
  std::map<uint64_t, std::string> values;
  bool operator==(const Model&) const = default;
};

void fill(std::byte* block, uint64_t seed) {
  for (size_t i = 0; i < kBlockBytes; i += 8) {
    const uint64_t word = mix64(seed, i);
    std::memcpy(block + i, &word, 8);
  }
}

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

struct Options {
  uint64_t blocks = 2048;
  uint32_t segment_blocks = 16;
  uint32_t node_bytes = 4096;
};

class Volume {
 public:
  Volume(uint64_t seed, SimImage image) : world(seed), rng(seed * 7 + 1) {
    SimDeviceOptions options;
    options.seed = seed;
    device = std::make_unique<SimDevice>(world, std::move(image), options);
    env = std::make_unique<Environment>(Environment{*device, world.executor, world.clock,
                                                    world.random, world.journal, world.buffers});
  }
  ~Volume() {
    if (store) world.run(store->abandon());
    store.reset();
    world.run_until_idle();
  }

  void format(const Options& options) {
    FormatOptions format;
    format.segment_blocks = options.segment_blocks;
    format.node_bytes = options.node_bytes;
    auto formatted = world.run(Store::format(*env, format));
    ASSERT_TRUE(formatted) << describe(formatted.error());
  }
  Result<> open(bool read_only = false) {
    StoreOptions options;
    options.background = false;
    options.read_only = read_only;
    options.cache_bytes = 65536;
    options.gc = gc;
    auto opened = world.run(Store::open(*env, options));
    if (!opened) return fail(opened.error());
    store = std::move(*opened);
    while (!read_only && store->allocate_inode() < 10 + kInodes) {
    }
    return {};
  }

  static Task<Result<>> write(Volume* v, uint64_t ino, uint64_t block, uint32_t count) {
    auto transaction = co_await v->store->begin(Cost(count, 400), SpaceClass::kUser);
    COFS_CO_TRY(transaction);
    DataRun run;
    run.ino = ino;
    run.file_block = block;
    run.count = count;
    run.buffer = v->world.buffers.allocate(count);
    std::vector<uint64_t> seeds;
    for (uint32_t i = 0; i < count; i++) {
      seeds.push_back(++v->content);
      fill(run.buffer->block(i), seeds[i]);
      run.hashes.push_back(block_hash(run.buffer->block(i)));
    }
    transaction->write_data(std::move(run));
    const std::string value = "v" + std::to_string(++v->content);
    transaction->put(Key::xattr(ino, 1, 0), bytes_of(value));
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    for (uint32_t i = 0; i < count; i++) v->model.blocks[{ino, block + i}] = seeds[i];
    v->model.values[ino] = value;
    v->history.push_back(v->model);
    co_return Result<>();
  }
  static Task<Result<>> punch(Volume* v, uint64_t ino, uint64_t block, uint64_t count) {
    auto transaction = co_await v->store->begin(Cost(0, 200), SpaceClass::kDelete);
    COFS_CO_TRY(transaction);
    transaction->map_extent(ino, block, count, 0, 0);
    const std::string value = "p" + std::to_string(++v->content);
    transaction->put(Key::xattr(ino, 1, 0), bytes_of(value));
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    v->model.values[ino] = value;
    for (uint64_t i = 0; i < count; i++) v->model.blocks.erase({ino, block + i});
    v->history.push_back(v->model);
    co_return Result<>();
  }
  static Task<Result<>> copy(Volume* v, uint64_t from, uint64_t to, uint64_t block,
                             uint64_t count) {
    auto reservation = co_await v->store->reserve(Cost(count, 2000), SpaceClass::kUser);
    COFS_CO_TRY(reservation);
    auto mappings = co_await v->store->map_range(from, block, count, 1000);
    COFS_CO_TRY(mappings);
    std::vector<BlockRange> sources;
    for (const Mapping& mapping : *mappings) {
      BlockRange range;
      range.start = mapping.virtual_block;
      range.count = mapping.count;
      sources.push_back(range);
    }
    // Sources must be on the device before a device can copy them.
    auto committed = co_await v->store->commit();
    COFS_CO_TRY(committed);
    v->durable = v->history.size() - 1;
    Result<> error;
    auto runs = co_await v->store->copy_blocks(&sources, &*reservation, &error);
    COFS_CO_TRY(error);
    auto transaction = co_await v->store->begin(std::move(*reservation));
    COFS_CO_TRY(transaction);
    transaction->map_extent(to, block, count, 0, 0);
    const std::string value = "c" + std::to_string(++v->content);
    transaction->put(Key::xattr(to, 1, 0), bytes_of(value));
    size_t run = 0;
    uint64_t used = 0;
    for (const Mapping& mapping : *mappings) {
      uint64_t done = 0;
      while (done < mapping.count) {
        StagedRun& staged = runs.at(run);
        StagedRun part = staged;
        part.count = static_cast<uint32_t>(
            std::min<uint64_t>(staged.count - used, mapping.count - done));
        part.virtual_block += used;
        part.physical_block += used;
        part.checksums.assign(staged.checksums.begin() + static_cast<std::ptrdiff_t>(used),
                              staged.checksums.begin() +
                                  static_cast<std::ptrdiff_t>(used + part.count));
        transaction->map_staged(to, mapping.file_block + done, part);
        done += part.count;
        used += part.count;
        if (used == staged.count) {
          run++;
          used = 0;
        }
      }
    }
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
    v->model.values[to] = value;
    for (uint64_t i = 0; i < count; i++) {
      auto found = v->model.blocks.find({from, block + i});
      if (found == v->model.blocks.end()) {
        v->model.blocks.erase({to, block + i});
      } else {
        v->model.blocks[{to, block + i}] = found->second;
      }
    }
    v->history.push_back(v->model);
    co_return Result<>();
  }

  Result<> step() {
    const uint64_t ino = 10 + rng.below(kInodes);
    const uint64_t block = rng.below(kFileBlocks);
    const uint64_t kind = rng.below(20);
    if (kind < 10) {
      const auto n = static_cast<uint32_t>(1 + rng.below(rng.below(3) == 0 ? 24 : 3));
      return world.run(write(this, ino, block, n));
    }
    if (kind < 13) return world.run(punch(this, ino, block, 1 + rng.below(20)));
    if (kind < 15) {
      return world.run(copy(this, ino, 10 + (ino - 9) % kInodes, block, 1 + rng.below(16)));
    }
    const size_t before = history.size();
    auto result = kind < 18 ? world.run(store->commit()) : world.run(store->checkpoint());
    if (result) durable = before - 1;
    return result;
  }

  void expect_equals(const Model& expected) {
    Model found;
    for (uint64_t ino = 10; ino < 10 + kInodes; ino++) {
      auto mappings = world.run(store->map_range(ino, 0, 1000, 1000));
      ASSERT_TRUE(mappings);
      for (const Mapping& mapping : *mappings) {
        BufferRef buffer = world.buffers.allocate(static_cast<uint32_t>(mapping.count));
        BlockRange range;
        range.start = mapping.virtual_block;
        range.count = mapping.count;
        auto read = world.run(store->read_blocks(range, buffer->data()));
        ASSERT_TRUE(read) << describe(read.error());
        for (uint32_t i = 0; i < mapping.count; i++) {
          const auto seed = expected.blocks.find({ino, mapping.file_block + i});
          ASSERT_NE(seed, expected.blocks.end()) << "ino " << ino << " block "
                                                 << mapping.file_block + i;
          std::vector<std::byte> block(kBlockBytes);
          fill(block.data(), seed->second);
          ASSERT_EQ(std::memcmp(block.data(), buffer->block(i), kBlockBytes), 0);
          found.blocks[{ino, mapping.file_block + i}] = seed->second;
        }
      }
      auto value = world.run(store->get(Key::xattr(ino, 1, 0)));
      ASSERT_TRUE(value);
      if (value->has_value()) {
        found.values[ino] = std::string(reinterpret_cast<const char*>((*value)->data()),
                                        (*value)->size());
      }
    }
    ASSERT_EQ(found.blocks.size(), expected.blocks.size());
    ASSERT_TRUE(found == expected);
  }
  void expect_verified() {
    VerifyOptions options;
    options.read_data = true;
    auto report = world.run(store->verify(options));
    ASSERT_TRUE(report) << describe(report.error());
    for (const VerifyProblem& problem : report->problems) ADD_FAILURE() << problem.what;
  }

  // The index of the history entry that the store holds: by the values, which name each write.
  std::string values_now() {
    std::string all;
    for (uint64_t ino = 10; ino < 10 + kInodes; ino++) {
      auto value = world.run(store->get(Key::xattr(ino, 1, 0)));
      if (value && value->has_value()) {
        all += std::to_string(ino) +
               std::string(reinterpret_cast<const char*>((*value)->data()), (*value)->size());
      }
    }
    return all;
  }
  uint64_t mapped_blocks() {
    uint64_t n = 0;
    for (uint64_t ino = 10; ino < 10 + kInodes; ino++) {
      auto mappings = world.run(store->map_range(ino, 0, 1000, 1000));
      for (const Mapping& mapping : *mappings) n += mapping.count;
    }
    return n;
  }

  SimWorld world;
  SimRandom rng;
  std::unique_ptr<SimDevice> device;
  std::unique_ptr<Environment> env;
  std::unique_ptr<Store> store;
  GcMode gc = GcMode::kOff;
  Model model;
  std::vector<Model> history = {Model()};
  size_t durable = 0;  // index into history: at least this state is durable
  uint64_t content = 0;
};

std::string values_of(const Model& model) {
  std::string all;
  for (const auto& [ino, value] : model.values) all += std::to_string(ino) + value;
  return all;
}

TEST(StoreTest, EmptyVolumeVerifies) {
  Volume volume(1, SimImage(2048));
  volume.format(Options());
  auto opened = volume.open();
  ASSERT_TRUE(opened) << describe(opened.error());
  volume.expect_verified();
  ASSERT_TRUE(volume.world.run(volume.store->close()));
}

TEST(StoreTest, RandomOperationsAndRemounts) {
  for (uint64_t seed = 1; seed <= 30; seed++) {
    SCOPED_TRACE(seed);
    SimImage image(2048);
    Model model;
    uint64_t content = 0;
    for (int mount = 0; mount < 4; mount++) {
      Volume volume(seed * 10 + static_cast<uint64_t>(mount), image);
      if (mount == 0) volume.format(Options());
      auto opened = volume.open();
      ASSERT_TRUE(opened) << describe(opened.error());
      volume.model = model;
      volume.content = content;
      volume.expect_equals(model);
      for (int i = 0; i < 120; i++) {
        auto done = volume.step();
        ASSERT_TRUE(done) << describe(done.error()) << " at step " << i;
      }
      // What is still being written can't be read yet: files keep such blocks in memory.
      ASSERT_TRUE(volume.world.run(volume.store->commit()));
      volume.expect_equals(volume.model);
      volume.expect_verified();
      if (testing::Test::HasFatalFailure() || testing::Test::HasNonfatalFailure()) return;
      auto closed = volume.world.run(volume.store->close());
      ASSERT_TRUE(closed) << describe(closed.error());
      model = volume.model;
      content = volume.content;
      image = volume.device->image();
    }
  }
}

TEST(StoreTest, CrashAtManyOperations) {
  uint64_t states = 0;
  for (uint64_t seed = 1; seed <= 20; seed++) {
    for (uint64_t at = 1 + seed % 3; at < 160; at += 5) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " crash at " + std::to_string(at));
      Volume volume(seed, SimImage(2048));
      volume.format(Options());
      auto mounted = volume.open();
      ASSERT_TRUE(mounted) << describe(mounted.error());
      volume.device->power_off_at(volume.device->operation_count() + at);
      for (int i = 0; i < 80 && !volume.device->powered_off(); i++) {
        auto done = volume.step();
        if (!volume.device->powered_off()) {
          ASSERT_TRUE(done) << describe(done.error());
        }
      }
      if (!volume.device->powered_off()) volume.device->power_off_now();
      for (int outcome = 0; outcome < 4; outcome++) {
        const CrashMode mode = outcome == 0   ? CrashMode::kDropAll
                               : outcome == 1 ? CrashMode::kKeepAll
                                              : CrashMode::kRandom;
        const uint64_t crash_seed = seed * 1000 + at * 10 + static_cast<uint64_t>(outcome);
        SimImage image = volume.device->crash_image(crash_seed, mode);
        Volume after(crash_seed, image);
        auto opened = after.open();
        ASSERT_TRUE(opened) << describe(opened.error());
        const std::string values = after.values_now();
        const uint64_t mapped = after.mapped_blocks();
        bool matched = false;
        for (size_t i = volume.durable; i < volume.history.size() && !matched; i++) {
          if (values_of(volume.history[i]) != values ||
              volume.history[i].blocks.size() != mapped) {
            continue;
          }
          after.expect_equals(volume.history[i]);
          if (testing::Test::HasFatalFailure()) return;
          matched = true;
        }
        ASSERT_TRUE(matched) << "found " << values << " mode " << outcome << " durable "
                             << values_of(volume.history[volume.durable]);
        after.expect_verified();
        if (testing::Test::HasNonfatalFailure()) return;
        states++;
      }
    }
  }
  std::printf("crash states tried: %llu\n", static_cast<unsigned long long>(states));
}

// A label is the old or the new one after a crash while it is set, and the new one once that was answered.
TEST(StoreTest, LabelSurvivesCrashes) {
  uint64_t crashes = 0;
  for (uint64_t at = 0; at < 40; at++) {
    SCOPED_TRACE(at);
    Volume volume(at + 1, SimImage(2048));
    volume.format(Options());
    ASSERT_TRUE(volume.open());
    EXPECT_EQ(volume.store->info().label, "");
    ASSERT_TRUE(volume.world.run(Volume::write(&volume, 10, 0, 4)));
    ASSERT_TRUE(volume.world.run(volume.store->set_label("old")));
    ASSERT_TRUE(volume.world.run(Volume::write(&volume, 11, 0, 4)));
    volume.device->power_off_at(volume.device->operation_count() + at);
    const bool answered = volume.world.run(volume.store->set_label("new")).has_value();
    if (!volume.device->powered_off()) volume.device->power_off_now();
    crashes += answered ? 0 : 1;
    for (const CrashMode mode : {CrashMode::kDropAll, CrashMode::kKeepAll, CrashMode::kRandom}) {
      Volume after(at + 1000, volume.device->crash_image(at, mode));
      auto opened = after.open();
      ASSERT_TRUE(opened) << describe(opened.error());
      const std::string label = after.store->info().label;
      EXPECT_TRUE(label == "new" || (!answered && label == "old")) << label;
      ASSERT_TRUE(after.world.run(after.store->close()));
      after.store.reset();
      ASSERT_TRUE(after.open(true));
      EXPECT_EQ(after.store->info().label, label);
      EXPECT_EQ(after.world.run(after.store->set_label("x")).error().code, Code::kReadOnly);
      after.expect_verified();
    }
  }
  EXPECT_GT(crashes, 3U);
  EXPECT_LT(crashes, 40U);
}

TEST(StoreTest, LabelsThatDoNotFit) {
  Volume volume(1, SimImage(2048));
  volume.format(Options());
  ASSERT_TRUE(volume.open());
  const std::string longest(63, 'l');
  ASSERT_TRUE(volume.world.run(volume.store->set_label(longest)));
  for (const std::string& bad : {longest + "l", std::string("a\0b", 3)}) {
    EXPECT_EQ(volume.world.run(volume.store->set_label(bad)).error().code, Code::kInvalid);
    EXPECT_EQ(volume.store->info().label, longest);
  }
}

// Without a checkpoint in between, segments are emptied, freed and used again: the log that is replayed
// opens them more than once.
TEST(StoreTest, ReplaysSegmentsThatWereUsedAgain) {
  for (uint64_t seed = 1; seed <= 20; seed++) {
    SCOPED_TRACE(seed);
    Volume volume(seed, SimImage(16384));
    volume.format(Options());
    ASSERT_TRUE(volume.open());
    const uint64_t checkpoints = volume.store->counters().checkpoints;
    for (int i = 0; i < 60; i++) {
      const uint64_t block = volume.rng.below(4);
      auto written = volume.world.run(Volume::write(&volume, 10, block, 40));
      ASSERT_TRUE(written) << describe(written.error());
      ASSERT_TRUE(volume.world.run(volume.store->commit()));
    }
    ASSERT_EQ(volume.store->counters().checkpoints, checkpoints);
    ASSERT_GT(volume.store->counters().segments_freed, 20U);
    volume.device->power_off_now();
    Volume after(seed + 1000, volume.device->crash_image(seed, CrashMode::kDropAll));
    auto opened = after.open();
    ASSERT_TRUE(opened) << describe(opened.error());
    after.expect_equals(volume.model);
    after.expect_verified();
    if (testing::Test::HasFailure()) return;
  }
}

// What the tree says of each segment, by number and generation.
using SegmentsSeen = std::map<std::pair<uint64_t, uint32_t>, ondisk::SegmentInfo>;

SegmentsSeen segments_of(Volume& volume) {
  EXPECT_TRUE(volume.world.run(volume.store->checkpoint()));
  SegmentsSeen seen;
  const auto scanned = volume.world.run(volume.store->scan(
      Key::segment_group(0), Key::segment_group(UINT64_MAX), UINT64_MAX,
      [&](const Key& key, Bytes value) {
        std::array<ondisk::SegmentInfo, ondisk::kSegmentGroup> group;
        EXPECT_EQ(value.size(), sizeof(group));
        std::memcpy(group.data(), value.data(), sizeof(group));
        for (uint32_t i = 0; i < ondisk::kSegmentGroup; i++) {
          if (group[i].state != static_cast<uint8_t>(ondisk::SegmentState::kSealed)) continue;
          seen[{key.id * ondisk::kSegmentGroup + i, group[i].generation}] = group[i];
        }
        return true;
      }));
  EXPECT_TRUE(scanned);
  return seen;
}

uint64_t count_stream(const SegmentsSeen& seen, ondisk::Stream stream) {
  uint64_t count = 0;
  for (const auto& [place, info] : seen) count += info.stream == static_cast<uint8_t>(stream);
  return count;
}

uint64_t newest_age(const SegmentsSeen& seen) {
  uint64_t newest = 0;
  for (const auto& [place, info] : seen) newest = std::max<uint64_t>(newest, info.age);
  return newest;
}

// Those that are still there have the age that they had; returns how many there are.
uint64_t expect_same_ages(const SegmentsSeen& before, const SegmentsSeen& after) {
  uint64_t same = 0;
  for (const auto& [place, info] : before) {
    const auto found = after.find(place);
    if (found == after.end()) continue;
    EXPECT_EQ(uint64_t{found->second.age}, uint64_t{info.age}) << place.first;
    same++;
  }
  return same;
}

// A segment's age is the moment when it was sealed, through remounts, crashes and collections; survivors
// go to the warm stream, survivors of survivors to the cold one.
TEST(StoreTest, SegmentsKeepTheirAges) {
  for (uint64_t seed = 1; seed <= 6; seed++) {
    SCOPED_TRACE(seed);
    Volume volume(seed, SimImage(16384));
    volume.gc = GcMode::kAuto;
    volume.format(Options());
    ASSERT_TRUE(volume.open());
    const auto overwrite = [](Volume& v, int times) {
      for (int i = 0; i < times; i++) {
        const auto count = static_cast<uint32_t>(v.rng.between(1, 3));
        const uint64_t block = v.rng.below(kFileBlocks - count);
        ASSERT_TRUE(v.world.run(Volume::write(&v, 10 + v.rng.below(kInodes), block, count)));
      }
      ASSERT_TRUE(v.world.run(v.store->commit()));
    };
    for (uint64_t ino = 10; ino < 10 + kInodes; ino++) {
      ASSERT_TRUE(volume.world.run(Volume::write(&volume, ino, 0, kFileBlocks)));
    }
    overwrite(volume, 80);
    const SegmentsSeen first = segments_of(volume);
    ASSERT_GT(count_stream(first, ondisk::Stream::kData), 5U);
    std::set<uint64_t> ages;
    for (const auto& [place, info] : first) ages.insert(info.age);
    EXPECT_GT(ages.size(), 5U);

    ASSERT_TRUE(volume.world.run(volume.store->close()));
    volume.store.reset();
    ASSERT_TRUE(volume.open());
    const SegmentsSeen remounted = segments_of(volume);
    EXPECT_GT(expect_same_ages(first, remounted), 5U);

    uint64_t warm = 0;
    for (int round = 0; round < 6; round++) {
      const SegmentsSeen before = segments_of(volume);
      GcRequest request;
      if (round == 0) request.victims_max = 3;  // of new data
      const auto report = volume.world.run(volume.store->collect_garbage(request));
      ASSERT_TRUE(report) << describe(report.error());
      EXPECT_GT(report->victims, 0U);
      const SegmentsSeen after = segments_of(volume);
      expect_same_ages(before, after);
      for (const auto& [place, info] : after) {
        const bool survivors = info.stream == static_cast<uint8_t>(ondisk::Stream::kGcWarm) ||
                               info.stream == static_cast<uint8_t>(ondisk::Stream::kGcCold);
        if (survivors && !before.contains(place)) {
          EXPECT_GE(uint64_t{info.age}, newest_age(first));
        }
      }
      if (round == 0) {
        EXPECT_EQ(count_stream(after, ondisk::Stream::kGcCold), 0U);
      }
      if (round == 5) {
        EXPECT_GT(warm, 0U);  // most of them were emptied again
        EXPECT_GT(count_stream(after, ondisk::Stream::kGcCold), 0U);
      }
      warm += count_stream(after, ondisk::Stream::kGcWarm);
      overwrite(volume, 60);
    }

    const SegmentsSeen last = segments_of(volume);
    overwrite(volume, 60);  // seals segments that only the log knows of
    volume.device->power_off_now();
    Volume crashed(seed + 1000, volume.device->crash_image(seed, CrashMode::kDropAll));
    ASSERT_TRUE(crashed.open());
    const SegmentsSeen recovered = segments_of(crashed);
    EXPECT_GT(expect_same_ages(last, recovered), 3U);
    uint64_t later = 0;
    for (const auto& [place, info] : recovered) {
      if (last.contains(place)) continue;
      EXPECT_GE(uint64_t{info.age}, newest_age(last));
      later++;
    }
    EXPECT_GT(later, 0U);
    // An age is never of the future: what is written from now on is younger.
    const uint64_t newest = newest_age(recovered);
    crashed.expect_equals(volume.model);
    overwrite(crashed, 60);
    for (const auto& [place, info] : segments_of(crashed)) {
      if (!recovered.contains(place)) {
        EXPECT_GE(uint64_t{info.age}, newest);
      }
    }
    crashed.expect_verified();
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace cofs
