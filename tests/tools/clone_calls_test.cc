// The checks and the sequence of tools/ficlone/clone_calls.h, on files that exist in a table only:
// what a kernel with these calls would answer, what reaches the server, and in which order.
#include "tools/ficlone/clone_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fiemap.h>
#include <linux/fs.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "fs/cofs_ioctl.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = 4096;
constexpr int kSource = 10;
constexpr int kTarget = 11;
constexpr int kOtherMount = 12;
constexpr int kDirectory = 13;
constexpr int kForeign = 14;
constexpr int kFetchedBase = 1000;  // fetched descriptors differ from the caller's numbers

struct FakeFile {
  FileFacts facts{};
  bool is_fuse = true;
  bool is_cofs = true;
  bool is_read_only = false;
};

// A process whose descriptors are kSource…, on a server that clones instantly.
class Fake {
 public:
  Fake() {
    add(kSource, 1, 100, 10 * kBlock);
    add(kTarget, 1, 101, 0);
    add(kOtherMount, 2, 101, 4 * kBlock);
    add(kDirectory, 1, 1, 0);
    files[kDirectory].facts.is_regular = false;
    files[kDirectory].facts.is_directory = true;
    add(kForeign, 3, 7, 4 * kBlock);
    files[kForeign].is_fuse = false;
    files[kForeign].is_cofs = false;
    system = {this, read,   write, fetch,      release, ioctl,
              stat, statfs, copy,  sync_range, limit,   raise};
  }

  void add(int fd, uint64_t device, uint64_t inode, uint64_t bytes) {
    FakeFile file;
    file.facts.device = device;
    file.facts.inode = inode;
    file.facts.bytes = bytes;
    file.facts.is_regular = true;
    files[fd] = file;
  }

  long clone(int source, uint64_t source_offset, uint64_t length, int target,
             uint64_t target_offset) {
    file_clone_range range{};
    range.src_fd = source;
    range.src_offset = source_offset;
    range.src_length = length;
    range.dest_offset = target_offset;
    return clone_ioctl(system, kFetchedBase + target, FICLONERANGE, address_of(&range));
  }

  static uint64_t address_of(void* place) { return reinterpret_cast<uintptr_t>(place); }

  CloneSystem system;
  std::map<int, FakeFile> files;
  std::vector<std::string> steps;  // what the server saw, in order
  uint64_t file_size_limit = UINT64_MAX;
  uint64_t piece = UINT64_MAX;          // one copy_file_range does this much
  std::map<size_t, long> copy_results;  // n-th copy_file_range → result instead
  long announce_result = 0;
  long native = -EOPNOTSUPP;  // of the four, as the kernel answers them
  uint32_t block_bytes = kBlock;
  bool bad_memory = false;
  int signals = 0;
  int open_fetched = 0;
  size_t copies = 0;
  cofs_announce announced{};
  std::vector<cofs_map_extent> extents;
  uint32_t map_page = COFS_MAP_EXTENTS;
  bool stuck_map = false;
  std::map<int, long> dedupe_results;  // by target
  int32_t dedupe_status = COFS_DEDUPE_SAME;
  uint64_t dedupe_piece = UINT64_MAX;
  int tokens = 0;
  int queries = 0;
  int statfs_calls = 0;

 private:
  static Fake& self(void* context) { return *static_cast<Fake*>(context); }
  static FakeFile* file_of(void* context, int fd) {
    auto found = self(context).files.find(fd - kFetchedBase);
    return found == self(context).files.end() ? nullptr : &found->second;
  }

  static long read(void* context, uint64_t address, void* bytes, size_t count) {
    if (self(context).bad_memory) return -EFAULT;
    std::memcpy(bytes, reinterpret_cast<void*>(address), count);
    return 0;
  }
  static long write(void* context, uint64_t address, const void* bytes, size_t count) {
    if (self(context).bad_memory) return -EFAULT;
    std::memcpy(reinterpret_cast<void*>(address), bytes, count);
    return 0;
  }
  static long fetch(void* context, int64_t number) {
    if (!self(context).files.contains(static_cast<int>(number))) return -EBADF;
    self(context).open_fetched++;
    return kFetchedBase + number;
  }
  static void release(void* context, int) { self(context).open_fetched--; }
  static long stat(void* context, int fd, FileFacts* facts) {
    *facts = file_of(context, fd)->facts;
    return 0;
  }
  static long statfs(void* context, int fd, MountFacts* facts) {
    self(context).statfs_calls++;
    *facts = {file_of(context, fd)->is_fuse, file_of(context, fd)->is_read_only};
    return 0;
  }
  static long limit(void* context, uint64_t* bytes) {
    *bytes = self(context).file_size_limit;
    return 0;
  }
  static void raise(void* context) { self(context).signals++; }
  static long sync_range(void* context, int fd, int64_t offset, int64_t length) {
    self(context).steps.push_back("sync " + std::to_string(fd - kFetchedBase) + " " +
                                  std::to_string(offset) + "+" + std::to_string(length));
    return 0;
  }
  static long copy(void* context, int source, int64_t* source_offset, int target,
                   int64_t* target_offset, size_t length) {
    Fake& fake = self(context);
    fake.steps.push_back("copy " + std::to_string(*source_offset) + "→" +
                         std::to_string(*target_offset) + "+" + std::to_string(length));
    auto planned = fake.copy_results.find(fake.copies++);
    if (planned != fake.copy_results.end()) return planned->second;
    const auto done = static_cast<int64_t>(std::min<uint64_t>(length, fake.piece));
    EXPECT_NE(file_of(context, source), nullptr);
    FakeFile& file = *file_of(context, target);
    *source_offset += done;
    *target_offset += done;
    file.facts.bytes = std::max(file.facts.bytes, static_cast<uint64_t>(*target_offset));
    return done;
  }

  static long ioctl(void* context, int fd, uint32_t request, void* argument) {
    Fake& fake = self(context);
    FakeFile* file = file_of(context, fd);
    if (file == nullptr) return -EBADF;
    if (is_clone_request(request)) return fake.native;
    // A private number never reaches what is no FUSE filesystem, nor what is no file.
    EXPECT_TRUE(file->is_fuse);
    if (!file->is_cofs) return -ENOTTY;
    switch (request) {
      case COFS_IOC_QUERY: {
        auto* query = static_cast<cofs_query*>(argument);
        fake.queries++;
        query->version = COFS_IOCTL_VERSION;
        query->block_bytes = fake.block_bytes;
        return 0;
      }
      case COFS_IOC_ANNOUNCE:
        fake.announced = *static_cast<cofs_announce*>(argument);
        fake.steps.push_back(fake.announced.length != 0 ? "announce" : "end");
        return fake.announce_result;
      case COFS_IOC_DEDUPE_TOKEN:
        fake.tokens++;
        std::memset(argument, fake.tokens, sizeof(cofs_dedupe_token));
        return 0;
      case COFS_IOC_DEDUPE:
        return fake.dedupe(fd - kFetchedBase, *static_cast<cofs_dedupe*>(argument));
      case COFS_IOC_MAP: return fake.map(*static_cast<cofs_map*>(argument));
      default: return -ENOTTY;
    }
  }

  long dedupe(int target, cofs_dedupe& work) {
    EXPECT_EQ(work.token[0], tokens);
    steps.push_back("dedupe " + std::to_string(work.source_offset) + "→" +
                    std::to_string(work.target_offset) + "+" + std::to_string(work.length));
    if (auto planned = dedupe_results.find(target); planned != dedupe_results.end()) {
      return planned->second;
    }
    work.status = dedupe_status;
    work.bytes_deduped =
        dedupe_status == COFS_DEDUPE_SAME ? std::min<uint64_t>(work.length, dedupe_piece) : 0;
    return 0;
  }

  long map(cofs_map& page) {
    page.count = 0;
    for (const cofs_map_extent& extent : extents) {
      const bool touches = extent.logical < page.start + page.length &&
                           (stuck_map || extent.logical + extent.length > page.start);
      if (!touches) continue;
      if (page.count == map_page) {
        page.more = 1;
        break;
      }
      page.extents[page.count++] = extent;
    }
    return 0;
  }
};

using Steps = std::vector<std::string>;

TEST(CloneCalls, KnowsItsRequestsByThirtyTwoBits) {
  for (uint64_t request : {FICLONE, FICLONERANGE, FIDEDUPERANGE, FS_IOC_FIEMAP}) {
    EXPECT_TRUE(is_clone_request(request));
    EXPECT_TRUE(is_clone_request(request | 0xffffffff00000000u));
  }
  EXPECT_FALSE(is_clone_request(FS_IOC_GETFLAGS));
  EXPECT_FALSE(is_clone_request(COFS_IOC_QUERY));
}

TEST(CloneCalls, AWholeFileIsSyncedAnnouncedAndCopied) {
  Fake fake;
  EXPECT_EQ(clone_ioctl(fake.system, kFetchedBase + kTarget, FICLONE, kSource), 0);
  EXPECT_EQ(fake.steps, (Steps{"sync 10 0+40960", "announce", "copy 0→0+40960"}));
  EXPECT_EQ(fake.announced.target_ino, 101u);
  EXPECT_EQ(fake.announced.length, 10 * kBlock);
  EXPECT_EQ(fake.files[kTarget].facts.bytes, 10 * kBlock);
  EXPECT_EQ(fake.open_fetched, 0);
}

TEST(CloneCalls, WhatTheKernelAnswersIsLeft) {
  for (long native : {0l, -long{EBADF}, -long{EXDEV}, -long{EINVAL}, -long{ENOSPC}}) {
    Fake fake;
    fake.native = native;
    EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), native);
    EXPECT_TRUE(fake.steps.empty());
    EXPECT_EQ(fake.open_fetched, 0);
  }
}

TEST(CloneCalls, OtherFilesystemsKeepTheirError) {
  Fake fake;
  EXPECT_EQ(fake.clone(kForeign, 0, 0, kForeign, 0), -EOPNOTSUPP);
  fake.files[kSource].is_cofs = false;  // another FUSE filesystem
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), -EOPNOTSUPP);
  for (uint32_t block : {0u, 100u, 6000u, 1u << 30}) {
    Fake odd;
    odd.block_bytes = block;
    EXPECT_EQ(odd.clone(kSource, 0, 0, kTarget, 0), -EOPNOTSUPP) << block;
  }
  EXPECT_TRUE(fake.steps.empty());
}

// A mount's unique id stays its own; without one, and for every other mount, the server is asked.
TEST(CloneCalls, AMountIsAskedOnce) {
  Fake fake;
  for (int i = 0; i < 3; i++) EXPECT_EQ(fake.clone(kSource, 0, kBlock, kTarget, 0), 0);
  EXPECT_EQ(fake.queries, 3);
  fake.files[kSource].facts.mount = 0x80000001;
  for (int i = 0; i < 3; i++) EXPECT_EQ(fake.clone(kSource, 0, kBlock, kTarget, 0), 0);
  EXPECT_EQ(fake.queries, 4);
  EXPECT_EQ(fake.statfs_calls, 4);
  EXPECT_EQ(fake.clone(kSource, 1, kBlock, kTarget, 0), -EINVAL);  // its block size is remembered
  fake.add(kOtherMount, 1, 200, kBlock);
  fake.files[kOtherMount].facts.mount = 0x80000002;
  EXPECT_EQ(fake.clone(kOtherMount, 0, kBlock, kTarget, 0), 0);
  EXPECT_EQ(fake.queries, 5);
  fake.files[kForeign].facts.mount = 0x80000003;
  fake.files[kForeign].is_fuse = true;
  for (int i = 0; i < 2; i++) EXPECT_EQ(fake.clone(kForeign, 0, kBlock, kTarget, 0), -EOPNOTSUPP);
  EXPECT_EQ(fake.queries, 5);
  EXPECT_EQ(fake.statfs_calls, 7);
  fake.files[kForeign].facts.mount = 1ULL << 62;  // more than is remembered
  fake.files[kForeign].is_cofs = true;
  for (int i = 0; i < 2; i++) EXPECT_EQ(fake.clone(kForeign, 0, kBlock, kForeign, kBlock), 0);
  EXPECT_EQ(fake.queries, 7);
}

TEST(CloneCalls, LengthZeroIsToTheEnd) {
  Fake fake;
  EXPECT_EQ(fake.clone(kSource, 4 * kBlock, 0, kTarget, kBlock), 0);
  EXPECT_EQ(fake.steps.back(), "copy 16384→4096+24576");
  Fake at_end;
  EXPECT_EQ(at_end.clone(kSource, 10 * kBlock, 0, kTarget, 0), 0);
  EXPECT_EQ(at_end.clone(kSource, 11 * kBlock, 0, kTarget, 0), -EINVAL);
  Fake empty;
  empty.files[kSource].facts.bytes = 0;
  EXPECT_EQ(empty.clone(kSource, 0, 0, kTarget, 0), 0);
  EXPECT_TRUE(at_end.steps.empty() && empty.steps.empty());
}

struct BadRange {
  const char* what;
  uint64_t source_offset;
  uint64_t length;
  uint64_t target_offset;
};

TEST(CloneCalls, BadRangesAreRefusedBeforeAnything) {
  // The source has 10 blocks, the target 20.
  const BadRange cases[] = {
      {"unaligned source", 1, kBlock, 0},
      {"unaligned target", 0, kBlock, 512},
      {"unaligned length inside the source", 0, kBlock + 1, 0},
      {"past the end", 0, 11 * kBlock, 0},
      {"begins at the end", 10 * kBlock, kBlock, 0},
      {"begins past the end", 12 * kBlock, kBlock, 0},
      {"negative source offset", 1ull << 63, kBlock, 0},
      {"negative target offset", 0, kBlock, 1ull << 63},
      {"negative length", 0, 1ull << 63, 0},
      {"wraps", 0, ~0ull, 0},
      {"end of the target wraps", 0, kBlock, (1ull << 63) - kBlock},
  };
  for (const BadRange& bad : cases) {
    Fake fake;
    fake.files[kTarget].facts.bytes = 20 * kBlock;
    EXPECT_EQ(fake.clone(kSource, bad.source_offset, bad.length, kTarget, bad.target_offset),
              -EINVAL)
        << bad.what;
    EXPECT_TRUE(fake.steps.empty()) << bad.what;
    EXPECT_EQ(fake.signals, 0) << bad.what;
  }
}

TEST(CloneCalls, AnUnalignedEndGoesOnlyToTheEndOfTheTarget) {
  Fake fake;
  fake.files[kSource].facts.bytes = 2 * kBlock + 100;
  EXPECT_EQ(fake.clone(kSource, 0, 2 * kBlock + 100, kTarget, 0), 0);
  fake.files[kTarget].facts.bytes = 2 * kBlock + 100;
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), 0);
  fake.files[kTarget].facts.bytes = 2 * kBlock + 101;
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), -EINVAL);
  // Whole blocks before it may go anywhere.
  EXPECT_EQ(fake.clone(kSource, 0, 2 * kBlock, kTarget, 0), 0);
}

TEST(CloneCalls, OverlapWithinAFileIsRefused) {
  Fake fake;
  EXPECT_EQ(fake.clone(kSource, 0, 4 * kBlock, kSource, 3 * kBlock), -EINVAL);
  EXPECT_EQ(fake.clone(kSource, 3 * kBlock, 4 * kBlock, kSource, 0), -EINVAL);
  EXPECT_EQ(fake.clone(kSource, 0, 4 * kBlock, kSource, 0), -EINVAL);
  EXPECT_EQ(fake.clone(kSource, 0, 4 * kBlock, kSource, 4 * kBlock), 0);
  // The last, partial block counts whole.
  fake.files[kSource].facts.bytes = 4 * kBlock + 1;
  EXPECT_EQ(fake.clone(kSource, 4 * kBlock, 1, kSource, 4 * kBlock), -EINVAL);
  // The same inode number on another filesystem is another file, and out of reach.
  EXPECT_EQ(fake.clone(kSource, 0, kBlock, kOtherMount, 0), -EXDEV);
}

TEST(CloneCalls, FileSizeLimitIsCheckedBeforeAnything) {
  Fake fake;
  fake.file_size_limit = 5 * kBlock;
  EXPECT_EQ(fake.clone(kSource, 0, kBlock, kTarget, 5 * kBlock), -EFBIG);
  EXPECT_EQ(fake.signals, 1);
  // One that crosses the limit would be cut short, which a clone may not be.
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), -EINVAL);
  EXPECT_EQ(fake.signals, 1);
  EXPECT_TRUE(fake.steps.empty());
  EXPECT_EQ(fake.clone(kSource, 0, 5 * kBlock, kTarget, 0), 0);
}

TEST(CloneCalls, ShortCopiesGoOnUnderOneAnnouncement) {
  Fake fake;
  fake.piece = 4 * kBlock;
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), 0);
  EXPECT_EQ(fake.steps, (Steps{"sync 10 0+40960", "announce", "copy 0→0+40960",
                               "copy 16384→16384+24576", "copy 32768→32768+8192"}));
}

TEST(CloneCalls, FailedCopiesEndTheAnnouncement) {
  struct Failure {
    size_t copy;
    long result;
    long expected;
  };
  const Failure cases[] = {
      {0, -EINVAL, -EINVAL},  {0, -ENOSPC, -ENOSPC}, {0, -EIO, -EIO},   {0, -EOPNOTSUPP, -EINVAL},
      {1, -EOPNOTSUPP, -EIO}, {1, -ENOSYS, -EIO},    {1, -EXDEV, -EIO}, {0, 0, -EINVAL},
      {1, 0, -EINVAL},        {0, 1 << 30, -EIO},
  };
  for (const Failure& failure : cases) {
    Fake fake;
    fake.piece = 4 * kBlock;
    fake.copy_results[failure.copy] = failure.result;
    EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), failure.expected)
        << failure.copy << " " << failure.result;
    EXPECT_EQ(fake.steps.back(), "end");
    EXPECT_EQ(fake.open_fetched, 0);
  }
}

TEST(CloneCalls, AnInterruptedCopyIsRepeated) {
  Fake fake;
  fake.copy_results[0] = -EINTR;
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), 0);
  EXPECT_EQ(fake.copies, 2u);
}

TEST(CloneCalls, WithoutAnAnnouncementNothingIsCopied) {
  for (auto [answer, expected] : {std::pair{-EINVAL, -EINVAL}, {-ENOTTY, -EINVAL}, {-EIO, -EIO}}) {
    Fake fake;
    fake.announce_result = answer;
    EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), expected);
    EXPECT_EQ(fake.copies, 0u);
  }
}

TEST(CloneCalls, BadMemoryAndBadDescriptors) {
  Fake fake;
  EXPECT_EQ(fake.clone(99, 0, 0, kTarget, 0), -EBADF);
  EXPECT_EQ(clone_ioctl(fake.system, kFetchedBase + kTarget, FICLONE, 99), -EBADF);
  EXPECT_EQ(clone_ioctl(fake.system, kFetchedBase + kTarget, FS_IOC_GETFLAGS, 0), -ENOTTY);
  fake.bad_memory = true;
  EXPECT_EQ(fake.clone(kSource, 0, 0, kTarget, 0), -EFAULT);
  for (uint32_t request :
       {static_cast<uint32_t>(FIDEDUPERANGE), static_cast<uint32_t>(FS_IOC_FIEMAP)}) {
    EXPECT_EQ(clone_ioctl(fake.system, kFetchedBase + kSource, request, 4096), -EFAULT);
  }
}

// FIDEDUPERANGE with up to four targets.
struct Dedupe {
  alignas(8) char bytes[sizeof(file_dedupe_range) + 4 * sizeof(file_dedupe_range_info)] = {};
  file_dedupe_range& head() { return *reinterpret_cast<file_dedupe_range*>(bytes); }
  void add(int target, uint64_t offset) {
    file_dedupe_range_info& info = head().info[head().dest_count++];
    info.dest_fd = target;
    info.dest_offset = offset;
  }
  long run(Fake& fake, int source = kSource) {
    return clone_ioctl(fake.system, kFetchedBase + source, FIDEDUPERANGE, Fake::address_of(bytes));
  }
};

TEST(CloneCalls, DedupeAsksPerTargetWithATokenEach) {
  Fake fake;
  fake.files[kTarget].facts.bytes = 8 * kBlock;
  Dedupe call;
  call.head().src_offset = kBlock;
  call.head().src_length = 2 * kBlock;
  call.add(kTarget, 0);
  call.add(kTarget, 4 * kBlock);
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(fake.steps,
            (Steps{"sync 10 4096+8192", "sync 11 0+8192", "dedupe 4096→0+8192", "sync 10 4096+8192",
                   "sync 11 16384+8192", "dedupe 4096→16384+8192"}));
  EXPECT_EQ(fake.tokens, 2);
  for (int i = 0; i < 2; i++) {
    EXPECT_EQ(call.head().info[i].status, FILE_DEDUPE_RANGE_SAME);
    EXPECT_EQ(call.head().info[i].bytes_deduped, 2 * kBlock);
  }
  EXPECT_EQ(fake.open_fetched, 0);
}

TEST(CloneCalls, DedupeStatusIsPerTarget) {
  Fake fake;
  fake.files[kTarget].facts.bytes = 8 * kBlock;
  fake.add(20, 1, 120, 8 * kBlock);
  fake.dedupe_results[20] = -EPERM;
  Dedupe call;
  call.head().src_length = kBlock;
  call.add(kTarget, 0);
  call.add(99, 0);
  call.add(20, 0);
  call.add(kTarget, 1);
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().info[0].status, FILE_DEDUPE_RANGE_SAME);
  EXPECT_EQ(call.head().info[1].status, -EBADF);
  EXPECT_EQ(call.head().info[2].status, -EPERM);
  EXPECT_EQ(call.head().info[2].bytes_deduped, 0u);
  EXPECT_EQ(call.head().info[3].status, -EINVAL);
}

TEST(CloneCalls, DedupeTargetsThatCannotBe) {
  struct Case {
    int target;
    uint64_t offset;
    int32_t expected;
  };
  const Case cases[] = {
      {kOtherMount, 0, -EXDEV},       {kDirectory, 0, -EISDIR},
      {kForeign, 0, -EXDEV},          {kTarget, 8 * kBlock, -EINVAL},
      {kTarget, 7 * kBlock, -EINVAL}, {kTarget, 1ull << 63, -EINVAL},
      {kSource, kBlock, -EINVAL},
  };
  for (const Case& bad : cases) {
    Fake fake;
    fake.files[kTarget].facts.bytes = 8 * kBlock;
    Dedupe call;
    call.head().src_length = 2 * kBlock;
    call.add(bad.target, bad.offset);
    EXPECT_EQ(call.run(fake), 0);
    EXPECT_EQ(call.head().info[0].status, bad.expected) << bad.target << " " << bad.offset;
    EXPECT_EQ(fake.tokens, 0);
  }
  Fake fake;
  fake.files[kTarget].facts.bytes = 8 * kBlock;
  fake.files[kTarget].is_read_only = true;
  Dedupe call;
  call.head().src_length = kBlock;
  call.add(kTarget, 0);
  call.add(kSource, 2 * kBlock);
  call.head().info[1].reserved = 1;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().info[0].status, -EROFS);
  EXPECT_EQ(call.head().info[1].status, -EINVAL);
}

TEST(CloneCalls, DedupeDiffersAndPieces) {
  Fake fake;
  fake.files[kTarget].facts.bytes = 8 * kBlock;
  Dedupe call;
  call.head().src_length = 4 * kBlock;
  call.add(kTarget, 0);
  fake.dedupe_piece = kBlock;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(fake.tokens, 4);
  EXPECT_EQ(call.head().info[0].bytes_deduped, 4 * kBlock);
  fake.dedupe_status = COFS_DEDUPE_DIFFERS;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().info[0].status, FILE_DEDUPE_RANGE_DIFFERS);
  EXPECT_EQ(call.head().info[0].bytes_deduped, 0u);
  fake.dedupe_status = COFS_DEDUPE_SAME;
  fake.dedupe_piece = 0;  // a server that does nothing may not hold us for ever
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().info[0].status, -EIO);
}

TEST(CloneCalls, DedupeOfAPartialLastBlock) {
  Fake fake;
  fake.files[kSource].facts.bytes = kBlock + 100;
  fake.files[kTarget].facts.bytes = kBlock + 100;
  Dedupe call;
  call.head().src_length = kBlock + 100;
  call.add(kTarget, 0);
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(fake.steps.back(), "dedupe 0→0+4196");
  fake.files[kTarget].facts.bytes = 8 * kBlock;  // not the end of the target: whole blocks only
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(fake.steps.back(), "dedupe 0→0+4096");
  call.head().src_length = kBlock + 101;
  EXPECT_EQ(call.run(fake), -EINVAL);
}

TEST(CloneCalls, DedupeBoundsItsArguments) {
  Fake fake;
  fake.add(20, 1, 120, 4ull << 30);
  fake.files[kSource].facts.bytes = 4ull << 30;
  Dedupe call;
  call.head().src_length = 3ull << 30;
  call.add(20, 0);
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().info[0].bytes_deduped, 1ull << 30);
  call.head().dest_count = 200;  // more than a page
  EXPECT_EQ(call.run(fake), -ENOMEM);
  call.head().dest_count = 0;
  EXPECT_EQ(call.run(fake), 0);
  fake.native = -EINVAL;
  EXPECT_EQ(call.run(fake), kServedByKernel);
}

// FIEMAP with room for some extents.
struct Fiemap {
  alignas(8) char bytes[sizeof(fiemap) + 1000 * sizeof(fiemap_extent)] = {};
  fiemap& head() { return *reinterpret_cast<fiemap*>(bytes); }
  fiemap_extent& extent(int index) {
    return reinterpret_cast<fiemap_extent*>(bytes + sizeof(fiemap))[index];
  }
  Fiemap() {
    head().fm_length = ~0ull;
    head().fm_extent_count = 1000;
  }
  long run(Fake& fake) {
    return clone_ioctl(fake.system, kFetchedBase + kSource, FS_IOC_FIEMAP, Fake::address_of(bytes));
  }
};

TEST(CloneCalls, FiemapTranslatesFlags) {
  Fake fake;
  const auto extent = [](uint64_t block, uint32_t flags) {
    return cofs_map_extent{block * kBlock, block * kBlock + 65536, kBlock, flags, 0};
  };
  fake.extents = {extent(0, 0), extent(1, COFS_EXTENT_SHARED), extent(2, COFS_EXTENT_UNWRITTEN),
                  extent(3, COFS_EXTENT_INLINE), extent(5, COFS_EXTENT_DELAYED | COFS_EXTENT_LAST)};
  Fiemap call;
  EXPECT_EQ(call.run(fake), 0);
  ASSERT_EQ(call.head().fm_mapped_extents, 5u);
  const uint32_t expected[] = {0, FIEMAP_EXTENT_SHARED, FIEMAP_EXTENT_UNWRITTEN,
                               FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_NOT_ALIGNED,
                               FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_LAST};
  for (int i = 0; i < 5; i++) EXPECT_EQ(call.extent(i).fe_flags, expected[i]) << i;
  EXPECT_EQ(call.extent(4).fe_logical, 5 * kBlock);
  EXPECT_EQ(call.extent(4).fe_physical, 5 * kBlock + 65536);
  EXPECT_EQ(call.extent(4).fe_length, kBlock);
  EXPECT_TRUE(fake.steps.empty());
}

TEST(CloneCalls, FiemapPagesCountsAndStops) {
  Fake fake;
  for (uint64_t i = 0; i < 900; i++)
    fake.extents.push_back({i * 2 * kBlock, i * kBlock, kBlock, 0, 0});
  Fiemap call;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().fm_mapped_extents, 900u);
  EXPECT_EQ(call.extent(899).fe_logical, 899 * 2 * kBlock);
  call.head().fm_extent_count = 450;
  call.extent(450).fe_logical = 12345;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().fm_mapped_extents, 450u);
  EXPECT_EQ(call.extent(450).fe_logical, 12345u);  // not beyond the caller's array
  call.head().fm_extent_count = 0;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().fm_mapped_extents, 900u);
  call.head().fm_start = 4 * kBlock;
  call.head().fm_length = 1;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(call.head().fm_mapped_extents, 1u);
}

TEST(CloneCalls, FiemapChecksItsArguments) {
  Fake fake;
  Fiemap call;
  call.head().fm_flags = FIEMAP_FLAG_SYNC | FIEMAP_FLAG_XATTR;
  EXPECT_EQ(call.run(fake), -EBADR);
  EXPECT_EQ(call.head().fm_flags, static_cast<uint32_t>(FIEMAP_FLAG_XATTR));
  call.head().fm_flags = FIEMAP_FLAG_SYNC;
  EXPECT_EQ(call.run(fake), 0);
  EXPECT_EQ(fake.steps, Steps{"sync 10 0+0"});
  call.head().fm_length = 0;
  EXPECT_EQ(call.run(fake), -EINVAL);
  call.head().fm_length = 1;
  call.head().fm_start = ~0ull;
  EXPECT_EQ(call.run(fake), -EFBIG);
  call.head().fm_extent_count = UINT32_MAX;
  EXPECT_EQ(call.run(fake), -EINVAL);
  fake.native = -EINVAL;
  EXPECT_EQ(call.run(fake), kServedByKernel);
}

TEST(CloneCalls, MapsThatMakeNoSenseAreRefused) {
  const std::vector<std::vector<cofs_map_extent>> cases = {
      {{0, 0, 0, 0, 0}},                                  // empty
      {{kBlock, 0, kBlock, 0, 0}, {0, 0, kBlock, 0, 0}},  // going back
      {{0, 0, 2 * kBlock, 0, 0}, {kBlock, 0, kBlock, 0, 0}},
      {{1ull << 63, 0, kBlock, 0, 0}},
      {{0, 0, 1ull << 63, 0, 0}},
  };
  for (const auto& extents : cases) {
    Fake fake;
    fake.extents = extents;
    fake.stuck_map = true;
    Fiemap call;
    const long result = call.run(fake);
    EXPECT_TRUE(result == -EIO || call.head().fm_mapped_extents == 0) << extents[0].logical;
  }
  // The same page again and again.
  Fake fake;
  fake.stuck_map = true;
  fake.map_page = 1;
  fake.extents = {{0, 0, kBlock, 0, 0}, {kBlock, 0, kBlock, 0, 0}};
  Fiemap call;
  EXPECT_EQ(call.run(fake), -EIO);
}

}  // namespace
}  // namespace cofs
