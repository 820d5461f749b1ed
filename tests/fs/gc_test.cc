// Garbage collection through the whole filesystem: moves what lives and nothing else, under crashes,
// faults of copies, concurrent changes and slow readers; and the room that it makes.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
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

VolumeOptions gc_options(uint64_t seed, bool device_copies) {
  VolumeOptions options;
  options.device_blocks = 8192 + 40;
  options.format.segment_blocks = 64;
  options.format.node_bytes = 4096;
  options.store.dirty_nodes_max = 64;
  options.store.background = false;
  options.store.gc = GcMode::kAuto;
  options.store.copy.timeout_ns = kSecondNs;
  options.store.copy_verify_percent = 100;
  options.device.seed = seed;
  if (device_copies) {
    CopyLimits limits;
    limits.engine = "sim";
    limits.ranges_max = 8;
    limits.range_blocks_max = 16;
    limits.operation_blocks_max = 64;
    limits.in_flight_max = 4;
    options.device.copies.push_back(limits);
  }
  return options;
}

class Gc : public testing::Test {
 public:
  struct File {
    uint64_t ino = 0;
    std::string bytes;
  };

  void mount(uint64_t seed, const VolumeOptions& options) {
    volume = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
    random = SimRandom(seed + 99);
    files.clear();
  }
  void mount_image(uint64_t seed, const SimImage& image, const VolumeOptions& options) {
    volume = std::make_unique<TestVolume>(seed, image, options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
  }
  FileSystem& fs() { return volume->fs(); }
  Store& store() { return volume->fs().store(); }
  const StoreCounters& counters() { return store().counters(); }

  std::string random_bytes(uint64_t length) {
    std::string bytes(length, '\0');
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      const uint64_t word = random.next();
      std::memcpy(bytes.data() + i, &word, 8);
    }
    return bytes;
  }
  Result<> write_at(uint64_t ino, uint64_t at, const std::string& bytes) {
    return volume->run(fs().write(
        ino,
        WriteData::fill(volume->world.buffers, at, bytes.data(), static_cast<uint32_t>(bytes.size())),
        false, false));
  }
  Result<> create(const std::string& name, uint64_t blocks) {
    bool created = false;
    auto inode = volume->run(
        fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(), true, &created));
    if (!inode) return fail(inode.error());
    File& file = files[name];
    file.ino = inode->ino;
    const std::string bytes = random_bytes(blocks * kBlock);
    auto written = write_at(file.ino, 0, bytes);
    if (!written) return written;
    file.bytes = bytes;
    return {};
  }
  void remove(const std::string& name) {
    const auto removed = volume->run(fs().unlink(ondisk::kRootInode, name));
    ASSERT_TRUE(removed) << describe(removed.error());
    volume->run(fs().forget(files.at(name).ino));
    volume->settle();
    files.erase(name);
  }
  // Many small files, every `keep`-th of which stays.
  void fragment(int count, uint64_t blocks, int keep) {
    for (int i = 0; i < count; i++) {
      const auto done = create("f" + std::to_string(i), blocks);
      ASSERT_TRUE(done) << describe(done.error());
      if (i % 8 == 7) {
        ASSERT_TRUE(volume->run(fs().sync()));
      }
    }
    ASSERT_TRUE(volume->run(fs().sync()));
    for (int i = 0; i < count; i++) {
      if (i % keep != 0) remove("f" + std::to_string(i));
    }
    ASSERT_TRUE(volume->run(fs().sync()));
  }
  std::string read_file(const File& file) {
    std::string bytes;
    while (bytes.size() < file.bytes.size()) {
      const auto n = static_cast<uint32_t>(
          std::min<uint64_t>(file.bytes.size() - bytes.size(), 128 * kBlock));
      const auto data = volume->run(fs().read(file.ino, bytes.size(), n));
      if (!data) return "error: " + describe(data.error());
      if (data->length == 0) break;
      bytes.append(reinterpret_cast<const char*>(data->data()), data->length);
    }
    return bytes;
  }
  void expect_contents() {
    for (const auto& [name, file] : files) {
      const std::string found = read_file(file);
      EXPECT_TRUE(found == file.bytes) << name << ": " << found.substr(0, 60);
    }
  }
  void expect_clean_after_remount() {
    EXPECT_EQ(volume->verify(true), "");
    const auto closed = volume->close();
    ASSERT_TRUE(closed) << describe(closed.error());
    ASSERT_TRUE(volume->open());
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
  }
  GcReport collect(uint64_t victims = UINT64_MAX) {
    GcRequest request;
    request.victims_max = victims;
    const auto report = volume->run(store().collect_garbage(request));
    EXPECT_TRUE(report) << describe(report.error());
    return report ? *report : GcReport();
  }

  std::unique_ptr<TestVolume> volume;
  SimRandom random{4711};
  std::map<std::string, File> files;
};

TEST_F(Gc, MovesWhatLivesAndFreesTheRest) {
  for (const bool device : {false, true}) {
    SCOPED_TRACE(device);
    mount(1, gc_options(1, device));
    fragment(120, 16, 4);
    ASSERT_TRUE(volume->run(store().checkpoint()));
    const SpaceReport before = store().space();
    const uint64_t data_before = counters().data_bytes;
    const GcReport report = collect();
    ASSERT_TRUE(volume->run(store().checkpoint()));
    const SpaceReport after = store().space();
    EXPECT_GT(report.victims, 10U);
    EXPECT_EQ(report.victims, counters().gc_victims);
    EXPECT_EQ(report.victims, counters().gc_segments_freed);
    EXPECT_EQ(counters().gc_skipped, 0U);
    EXPECT_EQ(bytes_of_blocks(report.moved_blocks), counters().gc_relocated_bytes);
    EXPECT_EQ(counters().gc_relocated_bytes,
              device ? counters().gc_device_bytes : counters().gc_host_bytes);
    EXPECT_EQ(device ? counters().gc_host_bytes : counters().gc_device_bytes, 0U);
    // What users copied is counted apart.
    for (uint64_t bytes : store().copy_counters().bytes) EXPECT_EQ(bytes, 0U);
    EXPECT_EQ(store().gc_copy_counters().bytes[static_cast<size_t>(device ? CopyPath::kDevice
                                                                          : CopyPath::kHost)],
              counters().gc_relocated_bytes);
    EXPECT_EQ(counters().data_bytes, data_before);
    EXPECT_EQ(after.live_data_blocks, before.live_data_blocks);
    EXPECT_GT(after.free_segments, before.free_segments + 10);
    // No segment is left that would still gain.
    EXPECT_LE(after.winnable_blocks, 64U);
    EXPECT_GE(after.available_blocks + 2 * 64, before.available_blocks);
    expect_contents();
    expect_clean_after_remount();
    volume.reset();
  }
}

TEST_F(Gc, OffMovesNothingByItself) {
  VolumeOptions options = gc_options(2, false);
  options.store.gc = GcMode::kOff;
  mount(2, options);
  fragment(120, 16, 4);
  volume->pass(600 * kSecondNs);
  while (create("more" + std::to_string(files.size()), 16)) {
  }
  files.erase("more" + std::to_string(files.size() - 1));  // its data found no room
  EXPECT_EQ(store().space().winnable_blocks, 0U);
  EXPECT_EQ(counters().gc_victims, 0U);
  EXPECT_EQ(counters().gc_relocated_bytes, 0U);
  expect_contents();
}

// Blocks that are read all the time: before, while and after they are moved.
TEST_F(Gc, ReadersSeeTheSameBytesThroughout) {
  for (uint64_t seed = 0; seed < 10; seed++) {
    SCOPED_TRACE(seed);
    mount(seed, gc_options(seed, seed % 2 == 0));
    fragment(80, 16, 4);
    bool collecting = true;
    uint64_t reads = 0;
    const auto reader = [](Gc* test, std::string name, const bool* go, uint64_t* count) -> Task<> {
      while (*go) {
        const File& file = test->files.at(name);
        auto data = co_await test->fs().read(file.ino, 0, static_cast<uint32_t>(file.bytes.size()));
        EXPECT_TRUE(data) << describe(data.error());
        if (data) {
          EXPECT_EQ(std::memcmp(data->data(), file.bytes.data(), data->length), 0);
        }
        ++*count;
      }
    };
    for (int i = 0; i < 80; i += 16) {
      spawn(volume->world.executor, reader(this, "f" + std::to_string(i), &collecting, &reads));
    }
    const GcReport report = collect();
    ASSERT_TRUE(volume->run(store().checkpoint()));
    collecting = false;
    volume->settle();
    EXPECT_GT(report.victims, 5U);
    EXPECT_GT(reads, 20U);
    expect_clean_after_remount();
    volume.reset();
  }
}

// Overwrites and deletions while the same blocks are copied: compare and set leaves them alone.
TEST_F(Gc, ChangesMeanwhileWin) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    mount(seed, gc_options(seed, seed % 2 == 0));
    fragment(96, 12, 3);
    GcRequest request;
    bool done = false;
    const auto collector = [](Gc* test, GcRequest r, bool* finished) -> Task<> {
      auto report = co_await test->store().collect_garbage(r);
      EXPECT_TRUE(report) << describe(report.error());
      *finished = true;
    };
    spawn(volume->world.executor, collector(this, request, &done));
    for (int i = 0; i < 400 && !done; i++) {
      const auto at = std::next(files.begin(), static_cast<std::ptrdiff_t>(random.below(files.size())));
      File& file = at->second;
      const uint64_t block = random.below(file.bytes.size() / kBlock);
      const std::string bytes = random_bytes(kBlock * random.between(1, 3));
      if (random.below(10) == 0 && files.size() > 4) {
        remove(at->first);
        continue;
      }
      const auto written = write_at(file.ino, block * kBlock, bytes);
      ASSERT_TRUE(written) << describe(written.error());
      if (file.bytes.size() < block * kBlock + bytes.size()) {
        file.bytes.resize(block * kBlock + bytes.size());
      }
      std::memcpy(file.bytes.data() + block * kBlock, bytes.data(), bytes.size());
      if (random.below(6) == 0) {
        ASSERT_TRUE(volume->run(fs().sync()));
      }
      expect_contents();
    }
    volume->settle();
    EXPECT_TRUE(done);
    expect_contents();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

// The power goes at each operation that a collection makes the device do.
TEST_F(Gc, ACrashAtAnyMomentLosesNothing) {
  uint64_t states = 0;
  for (uint64_t seed = 1; seed <= 4; seed++) {
    VolumeOptions options = gc_options(seed, seed % 2 == 0);
    options.format.segment_blocks = seed < 3 ? 64 : 16;
    options.format.log_limit_blocks = 64;
    options.store.discard = seed != 3;
    if (seed == 4) options.store.gc = GcMode::kOff;  // only by request
    mount(seed, options);
    fragment(60, 12, 3);
    ASSERT_TRUE(volume->close());
    const SimImage base = volume->device.image();
    const std::map<std::string, File> expected = files;
    for (uint64_t n = 1;; n += 1 + n / 64) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " operation " + std::to_string(n));
      set_current_case("gc crash, seed " + std::to_string(seed) + " operation " + std::to_string(n));
      mount_image(n, base, options);
      volume->device.power_off_at(volume->device.operation_count() + n);
      // Collect, make it durable, use what became free, until the power goes.
      for (int round = 0; round < 3 && !volume->device.powered_off(); round++) {
        GcRequest request;
        request.victims_max = 6;
        (void)volume->run(store().collect_garbage(request));
        (void)volume->run(fs().sync());
        (void)volume->run(store().checkpoint());
        const std::string name = "new" + std::to_string(round);
        (void)create(name, 100);
        files.erase(name);
        (void)volume->run(fs().sync());
      }
      const bool went = volume->device.powered_off();
      volume->abandon();
      if (!went) break;
      for (const CrashMode mode : {CrashMode::kDropAll, CrashMode::kKeepAll, CrashMode::kRandom}) {
        const SimImage image = volume->device.crash_image(n, mode);
        auto crashed = std::move(volume);
        mount_image(n + 1, image, options);
        files = expected;
        EXPECT_EQ(volume->verify(true), "");
        expect_contents();
        // And it goes on.
        collect(3);
        EXPECT_EQ(volume->verify(true), "");
        expect_contents();
        states++;
        volume = std::move(crashed);
        if (HasFailure()) return;
      }
      volume.reset();
    }
    volume.reset();
  }
  std::printf("crash states of garbage collection: %llu\n", static_cast<unsigned long long>(states));
}

// Copies that fail, end early, come late, or are wrong.
TEST_F(Gc, BadCopiesLoseNothing) {
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = gc_options(seed, true);
    options.store.copy.failures_before_demotion = 1000;
    mount(seed, options);
    fragment(96, 12, 3);
    SimFaults faults;
    faults.copy_error = 0.1;
    faults.copy_partial = 0.1;
    faults.copy_slow = 0.05;
    faults.copy_timeout = seed % 4 == 0 ? 0.1 : 0;
    faults.copy_silent_wrong = seed % 2 == 0 ? 0.1 : 0;
    volume->device.set_faults(faults);
    for (int round = 0; round < 3; round++) {
      collect();
      ASSERT_TRUE(volume->run(store().checkpoint()));
      const std::string name = "new" + std::to_string(round);
      const auto created = create(name, 60);
      ASSERT_TRUE(created) << describe(created.error());
      ASSERT_TRUE(volume->run(fs().sync()));
      expect_contents();
    }
    EXPECT_GT(counters().gc_victims, 0U);
    volume->device.set_faults(SimFaults());
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
    if (HasFailure()) return;
    volume.reset();
  }
}

// A block that can not be read stays, says so, and does not stop the rest.
TEST_F(Gc, ADamagedBlockStaysWhereItIs) {
  mount(3, gc_options(3, false));
  fragment(60, 12, 3);
  const File file = files.at("f30");
  uint64_t physical = 0;
  for (uint64_t block = 0; block < 8192 && physical == 0; block++) {
    const SimPageRef page = volume->device.image().page(block);
    if (page != nullptr &&
        std::memcmp(page->bytes.data(), file.bytes.data() + 5 * kBlock, kBlock) == 0) {
      physical = block;
    }
  }
  ASSERT_NE(physical, 0U);
  volume->device.mark_bad(physical);
  collect();
  EXPECT_GE(counters().gc_skipped, 1U);
  EXPECT_GT(counters().gc_victims, 3U);
  EXPECT_GE(volume->world.journal.count("is left out of garbage collection"), 1U);
  const uint64_t skipped = counters().gc_skipped;
  collect();
  EXPECT_EQ(counters().gc_skipped, skipped);  // not again so soon
  EXPECT_FALSE(volume->run(fs().read(file.ino, 5 * kBlock, kBlock)));
  const auto rest = volume->run(fs().read(file.ino, 6 * kBlock, 6 * kBlock));
  ASSERT_TRUE(rest);
  EXPECT_EQ(std::memcmp(rest->data(), file.bytes.data() + 6 * kBlock, 6 * kBlock), 0);
  files.erase("f30");
  expect_contents();
}

// Wrong bytes are moved with the checksum of the right ones: they still read as damaged.
TEST_F(Gc, DamageIsNotLaundered) {
  for (const bool device : {false, true}) {
    mount(4, gc_options(4, device));
    fragment(60, 12, 3);
    const File file = files.at("f30");
    uint64_t physical = 0;
    for (uint64_t block = 0; block < 8192 && physical == 0; block++) {
      const SimPageRef page = volume->device.image().page(block);
      if (page != nullptr &&
          std::memcmp(page->bytes.data(), file.bytes.data() + 5 * kBlock, kBlock) == 0) {
        physical = block;
      }
    }
    ASSERT_NE(physical, 0U);
    volume->device.corrupt(physical, SimDamage::kBit, 3);
    collect();
    EXPECT_EQ(counters().copy_verify_failures, 0U);
    const auto data = volume->run(fs().read(file.ino, 5 * kBlock, kBlock));
    ASSERT_FALSE(data);
    EXPECT_EQ(data.error().code, Code::kChecksum);
    files.erase("f30");
    expect_contents();
    volume.reset();
  }
}

// A summary that does not name all that lives: the segment is left alone, and nothing is lost.
TEST_F(Gc, DamagedSummariesAreLeftAlone) {
  VolumeOptions options = gc_options(5, false);
  mount(5, options);
  fragment(96, 12, 3);
  ASSERT_TRUE(volume->close());
  SimImage image = volume->device.image();
  volume.reset();
  mount_image(6, image, options);
  for (uint64_t block = 32; block < options.device_blocks; block++) {
    const SimPageRef page = image.page(block);
    if (page == nullptr) continue;
    const bool footer = std::memcmp(page->bytes.data(), "COFSFOT1", 8) == 0;
    const bool chunk = std::memcmp(page->bytes.data(), "COFCHNK1", 8) == 0;
    if (footer || (chunk && block % 3 == 0)) volume->device.corrupt(block, SimDamage::kBit, block);
  }
  collect();
  EXPECT_GT(counters().gc_skipped, 0U);
  EXPECT_GT(counters().gc_victims, 0U);
  expect_contents();
  EXPECT_EQ(volume->verify(true), "");
}

// Chunks that copies filled have their headers written with the next commit, or before that if somebody wants to know what a segment holds.
TEST_F(Gc, WhatWasCopiedIsCollected) {
  enum class Before : uint8_t { kNothing, kCommit, kCrash };
  for (const Before before : {Before::kNothing, Before::kCommit, Before::kCrash}) {
    SCOPED_TRACE(static_cast<int>(before));
    const VolumeOptions options = gc_options(7, true);
    mount(7, options);
    ASSERT_TRUE(create("source", 250));
    ASSERT_TRUE(volume->run(fs().sync()));
    for (const char* name : {"one", "other"}) {
      ASSERT_TRUE(create(name, 1));
      File& file = files.at(name);
      file.bytes = files.at("source").bytes;
      const auto copied = volume->run(fs().copy_range(files.at("source").ino, 0, file.ino, 0, file.bytes.size()));
      ASSERT_TRUE(copied) << describe(copied.error());
      ASSERT_EQ(copied->bytes, file.bytes.size());
    }
    const uint64_t commits = counters().commits;
    if (before != Before::kNothing) {
      ASSERT_TRUE(volume->run(fs().sync()));
    }
    EXPECT_EQ(counters().commits, commits + (before == Before::kNothing ? 0 : 1));
    if (before == Before::kCrash) {
      const SimImage image = volume->device.image();
      volume.reset();
      mount_image(8, image, options);
    }
    for (const char* name : {"one", "other"}) {
      File& file = files.at(name);
      for (uint64_t at = 0; at < file.bytes.size(); at += 4 * kBlock) {
        const uint64_t length = std::min<uint64_t>(3 * kBlock, file.bytes.size() - at);
        ASSERT_TRUE(volume->run(fs().allocate(file.ino, AllocateMode::kPunchHole, at, length)));
        std::memset(file.bytes.data() + at, 0, length);
      }
    }
    const GcReport report = collect();
    EXPECT_GE(report.victims, 5U);
    EXPECT_EQ(counters().gc_skipped, 0U);
    EXPECT_EQ(report.victims, counters().gc_segments_freed);
    expect_contents();
    expect_clean_after_remount();
    volume.reset();
  }
}

// What a slow reader was told lies in a segment that became free is still there when the read gets to it.
TEST_F(Gc, FreedSegmentsWaitForReaders) {
  for (uint64_t seed = 0; seed < 12; seed++) {
    for (const bool discard : {false, true}) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (discard ? " discard" : ""));
      VolumeOptions options = gc_options(seed, false);
      options.store.discard = discard;
      options.device.latency.min_ns = 0;
      options.device.latency.mean_ns = 20'000;
      mount(seed, options);
      fragment(120, 16, 4);
      ASSERT_TRUE(volume->run(store().checkpoint()));
      // One ticket holds while everything is moved and written again.
      const auto mapping = volume->run(store().map_range(files.at("f0").ino, 0, 16, 16));
      ASSERT_TRUE(mapping);
      ASSERT_FALSE(mapping->empty());
      const uint64_t slow = 20 * kSecondNs;
      volume->device.delay_next_read(slow);
      bool done = false;
      const auto reader = [](Gc* test, BlockRange range, std::byte* target, bool* finished) -> Task<> {
        auto read = co_await test->store().read_blocks(range, target);
        EXPECT_TRUE(read) << describe(read.error());
        *finished = true;
      };
      BufferRef buffer = volume->world.buffers.allocate(16);
      BlockRange range;
      range.start = mapping->front().virtual_block;
      range.count = mapping->front().count;
      spawn(volume->world.executor, reader(this, range, buffer->data(), &done));
      volume->pass(1000);
      ASSERT_FALSE(done);
      const GcReport report = collect();
      EXPECT_GT(report.victims, 5U);
      ASSERT_TRUE(volume->run(store().checkpoint()));
      ASSERT_TRUE(volume->run(store().checkpoint()));
      for (int i = 0; i < 8; i++) {
        const auto created = create("again" + std::to_string(i), 120);
        ASSERT_TRUE(created) << describe(created.error());
        ASSERT_TRUE(volume->run(fs().sync()));
      }
      ASSERT_FALSE(done);
      volume->pass(2 * slow);
      ASSERT_TRUE(done);
      EXPECT_EQ(std::memcmp(buffer->data(), files.at("f0").bytes.data(), bytes_of_blocks(range.count)),
                0);
      buffer.reset();
      expect_clean_after_remount();
      if (HasFailure()) return;
      volume.reset();
    }
  }
}

// Segments larger than one unit of work, with more pieces than one unit takes, and blocks that change
// between the units.
TEST_F(Gc, LargeSegmentsAreWorkedOffInUnits) {
  for (const bool device : {false, true}) {
    SCOPED_TRACE(device);
    VolumeOptions options = gc_options(21, device);
    options.format.segment_blocks = 4096;
    options.device_blocks = 4096 * 28 + 300;
    options.fs.dirty_bytes_max = 4096 * kBlock;
    mount(21, options);
    for (int i = 0; i < 500; i++) {
      const auto done = create("f" + std::to_string(i), i % 3 == 0 ? 30 : random.between(1, 20));
      ASSERT_TRUE(done) << describe(done.error());
    }
    ASSERT_TRUE(volume->run(fs().sync()));
    for (auto& [name, file] : files) {  // single blocks here and there
      if (name.back() % 2 == 0) continue;
      for (uint64_t block = 0; block < file.bytes.size() / kBlock; block += 2) {
        const std::string bytes = random_bytes(kBlock);
        ASSERT_TRUE(write_at(file.ino, block * kBlock, bytes));
        std::memcpy(file.bytes.data() + block * kBlock, bytes.data(), kBlock);
      }
    }
    for (int i = 0; i < 500; i += 4) remove("f" + std::to_string(i));
    ASSERT_TRUE(volume->run(fs().sync()));
    const uint64_t flushes = counters().flushes;
    bool done = false;
    const auto collector = [](Gc* test, bool* finished) -> Task<> {
      auto report = co_await test->store().collect_garbage(GcRequest());
      EXPECT_TRUE(report) << describe(report.error());
      *finished = true;
    };
    spawn(volume->world.executor, collector(this, &done));
    for (int i = 0; i < 100 && !done; i++) {
      volume->pass(2'000'000);
      const auto at =
          std::next(files.begin(), static_cast<std::ptrdiff_t>(random.below(files.size())));
      const std::string bytes = random_bytes(kBlock);
      ASSERT_TRUE(write_at(at->second.ino, 0, bytes));
      std::memcpy(at->second.bytes.data(), bytes.data(), kBlock);
    }
    volume->settle();
    ASSERT_TRUE(done);
    EXPECT_GE(counters().gc_segments_freed, 1U);
    EXPECT_EQ(counters().gc_skipped, 0U);
    EXPECT_GE(counters().flushes - flushes, 3 * counters().gc_segments_freed);
    expect_contents();
    expect_clean_after_remount();
    volume.reset();
  }
}

// A segment that was sealed a moment ago, whose writes still are under way: what is moved is what was
// written.
TEST_F(Gc, AVictimMayStillBeWritten) {
  uint64_t victims = 0;
  for (uint64_t seed = 0; seed < 60; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = gc_options(seed, seed % 2 == 0);
    options.store.copy_verify_percent = 0;
    options.device.latency.mean_ns = 2'000'000;  // of writes; some take long
    options.fs.dirty_bytes_max = 64 * kBlock;
    mount(seed, options);
    ASSERT_TRUE(create("file", 64));
    File& file = files.at("file");
    uint64_t running = 0;
    const auto collector = [](Gc* test, uint64_t* left) -> Task<> {
      GcRequest request;
      request.victims_max = 2;
      auto report = co_await test->store().collect_garbage(request);
      EXPECT_TRUE(report) << describe(report.error());
      --*left;
    };
    const auto syncer = [](Gc* test, uint64_t* left) -> Task<> {
      auto done = co_await test->fs().sync();
      EXPECT_TRUE(done);
      --*left;
    };
    for (int i = 0; i < 60; i++) {
      const uint64_t n = random.between(8, 32);
      const uint64_t block = random.below(64 - n);
      const std::string bytes = random_bytes(n * kBlock);
      const auto written = write_at(file.ino, block * kBlock, bytes);
      ASSERT_TRUE(written) << describe(written.error());
      std::memcpy(file.bytes.data() + block * kBlock, bytes.data(), bytes.size());
      running += 2;
      spawn(volume->world.executor, syncer(this, &running));
      spawn(volume->world.executor, collector(this, &running));
      volume->pass(random.below(4'000'000));
    }
    volume->settle();
    EXPECT_EQ(running, 0U);
    victims += counters().gc_victims;
    ASSERT_TRUE(volume->run(fs().sync()));
    expect_contents();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
  EXPECT_GT(victims, 60U);
}

// A log segment that a checkpoint gave up keeps until that checkpoint is durable, also where the data in
// it is moved out in between.
TEST_F(Gc, LogSegmentsWaitForTheirCheckpoint) {
  uint64_t states = 0;
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("log segments, seed " + std::to_string(seed));
    VolumeOptions options = gc_options(seed, false);
    options.format.segment_blocks = 16;
    options.format.log_limit_blocks = 256;
    mount(seed, options);
    // Small files whose data goes into the log with the commit.
    for (int i = 0; i < 12; i++) {
      ASSERT_TRUE(create("f" + std::to_string(i), 2));
      ASSERT_TRUE(volume->run(fs().sync()));
    }
    bool checkpointing = true;
    const auto checkpointer = [](Gc* test, bool* running) -> Task<> {
      auto done = co_await test->store().checkpoint();
      EXPECT_TRUE(done || test->volume->device.powered_off());
      *running = false;
    };
    // The checkpoint's own writes take long: commits overtake it.
    volume->device.delay_writes_at(volume->device.operation_count() + 3, 8, kSecondNs);
    spawn(volume->world.executor, checkpointer(this, &checkpointing));
    volume->pass(200'000);
    for (int i = 0; i < 10 && checkpointing; i++) {
      File& file = files.at("f" + std::to_string(i));
      const std::string bytes = random_bytes(2 * kBlock);
      ASSERT_TRUE(write_at(file.ino, 0, bytes));
      file.bytes = bytes;
      ASSERT_TRUE(volume->run(fs().sync()));
      collect(2);
      ASSERT_TRUE(volume->run(fs().sync()));
      if (!checkpointing) break;
      const SimImage image = volume->device.crash_image(static_cast<uint64_t>(i), CrashMode::kDropAll);
      auto running = std::move(volume);
      mount_image(seed, image, options);
      expect_contents();
      EXPECT_EQ(volume->verify(true), "");
      states++;
      volume = std::move(running);
      if (HasFailure()) return;
    }
    volume->settle();
    expect_clean_after_remount();
    volume.reset();
  }
  EXPECT_GT(states, 40U);
}

// Nearly full, random overwrites of three times the volume: a write never hears ENOSPC.
TEST_F(Gc, AFullVolumeGoesOn) {
  for (uint64_t seed = 0; seed < 4; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("full volume, seed " + std::to_string(seed));
    VolumeOptions options = gc_options(seed, seed % 2 == 0);
    options.device_blocks = 16'384 + 40;
    if (seed == 1) options.format.segment_blocks = 16;
    if (seed == 2) options.store.background = true;
    if (seed == 3) options.store.gc = GcMode::kAggressive;
    mount(seed, options);
    constexpr uint64_t kEach = 64;
    uint64_t made = 0;
    uint64_t written = 0;
    const auto fill_up = [&](uint64_t keep_available) {
      while (store().space().available_blocks > keep_available + kEach) {
        const auto created = create("f" + std::to_string(made++), kEach);
        ASSERT_TRUE(created) << made << " files: " << describe(created.error());
      }
    };
    const auto overwrite = [&](uint64_t blocks) {
      const uint64_t end = written + blocks;
      for (uint64_t i = 0; written < end; i++) {
        // A tenth of the files takes most of it.
        const uint64_t hot = std::max<uint64_t>(made / 10, 1);
        const uint64_t number = random.below(10) == 0 ? random.below(made) : random.below(hot);
        File& file = files.at("f" + std::to_string(number));
        const uint64_t n = random.between(1, 8);
        const uint64_t block = random.below(kEach - n);
        const std::string bytes = random_bytes(n * kBlock);
        const auto done = write_at(file.ino, block * kBlock, bytes);
        ASSERT_TRUE(done) << "after " << written << " blocks: " << describe(done.error())
                          << ", available " << store().space().available_blocks;
        std::memcpy(file.bytes.data() + block * kBlock, bytes.data(), bytes.size());
        written += n;
        if (i % 64 == 0) {
          ASSERT_TRUE(volume->run(fs().sync()));
        }
      }
    };
    const uint64_t total = store().space().total_blocks;
    fill_up(total / 5);
    overwrite(options.device_blocks / 2);  // extents become short, which takes nodes
    fill_up(total / 16);
    if (HasFatalFailure()) return;
    const uint64_t data_before = counters().data_bytes;
    const uint64_t moved_before = counters().gc_relocated_bytes;
    overwrite(3 * options.device_blocks);
    if (HasFatalFailure()) return;
    const double data = static_cast<double>(counters().data_bytes - data_before);
    const double moved = static_cast<double>(counters().gc_relocated_bytes - moved_before);
    const SpaceReport space = store().space();
    std::printf("seed %llu: live %llu of %llu blocks, total %llu, available %llu, %.2f moved for each "
                "written, checkpoints %llu\n",
                static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(space.live_data_blocks),
                static_cast<unsigned long long>(options.device_blocks),
                static_cast<unsigned long long>(space.total_blocks),
                static_cast<unsigned long long>(space.available_blocks), moved / data,
                static_cast<unsigned long long>(counters().checkpoints));
    EXPECT_GT(counters().gc_victims, 0U);
    EXPECT_EQ(counters().gc_skipped, 0U);
    expect_contents();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

// A full volume that crashes again and again: what a crash costs is won back.
TEST_F(Gc, AFullVolumeOutlivesCrashes) {
  for (uint64_t seed = 0; seed < 4; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("crashes of a full volume, seed " + std::to_string(seed));
    VolumeOptions options = gc_options(seed, seed % 2 == 0);
    if (seed >= 2) options.format.segment_blocks = 16;
    mount(seed, options);
    int made = 0;
    while (create("f" + std::to_string(made), 24)) made++;
    files.erase("f" + std::to_string(made));
    for (int i = 0; i < made; i += 10) remove("f" + std::to_string(i));
    ASSERT_TRUE(volume->run(fs().sync()));
    for (int crash = 0; crash < 25; crash++) {
      SCOPED_TRACE("crash " + std::to_string(crash));
      volume->device.power_off_at(volume->device.operation_count() + random.between(20, 200));
      for (int i = 0; i < 100 && !volume->device.powered_off(); i++) {
        const auto at =
            std::next(files.begin(), static_cast<std::ptrdiff_t>(random.below(files.size())));
        const std::string bytes = random_bytes(2 * kBlock);
        const auto written = write_at(at->second.ino, random.below(22) * kBlock, bytes);
        if (!volume->device.powered_off()) {
          ASSERT_TRUE(written) << describe(written.error()) << ", available "
                               << store().space().available_blocks;
        }
        (void)volume->run(fs().sync());
      }
      volume->device.power_off_now();
      volume->abandon();
      const SimImage image =
          volume->device.crash_image(static_cast<uint64_t>(crash), CrashMode::kRandom);
      volume.reset();
      mount_image(seed + 100 * static_cast<uint64_t>(crash), image, options);
      // What was overwritten may be as before or after: read it anew.
      for (auto& [name, file] : files) {
        const std::string found = read_file(file);
        ASSERT_EQ(found.size(), file.bytes.size()) << name << ": " << found.substr(0, 60);
        file.bytes = found;
      }
      EXPECT_EQ(volume->verify(true), "");
      if (HasFailure()) return;
    }
    // Still as much can be written as statfs says.
    const uint64_t shown = store().space().available_blocks;
    const uint64_t count = shown > 60 ? (shown - 60) / 26 : 0;
    for (uint64_t i = 0; i < count; i++) {
      const auto created = create("more" + std::to_string(i), 24);
      ASSERT_TRUE(created) << i << " of " << count << ": " << describe(created.error());
    }
    expect_clean_after_remount();
    volume.reset();
  }
}

// Fill it up, delete half at random, fill again: what statfs shows can be written, many times over.
TEST_F(Gc, WhatStatfsShowsCanBeWritten) {
  VolumeOptions options = gc_options(7, true);
  mount(7, options);
  uint64_t serial = 0;
  for (int round = 0; round < 8; round++) {
    SCOPED_TRACE(round);
    while (true) {
      const uint64_t shown = store().space().available_blocks;
      const auto created = create("f" + std::to_string(serial++), random.between(4, 40));
      if (created) continue;
      ASSERT_EQ(created.error().code, Code::kNoSpace);
      files.erase("f" + std::to_string(serial - 1));
      EXPECT_LE(shown, 40U + 60U) << "statfs showed room";
      break;
    }
    EXPECT_EQ(volume->verify(round % 4 == 3), "");
    std::vector<std::string> names;
    for (const auto& [name, file] : files) {
      if (random.below(2) == 0) names.push_back(name);
    }
    for (const std::string& name : names) remove(name);
    ASSERT_TRUE(volume->run(fs().sync()));
    expect_contents();
  }
  expect_clean_after_remount();
}

// 97 % of what users may fill, garbage collection all the time, random overwrites of half as much again: with
// over-provisioning a write never hears ENOSPC; without, only when statfs shows no room for it (small overwrites
// need more metadata, and segments that are nearly full gain nothing). Nothing is lost, in crashes either.
TEST_F(Gc, NinetySevenPercentFullAndAlwaysCollecting) {
  for (uint64_t seed = 0; seed < 4; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("97 % full, seed " + std::to_string(seed));
    VolumeOptions options = gc_options(seed, seed % 2 == 0);
    options.device_blocks = 16'384 + 40;
    options.store.gc = GcMode::kAggressive;
    options.store.background = true;
    if (seed >= 2) options.format.over_provision_percent = 7;
    mount(seed, options);
    constexpr uint64_t kEach = 32;
    const uint64_t total = store().space().total_blocks;
    uint64_t made = 0;
    while (store().space().available_blocks > total * 3 / 100) {
      const auto created = create("f" + std::to_string(made++), kEach);
      ASSERT_TRUE(created) << made << " files: " << describe(created.error());
      if (made % 16 == 0) {
        ASSERT_TRUE(volume->run(fs().sync()));
      }
    }
    ASSERT_TRUE(volume->run(fs().sync()));
    const uint64_t moved_before = counters().gc_relocated_bytes;
    const uint64_t data_before = counters().data_bytes;
    uint64_t refused = 0;
    for (uint64_t written = 0, i = 1; written < total / 2; i++) {
      File& file = files.at("f" + std::to_string(random.below(made)));
      const uint64_t n = random.between(1, 8);
      const uint64_t block = random.below(kEach - n);
      const std::string bytes = random_bytes(n * kBlock);
      const auto done = write_at(file.ino, block * kBlock, bytes);
      if (!done && done.error().code == Code::kNoSpace && options.format.over_provision_percent == 0) {
        ASSERT_LT(store().space().available_blocks, n + 8) << "statfs showed room";
        ASSERT_LT(++refused, 8U) << "deleting makes room for more than that";
        remove("f" + std::to_string(--made));
        continue;
      }
      ASSERT_TRUE(done) << "after " << written << " blocks: " << describe(done.error())
                        << ", available " << store().space().available_blocks;
      std::memcpy(file.bytes.data() + block * kBlock, bytes.data(), bytes.size());
      written += n;
      if (i % 64 == 0) {
        ASSERT_TRUE(volume->run(fs().sync()));
      }
      if (i % 512 == 0) {
        ASSERT_TRUE(volume->run(fs().sync()));
        TestVolume crashed(seed, volume->device.crash_image(i, CrashMode::kRandom), options);
        const auto opened = crashed.open();
        ASSERT_TRUE(opened) << describe(opened.error());
        EXPECT_EQ(crashed.verify(true), "");
      }
    }
    const SpaceReport space = store().space();
    std::printf("seed %llu: live %llu of total %llu blocks, %.2f moved for each written\n",
                static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(space.live_data_blocks),
                static_cast<unsigned long long>(space.total_blocks),
                static_cast<double>(counters().gc_relocated_bytes - moved_before) /
                    static_cast<double>(counters().data_bytes - data_before));
    EXPECT_GT(space.live_data_blocks, total * 90 / 100);
    EXPECT_GT(counters().gc_victims, 10U);
    expect_contents();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

}  // namespace
}  // namespace cofs
