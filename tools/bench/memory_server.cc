// memory_server: a FUSE server that does nothing: names, attributes and data are in its memory, an fsync is answered at once,
// and no device is ever read or written. Of a file's data only the beginning is kept (MemoryTree::kKeptBytes), the rest is
// thrown away: of large files nobody reads what was written, and keeping it would be work. What this server reaches is what
// the kernel, libfuse and the machine leave to any server: the bound for a row of tools/bench/run.
//
// So that the kernel sends it the requests that it sends cofs, it mounts the same device with the same options, agrees on the
// same (fs/fuse_connection.h), lets the kernel's caches live as long, and is called by the same threads. A handler answers
// before it returns. There are no permissions, no extended attributes, no copies; what it does not know it answers ENOSYS.
//
//   memory_server DEVICE MOUNT_POINT [WORD…]
//
// Words: io_uring; one_thread (for /dev/fuse, instead of as many as cofs has). Serves in the foreground until it is unmounted
// or gets SIGTERM. Root only.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "fs/fuse_connection.h"
#include "fs/fuse_ops.h"
#include "fs/fuse_request_poller.h"
#include "fs/fuse_request_reader.h"
#include "tools/bench/memory_tree.h"

#ifdef COFS_LIBFUSE_RING
#include <cofs_ring.h>
#endif

namespace cofs {
namespace {

constexpr size_t kReadyBytes = 256U << 20;  // of memory for data, before the first request
constexpr size_t kChunksPerRequestMax = FuseServer::kRequestBytesMax / ChunkPool::kChunkBytes + 1;

struct Settings {
  std::string device;
  std::string mount_point;
  bool ring = false;
  bool one_thread = false;
};

struct MemoryServer {
  explicit MemoryServer(Settings wanted) : settings(std::move(wanted)), poller(!settings.ring && !settings.one_thread), tree(kReadyBytes) {}

  const Settings settings;
  RequestPoller poller;
  MemoryTree tree;
  bool directories_open_alone = false;  // set before the first request
};

MemoryTree& tree_of(fuse_req_t request) { return static_cast<MemoryServer*>(fuse_req_userdata(request))->tree; }
MemoryServer& memory_server_of(fuse_req_t request) { return *static_cast<MemoryServer*>(fuse_req_userdata(request)); }

// A lookup, which is counted. Under the lock.
fuse_entry_param entry_of(MemoryInode& inode) {
  inode.lookups++;
  fuse_entry_param entry{};
  entry.ino = inode.status.st_ino;
  entry.generation = 1;
  entry.attr = inode.status;
  entry.attr_timeout = FuseServer::kAttributeSeconds;
  entry.entry_timeout = FuseServer::kEntrySeconds;
  return entry;
}

fuse_file_info open_reply(const fuse_file_info& asked) {
  fuse_file_info file{};
  file.flags = asked.flags;
  file.keep_cache = 1;
  file.noflush = 1;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 15)
  file.parallel_direct_writes = 1;
#endif
  return file;
}

void on_init(void* userdata, fuse_conn_info* connection) {
  MemoryServer& server = *static_cast<MemoryServer*>(userdata);
  ConnectionWishes wishes;
  wishes.ring = server.settings.ring;
  agree(*connection, wishes);
  server.directories_open_alone = (connection->capable & FUSE_CAP_NO_OPENDIR_SUPPORT) != 0;
}

// --- Names ---

void on_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  MemoryTree& tree = tree_of(request);
  fuse_entry_param entry{};
  entry.entry_timeout = FuseServer::kNegativeSeconds;
  std::unique_lock lock(tree.lock);
  if (const uint64_t ino = tree.at(parent).directory.find(name); ino != 0) entry = entry_of(tree.at(ino));
  lock.unlock();
  fuse_reply_entry(request, &entry);
}

void on_forget(fuse_req_t request, fuse_ino_t ino, uint64_t lookups) {
  std::unique_lock lock(tree_of(request).lock);
  tree_of(request).forget(ino, lookups);
  lock.unlock();
  end_forget(request, memory_server_of(request).settings.ring);
}

void on_forget_many(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
  std::unique_lock lock(tree_of(request).lock);
  for (size_t i = 0; i < count; i++) tree_of(request).forget(forgets[i].ino, forgets[i].nlookup);
  lock.unlock();
  end_forget(request, memory_server_of(request).settings.ring);
}

NewNode node_of(fuse_req_t request, mode_t mode) {
  const fuse_ctx* caller = fuse_req_ctx(request);
  NewNode node;
  node.mode = mode & ~caller->umask;
  node.uid = caller->uid;
  node.gid = caller->gid;
  return node;
}

void make(fuse_req_t request, fuse_ino_t parent, const char* name, const NewNode& node) {
  std::unique_lock lock(tree_of(request).lock);
  MemoryInode* made = tree_of(request).make(parent, name, node);
  const fuse_entry_param entry = made != nullptr ? entry_of(*made) : fuse_entry_param{};
  lock.unlock();
  if (made != nullptr) {
    fuse_reply_entry(request, &entry);
  } else {
    fuse_reply_err(request, EEXIST);
  }
}

void on_make_node(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t) {
  make(request, parent, name, node_of(request, mode));
}

void on_make_directory(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  make(request, parent, name, node_of(request, S_IFDIR | mode));
}

void on_make_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  NewNode node = node_of(request, 0);
  node.mode = S_IFLNK | 0777;
  node.target = target;
  make(request, parent, name, node);
}

void on_create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* asked) {
  MemoryTree& tree = tree_of(request);
  std::unique_lock lock(tree.lock);
  MemoryInode* inode = tree.make(parent, name, node_of(request, S_IFREG | mode));
  if (inode == nullptr && (asked->flags & O_EXCL) == 0) {
    inode = &tree.at(tree.at(parent).directory.find(name));
    if ((asked->flags & O_TRUNC) != 0) tree.resize(*inode, 0);
  }
  const fuse_entry_param entry = inode != nullptr ? entry_of(*inode) : fuse_entry_param{};
  lock.unlock();
  const fuse_file_info file = open_reply(*asked);
  if (inode != nullptr) {
    fuse_reply_create(request, &entry, &file);
  } else {
    fuse_reply_err(request, EEXIST);
  }
}

void on_link(fuse_req_t request, fuse_ino_t ino, fuse_ino_t parent, const char* name) {
  MemoryTree& tree = tree_of(request);
  std::unique_lock lock(tree.lock);
  const int error = tree.link(ino, parent, name);
  const fuse_entry_param entry = error == 0 ? entry_of(tree.at(ino)) : fuse_entry_param{};
  lock.unlock();
  if (error == 0) {
    fuse_reply_entry(request, &entry);
  } else {
    fuse_reply_err(request, error);
  }
}

void on_remove(fuse_req_t request, fuse_ino_t parent, const char* name) {
  std::unique_lock lock(tree_of(request).lock);
  const int error = tree_of(request).remove(parent, name);
  lock.unlock();
  fuse_reply_err(request, error);
}

void on_rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
               unsigned flags) {
  if ((flags & ~RENAME_NOREPLACE) != 0) {
    fuse_reply_err(request, EINVAL);
    return;
  }
  std::unique_lock lock(tree_of(request).lock);
  const int error = tree_of(request).rename(parent, name, new_parent, new_name, flags == 0);
  lock.unlock();
  fuse_reply_err(request, error);
}

void on_read_symlink(fuse_req_t request, fuse_ino_t ino) {
  std::shared_lock lock(tree_of(request).lock);
  fuse_reply_readlink(request, tree_of(request).at(ino).target.c_str());
}

// --- Listings ---

void on_open_directory(fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
  if (memory_server_of(request).directories_open_alone) {
    fuse_reply_err(request, ENOSYS);
    return;
  }
  file->cache_readdir = 1;
  file->keep_cache = 1;
  fuse_reply_open(request, file);
}

// `add(name, ino, next place, room)` returns what the entry takes. "." and ".." have the places before all others.
template <class Add>
void list(fuse_req_t request, const MemoryInode& inode, size_t room, off_t place, Add add) {
  std::vector<char> buffer(room);
  size_t used = 0;
  const std::deque<MemoryDirectory::Entry>& entries = inode.directory.entries();
  for (size_t at = static_cast<size_t>(place); at < entries.size() + 2; at++) {
    const MemoryDirectory::Entry entry = at == 0   ? MemoryDirectory::Entry(".", inode.status.st_ino)
                                   : at == 1 ? MemoryDirectory::Entry("..", inode.parent)
                                             : entries[at - 2];
    if (entry.name.empty()) continue;
    const size_t size = add(buffer.data() + used, room - used, entry, static_cast<off_t>(at + 1));
    if (size > room - used) break;
    used += size;
  }
  fuse_reply_buf(request, buffer.data(), used);
}

void on_read_directory(fuse_req_t request, fuse_ino_t ino, size_t room, off_t place, fuse_file_info*) {
  MemoryTree& tree = tree_of(request);
  std::shared_lock lock(tree.lock);
  list(request, tree.at(ino), room, place,
       [&](char* memory, size_t left, const MemoryDirectory::Entry& entry, off_t next) {
         struct stat status {};
         status.st_ino = entry.ino;
         if (entry.ino != 0) status.st_mode = tree.at(entry.ino).status.st_mode;
         return fuse_add_direntry(request, memory, left, entry.name.c_str(), &status, next);
       });
}

void on_read_directory_plus(fuse_req_t request, fuse_ino_t ino, size_t room, off_t place, fuse_file_info*) {
  MemoryTree& tree = tree_of(request);
  std::lock_guard lock(tree.lock);  // lookups are counted
  list(request, tree.at(ino), room, place,
       [&](char* memory, size_t left, const MemoryDirectory::Entry& entry, off_t next) {
         fuse_entry_param parameters{};
         parameters.attr.st_ino = entry.ino;
         parameters.attr.st_mode = S_IFDIR;
         const bool is_lookup = entry.name != "." && entry.name != "..";
         if (is_lookup) parameters = entry_of(tree.at(entry.ino));
         const size_t size = fuse_add_direntry_plus(request, memory, left, entry.name.c_str(), &parameters, next);
         if (is_lookup && size > left) tree.at(entry.ino).lookups--;
         return size;
       });
}

// --- Attributes ---

void on_get_attributes(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  MemoryTree& tree = tree_of(request);
  std::shared_lock lock(tree.lock);
  const struct stat status = tree.at(ino).status;
  lock.unlock();
  fuse_reply_attr(request, &status, FuseServer::kAttributeSeconds);
}

void on_set_attributes(fuse_req_t request, fuse_ino_t ino, struct stat* asked, int which, fuse_file_info*) {
  const auto has = [which](int bit) { return (which & bit) != 0; };
  if (has(FUSE_SET_ATTR_SIZE) && static_cast<uint64_t>(asked->st_size) > MemoryTree::kFileBytesMax) {
    fuse_reply_err(request, EFBIG);
    return;
  }
  MemoryTree& tree = tree_of(request);
  std::unique_lock lock(tree.lock);
  MemoryInode& inode = tree.at(ino);
  struct stat& status = inode.status;
  status.st_ctim = wall_time();
  if (has(FUSE_SET_ATTR_MODE)) status.st_mode = (status.st_mode & S_IFMT) | (asked->st_mode & 07777U);
  if (has(FUSE_SET_ATTR_UID)) status.st_uid = asked->st_uid;
  if (has(FUSE_SET_ATTR_GID)) status.st_gid = asked->st_gid;
  if (has(FUSE_SET_ATTR_SIZE)) {
    tree.resize(inode, static_cast<uint64_t>(asked->st_size));
    status.st_mtim = status.st_ctim;
  }
  if (has(FUSE_SET_ATTR_ATIME)) status.st_atim = asked->st_atim;
  if (has(FUSE_SET_ATTR_MTIME)) status.st_mtim = asked->st_mtim;
  if (has(FUSE_SET_ATTR_ATIME_NOW)) status.st_atim = status.st_ctim;
  if (has(FUSE_SET_ATTR_MTIME_NOW)) status.st_mtim = status.st_ctim;
  const struct stat reply = status;
  lock.unlock();
  fuse_reply_attr(request, &reply, FuseServer::kAttributeSeconds);
}

void on_get_xattr(fuse_req_t request, fuse_ino_t, const char*, size_t) { fuse_reply_err(request, ENODATA); }

void on_list_xattrs(fuse_req_t request, fuse_ino_t, size_t room) {
  if (room == 0) {
    fuse_reply_xattr(request, 0);
  } else {
    fuse_reply_buf(request, nullptr, 0);
  }
}

void on_volume_figures(fuse_req_t request, fuse_ino_t) {
  struct statvfs status {};
  status.f_bsize = status.f_frsize = kBlockBytes;
  status.f_blocks = status.f_bfree = status.f_bavail = MemoryTree::kFileBytesMax / kBlockBytes;
  status.f_files = status.f_ffree = status.f_favail = 1U << 30;
  status.f_namemax = 255;
  fuse_reply_statfs(request, &status);
}

// --- Data ---

void on_open(fuse_req_t request, fuse_ino_t ino, fuse_file_info* asked) {
  if ((asked->flags & O_TRUNC) != 0) {
    MemoryTree& tree = tree_of(request);
    std::lock_guard lock(tree.lock);
    tree.resize(tree.at(ino), 0);
    touch(tree.at(ino));
  }
  const fuse_file_info file = open_reply(*asked);
  fuse_reply_open(request, &file);
}

void on_done(fuse_req_t request, fuse_ino_t, fuse_file_info*) { fuse_reply_err(request, 0); }
void on_fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) { fuse_reply_err(request, 0); }

void on_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  static std::array<char, ChunkPool::kChunkBytes> zeros{};
  MemoryTree& tree = tree_of(request);
  std::shared_lock lock(tree.lock);  // kept for the reply, which takes the bytes from where they are
  const MemoryInode& inode = tree.at(ino);
  const auto end = static_cast<uint64_t>(inode.status.st_size);
  const auto start = static_cast<uint64_t>(offset);
  const size_t length = start < end ? std::min<uint64_t>(size, end - start) : 0;
  std::array<iovec, kChunksPerRequestMax> parts{};
  size_t count = 0;
  for_chunks(start, length, [&](size_t number, size_t within, size_t part) {
    char* chunk = number < inode.chunks.size() ? inode.chunks[number] : nullptr;
    parts[count++] = {chunk != nullptr ? chunk + within : zeros.data(), part};
  });
  fuse_reply_iov(request, parts.data(), static_cast<int>(count));
}

void on_write(fuse_req_t request, fuse_ino_t ino, const char* bytes, size_t size, off_t offset, fuse_file_info*) {
  MemoryTree& tree = tree_of(request);
  const auto start = static_cast<uint64_t>(offset);
  if (start + size > MemoryTree::kFileBytesMax) {
    fuse_reply_err(request, EFBIG);
    return;
  }
  {
    std::lock_guard lock(tree.lock);
    tree.prepare_write(tree.at(ino), start, size);
  }
  {
    std::shared_lock lock(tree.lock);
    MemoryTree::write(tree.at(ino), start, bytes, size);
  }
  fuse_reply_write(request, size);
}

void on_allocate(fuse_req_t request, fuse_ino_t ino, int flags, off_t offset, off_t length, fuse_file_info*) {
  const uint64_t end = static_cast<uint64_t>(offset) + static_cast<uint64_t>(length);
  if ((flags & ~FALLOC_FL_KEEP_SIZE) != 0 || end > MemoryTree::kFileBytesMax) {
    fuse_reply_err(request, EOPNOTSUPP);
    return;
  }
  MemoryTree& tree = tree_of(request);
  std::unique_lock lock(tree.lock);
  MemoryInode& inode = tree.at(ino);
  if (flags == 0 && end > static_cast<uint64_t>(inode.status.st_size)) tree.resize(inode, end);
  lock.unlock();
  fuse_reply_err(request, 0);
}

fuse_lowlevel_ops operation_table() {
  fuse_lowlevel_ops operations{};
  operations.init = on_init;
  operations.lookup = on_lookup;
  operations.forget = on_forget;
  operations.forget_multi = on_forget_many;
  operations.mknod = on_make_node;
  operations.mkdir = on_make_directory;
  operations.symlink = on_make_symlink;
  operations.link = on_link;
  operations.unlink = on_remove;
  operations.rmdir = on_remove;
  operations.rename = on_rename;
  operations.readlink = on_read_symlink;
  operations.opendir = on_open_directory;
  operations.releasedir = on_done;
  operations.readdir = on_read_directory;
  operations.readdirplus = on_read_directory_plus;
  operations.getattr = on_get_attributes;
  operations.setattr = on_set_attributes;
  operations.getxattr = on_get_xattr;
  operations.listxattr = on_list_xattrs;
  operations.statfs = on_volume_figures;
  operations.create = on_create;
  operations.open = on_open;
  operations.release = on_done;
  operations.read = on_read;
  operations.write = on_write;
  operations.fsync = on_fsync;
  operations.fsyncdir = on_fsync;
  operations.fallocate = on_allocate;
  return operations;
}

// --- The session ---

#ifdef COFS_LIBFUSE_RING
// Nothing of ours is in the rings.
constexpr cofs_ring_guest kRingGuest = {
    .context = nullptr,
    .thread_started = [](void*, unsigned, io_uring*, unsigned) -> void* {
      static char anything;
      return &anything;
    },
    .completed = [](void*, void*, int) {},
    .batch_ended = [](void*) {},
    .before_sleep = [](void*) {},
    .may_end = [](void*) { return 1; },
    .thread_ends = [](void*) {},
};
void set_ring_guest() { cofs_ring_set_guest(&kRingGuest); }
void release_ring(fuse_session* session) { cofs_ring_release(session); }
#else
void set_ring_guest() {}
void release_ring(fuse_session*) {}
#endif

int fail(const std::string& message) {
  fmt::print(stderr, "memory_server: {}\n", message);
  return EXIT_FAILURE;
}

// Waits for requests as cofs does.
ssize_t read_request(int fd, void* memory, size_t size, void* userdata) {
  RequestPoller& poller = static_cast<MemoryServer*>(userdata)->poller;
  poller.wait(fd);
  const ssize_t got = read(fd, memory, size);
  if (got > 0) poller.took(fd);
  return got;
}

int serve(MemoryServer& server) {
  const Settings& settings = server.settings;
  std::string options = "fsname=" + settings.device +
                        ",subtype=memory,default_permissions,allow_other,blkdev,blksize=4096,rw,dev,suid";
  if (settings.ring) {
    if (const std::string reason = why_no_ring(FuseTransport::kRing); !reason.empty()) return fail("io_uring: " + reason);
    set_ring_guest();
    options += fmt::format(",io_uring,io_uring_q_depth={}", FuseQueues::depth());
  }
  std::string name = "memory_server";
  std::string flag = "-o";
  std::array<char*, 4> words = {name.data(), flag.data(), options.data(), nullptr};
  fuse_args arguments = FUSE_ARGS_INIT(3, words.data());
  const fuse_lowlevel_ops operations = operation_table();
  fuse_session* session = fuse_session_new(&arguments, &operations, sizeof(operations), &server);
  fuse_opt_free_args(&arguments);
  if (session == nullptr) return fail("no session");
  if (fuse_session_mount(session, settings.mount_point.c_str()) != 0) return fail("not mounted");
  // As with cofs: such a library reads by itself, and nothing polls.
  if (const int error = install_device_read(session, read_request); error != 0) {
    fmt::print(stderr, "memory_server: the library reads requests by itself: {}\n", strerror(error));
  }
  prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  umask(0);
  fuse_set_signal_handlers(session);
  std::thread announcer([&settings] {
    struct statvfs figures {};
    if (statvfs(settings.mount_point.c_str(), &figures) != 0) return;
    if (const std::optional<MountEntry> mount = mount_at(settings.mount_point)) raise_read_ahead(*mount);
  });
  const LoopConfig config = loop_config();
  const int status = settings.one_thread ? fuse_session_loop(session) : fuse_session_loop_mt(session, config.get());
  if (settings.ring) release_ring(session);
  fuse_session_unmount(session);
  announcer.join();
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  return status < 0 ? fail(std::string("the connection failed: ") + strerror(-status)) : EXIT_SUCCESS;
}

std::optional<Settings> settings_of(int argc, char** argv) {
  if (argc < 3) return {};
  Settings settings;
  settings.device = argv[1];
  settings.mount_point = argv[2];
  for (int i = 3; i < argc; i++) {
    const std::string_view word = argv[i];
    if (word == "io_uring") {
      settings.ring = true;
    } else if (word == "one_thread") {
      settings.one_thread = true;
    } else {
      return {};
    }
  }
  if (settings.ring && settings.one_thread) return {};  // a ring has a thread for each CPU
  return settings;
}

}  // namespace
}  // namespace cofs

int main(int argc, char** argv) {
  const std::optional<cofs::Settings> settings = cofs::settings_of(argc, argv);
  if (!settings) {
    fmt::print(stderr, "usage: memory_server DEVICE MOUNT_POINT [io_uring | one_thread]\n");
    return EXIT_FAILURE;
  }
  cofs::MemoryServer server(*settings);
  return cofs::serve(server);
}
