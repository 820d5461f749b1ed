// New objects: files, directories, nodes, symlinks, unnamed files.

#include <sys/stat.h>

#include "fs/acl.h"
#include "fs/names_impl.h"

namespace cofs {

namespace {

// Mode, group and ACLs that a new object gets from the request and its directory.
struct Heritage {
  uint32_t mode = 0;
  uint32_t gid = 0;
  std::string access_acl;   // empty: none
  std::string default_acl;  // empty: none
  std::string_view clone;   // value of kCloneXattr; empty: none
  Heritage() = default;
};

// POSIX.1e and Linux: with a default ACL on the directory the umask does not count. S_ISGID in the
// requested mode is final: Linux (6.0 and later) has already dropped it where the caller may not set it.
Result<Heritage> inherit(const Inode& directory, const NewObject& object,
                         const XattrSlot& parent_default, CloneChoice clone) {
  Heritage out;
  if (S_ISREG(object.mode) || S_ISDIR(object.mode)) {
    if (clone == CloneChoice::kShare) out.clone = "share";
    if (clone == CloneChoice::kDevice) out.clone = "device";
  }
  out.mode = object.mode;
  out.gid = object.caller->gid;
  const bool makes_directory = S_ISDIR(object.mode);
  if ((directory.mode & S_ISGID) != 0) {
    out.gid = directory.gid;
    if (makes_directory) out.mode |= S_ISGID;
  }
  if (S_ISLNK(object.mode)) {
    out.mode |= 0777;
    return out;
  }
  if (!parent_default.found) {
    out.mode &= ~(object.caller->umask & 0777U);
    return out;
  }
  auto acl = Acl::parse(parent_default.value);
  if (!acl) return fail(Code::kCorrupt, "default ACL", directory.ino);
  out.mode = acl->create(out.mode);
  if (!acl->equals_mode()) out.access_acl = acl->serialize();
  if (makes_directory) out.default_acl = parent_default.value;
  return out;
}

uint64_t cost_bytes(const NewObject& object, const Heritage& heritage) {
  uint64_t bytes = inode_cost_bytes(0) + kOrphanCostBytes;
  if (object.name != nullptr) bytes += entry_cost_bytes(*object.name);
  if (object.target != nullptr) bytes += xattr_cost_bytes(kSymlinkXattr, object.target->size());
  if (!heritage.access_acl.empty()) {
    bytes += xattr_cost_bytes(kAccessAclName, heritage.access_acl.size());
  }
  if (!heritage.default_acl.empty()) {
    bytes += xattr_cost_bytes(kDefaultAclName, heritage.default_acl.size());
  }
  if (!heritage.clone.empty()) bytes += xattr_cost_bytes(kCloneXattr, heritage.clone.size());
  return bytes;
}

void put_first_xattr(Transaction& transaction, Inode& inode, std::string_view name,
                     std::string_view value, uint16_t* taken) {
  XattrSlot slot;
  // The names of one new inode do not share a hash, except by an accident that is avoided here.
  slot.index = (*taken)++;
  put_xattr(transaction, inode.ino, name, value, slot);
  inode.flags |= ondisk::kInodeHasXattrs;
}

// Fills the new inode and adds what belongs to it, its own record apart.
void put_object(Transaction& transaction, Inode& inode, const Inode& directory,
                const NewObject& object, const Heritage& heritage) {
  inode.uid = object.caller->uid;
  inode.gid = heritage.gid;
  inode.rdev = object.rdev;
  inode.nlink = object.name == nullptr ? 0 : 1;
  if (inode.is_directory()) {
    inode.nlink = 2;
    inode.parent = directory.ino;
  }
  uint16_t index = 0;
  if (object.target != nullptr) {
    inode.size = object.target->size();
    if (object.target->size() <= ondisk::kInlineDataMax) {
      inode.inline_data = *object.target;
      inode.flags |= ondisk::kInodeInline;
    } else {
      put_first_xattr(transaction, inode, kSymlinkXattr, *object.target, &index);
    }
  }
  if (!heritage.access_acl.empty()) {
    put_first_xattr(transaction, inode, kAccessAclName, heritage.access_acl, &index);
  }
  if (!heritage.default_acl.empty()) {
    put_first_xattr(transaction, inode, kDefaultAclName, heritage.default_acl, &index);
  }
  if (!heritage.clone.empty()) {
    put_first_xattr(transaction, inode, kCloneXattr, heritage.clone, &index);
  }
}

bool known_type(uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK: return true;
    default: return false;
  }
}

}  // namespace

Task<Result<Attributes>> Names::Impl::make(uint64_t parent, NewObject* object) {
  auto bounded = co_await bound_dirty();
  COFS_CO_TRY(bounded);
  auto directory_ref = co_await directory(parent);
  COFS_CO_TRY(directory_ref);
  Inode& dir = **directory_ref;
  const SharedMutex::Guard guard = co_await dir.lock.lock_exclusive();

  EntrySlot slot;
  if (object->name != nullptr) {
    if (dir.deleted || dir.nlink == 0) {
      co_return fail(Code::kNoEntry, "directory was removed", parent);
    }
    auto found = co_await find_entry(store, parent, object->name);
    COFS_CO_TRY(found);
    slot = *found;
    if (slot.found && !object->may_exist) co_return fail(Code::kExists, "name", slot.ino);
    if (slot.found) {
      auto existing = co_await entry_inode(slot.ino);
      COFS_CO_TRY(existing);
      object->existed = true;
      co_return (*existing)->attributes();
    }
    if (slot.full()) co_return fail(Code::kTooManyLinks, "names with one hash", parent);
  }
  auto allowed = check_may_add(dir);
  COFS_CO_TRY(allowed);
  const bool makes_directory = S_ISDIR(object->mode);
  if (makes_directory && dir.nlink >= kLinksMax) {
    co_return fail(Code::kTooManyLinks, "subdirectories", parent);
  }

  XattrSlot parent_default;
  if ((dir.flags & ondisk::kInodeHasXattrs) != 0) {
    const std::string acl_name(kDefaultAclName);
    auto found = co_await find_xattr(store, parent, &acl_name);
    COFS_CO_TRY(found);
    parent_default = std::move(*found);
  }
  auto clone = co_await clone_choice(dir);
  COFS_CO_TRY(clone);
  auto heritage = inherit(dir, *object, parent_default, *clone);
  COFS_CO_TRY(heritage);

  auto transaction =
      co_await store.begin(Cost(0, cost_bytes(*object, *heritage)), SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  const InodeRef inode = inodes.create(heritage->mode);
  put_object(*transaction, *inode, dir, *object, *heritage);
  if (object->name != nullptr) {
    put_entry(*transaction, parent, slot, *object->name, inode->ino, entry_type(inode->mode));
  } else {
    transaction->put(Key::orphan(inode->ino), {});
    orphans[inode->ino].linkable = true;  // before it can be seen in the tree: free_orphans()
  }
  auto applied = co_await transaction->apply();
  if (!applied) {
    orphans.erase(inode->ino);
    inodes.mark_deleted(*inode);
    co_return fail(applied.error());
  }
  if (object->name != nullptr) {
    dir.size++;
    if (makes_directory) dir.nlink++;
    mark_changed(dir, inode->birth_time, true);
  }
  co_return inode->attributes();
}

Task<Result<Attributes>> Names::create(uint64_t parent, std::string name, uint32_t mode,
                                       Caller caller, bool exclusive, bool* created) {
  auto checked = check_name(name);
  COFS_CO_TRY(checked);
  if (is_dot_name(name)) co_return fail(Code::kExists, "dot name", parent);
  NewObject object;
  object.name = &name;
  object.mode = S_IFREG | (mode & 07777);
  object.caller = &caller;
  object.may_exist = !exclusive;
  auto attributes = co_await impl_->make(parent, &object);
  if (created != nullptr) *created = attributes.has_value() && !object.existed;
  if (attributes && !S_ISREG(attributes->mode)) {
    const Code code = S_ISDIR(attributes->mode) ? Code::kIsDirectory : Code::kExists;
    co_return fail(code, "what is there is no regular file", attributes->ino);
  }
  co_return attributes;
}

Task<Result<Attributes>> Names::make_node(uint64_t parent, std::string name, uint32_t mode,
                                          uint64_t rdev, std::string symlink_target,
                                          Caller caller) {
  auto checked = check_name(name);
  COFS_CO_TRY(checked);
  if (is_dot_name(name)) co_return fail(Code::kExists, "dot name", parent);
  if ((mode & S_IFMT) == 0) mode |= S_IFREG;  // as mknod(2)
  if (!known_type(mode)) co_return fail(Code::kInvalid, "file type", mode);
  if (S_ISLNK(mode)) {
    if (symlink_target.empty()) co_return fail(Code::kNoEntry, "empty symlink target");
    if (symlink_target.size() > kSymlinkTargetMax) {
      co_return fail(Code::kNameTooLong, "symlink target");
    }
    if (symlink_target.find('\0') != symlink_target.npos) {
      co_return fail(Code::kInvalid, "NUL in a symlink target");
    }
  }
  NewObject object;
  object.name = &name;
  object.mode = mode & static_cast<uint32_t>(S_IFMT | 07777);
  object.rdev = S_ISCHR(mode) || S_ISBLK(mode) ? rdev : 0;
  if (S_ISLNK(mode)) object.target = &symlink_target;
  object.caller = &caller;
  auto attributes = co_await impl_->make(parent, &object);
  co_return attributes;
}

Task<Result<Attributes>> Names::make_unnamed(uint64_t parent, uint32_t mode, Caller caller) {
  NewObject object;
  object.mode = S_IFREG | (mode & 07777);
  object.caller = &caller;
  auto attributes = co_await impl_->make(parent, &object);
  co_return attributes;
}

}  // namespace cofs
