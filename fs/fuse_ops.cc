#include "fs/fuse_ops.h"

#include <fcntl.h>

#include <algorithm>

#include "fs/fuse_connection.h"

namespace cofs {

namespace {

timespec timespec_of(const WallTime& time) {
  timespec result{};
  result.tv_sec = time.seconds;
  result.tv_nsec = time.nanoseconds;
  return result;
}

// FUSE_COPY_FILE_RANGE_64 came with version 7.45 of the protocol (Linux 6.18) and libfuse 3.18, which
// serves both operations by one handler.
bool copies_64_by([[maybe_unused]] const fuse_conn_info& connection) {
#ifdef COFS_FUSE_HAS_COPY_64
  return connection.proto_major > 7 || connection.proto_minor >= 45;
#else
  return false;
#endif
}

void on_init(void* userdata, fuse_conn_info* connection) {
  FuseServer& server = *static_cast<FuseServer*>(userdata);
  ConnectionWishes wishes;
  wishes.writeback = server.options().writeback;
  wishes.ring = server.options().transport != FuseTransport::kDevice;
  agree(*connection, wishes);
  SessionFeatures features;
  features.protocol_major = static_cast<uint16_t>(connection->proto_major);
  features.protocol_minor = static_cast<uint16_t>(connection->proto_minor);
  features.kills_privileges = kills_privileges(*connection);
  features.opens_directories_alone = (connection->capable & FUSE_CAP_NO_OPENDIR_SUPPORT) != 0;
  features.copies_64 = copies_64_by(*connection);
#ifdef COFS_FUSE_HAS_TMPFILE
  features.unnamed_files = connection->proto_minor >= 37;
#endif
#ifdef COFS_FUSE_HAS_STATX
  features.statx = connection->proto_minor >= 39;
#endif
  server.session_initialised(features);
}

// fuseblk only: umount(2) waits for this, and so does the thread: it must not be one whose device I/O waits for it
// (RequestPoller::going_to_block).
void on_destroy(void* userdata) {
  FuseServer& server = *static_cast<FuseServer*>(userdata);
  if (server.stopped() || server.options().read_only) return;
  Result<> synced = run_blocking(server.monitor(), server.fs().sync());
  if (!synced) server.note_failure(synced.error());
}

}  // namespace

void install_session_operations(fuse_lowlevel_ops& operations) {
  operations.init = on_init;
  operations.destroy = on_destroy;
}

void reply_errno(FuseServer& server, fuse_req_t request, int error_number) {
  reply(server, [request, error_number] { fuse_reply_err(request, error_number); });
}

void reply_error(FuseServer& server, fuse_req_t request, const Error& error) {
  // While the device refuses writes, which the log has a line about, every fsync fails.
  const bool is_told = error.code == Code::kIo && !server.fs().store().check_stall();
  reply(server, [&server, request, error, is_told] {
    if (!is_told) server.note_failure(error);
    fuse_reply_err(request, errno_of(error.code));
  });
}

void reply_status(FuseServer& server, fuse_req_t request, const Result<>& result) {
  if (result) {
    reply_errno(server, request, 0);
  } else {
    reply_error(server, request, result.error());
  }
}

void reply_entry(FuseServer& server, fuse_req_t request, const Attributes& attributes) {
  reply(server, [request, entry = entry_of(attributes)] { fuse_reply_entry(request, &entry); });
}

void reply_attributes(FuseServer& server, fuse_req_t request, const Attributes& attributes) {
  reply(server, [request, status = stat_of(attributes)] {
    fuse_reply_attr(request, &status, FuseServer::kAttributeSeconds);
  });
}

void tell_of_lost_privileges(FuseServer& server, uint64_t ino, Unprivileged kill_privileges) {
  class Notice final : public Deferred {
   public:
    Notice(FuseServer& server, uint64_t ino) : server_(server), ino_(ino) {}
    void run() override {
      server_.forget_attributes(ino_);
      delete this;
    }

   private:
    FuseServer& server_;
    uint64_t ino_;
  };
  if (!kill_privileges || !server.fs().lost_privileges(ino)) return;
  server.monitor().defer(*new Notice(server, ino));
}

FileHandle FileHandle::opened(FuseServer& server, int flags) {
  FileHandle file;
  file.open = server.next_open();
  const int mode = flags & O_ACCMODE;
  file.readable = mode == O_RDONLY || mode == O_RDWR;
  file.writable = mode == O_WRONLY || mode == O_RDWR;
  file.synchronous = (flags & O_DSYNC) != 0;
  file.direct = (flags & O_DIRECT) != 0;
  return file;
}

FileHandle FileHandle::of(uint64_t fh) {
  FileHandle file;
  file.open = fh >> 4;
  file.readable = (fh & 1) != 0;
  file.writable = (fh & 2) != 0;
  file.synchronous = (fh & 4) != 0;
  file.direct = (fh & 8) != 0;
  return file;
}

uint64_t FileHandle::fh() const {
  return open << 4 | (readable ? 1U : 0U) | (writable ? 2U : 0U) | (synchronous ? 4U : 0U) | (direct ? 8U : 0U);
}

OpenFile FileHandle::open_file(uint64_t ino) const {
  OpenFile file;
  file.handle = open;
  file.ino = ino;
  file.readable = readable;
  file.writable = writable;
  return file;
}

struct stat stat_of(const Attributes& attributes) {
  struct stat status {};
  status.st_ino = attributes.ino;
  status.st_mode = attributes.mode;
  status.st_nlink = attributes.nlink;
  status.st_uid = attributes.uid;
  status.st_gid = attributes.gid;
  status.st_rdev = attributes.rdev;
  status.st_size = static_cast<off_t>(attributes.size);
  status.st_blksize = kBlockBytes;
  status.st_blocks = static_cast<blkcnt_t>(attributes.blocks * (kBlockBytes / 512));
  status.st_atim = timespec_of(attributes.access_time);
  status.st_mtim = timespec_of(attributes.modify_time);
  status.st_ctim = timespec_of(attributes.change_time);
  return status;
}

struct fuse_entry_param entry_of(const Attributes& attributes) {
  struct fuse_entry_param entry {};
  entry.ino = attributes.ino;
  entry.generation = 1;  // inode numbers are never used again
  entry.attr = stat_of(attributes);
  entry.attr_timeout = FuseServer::kAttributeSeconds;
  entry.entry_timeout = FuseServer::kEntrySeconds;
  return entry;
}

Caller caller_of(fuse_req_t request) {
  const fuse_ctx* context = fuse_req_ctx(request);
  return Caller(context->uid, context->gid, context->umask);
}

Unprivileged kills_privileges(fuse_req_t request) {
  const fuse_ctx* context = fuse_req_ctx(request);
  return Unprivileged(context->uid != 0, context->gid);
}

Unprivileged kills_privileges(fuse_req_t request, [[maybe_unused]] const fuse_file_info& file) {
#ifdef COFS_FUSE_HAS_KILL_FLAG
  if (server_of(request).features().kills_privileges) {
    return Unprivileged(file.kill_suidgid != 0, fuse_req_ctx(request)->gid);
  }
#endif
  return kills_privileges(request);
}

Caller caller_with_groups_of(fuse_req_t request) {
  Caller caller = caller_of(request);
  if (caller.uid == 0) return caller;
  std::vector<gid_t> groups(64);
  int count = fuse_req_getgroups(request, static_cast<int>(groups.size()), groups.data());
  if (count > static_cast<int>(groups.size())) {
    groups.resize(static_cast<size_t>(count));
    count = fuse_req_getgroups(request, count, groups.data());
  }
  // The caller may be gone already, or in a pid namespace that this process does not see.
  if (count <= 0) return caller;
  size_t known = std::min(groups.size(), static_cast<size_t>(count));
  caller.groups.assign(groups.begin(), groups.begin() + static_cast<ptrdiff_t>(known));
  return caller;
}

}  // namespace cofs
