// Handlers about open files and their data.
//
// No FLUSH handler: data errors are reported by the write that hits them, so a close has nothing to
// say
// (`noflush`, and ENOSYS from the library, spare the round trip). No ACCESS handler:
// default_permissions.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "fs/fuse_ops.h"
#include "fs/fuse_request_reader.h"

namespace cofs {

namespace {

// The 32-bit reply of COPY_FILE_RANGE cannot say more. (Where there is a 64-bit one, the library shortens
// requests of the old kind.)
constexpr uint64_t kCopyReplyMax = 0x7ffff000;

// Of an open that succeeded; inside the core.
struct fuse_file_info open_reply(FuseServer& server, uint64_t ino, int flags) {
  if ((flags & O_DIRECT) == 0) server.invalidator().opened(ino);
  struct fuse_file_info file {};
  file.flags = flags;
  file.fh = FileHandle::opened(server, flags).fh();
  file.keep_cache = server.options().keep_cache ? 1 : 0;
  file.noflush = 1;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 15)
  file.parallel_direct_writes = 1;
#endif
  return file;
}

OpenIntent intent_of(int flags, Unprivileged kill_privileges) {
  OpenIntent intent;
  intent.write = (flags & O_ACCMODE) != O_RDONLY;
  intent.append = (flags & O_APPEND) != 0;
  intent.truncate = (flags & O_TRUNC) != 0;
  intent.kill_privileges = kill_privileges;
  return intent;
}

Task<void> create(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name,
                  uint32_t mode, int flags, Caller caller, Unprivileged kill_privileges) {
  bool created = false;
  Result<Attributes> made = co_await server.fs().create(
      parent, std::move(name), mode, std::move(caller), (flags & O_EXCL) != 0, &created);
  if (!made) {
    reply_error(server, request, made.error());
    co_return;
  }
  const OpenIntent intent = created ? OpenIntent() : intent_of(flags, kill_privileges);
  Result<Attributes> opened = co_await server.fs().open_file(made->ino, intent);
  tell_of_lost_privileges(server, made->ino, intent.kill_privileges);
  if (!opened) {
    reply_error(server, request, opened.error());
    co_return;
  }
  reply(server, [request, entry = entry_of(*opened), file = open_reply(server, opened->ino, flags)] {
    fuse_reply_create(request, &entry, &file);
  });
}

Task<void> open_file(FuseServer& server, fuse_req_t request, uint64_t ino, int flags,
                     Unprivileged kill_privileges) {
  Result<Attributes> opened = co_await server.fs().open_file(ino, intent_of(flags, kill_privileges));
  tell_of_lost_privileges(server, ino, kill_privileges);
  if (!opened) {
    reply_error(server, request, opened.error());
    co_return;
  }
  reply(server, [request, file = open_reply(server, ino, flags)] { fuse_reply_open(request, &file); });
}

Task<void> close_file(FuseServer& server, fuse_req_t request, uint64_t ino, FileHandle file) {
  if (file.direct) {
    server.invalidator().closed_direct(ino, file.open);
  } else {
    server.invalidator().closed(ino);
  }
  co_await server.fs().close_file(ino, file.open);
  reply_errno(server, request, 0);
}

#ifdef COFS_FUSE_HAS_TMPFILE
Task<void> make_unnamed(FuseServer& server, fuse_req_t request, uint64_t parent, uint32_t mode,
                        int flags, Caller caller) {
  Result<Attributes> made = co_await server.fs().make_unnamed(parent, mode, std::move(caller));
  if (!made) {
    reply_error(server, request, made.error());
    co_return;
  }
  Result<Attributes> opened = co_await server.fs().open_file(made->ino, OpenIntent());
  if (!opened) {
    reply_error(server, request, opened.error());
    co_return;
  }
  reply(server, [request, entry = entry_of(*opened), file = open_reply(server, opened->ino, flags)] {
    fuse_reply_create(request, &entry, &file);
  });
}
#endif

// Only a request that goes past the page cache names a lock owner (kernel: fuse_direct_io). The flags say no more
// than what fcntl() left there.
bool is_past_cache(const fuse_file_info& file) { return file.lock_owner != 0 && file.writepage == 0; }

// For a request that goes through the cache.
void note_cache_use(FuseServer& server, uint64_t ino, FileHandle file) {
  if (file.direct) server.invalidator().filled(ino, file.open);
}

Task<void> read(FuseServer& server, fuse_req_t request, uint64_t ino, uint64_t offset,
                uint32_t length, FileHandle file, bool past_cache) {
  if (!past_cache) note_cache_use(server, ino, file);
  Result<ReadData> data = co_await server.fs().read(ino, offset, length);
  if (!data) {
    reply_error(server, request, data.error());
    co_return;
  }
  reply(server, [request, bytes = std::move(*data)] {
    const char* start_of_data =
        bytes.length == 0 ? nullptr : reinterpret_cast<const char*>(bytes.data());
    fuse_reply_buf(request, start_of_data, bytes.length);
  });
}

Task<void> write(FuseServer& server, fuse_req_t request, uint64_t ino, WriteData data,
                 int flags, FileHandle file, bool past_cache, Unprivileged kill_privileges) {
  if (!past_cache) note_cache_use(server, ino, file);
  const uint64_t offset = data.offset;
  const uint32_t length = data.length;
  // The kernel follows up with an FSYNC for cached writes, but not for asynchronous direct ones.
  const bool direct = past_cache || (flags & O_DIRECT) != 0;
  const bool synchronous = direct && (flags & O_DSYNC) != 0;
  Result<> result;
  if (direct) {
    result = co_await server.fs().write_direct(ino, std::move(data), kill_privileges);
  } else {
    result = co_await server.fs().write(ino, std::move(data), false, kill_privileges);
  }
  tell_of_lost_privileges(server, ino, kill_privileges);
  if (result && synchronous) result = co_await server.fs().sync();
  if (!result) {
    reply_error(server, request, result.error());
    co_return;
  }
  // (A write through the cache has its pages locked until it is answered.)
  if (past_cache && server.invalidator().may_be_cached(ino)) {
    co_await server.invalidator().drop(server.session(), ino, offset, length);
  }
  reply(server, [request, length] { fuse_reply_write(request, length); });
}

Task<void> sync(FuseServer& server, fuse_req_t request, uint64_t ino) {
  Result<> result = co_await server.fs().sync_file(ino);
  reply_status(server, request, result);
}

Task<void> sync_volume(FuseServer& server, fuse_req_t request) {
  Result<> result = co_await server.fs().sync_volume();
  reply_status(server, request, result);
}

Task<void> allocate(FuseServer& server, fuse_req_t request, uint64_t ino, AllocateMode mode,
                    uint64_t offset, uint64_t length, Unprivileged kill_privileges) {
  Result<> result = co_await server.fs().allocate(ino, mode, offset, length, kill_privileges);
  tell_of_lost_privileges(server, ino, kill_privileges);
  reply_status(server, request, result);
}

Task<void> seek(FuseServer& server, fuse_req_t request, uint64_t ino, uint64_t offset,
                bool for_data) {
  Result<uint64_t> found = 0;
  if (for_data) {
    found = co_await server.fs().seek_data(ino, offset);
  } else {
    found = co_await server.fs().seek_hole(ino, offset);
  }
  if (!found) {
    reply_error(server, request, found.error());
    co_return;
  }
  reply(server, [request, at = *found] { fuse_reply_lseek(request, static_cast<off_t>(at)); });
}

// Whoever copies takes 0 for the end of the file, and EINTR, ENOSYS, EOPNOTSUPP and EXDEV for "copy it
// yourself", which a clone must not become.
Error copy_error(const Error& error) {
  switch (errno_of(error.code)) {
    case EINTR:
    case ENOSYS:
    case EOPNOTSUPP:
    case EXDEV: return Error(Code::kIo, error.what, error.where);
    default: return error;
  }
}

// A fatal signal is on its way to it: the kernel has SIGKILL pending then, whichever it was.
bool is_dying(pid_t process) {
  std::ifstream file(fmt::format("/proc/{}/status", process));
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("SigPnd:")) {
      return (std::strtoull(line.c_str() + strlen("SigPnd:"), nullptr, 16) >> (SIGKILL - 1) & 1) != 0;
    }
  }
  return false;
}

// The kernel tells of every signal, and then waits for the answer, which for a process that lives on is to be
// whole: a clone is not repeated because a timer went off.
// It tells once, so what was a timer is asked about again.
void on_copy_interrupted(fuse_req_t, void* interrupted) {
  *static_cast<std::atomic<bool>*>(interrupted) = true;
}

Task<void> copy_range(FuseServer& server, fuse_req_t request, CopyRequest copy,
                      std::shared_ptr<std::atomic<bool>> interrupted, bool synchronous) {
  fuse_req_interrupt_func(request, on_copy_interrupted, interrupted.get());
  const uint64_t target = copy.target;
  const Unprivileged kill_privileges = copy.kill_privileges;
  copy.abandoned = [interrupted, process = fuse_req_ctx(request)->pid] {
    return interrupted->load(std::memory_order_relaxed) && is_dying(process);
  };
  Result<CopyResult> copied = co_await server.fs().copy_range(std::move(copy));
  tell_of_lost_privileges(server, target, kill_privileges);
  fuse_req_interrupt_func(request, nullptr, nullptr);
  if (!copied) {
    reply_error(server, request, copy_error(copied.error()));
    co_return;
  }
  if (synchronous) {
    Result<> synced = co_await server.fs().sync();
    if (!synced) {
      reply_error(server, request, copy_error(synced.error()));
      co_return;
    }
  }
  reply(server, [request, bytes = copied->bytes] { fuse_reply_write(request, bytes); });
}

// --- Handlers ---

void on_create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
               fuse_file_info* file) {
  start(request, create, parent, std::string(name), mode, file->flags, caller_of(request),
        kills_privileges(request, *file));
}

void on_open(fuse_req_t request, fuse_ino_t ino, fuse_file_info* file) {
  start(request, open_file, ino, file->flags, kills_privileges(request, *file));
}

void on_release(fuse_req_t request, fuse_ino_t ino, fuse_file_info* file) {
  start(request, close_file, ino, FileHandle::of(file->fh));
}

#ifdef COFS_FUSE_HAS_TMPFILE
void on_make_unnamed(fuse_req_t request, fuse_ino_t parent, mode_t mode, fuse_file_info* file) {
  start(request, make_unnamed, parent, mode, file->flags, caller_of(request));
}
#endif

void on_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info* file) {
  if (offset < 0 || size > FuseServer::kRequestBytesMax) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  start(request, read, ino, static_cast<uint64_t>(offset), static_cast<uint32_t>(size), FileHandle::of(file->fh),
        is_past_cache(*file));
}

void on_write(fuse_req_t request, fuse_ino_t ino, const char* bytes, size_t size, off_t offset,
              fuse_file_info* file) {
  if (offset < 0 || size > FuseServer::kRequestBytesMax) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  std::optional<WriteData> data = take_payload(
      server_of(request).buffers(), static_cast<uint64_t>(offset), bytes, static_cast<uint32_t>(size));
  if (!data) {
    fuse_reply_err(request, EIO);
    return;
  }
  // Where the requests do not say it the kernel has cleared the bits already.
  Unprivileged kill;
  if (server_of(request).features().kills_privileges) kill = kills_privileges(request, *file);
  start(request, write, ino, std::move(*data), file->flags, FileHandle::of(file->fh), is_past_cache(*file), kill);
}

void on_fsync(fuse_req_t request, fuse_ino_t ino, int, fuse_file_info*) {
  start(request, sync, ino);
}

void on_fsync_directory(fuse_req_t request, fuse_ino_t ino, int, fuse_file_info* file) {
  if (file->fh == kSyncfsHandle) {
    start(request, sync_volume);
  } else {
    start(request, sync, ino);
  }
}

std::optional<AllocateMode> allocate_mode_of(int mode) {
  switch (mode) {
    case 0: return AllocateMode::kAllocate;
    case FALLOC_FL_KEEP_SIZE: return AllocateMode::kKeepSize;
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: return AllocateMode::kPunchHole;
    case FALLOC_FL_ZERO_RANGE: return AllocateMode::kZeroRange;
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE: return AllocateMode::kZeroKeepSize;
    default: return {};
  }
}

void on_allocate(fuse_req_t request, fuse_ino_t ino, int flags, off_t offset, off_t length,
                 fuse_file_info*) {
  std::optional<AllocateMode> mode = allocate_mode_of(flags);
  if (!mode) {
    fuse_reply_err(request, EOPNOTSUPP);
  } else if (offset < 0 || length <= 0) {
    fuse_reply_err(request, EINVAL);
  } else {
    start(request, allocate, ino, *mode, static_cast<uint64_t>(offset),
          static_cast<uint64_t>(length), kills_privileges(request));
  }
}

void on_seek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence, fuse_file_info*) {
  if (whence != SEEK_DATA && whence != SEEK_HOLE) {
    fuse_reply_err(request, EINVAL);
  } else if (offset < 0) {
    fuse_reply_err(request, ENXIO);
  } else {
    start(request, seek, ino, static_cast<uint64_t>(offset), whence == SEEK_DATA);
  }
}

void on_copy_range(fuse_req_t request, fuse_ino_t source, off_t source_offset,
                   fuse_file_info* source_file, fuse_ino_t target, off_t target_offset,
                   fuse_file_info* target_file, size_t length, int flags) {
  if (flags != 0 || source_offset < 0 || target_offset < 0) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  CopyRequest copy;
  copy.source = source;
  copy.source_offset = static_cast<uint64_t>(source_offset);
  copy.target = target;
  copy.target_offset = static_cast<uint64_t>(target_offset);
  copy.length = server_of(request).features().copies_64 ? length : std::min<uint64_t>(length, kCopyReplyMax);
  copy.source_handle = FileHandle::of(source_file->fh).open;
  copy.kill_privileges = kills_privileges(request);
  start(request, copy_range, copy, std::make_shared<std::atomic<bool>>(false),
        FileHandle::of(target_file->fh).synchronous);
}

}  // namespace

void install_data_operations(fuse_lowlevel_ops& operations) {
  operations.create = on_create;
  operations.open = on_open;
  operations.release = on_release;
#ifdef COFS_FUSE_HAS_TMPFILE
  operations.tmpfile = on_make_unnamed;
#endif
  operations.read = on_read;
  operations.write = on_write;
  operations.fsync = on_fsync;
  operations.fsyncdir = on_fsync_directory;
  operations.fallocate = on_allocate;
  operations.lseek = on_seek;
  operations.copy_file_range = on_copy_range;
}

}  // namespace cofs
