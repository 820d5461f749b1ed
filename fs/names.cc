#include "fs/names.h"

#include "fs/names_impl.h"

namespace cofs {

Names::Names(Store& store, InodeTable& inodes, Files& files, Environment& environment,
             const FsOptions& options)
    : impl_(std::make_unique<Impl>(store, inodes, files, environment, options)) {}

Names::~Names() = default;

Task<Result<>> Names::Impl::bound_dirty() {
  if (!inodes.wants_commit()) co_return Result<>();
  co_return co_await store.commit();
}

Task<Result<InodeRef>> Names::Impl::directory(uint64_t ino) {
  auto inode = co_await inodes.get(ino);
  COFS_CO_TRY(inode);
  if (!(*inode)->is_directory()) co_return fail(Code::kNotDirectory, "parent", ino);
  co_return inode;
}

Result<> check_may_add(const Inode& directory) {
  if (directory.deleted || directory.nlink == 0) {
    return fail(Code::kNoEntry, "directory was removed", directory.ino);
  }
  if ((directory.flags & ondisk::kInodeImmutable) != 0) {
    return fail(Code::kNotPermitted, "immutable directory", directory.ino);
  }
  return {};
}

Result<> check_may_remove(const Inode& directory, const Inode& victim) {
  constexpr uint32_t kFixed = ondisk::kInodeImmutable | ondisk::kInodeAppend;
  if ((directory.flags & kFixed) != 0) {
    return fail(Code::kNotPermitted, "immutable or append-only directory", directory.ino);
  }
  if ((victim.flags & kFixed) != 0) {
    return fail(Code::kNotPermitted, "immutable or append-only file", victim.ino);
  }
  return {};
}

Task<Result<InodeRef>> Names::Impl::entry_inode(uint64_t ino) {
  auto inode = co_await inodes.get(ino);
  if (!inode && inode.error().code == Code::kStale) {
    co_return fail(Code::kCorrupt, "entry without an inode", ino);
  }
  co_return inode;
}

Task<Result<>> Names::Impl::lock_entry(uint64_t parent, const std::string* name,
                                       LockedEntry* out) {
  auto directory_ref = co_await directory(parent);
  COFS_CO_TRY(directory_ref);
  out->parent = *directory_ref;
  for (;;) {
    out->first = co_await out->parent->lock.lock_exclusive();
    auto slot = co_await find_entry(store, parent, name);
    COFS_CO_TRY(slot);
    if (!slot->found) co_return fail(Code::kNoEntry, "no such name", parent);
    auto child = co_await entry_inode(slot->ino);
    COFS_CO_TRY(child);
    out->child = *child;
    out->slot = *slot;
    if (slot->ino == parent) co_return fail(Code::kCorrupt, "directory inside itself", parent);
    if (slot->ino > parent) {
      out->second = co_await out->child->lock.lock_exclusive();
      co_return Result<>();
    }
    // The child comes first in the lock order: start over with both, and see if it still is there.
    out->first.release();
    out->first = co_await out->child->lock.lock_exclusive();
    out->second = co_await out->parent->lock.lock_exclusive();
    auto again = co_await find_entry(store, parent, name);
    COFS_CO_TRY(again);
    out->slot = *again;
    if (again->found && again->ino == out->child->ino) co_return Result<>();
    out->second.release();
    out->first.release();
  }
}

void Names::Impl::touch_access_time(Inode& inode) {
  if (options.read_only || store.shut_down()) return;
  if (inode.is_directory() && !options.directory_access_times) return;
  const WallTime now = environment.clock.wall();
  if (!should_update_access_time(inode, now, options.access_times)) return;
  inode.access_time = now;
  inodes.mark_dirty(inode);
}

Task<Result<Attributes>> Names::lookup(uint64_t parent, std::string name) {
  Impl& my = *impl_;
  auto checked = check_name(name);
  COFS_CO_TRY(checked);
  if (name == ".") {  // of any inode: so the kernel finds what a file handle names
    auto self = co_await my.inodes.get(parent);
    COFS_CO_TRY(self);
    if ((*self)->nlink == 0) co_return fail(Code::kStale, "no name is left", parent);
    co_return (*self)->attributes();
  }
  auto directory = co_await my.directory(parent);
  COFS_CO_TRY(directory);
  const SharedMutex::Guard guard = co_await (*directory)->lock.lock_shared();
  uint64_t ino = (*directory)->parent;
  if (name != "..") {
    if ((*directory)->nlink == 0) co_return fail(Code::kNoEntry, "directory was removed", parent);
    auto slot = co_await find_entry(my.store, parent, &name);
    COFS_CO_TRY(slot);
    if (!slot->found) co_return fail(Code::kNoEntry, "no such name", parent);
    ino = slot->ino;
  }
  auto child = co_await my.entry_inode(ino);
  COFS_CO_TRY(child);
  co_return (*child)->attributes();
}

Task<Result<std::string>> Names::read_symlink(uint64_t ino) {
  Impl& my = *impl_;
  auto inode = co_await my.inodes.get(ino);
  COFS_CO_TRY(inode);
  if (!(*inode)->is_symlink()) co_return fail(Code::kInvalid, "not a symlink", ino);
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_shared();
  my.touch_access_time(**inode);
  if (((*inode)->flags & ondisk::kInodeInline) != 0) co_return (*inode)->inline_data;
  const std::string name(kSymlinkXattr);
  auto slot = co_await find_xattr(my.store, ino, &name);
  COFS_CO_TRY(slot);
  if (!slot->found || slot->value.size() != (*inode)->size) {
    co_return fail(Code::kCorrupt, "symlink's target", ino);
  }
  co_return std::move(slot->value);
}

Task<Result<std::vector<DirectoryEntry>>> Names::read_directory(uint64_t ino, uint64_t cookie,
                                                                uint64_t limit) {
  Impl& my = *impl_;
  auto directory = co_await my.directory(ino);
  COFS_CO_TRY(directory);
  const SharedMutex::Guard guard = co_await (*directory)->lock.lock_shared();
  if (cookie == 0) my.touch_access_time(**directory);

  std::vector<DirectoryEntry> entries;
  const auto add_dot = [&](const char* name, uint64_t target, uint64_t own_cookie) {
    if (cookie >= own_cookie || entries.size() >= limit) return;
    DirectoryEntry& entry = entries.emplace_back();
    entry.name = name;
    entry.ino = target;
    entry.type = entry_type((*directory)->mode);
    entry.cookie = own_cookie;
  };
  add_dot(".", ino, kCookieDot);
  add_dot("..", (*directory)->parent, kCookieDotDot);
  if (entries.size() >= limit || (*directory)->size == 0) co_return entries;
  auto stored = co_await list_entries(my.store, ino, cookie, limit - entries.size());
  COFS_CO_TRY(stored);
  if (entries.empty()) co_return stored;
  entries.insert(entries.end(), std::make_move_iterator(stored->begin()),
                 std::make_move_iterator(stored->end()));
  co_return entries;
}

Task<Result<Attributes>> Names::open_file(uint64_t ino, OpenIntent intent) {
  Impl& my = *impl_;
  if (intent.truncate) {
    auto bounded = co_await my.bound_dirty();
    COFS_CO_TRY(bounded);
  }
  auto inode = co_await my.inodes.get(ino);
  COFS_CO_TRY(inode);
  Inode& file = **inode;
  const bool fixed = (file.flags & ondisk::kInodeImmutable) != 0;
  const bool only_appends = (file.flags & ondisk::kInodeAppend) != 0;
  if (intent.write && !file.is_directory() && (fixed || (only_appends && !intent.append))) {
    co_return fail(Code::kNotPermitted, "immutable or append-only file", ino);
  }
  file.open_count++;
  if (!intent.truncate) co_return file.attributes();

  Result<> result;
  {
    const SharedMutex::Guard guard = co_await file.lock.lock_exclusive();
    if (file.deleted) {
      result = fail(Code::kStale, "inode was deleted", ino);
    } else if (file.is_directory()) {
      result = fail(Code::kIsDirectory, "truncate", ino);
    } else if ((file.flags & (ondisk::kInodeImmutable | ondisk::kInodeAppend)) != 0) {
      result = fail(Code::kNotPermitted, "immutable or append-only file", ino);
    } else if (file.is_regular()) {
      if (intent.kill_privileges) result = co_await drop_capability(my.store, file);
      const PrivilegeKill kill(file, intent.kill_privileges);
      if (result) result = co_await my.files.set_size(file, 0);
    }
  }
  if (!result) {
    co_await close_file(ino);
    co_return fail(result.error());
  }
  co_return file.attributes();
}

Task<> Names::close_file(uint64_t ino) {
  Impl& my = *impl_;
  Inode* resident = my.inodes.find_resident(ino);
  COFS_ASSERT(resident != nullptr && resident->open_count > 0);
  const InodeRef inode(resident);
  if (--inode->open_count > 0) co_return;
  const auto orphan = my.orphans.find(ino);
  if (orphan == my.orphans.end() || !orphan->second.forgotten || my.free_later(ino)) co_return;
  co_await my.free_inode(ino);
}

}  // namespace cofs
