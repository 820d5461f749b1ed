#include "fs/fuse_request_counts.h"

#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// Kinds are numbered as they are wrapped: once in the process, before any request.
struct KindNames {
  std::array<const char*, RequestCounts::kKindsMax> names{};
  size_t count = 0;
};
KindNames& kind_names() {
  static KindNames names;
  return names;
}

template <auto kMember>
struct Counted;

// Stands in the table for the handler that was there.
template <class... Arguments, void (*fuse_lowlevel_ops::*kMember)(fuse_req_t, Arguments...)>
struct Counted<kMember> {
  static inline void (*handler)(fuse_req_t, Arguments...) = nullptr;
  static inline size_t kind = 0;

  static void call(fuse_req_t request, Arguments... arguments) {
    server_of(request).request_counts().add(kind);
    handler(request, arguments...);
  }

  static void wrap(fuse_lowlevel_ops& operations, const char* name) {
    if (operations.*kMember == nullptr) return;
    KindNames& known = kind_names();
    COFS_ASSERT(known.count < RequestCounts::kKindsMax);
    kind = known.count++;
    known.names[kind] = name;
    handler = operations.*kMember;
    operations.*kMember = call;
  }
};

}  // namespace

std::vector<std::pair<std::string_view, uint64_t>> RequestCounts::seen() const {
  std::vector<std::pair<std::string_view, uint64_t>> found;
  const KindNames& known = kind_names();
  for (size_t kind = 0; kind < known.count; kind++) {
    const uint64_t count = counts_[kind].load(std::memory_order_relaxed);
    if (count != 0) found.emplace_back(known.names[kind], count);
  }
  return found;
}

void count_requests(fuse_lowlevel_ops& operations) {
  using Table = fuse_lowlevel_ops;
  Counted<&Table::lookup>::wrap(operations, "lookup");
  Counted<&Table::forget>::wrap(operations, "forget");
  Counted<&Table::forget_multi>::wrap(operations, "forget_multi");
  Counted<&Table::getattr>::wrap(operations, "getattr");
  Counted<&Table::setattr>::wrap(operations, "setattr");
#ifdef COFS_FUSE_HAS_STATX
  Counted<&Table::statx>::wrap(operations, "statx");
#endif
  Counted<&Table::readlink>::wrap(operations, "readlink");
  Counted<&Table::mknod>::wrap(operations, "mknod");
  Counted<&Table::mkdir>::wrap(operations, "mkdir");
  Counted<&Table::unlink>::wrap(operations, "unlink");
  Counted<&Table::rmdir>::wrap(operations, "rmdir");
  Counted<&Table::symlink>::wrap(operations, "symlink");
  Counted<&Table::rename>::wrap(operations, "rename");
  Counted<&Table::link>::wrap(operations, "link");
  Counted<&Table::create>::wrap(operations, "create");
#ifdef COFS_FUSE_HAS_TMPFILE
  Counted<&Table::tmpfile>::wrap(operations, "tmpfile");
#endif
  Counted<&Table::open>::wrap(operations, "open");
  Counted<&Table::release>::wrap(operations, "release");
  Counted<&Table::read>::wrap(operations, "read");
  Counted<&Table::write>::wrap(operations, "write");
  Counted<&Table::fsync>::wrap(operations, "fsync");
  Counted<&Table::fallocate>::wrap(operations, "fallocate");
  Counted<&Table::lseek>::wrap(operations, "lseek");
  Counted<&Table::copy_file_range>::wrap(operations, "copy_file_range");
  Counted<&Table::opendir>::wrap(operations, "opendir");
  Counted<&Table::releasedir>::wrap(operations, "releasedir");
  Counted<&Table::readdir>::wrap(operations, "readdir");
  Counted<&Table::readdirplus>::wrap(operations, "readdirplus");
  Counted<&Table::fsyncdir>::wrap(operations, "fsyncdir");
  Counted<&Table::statfs>::wrap(operations, "statfs");
  Counted<&Table::getxattr>::wrap(operations, "getxattr");
  Counted<&Table::listxattr>::wrap(operations, "listxattr");
  Counted<&Table::setxattr>::wrap(operations, "setxattr");
  Counted<&Table::removexattr>::wrap(operations, "removexattr");
  Counted<&Table::ioctl>::wrap(operations, "ioctl");
}

}  // namespace cofs
