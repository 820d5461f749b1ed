// Handlers about names: lookup, creation, links, removal, renaming.
#include <algorithm>
#include <span>

#include "fs/fuse_connection.h"
#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// So many inodes are forgotten, and freed, before others get the core.
constexpr size_t kForgottenAtOnce = 32;

Task<void> lookup(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name) {
  Result<Attributes> found = co_await server.fs().lookup(parent, std::move(name));
  if (found) {
    reply_entry(server, request, *found);
  } else if (found.error().code == Code::kNoEntry) {
    // An entry without an inode lets the kernel remember that there is none.
    reply(server, [request] {
      struct fuse_entry_param nothing {};
      nothing.entry_timeout = FuseServer::kNegativeSeconds;
      fuse_reply_entry(request, &nothing);
    });
  } else {
    reply_error(server, request, found.error());
  }
}

void reply_made(FuseServer& server, fuse_req_t request, const Result<Attributes>& made) {
  if (made) {
    reply_entry(server, request, *made);
  } else {
    reply_error(server, request, made.error());
  }
}

Task<void> make_node(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name,
                     uint32_t mode, uint64_t rdev, Caller caller) {
  Result<Attributes> made =
      co_await server.fs().make_node(parent, std::move(name), mode, rdev, std::move(caller));
  reply_made(server, request, made);
}

Task<void> make_directory(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name,
                          uint32_t mode, Caller caller) {
  Result<Attributes> made =
      co_await server.fs().make_directory(parent, std::move(name), mode, std::move(caller));
  reply_made(server, request, made);
}

Task<void> make_symlink(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name,
                        std::string target, Caller caller) {
  Result<Attributes> made = co_await server.fs().make_symlink(parent, std::move(name),
                                                              std::move(target), std::move(caller));
  reply_made(server, request, made);
}

Task<void> link(FuseServer& server, fuse_req_t request, uint64_t ino, uint64_t parent,
                std::string name) {
  Result<Attributes> made = co_await server.fs().link(ino, parent, std::move(name));
  reply_made(server, request, made);
}

Task<void> unlink(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name) {
  Result<> result = co_await server.fs().unlink(parent, std::move(name));
  reply_status(server, request, result);
}

Task<void> remove_directory(FuseServer& server, fuse_req_t request, uint64_t parent,
                            std::string name) {
  Result<> result = co_await server.fs().remove_directory(parent, std::move(name));
  reply_status(server, request, result);
}

Task<void> rename(FuseServer& server, fuse_req_t request, uint64_t parent, std::string name,
                  uint64_t new_parent, std::string new_name, uint32_t flags) {
  Result<> result =
      co_await server.fs().rename(parent, std::move(name), new_parent, std::move(new_name), flags);
  reply_status(server, request, result);
}

Task<void> read_symlink(FuseServer& server, fuse_req_t request, uint64_t ino) {
  Result<std::string> target = co_await server.fs().read_symlink(ino);
  if (!target) {
    reply_error(server, request, target.error());
  } else {
    reply(server,
          [request, text = std::move(*target)] { fuse_reply_readlink(request, text.c_str()); });
  }
}

// The kernel forgets an inode in one message with all its lookups, when it drops the inode, so they
// are not counted here: forget() frees a file only if it has neither a name nor an open.
Task<void> forget(FuseServer& server, fuse_req_t, std::vector<uint64_t> inodes) {
  for (uint64_t ino : inodes) {
    server.invalidator().forgotten(ino);
    co_await server.fs().forget(ino);
  }
  reply(server, [] {});
}

void on_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  start(request, lookup, parent, std::string(name));
}

void on_make_node(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
                  dev_t rdev) {
  start(request, make_node, parent, std::string(name), mode, rdev, caller_of(request));
}

void on_make_directory(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  start(request, make_directory, parent, std::string(name), mode, caller_of(request));
}

void on_make_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  start(request, make_symlink, parent, std::string(name), std::string(target), caller_of(request));
}

void on_link(fuse_req_t request, fuse_ino_t ino, fuse_ino_t parent, const char* name) {
  start(request, link, ino, parent, std::string(name));
}

void on_unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
  start(request, unlink, parent, std::string(name));
}

void on_remove_directory(fuse_req_t request, fuse_ino_t parent, const char* name) {
  start(request, remove_directory, parent, std::string(name));
}

void on_rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
               const char* new_name, unsigned flags) {
  start(request, rename, parent, std::string(name), new_parent, std::string(new_name), flags);
}

void on_read_symlink(fuse_req_t request, fuse_ino_t ino) {
  start(request, read_symlink, ino);
}

void start_forgetting(fuse_req_t request, std::span<const uint64_t> inodes) {
  FuseServer& server = server_of(request);
  while (!inodes.empty() && !server.stopped()) {
    const auto some = inodes.first(std::min(inodes.size(), kForgottenAtOnce));
    server.request_started();
    server.monitor().post(detach(forget(server, request, std::vector<uint64_t>(some.begin(), some.end()))));
    inodes = inodes.subspan(some.size());
  }
  end_forget(request, server.uses_ring());
}

void on_forget(fuse_req_t request, fuse_ino_t ino, uint64_t) {
  const uint64_t inode = ino;
  start_forgetting(request, {&inode, 1});
}

void on_forget_many(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
  std::vector<uint64_t> inodes(count);
  for (size_t i = 0; i < count; i++) inodes[i] = forgets[i].ino;
  start_forgetting(request, inodes);
}

}  // namespace

void install_name_operations(fuse_lowlevel_ops& operations) {
  operations.lookup = on_lookup;
  operations.forget = on_forget;
  operations.forget_multi = on_forget_many;
  operations.mknod = on_make_node;
  operations.mkdir = on_make_directory;
  operations.symlink = on_make_symlink;
  operations.link = on_link;
  operations.unlink = on_unlink;
  operations.rmdir = on_remove_directory;
  operations.rename = on_rename;
  operations.readlink = on_read_symlink;
}

}  // namespace cofs
