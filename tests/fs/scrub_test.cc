// Scrubbing a volume that is in use: finds what is damaged and nothing else, names whose it is, writes
// metadata anew of which a good image is left, under changes, moves, crashes and every way to end it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "blockmap/volume.h"
#include "tests/testing/filled_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

class ScrubTest : public FilledVolume {
 public:
  Jobs& jobs() { return fs().jobs(); }

  const ScrubFigures& scrub(uint64_t bytes_per_second = 0) {
    const auto started = jobs().start_scrub(bytes_per_second);
    EXPECT_TRUE(started) << describe(started.error());
    wait_for_scrub();
    EXPECT_EQ(jobs().scrub().state, JobState::kDone);
    return jobs().scrub_run().figures;
  }
  void wait_for_scrub() {
    for (int i = 0; i < 1'000'000 && jobs().scrub().state == JobState::kRunning; i++) {
      volume->pass(1'000'000);
    }
    ASSERT_NE(jobs().scrub().state, JobState::kRunning);
  }
  // Blocks (nodes have one here) that hold the same node twice, or once where there is one copy. Dead ones too.
  struct NodePlaces {
    std::vector<uint64_t> blocks;
    bool is_vmap = false;  // a leaf that begins with places of file data
  };
  std::vector<NodePlaces> node_places() {
    std::map<std::string, NodePlaces> by_content;
    const SimImage& image = volume->device.image();
    for (uint64_t block = 0; block < image.block_count(); block++) {
      const SimPageRef page = image.page(block);
      if (page == nullptr || std::memcmp(page->bytes.data(), "COFNODE1", 8) != 0) continue;
      const std::string content(reinterpret_cast<const char*>(page->bytes.data()), kBlockBytes);
      NodePlaces& places = by_content[content];
      places.blocks.push_back(block);
      const auto byte = [&content](size_t at) { return static_cast<uint8_t>(content.at(at)); };
      const size_t first_item = byte(32) + 256U * byte(33);
      places.is_vmap = byte(24) == 0 && byte(28) != 0 &&
                       byte(first_item + 4) == static_cast<uint8_t>(ondisk::KeySpace::kVmap);
    }
    std::vector<NodePlaces> found;
    for (auto& [content, places] : by_content) found.push_back(std::move(places));
    return found;
  }
  void corrupt(uint64_t block) { volume->device.corrupt(block, SimDamage::kBit, block + 1); }
  uint64_t superblock_place(int copy) {
    const VolumeInfo info = store().info();
    if (copy == 0) return 16;
    if (copy == 2) return info.block_count - 1;
    const SimImage& image = volume->device.image();
    for (uint64_t block = 17; block + 1 < info.block_count; block++) {
      const SimPageRef page = image.page(block);
      if (page != nullptr && std::memcmp(page->bytes.data(), "COFSBLK1", 8) == 0) return block;
    }
    return 0;
  }
};

TEST_F(ScrubTest, AnUndamagedVolumeIsClean) {
  for (const uint32_t copies : {1U, 2U}) {
    VolumeOptions options = small_options(1, false);
    options.format.metadata_copies = copies;
    mount(1, options);
    EXPECT_EQ(jobs().scrub().state, JobState::kNever);
    fragment(60, 16, 2);
    const uint64_t read_before = counters().read_bytes;
    const ScrubFigures& figures = scrub();
    const SpaceReport space = store().space();
    EXPECT_EQ(figures.errors(), 0U);
    EXPECT_EQ(figures.repaired, 0U);
    EXPECT_TRUE(figures.problems.empty());
    // All of it was read: nothing changed meanwhile.
    EXPECT_EQ(figures.total_bytes,
              bytes_of_blocks(space.live_data_blocks + space.node_blocks + kSuperblockCopies));
    EXPECT_EQ(figures.done_bytes, figures.total_bytes);
    EXPECT_GE(counters().read_bytes - read_before, figures.done_bytes);
    EXPECT_EQ(jobs().scrub_totals().runs, 1U);
    EXPECT_EQ(jobs().scrub_totals().bytes, figures.done_bytes);
    EXPECT_GT(jobs().scrub_totals().last_end, SimClock::kWallStartSeconds - 1);
    EXPECT_EQ(counters().checksum_failures, 0U);
    expect_clean_after_remount();
    volume.reset();
  }
}

TEST_F(ScrubTest, DamagedDataIsReportedWithItsFile) {
  mount(2, small_options(2, false));
  fragment(60, 16, 2);
  // Two neighbours, one alone, and one that the device cannot read.
  corrupt(place_of("f4", 5));
  corrupt(place_of("f4", 6));
  corrupt(place_of("f10", 0));
  volume->device.mark_bad(place_of("f20", 15));
  const std::map<std::string, uint64_t> inos = {
      {"f4", files.at("f4").ino}, {"f10", files.at("f10").ino}, {"f20", files.at("f20").ino}};
  for (int round = 0; round < 2; round++) {  // nothing is laundered by the first one
    const ScrubFigures& figures = scrub();
    EXPECT_EQ(figures.data_errors, 4U);
    EXPECT_EQ(figures.errors(), 4U);
    EXPECT_EQ(figures.repaired, 0U);
    EXPECT_EQ(figures.done_bytes, figures.total_bytes);
    ASSERT_EQ(figures.problems.size(), 3U);
    EXPECT_EQ(figures.problem_count, 3U);
    const auto count = [&figures](const std::string& text) {
      return std::count_if(
          figures.problems.begin(), figures.problems.end(),
          [&text](const std::string& line) { return line.find(text) != std::string::npos; });
    };
    EXPECT_EQ(count("inode " + std::to_string(inos.at("f4")) + ": 8192 bytes at offset 20480 are damaged"), 1);
    EXPECT_EQ(count("inode " + std::to_string(inos.at("f10")) + ": 4096 bytes at offset 0 are damaged"), 1);
    EXPECT_EQ(count("inode " + std::to_string(inos.at("f20")) + ": 4096 bytes at offset 61440 are damaged"), 1);
    EXPECT_EQ(count("wrong bytes"), 2);
    for (const std::string& line : figures.problems) {
      EXPECT_EQ(volume->world.journal.count("scrub: " + line), static_cast<size_t>(round) + 1);
    }
  }
  EXPECT_EQ(jobs().scrub_totals().runs, 2U);
  EXPECT_EQ(jobs().scrub_totals().errors, 8U);
  const auto data = volume->run(fs().read(files.at("f4").ino, 5 * kBlockBytes, kBlockBytes));
  ASSERT_FALSE(data);
  EXPECT_EQ(data.error().code, Code::kChecksum);
  // What is written again is sound again; what is deleted is nobody's.
  ASSERT_TRUE(write_at("f4", 5 * kBlockBytes, random_bytes(2 * kBlockBytes)));
  ASSERT_TRUE(write_at("f10", 0, random_bytes(kBlockBytes)));
  remove("f20");
  ASSERT_TRUE(volume->run(fs().sync()));
  EXPECT_EQ(scrub().errors(), 0U);
  expect_clean_after_remount();
}

// Every node on the volume has one copy damaged, first or second by chance.
TEST_F(ScrubTest, NodesAreRepairedFromTheirOtherCopy) {
  for (uint64_t seed = 0; seed < 8; seed++) {
    SCOPED_TRACE(seed);
    const VolumeOptions options = small_options(seed, false);
    mount(seed, options);
    fragment(120, 16, 2);
    ASSERT_TRUE(volume->close());
    const SimImage image = volume->device.image();
    mount_image(seed, image, options);
    for (const NodePlaces& node : node_places()) {
      if (node.blocks.size() != 2) continue;
      const uint64_t block = node.blocks[random.below(2)];
      if (seed % 3 == 2) {
        volume->device.mark_bad(block);
      } else {
        corrupt(block);
      }
    }
    EXPECT_NE(volume->verify(false), "");
    const ScrubFigures& figures = scrub();
    EXPECT_GT(figures.node_errors, 5U);
    EXPECT_EQ(figures.repaired, figures.node_errors);
    EXPECT_EQ(figures.errors(), figures.node_errors);
    EXPECT_GE(figures.problem_count, figures.node_errors);
    EXPECT_EQ(volume->verify(true), "");
    EXPECT_EQ(scrub().errors(), 0U);
    expect_contents();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

// What is in memory was read when it was good: all copies of it are written anew.
TEST_F(ScrubTest, NodesAreRepairedFromMemory) {
  for (const uint32_t copies : {1U, 2U}) {
    SCOPED_TRACE(copies);
    VolumeOptions options = small_options(3, false);
    options.format.metadata_copies = copies;
    mount(3, options);
    fragment(120, 16, 2);
    ASSERT_TRUE(volume->run(store().checkpoint()));
    EXPECT_EQ(volume->verify(true), "");
    expect_contents();
    for (const NodePlaces& node : node_places()) {
      for (uint64_t block : node.blocks) corrupt(block);
    }
    const ScrubFigures& figures = scrub();
    EXPECT_GT(figures.node_errors, 5U);
    EXPECT_EQ(figures.repaired, figures.node_errors);
    expect_clean_after_remount();
    volume.reset();
  }
}

TEST_F(ScrubTest, NodesWithoutAGoodCopyAreReported) {
  for (uint64_t seed = 0; seed < 8; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = small_options(seed, false);
    mount(seed, options);
    fragment(120, 16, 2);
    ASSERT_TRUE(volume->close());
    const SimImage image = volume->device.image();
    mount_image(seed, image, options);
    // Some leaves, dead ones among them; nobody has read them so far.
    uint64_t lost = 0;
    for (const NodePlaces& node : node_places()) {
      if (!node.is_vmap || node.blocks.size() != 2 || random.below(2) != 0) continue;
      for (uint64_t block : node.blocks) corrupt(block);
      lost++;
    }
    ASSERT_GT(lost, 0U);
    const ScrubFigures& figures = scrub();
    EXPECT_GT(figures.node_errors, 0U);
    EXPECT_LT(figures.repaired, figures.node_errors);
    EXPECT_GT(volume->world.journal.count("scrub: copy 2 of the tree node at block"), 0U);
    EXPECT_FALSE(store().shut_down());
    // It ends, however often; and what was not hit is still there.
    const uint64_t errors = figures.errors() - figures.repaired;
    EXPECT_EQ(scrub().errors(), errors);
    EXPECT_EQ(jobs().scrub_run().figures.repaired, 0U);
    if (HasFailure()) return;
    volume.reset();
  }
}

TEST_F(ScrubTest, SuperblockCopiesAreWrittenAnew) {
  for (int set = 1; set < 8; set++) {
    SCOPED_TRACE(set);
    const VolumeOptions options = small_options(4, false);
    mount(4, options);
    ASSERT_TRUE(create("file", 20));
    ASSERT_TRUE(volume->run(fs().sync()));
    for (int checkpoints = 0; checkpoints < set % 3; checkpoints++) {
      ASSERT_TRUE(volume->run(store().checkpoint()));
    }
    uint64_t damaged = 0;
    for (int copy = 0; copy < kSuperblockCopies; copy++) {
      if ((set >> copy & 1) == 0) continue;
      const uint64_t place = superblock_place(copy);
      ASSERT_NE(place, 0U);
      if (damaged++ % 2 == 0) {
        corrupt(place);
      } else {
        volume->device.mark_bad(place);
      }
    }
    const ScrubFigures& figures = scrub();
    EXPECT_EQ(figures.superblock_errors, damaged);
    EXPECT_EQ(figures.problem_count, damaged);
    EXPECT_EQ(figures.repaired, damaged);
    EXPECT_EQ(scrub().errors(), 0U);
    volume->abandon();
    const SimImage image = volume->device.image();
    mount_image(5, image, options);
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
    volume.reset();
  }
}

// A superblock that the device said it had written.
TEST_F(ScrubTest, ALostSuperblockWriteIsFound) {
  VolumeOptions options = small_options(10, false);
  options.device.may_damage = [](uint64_t block) { return block == 16; };
  mount(10, options);
  ASSERT_TRUE(create("file", 20));
  SimFaults faults;
  faults.phantom_write = 1;
  volume->device.set_faults(faults);
  const SimPageRef before = volume->device.image().page(16);
  for (int i = 0; i < kSuperblockCopies; i++) {
    ASSERT_TRUE(volume->run(store().checkpoint()));
  }
  volume->device.set_faults(SimFaults());
  ASSERT_EQ(volume->device.image().page(16)->bytes, before->bytes);
  const ScrubFigures& figures = scrub();
  EXPECT_EQ(figures.superblock_errors, 1U);
  EXPECT_EQ(figures.repaired, 1U);
  EXPECT_EQ(volume->world.journal.count("older than it must be"), 1U);
  EXPECT_EQ(scrub().errors(), 0U);
  expect_clean_after_remount();
}

// Files change, are created and deleted, and everything is moved while it is read: not one false alarm.
TEST_F(ScrubTest, ChangesMeanwhileAreNoDamage) {
  uint64_t scrubs = 0;
  for (uint64_t seed = 0; seed < 60; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("scrub and changes, seed " + std::to_string(seed));
    VolumeOptions options = small_options(seed, seed % 2 == 0);
    options.store.gc = GcMode::kAuto;
    options.store.discard = seed % 4 != 0;
    options.store.cache_bytes = 4096 * (seed % 5 == 0 ? 6 : 4096);
    options.fs.dirty_bytes_max = 64 * kBlockBytes;
    mount(seed, options);
    fragment(60, 12, 3);
    // Writes that are on their way for long after their blocks were mapped.
    if (seed % 3 == 0) {
      volume->device.delay_writes_at(volume->device.operation_count() + 1, 1'000'000, 5'000'000);
    }
    ASSERT_TRUE(jobs().start_scrub(0));
    ASSERT_TRUE(jobs().start_gc(0));
    for (int i = 0; i < 150; i++) {
      // Now and then a read that sees what is there in the end, after checkpoints that moved nodes.
      if (seed % 3 == 1 && i % 8 == 0) volume->device.delay_next_read(200'000'000);
      const auto at =
          std::next(files.begin(), static_cast<std::ptrdiff_t>(random.below(files.size())));
      const std::string name = at->first;
      switch (random.below(9)) {
        case 8: ASSERT_TRUE(volume->run(store().checkpoint())); break;
        case 0:
          if (files.size() > 8) remove(name);
          break;
        case 1: ASSERT_TRUE(create("new" + std::to_string(i), random.between(1, 20))); break;
        case 2: ASSERT_TRUE(volume->run(fs().sync())); break;
        case 3: volume->pass(random.below(3'000'000)); break;
        default: {
          const uint64_t blocks = at->second.bytes.size() / kBlockBytes;
          const auto written = write_at(name, random.below(blocks) * kBlockBytes,
                                        random_bytes(random.between(1, 3) * kBlockBytes));
          ASSERT_TRUE(written) << describe(written.error());
        }
      }
      if (jobs().scrub().state == JobState::kRunning) continue;
      ASSERT_EQ(jobs().scrub().state, JobState::kDone);
      ASSERT_EQ(jobs().scrub_run().figures.errors(), 0U)
          << jobs().scrub_run().figures.problems.front();
      scrubs++;
      ASSERT_TRUE(jobs().start_scrub(0));
    }
    wait_for_scrub();
    EXPECT_EQ(jobs().scrub_run().figures.errors(), 0U);
    EXPECT_EQ(jobs().scrub_totals().errors, 0U);
    expect_contents();
    volume->settle();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
  EXPECT_GT(scrubs, 30U);
}

// A damaged block that is moved while it is looked for is found nevertheless.
TEST_F(ScrubTest, DamageThatIsMovedIsFound) {
  for (uint64_t seed = 0; seed < 20; seed++) {
    SCOPED_TRACE(seed);
    mount(seed, small_options(seed, seed % 2 == 0));
    fragment(96, 12, 3);
    for (const char* name : {"f0", "f30", "f93"}) corrupt(place_of(name, seed % 12));
    ASSERT_TRUE(jobs().start_gc(0));
    volume->pass(seed * 500'000);
    const ScrubFigures& figures = scrub();
    EXPECT_EQ(figures.data_errors, 3U);
    EXPECT_EQ(figures.problems.size(), 3U);
    for (const char* name : {"f0", "f30", "f93"}) files.erase(name);
    expect_contents();
    volume->settle();
    if (HasFailure()) return;
    volume.reset();
  }
}

TEST_F(ScrubTest, TheRateIsKept) {
  mount(6, small_options(6, false));
  fragment(120, 32, 1);
  const uint64_t start = volume->world.clock.monotonic_ns();
  const uint64_t unlimited_bytes = scrub().done_bytes;
  const uint64_t unlimited_ns = jobs().scrub().elapsed_ns;
  const uint64_t rate = 1 << 20;
  ASSERT_TRUE(jobs().start_scrub(rate));
  volume->pass(5 * kSecondNs);
  // At each moment no more than the rate allows, but for the one batch under way.
  EXPECT_EQ(jobs().scrub().state, JobState::kRunning);
  EXPECT_LE(jobs().scrub_run().figures.done_bytes, 5 * rate + (2U << 20));
  EXPECT_GE(jobs().scrub_run().figures.done_bytes, 4 * rate);
  wait_for_scrub();
  const double seconds = static_cast<double>(jobs().scrub().elapsed_ns) / 1e9;
  const double expected =
      static_cast<double>(jobs().scrub_run().figures.done_bytes) / static_cast<double>(rate);
  EXPECT_NEAR(seconds, expected, 0.1 * expected);
  EXPECT_EQ(jobs().scrub_run().figures.done_bytes, unlimited_bytes);
  EXPECT_LT(unlimited_ns, kSecondNs);
  EXPECT_GT(volume->world.clock.monotonic_ns(), start);
}

// Without a rate it takes a quarter of the time while others read.
TEST_F(ScrubTest, GivesWayToOthers) {
  mount(7, small_options(7, false));
  fragment(120, 32, 1);
  (void)scrub();
  const uint64_t alone_ns = jobs().scrub().elapsed_ns;
  ASSERT_TRUE(jobs().start_scrub(0));
  while (jobs().scrub().state == JobState::kRunning) {
    ASSERT_TRUE(volume->run(fs().read(files.at("f100").ino, 0, kBlockBytes)));
  }
  EXPECT_GT(jobs().scrub().elapsed_ns, 2 * alone_ns);
}

TEST_F(ScrubTest, CancelAndUnmountEndItAtOnce) {
  for (const bool by_close : {false, true}) {
    mount(8, small_options(8, false));
    fragment(100, 32, 1);
    ASSERT_TRUE(jobs().start_scrub(4096));  // it sleeps for minutes
    const auto second = jobs().start_scrub(0);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Code::kBusy);
    volume->pass(kSecondNs);
    ASSERT_EQ(jobs().scrub().state, JobState::kRunning);
    const uint64_t start = volume->world.clock.monotonic_ns();
    if (by_close) {
      ASSERT_TRUE(volume->close());
      EXPECT_LT(volume->world.clock.monotonic_ns() - start, kSecondNs);
      ASSERT_TRUE(volume->open());
      EXPECT_TRUE(store().info().was_clean);
    } else {
      EXPECT_TRUE(jobs().cancel(JobKind::kScrub));
      volume->pass(kSecondNs / 10);
      EXPECT_EQ(jobs().scrub().state, JobState::kCancelled);
      EXPECT_FALSE(jobs().cancel(JobKind::kScrub));
      EXPECT_EQ(jobs().scrub_totals().runs, 0U);
      EXPECT_EQ(scrub().errors(), 0U);
    }
    expect_clean_after_remount();
    volume.reset();
  }
}

TEST_F(ScrubTest, EndsWithTheStoreWhereverItIs) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    const VolumeOptions options = small_options(seed, false);
    mount(seed, options);
    fragment(96, 16, 4);
    ASSERT_TRUE(jobs().start_scrub(seed % 4 == 0 ? 100'000 : 0));
    volume->pass(seed * 300'000);
    if (seed % 2 == 0) volume->device.power_off_now();
    volume->abandon();
    if (seed % 2 == 0) {
      const SimImage image = volume->device.crash_image(seed, CrashMode::kRandom);
      mount_image(seed, image, options);
    } else {
      const SimImage image = volume->device.image();
      mount_image(seed, image, options);
    }
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
    if (HasFailure()) return;
    volume.reset();
  }
}

TEST_F(ScrubTest, AReadOnlyMountIsReadOnly) {
  VolumeOptions options = small_options(9, false);
  mount(9, options);
  fragment(60, 16, 2);
  ASSERT_TRUE(volume->close());
  const SimImage image = volume->device.image();
  options.store.read_only = true;
  options.fs.read_only = true;
  mount_image(9, image, options);
  uint64_t damaged = 0;
  for (const NodePlaces& node : node_places()) {
    if (node.blocks.size() != 2) continue;
    corrupt(node.blocks[0]);
    damaged++;
  }
  corrupt(superblock_place(0));
  corrupt(place_of("f4", 5));
  const uint64_t changes = volume->device.operation_count();
  const ScrubFigures& figures = scrub();
  EXPECT_EQ(figures.superblock_errors, 1U);
  EXPECT_GT(figures.node_errors, 3U);
  EXPECT_LE(figures.node_errors, damaged);
  EXPECT_EQ(figures.data_errors, 1U);
  EXPECT_EQ(figures.repaired, 0U);
  EXPECT_EQ(volume->device.operation_count(), changes);
}

// The power goes at each operation of a scrub that repairs: nothing is lost, and the next one completes it.
TEST_F(ScrubTest, ACrashWhileRepairingLosesNothing) {
  uint64_t states = 0;
  for (uint64_t seed = 1; seed <= 3; seed++) {
    const VolumeOptions options = small_options(seed, false);
    mount(seed, options);
    fragment(60, 12, 3);
    ASSERT_TRUE(volume->close());
    const std::map<std::string, File> expected = files;
    const SimImage whole = volume->device.image();
    for (uint64_t n = 1;; n++) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " operation " + std::to_string(n));
      set_current_case("scrub crash, seed " + std::to_string(seed) + " operation " + std::to_string(n));
      mount_image(n, whole, options);
      // Now, because a mount's checkpoint may write nodes anew.
      for (const NodePlaces& node : node_places()) {
        if (node.blocks.size() == 2) corrupt(node.blocks[random.below(2)]);
      }
      corrupt(superblock_place(static_cast<int>(n % 3)));
      volume->device.power_off_at(volume->device.operation_count() + n);
      ASSERT_TRUE(jobs().start_scrub(0));
      wait_for_scrub();
      const bool went = volume->device.powered_off();
      if (!went) {
        EXPECT_EQ(jobs().scrub().state, JobState::kDone);
        EXPECT_GT(jobs().scrub_run().figures.repaired, 3U);
      }
      volume->abandon();
      if (!went) break;
      for (const CrashMode mode : {CrashMode::kDropAll, CrashMode::kKeepAll, CrashMode::kRandom}) {
        const SimImage image = volume->device.crash_image(n, mode);
        auto crashed = std::move(volume);
        files = expected;
        mount_image(n + 1, image, options);
        expect_contents();
        const ScrubFigures& figures = scrub();
        EXPECT_EQ(figures.errors(), figures.repaired);
        EXPECT_EQ(volume->verify(true), "");
        states++;
        volume = std::move(crashed);
        if (HasFailure()) return;
      }
      volume.reset();
    }
    volume.reset();
  }
  std::printf("crash states of scrubbing: %llu\n", static_cast<unsigned long long>(states));
  EXPECT_GT(states, 30U);
}

}  // namespace
}  // namespace cofs
