#include "offload/target.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <thread>

namespace cofs {
namespace {

using namespace std::chrono_literals;

class TargetTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "cofs_target_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { ASSERT_EQ(std::system(("rm -rf '" + directory_ + "'").c_str()), 0); }
  std::string path(const char* name) const { return directory_ + "/" + name; }

  std::string directory_;
};

TEST_F(TargetTest, CreatesASparseImageOnce) {
  ASSERT_TRUE(create_image(path("image"), 1u << 30));
  struct stat status {};
  ASSERT_EQ(stat(path("image").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 1 << 30);
  EXPECT_LT(status.st_blocks, 100);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  EXPECT_EQ(create_image(path("image"), 1u << 30).error().code, Code::kExists);
  EXPECT_EQ(create_image(path("odd"), 4097).error().code, Code::kInvalid);
  EXPECT_EQ(create_image(path("none"), 0).error().code, Code::kInvalid);
  EXPECT_EQ(create_image(path("missing/image"), 4096).error().code, Code::kNoEntry);
  EXPECT_EQ(create_image(path("huge"), UINT64_MAX - 4095).error().code, Code::kFileTooBig);
  // Larger than the host filesystem's files can be: nothing is left behind.
  auto too_big = create_image(path("big"), (uint64_t{1} << 63) - 4096);
  if (!too_big) {
    EXPECT_NE(access(path("big").c_str(), F_OK), 0);
  }
}

TEST_F(TargetTest, OpensAnImage) {
  ASSERT_TRUE(create_image(path("image"), 8 << 20));
  auto target = open_target(path("image"), TargetMode::kReadWrite, 0ms);
  ASSERT_TRUE(target.has_value());
  EXPECT_EQ(target->kind(), TargetKind::kImage);
  EXPECT_EQ(target->size_bytes(), 8u << 20);
  EXPECT_FALSE(target->read_only());
  EXPECT_NE(fcntl(target->fd(), F_GETFD) & FD_CLOEXEC, 0);
  target->release_claim();
}

TEST_F(TargetTest, RefusesWhatIsNoTarget) {
  ASSERT_EQ(mkfifo(path("fifo").c_str(), 0600), 0);
  auto code = [&](const std::string& name) {
    auto target = open_target(name, TargetMode::kReadWrite, 0ms);
    return target ? Code::kExists : target.error().code;
  };
  EXPECT_EQ(code(directory_), Code::kIsDirectory);
  EXPECT_EQ(code(path("fifo")), Code::kInvalid);  // and does not block on it
  EXPECT_EQ(code("/dev/null"), Code::kInvalid);
  EXPECT_EQ(code(path("missing")), Code::kNoEntry);
}

TEST_F(TargetTest, SecondOpenerIsRefusedOrWaits) {
  ASSERT_TRUE(create_image(path("image"), 1 << 20));
  auto first = open_target(path("image"), TargetMode::kReadWrite, 0ms);
  ASSERT_TRUE(first.has_value());
  for (TargetMode mode : {TargetMode::kReadWrite, TargetMode::kReadOnly}) {
    auto second = open_target(path("image"), mode, 0ms);
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code, Code::kBusy);
    EXPECT_STREQ(second.error().what, "target is in use by another cofs process (mounted?)");
  }
  auto begin = std::chrono::steady_clock::now();
  auto late = open_target(path("image"), TargetMode::kReadWrite, 100ms);
  EXPECT_FALSE(late.has_value());
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 100ms);

  std::thread closer([held = std::move(*first)]() mutable {
    std::this_thread::sleep_for(100ms);
    OpenedTarget closes_here = std::move(held);
  });
  auto waited = open_target(path("image"), TargetMode::kReadWrite, 5s);
  closer.join();
  EXPECT_TRUE(waited.has_value());
}

TEST_F(TargetTest, ReadersShareAndKeepWritersOut) {
  ASSERT_TRUE(create_image(path("image"), 1 << 20));
  auto first = open_target(path("image"), TargetMode::kReadOnly, 0ms);
  auto second = open_target(path("image"), TargetMode::kReadOnly, 0ms);
  ASSERT_TRUE(first.has_value());
  ASSERT_TRUE(second.has_value());
  EXPECT_TRUE(first->read_only());
  EXPECT_EQ(open_target(path("image"), TargetMode::kReadWrite, 0ms).error().code, Code::kBusy);
}

TEST_F(TargetTest, LockEndsWithTheProcess) {
  ASSERT_TRUE(create_image(path("image"), 1 << 20));
  pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto target = open_target(path("image"), TargetMode::kReadWrite, 0ms);
    usleep(100'000);
    _exit(target ? 0 : 1);  // no destructor runs
  }
  usleep(30'000);
  auto target = open_target(path("image"), TargetMode::kReadWrite, 5s);
  EXPECT_TRUE(target.has_value());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(TargetTest, RecognisesSignatures) {
  ASSERT_TRUE(create_image(path("empty"), 64 << 20));
  auto signature_of = [&](const char* name) -> std::string {
    auto target = open_target(path(name), TargetMode::kReadOnly, 0ms);
    if (!target) return "cannot open";
    auto signature = recognised_signature(*target);
    if (!signature) return "error";
    return signature->value_or("none");
  };
  EXPECT_EQ(signature_of("empty"), "none");
  ASSERT_TRUE(create_image(path("tiny"), 4096));
  EXPECT_EQ(signature_of("tiny"), "none");

  ASSERT_TRUE(create_image(path("swap"), 1 << 20));
  int fd = open(path("swap").c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_EQ(pwrite(fd, "SWAPSPACE2", 10, 4086), 10);
  const uint32_t version_and_pages[2] = {1, 255};
  ASSERT_EQ(pwrite(fd, version_and_pages, 8, 1024), 8);
  close(fd);
  EXPECT_EQ(signature_of("swap"), "swap");

  if (std::system("command -v mkfs.ext4 >/dev/null") != 0)
    GTEST_SKIP() << "mkfs.ext4 is not installed";
  ASSERT_EQ(std::system(("mkfs.ext4 -q '" + path("empty") + "'").c_str()), 0);
  EXPECT_EQ(signature_of("empty"), "ext4");
}

// A block device: a loop device, where the machine lets us have one.
TEST_F(TargetTest, ClaimsABlockDevice) {
  ASSERT_TRUE(create_image(path("image"), 64 << 20));
  std::string command = "losetup --find --show '" + path("image") + "' 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  char name[64] = "";
  bool got = fscanf(pipe, "%63s", name) == 1;
  if (pclose(pipe) != 0 || !got) GTEST_SKIP() << "no loop device to be had";
  struct Detach {
    std::string device;
    ~Detach() {
      if (std::system(("losetup -d " + device).c_str()) != 0)
        ADD_FAILURE() << "cannot detach " << device;
    }
  } detach{name};

  auto target = open_target(name, TargetMode::kReadWrite, 0ms);
  ASSERT_TRUE(target.has_value()) << describe(target.error());
  EXPECT_TRUE(target->is_block_device());
  EXPECT_EQ(target->size_bytes(), 64u << 20);
  EXPECT_EQ(open_target(name, TargetMode::kReadWrite, 0ms).error().code, Code::kBusy);
  EXPECT_EQ(open_target(name, TargetMode::kReadOnly, 0ms).error().code, Code::kBusy);
  int other = open(name, O_RDWR | O_EXCL | O_CLOEXEC);
  EXPECT_LT(other, 0);

  // After that the kernel can claim it (fuseblk), but no other cofs process.
  const OwnedFd in_flight(dup(target->fd()));  // as a request of io_uring keeps it
  target->release_claim();
  other = open(name, O_RDWR | O_EXCL | O_CLOEXEC);
  EXPECT_GE(other, 0);
  EXPECT_EQ(open_target(name, TargetMode::kReadWrite, 0ms).error().code, Code::kBusy);
  std::byte byte{};
  EXPECT_EQ(pread(target->fd(), &byte, 1, 0), 1);

  // Claimed by somebody else: refused with words of its own.
  *target = std::move(*open_target(path("image"), TargetMode::kReadOnly, 0ms));
  auto claimed = open_target(name, TargetMode::kReadWrite, 0ms);
  ASSERT_FALSE(claimed.has_value());
  EXPECT_STREQ(claimed.error().what, "target is claimed by a mount or another driver");
  close(other);
}

}  // namespace
}  // namespace cofs
