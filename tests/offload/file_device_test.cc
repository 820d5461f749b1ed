#include "offload/file_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "offload/base/cpus.h"
#include "offload/base/sync.h"
#include "offload/monitor.h"

namespace cofs {
namespace {

using namespace std::chrono_literals;

class LineJournal final : public Journal {
 public:
  void write(Severity, std::string_view line) override {
    std::lock_guard lock(mutex_);
    lines_.emplace_back(line);
  }
  int count(std::string_view words) {
    std::lock_guard lock(mutex_);
    int found = 0;
    for (const std::string& line : lines_) found += line.find(words) != std::string::npos ? 1 : 0;
    return found;
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

bool shell(const std::string& command) {
  return std::system(command.c_str()) == 0;
}

// Each version of each block has contents of its own.
void fill_block(std::byte* block, uint64_t number, uint64_t version) {
  uint64_t word = number * 0x9e3779b97f4a7c15 ^ (version << 48);
  for (size_t i = 0; i < kBlockBytes; i += 8) {
    word = word * 6364136223846793005 + 1442695040888963407;
    std::memcpy(block + i, &word, 8);
  }
}
bool is_block(const std::byte* block, uint64_t number, uint64_t version) {
  alignas(8) std::byte expected[kBlockBytes];
  fill_block(expected, number, version);
  return std::memcmp(block, expected, kBlockBytes) == 0;
}

// How often the kernel had this block device flush (the 16th figure of its stat; Documentation/block/stat.rst).
uint64_t flushes_of(const std::string& name) {
  std::ifstream file("/sys/block/" + name + "/stat");
  uint64_t figure = 0;
  for (int i = 0; i < 16; i++) file >> figure;
  EXPECT_TRUE(static_cast<bool>(file));
  return figure;
}

class FileDeviceTest : public testing::Test {
 protected:
  static constexpr uint64_t kBlocks = 16384;  // 64 MiB

  void SetUp() override {
    std::string pattern = testing::TempDir() + "cofs_device_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    image_ = directory_ + "/image";
  }
  void TearDown() override {
    device_.reset();
    if (!loop_device_.empty()) {
      EXPECT_TRUE(shell("losetup -d " + loop_device_));
    }
    if (mounted_) {
      EXPECT_TRUE(shell("umount '" + directory_ + "/mnt'"));
    }
    EXPECT_TRUE(shell("rm -rf '" + directory_ + "'"));
  }

  void open(const FileDeviceOptions& options = {}, TargetMode mode = TargetMode::kReadWrite) {
    device_.reset();
    if (access(image_.c_str(), F_OK) != 0) {
      auto created = create_image(image_, kBlocks * kBlockBytes);
      ASSERT_TRUE(created) << describe(created.error());
    }
    auto target = open_target(image_, mode, 0ms);
    ASSERT_TRUE(target) << describe(target.error());
    auto device = FileDevice::open(std::move(*target), monitor_, buffers_, journal_, options);
    ASSERT_TRUE(device) << describe(device.error());
    device_ = std::move(*device);
  }

  // Mounts a filesystem of its own for the image; false with a reason on stdout where that cannot
  // be.
  bool mount_xfs() {
    if (!shell("command -v mkfs.xfs >/dev/null")) return false;
    if (!shell("truncate -s 512M '" + directory_ + "/xfs' && mkfs.xfs -q '" + directory_ +
               "/xfs'")) {
      return false;
    }
    if (!shell("mkdir '" + directory_ + "/mnt' && mount -o loop '" + directory_ + "/xfs' '" +
               directory_ + "/mnt' 2>/dev/null")) {
      return false;
    }
    mounted_ = true;
    image_ = directory_ + "/mnt/image";
    return true;
  }

  // A block device over image_, which it becomes; false where there is none to be had.
  bool attach_loop_device() {
    if (!create_image(image_, kBlocks * kBlockBytes)) return false;
    FILE* pipe = popen(("losetup --find --show '" + image_ + "' 2>/dev/null").c_str(), "r");
    if (pipe == nullptr) return false;
    char name[64] = "";
    const bool got = fscanf(pipe, "%63s", name) == 1;
    if (pclose(pipe) != 0 || !got) return false;
    loop_device_ = image_ = name;
    return true;
  }

  Task<Result<>> write_version(const BlockRange& range, uint64_t version, bool durable = false) {
    BufferRef buffer = buffers_.allocate(static_cast<uint32_t>(range.count));
    for (uint32_t i = 0; i < range.count; i++)
      fill_block(buffer->block(i), range.start + i, version);
    MemoryPiece piece{buffer->data(), static_cast<uint32_t>(range.count)};
    auto result = co_await device_->write(range, {&piece, 1}, durable);
    co_return result;
  }
  // Single blocks, submitted in one stay in the monitor.
  Task<Result<>> write_together(uint64_t count) {
    WaitGroup group(monitor_);
    Result<> result;
    for (uint64_t i = 0; i < count; i++) {
      group.add();
      spawn(monitor_, write_one({i, 1}, result, group));
    }
    co_await group.wait();
    co_return result;
  }
  Task<void> write_one(BlockRange range, Result<>& result, WaitGroup& group) {
    auto written = co_await write_version(range, 1);
    if (!written) result = written;
    group.done();
  }
  // The blocks must hold what was written as blocks `from`…, in `version`.
  Task<Result<bool>> holds(const BlockRange& range, uint64_t from, uint64_t version) {
    BufferRef buffer = buffers_.allocate(static_cast<uint32_t>(range.count));
    MemoryPiece piece{buffer->data(), static_cast<uint32_t>(range.count)};
    auto result = co_await device_->read(range, {&piece, 1});
    COFS_CO_TRY(result);
    bool right = true;
    for (uint32_t i = 0; i < range.count; i++)
      right &= is_block(buffer->block(i), from + i, version);
    co_return right;
  }
  Task<Result<>> flush() {
    auto result = co_await device_->flush();
    co_return result;
  }
  Task<Result<>> discard(const BlockRange& range) {
    auto result = co_await device_->discard(range);
    co_return result;
  }
  Task<Result<>> copy(IoRequest& request) {
    struct Awaiter {
      Device& device;
      IoRequest& request;
      bool await_ready() { return false; }
      void await_suspend(std::coroutine_handle<> handle) {
        request.waiter = handle;
        device.submit(request);
      }
      void await_resume() {}
    };
    co_await Awaiter{*device_, request};
    co_return request.result;
  }

  // One of many: reads, writes and checks its own stretch of the device at random.
  Task<void> soak(uint64_t seed, uint64_t first, uint64_t count, int rounds, uint64_t& errors,
                  WaitGroup& group) {
    std::mt19937_64 random(seed);
    std::vector<uint64_t> versions(count, 0);
    for (int round = 0; round < rounds; round++) {
      uint64_t at = random() % count;
      uint64_t most = random() % 8 == 0 ? 64 : 4;
      BlockRange range{first + at, 1 + random() % std::min(count - at, most)};
      bool write = random() % 2 == 0;
      auto right = co_await soak_once(range, first, versions, write);
      if (!right) errors++;
    }
    group.done();
  }
  // Memory in up to three pieces that are not adjacent.
  Task<bool> soak_once(const BlockRange& range, uint64_t origin, std::vector<uint64_t>& versions,
                       bool write) {
    std::vector<BufferRef> memory;
    std::vector<MemoryPiece> pieces;
    uint64_t left = range.count;
    while (left > 0) {
      uint64_t part = pieces.size() == 2 ? left : std::max<uint64_t>(1, left / 2);
      memory.push_back(buffers_.allocate(static_cast<uint32_t>(part)));
      pieces.push_back({memory.back()->data(), static_cast<uint32_t>(part)});
      left -= part;
    }
    uint64_t block = range.start;
    for (const MemoryPiece& piece : pieces) {
      for (uint32_t i = 0; i < piece.blocks && write; i++, block++) {
        fill_block(piece.data + bytes_of_blocks(i), block, ++versions[block - origin]);
      }
    }
    Result<> result;
    if (write) {
      result = co_await device_->write(range, pieces);
    } else {
      result = co_await device_->read(range, pieces);
    }
    bool right = result.has_value();
    block = range.start;
    for (const MemoryPiece& piece : pieces) {
      for (uint32_t i = 0; i < piece.blocks && !write; i++, block++) {
        uint64_t version = versions[block - origin];
        if (version > 0) right &= is_block(piece.data + bytes_of_blocks(i), block, version);
      }
    }
    co_return right;
  }
  // `tasks` of them at once, started by two threads.
  void run_soak(uint64_t seed, uint64_t tasks, int rounds) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    uint64_t errors = 0;
    auto half = [&](uint64_t which) -> Task<void> {
      WaitGroup group(monitor_);
      uint64_t stretch = kBlocks / tasks;
      for (uint64_t i = which; i < tasks; i += 2) {
        group.add();
        spawn(monitor_, soak(seed * 1000 + i, i * stretch, stretch, rounds, errors, group));
      }
      co_await group.wait();
    };
    std::thread other([&] { run_blocking(monitor_, half(1)); });
    run_blocking(monitor_, half(0));
    other.join();
    EXPECT_EQ(errors, 0u);
  }

  Monitor monitor_;
  BufferPool buffers_{32 << 20};
  LineJournal journal_;
  std::string directory_;
  std::string image_;
  std::string loop_device_;
  bool mounted_ = false;
  std::unique_ptr<FileDevice> device_;
};

TEST_F(FileDeviceTest, StatesItsGeometry) {
  open();
  const DeviceGeometry& geometry = device_->geometry();
  EXPECT_EQ(geometry.block_count, kBlocks);
  EXPECT_EQ(geometry.name, image_);
  EXPECT_FALSE(geometry.is_block_device);
  EXPECT_GE(geometry.discard_granularity_blocks, 1u);
}

TEST_F(FileDeviceTest, KeepsWhatWasWrittenWithManyInFlight) {
  uint64_t seed = static_cast<uint64_t>(std::random_device{}());
  open();
  run_soak(seed, 48, 60);
  EXPECT_GT(device_->counters().handed_over, 0u);
  EXPECT_TRUE(run_blocking(monitor_, flush()));
}

TEST_F(FileDeviceTest, MoreRequestsThanRingEntries) {
  FileDeviceOptions options;
  options.ring_entries = 4;
  options.register_memory = false;
  open(options);
  run_soak(7, 64, 20);
}

TEST_F(FileDeviceTest, BlockingThreadsServeWhereThereIsNoIoUring) {
  FileDeviceOptions options;
  options.ring_entries = 0;  // the kernel refuses such a ring
  open(options);
  EXPECT_EQ(journal_.count("cannot have an io_uring"), 1);
  EXPECT_EQ(journal_.count("blocking threads"), 1);
  run_soak(9, 32, 20);
  EXPECT_GT(device_->counters().handed_over, 0u);
}

TEST_F(FileDeviceTest, LoneRequestsAreDoneInline) {
  open();
  for (uint64_t i = 0; i < 50; i++) {
    ASSERT_TRUE(run_blocking(monitor_, write_version({i, 2}, 1)));
    ASSERT_TRUE(run_blocking(monitor_, flush()));
    EXPECT_TRUE(run_blocking(monitor_, holds({i, 2}, i, 1)).value_or(false));
  }
  EXPECT_EQ(device_->counters().inline_requests, 150u);
  EXPECT_EQ(device_->counters().handed_over, 0u);
  ASSERT_TRUE(run_blocking(monitor_, write_version({100, 256}, 1)));  // large: by a thread
  EXPECT_EQ(device_->counters().handed_over, 1u);
}

// One program's reads at once, as of blocks ahead, do not keep its next requests from being done in place.
TEST_F(FileDeviceTest, WhatComesTogetherIsNoBurst) {
  open();
  for (uint64_t i = 0; i < 20; i++) {
    ASSERT_TRUE(run_blocking(monitor_, write_together(8)));
    ASSERT_TRUE(run_blocking(monitor_, write_version({i, 2}, 1)));
  }
  EXPECT_EQ(device_->counters().handed_over, 160u);
  EXPECT_EQ(device_->counters().inline_requests, 20u);
}

TEST_F(FileDeviceTest, NothingInlineWhereItIsForbidden) {
  FileDeviceOptions options;
  options.inline_io = false;
  options.inline_flush = false;
  open(options);
  ASSERT_TRUE(run_blocking(monitor_, write_version({5, 1}, 1)));
  ASSERT_TRUE(run_blocking(monitor_, flush()));
  EXPECT_TRUE(run_blocking(monitor_, holds({5, 1}, 5, 1)).value_or(false));
  EXPECT_EQ(device_->counters().inline_requests, 0u);
  EXPECT_EQ(device_->counters().handed_over, 3u);
}

// In place, by a ring, and by blocking threads.
TEST_F(FileDeviceTest, DurableWrites) {
  for (int way = 0; way < 3; way++) {
    FileDeviceOptions options;
    options.inline_flush = way == 0;
    options.ring_entries = way == 2 ? 0 : options.ring_entries;
    open(options);
    ASSERT_TRUE(run_blocking(monitor_, write_version({7, 3}, 1, true)));
    EXPECT_EQ(device_->counters().inline_requests, way == 0 ? 1u : 0u);
    EXPECT_TRUE(run_blocking(monitor_, holds({7, 3}, 7, 1)).value_or(false));
  }
}

TEST_F(FileDeviceTest, DiscardedBlocksOfAFileReadAsZeros) {
  open();
  if (!device_->geometry().can_discard) GTEST_SKIP() << "the host filesystem cannot punch holes";
  ASSERT_TRUE(run_blocking(monitor_, write_version({64, 64}, 1)));
  ASSERT_TRUE(run_blocking(monitor_, discard({80, 16})));
  EXPECT_TRUE(run_blocking(monitor_, holds({64, 16}, 64, 1)).value_or(false));
  EXPECT_TRUE(run_blocking(monitor_, holds({96, 32}, 96, 1)).value_or(false));
  auto zeros = [&]() -> Task<bool> {
    BufferRef buffer = buffers_.allocate(16);
    MemoryPiece piece{buffer->data(), 16};
    auto result = co_await device_->read({80, 16}, {&piece, 1});
    bool all = result.has_value();
    for (uint64_t i = 0; i < 16 * kBlockBytes; i++) all &= buffer->data()[i] == std::byte{0};
    co_return all;
  };
  EXPECT_TRUE(run_blocking(monitor_, zeros()));
}

TEST_F(FileDeviceTest, RefusesRangesOffTheDevice) {
  open();
  auto code = [&](BlockRange range) {
    auto result = run_blocking(monitor_, holds(range, range.start, 1));
    return result ? Code::kExists : result.error().code;
  };
  EXPECT_EQ(code({kBlocks, 1}), Code::kInvalid);
  EXPECT_EQ(code({kBlocks - 1, 2}), Code::kInvalid);
  EXPECT_EQ(code({UINT64_MAX, 1}), Code::kInvalid);
  EXPECT_EQ(code({UINT64_MAX - 3, 8}), Code::kInvalid);
  EXPECT_EQ(run_blocking(monitor_, discard({kBlocks - 1, UINT64_MAX})).error().code,
            Code::kInvalid);
  EXPECT_EQ(run_blocking(monitor_, discard({0, 0})).error().code, Code::kInvalid);
  EXPECT_TRUE(run_blocking(monitor_, write_version({kBlocks - 1, 1}, 1)));
}

TEST_F(FileDeviceTest, TruncatedImageIsAnErrorNotZeros) {
  for (bool inline_io : {true, false}) {
    FileDeviceOptions options;
    options.inline_io = inline_io;
    open(options);
    ASSERT_EQ(truncate(image_.c_str(), 1000 * kBlockBytes + 100), 0);
    auto cut = run_blocking(monitor_, holds({999, 2}, 999, 1));
    ASSERT_FALSE(cut.has_value());
    EXPECT_EQ(cut.error().code, Code::kIo);
    EXPECT_EQ(run_blocking(monitor_, holds({5000, 1}, 5000, 1)).error().code, Code::kIo);
    EXPECT_GE(journal_.count("the target ended early"), 1);
    ASSERT_EQ(truncate(image_.c_str(), kBlocks * kBlockBytes), 0);
  }
}

TEST_F(FileDeviceTest, ReadOnlyTargetTakesNoWrites) {
  open();
  ASSERT_TRUE(run_blocking(monitor_, write_version({3, 1}, 1)));
  open({}, TargetMode::kReadOnly);
  EXPECT_TRUE(run_blocking(monitor_, holds({3, 1}, 3, 1)).value_or(false));
  EXPECT_EQ(run_blocking(monitor_, write_version({3, 1}, 2)).error().code, Code::kReadOnly);
  EXPECT_EQ(run_blocking(monitor_, discard({3, 1})).error().code, Code::kReadOnly);
}

TEST_F(FileDeviceTest, BufferedWhereAsked) {
  FileDeviceOptions options;
  options.direct = false;
  open(options);
  EXPECT_EQ(fcntl(device_->target().fd(), F_GETFL) & O_DIRECT, 0);
  run_soak(11, 16, 30);
}

TEST_F(FileDeviceTest, HostThatRefusesDirectIoIsUsedBufferedAndSaysSo) {
  // ramfs has no direct I/O, and is at hand wherever mounting is.
  ASSERT_TRUE(shell("mkdir '" + directory_ + "/mnt'"));
  if (!shell("mount -t ramfs none '" + directory_ + "/mnt' 2>/dev/null")) {
    GTEST_SKIP() << "cannot mount a ramfs";
  }
  mounted_ = true;
  image_ = directory_ + "/mnt/image";
  open();
  run_soak(12, 16, 30);
  bool direct = (fcntl(device_->target().fd(), F_GETFL) & O_DIRECT) != 0;
  EXPECT_EQ(journal_.count("refuses O_DIRECT"), direct ? 0 : 1);
  EXPECT_FALSE(direct);
}

TEST_F(FileDeviceTest, CloneIsOfferedOnlyWhereTheHostCan) {
  open();
  const DeviceGeometry& geometry = device_->geometry();
  EXPECT_EQ(geometry.copies.size() + geometry.copy_refusals.size(), 1u);
  if (!geometry.copies.empty()) GTEST_SKIP() << "the temporary directory's filesystem can clone";
  EXPECT_EQ(geometry.copy_refusals.front().rfind("hostfile: host filesystem ", 0), 0u)
      << geometry.copy_refusals.front();
  BlockRange source{0, 4};
  IoRequest request;
  request.op = IoRequest::Op::kCopy;
  request.copy_index = 0;
  request.range = {100, 4};
  request.sources = {&source, 1};
  EXPECT_EQ(run_blocking(monitor_, copy(request)).error().code, Code::kNotSupported);
}

TEST_F(FileDeviceTest, ClonesWithinAnImageOnXfs) {
  if (!mount_xfs()) GTEST_SKIP() << "no xfs on a loop device to be had";
  for (bool direct : {true, false}) {
    FileDeviceOptions options;
    options.direct = direct;
    open(options);
    ASSERT_EQ(device_->geometry().copies.size(), 1u) << device_->geometry().copy_refusals.front();
    EXPECT_EQ(device_->geometry().copies.front().engine, "hostfile");
    EXPECT_EQ(device_->geometry().copies.front().path, CopyPath::kHostFile);
    uint64_t version = direct ? 1 : 2;
    ASSERT_TRUE(run_blocking(monitor_, write_version({0, 256}, version)));
    std::vector<BlockRange> sources = {{10, 5}, {200, 56}, {0, 1}};
    IoRequest request;
    request.op = IoRequest::Op::kCopy;
    request.copy_index = 0;
    request.range = {5000, 62};
    request.sources = sources;
    auto copied = run_blocking(monitor_, copy(request));
    ASSERT_TRUE(copied) << describe(copied.error());
    EXPECT_EQ(request.good_blocks, 62u);
    EXPECT_TRUE(run_blocking(monitor_, flush()));
    EXPECT_TRUE(run_blocking(monitor_, holds({5000, 5}, 10, version)).value_or(false));
    EXPECT_TRUE(run_blocking(monitor_, holds({5005, 56}, 200, version)).value_or(false));
    EXPECT_TRUE(run_blocking(monitor_, holds({5061, 1}, 0, version)).value_or(false));
    // A later write to the source leaves the copy alone.
    ASSERT_TRUE(run_blocking(monitor_, write_version({10, 1}, version + 10)));
    EXPECT_TRUE(run_blocking(monitor_, holds({5000, 1}, 10, version)).value_or(false));
  }
}

TEST_F(FileDeviceTest, PartialCloneReportsItsKnownGoodPrefix) {
  if (!mount_xfs()) GTEST_SKIP() << "no xfs on a loop device to be had";
  open();
  ASSERT_TRUE(run_blocking(monitor_, write_version({0, 64}, 1)));
  // The second source overlaps its own target, which the host filesystem refuses.
  std::vector<BlockRange> sources = {{0, 8}, {5004, 8}};
  IoRequest request;
  request.op = IoRequest::Op::kCopy;
  request.copy_index = 0;
  request.range = {5000, 16};
  request.sources = sources;
  auto copied = run_blocking(monitor_, copy(request));
  ASSERT_FALSE(copied.has_value());
  EXPECT_EQ(copied.error().code, Code::kNotSupported);
  EXPECT_EQ(request.good_blocks, 8u);
  EXPECT_TRUE(run_blocking(monitor_, holds({5000, 8}, 0, 1)).value_or(false));
}

TEST_F(FileDeviceTest, FullHostIsNoSpace) {
  if (!mount_xfs()) GTEST_SKIP() << "no xfs on a loop device to be had";
  open();
  if (!shell("dd if=/dev/zero of='" + directory_ +
             "/mnt/filler' bs=1M status=none 2>/dev/null; sync '" + directory_ +
             "/mnt'; dd if=/dev/zero bs=4k of='" + directory_ +
             "/mnt/filler2' status=none 2>/dev/null; true")) {
    GTEST_SKIP() << "cannot fill the filesystem";
  }
  auto written = run_blocking(monitor_, write_version({3000, 512}, 1));
  for (uint64_t at = 4000; written && at < 12000; at += 512) {
    written = run_blocking(monitor_, write_version({at, 512}, 1));
  }
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().code, Code::kNoSpace);
}

// Opening and closing, with requests up to the last moment.
TEST_F(FileDeviceTest, ClosesRightAfterTheLastRequest) {
  for (int i = 0; i < 20; i++) {
    FileDeviceOptions options;
    options.inline_io = i % 2 == 0;
    options.register_memory = false;
    open(options);
    ASSERT_TRUE(run_blocking(monitor_, write_version({0, 4}, 1)));
    device_.reset();
  }
}

TEST_F(FileDeviceTest, WorksOnALoopDevice) {
  if (!attach_loop_device()) GTEST_SKIP() << "no loop device to be had";
  open();
  EXPECT_TRUE(device_->geometry().is_block_device);
  EXPECT_EQ(device_->geometry().block_count, kBlocks);
  EXPECT_EQ(device_->geometry().copy_refusals.front(), "device: " + image_.substr(5) + " is a loop device: no copy command");
  const uint64_t flushes = flushes_of(image_.substr(5));
  ASSERT_TRUE(run_blocking(monitor_, write_version({0, 3}, 1, true)));
  EXPECT_EQ(device_->counters().inline_requests, 1u);
  EXPECT_LE(flushes_of(image_.substr(5)), flushes + 1);  // a blocking call would flush twice
  EXPECT_TRUE(run_blocking(monitor_, holds({0, 3}, 0, 1)).value_or(false));
  run_soak(13, 32, 30);
  EXPECT_TRUE(run_blocking(monitor_, flush()));
  EXPECT_TRUE(run_blocking(monitor_, discard({64, 64})));
}

// On a device that is fast, unless that is forbidden. What they write is there either way.
TEST_F(FileDeviceTest, DurableWritesArePolledFor) {
  const std::string in_memory = "/dev/shm/cofs_device_" + std::to_string(getpid());
  image_ = in_memory;
  const bool attached = attach_loop_device();
  unlink(in_memory.c_str());
  if (!attached) GTEST_SKIP() << "no loop device in memory to be had";
  constexpr uint64_t kWrites = 2000;
  for (const bool allowed : {true, false}) {
    FileDeviceOptions options;
    options.busy_poll = allowed;
    open(options);
    const uint64_t version = allowed ? 7 : 8;
    for (uint64_t i = 0; i < kWrites; i++) {
      ASSERT_TRUE(run_blocking(monitor_, write_version({i, 1}, version, true)));
    }
    EXPECT_EQ(device_->counters().polled > 0, allowed && usable_cpus() > 1);
    EXPECT_TRUE(run_blocking(monitor_, holds({0, 64}, 0, version)).value_or(false));
  }
}

}  // namespace
}  // namespace cofs
