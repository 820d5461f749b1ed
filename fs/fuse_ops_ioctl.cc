// Handlers of ioctl: file flags (chattr, xfs_io), FITRIM, the volume's label, the private ones of cofs_ioctl.h, shutdown.
//
// The kernel hands over as many bytes each way as the ioctl's number declares; chattr's and
// lsattr's FS_IOC_GETFLAGS and SETFLAGS declare a long and carry an int.
#include <linux/fs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "blockmap/ondisk.h"
#include "fs/cofs_ioctl.h"
#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// The layouts are an interface: the same for every compiler and word size, and small enough for the
// 14 bits that an ioctl's number has for them.
static_assert(_IOC_SIZE(COFS_IOC_STATISTICS) == sizeof(cofs_text_page));
static_assert(sizeof(cofs_text_page) == 16024 && sizeof(cofs_server_info) == 56);

constexpr unsigned kGoingDown = _IOR('X', 125, uint32_t);  // XFS_IOC_GOINGDOWN

struct FlagPair {
  uint32_t inode;   // ondisk::kInode…
  uint32_t fs;      // FS_…_FL
  uint32_t xflags;  // FS_XFLAG_…
};
constexpr FlagPair kFlagPairs[] = {
    {ondisk::kInodeImmutable, FS_IMMUTABLE_FL, FS_XFLAG_IMMUTABLE},
    {ondisk::kInodeAppend, FS_APPEND_FL, FS_XFLAG_APPEND},
};

uint32_t translate(uint32_t value, uint32_t FlagPair::*from, uint32_t FlagPair::*to) {
  uint32_t result = 0;
  for (const FlagPair& pair : kFlagPairs) {
    if ((value & pair.*from) != 0) result |= pair.*to;
  }
  return result;
}
uint32_t known(uint32_t FlagPair::*kind) {
  return translate(UINT32_MAX, &FlagPair::inode, kind);
}

Task<void> get_flags(FuseServer& server, fuse_req_t request, uint64_t ino, size_t room,
                     bool extended) {
  Result<Attributes> attributes = co_await server.fs().get_attributes(ino);
  if (!attributes) {
    reply_error(server, request, attributes.error());
    co_return;
  }
  if (extended) {
    struct fsxattr value {};
    value.fsx_xflags = translate(attributes->flags, &FlagPair::inode, &FlagPair::xflags);
    reply_bytes(server, request, &value, std::min(room, sizeof(value)));
  } else {
    uint64_t value = translate(attributes->flags, &FlagPair::inode, &FlagPair::fs);
    reply_bytes(server, request, &value, std::min(room, sizeof(value)));
  }
}

Task<void> set_flags(FuseServer& server, fuse_req_t request, uint64_t ino, uint32_t flags,
                     Caller caller) {
  AttributeChange change;
  change.flags = flags;
  Result<Attributes> result =
      co_await server.fs().set_attributes(ino, std::move(change), std::move(caller));
  if (!result) {
    reply_error(server, request, result.error());
    co_return;
  }
  reply(server, [request] { fuse_reply_ioctl(request, 0, nullptr, 0); });
}

Task<void> sync_all(FuseServer& server, fuse_req_t request, bool then_stop) {
  Result<> result = co_await server.fs().sync_volume();
  if (!result && !then_stop) {
    reply_error(server, request, result.error());
    co_return;
  }
  if (then_stop) {
    server.fs().jobs().cancel_all();
    server.stop();
  }
  reply(server, [request] { fuse_reply_ioctl(request, 0, nullptr, 0); });
}

void reply_text_page(fuse_req_t request, const FuseServer::TextPage& part, uint32_t offset) {
  cofs_text_page page{};
  page.snapshot = part.snapshot;
  page.offset = offset;
  page.total = part.total;
  page.length = static_cast<uint32_t>(part.text.size());
  std::memcpy(page.text, part.text.data(), part.text.size());
  fuse_reply_ioctl(request, 0, &page, sizeof(page));
}

Task<void> first_statistics_page(FuseServer& server, fuse_req_t request) {
  co_await server.fs().free_removed();
  std::string text = server.options().statistics(server);
  reply(server, [&server, request, whole = std::move(text)]() mutable {
    reply_text_page(request, server.keep_text(std::move(whole), COFS_TEXT_PAGE_BYTES), 0);
  });
}

void on_statistics(fuse_req_t request, const cofs_text_page& asked) {
  if (asked.offset == 0) {
    start(request, first_statistics_page);
    return;
  }
  FuseServer::TextPage part =
      server_of(request).text_page(asked.snapshot, asked.offset, COFS_TEXT_PAGE_BYTES);
  if (part.snapshot == 0) {
    fuse_reply_err(request, EAGAIN);
  } else {
    reply_text_page(request, part, asked.offset);
  }
}

void on_server_info(fuse_req_t request) {
  cofs_server_info info{};
  info.version = COFS_IOCTL_VERSION;
  info.pid = static_cast<uint32_t>(getpid());
  fuse_reply_ioctl(request, 0, &info, sizeof(info));
}

void on_shutdown(fuse_req_t request) {
  if (fuse_req_ctx(request)->uid != 0) {
    fuse_reply_err(request, EPERM);
  } else {
    start(request, sync_all, true);
  }
}

Task<void> trim(FuseServer& server, fuse_req_t request, fstrim_range asked) {
  BlockRange range;
  const uint64_t end = asked.len > UINT64_MAX - asked.start ? UINT64_MAX : asked.start + asked.len;
  range.start = blocks_of_bytes(asked.start);
  range.count = std::max(end / kBlockBytes, range.start) - range.start;
  co_await server.fs().free_removed();
  const auto trimmed = co_await server.fs().store().trim(range, blocks_of_bytes(asked.minlen));
  if (!trimmed) {
    reply_error(server, request, trimmed.error());
    co_return;
  }
  asked.len = bytes_of_blocks(*trimmed);
  reply_bytes(server, request, &asked, sizeof(asked));
}

void on_trim(fuse_req_t request, const void* in, size_t in_size, size_t out_size) {
  fstrim_range asked{};
  if (fuse_req_ctx(request)->uid != 0) {
    fuse_reply_err(request, EPERM);
  } else if (server_of(request).options().read_only) {
    fuse_reply_err(request, EROFS);
  } else if (in_size != sizeof(asked) || out_size < sizeof(asked)) {
    fuse_reply_err(request, EINVAL);
  } else {
    std::memcpy(&asked, in, sizeof(asked));
    if (asked.len < kBlockBytes) {  // as ext4 and xfs
      fuse_reply_err(request, EINVAL);
    } else {
      start(request, trim, asked);
    }
  }
}

Task<void> get_label(FuseServer& server, fuse_req_t request, size_t room) {
  std::string label = server.fs().store().info().label;
  label.resize(room);
  reply_bytes(server, request, label.data(), label.size());
  co_return;
}

Task<void> set_label(FuseServer& server, fuse_req_t request, std::string label) {
  const Result<> result = co_await server.fs().store().set_label(std::move(label));
  if (!result) {
    reply_error(server, request, result.error());
    co_return;
  }
  reply(server, [request] { fuse_reply_ioctl(request, 0, nullptr, 0); });
}

// As for other filesystems the label ends with a zero byte, which the 256 bytes have more room for than the volume.
void on_set_label(fuse_req_t request, const void* in, size_t size) {
  if (fuse_req_ctx(request)->uid != 0) {
    fuse_reply_err(request, EPERM);
  } else if (server_of(request).options().read_only) {
    fuse_reply_err(request, EROFS);
  } else {
    const char* const label = static_cast<const char*>(in);
    start(request, set_label, std::string(label, strnlen(label, size)));
  }
}

// The kernel sends both kinds for chattr, and checked that the caller may change these flags.
void on_set_flags(fuse_req_t request, fuse_ino_t ino, const void* in, size_t size, bool extended) {
  if (server_of(request).options().read_only) {
    fuse_reply_err(request, EROFS);
    return;
  }
  uint32_t FlagPair::*kind = extended ? &FlagPair::xflags : &FlagPair::fs;
  uint32_t value = 0;
  if (size < (extended ? sizeof(fsxattr) : sizeof(value))) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  std::memcpy(&value, in, sizeof(value));  // fsx_xflags comes first
  if ((value & ~known(kind)) != 0) {
    fuse_reply_err(request, EOPNOTSUPP);
  } else {
    start(request, set_flags, ino, translate(value, kind, &FlagPair::inode), caller_of(request));
  }
}

void on_ioctl(fuse_req_t request, fuse_ino_t ino, unsigned command, void*, fuse_file_info* file,
              unsigned flags, const void* in, size_t in_size, size_t out_size) {
  if ((flags & FUSE_IOCTL_COMPAT) != 0) {
    fuse_reply_err(request, ENOTTY);
    return;
  }
  if (on_clone_ioctl(request, ino, command, FileHandle::of(file->fh), in, in_size, out_size)) return;
  switch (command) {
    case FS_IOC_GETFLAGS:
    case FS_IOC_FSGETXATTR:
      start(request, get_flags, ino, out_size, command == FS_IOC_FSGETXATTR);
      return;
    case FS_IOC_SETFLAGS:
    case FS_IOC_FSSETXATTR:
      on_set_flags(request, ino, in, in_size, command == FS_IOC_FSSETXATTR);
      return;
    case FITRIM: on_trim(request, in, in_size, out_size); return;
    case FS_IOC_GETFSLABEL: start(request, get_label, std::min<size_t>(out_size, FSLABEL_MAX)); return;
    case FS_IOC_SETFSLABEL: on_set_label(request, in, in_size); return;
    case COFS_IOC_SYNC: start(request, sync_all, false); return;
    case COFS_IOC_STATISTICS: {
      cofs_text_page asked;
      if (in_size != sizeof(asked) || out_size < sizeof(asked)) break;
      std::memcpy(&asked, in, sizeof(asked));
      on_statistics(request, asked);
      return;
    }
    case COFS_IOC_SERVER: on_server_info(request); return;
    case COFS_IOC_SHUTDOWN:
    case kGoingDown: on_shutdown(request); return;
    default:
      if (handle_job_ioctl(request, command, in, in_size, out_size)) return;
      break;
  }
  fuse_reply_err(request, ENOTTY);
}

}  // namespace

void reply_bytes(FuseServer& server, fuse_req_t request, const void* bytes, size_t size) {
  std::string copy;
  if (size != 0) copy.assign(static_cast<const char*>(bytes), size);
  reply(server, [request, data = std::move(copy)] {
    fuse_reply_ioctl(request, 0, data.data(), data.size());
  });
}

void install_ioctl_operations(fuse_lowlevel_ops& operations) {
  operations.ioctl = on_ioctl;
}

}  // namespace cofs
