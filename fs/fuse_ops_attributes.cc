// Handlers about attributes, extended attributes, and the volume's figures (statfs).
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "blockmap/ondisk.h"
#include "fs/fuse_ops.h"

namespace cofs {

namespace {

constexpr int kKillBits =
    FUSE_SET_ATTR_KILL_SUID | FUSE_SET_ATTR_KILL_SGID | FUSE_SET_ATTR_KILL_PRIV;

WallTime wall_time_of(const timespec& time) {
  WallTime result;
  result.seconds = time.tv_sec;
  result.nanoseconds = static_cast<uint32_t>(time.tv_nsec);
  return result;
}

AttributeChange change_of(const struct stat& status, int which, WallTime now) {
  AttributeChange change;
  auto has = [which](int bit) { return (which & bit) != 0; };
  if (has(FUSE_SET_ATTR_MODE)) change.mode = status.st_mode & 07777U;
  if (has(FUSE_SET_ATTR_UID)) change.uid = status.st_uid;
  if (has(FUSE_SET_ATTR_GID)) change.gid = status.st_gid;
  if (has(FUSE_SET_ATTR_SIZE)) change.size = static_cast<uint64_t>(status.st_size);
  if (has(FUSE_SET_ATTR_ATIME)) change.access_time = wall_time_of(status.st_atim);
  change.times_are_now = (!has(FUSE_SET_ATTR_ATIME) || has(FUSE_SET_ATTR_ATIME_NOW)) &&
                         (!has(FUSE_SET_ATTR_MTIME) || has(FUSE_SET_ATTR_MTIME_NOW));
  if (has(FUSE_SET_ATTR_ATIME_NOW)) change.access_time = now;
  if (has(FUSE_SET_ATTR_MTIME)) change.modify_time = wall_time_of(status.st_mtim);
  if (has(FUSE_SET_ATTR_MTIME_NOW)) change.modify_time = now;
  if (has(FUSE_SET_ATTR_CTIME)) change.change_time = wall_time_of(status.st_ctim);
  change.kill_privileges = has(kKillBits);
  return change;
}

Task<void> get_attributes(FuseServer& server, fuse_req_t request, uint64_t ino) {
  Result<Attributes> attributes = co_await server.fs().get_attributes(ino);
  if (attributes) {
    reply_attributes(server, request, *attributes);
  } else {
    reply_error(server, request, attributes.error());
  }
}

Task<void> set_attributes(FuseServer& server, fuse_req_t request, uint64_t ino,
                          AttributeChange change, Caller caller) {
  Result<Attributes> attributes =
      co_await server.fs().set_attributes(ino, std::move(change), std::move(caller));
  if (attributes) {
    reply_attributes(server, request, *attributes);
  } else {
    reply_error(server, request, attributes.error());
  }
}

// Size 0 asks how long the value is.
void reply_value(FuseServer& server, fuse_req_t request, std::string value, size_t room) {
  if (room == 0) {
    reply(server, [request, size = value.size()] { fuse_reply_xattr(request, size); });
  } else if (value.size() > room) {
    reply_errno(server, request, ERANGE);
  } else {
    reply(server, [request, bytes = std::move(value)] {
      fuse_reply_buf(request, bytes.data(), bytes.size());
    });
  }
}

Task<void> get_xattr(FuseServer& server, fuse_req_t request, uint64_t ino, std::string name,
                     size_t room) {
  Result<std::string> value = co_await server.fs().get_xattr(ino, std::move(name));
  if (value) {
    reply_value(server, request, std::move(*value), room);
  } else {
    reply_error(server, request, value.error());
  }
}

Task<void> list_xattrs(FuseServer& server, fuse_req_t request, uint64_t ino, size_t room) {
  Result<std::vector<std::string>> names = co_await server.fs().list_xattrs(ino);
  if (!names) {
    reply_error(server, request, names.error());
    co_return;
  }
  std::string list;
  for (const std::string& name : *names) list.append(name).push_back('\0');
  reply_value(server, request, std::move(list), room);
}

Task<void> set_xattr(FuseServer& server, fuse_req_t request, uint64_t ino, std::string name,
                     std::string value, int flags, Caller caller) {
  Result<> result = co_await server.fs().set_xattr(ino, std::move(name), std::move(value),
                                                   (flags & XATTR_CREATE) != 0,
                                                   (flags & XATTR_REPLACE) != 0, std::move(caller));
  reply_status(server, request, result);
}

Task<void> remove_xattr(FuseServer& server, fuse_req_t request, uint64_t ino, std::string name) {
  Result<> result = co_await server.fs().remove_xattr(ino, std::move(name));
  reply_status(server, request, result);
}

Task<void> volume_figures(FuseServer& server, fuse_req_t request, uint64_t) {
  FsStatistics figures = co_await server.fs().statistics();
  reply(server, [request, figures] {
    struct statvfs status {};
    status.f_bsize = kBlockBytes;
    status.f_frsize = kBlockBytes;
    status.f_blocks = figures.total_blocks;
    status.f_bfree = figures.free_blocks;
    status.f_bavail = figures.available_blocks;
    status.f_files = figures.inodes;
    status.f_ffree = figures.free_inodes;
    status.f_favail = figures.free_inodes;
    status.f_namemax = ondisk::kNameBytesMax;
    fuse_reply_statfs(request, &status);
  });
}

void on_get_attributes(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  start(request, get_attributes, ino);
}

void on_set_attributes(fuse_req_t request, fuse_ino_t ino, struct stat* status, int which,
                       fuse_file_info*) {
  if ((which & FUSE_SET_ATTR_SIZE) != 0 && status->st_size < 0) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  WallTime now = server_of(request).fs().environment().clock.wall();
  bool needs_groups = (which & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_GID)) != 0;
  Caller caller = needs_groups ? caller_with_groups_of(request) : caller_of(request);
  start(request, set_attributes, ino, change_of(*status, which, now), std::move(caller));
}

void on_get_xattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size) {
  start(request, get_xattr, ino, std::string(name), size);
}

void on_list_xattrs(fuse_req_t request, fuse_ino_t ino, size_t size) {
  start(request, list_xattrs, ino, size);
}

void on_set_xattr(fuse_req_t request, fuse_ino_t ino, const char* name, const char* value,
                  size_t size, int flags) {
  std::string key(name);
  // A POSIX ACL can cost the setgid bit, which depends on the caller's groups.
  bool is_acl = key.starts_with("system.posix_acl_");
  Caller caller = is_acl ? caller_with_groups_of(request) : caller_of(request);
  start(request, set_xattr, ino, std::move(key), std::string(value, size), flags,
        std::move(caller));
}

void on_remove_xattr(fuse_req_t request, fuse_ino_t ino, const char* name) {
  start(request, remove_xattr, ino, std::string(name));
}

void on_volume_figures(fuse_req_t request, fuse_ino_t ino) {
#ifdef COFS_FUSE_HAS_RING
  if (fuse_req_is_uring(request)) server_of(request).came_by_ring();
#endif
  start(request, volume_figures, ino);
}

#ifdef COFS_FUSE_HAS_STATX
struct statx_timestamp statx_time_of(const WallTime& time) {
  struct statx_timestamp result {};
  result.tv_sec = time.seconds;
  result.tv_nsec = time.nanoseconds;
  return result;
}

struct statx statx_of(const Attributes& attributes) {
  struct statx status {};
  status.stx_mask = STATX_BASIC_STATS | STATX_BTIME;
  status.stx_blksize = kBlockBytes;
  status.stx_attributes_mask = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND;
  if ((attributes.flags & ondisk::kInodeImmutable) != 0)
    status.stx_attributes |= STATX_ATTR_IMMUTABLE;
  if ((attributes.flags & ondisk::kInodeAppend) != 0) status.stx_attributes |= STATX_ATTR_APPEND;
  status.stx_nlink = attributes.nlink;
  status.stx_uid = attributes.uid;
  status.stx_gid = attributes.gid;
  status.stx_mode = static_cast<uint16_t>(attributes.mode);
  status.stx_ino = attributes.ino;
  status.stx_size = attributes.size;
  status.stx_blocks = attributes.blocks * (kBlockBytes / 512);
  status.stx_atime = statx_time_of(attributes.access_time);
  status.stx_btime = statx_time_of(attributes.birth_time);
  status.stx_ctime = statx_time_of(attributes.change_time);
  status.stx_mtime = statx_time_of(attributes.modify_time);
  status.stx_rdev_major = major(attributes.rdev);
  status.stx_rdev_minor = minor(attributes.rdev);
  return status;
}

Task<void> get_statx(FuseServer& server, fuse_req_t request, uint64_t ino) {
  Result<Attributes> attributes = co_await server.fs().get_attributes(ino);
  if (!attributes) {
    reply_error(server, request, attributes.error());
    co_return;
  }
  reply(server, [request, status = statx_of(*attributes)]() mutable {
    fuse_reply_statx(request, 0, &status, FuseServer::kAttributeSeconds);
  });
}

void on_statx(fuse_req_t request, fuse_ino_t ino, int, int, fuse_file_info*) {
  start(request, get_statx, ino);
}
#endif

}  // namespace

void install_attribute_operations(fuse_lowlevel_ops& operations) {
  operations.getattr = on_get_attributes;
  operations.setattr = on_set_attributes;
  operations.getxattr = on_get_xattr;
  operations.listxattr = on_list_xattrs;
  operations.setxattr = on_set_xattr;
  operations.removexattr = on_remove_xattr;
  operations.statfs = on_volume_figures;
#ifdef COFS_FUSE_HAS_STATX
  operations.statx = on_statx;
#endif
}

}  // namespace cofs
