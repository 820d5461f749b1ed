// File data through FileSystem on a simulated device: random operations against plain strings while
// commits, flushes and checkpoints go on beside them; then the particular promises, one by one.
//
// COFS_FILES_SEEDS: how many seeds of each random test (default 12); COFS_SEED: the first.
#include "fs/files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = kBlockBytes;

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

VolumeOptions small_options(uint64_t seed) {
  VolumeOptions options;
  options.device_blocks = 16'384;
  options.format.segment_blocks = 256;
  options.store.background = false;
  options.device.seed = seed;
  options.fs.dirty_bytes_max = 1U << 20;
  CopyLimits limits;
  limits.engine = "sim";
  limits.ranges_max = 8;
  limits.range_blocks_max = 64;
  limits.operation_blocks_max = 256;
  limits.in_flight_max = 2;
  options.device.copies.push_back(limits);
  return options;
}

// A mounted volume with short ways to use it.
class FilesTest : public testing::Test {
 protected:
  void mount(uint64_t seed, const VolumeOptions& options) {
    volume = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
  }
  void mount(uint64_t seed = 1) { mount(seed, small_options(seed)); }

  FileSystem& fs() { return volume->fs(); }

  uint64_t create(const std::string& name) {
    bool created = false;
    const auto made =
        volume->run(fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(), true, &created));
    COFS_ASSERT(made);
    return made->ino;
  }
  Result<> write(uint64_t ino, uint64_t offset, const std::string& bytes, bool append = false) {
    const auto length = static_cast<uint32_t>(bytes.size());
    return volume->run(fs().write(
        ino, WriteData::fill(volume->world.buffers, offset, bytes.data(), length), append, false));
  }
  std::string read(uint64_t ino, uint64_t offset, uint32_t length) {
    const auto data = volume->run(fs().read(ino, offset, length));
    if (!data) return "error: " + describe(data.error());
    return std::string(reinterpret_cast<const char*>(data->data()), data->length);
  }
  Result<> truncate(uint64_t ino, uint64_t size) {
    AttributeChange change;
    change.size = size;
    const auto done = volume->run(fs().set_attributes(ino, change, Caller()));
    if (!done) return fail(done.error());
    return {};
  }
  Attributes attributes(uint64_t ino) { return *volume->run(fs().get_attributes(ino)); }
  void sync() {
    const auto done = volume->run(fs().sync());
    ASSERT_TRUE(done) << describe(done.error());
  }
  std::string random_bytes(uint64_t length) {
    std::string bytes(length, '\0');
    for (char& byte : bytes) byte = static_cast<char>(1 + random.below(255));
    return bytes;
  }
  void remount() {
    const auto closed = volume->close();
    ASSERT_TRUE(closed) << describe(closed.error());
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
  }

  std::unique_ptr<TestVolume> volume;
  SimRandom random{99};
};

// --- Random operations -------------------------------------------------------------------------

class FilesRandom : public FilesTest {
 protected:
  static constexpr size_t kFiles = 4;

  uint64_t some_offset(uint64_t limit) {
    uint64_t offset = random.below(limit + 1);
    if (random.below(3) == 0) offset &= ~(kBlock - 1);
    return offset;
  }
  uint64_t some_length() {
    switch (random.below(4)) {
      case 0: return 1 + random.below(100);
      case 1: return 1 + random.below(3 * kBlock);
      case 2: return kBlock * (1 + random.below(8));
      default: return 1 + random.below(40 * kBlock);
    }
  }
  static void ensure(std::string& model, uint64_t size) {
    if (model.size() < size) model.resize(size, '\0');
  }

  void random_write() {
    const size_t f = random.below(kFiles);
    const bool append = random.below(4) == 0;
    const uint64_t offset = some_offset(60 * kBlock);
    const std::string bytes = random_bytes(some_length());
    const auto done = write(inos[f], offset, bytes, append);
    if (!done) {
      EXPECT_TRUE(done.error().code == Code::kNoSpace) << describe(done.error());
      return;
    }
    const uint64_t at = append ? model[f].size() : offset;
    ensure(model[f], at + bytes.size());
    model[f].replace(at, bytes.size(), bytes);
  }
  void random_truncate() {
    const size_t f = random.below(kFiles);
    const uint64_t size = random.below(3) == 0 ? random.below(3000) : some_offset(100 * kBlock);
    const auto done = truncate(inos[f], size);
    ASSERT_TRUE(done) << describe(done.error());
    model[f].resize(size, '\0');
  }
  void random_allocate() {
    static constexpr std::array kModes = {AllocateMode::kAllocate, AllocateMode::kKeepSize,
                                          AllocateMode::kPunchHole, AllocateMode::kPunchHole,
                                          AllocateMode::kZeroRange, AllocateMode::kZeroKeepSize};
    const size_t f = random.below(kFiles);
    const AllocateMode mode = kModes[random.below(kModes.size())];
    const uint64_t offset = some_offset(80 * kBlock);
    const uint64_t length = some_length();
    const auto done = volume->run(fs().allocate(inos[f], mode, offset, length));
    ASSERT_TRUE(done) << describe(done.error());
    const uint64_t end = offset + length;
    if (mode == AllocateMode::kAllocate || mode == AllocateMode::kZeroRange) ensure(model[f], end);
    if (mode != AllocateMode::kAllocate && mode != AllocateMode::kKeepSize) {
      const uint64_t from = std::min<uint64_t>(offset, model[f].size());
      const uint64_t to = std::min<uint64_t>(end, model[f].size());
      std::fill(model[f].begin() + static_cast<std::ptrdiff_t>(from),
                model[f].begin() + static_cast<std::ptrdiff_t>(to), '\0');
    }
  }
  void random_copy() {
    const size_t from = random.below(kFiles);
    const size_t to = random.below(kFiles);
    uint64_t source = some_offset(60 * kBlock);
    uint64_t target = some_offset(60 * kBlock);
    if (random.below(2) == 0) target = target / kBlock * kBlock + source % kBlock;
    uint64_t length = some_length();
    const auto copied =
        volume->run(fs().copy_range(inos[from], source, inos[to], target, length));
    const uint64_t left = model[from].size() > source ? model[from].size() - source : 0;
    const uint64_t expected = std::min(length, left);
    const bool overlap = from == to && expected > 0 && source < target + expected &&
                         target < source + expected;
    if (overlap) {
      ASSERT_FALSE(copied);
      ASSERT_EQ(copied.error().code, Code::kInvalid);
      return;
    }
    if (!copied) {
      // The device may refuse; the engine's own fallbacks are tested elsewhere.
      ASSERT_TRUE(copied.error().code == Code::kIo || copied.error().code == Code::kNoSpace)
          << describe(copied.error());
      return;
    }
    ASSERT_LE(copied->bytes, expected);
    ASSERT_EQ(copied->bytes == 0, expected == 0);
    const std::string bytes = model[from].substr(std::min(source, uint64_t{model[from].size()}),
                                                 copied->bytes);
    if (bytes.empty()) return;
    ensure(model[to], target + bytes.size());
    model[to].replace(target, bytes.size(), bytes);
  }
  void check_part() {
    const size_t f = random.below(kFiles);
    const uint64_t offset = some_offset(100 * kBlock);
    const uint64_t length = some_length();
    const std::string expected =
        offset < model[f].size() ? model[f].substr(offset, length) : std::string();
    ASSERT_EQ(read(inos[f], offset, static_cast<uint32_t>(length)) == expected, true)
        << "file " << f << " offset " << offset << " length " << length;
  }
  void check_all() {
    for (size_t f = 0; f < kFiles; f++) {
      ASSERT_EQ(attributes(inos[f]).size, model[f].size()) << "file " << f;
      std::string all;
      while (all.size() < model[f].size()) {
        const std::string part = read(inos[f], all.size(), 1U << 20);
        ASSERT_FALSE(part.empty());
        ASSERT_FALSE(part.starts_with("error")) << part;
        all += part;
      }
      for (uint64_t at = 0; at < all.size(); at += kBlock) {
        ASSERT_EQ(all.substr(at, kBlock) == model[f].substr(at, kBlock), true)
            << "file " << f << " block " << at / kBlock;
      }
      check_seeks(f);
    }
  }
  // What is not zero must be data; what is a hole must be zero; and the two calls must agree.
  void check_seeks(size_t f) {
    const std::string& bytes = model[f];
    uint64_t at = 0;
    while (at < bytes.size()) {
      const auto data = volume->run(fs().seek_data(inos[f], at));
      if (!data) {
        ASSERT_EQ(data.error().code, Code::kNoSuchOffset);
      }
      const uint64_t data_at = data ? *data : bytes.size();
      ASSERT_LE(data_at, bytes.size());
      for (uint64_t i = at; i < data_at; i++) ASSERT_EQ(bytes[i], '\0') << "file " << f << " " << i;
      if (!data) break;
      const auto hole = volume->run(fs().seek_hole(inos[f], data_at));
      ASSERT_TRUE(hole);
      ASSERT_GT(*hole, data_at);
      at = *hole;
    }
    const auto beyond = volume->run(fs().seek_hole(inos[f], bytes.size()));
    ASSERT_FALSE(beyond);
    ASSERT_EQ(beyond.error().code, Code::kNoSuchOffset);
  }

  static Task<> commit_beside(FileSystem* fs, uint64_t* running) {
    auto done = co_await fs->sync();
    EXPECT_TRUE(done) << (done ? std::string() : describe(done.error()));
    (*running)--;
  }
  void random_step() {
    if (random.below(6) == 0) {
      commits_running++;
      spawn(volume->world.executor, commit_beside(&fs(), &commits_running));
    }
    switch (random.below(12)) {
      case 0:
      case 1:
      case 2:
      case 3: random_write(); break;
      case 4: random_truncate(); break;
      case 5: random_allocate(); break;
      case 6:
      case 7: random_copy(); break;
      case 8: check_all(); break;
      default: check_part(); break;
    }
  }
  void run_seed(uint64_t seed, const VolumeOptions& options) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + options.describe());
    set_current_case("files_test random, seed " + std::to_string(seed));
    random = SimRandom(seed);
    mount(seed, options);
    for (size_t f = 0; f < kFiles; f++) {
      inos[f] = create("file" + std::to_string(f));
      model[f].clear();
    }
    for (int i = 0; i < 120; i++) {
      random_step();
      if (HasFatalFailure()) return;
    }
    while (commits_running > 0) volume->pass(1'000'000);
    check_all();
    if (HasFatalFailure()) return;
    remount();
    if (HasFatalFailure()) return;
    check_all();
    const std::string problems = volume->verify(true);
    EXPECT_EQ(problems, "");
    const uint64_t reserved = fs().store().space().reserved_blocks;
    EXPECT_EQ(reserved, 0U);
    EXPECT_TRUE(volume->close());
    volume.reset();
  }

  std::array<uint64_t, kFiles> inos{};
  std::array<std::string, kFiles> model;
  uint64_t commits_running = 0;
};

TEST_F(FilesRandom, OperationsAgreeWithStrings) {
  const uint64_t first = number_from_environment("COFS_SEED", 1);
  const uint64_t end = first + number_from_environment("COFS_FILES_SEEDS", 12);
  for (uint64_t seed = first; seed < end; seed++) {
    run_seed(seed, small_options(seed));
    if (HasFailure()) return;
  }
}

TEST_F(FilesRandom, OperationsAgreeWithStringsWhenMemoryIsShort) {
  const uint64_t first = number_from_environment("COFS_SEED", 1001);
  const uint64_t end = first + number_from_environment("COFS_FILES_SEEDS", 12);
  for (uint64_t seed = first; seed < end; seed++) {
    VolumeOptions options = small_options(seed);
    options.fs.dirty_bytes_max = 64 * kBlock;
    options.store.dirty_nodes_max = 64;
    options.format.node_bytes = 4096;
    run_seed(seed, options);
    if (HasFailure()) return;
  }
}

// --- Single promises ---------------------------------------------------------------------------

TEST_F(FilesTest, SmallFilesLiveInTheirInode) {
  mount();
  const uint64_t ino = create("small");
  ASSERT_TRUE(write(ino, 0, "hello"));
  EXPECT_EQ(read(ino, 0, 100), "hello");
  sync();
  EXPECT_EQ(fs().store().space().live_data_blocks, 0U);
  ASSERT_TRUE(write(ino, 5, " world"));
  sync();
  EXPECT_EQ(fs().store().space().live_data_blocks, 0U);
  remount();
  EXPECT_EQ(read(ino, 0, 100), "hello world");
  // It outgrows the inode, with a hole in between.
  ASSERT_TRUE(write(ino, 3 * kBlock, "far"));
  EXPECT_EQ(read(ino, 0, 11), "hello world");
  remount();
  EXPECT_EQ(read(ino, 0, 11), "hello world");
  EXPECT_EQ(read(ino, 3 * kBlock - 1, 10), std::string("\0far", 4));
  EXPECT_EQ(attributes(ino).blocks, 2U);
  EXPECT_EQ(*volume->run(fs().seek_hole(ino, 0)), kBlock);
  EXPECT_EQ(*volume->run(fs().seek_data(ino, kBlock)), 3 * kBlock);
}

TEST_F(FilesTest, InlineDataIsTruncatedAndExtended) {
  mount();
  const uint64_t ino = create("f");
  ASSERT_TRUE(write(ino, 0, "0123456789"));
  sync();
  ASSERT_TRUE(truncate(ino, 4));
  ASSERT_TRUE(truncate(ino, 8));
  EXPECT_EQ(read(ino, 0, 100), std::string("0123\0\0\0\0", 8));
  ASSERT_TRUE(truncate(ino, 10'000));
  EXPECT_EQ(read(ino, 0, 8), std::string("0123\0\0\0\0", 8));
  sync();
  ASSERT_TRUE(truncate(ino, 0));
  EXPECT_EQ(read(ino, 0, 100), "");
  remount();
  EXPECT_EQ(attributes(ino).size, 0U);
  EXPECT_EQ(attributes(ino).blocks, 0U);
}

TEST_F(FilesTest, LimitsAndWrongTypes) {
  mount();
  const uint64_t ino = create("f");
  EXPECT_TRUE(write(ino, 123, ""));
  EXPECT_EQ(attributes(ino).size, 0U);
  EXPECT_EQ(write(ino, INT64_MAX, "x").error().code, Code::kFileTooBig);
  EXPECT_TRUE(write(ino, uint64_t{INT64_MAX} - 1, "x"));
  EXPECT_EQ(attributes(ino).size, uint64_t{INT64_MAX});
  remount();
  EXPECT_EQ(read(ino, uint64_t{INT64_MAX} - 3, 100), std::string("\0\0x", 3));
  EXPECT_EQ(*volume->run(fs().seek_data(ino, 0)), (uint64_t{INT64_MAX} - 1) / kBlock * kBlock);
  EXPECT_EQ(truncate(ino, 1ULL << 63).error().code, Code::kFileTooBig);
  ASSERT_TRUE(truncate(ino, 5));
  EXPECT_EQ(read(ino, 0, 100), std::string(5, '\0'));
  const auto allocate = [&](uint64_t file, uint64_t offset, uint64_t length) {
    return volume->run(fs().allocate(file, AllocateMode::kAllocate, offset, length)).error().code;
  };
  EXPECT_EQ(allocate(ino, 0, 0), Code::kInvalid);
  EXPECT_EQ(allocate(ino, INT64_MAX, 2), Code::kFileTooBig);
  EXPECT_EQ(allocate(ondisk::kRootInode, 0, 1), Code::kIsDirectory);
  EXPECT_EQ(write(ondisk::kRootInode, 0, "x").error().code, Code::kIsDirectory);
  EXPECT_EQ(allocate(ino, 0, 1ULL << 40), Code::kNoSpace);
  EXPECT_EQ(attributes(ino).size, 5U);
}

TEST_F(FilesTest, AMisalignedAppendLandsAtTheEnd) {
  mount();
  const uint64_t ino = create("f");
  std::string model;
  for (int i = 0; i < 40; i++) {
    const std::string bytes = random_bytes(1 + random.below(9000));
    ASSERT_TRUE(write(ino, random.below(10'000), bytes, true));
    model += bytes;
    if (i % 7 == 0) sync();
  }
  EXPECT_EQ(read(ino, 0, 1U << 20) == model, true);
  const std::string big = random_bytes(1U << 20);
  ASSERT_TRUE(write(ino, 0, big, true));
  EXPECT_EQ(read(ino, model.size(), 1U << 20) == big, true);
}

// Records that are no whole blocks, over older data, each synced: the next blocks are read together, and count only while they are the file's.
// Also where a record comes in parts that end with blocks, as SQLite writes them where sectors are as large.
TEST_F(FilesTest, RecordsOverOlderDataReadAhead) {
  mount();
  for (const bool in_parts : {false, true}) {
    const uint64_t ino = create(in_parts ? "parts" : "log");
    std::string model = random_bytes(100 * kBlock);
    ASSERT_TRUE(write(ino, 0, model));
    sync();
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
    ASSERT_EQ(read(ino, 0, 100), model.substr(0, 100));  // and the nodes of the tree
    const uint64_t reads_before = volume->device.counters().operations_of(IoRequest::Op::kRead);
    const auto put = [&](uint64_t at, const std::string& bytes) {
      ASSERT_TRUE(write(ino, at, bytes));
      model.replace(at, bytes.size(), bytes);
    };
    constexpr uint64_t kRecord = kBlock + 24;
    for (uint64_t at = 0; at + kRecord < model.size(); at += kRecord) {
      const uint64_t page = at + 24;
      const uint64_t in_first = in_parts ? kBlock - page % kBlock : kBlock;
      put(at, random_bytes(24));
      put(page, random_bytes(in_first));
      if (in_first < kBlock) put(page + in_first, random_bytes(kBlock - in_first));
      sync();
      const uint64_t done = at / kRecord;
      if (done == 20) {  // a hole among what was read ahead
        ASSERT_TRUE(volume->run(fs().allocate(ino, AllocateMode::kPunchHole, 24 * kBlock, kBlock)));
        std::fill_n(model.begin() + 24 * kBlock, kBlock, '\0');
      }
      if (done == 40) put(43 * kBlock, random_bytes(2 * kBlock));  // something newer, not synced
      if (done == 60) {
        put(63 * kBlock, random_bytes(2 * kBlock));
        sync();
      }
    }
    EXPECT_LE(volume->device.counters().operations_of(IoRequest::Op::kRead) - reads_before, 20U);
    EXPECT_TRUE(read(ino, 0, static_cast<uint32_t>(model.size())) == model);
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
    EXPECT_TRUE(read(ino, 0, static_cast<uint32_t>(model.size())) == model);
  }
}

// One of the next blocks that can't be read is nothing to who does not write there.
TEST_F(FilesTest, AnUnreadableBlockAheadIsNoError) {
  mount();
  const uint64_t ino = create("log");
  std::string model = random_bytes(32 * kBlock);
  ASSERT_TRUE(write(ino, 0, model));
  sync();
  ASSERT_TRUE(volume->close());
  ASSERT_TRUE(volume->open());
  for (uint64_t block = 0; block < volume->device.geometry().block_count; block++) {
    const SimPageRef page = volume->device.image().page(block);
    if (page != nullptr && std::memcmp(page->bytes.data(), model.data() + 9 * kBlock, kBlock) == 0) volume->device.mark_bad(block);
  }
  for (uint64_t at = 0; at < 7 * kBlock; at += kBlock + 24) {
    const std::string record = random_bytes(kBlock + 24);
    ASSERT_TRUE(write(ino, at, record));
    model.replace(at, record.size(), record);
    sync();
  }
  EXPECT_EQ(read(ino, 0, 9 * kBlock) == model.substr(0, 9 * kBlock), true);
  EXPECT_FALSE(write(ino, 9 * kBlock + 1, "x"));
}

TEST_F(FilesTest, ACopyGoesThroughTheEngineAndKeepsHoles) {
  mount();
  const uint64_t source = create("source");
  const uint64_t target = create("target");
  const std::string data = random_bytes(100 * kBlock + 1000);
  ASSERT_TRUE(write(source, 0, data.substr(0, 40 * kBlock)));
  ASSERT_TRUE(write(source, 300 * kBlock, data));
  ASSERT_TRUE(volume->run(
      fs().allocate(source, AllocateMode::kAllocate, 100 * kBlock, 10 * kBlock)));
  ASSERT_TRUE(write(target, 150 * kBlock, "to be replaced by a hole"));
  sync();
  const uint64_t size = 400 * kBlock + 1000;
  const auto copied = volume->run(fs().copy_range(source, 0, target, 0, 1ULL << 40));
  ASSERT_TRUE(copied) << describe(copied.error());
  EXPECT_EQ(copied->bytes, size);
  EXPECT_EQ(attributes(target).size, size);
  EXPECT_EQ(attributes(target).blocks, 141U);
  EXPECT_EQ(read(target, 300 * kBlock, 1U << 20) == data, true);
  EXPECT_EQ(read(target, 0, 40 * kBlock) == data.substr(0, 40 * kBlock), true);
  EXPECT_EQ(read(target, 150 * kBlock, 50), std::string(50, '\0'));
  EXPECT_EQ(*volume->run(fs().seek_hole(target, 0)), 40 * kBlock);
  EXPECT_EQ(*volume->run(fs().seek_data(target, 40 * kBlock)), 300 * kBlock);
  const CopyCounters& counters = fs().store().copy_counters();
  EXPECT_EQ(counters.bytes[static_cast<size_t>(CopyPath::kDevice)], 141 * kBlock);
  EXPECT_EQ(volume->run(fs().copy_range(source, size, target, 0, 10))->bytes, 0U);
  remount();
  EXPECT_EQ(read(target, 300 * kBlock, 1U << 20) == data, true);
}

TEST_F(FilesTest, ACopyTakesDataThatWasJustWritten) {
  mount();
  const uint64_t source = create("source");
  const uint64_t target = create("target");
  const std::string data = random_bytes(64 * kBlock);
  ASSERT_TRUE(write(source, 0, data));
  const auto copied = volume->run(fs().copy_range(source, 100, target, 100, 60 * kBlock));
  ASSERT_TRUE(copied) << describe(copied.error());
  EXPECT_EQ(copied->bytes, 60 * kBlock);
  EXPECT_EQ(read(target, 100, 1U << 20) == data.substr(100, 60 * kBlock), true);
  EXPECT_EQ(read(target, 0, 100), std::string(100, '\0'));
  // Within one file, to behind its end.
  const auto again = volume->run(fs().copy_range(source, 0, source, 64 * kBlock, 64 * kBlock));
  ASSERT_TRUE(again) << describe(again.error());
  EXPECT_EQ(read(source, again->bytes, static_cast<uint32_t>(64 * kBlock)) == data, true);
}

TEST_F(FilesTest, TruncationDoesNotBringBackOldBytes) {
  mount();
  const uint64_t ino = create("f");
  const std::string data = random_bytes(20 * kBlock);
  for (const bool synced : {false, true}) {
    ASSERT_TRUE(write(ino, 0, data));
    if (synced) sync();
    ASSERT_TRUE(truncate(ino, 5 * kBlock + 100));
    ASSERT_TRUE(truncate(ino, 20 * kBlock));
    EXPECT_EQ(read(ino, 5 * kBlock, 200), data.substr(5 * kBlock, 100) + std::string(100, '\0'));
    EXPECT_EQ(read(ino, 6 * kBlock, static_cast<uint32_t>(14 * kBlock)),
              std::string(14 * kBlock, '\0'));
    ASSERT_TRUE(truncate(ino, 0));
  }
}

TEST_F(FilesTest, AVeryFragmentedFileIsTruncatedInSteps) {
  mount();
  const uint64_t ino = create("f");
  for (uint64_t i = 0; i < 1500; i++) ASSERT_TRUE(write(ino, 2 * i * kBlock, "x"));
  sync();
  EXPECT_EQ(attributes(ino).blocks, 1500U);
  ASSERT_TRUE(truncate(ino, 10 * kBlock + 1));
  sync();
  EXPECT_EQ(attributes(ino).blocks, 6U);
  EXPECT_EQ(read(ino, 10 * kBlock, 100), "x");
  remount();
  EXPECT_EQ(attributes(ino).blocks, 6U);
  EXPECT_EQ(volume->verify(true), "");
  EXPECT_EQ(fs().store().space().reserved_blocks, 0U);
}

// --- Many at once, and failures ----------------------------------------------------------------

// One of several writers of a file: whole stretches of a letter, each written by one request.
Task<> write_letters(FileSystem* fs, BufferPool* pool, uint64_t ino, uint64_t seed, uint64_t* running,
                     Result<>* first_error) {
  SimRandom random(seed);
  for (int i = 0; i < 40; i++) {
    const uint64_t length = kBlock * (1 + random.below(64));
    const std::string bytes(length, static_cast<char>('a' + random.below(26)));
    WriteData data = WriteData::fill(*pool, kBlock * random.below(512), bytes.data(),
                                     static_cast<uint32_t>(length));
    auto done = co_await fs->write(ino, std::move(data), false, false);
    if (!done && *first_error) *first_error = fail(done.error());
  }
  (*running)--;
}

// Each block must be one letter, or zeros: no request is seen in part within a block.
Task<> read_letters(FileSystem* fs, uint64_t ino, uint64_t seed, uint64_t* running, uint64_t* wrong) {
  SimRandom random(seed);
  for (int i = 0; i < 60; i++) {
    auto data = co_await fs->read(ino, kBlock * random.below(512), 1U << 18);
    if (!data) continue;
    for (uint64_t at = 0; at + kBlock <= data->length; at += kBlock) {
      const std::byte first = data->data()[at];
      for (uint64_t k = 0; k < kBlock; k++) *wrong += data->data()[at + k] != first ? 1 : 0;
    }
  }
  (*running)--;
}

// What is written here and there within the memory for dirty data reaches the device in file order.
TEST_F(FilesTest, RandomWritesBecomeFewExtents) {
  VolumeOptions options;
  options.device_blocks = 1 << 22;  // room for many dirty nodes
  options.format.segment_blocks = 2048;
  mount(1, options);
  const uint64_t ino = create("f");
  std::vector<uint64_t> order(1024);
  std::iota(order.begin(), order.end(), 0U);
  for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[random.below(i + 1)]);
  for (const uint64_t block : order) {
    ASSERT_TRUE(write(ino, block * kBlock, std::string(kBlock, static_cast<char>('a' + block % 26))));
  }
  ASSERT_TRUE(volume->run(fs().sync()));
  auto mapped = volume->run(fs().store().map_range(ino, 0, 1024, 2000));
  ASSERT_TRUE(mapped);
  EXPECT_LE(mapped->size(), 1024U / 8);
}

TEST_F(FilesTest, WritersWaitForMemoryAndReadersSeeWholeBlocks) {
  VolumeOptions options = small_options(5);
  options.fs.dirty_bytes_max = 64 * kBlock;
  mount(5, options);
  const uint64_t ino = create("f");
  uint64_t running = 0;
  uint64_t wrong = 0;
  Result<> error;
  for (uint64_t i = 0; i < 6; i++) {
    running += 2;
    spawn(volume->world.executor,
          write_letters(&fs(), &volume->world.buffers, ino, i, &running, &error));
    spawn(volume->world.executor, read_letters(&fs(), ino, i, &running, &wrong));
  }
  for (int i = 0; i < 10'000 && running > 0; i++) volume->pass(1'000'000);
  EXPECT_EQ(running, 0U);
  EXPECT_EQ(wrong, 0U);
  EXPECT_TRUE(error) << describe(error.error());
  EXPECT_EQ(volume->verify(true), "");
  remount();
  EXPECT_EQ(volume->verify(true), "");
}

TEST_F(FilesTest, EverythingEndsWhenTheDeviceDies) {
  for (uint64_t n = 1; n <= 40; n += 3) {
    SCOPED_TRACE("power off at operation " + std::to_string(n));
    set_current_case("files_test: power off at " + std::to_string(n));
    VolumeOptions options = small_options(n);
    options.fs.dirty_bytes_max = 64 * kBlock;
    mount(n, options);
    const uint64_t ino = create("f");
    volume->device.power_off_at(volume->device.operation_count() + n);
    uint64_t running = 0;
    uint64_t wrong = 0;
    Result<> error;
    for (uint64_t i = 0; i < 4; i++) {
      running += 2;
      spawn(volume->world.executor,
            write_letters(&fs(), &volume->world.buffers, ino, i, &running, &error));
      spawn(volume->world.executor, read_letters(&fs(), ino, i, &running, &wrong));
    }
    for (int i = 0; i < 10'000 && running > 0; i++) volume->pass(1'000'000);
    ASSERT_EQ(running, 0U);
    EXPECT_EQ(wrong, 0U);
    EXPECT_FALSE(error);
    volume->abandon();
    volume.reset();
  }
}

// Commits again and again, so that some fall between the steps of what runs beside it.
Task<> commit_often(FileSystem* fs, const bool* stop, uint64_t* running) {
  while (!*stop) {
    TimerRequest timer;
    timer.due_ns = fs->environment().clock.monotonic_ns() + 20'000;
    co_await sleep_until(fs->environment().clock, timer);
    auto done = co_await fs->sync();
    if (!done) break;
  }
  (*running)--;
}

TEST_F(FilesTest, ALongTruncationIsCompletedAfterACrash) {
  VolumeOptions options = small_options(7);
  options.format.node_bytes = 4096;
  options.store.cache_bytes = 32 * kBlock;  // steps wait for the device
  mount(7, options);
  const uint64_t ino = create("f");
  for (uint64_t i = 0; i < 1200; i++) ASSERT_TRUE(write(ino, 2 * i * kBlock, "x"));
  ASSERT_TRUE(volume->close());
  const SimImage image = volume->device.image();
  uint64_t completed_at_open = 0;
  for (uint64_t n = 1; n < 200; n++) {
    SCOPED_TRACE("power off at operation " + std::to_string(n));
    set_current_case("files_test: truncation, power off at " + std::to_string(n));
    volume = std::make_unique<TestVolume>(n, image, options);
    ASSERT_TRUE(volume->open());
    volume->device.power_off_at(volume->device.operation_count() + n);
    uint64_t running = 1;
    bool stop = false;
    spawn(volume->world.executor, commit_often(&fs(), &stop, &running));
    const auto truncated = truncate(ino, 10 * kBlock);
    stop = true;
    while (running > 0) volume->pass(1'000'000);
    const auto synced = volume->run(fs().sync());
    const bool survived = truncated && synced;
    volume->abandon();
    const SimImage crashed = volume->device.crash_image(n, CrashMode::kRandom);
    volume = std::make_unique<TestVolume>(n + 1000, crashed, options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
    completed_at_open += volume->world.journal.count("completed an interrupted truncation");
    const uint64_t size = attributes(ino).size;
    if (survived) {
      ASSERT_EQ(size, 10 * kBlock);
    }
    ASSERT_TRUE(size == 10 * kBlock || size == 2398 * kBlock + 1) << size;
    ASSERT_EQ(attributes(ino).blocks, size == 10 * kBlock ? 5U : 1200U);
    ASSERT_EQ(volume->verify(true), "");
    ASSERT_TRUE(volume->close());
    if (survived) break;
  }
  EXPECT_GT(completed_at_open, 0U);
}

TEST_F(FilesTest, AFullVolumeSaysSoAndIsCuredByTruncation) {
  VolumeOptions options = small_options(11);
  options.device_blocks = 4096;
  options.format.segment_blocks = 64;
  mount(11, options);
  const uint64_t ino = create("f");
  const std::string megabyte = random_bytes(1U << 20);
  uint64_t written = 0;
  Result<> last;
  while (written < 64 && last) {
    last = write(ino, written << 20, megabyte);
    if (last) written++;
  }
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().code, Code::kNoSpace);
  EXPECT_GT(written, 1U);
  sync();
  for (uint64_t i = 0; i < written; i++) {
    ASSERT_EQ(read(ino, i << 20, 1U << 20) == megabyte, true) << i;
  }
  const auto copied = volume->run(fs().copy_range(ino, 0, create("g"), 0, written << 20));
  EXPECT_FALSE(copied);
  ASSERT_TRUE(truncate(ino, 100));
  ASSERT_TRUE(write(ino, 1U << 20, megabyte));
  remount();
  EXPECT_EQ(read(ino, 0, 100) == megabyte.substr(0, 100), true);
  EXPECT_EQ(read(ino, 1U << 20, 1U << 20) == megabyte, true);
  EXPECT_EQ(volume->verify(true), "");
}

// --- Privileges ----------------------------------------------------------------------------------

TEST_F(FilesTest, ChangesClearPrivilegesWhereTheyMust) {
  mount();
  const std::string bytes = random_bytes(8 * kBlock);
  const std::string capability = "security.capability";
  const uint64_t source = create("source");
  ASSERT_TRUE(write(source, 0, bytes));

  using Change = std::function<bool(uint64_t ino, bool kill)>;
  const auto allocate = [this](AllocateMode mode) -> Change {
    return [this, mode](uint64_t ino, bool kill) {
      return volume->run(fs().allocate(ino, mode, kBlock + 1, 20 * kBlock, kill)).has_value();
    };
  };
  const auto resize = [this](uint64_t size) -> Change {
    return [this, size](uint64_t ino, bool kill) {
      AttributeChange change;
      change.size = size;
      change.kill_privileges = kill;
      return volume->run(fs().set_attributes(ino, change, Caller())).has_value();
    };
  };
  const std::vector<std::pair<std::string, Change>> changes = {
      {"write",
       [this, &bytes](uint64_t ino, bool kill) {
         WriteData data = WriteData::fill(volume->world.buffers, 100, bytes.data(), 5000);
         return volume->run(fs().write(ino, std::move(data), false, kill)).has_value();
       }},
      {"copy of blocks",
       [this, source](uint64_t ino, bool kill) {
         return volume->run(fs().copy_range(source, 0, ino, kBlock, 8 * kBlock, 0, kill)).has_value();
       }},
      {"copy of bytes",
       [this, source](uint64_t ino, bool kill) {
         return volume->run(fs().copy_range(source, 1, ino, 7, 100, 0, kill)).has_value();
       }},
      {"allocate", allocate(AllocateMode::kAllocate)},
      {"allocate beyond the end", allocate(AllocateMode::kKeepSize)},
      {"punch", allocate(AllocateMode::kPunchHole)},
      {"zero", allocate(AllocateMode::kZeroRange)},
      {"truncate", resize(100)},
      {"grow", resize(100 * kBlock)},
      {"open with O_TRUNC", [this](uint64_t ino, bool kill) {
         OpenIntent intent;
         intent.write = intent.truncate = true;
         intent.kill_privileges = kill;
         const bool opened = volume->run(fs().open_file(ino, intent)).has_value();
         volume->run(fs().close_file(ino));
         return opened;
       }}};
  std::vector<std::pair<uint64_t, uint32_t>> modes;
  for (const auto& [name, change] : changes) {
    for (const bool kill : {false, true}) {
      const uint64_t ino = create(name + (kill ? " by somebody" : " by root"));
      ASSERT_TRUE(write(ino, 0, bytes));
      AttributeChange privileges;
      privileges.mode = 06755;
      ASSERT_TRUE(volume->run(fs().set_attributes(ino, privileges, Caller())));
      ASSERT_TRUE(volume->run(fs().set_xattr(ino, capability, "any", false, false, Caller())));
      ASSERT_TRUE(change(ino, kill)) << name;
      modes.emplace_back(ino, S_IFREG | (kill ? 0755U : 06755U));
      EXPECT_EQ(attributes(ino).mode, modes.back().second) << name;
      EXPECT_EQ(volume->run(fs().get_xattr(ino, capability)).has_value(), !kill) << name;
      EXPECT_EQ(write(ino, 0, "x").has_value(), true);
      EXPECT_EQ(attributes(ino).mode, modes.back().second) << name << ": the next change is another's";
    }
  }
  remount();
  for (const auto& [ino, mode] : modes) EXPECT_EQ(attributes(ino).mode, mode);
  EXPECT_EQ(volume->verify(true), "");
}

TEST_F(FilesTest, SetgidWithoutExecuteStaysForMembersOfTheGroup) {
  mount();
  const uint64_t ino = create("f");
  AttributeChange change;
  change.mode = 06644;
  change.gid = 7;
  ASSERT_TRUE(volume->run(fs().set_attributes(ino, change, Caller())));
  const auto write_as = [this, ino](Unprivileged who) {
    WriteData data = WriteData::fill(volume->world.buffers, 0, "x", 1);
    return volume->run(fs().write(ino, std::move(data), false, who)).has_value();
  };
  ASSERT_TRUE(write_as(Unprivileged(true, 7)));
  EXPECT_EQ(attributes(ino).mode, S_IFREG | 02644U);
  ASSERT_TRUE(write_as(Unprivileged(false, 8)));
  EXPECT_EQ(attributes(ino).mode, S_IFREG | 02644U);
  ASSERT_TRUE(write_as(Unprivileged(true, 8)));
  EXPECT_EQ(attributes(ino).mode, S_IFREG | 0644U);
}

}  // namespace
}  // namespace cofs
