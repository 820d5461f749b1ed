// The xattr operations, with the ACLs among them.

#include <sys/stat.h>

#include "fs/acl.h"
#include "fs/names_impl.h"

namespace cofs {

namespace {

bool is_acl_name(std::string_view name) {
  return name == kAccessAclName || name == kDefaultAclName;
}

Result<> check_may_change(const Inode& inode, const std::string& name) {
  if (inode.deleted) return fail(Code::kStale, "inode was deleted", inode.ino);
  auto checked = check_xattr_name(name, inode.mode);
  COFS_TRY(checked);
  if ((inode.flags & (ondisk::kInodeImmutable | ondisk::kInodeAppend)) != 0) {
    return fail(Code::kNotPermitted, "immutable or append-only file", inode.ino);
  }
  return {};
}

// kUnknown: no such value.
CloneChoice parse_clone_choice(std::string_view value) {
  if (value == "share") return CloneChoice::kShare;
  return value == "device" ? CloneChoice::kDevice : CloneChoice::kUnknown;
}

// What is to be stored for an ACL, and the mode that comes with it.
struct FoldedAcl {
  std::string value;  // empty: nothing is stored
  uint32_t mode = 0;
  FoldedAcl() = default;
};

Result<FoldedAcl> fold_acl(const Inode& inode, const std::string& name, const std::string& value,
                           const Caller& caller) {
  FoldedAcl out;
  out.mode = inode.mode;
  auto acl = Acl::parse(value);
  COFS_TRY(acl);
  if (name == kDefaultAclName) {
    if (!acl->empty() && !inode.is_directory()) {
      return fail(Code::kAccess, "default ACL of a file", inode.ino);
    }
    if (!acl->empty()) out.value = acl->serialize();
    return out;
  }
  if (acl->empty()) return out;
  out.mode = (inode.mode & ~0777U) | acl->mode_bits();
  // As chmod(2): who is not in the file's group cannot keep its setgid bit.
  if (caller.uid != 0 && !caller.in_group(inode.gid)) out.mode &= ~static_cast<uint32_t>(S_ISGID);
  if (!acl->equals_mode()) out.value = acl->serialize();
  return out;
}

}  // namespace

Task<Result<std::string>> Names::get_xattr(uint64_t ino, std::string name) {
  Impl& my = *impl_;
  auto inode = co_await my.inodes.get(ino);
  COFS_CO_TRY(inode);
  auto checked = check_xattr_name(name, (*inode)->mode);
  if (!checked && checked.error().code == Code::kNotPermitted) {
    co_return fail(Code::kNoAttribute, "user attribute of a special file", ino);
  }
  COFS_CO_TRY(checked);
  // The usual question: security.capability, before each write. Answered without a wait.
  if (((*inode)->flags & ondisk::kInodeHasXattrs) == 0) {
    co_return fail(Code::kNoAttribute, "no such attribute", ino);
  }
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_shared();
  auto slot = co_await find_xattr(my.store, ino, &name);
  COFS_CO_TRY(slot);
  if (!slot->found) co_return fail(Code::kNoAttribute, "no such attribute", ino);
  co_return std::move(slot->value);
}

Task<Result<std::vector<std::string>>> Names::list_xattrs(uint64_t ino) {
  Impl& my = *impl_;
  auto inode = co_await my.inodes.get(ino);
  COFS_CO_TRY(inode);
  if (((*inode)->flags & ondisk::kInodeHasXattrs) == 0) co_return std::vector<std::string>();
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_shared();
  auto names = co_await list_xattr_names(my.store, ino);
  co_return names;
}

Task<Result<>> Names::set_xattr(uint64_t ino, std::string name, std::string value,
                                bool create_only, bool replace_only, Caller caller) {
  Impl& my = *impl_;
  if (value.size() > kXattrValueMax) co_return fail(Code::kTooBig, "attribute value", ino);
  if (create_only && replace_only) co_return fail(Code::kInvalid, "attribute flags", ino);
  auto bounded = co_await my.bound_dirty();
  COFS_CO_TRY(bounded);
  auto inode = co_await my.inodes.get(ino);
  COFS_CO_TRY(inode);
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_exclusive();
  auto checked = check_may_change(**inode, name);
  COFS_CO_TRY(checked);
  if (name == kCloneXattr && parse_clone_choice(value) == CloneChoice::kUnknown) {
    co_return fail(Code::kInvalid, "user.cofs.clone is neither \"share\" nor \"device\"", ino);
  }
  auto slot = co_await find_xattr(my.store, ino, &name);
  COFS_CO_TRY(slot);
  if (slot->found && create_only) co_return fail(Code::kExists, "attribute", ino);
  if (!slot->found && replace_only) co_return fail(Code::kNoAttribute, "attribute", ino);

  XattrChange change;
  change.name = &name;
  change.mode = (*inode)->mode;
  change.store = true;
  if (is_acl_name(name)) {
    auto folded = fold_acl(**inode, name, value, caller);
    COFS_CO_TRY(folded);
    value = std::move(folded->value);
    change.mode = folded->mode;
    change.store = !value.empty();
  }
  change.value = &value;
  if (change.store && !slot->found && slot->index >= kXattrIndexMax) {
    co_return fail(Code::kNoSpace, "attributes with one hash", ino);
  }
  auto changed = co_await my.change_xattr(**inode, &change, &*slot);
  co_return changed;
}

// Asked by every copy and creation: kept in the inode, and free where there are no attributes.
Task<Result<CloneChoice>> Names::Impl::clone_choice(Inode& inode) {
  if (inode.clone_choice != CloneChoice::kUnknown) co_return inode.clone_choice;
  CloneChoice choice = CloneChoice::kMount;
  if ((inode.flags & ondisk::kInodeHasXattrs) != 0) {
    const std::string name(kCloneXattr);
    auto slot = co_await find_xattr(store, inode.ino, &name);
    COFS_CO_TRY(slot);
    const CloneChoice stored = slot->found ? parse_clone_choice(slot->value) : CloneChoice::kUnknown;
    if (stored != CloneChoice::kUnknown) choice = stored;
  }
  inode.clone_choice = choice;
  co_return choice;
}

Task<Result<CloneChoice>> Names::clone_choice(Inode& inode) { return impl_->clone_choice(inode); }

Task<Result<bool>> Names::may_write(Inode& inode, Caller caller) {
  constexpr uint16_t kWrite = 2;
  if ((inode.flags & ondisk::kInodeHasXattrs) != 0) {
    const std::string name(kAccessAclName);
    auto slot = co_await find_xattr(impl_->store, inode.ino, &name);
    COFS_CO_TRY(slot);
    if (slot->found) {
      auto acl = Acl::parse(slot->value);
      if (!acl) co_return fail(Code::kCorrupt, "access ACL", inode.ino);
      co_return acl->permits(kWrite, inode.uid, inode.gid, caller);
    }
  }
  uint32_t shift = 0;
  if (caller.uid == inode.uid) {
    shift = 6;
  } else if (caller.in_group(inode.gid)) {
    shift = 3;
  }
  co_return ((inode.mode >> shift) & kWrite) != 0;
}

Task<Result<>> Names::remove_xattr(uint64_t ino, std::string name) {
  Impl& my = *impl_;
  auto bounded = co_await my.bound_dirty();
  COFS_CO_TRY(bounded);
  auto inode = co_await my.inodes.get(ino);
  COFS_CO_TRY(inode);
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_exclusive();
  auto checked = check_may_change(**inode, name);
  COFS_CO_TRY(checked);
  auto slot = co_await find_xattr(my.store, ino, &name);
  COFS_CO_TRY(slot);
  if (!slot->found && is_acl_name(name)) co_return Result<>();  // as Linux
  if (!slot->found) co_return fail(Code::kNoAttribute, "no such attribute", ino);
  XattrChange change;
  change.name = &name;
  change.mode = (*inode)->mode;
  auto changed = co_await my.change_xattr(**inode, &change, &*slot);
  co_return changed;
}

Task<Result<>> Names::Impl::change_xattr(Inode& inode, const XattrChange* change,
                                         const XattrSlot* slot) {
  uint32_t flags = inode.flags | ondisk::kInodeHasXattrs;
  if (!change->store) {
    auto others = co_await has_xattrs_beyond(store, inode.ino, slot->parts);
    COFS_CO_TRY(others);
    if (!*others) flags &= ~ondisk::kInodeHasXattrs;
  }
  const uint64_t cost = change->store ? xattr_cost_bytes(*change->name, change->value->size()) : 0;
  auto transaction = co_await store.begin(
      Cost(0, cost), change->store ? SpaceClass::kUser : SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  if (change->store) {
    put_xattr(*transaction, inode.ino, *change->name, *change->value, *slot);
  } else if (slot->found) {
    erase_xattr(*transaction, inode.ino, *change->name, *slot);
  }
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);
  inode.flags = flags;
  inode.mode = change->mode;
  if (*change->name == kCloneXattr) inode.clone_choice = CloneChoice::kUnknown;
  mark_changed(inode, environment.clock.wall(), false);
  co_return Result<>();
}

}  // namespace cofs
