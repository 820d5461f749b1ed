// The thread and its ring on this machine's kernel. /dev/null takes every command and does nothing
// on recent kernels, other files take none: that shows the ring, the hand-over and the matching of
// completions, though no copy.
#include "offload/nvme_copy_thread.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "offload/nvme_copier.h"

namespace cofs {
namespace {

class CountingSink final : public RequestSink {
 public:
  void finished(std::span<IoRequest* const> requests) override {
    std::lock_guard lock(mutex_);
    for (IoRequest* request : requests) {
      done_++;
      if (!request->result) {
        failed_++;
        error_ = request->result.error();
      } else {
        good_blocks_ += request->good_blocks;
      }
    }
    changed_.notify_all();
  }
  void transfer_failed(const IoRequest&, int) override { ADD_FAILURE() << "not a transfer"; }

  void wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= count; });
  }
  size_t done() const { return done_; }
  size_t failed() const { return failed_; }
  uint64_t good_blocks() const { return good_blocks_; }
  const Error& error() const { return error_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t done_ = 0;
  size_t failed_ = 0;
  uint64_t good_blocks_ = 0;
  Error error_;
};

class NvmeCopyThreadTest : public testing::Test {
 protected:
  NvmeCopyThreadTest() {
    stack_.disks = {{DiskKind::kNvme, "nvme0n1", 0, 512}, {DiskKind::kNvme, "nvme0n2", 0, 4096}};
    stack_.regions = {{{0, 1 << 20}, 0, 0}, {{1 << 20, 1 << 20}, 1, 0}};
  }
  // Starts with `fd` for the first disk and /dev/null for the second; null after a skip.
  std::unique_ptr<NvmeCopyThread> start(int fd, uint32_t commands_in_flight) {
    auto thread =
        NvmeCopyThread::start(stack_, {{fd, 1}, {null_.get(), 2}}, commands_in_flight, -1, sink_);
    if (thread) return std::move(*thread);
    skip_reason_ = std::string("no io_uring for commands here: ") + std::strerror(thread.error());
    return nullptr;
  }
  IoRequest make(uint64_t target, std::span<const BlockRange> sources) const {
    IoRequest request;
    request.op = IoRequest::Op::kCopy;
    for (const BlockRange& source : sources) request.range.count += source.count;
    request.range.start = target;
    request.sources = sources;
    return request;
  }

  DeviceStack stack_;
  OwnedFd null_{open("/dev/null", O_RDWR | O_CLOEXEC)};
  CountingSink sink_;
  std::string skip_reason_;
};

TEST_F(NvmeCopyThreadTest, FinishesWhatManyThreadsHandOver) {
  std::unique_ptr<NvmeCopyThread> thread = start(null_.get(), 8);
  if (!thread) GTEST_SKIP() << skip_reason_;
  constexpr int kThreads = 4;
  constexpr int kRequests = 2000;
  const std::vector<BlockRange> sources[] = {{{1, 1}, {5, 2}}, {{(1 << 20) + 9, 3}}};
  std::vector<std::deque<IoRequest>> requests(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < kRequests; k++) {
        uint64_t target = k % 2 == 0 ? 1000 : (1 << 20) + 1000;
        thread->submit(requests[static_cast<size_t>(i)].emplace_back(make(target, sources[k % 2])));
        // Now and then it has time to fall asleep.
        if (k % 500 == 0) usleep(2000);
      }
    });
  }
  for (std::thread& each : threads) each.join();
  thread.reset();  // waits for the rest
  EXPECT_EQ(sink_.done(), size_t{kThreads} * kRequests);
  if (sink_.failed() == sink_.done()) {
    EXPECT_EQ(sink_.error().code, Code::kNotSupported);
    GTEST_SKIP() << "this kernel's /dev/null takes no commands: " << describe(sink_.error());
  }
  EXPECT_EQ(sink_.failed(), 0u);
  EXPECT_EQ(sink_.good_blocks(), uint64_t{kThreads} * kRequests * 3);
}

TEST_F(NvmeCopyThreadTest, WakesUpForEachRequestAndEndsIdle) {
  std::unique_ptr<NvmeCopyThread> thread = start(null_.get(), 1);
  if (!thread) GTEST_SKIP() << skip_reason_;
  const std::vector<BlockRange> sources = {{1, 1}};
  for (size_t i = 1; i <= 200; i++) {
    IoRequest request = make(1000, sources);
    thread->submit(request);
    sink_.wait_for(i);
  }
}

TEST_F(NvmeCopyThreadTest, FileThatTakesNoCommandsIsNotSupported) {
  std::string path = testing::TempDir() + "cofs_nvme_XXXXXX";
  OwnedFd plain(mkstemp(path.data()));
  ASSERT_TRUE(plain.valid());
  unlink(path.c_str());
  std::unique_ptr<NvmeCopyThread> thread = start(plain.get(), 4);
  if (!thread) GTEST_SKIP() << skip_reason_;
  const std::vector<BlockRange> sources = {{1, 1}};
  IoRequest request = make(1000, sources);
  thread->submit(request);
  sink_.wait_for(1);
  ASSERT_FALSE(request.result);
  EXPECT_EQ(request.result.error().code, Code::kNotSupported) << describe(request.result.error());
  EXPECT_EQ(request.good_blocks, 0u);
}

TEST_F(NvmeCopyThreadTest, EveryCommandOfABadDescriptorFails) {
  std::unique_ptr<NvmeCopyThread> thread = start(-1, 4);
  if (!thread) GTEST_SKIP() << skip_reason_;
  const std::vector<BlockRange> sources = {{1, 1}};
  std::deque<IoRequest> requests;
  for (int i = 0; i < 100; i++) thread->submit(requests.emplace_back(make(1000, sources)));
  thread.reset();
  EXPECT_EQ(sink_.failed(), 100u);
}

TEST(NvmeCopier, DiskThatIsNotThereIsNotOffered) {
  DeviceStack stack;
  stack.disks = {{DiskKind::kNvme, "nvme77n1", 0, 512}};
  stack.regions = {{{0, 100}, 0, 0}};
  CountingSink sink;
  auto copier = NvmeCopier::probe(stack, 100, -1, sink);
  ASSERT_FALSE(copier.has_value());
  EXPECT_EQ(copier.error(), "nvme: nvme77n1 has no controller in /sys");
}

}  // namespace
}  // namespace cofs
