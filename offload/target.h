// OpenedTarget: the image file or block device that a volume lives on, opened and locked.
//
// While it exists no other cofs process can open the same target (a writer excludes all, readers
// share), and a block device opened for writing is claimed, so that the kernel cannot mount it
// meanwhile. It does no I/O of its own and knows nothing of what is on the target.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "offload/base/error.h"

namespace cofs {

enum class TargetKind : uint8_t { kImage, kBlockDevice };
enum class TargetMode : uint8_t { kReadWrite, kReadOnly };

// A descriptor that closes itself.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnedFd();
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

class OpenedTarget {
 public:
  OpenedTarget(OpenedTarget&&) noexcept = default;
  OpenedTarget& operator=(OpenedTarget&&) noexcept = default;

  int fd() const { return io_.get(); }
  // Whose open file holds the lock: to be kept open by whatever may still write when this process is
  // gone.
  int lock_fd() const { return lock_.get(); }
  const std::string& path() const { return path_; }
  TargetKind kind() const { return kind_; }
  bool is_block_device() const { return kind_ == TargetKind::kBlockDevice; }
  uint64_t size_bytes() const { return size_bytes_; }
  bool read_only() const { return mode_ == TargetMode::kReadOnly; }

  // Gives up the claim on a block device but not the lock against other cofs processes: a fuseblk
  // mount makes the kernel claim the device itself, which fails while this process holds it. I/O may
  // be in flight. Nothing to do for an image.
  void release_claim();

 private:
  friend Result<OpenedTarget> open_target(const std::string& path, TargetMode mode,
                                          std::chrono::milliseconds lock_wait);
  OpenedTarget() = default;

  std::string path_;
  TargetKind kind_ = TargetKind::kImage;
  TargetMode mode_ = TargetMode::kReadWrite;
  uint64_t size_bytes_ = 0;
  OwnedFd lock_;  // holds the flock; a description of its own, so that io_ can be reopened
  OwnedFd claim_;  // of a block device open for writing; another one, as I/O in flight keeps its own
  OwnedFd io_;
};

// Opens and locks `path`; while another process has it, tries again for `lock_wait` (a mount right
// after an unmount waits for the old server this way), then gives up. Errors: kBusy (another cofs
// process, or a claimed device), kNoEntry, kAccess, kReadOnly, kIsDirectory, kInvalid (neither a
// regular file nor a block device), kIo.
Result<OpenedTarget> open_target(const std::string& path, TargetMode mode,
                                 std::chrono::milliseconds lock_wait);

// Creates a sparse image of `size_bytes`, a positive multiple of 4096, readable by its owner only.
// Errors: kExists (also a device), kInvalid (size), kNoSpace, kFileTooBig, kAccess, kNoEntry, kIo.
Result<> create_image(const std::string& path, uint64_t size_bytes);

// The filesystem, partition table or other format that the target seems to hold, as libblkid names
// it
// ("ext4", "xfs", "gpt", "LVM2_member"); "several formats" when more than one claims it. It does
// not know cofs. Errors: kIo.
Result<std::optional<std::string>> recognised_signature(const OpenedTarget& target);

// The code whose errno class fits `error_number` best; kIo for what has no own code.
Code code_of_errno(int error_number);

}  // namespace cofs
