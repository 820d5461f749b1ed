#include "offload/target.h"

#include <blkid/blkid.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "offload/base/units.h"

namespace cofs {

namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr std::chrono::milliseconds kLockPoll{20};
// udev probes a block device under a shared flock right after somebody closed it; that is no other
// user.
constexpr std::chrono::milliseconds kUdevGrace{500};

Result<TargetKind> kind_of(mode_t mode) {
  if (S_ISREG(mode)) return TargetKind::kImage;
  if (S_ISBLK(mode)) return TargetKind::kBlockDevice;
  if (S_ISDIR(mode)) return fail(Code::kIsDirectory, "target is a directory");
  if (S_ISCHR(mode))
    return fail(Code::kInvalid, "target is a character device, not a block device");
  return fail(Code::kInvalid, "target is neither a regular file nor a block device");
}

OwnedFd open_retrying(const std::string& path, int flags) {
  int fd = -1;
  do {
    fd = open(path.c_str(), flags | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  return OwnedFd(fd);
}

int access_flags(TargetMode mode) {
  return mode == TargetMode::kReadOnly ? O_RDONLY : O_RDWR;
}

Result<> lock_until(int fd, TargetMode mode, SteadyTime deadline) {
  int operation = (mode == TargetMode::kReadOnly ? LOCK_SH : LOCK_EX) | LOCK_NB;
  while (flock(fd, operation) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return fail(code_of_errno(errno), "cannot lock the target");
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail(Code::kBusy, "target is in use by another cofs process (mounted?)");
    }
    std::this_thread::sleep_for(kLockPoll);
  }
  return {};
}

// O_EXCL on a block device claims it: the open fails while a mount or a driver (md, dm, swap) has
// it. The claim's descriptor does no I/O: I/O in flight would keep it when it is to be given up.
Result<OwnedFd> claim(const std::string& path, SteadyTime deadline) {
  while (true) {
    OwnedFd fd = open_retrying(path, O_RDONLY | O_EXCL);
    if (fd.valid()) return fd;
    if (errno != EBUSY) return fail(code_of_errno(errno), "cannot claim the target");
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail(Code::kBusy, "target is claimed by a mount or another driver");
    }
    std::this_thread::sleep_for(kLockPoll);
  }
}

// Whether the claim, if there is one, is on the device with this status.
bool claims(const OwnedFd& claimed, const struct stat& wanted) {
  struct stat status {};
  return !claimed.valid() ||
         (fstat(claimed.get(), &status) == 0 && status.st_rdev == wanted.st_rdev);
}

Result<uint64_t> size_of(int fd, TargetKind kind, const struct stat& status) {
  if (kind == TargetKind::kImage) return static_cast<uint64_t>(status.st_size);
  uint64_t bytes = 0;
  if (ioctl(fd, BLKGETSIZE64, &bytes) != 0) {
    return fail(code_of_errno(errno), "cannot get the size of the block device");
  }
  return bytes;
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

Code code_of_errno(int error_number) {
  switch (error_number) {
    case EINVAL: return Code::kInvalid;
    case ENOENT:
    case ENOTDIR: return Code::kNoEntry;
    case EEXIST: return Code::kExists;
    case EISDIR: return Code::kIsDirectory;
    case ENAMETOOLONG: return Code::kNameTooLong;
    case EPERM: return Code::kNotPermitted;
    case EACCES: return Code::kAccess;
    case EROFS: return Code::kReadOnly;
    case EFBIG: return Code::kFileTooBig;
    case EOPNOTSUPP:
    case ENOTTY:
    case ENOSYS: return Code::kNotSupported;
    case EXDEV: return Code::kCrossDevice;
    case EBUSY:
    case ETXTBSY: return Code::kBusy;
    case ENOSPC:
    case EDQUOT: return Code::kNoSpace;
    case ENOMEM: return Code::kNoMemory;
    case ETIMEDOUT: return Code::kTimedOut;
    default: return Code::kIo;
  }
}

Result<OpenedTarget> open_target(const std::string& path, TargetMode mode,
                                 std::chrono::milliseconds lock_wait) {
  // Looked at before it is opened: opening a fifo or a tape has effects of its own.
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    return fail(code_of_errno(errno), "cannot find the target");
  }
  Result<TargetKind> kind = kind_of(status.st_mode);
  COFS_TRY(kind);

  OpenedTarget target;
  target.path_ = path;
  target.kind_ = *kind;
  target.mode_ = mode;
  // A device's lock needs no write access, and closing a writer makes udev probe it once more.
  bool lock_read_only = *kind == TargetKind::kBlockDevice || mode == TargetMode::kReadOnly;
  target.lock_ = open_retrying(path, lock_read_only ? O_RDONLY : O_RDWR);
  if (!target.lock_.valid()) return fail(code_of_errno(errno), "cannot open the target");
  if (*kind == TargetKind::kBlockDevice) lock_wait = std::max(lock_wait, kUdevGrace);
  SteadyTime deadline = std::chrono::steady_clock::now() + lock_wait;
  Result<> locked = lock_until(target.lock_.get(), mode, deadline);
  COFS_TRY(locked);
  if (*kind == TargetKind::kBlockDevice && mode == TargetMode::kReadWrite) {
    Result<OwnedFd> claimed = claim(path, deadline);
    COFS_TRY(claimed);
    target.claim_ = std::move(*claimed);
  }
  target.io_ = open_retrying(path, access_flags(mode));
  if (!target.io_.valid()) return fail(code_of_errno(errno), "cannot open the target");

  // The name may have come to mean another file between the two opens, or the first look.
  struct stat lock_status {};
  if (fstat(target.lock_.get(), &lock_status) != 0 || fstat(target.io_.get(), &status) != 0) {
    return fail(Code::kIo, "cannot stat the target");
  }
  Result<TargetKind> kind_now = kind_of(status.st_mode);
  COFS_TRY(kind_now);
  if (*kind_now != *kind || lock_status.st_ino != status.st_ino ||
      lock_status.st_dev != status.st_dev || !claims(target.claim_, status)) {
    return fail(Code::kBusy, "target was replaced while it was opened");
  }
  Result<uint64_t> size = size_of(target.io_.get(), *kind, status);
  COFS_TRY(size);
  target.size_bytes_ = *size;
  return target;
}

void OpenedTarget::release_claim() { claim_ = OwnedFd(); }

Result<> create_image(const std::string& path, uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes % kBlockBytes != 0) {
    return fail(Code::kInvalid, "image size is not a positive multiple of 4096", size_bytes);
  }
  if (size_bytes > static_cast<uint64_t>(INT64_MAX)) {
    return fail(Code::kFileTooBig, "image size is beyond what a file can have", size_bytes);
  }
  OwnedFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return fail(code_of_errno(errno), "cannot create the image");
  if (ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0 || fsync(fd.get()) != 0) {
    Code code = code_of_errno(errno);
    unlink(path.c_str());
    return fail(code, "cannot give the image its size", size_bytes);
  }
  return {};
}

Result<std::optional<std::string>> recognised_signature(const OpenedTarget& target) {
  struct ProbeDeleter {
    void operator()(blkid_probe probe) const { blkid_free_probe(probe); }
  };
  std::unique_ptr<std::remove_pointer_t<blkid_probe>, ProbeDeleter> probe(blkid_new_probe());
  if (!probe) return fail(Code::kNoMemory, "cannot look for signatures");
  // A descriptor of its own: libblkid reads unaligned, which O_DIRECT would refuse.
  OwnedFd fd = open_retrying("/proc/self/fd/" + std::to_string(target.fd()), O_RDONLY);
  if (!fd.valid())
    return fail(code_of_errno(errno), "cannot open the target to look for signatures");
  if (blkid_probe_set_device(probe.get(), fd.get(), 0, 0) != 0) {
    // Also what it says of a target smaller than any format it knows.
    if (target.size_bytes() < kBlockBytes) return std::nullopt;
    return fail(Code::kIo, "cannot look for signatures");
  }
  blkid_probe_enable_superblocks(probe.get(), 1);
  blkid_probe_set_superblocks_flags(probe.get(), BLKID_SUBLKS_TYPE);
  blkid_probe_enable_partitions(probe.get(), 1);
  int found = blkid_do_safeprobe(probe.get());
  if (found == 1) return std::nullopt;
  if (found == -2) return std::string("several formats");
  if (found != 0) return fail(Code::kIo, "cannot look for signatures");
  const char* name = nullptr;
  size_t name_bytes = 0;
  if (blkid_probe_lookup_value(probe.get(), "TYPE", &name, &name_bytes) != 0 &&
      blkid_probe_lookup_value(probe.get(), "PTTYPE", &name, &name_bytes) != 0) {
    return std::string("unknown format");
  }
  return std::string(name);
}

}  // namespace cofs
