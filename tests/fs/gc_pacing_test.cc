// Garbage collection beside writers: who waits for it and how long, that steady writing never runs out of
// room, and what must hold while it moves blocks under a copy or on a volume with little room for nodes.
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
constexpr uint64_t kMillisecondNs = 1'000'000;
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kPayNsMax = 50 * kMillisecondNs;  // as in gc_pacing.cc
constexpr uint64_t kEach = 64;                        // blocks of a file

VolumeOptions paced_options(uint64_t seed) {
  VolumeOptions options;
  options.device_blocks = 16'384 + 40;
  options.format.segment_blocks = 64;
  options.format.node_bytes = 4096;
  options.store.dirty_nodes_max = 128;
  options.store.background = true;
  options.store.gc = GcMode::kAuto;
  options.fs.dirty_bytes_max = 512 * kBlock;
  options.device.seed = seed;
  options.device.latency.min_ns = 20'000;
  options.device.latency.mean_ns = 100'000;
  return options;
}

class GcPacing : public testing::Test {
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
  FileSystem& fs() { return volume->fs(); }
  Store& store() { return volume->fs().store(); }
  const StoreCounters& counters() { return store().counters(); }
  uint64_t now() { return volume->world.clock.monotonic_ns(); }

  std::string random_bytes(uint64_t length) {
    std::string bytes(length, '\0');
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      const uint64_t word = random.next();
      std::memcpy(bytes.data() + i, &word, 8);
    }
    return bytes;
  }
  WriteData data_at(uint64_t at, const std::string& bytes) {
    return WriteData::fill(volume->world.buffers, at, bytes.data(),
                           static_cast<uint32_t>(bytes.size()));
  }
  void create(uint64_t blocks) {
    bool created = false;
    const auto inode =
        volume->run(fs().create(ondisk::kRootInode, "f" + std::to_string(files.size()),
                                S_IFREG | 0644, Caller(), true, &created));
    ASSERT_TRUE(inode) << describe(inode.error());
    File file;
    file.ino = inode->ino;
    file.bytes = random_bytes(blocks * kBlock);
    const auto written = volume->run(fs().write(file.ino, data_at(0, file.bytes), false, false));
    ASSERT_TRUE(written) << describe(written.error());
    files.push_back(file);
  }
  // Files until only `share` percent of what a volume offers is left.
  void fill_up(uint64_t percent_left) {
    const uint64_t keep = store().space().total_blocks * percent_left / 100;
    while (store().space().available_blocks > keep + kEach) {
      create(kEach);
      if (HasFatalFailure()) return;
    }
  }
  // Overwrites a piece of one of the files whose number is `part` modulo `parts`; a tenth of them takes most
  // of it.
  Task<Result<>> overwrite(uint64_t blocks_max, uint64_t part = 0, uint64_t parts = 1) {
    const uint64_t mine = files.size() / parts;
    const uint64_t hot = std::max<uint64_t>(mine / 10, 1);
    const uint64_t number =
        (random.below(10) == 0 ? random.below(mine) : random.below(hot)) * parts + part;
    const uint64_t n = random.between(1, blocks_max);
    const uint64_t at = random.below(kEach - n + 1) * kBlock;
    const std::string bytes = random_bytes(n * kBlock);
    File& file = files[number];
    file.bytes.replace(at, bytes.size(), bytes);
    return fs().write(file.ino, data_at(at, bytes), false, false);
  }
  std::string read_file(const File& file) {
    const auto data = volume->run(fs().read(file.ino, 0, static_cast<uint32_t>(file.bytes.size())));
    if (!data) return "error: " + describe(data.error());
    return std::string(reinterpret_cast<const char*>(data->data()), data->length);
  }
  void expect_contents() {
    for (size_t i = 0; i < files.size(); i++) {
      const std::string found = read_file(files[i]);
      EXPECT_TRUE(found == files[i].bytes) << "file " << i << ": " << found.substr(0, 60);
    }
  }
  void expect_clean_after_remount() {
    const auto closed = volume->close();
    ASSERT_TRUE(closed) << describe(closed.error());
    ASSERT_TRUE(volume->open());
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
  }

  std::unique_ptr<TestVolume> volume;
  SimRandom random{4711};
  std::vector<File> files;
};

struct Writing {  // what the writers of one test share
  uint64_t left = 0;       // blocks to be written
  uint64_t running = 0;
  uint64_t writes = 0;
  uint64_t longest_ns = 0;
};

constexpr uint64_t kWriters = 4;

Task<> write_until_done(GcPacing* test, Writing* writing, uint64_t part) {
  while (writing->left != 0) {
    const uint64_t start = test->now();
    auto written = co_await test->overwrite(32, part, kWriters);
    EXPECT_TRUE(written) << describe(written.error());
    if (!written) break;
    writing->writes++;
    writing->longest_ns = std::max(writing->longest_ns, test->now() - start);
    writing->left -= std::min<uint64_t>(writing->left, 16);
  }
  writing->running--;
}

// 90 % full, three times the volume overwritten by several writers: they wait for their share, bit by
// bit, and seldom find no room at all, although what is kept free are four segments.
TEST_F(GcPacing, SteadyWritingFindsRoom) {
  for (uint64_t seed = 0; seed < 4; seed++) {
    SCOPED_TRACE(seed);
    set_current_case("pacing, seed " + std::to_string(seed));
    VolumeOptions options = paced_options(seed);
    mount(seed, options);
    fill_up(10);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(volume->run(fs().sync()));
    for (const bool counted : {false, true}) {  // first into its stride
      const uint64_t waits = counters().gc_waits;
      const uint64_t stalls = counters().gc_stalls;
      Writing writing;
      writing.left = (counted ? 3 : 1) * options.device_blocks;
      writing.running = kWriters;
      for (uint64_t i = 0; i < kWriters; i++) {
        spawn(volume->world.executor, write_until_done(this, &writing, i));
      }
      while (writing.running != 0) volume->pass(100 * kMillisecondNs);
      if (HasFailure()) return;
      if (!counted) continue;
      std::printf("seed %llu: %llu writes, the longest %.1f ms; %llu waited, %llu found no room\n",
                  static_cast<unsigned long long>(seed),
                  static_cast<unsigned long long>(writing.writes),
                  static_cast<double>(writing.longest_ns) / 1e6,
                  static_cast<unsigned long long>(counters().gc_waits - waits),
                  static_cast<unsigned long long>(counters().gc_stalls - stalls));
      EXPECT_GT(counters().gc_waits, waits);
      EXPECT_LE((counters().gc_stalls - stalls) * 20, writing.writes);
      EXPECT_LE(writing.longest_ns, 200 * kMillisecondNs);
    }
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

// With room enough nobody waits, and nothing is moved.
TEST_F(GcPacing, NobodyPaysWithRoomEnough) {
  mount(1, paced_options(1));
  fill_up(60);
  for (int i = 0; i < 100; i++) {
    ASSERT_TRUE(volume->run(overwrite(32)));
    volume->run(store().pace(1000));
  }
  EXPECT_EQ(counters().gc_waits, 0U);
  EXPECT_EQ(counters().gc_victims, 0U);
}

// Those who owe much at once wait one behind the other, none for longer than the bound, also when the
// work does not get on because a copy hangs.
TEST_F(GcPacing, WaitsAreBoundedAndInOrder) {
  for (const bool hangs : {false, true}) {
    SCOPED_TRACE(hangs);
    VolumeOptions options = paced_options(2);
    options.store.background = false;
    mount(2, options);
    fill_up(4);
    for (int i = 0; i < 400; i++) ASSERT_TRUE(volume->run(overwrite(16)));
    ASSERT_TRUE(volume->run(fs().sync()));
    ASSERT_TRUE(volume->run(store().checkpoint()));
    const uint64_t waits = counters().gc_waits;
    if (hangs) volume->device.delay_next_read(20 * kSecondNs);
    struct Payer {
      uint64_t began_ns = 0;
      uint64_t ended_ns = 0;
    };
    std::vector<Payer> payers(12);
    const auto pay = [](GcPacing* test, Payer* payer) -> Task<> {
      payer->began_ns = test->now();
      co_await test->store().pace(200);
      payer->ended_ns = test->now();
    };
    for (Payer& payer : payers) {
      spawn(volume->world.executor, pay(this, &payer));
      volume->pass(1000);  // they come one after the other
    }
    volume->pass(2 * kPayNsMax);
    uint64_t longest = 0;
    bool in_order = true;
    uint64_t before_ns = 0;
    for (const Payer& payer : payers) {
      ASSERT_NE(payer.ended_ns, 0U);
      EXPECT_LE(payer.ended_ns - payer.began_ns, kPayNsMax + kMillisecondNs);
      longest = std::max(longest, payer.ended_ns - payer.began_ns);
      // Who is woken together runs in any order, at about the same time.
      if (payer.ended_ns + 2 * kMillisecondNs < before_ns) in_order = false;
      before_ns = std::max(before_ns, payer.ended_ns);
    }
    EXPECT_GT(counters().gc_waits, waits);
    EXPECT_GT(longest, 0U);
    if (hangs) {
      EXPECT_GE(longest, kPayNsMax);
    } else {
      EXPECT_TRUE(in_order);
      EXPECT_GT(counters().gc_relocated_bytes, 0U);
    }
    volume->pass(40 * kSecondNs);
    expect_clean_after_remount();
    volume.reset();
  }
}

// Who waits when the volume is closed goes on at once.
TEST_F(GcPacing, ClosingWaitsForNobody) {
  VolumeOptions options = paced_options(3);
  mount(3, options);
  fill_up(4);
  for (int i = 0; i < 400; i++) ASSERT_TRUE(volume->run(overwrite(16)));
  ASSERT_TRUE(volume->run(fs().sync()));
  volume->device.delay_next_read(20 * kSecondNs);
  std::vector<uint64_t> ended_ns;
  const auto pay = [](GcPacing* test, std::vector<uint64_t>* ended) -> Task<> {
    co_await test->store().pace(300);
    ended->push_back(test->now());
  };
  for (int i = 0; i < 8; i++) spawn(volume->world.executor, pay(this, &ended_ns));
  volume->pass(10'000);
  EXPECT_LT(ended_ns.size(), 8U);
  const uint64_t start = now();
  const auto closed = volume->close();
  ASSERT_TRUE(closed) << describe(closed.error());
  ASSERT_EQ(ended_ns.size(), 8U);
  EXPECT_LT(ended_ns.back() - start, kPayNsMax / 2);
  ASSERT_TRUE(volume->open());
  expect_contents();
}

// Where no segment gains anything nobody waits for it.
TEST_F(GcPacing, NobodyPaysForNothing) {
  VolumeOptions options = paced_options(4);
  options.store.background = false;
  mount(4, options);
  fill_up(0);
  ASSERT_TRUE(volume->run(fs().sync()));
  ASSERT_TRUE(volume->run(store().checkpoint()));
  const uint64_t start = now();
  for (int i = 0; i < 10; i++) volume->run(store().pace(1000));
  EXPECT_GT(counters().gc_waits, 0U);
  EXPECT_LT(now() - start, kPayNsMax / 2);
}

// A copy looks up where its sources lie and then has them copied: however slow that is, and although
// they are moved meanwhile and their segments wanted again, it copies what they held.
TEST_F(GcPacing, SourcesOfACopyOutliveTheirMove) {
  for (uint64_t seed = 0; seed < 12; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = paced_options(seed);
    options.device_blocks = 8192 + 40;
    options.store.background = false;
    options.store.discard = seed % 2 == 0;
    mount(seed, options);
    for (int i = 0; i < 36; i++) create(kEach);
    ASSERT_TRUE(volume->run(fs().sync()));
    // Every segment loses half of what it holds.
    for (size_t i = 0; i < files.size(); i++) {
      const std::string bytes = random_bytes(kEach / 2 * kBlock);
      files[i].bytes.replace(0, bytes.size(), bytes);
      ASSERT_TRUE(volume->run(fs().write(files[i].ino, data_at(0, bytes), false, false)));
    }
    ASSERT_TRUE(volume->run(fs().sync()));
    ASSERT_TRUE(volume->run(store().checkpoint()));
    const auto mapping = volume->run(store().map_range(files[0].ino, kEach / 2, kEach / 2, 1));
    ASSERT_TRUE(mapping && !mapping->empty());
    BlockRange source;
    source.start = mapping->front().virtual_block;
    source.count = mapping->front().count;
    const std::string expected = files[0].bytes.substr(
        bytes_of_blocks(mapping->front().file_block), bytes_of_blocks(source.count));
    const std::vector<BlockRange> sources = {source};
    auto reservation = volume->run(store().reserve(Cost(source.count, 0), SpaceClass::kUser));
    ASSERT_TRUE(reservation);
    bool done = false;
    std::vector<StagedRun> runs;
    const auto copy = [](Store* store, const std::vector<BlockRange>* from, Reservation* space,
                         std::vector<StagedRun>* copied, bool* ended) -> Task<> {
      Result<> error;
      *copied = co_await store->copy_blocks(from, space, &error);
      EXPECT_TRUE(error) << describe(error.error());
      *ended = true;
    };
    const uint64_t slow = 20 * kSecondNs;
    volume->device.delay_next_read(slow);
    spawn(volume->world.executor, copy(&store(), &sources, &*reservation, &runs, &done));
    volume->pass(1000);
    ASSERT_FALSE(done);
    const auto report = volume->run(store().collect_garbage(GcRequest()));
    ASSERT_TRUE(report);
    EXPECT_GT(report->victims, 5U);
    ASSERT_TRUE(volume->run(store().checkpoint()));
    ASSERT_TRUE(volume->run(store().checkpoint()));
    for (int i = 0; i < 8; i++) {  // what became free is written again
      create(kEach);
      ASSERT_FALSE(HasFatalFailure());
      ASSERT_TRUE(volume->run(fs().sync()));
    }
    ASSERT_FALSE(done);
    volume->pass(2 * slow);
    ASSERT_TRUE(done);
    ASSERT_FALSE(runs.empty());
    std::string copied;
    for (const StagedRun& run : runs) {
      for (uint64_t i = 0; i < run.count; i++) {
        const SimPageRef page = volume->device.image().page(run.physical_block + i);
        ASSERT_NE(page, nullptr);
        copied.append(reinterpret_cast<const char*>(page->bytes.data()), kBlock);
      }
    }
    EXPECT_TRUE(copied == expected);
    runs.clear();
    reservation->release();
    volume->settle();
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

// Moves that tear records apart change many nodes, for which nobody made a reservation: on a nearly full
// volume with tiny nodes a whole pass leaves room for the checkpoint after it.
TEST_F(GcPacing, APassLeavesRoomForItsNodes) {
  for (uint64_t seed = 0; seed < 6; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = paced_options(seed);
    options.device_blocks = 8192 + 40;
    options.format.segment_blocks = seed % 2 == 0 ? 16 : 64;
    options.store.background = false;
    options.store.dirty_nodes_max = 64;
    mount(seed, options);
    fill_up(6);
    ASSERT_TRUE(volume->run(fs().sync()));
    uint64_t moved = 0;
    for (int round = 0; round < 12; round++) {
      // Single blocks all over: what lives of each segment are many pieces.
      for (size_t i = 0; i < files.size(); i++) {
        const std::string bytes = random_bytes(kBlock);
        const uint64_t at = random.below(kEach) * kBlock;
        files[i].bytes.replace(at, bytes.size(), bytes);
        const auto written = volume->run(fs().write(files[i].ino, data_at(at, bytes), false, false));
        ASSERT_TRUE(written) << describe(written.error());
      }
      GcRequest request;
      request.urgent = true;
      const auto report = volume->run(store().collect_garbage(request));
      ASSERT_TRUE(report) << describe(report.error());
      moved += report->moved_blocks;
      const auto checkpointed = volume->run(store().checkpoint());
      ASSERT_TRUE(checkpointed) << describe(checkpointed.error());
      ASSERT_FALSE(store().shut_down());
    }
    EXPECT_GT(moved, 1000U);
    expect_clean_after_remount();
    if (HasFailure()) return;
    volume.reset();
  }
}

}  // namespace
}  // namespace cofs
