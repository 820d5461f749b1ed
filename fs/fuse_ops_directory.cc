// Handlers that list directories. The kernel caches listings (cache_readdir): it drops them by
// itself when it changes the directory, and nobody else does.
#include <dirent.h>

#include <algorithm>

#include "fs/fuse_ops.h"

namespace cofs {

namespace {

constexpr size_t kListingBytesMax = 1U << 20;  // of one reply, whatever the kernel has room for
// An entry takes 24 bytes and its name, rounded up to 8; with attributes 128 more. Reading as many
// as would fit with names of about 16 bytes wastes little when they are longer.
constexpr size_t kEntryBytesTypical = 40;
constexpr size_t kEntryPlusBytesTypical = kEntryBytesTypical + 128;

struct stat type_only(const DirectoryEntry& entry) {
  struct stat status {};
  status.st_ino = entry.ino;
  status.st_mode = DTTOIF(static_cast<mode_t>(entry.type));
  return status;
}

using Entries = std::vector<DirectoryEntry>;

Task<void> read_directory(FuseServer& server, fuse_req_t request, uint64_t ino, size_t room,
                          uint64_t cookie) {
  Result<Entries> entries =
      co_await server.fs().read_directory(ino, cookie, room / kEntryBytesTypical + 1);
  if (!entries) {
    reply_error(server, request, entries.error());
    co_return;
  }
  reply(server, [request, room, list = std::move(*entries)] {
    std::vector<char> buffer(room);
    size_t used = 0;
    for (const DirectoryEntry& entry : list) {
      struct stat status = type_only(entry);
      size_t size =
          fuse_add_direntry(request, buffer.data() + used, room - used, entry.name.c_str(), &status,
                            static_cast<off_t>(entry.cookie));
      if (size > room - used) break;
      used += size;
    }
    fuse_reply_buf(request, buffer.data(), used);
  });
}

struct EntryWithAttributes {
  DirectoryEntry entry;
  struct fuse_entry_param parameters {};
};

// Entries without a node id are no lookups: "." and "..", and what was removed since it was listed.
Task<void> read_directory_plus(FuseServer& server, fuse_req_t request, uint64_t ino, size_t room,
                               uint64_t cookie) {
  Result<Entries> entries =
      co_await server.fs().read_directory(ino, cookie, room / kEntryPlusBytesTypical + 1);
  if (!entries) {
    reply_error(server, request, entries.error());
    co_return;
  }
  std::vector<EntryWithAttributes> list(entries->size());
  for (size_t i = 0; i < list.size(); i++) {
    EntryWithAttributes& item = list[i];
    item.entry = std::move((*entries)[i]);
    item.parameters.attr = type_only(item.entry);
    if (item.entry.name == "." || item.entry.name == "..") continue;
    Result<Attributes> attributes = co_await server.fs().get_attributes(item.entry.ino);
    if (attributes) item.parameters = entry_of(*attributes);
  }
  reply(server, [request, room, items = std::move(list)] {
    std::vector<char> buffer(room);
    size_t used = 0;
    for (const EntryWithAttributes& item : items) {
      size_t size = fuse_add_direntry_plus(request, buffer.data() + used, room - used,
                                           item.entry.name.c_str(), &item.parameters,
                                           static_cast<off_t>(item.entry.cookie));
      if (size > room - used) break;
      used += size;
    }
    fuse_reply_buf(request, buffer.data(), used);
  });
}

// Where the kernel can do without, it is told so by an error, and opens all further directories by itself, with the
// same two flags.
void on_open_directory(fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
  if (server_of(request).features().opens_directories_alone) {
    fuse_reply_err(request, ENOSYS);
    return;
  }
  file->cache_readdir = 1;
  file->keep_cache = 1;
  fuse_reply_open(request, file);
}

void on_release_directory(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
  fuse_reply_err(request, 0);
}

void on_read_directory(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                       fuse_file_info*) {
  start(request, read_directory, ino, std::min(size, kListingBytesMax),
        static_cast<uint64_t>(offset));
}

void on_read_directory_plus(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                            fuse_file_info*) {
  start(request, read_directory_plus, ino, std::min(size, kListingBytesMax),
        static_cast<uint64_t>(offset));
}

}  // namespace

void install_directory_operations(fuse_lowlevel_ops& operations) {
  operations.opendir = on_open_directory;
  operations.releasedir = on_release_directory;
  operations.readdir = on_read_directory;
  operations.readdirplus = on_read_directory_plus;
}

}  // namespace cofs
