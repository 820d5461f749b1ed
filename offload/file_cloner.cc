#include "offload/file_cloner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "offload/transfer.h"

namespace cofs {

namespace {

constexpr uint32_t kXfsMagic = 0x58465342;  // not in linux/magic.h of older headers

std::string filesystem_name(int fd) {
  struct statfs status {};
  if (fstatfs(fd, &status) != 0) return "of unknown type";
  switch (static_cast<uint32_t>(status.f_type)) {
    case kXfsMagic: return "xfs";
    case BTRFS_SUPER_MAGIC: return "btrfs";
    case EXT4_SUPER_MAGIC: return "ext4";
    case TMPFS_MAGIC: return "tmpfs";
    case OVERLAYFS_SUPER_MAGIC: return "overlayfs";
    case NFS_SUPER_MAGIC: return "nfs";
    case F2FS_SUPER_MAGIC: return "f2fs";
    default: return fmt::format("{:#x}", static_cast<uint32_t>(status.f_type));
  }
}

std::string directory_of(const std::string& path) {
  std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
  std::string whole = real ? real.get() : path;  // through symbolic links: beside the file itself
  size_t slash = whole.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : whole.substr(0, slash);
}

// 0, or the errno of the clone.
int clone_range(int fd, uint64_t source, uint64_t bytes, uint64_t target) {
  file_clone_range range{};
  range.src_fd = fd;
  range.src_offset = source;
  range.src_length = bytes;  // never 0, which means "to the end of the file"
  range.dest_offset = target;
  while (ioctl(fd, FICLONERANGE, &range) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

// One block cloned over another in a scratch file: shows support and the alignment that we need.
// Empty when it worked.
std::string clone_in_scratch_file(int fd) {
  std::array<char, kBlockBytes> block{};
  block.fill('c');
  auto bytes = static_cast<ssize_t>(block.size());
  if (ftruncate(fd, 2 * kBlockBytes) != 0 ||
      pwrite(fd, block.data(), block.size(), kBlockBytes) != bytes) {
    return fmt::format("hostfile: cannot write a scratch file beside the image: {}",
                       std::strerror(errno));
  }
  int error = clone_range(fd, kBlockBytes, kBlockBytes, 0);
  if (error == EOPNOTSUPP || error == ENOTTY) {
    return fmt::format("hostfile: host filesystem {} cannot clone", filesystem_name(fd));
  }
  if (error != 0) {
    return fmt::format("hostfile: host filesystem {} cannot clone a block of 4096 bytes: {}",
                       filesystem_name(fd), std::strerror(error));
  }
  std::array<char, kBlockBytes> back{};
  if (pread(fd, back.data(), back.size(), 0) != bytes || back != block) {
    return fmt::format("hostfile: host filesystem {} cloned wrongly", filesystem_name(fd));
  }
  return "";
}

}  // namespace

std::expected<std::unique_ptr<FileCloner>, std::string> FileCloner::probe(
    const OpenedTarget& target, RequestSink& sink) {
  if (target.is_block_device()) return std::unexpected("hostfile: target is a block device");
  if (target.read_only()) return std::unexpected("hostfile: target is opened read-only");
  std::string directory = directory_of(target.path());
  OwnedFd scratch(open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!scratch.valid()) {
    return std::unexpected(fmt::format(
        "hostfile: cannot create a scratch file beside the image: {}", std::strerror(errno)));
  }
  struct stat image_status {};
  struct stat scratch_status {};
  if (fstat(target.fd(), &image_status) != 0 || fstat(scratch.get(), &scratch_status) != 0 ||
      image_status.st_dev != scratch_status.st_dev) {
    return std::unexpected("hostfile: the image is not on the filesystem of its directory");
  }
  std::string reason = clone_in_scratch_file(scratch.get());
  if (!reason.empty()) return std::unexpected(reason);
  return std::unique_ptr<FileCloner>(new FileCloner(target, sink));
}

FileCloner::FileCloner(const OpenedTarget& target, RequestSink& sink)
    : target_(target), sink_(sink) {
  limits_.path = CopyPath::kHostFile;
  limits_.engine = "hostfile";
  limits_.ranges_max = 1024;
  limits_.range_blocks_max = blocks_of_bytes(uint64_t{1} << 30);
  limits_.operation_blocks_max = blocks_of_bytes(uint64_t{1} << 30);
  limits_.in_flight_max = kThreads;
  workers_ = std::make_unique<WorkerThreads>("cofs-clone", kThreads,
                                             [this](IoRequest& request) { serve(request); });
}

void FileCloner::start(IoRequest& request) {
  workers_->submit(request);
}

void FileCloner::serve(IoRequest& request) {
  request.good_blocks = 0;
  request.result = {};
  for (const BlockRange& source : request.sources) {
    uint64_t target = request.range.start + request.good_blocks;
    int error = clone_range(target_.fd(), bytes_of_blocks(source.start),
                            bytes_of_blocks(source.count), bytes_of_blocks(target));
    if (error != 0) {
      // The store sees to the ranges being right, so EINVAL means that these blocks cannot be
      // shared.
      bool closed = error == EINVAL || error == EXDEV || error == EOPNOTSUPP || error == ENOTTY;
      request.result = fail(closed ? Code::kNotSupported : io_code_of_errno(error),
                            "host filesystem did not clone", source.start);
      break;
    }
    request.good_blocks += source.count;
  }
  IoRequest* done = &request;
  sink_.finished({&done, 1});
}

}  // namespace cofs
