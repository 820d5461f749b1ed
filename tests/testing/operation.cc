#include "tests/testing/operation.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cstring>

#include "blockmap/ondisk.h"
#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint64_t kWriteBytesMax = 1ULL << 20;  // of one FileSystem::write or read

Caller test_caller() { return Caller(0, 0, 022); }

struct Place {
  uint64_t parent = 0;
  std::string name;
  Place() = default;
};

// The directory that holds the path's last component; the root itself has none (kInvalid).
Task<Result<Place>> resolve_parent(FileSystem& fs, const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos || path == "/") co_return fail(Code::kInvalid, "test path");
  const std::string directory = slash == 0 ? "/" : path.substr(0, slash);
  auto parent = co_await resolve_path(fs, directory);
  COFS_CO_TRY(parent);
  Place place;
  place.parent = *parent;
  place.name = path.substr(slash + 1);
  co_return place;
}

Task<Result<uint64_t>> resolve_file(FileSystem& fs, const OpenFiles& files,
                                    const Operation& operation) {
  if (operation.slot >= 0) {
    const uint64_t ino = files.at(operation.slot);
    COFS_ASSERT(ino != OpenFiles::kClosed);
    co_return ino;
  }
  auto ino = co_await resolve_path(fs, operation.path);
  co_return ino;
}

// --- One coroutine per kind (or two of a kind); each returns the error or fills the result. ---

Task<Result<>> do_make(FileSystem& fs, const Operation& op) {
  auto place = co_await resolve_parent(fs, op.path);
  COFS_CO_TRY(place);
  const Caller caller = test_caller();
  if (op.kind == OperationKind::kMakeDirectory) {
    auto made = co_await fs.make_directory(place->parent, place->name, op.mode, caller);
    COFS_CO_TRY(made);
  } else if (op.kind == OperationKind::kMakeNode) {
    auto made = co_await fs.make_node(place->parent, place->name, op.mode, op.offset, caller);
    COFS_CO_TRY(made);
  } else if (op.kind == OperationKind::kMakeSymlink) {
    auto made = co_await fs.make_symlink(place->parent, place->name, op.text, caller);
    COFS_CO_TRY(made);
  } else {
    bool created = false;
    const bool exclusive = (op.flags & 1) == 0;
    auto made =
        co_await fs.create(place->parent, place->name, op.mode, caller, exclusive, &created);
    COFS_CO_TRY(made);
  }
  co_return Result<>();
}

Task<Result<>> do_make_unnamed(FileSystem& fs, OpenFiles& files, const Operation& op) {
  auto parent = co_await resolve_path(fs, op.path);
  COFS_CO_TRY(parent);
  const Caller caller = test_caller();
  auto made = co_await fs.make_unnamed(*parent, op.mode, caller);
  COFS_CO_TRY(made);
  auto opened = co_await fs.open_file(made->ino, OpenIntent());
  COFS_CO_TRY(opened);
  files.set(op.slot, made->ino);
  co_return Result<>();
}

Task<Result<>> do_link(FileSystem& fs, const OpenFiles& files, const Operation& op) {
  auto ino = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(ino);
  auto place = co_await resolve_parent(fs, op.path2);
  COFS_CO_TRY(place);
  auto linked = co_await fs.link(*ino, place->parent, place->name);
  COFS_CO_TRY(linked);
  co_return Result<>();
}

Task<Result<>> do_remove(FileSystem& fs, const OpenFiles& files, const Operation& op) {
  auto place = co_await resolve_parent(fs, op.path);
  COFS_CO_TRY(place);
  auto victim = co_await fs.lookup(place->parent, place->name);
  Result<> removed;
  if (op.kind == OperationKind::kUnlink) {
    removed = co_await fs.unlink(place->parent, place->name);
  } else {
    removed = co_await fs.remove_directory(place->parent, place->name);
  }
  COFS_CO_TRY(removed);
  if (victim && !files.holds(victim->ino)) co_await fs.forget(victim->ino);
  co_return Result<>();
}

Task<Result<>> do_rename(FileSystem& fs, const OpenFiles& files, const Operation& op) {
  auto from = co_await resolve_parent(fs, op.path);
  COFS_CO_TRY(from);
  auto to = co_await resolve_parent(fs, op.path2);
  COFS_CO_TRY(to);
  auto victim = co_await fs.lookup(to->parent, to->name);
  auto renamed = co_await fs.rename(from->parent, from->name, to->parent, to->name, op.flags);
  COFS_CO_TRY(renamed);
  if (victim && !files.holds(victim->ino)) co_await fs.forget(victim->ino);
  co_return Result<>();
}

Task<Result<>> do_open(FileSystem& fs, OpenFiles& files, const Operation& op) {
  auto ino = co_await resolve_path(fs, op.path);
  COFS_CO_TRY(ino);
  OpenIntent intent;
  intent.truncate = (op.flags & 1) != 0;
  auto opened = co_await fs.open_file(*ino, intent);
  COFS_CO_TRY(opened);
  files.set(op.slot, *ino);
  co_return Result<>();
}

Task<Result<>> do_close(FileSystem& fs, OpenFiles& files, const Operation& op) {
  const uint64_t ino = files.at(op.slot);
  files.set(op.slot, OpenFiles::kClosed);
  co_await fs.close_file(ino);
  if (!files.holds(ino)) co_await fs.forget(ino);
  co_return Result<>();
}

Task<Result<>> do_write(FileSystem& fs, const OpenFiles& files, const Operation& op) {
  auto ino = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(ino);
  COFS_ASSERT(op.length <= kWriteBytesMax);
  const bool append = op.kind == OperationKind::kAppend;
  const uint64_t offset = append ? 0 : op.offset;
  const std::string bytes = pattern_bytes(op.seed, offset, op.length);
  WriteData data = WriteData::fill(fs.environment().buffers, offset, bytes.data(),
                                   static_cast<uint32_t>(op.length));
  const bool kill_privileges = (op.flags & 1) != 0;
  if ((op.flags & 2) != 0) co_return co_await fs.write_direct(*ino, std::move(data), kill_privileges);
  auto written = co_await fs.write(*ino, std::move(data), append, kill_privileges);
  co_return written;
}

Task<Result<>> do_set_attributes(FileSystem& fs, const OpenFiles& files, const Operation& op) {
  auto ino = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(ino);
  AttributeChange change;
  if (op.kind == OperationKind::kTruncate) {
    change.size = op.offset;
    change.kill_privileges = true;
  } else if (op.kind == OperationKind::kChmod) {
    change.mode = op.mode;
  } else if (op.kind == OperationKind::kChown) {
    change.uid = static_cast<uint32_t>(op.offset);
    change.gid = static_cast<uint32_t>(op.offset2);
  } else {
    WallTime time;
    time.seconds = static_cast<int64_t>(op.offset);
    time.nanoseconds = static_cast<uint32_t>(op.offset % 1'000'000'000);
    change.access_time = time;
    change.modify_time = time;
  }
  const Caller caller = test_caller();
  auto changed = co_await fs.set_attributes(*ino, change, caller);
  COFS_CO_TRY(changed);
  co_return Result<>();
}

Task<Result<>> do_allocate(FileSystem& fs, const OpenFiles& files, const Operation& op) {
  auto ino = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(ino);
  auto done =
      co_await fs.allocate(*ino, static_cast<AllocateMode>(op.flags), op.offset, op.length, true);
  co_return done;
}

Task<Result<>> do_copy(FileSystem& fs, const OpenFiles& files, const Operation& op,
                       OperationResult& result) {
  auto source = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(source);
  auto target = co_await resolve_path(fs, op.path2);
  COFS_CO_TRY(target);
  auto copied = co_await fs.copy_range(*source, op.offset, *target, op.offset2, op.length, 0, true);
  COFS_CO_TRY(copied);
  result.value = copied->bytes;
  co_return Result<>();
}

// Handles of open files: only that they differ matters.
uint64_t next_handle() {
  static uint64_t handles = 0;
  return ++handles;
}

Task<Result<OpenFile>> open_handle(FileSystem& fs, uint64_t ino, bool writable) {
  auto opened = co_await fs.open_file(ino, OpenIntent());
  COFS_CO_TRY(opened);
  OpenFile file;
  file.handle = next_handle();
  file.ino = ino;
  file.readable = !writable;
  file.writable = writable;
  co_return file;
}

Task<> close_handle(FileSystem& fs, const OpenFiles& files, OpenFile file) {
  co_await fs.close_file(file.ino, file.handle);
  auto attributes = co_await fs.get_attributes(file.ino);
  if (attributes && attributes->nlink == 0 && !files.holds(file.ino)) co_await fs.forget(file.ino);
}

// As the VFS says of a clone's target, whose descriptor it has.
Task<Result<>> check_clone_target(FileSystem& fs, uint64_t ino) {
  auto attributes = co_await fs.get_attributes(ino);
  COFS_CO_TRY(attributes);
  if (S_ISDIR(attributes->mode)) co_return fail(Code::kIsDirectory, "clone target", ino);
  if (!S_ISREG(attributes->mode)) co_return fail(Code::kInvalid, "clone target", ino);
  co_return Result<>();
}

// As `cp --reflink` does: the announcement, then copies until all is there.
Task<Result<>> do_clone(FileSystem& fs, const OpenFiles& files, const Operation& op,
                        OperationResult& result) {
  auto source = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(source);
  auto target = co_await resolve_path(fs, op.path2);
  COFS_CO_TRY(target);
  auto opened = co_await open_handle(fs, *source, false);
  COFS_CO_TRY(opened);
  Announcement announcement;
  announcement.source_offset = op.offset;
  announcement.length = op.length;
  announcement.target_ino = *target;
  announcement.target_offset = op.offset2;
  Result<> done = co_await fs.announce_clone(*opened, announcement);
  if (done) done = co_await check_clone_target(fs, *target);
  while (done && result.value < op.length) {
    uint64_t length = op.length - result.value;
    if (op.flags != 0) length = std::min<uint64_t>(length, op.flags * uint64_t{kBlockBytes});
    auto copied = co_await fs.copy_range(*source, op.offset + result.value, *target,
                                         op.offset2 + result.value, length, opened->handle, true);
    if (!copied) done = fail(copied.error());
    if (copied && copied->bytes == 0) done = fail(Code::kIo, "test: a clone that stands still");
    if (copied) result.value += copied->bytes;
  }
  co_await close_handle(fs, files, *opened);
  if (result.value != 0) co_return Result<>();
  co_return done;
}

Task<Result<>> do_dedupe(FileSystem& fs, const OpenFiles& files, const Operation& op,
                         OperationResult& result) {
  auto source = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(source);
  auto target = co_await resolve_path(fs, op.path2);
  COFS_CO_TRY(target);
  auto source_file = co_await open_handle(fs, *source, false);
  COFS_CO_TRY(source_file);
  auto target_file = co_await open_handle(fs, *target, true);
  Result<> done;
  if (target_file) {
    DedupeRequest request;
    request.source_offset = op.offset;
    request.target_offset = op.offset2;
    request.length = op.length;
    auto token = co_await fs.make_dedupe_token(*source_file);
    if (!token) done = fail(token.error());
    if (token) {
      request.token = *token;
      const Caller caller = test_caller();
      auto deduped = co_await fs.dedupe(*target_file, request, caller);
      if (!deduped) done = fail(deduped.error());
      if (deduped) result.value = deduped->bytes;
    }
    co_await close_handle(fs, files, *target_file);
  } else {
    done = fail(target_file.error());
  }
  co_await close_handle(fs, files, *source_file);
  co_return done;
}

Task<Result<>> do_xattr(FileSystem& fs, const Operation& op, OperationResult& result) {
  auto ino = co_await resolve_path(fs, op.path);
  COFS_CO_TRY(ino);
  if (op.kind == OperationKind::kSetXattr) {
    const Caller caller = test_caller();
    std::string value = pattern_bytes(op.seed, 0, op.length);
    auto set = co_await fs.set_xattr(*ino, op.text, std::move(value), (op.flags & 1) != 0,
                                     (op.flags & 2) != 0, caller);
    co_return set;
  }
  if (op.kind == OperationKind::kRemoveXattr) {
    auto removed = co_await fs.remove_xattr(*ino, op.text);
    co_return removed;
  }
  if (op.kind == OperationKind::kGetXattr) {
    auto value = co_await fs.get_xattr(*ino, op.text);
    COFS_CO_TRY(value);
    result.bytes = std::move(*value);
  } else {
    auto names = co_await fs.list_xattrs(*ino);
    COFS_CO_TRY(names);
    result.names = std::move(*names);
  }
  co_return Result<>();
}

Task<Result<>> do_read(FileSystem& fs, const OpenFiles& files, const Operation& op,
                       OperationResult& result) {
  auto ino = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(ino);
  auto data = co_await fs.read(*ino, op.offset, static_cast<uint32_t>(op.length));
  COFS_CO_TRY(data);
  if (data->length != 0) {
    result.bytes.assign(reinterpret_cast<const char*>(data->data()), data->length);
  }
  co_return Result<>();
}

Task<Result<>> do_read_directory(FileSystem& fs, const Operation& op, OperationResult& result) {
  auto ino = co_await resolve_path(fs, op.path);
  COFS_CO_TRY(ino);
  uint64_t cookie = 0;
  while (true) {
    auto entries = co_await fs.read_directory(*ino, cookie, op.length);
    COFS_CO_TRY(entries);
    if (entries->empty()) break;
    for (const DirectoryEntry& entry : *entries) {
      if (entry.cookie <= cookie) co_return fail(Code::kCorrupt, "test: cookies do not ascend");
      cookie = entry.cookie;
      if (entry.name == "." || entry.name == "..") continue;
      result.entries.emplace_back(entry.name, entry.type);
    }
  }
  co_return Result<>();
}

Task<Result<>> do_inquire(FileSystem& fs, const OpenFiles& files, const Operation& op,
                          OperationResult& result) {
  auto ino = co_await resolve_file(fs, files, op);
  COFS_CO_TRY(ino);
  if (op.kind == OperationKind::kStat) {
    auto attributes = co_await fs.get_attributes(*ino);
    COFS_CO_TRY(attributes);
    result.attributes = *attributes;
  } else if (op.kind == OperationKind::kReadSymlink) {
    auto target = co_await fs.read_symlink(*ino);
    COFS_CO_TRY(target);
    result.bytes = std::move(*target);
  } else if (op.kind == OperationKind::kSeekData) {
    auto found = co_await fs.seek_data(*ino, op.offset);
    COFS_CO_TRY(found);
    result.value = *found;
  } else {
    auto found = co_await fs.seek_hole(*ino, op.offset);
    COFS_CO_TRY(found);
    result.value = *found;
  }
  co_return Result<>();
}

Task<Result<>> dispatch(FileSystem& fs, OpenFiles& files, const Operation& op,
                        OperationResult& result) {
  Result<> done;
  switch (op.kind) {
    case OperationKind::kCreate:
    case OperationKind::kMakeDirectory:
    case OperationKind::kMakeNode:
    case OperationKind::kMakeSymlink: done = co_await do_make(fs, op); break;
    case OperationKind::kMakeUnnamed: done = co_await do_make_unnamed(fs, files, op); break;
    case OperationKind::kLink: done = co_await do_link(fs, files, op); break;
    case OperationKind::kUnlink:
    case OperationKind::kRemoveDirectory: done = co_await do_remove(fs, files, op); break;
    case OperationKind::kRename: done = co_await do_rename(fs, files, op); break;
    case OperationKind::kOpen: done = co_await do_open(fs, files, op); break;
    case OperationKind::kClose: done = co_await do_close(fs, files, op); break;
    case OperationKind::kWrite:
    case OperationKind::kAppend: done = co_await do_write(fs, files, op); break;
    case OperationKind::kTruncate:
    case OperationKind::kChmod:
    case OperationKind::kChown:
    case OperationKind::kSetTimes: done = co_await do_set_attributes(fs, files, op); break;
    case OperationKind::kAllocate: done = co_await do_allocate(fs, files, op); break;
    case OperationKind::kCopyRange: done = co_await do_copy(fs, files, op, result); break;
    case OperationKind::kClone: done = co_await do_clone(fs, files, op, result); break;
    case OperationKind::kDedupe: done = co_await do_dedupe(fs, files, op, result); break;
    case OperationKind::kSetXattr:
    case OperationKind::kRemoveXattr:
    case OperationKind::kGetXattr:
    case OperationKind::kListXattrs: done = co_await do_xattr(fs, op, result); break;
    case OperationKind::kRead: done = co_await do_read(fs, files, op, result); break;
    case OperationKind::kReadDirectory: done = co_await do_read_directory(fs, op, result); break;
    case OperationKind::kStat:
    case OperationKind::kReadSymlink:
    case OperationKind::kSeekData:
    case OperationKind::kSeekHole: done = co_await do_inquire(fs, files, op, result); break;
    case OperationKind::kStatfs: result.statistics = co_await fs.statistics(); break;
    case OperationKind::kSync: {
      // Some garbage collection, too: the volumes of these tests are not full. What goes wrong with it the
      // sync says.
      GcRequest request;
      request.victims_max = 1;
      (void)co_await fs.store().collect_garbage(request);
      done = co_await fs.sync();
      break;
    }
    case OperationKind::kCheckpoint: done = co_await fs.store().checkpoint(); break;
    case OperationKind::kPass: break;
  }
  co_return done;
}

}  // namespace

Task<Result<uint64_t>> resolve_path(FileSystem& fs, const std::string& path) {
  uint64_t ino = ondisk::kRootInode;
  size_t start = 1;
  while (start < path.size()) {
    size_t end = path.find('/', start);
    if (end == std::string::npos) end = path.size();
    auto attributes = co_await fs.lookup(ino, path.substr(start, end - start));
    COFS_CO_TRY(attributes);
    ino = attributes->ino;
    start = end + 1;
  }
  co_return ino;
}

Task<OperationResult> perform(FileSystem& fs, OpenFiles& files, const Operation& operation) {
  OperationResult result;
  auto done = co_await dispatch(fs, files, operation, result);
  if (!done) result.error = done.error();
  co_return result;
}

std::string pattern_bytes(uint64_t seed, uint64_t offset, uint64_t length) {
  std::string bytes(length, '\0');
  if (seed == 0) return bytes;
  uint64_t position = 0;
  while (position < length) {
    const uint64_t at = offset + position;
    uint64_t word = mix64(seed, at / 8);
    char raw[8];
    std::memcpy(raw, &word, sizeof raw);
    const uint64_t skip = at % 8;
    const uint64_t n = std::min<uint64_t>(8 - skip, length - position);
    std::memcpy(bytes.data() + position, raw + skip, n);
    position += n;
  }
  return bytes;
}

std::string_view name_of(OperationKind kind) {
  static constexpr std::string_view kNames[] = {
      "create",  "mkdir",  "mknod",    "symlink", "tmpfile",   "link",      "unlink",
      "rmdir",   "rename", "open",     "close",   "write",     "append",    "truncate",
      "alloc",   "copy",   "clone",    "chmod",    "chown",   "utimes",    "setxattr",  "rmxattr",
      "read",    "readdir", "readlink", "stat",    "getxattr",  "listxattr", "seek_data",
      "seek_hole", "dedupe", "statfs", "sync",   "checkpoint", "pass"};
  static_assert(std::size(kNames) == static_cast<size_t>(OperationKind::kPass) + 1);
  return kNames[static_cast<size_t>(kind)];
}

bool changes_tree(OperationKind kind) { return kind < OperationKind::kRead; }

bool is_copy(OperationKind kind) {
  return kind == OperationKind::kCopyRange || kind == OperationKind::kClone;
}

std::string describe(const Operation& op) {
  std::string line(name_of(op.kind));
  if (op.slot >= 0) line += fmt::format(" #{}", op.slot);
  auto shorten = [](const std::string& text) {
    return text.size() <= 40 ? text : fmt::format("{}…({})", text.substr(0, 20), text.size());
  };
  if (!op.path.empty()) line += " " + shorten(op.path);
  if (!op.path2.empty()) line += " -> " + shorten(op.path2);
  if (!op.text.empty()) line += fmt::format(" '{}'", shorten(op.text));
  if (op.offset != 0) line += fmt::format(" offset={}", op.offset);
  if (op.offset2 != 0) line += fmt::format(" offset2={}", op.offset2);
  if (op.length != 0) line += fmt::format(" length={}", op.length);
  if (op.seed != 0) line += fmt::format(" seed={:#x}", op.seed);
  if (op.mode != 0) line += fmt::format(" mode={:o}", op.mode);
  if (op.flags != 0) line += fmt::format(" flags={}", op.flags);
  return line;
}

std::string describe(const std::vector<Operation>& operations) {
  std::string text;
  for (size_t i = 0; i < operations.size(); ++i) {
    text += fmt::format("  {:3}: {}\n", i, describe(operations[i]));
  }
  return text;
}

}  // namespace cofs
