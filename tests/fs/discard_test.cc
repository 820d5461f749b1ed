// Discards: of freed segments and of all free space (trim). Never of anything that some crash could still
// need, and nobody waits for them.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "blockmap/store.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = kBlockBytes;
constexpr uint64_t kSecondNs = 1'000'000'000;

VolumeOptions discard_options(uint64_t seed) {
  VolumeOptions options;
  options.device_blocks = 4096 + 40;
  options.format.segment_blocks = 32;
  options.format.node_bytes = 4096;
  options.store.dirty_nodes_max = 64;
  options.store.background = false;
  options.store.gc = GcMode::kAuto;
  options.device.seed = seed;
  return options;
}

// A block of a file may read as any version since the last sync that was answered.
struct File {
  uint64_t ino = 0;
  std::vector<std::vector<char>> versions;  // of each block: fills, the last synced one first
};

class Discard : public testing::Test {
 public:
  void mount(uint64_t seed, const VolumeOptions& volume_options) {
    options = volume_options;
    volume = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
    random = SimRandom(seed + 3);
    files.clear();
  }
  Store& store() { return volume->fs().store(); }
  void create(const std::string& name) {
    bool created = false;
    const auto inode = volume->run(volume->fs().create(ondisk::kRootInode, name, S_IFREG | 0644,
                                                       Caller(), true, &created));
    ASSERT_TRUE(inode) << describe(inode.error());
    files[name].ino = inode->ino;
  }
  Result<> write(File& file, uint64_t block, uint64_t blocks) {
    const char fill = static_cast<char>(random.between(1, 120));
    const std::string bytes(blocks * kBlock, fill);
    if (file.versions.size() < block + blocks) file.versions.resize(block + blocks, {'\0'});
    for (uint64_t i = 0; i < blocks; i++) file.versions[block + i].push_back(fill);
    return volume->run(volume->fs().write(
        file.ino, WriteData::fill(volume->world.buffers, block * kBlock, bytes.data(),
                                  static_cast<uint32_t>(bytes.size())),
        false, false));
  }
  void sync() {
    const auto done = volume->run(volume->fs().sync());
    ASSERT_TRUE(done) << describe(done.error());
    for (auto& [name, file] : files) {
      for (auto& versions : file.versions) versions.erase(versions.begin(), versions.end() - 1);
    }
  }
  // What a crash here would leave: all files as of the last sync or later.
  static void check(TestVolume& crashed, const std::map<std::string, File>& expected) {
    const auto opened = crashed.open();
    ASSERT_TRUE(opened) << describe(opened.error());
    for (const auto& [name, file] : expected) {
      for (uint64_t block = 0; block < file.versions.size(); block++) {
        const auto data = crashed.run(crashed.fs().read(file.ino, block * kBlock, kBlock));
        ASSERT_TRUE(data) << name << " block " << block << ": " << describe(data.error());
        const char found = data->length == 0 ? '\0' : static_cast<char>(*data->data());
        const auto& versions = file.versions[block];
        EXPECT_NE(std::find(versions.begin(), versions.end(), found), versions.end())
            << name << " block " << block;
      }
    }
    EXPECT_EQ(crashed.verify(true), "");
  }

  VolumeOptions options;
  std::unique_ptr<TestVolume> volume;
  SimRandom random{1};
  std::map<std::string, File> files;
};

// At every discard, the power may go: with or without the discard, all that was synced is there.
TEST_F(Discard, NothingThatACrashMayNeedIsDiscarded) {
  uint64_t states = 0;
  uint64_t discards = 0;
  for (uint64_t seed = 0; seed < 12; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("discards, seed " + std::to_string(seed));
    mount(seed, discard_options(seed));
    for (int i = 0; i < 12; i++) create("f" + std::to_string(i));
    sync();
    struct State {
      SimImage image;
      std::map<std::string, File> files;
    };
    std::vector<State> crashes;
    volume->device.set_on_discard([&](BlockRange range) {
      discards++;
      EXPECT_EQ((range.start - 32) % options.format.segment_blocks, 0U);
      EXPECT_EQ(range.count % options.format.segment_blocks, 0U);
      if (crashes.size() >= 30 && random.below(10) != 0) return;
      const CrashMode modes[] = {CrashMode::kKeepAll, CrashMode::kKeepAll, CrashMode::kRandom,
                                 CrashMode::kDropAll};
      crashes.push_back(
          State{volume->device.crash_image(random.next(), modes[crashes.size() % 4]), files});
    });
    for (int i = 0; i < 250; i++) {
      File& file = files.at("f" + std::to_string(random.below(12)));
      ASSERT_TRUE(write(file, random.below(60), random.between(1, 24)));
      const uint64_t what = random.below(20);
      if (what < 5) sync();
      if (what == 5) {
        ASSERT_TRUE(volume->run(store().checkpoint()));
      }
      if (what == 6) {
        const auto trimmed = volume->run(store().trim(BlockRange{0, UINT64_MAX}, 0));
        ASSERT_TRUE(trimmed) << describe(trimmed.error());
      }
      if (what == 7) {
        GcRequest request;
        request.victims_max = 3;
        ASSERT_TRUE(volume->run(store().collect_garbage(request)));
      }
    }
    volume->device.set_on_discard(nullptr);
    for (State& state : crashes) {
      TestVolume crashed(seed, state.image, options);
      check(crashed, state.files);
      states++;
      if (HasFailure()) return;
    }
    EXPECT_EQ(volume->verify(true), "");
    volume.reset();
  }
  std::printf("discards %llu, crash states %llu\n", static_cast<unsigned long long>(discards),
              static_cast<unsigned long long>(states));
  EXPECT_GT(discards, 500U);
  EXPECT_GT(states, 300U);
}

// Neighbours go in one request; nodiscard sends none.
TEST_F(Discard, NeighboursAreMerged) {
  for (const bool wanted : {true, false}) {
    VolumeOptions changed = discard_options(5);
    changed.store.discard = wanted;
    mount(5, changed);
    create("large");
    for (uint64_t i = 0; i < 20; i++) ASSERT_TRUE(write(files.at("large"), i * 60, 60));
    sync();
    std::vector<BlockRange> ranges;
    volume->device.set_on_discard([&](BlockRange range) { ranges.push_back(range); });
    ASSERT_TRUE(volume->run(volume->fs().unlink(ondisk::kRootInode, "large")));
    volume->run(volume->fs().forget(files.at("large").ino));
    volume->settle();
    ASSERT_TRUE(volume->run(store().checkpoint()));
    ASSERT_TRUE(volume->run(store().checkpoint()));
    volume->settle();
    uint64_t blocks = 0;
    for (const BlockRange& range : ranges) blocks += range.count;
    if (wanted) {
      EXPECT_GT(blocks, 1000U);
      EXPECT_LT(ranges.size(), 12U) << "of " << blocks / 32 << " segments";
      EXPECT_EQ(store().counters().discarded_bytes, bytes_of_blocks(blocks));
    } else {
      EXPECT_EQ(blocks, 0U);
    }
    volume.reset();
  }
}

TEST_F(Discard, TrimHonoursItsRange) {
  VolumeOptions changed = discard_options(6);
  changed.store.discard = false;
  mount(6, changed);
  create("file");
  ASSERT_TRUE(write(files.at("file"), 0, 60));
  sync();
  std::vector<BlockRange> ranges;
  volume->device.set_on_discard([&](BlockRange range) { ranges.push_back(range); });
  const auto blocks = [&] {
    uint64_t sum = 0;
    for (const BlockRange& range : ranges) sum += range.count;
    ranges.clear();
    return sum;
  };
  const SpaceReport space = store().space();
  const auto all = volume->run(store().trim(BlockRange{0, UINT64_MAX}, 0));
  ASSERT_TRUE(all);
  EXPECT_EQ(*all, (space.free_segments - space.waiting_segments) * 32);
  for (const BlockRange& range : ranges) EXPECT_LE(range.count, 4096U / 16);  // a few at a time
  EXPECT_GT(ranges.size(), 10U);
  EXPECT_EQ(blocks(), *all);
  EXPECT_EQ(store().counters().trimmed_bytes, bytes_of_blocks(*all));
  // Parts of segments, too, but nothing outside of the range.
  const auto part = volume->run(store().trim(BlockRange{3001, 201}, 0));
  ASSERT_TRUE(part);
  EXPECT_EQ(*part, 201U);
  for (const BlockRange& range : ranges) {
    EXPECT_GE(range.start, 3001U);
    EXPECT_LE(range.end(), 3202U);
  }
  blocks();
  const auto none = volume->run(store().trim(BlockRange{0, UINT64_MAX}, 4096));
  ASSERT_TRUE(none);
  EXPECT_EQ(*none, 0U);  // nothing so large is free in one piece
  EXPECT_EQ(blocks(), 0U);
  const auto behind = volume->run(store().trim(BlockRange{options.device_blocks, 1}, 0));
  ASSERT_FALSE(behind);
  EXPECT_EQ(behind.error().code, Code::kInvalid);
  EXPECT_EQ(volume->verify(true), "");
}

TEST_F(Discard, TrimSaysWhatIsMissing) {
  VolumeOptions changed = discard_options(7);
  changed.device.can_discard = false;
  mount(7, changed);
  const auto trimmed = volume->run(store().trim(BlockRange{0, UINT64_MAX}, 0));
  ASSERT_FALSE(trimmed);
  EXPECT_EQ(trimmed.error().code, Code::kNotSupported);
  ASSERT_TRUE(volume->close());
  changed.device.can_discard = true;
  changed.store.read_only = true;
  changed.fs.read_only = true;
  TestVolume reader(7, volume->device.image(), changed);
  ASSERT_TRUE(reader.open());
  const auto refused = reader.run(reader.fs().store().trim(BlockRange{0, UINT64_MAX}, 0));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kReadOnly);
}

// While the whole volume is trimmed on a slow device, files are written, and hear no ENOSPC.
TEST_F(Discard, WritersGoOnWhileTrimming) {
  for (uint64_t seed = 0; seed < 6; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions changed = discard_options(seed);
    changed.device.latency.mean_ns = 5'000'000;
    mount(seed, changed);
    create("a");
    bool done = false;
    uint64_t trimmed = 0;
    const auto trimmer = [](Discard* test, bool* finished, uint64_t* sum) -> Task<> {
      for (int i = 0; i < 3; i++) {
        auto result = co_await test->store().trim(BlockRange{0, UINT64_MAX}, 0);
        EXPECT_TRUE(result) << describe(result.error());
        if (result) *sum += *result;
      }
      *finished = true;
    };
    spawn(volume->world.executor, trimmer(this, &done, &trimmed));
    uint64_t writes = 0;
    uint64_t slowest_ns = 0;
    while (!done) {
      const uint64_t start = volume->world.clock.monotonic_ns();
      ASSERT_TRUE(write(files.at("a"), random.below(900), random.between(1, 40)));
      slowest_ns = std::max(slowest_ns, volume->world.clock.monotonic_ns() - start);
      writes++;
      if (writes % 4 == 0) sync();
      volume->pass(1'000'000);
    }
    EXPECT_GT(writes, 20U);
    EXPECT_GT(trimmed, 4096U);
    EXPECT_LT(slowest_ns, kSecondNs);
    EXPECT_EQ(volume->verify(true), "");
    const SimImage image = volume->device.image();
    volume.reset();
    TestVolume again(seed, image, options);
    check(again, files);
    if (HasFailure()) return;
  }
}

// A full volume is trimmed on a slow device: nothing that deletions and checkpoints need is lent.
TEST_F(Discard, AFullVolumeIsTrimmed) {
  for (uint64_t seed = 0; seed < 6; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions changed = discard_options(seed);
    changed.store.discard = seed % 2 == 0;
    changed.device.latency.mean_ns = 5'000'000;
    mount(seed, changed);
    int made = 0;
    while (true) {
      const std::string name = "f" + std::to_string(made++);
      bool created = false;
      const auto inode = volume->run(volume->fs().create(ondisk::kRootInode, name, S_IFREG | 0644,
                                                         Caller(), true, &created));
      if (!inode) break;
      files[name].ino = inode->ino;
      if (!write(files.at(name), 0, 24)) break;
    }
    ASSERT_GT(made, 60);
    uint64_t running = 4;
    const auto trimmer = [](Discard* test, uint64_t* left) -> Task<> {
      for (int i = 0; i < 8; i++) {
        auto result = co_await test->store().trim(BlockRange{0, UINT64_MAX}, 0);
        EXPECT_TRUE(result) << describe(result.error());
      }
      --*left;
    };
    for (int i = 0; i < 4; i++) spawn(volume->world.executor, trimmer(this, &running));
    for (int i = 0; running != 0 && i < made - 8; i++) {
      const std::string name = "f" + std::to_string(i);
      const auto removed = volume->run(volume->fs().unlink(ondisk::kRootInode, name));
      ASSERT_TRUE(removed) << describe(removed.error());
      volume->run(volume->fs().forget(files.at(name).ino));
      files.erase(name);
      if (i % 5 == 0) {
        ASSERT_TRUE(volume->run(store().checkpoint()));
      }
    }
    volume->settle();
    EXPECT_EQ(running, 0U);
    EXPECT_FALSE(store().shut_down());
    EXPECT_EQ(volume->verify(true), "");
    volume.reset();
  }
}

}  // namespace
}  // namespace cofs
