// Reading and changing attributes.

#include <sys/stat.h>

#include "fs/acl.h"
#include "fs/names_impl.h"

namespace cofs {

namespace {

constexpr uint32_t kUserFlags = ondisk::kInodeImmutable | ondisk::kInodeAppend;
constexpr uint32_t kNanosecondsMax = 999'999'999;

// What chattr +i and +a forbid. On append-only files times may become the present's, and the kernel writes back
// its own.
Result<> check_flags(const Inode& inode, const AttributeChange& change) {
  const bool immutable = (inode.flags & ondisk::kInodeImmutable) != 0;
  const bool fixed = (inode.flags & kUserFlags) != 0;
  const bool changes_times = change.access_time || change.modify_time;
  const bool chooses_times = changes_times && !change.times_are_now && !change.change_time;
  if ((fixed && (change.mode || change.uid || change.gid || change.size)) ||
      (immutable && changes_times) || (fixed && chooses_times)) {
    return fail(Code::kNotPermitted, "immutable or append-only file", inode.ino);
  }
  return {};
}

Result<> check_values(const Inode& inode, const AttributeChange& change) {
  if (inode.deleted) return fail(Code::kStale, "inode was deleted", inode.ino);
  if (change.flags && (*change.flags & ~kUserFlags) != 0) {
    return fail(Code::kNotSupported, "inode flags", inode.ino);
  }
  if (change.size && inode.is_directory()) return fail(Code::kIsDirectory, "truncate", inode.ino);
  if (change.size && !inode.is_regular()) return fail(Code::kInvalid, "truncate", inode.ino);
  for (const auto& time : {change.access_time, change.modify_time, change.change_time}) {
    if (time && time->nanoseconds > kNanosecondsMax) return fail(Code::kInvalid, "nanoseconds");
  }
  return check_flags(inode, change);
}

bool changes_owner(const Inode& inode, const AttributeChange& change) {
  return (change.uid && *change.uid != inode.uid) || (change.gid && *change.gid != inode.gid);
}

void apply_change(Inode& inode, const AttributeChange& change, WallTime now) {
  // Linux clears the bits also when the owner of a file is changed by root. A mode that comes along
  // is the kernel's own decision and is final.
  if (change.kill_privileges || ((change.uid || change.gid) && !change.mode)) {
    clear_privileges(inode, false);
  }
  if (change.uid) inode.uid = *change.uid;
  if (change.gid) inode.gid = *change.gid;
  if (change.mode) inode.mode = (inode.mode & S_IFMT) | (*change.mode & 07777);
  if (change.flags) inode.flags = (inode.flags & ~kUserFlags) | *change.flags;
  if (change.access_time) inode.access_time = *change.access_time;
  if (change.modify_time) inode.modify_time = *change.modify_time;
  mark_changed(inode, now, false);
  if (change.change_time) inode.change_time = *change.change_time;
}

bool is_empty(const AttributeChange& change) {
  return !change.mode && !change.uid && !change.gid && !change.size && !change.access_time &&
         !change.modify_time && !change.change_time && !change.flags && !change.kill_privileges;
}

}  // namespace

Task<Result<Attributes>> Names::get_attributes(uint64_t ino) {
  auto inode = co_await impl_->inodes.get(ino);
  COFS_CO_TRY(inode);
  co_return (*inode)->attributes();
}

Task<Result<Attributes>> Names::set_attributes(uint64_t ino, AttributeChange change,
                                               Caller caller) {
  Impl& my = *impl_;
  auto bounded = co_await my.bound_dirty();
  COFS_CO_TRY(bounded);
  auto ref = co_await my.inodes.get(ino);
  COFS_CO_TRY(ref);
  Inode& inode = **ref;
  const SharedMutex::Guard guard = co_await inode.lock.lock_exclusive();
  auto checked = check_values(inode, change);
  COFS_CO_TRY(checked);
  if (is_empty(change)) co_return inode.attributes();
  if (my.store.read_only()) co_return fail(Code::kReadOnly, "change of attributes", ino);
  if (my.store.shut_down()) co_return fail(Code::kShutdown, "change of attributes", ino);

  if (change.size) {
    const PrivilegeKill kill(inode, Unprivileged(change.kill_privileges, caller.gid));
    auto sized = co_await my.files.set_size(inode, *change.size);
    COFS_CO_TRY(sized);
  }
  if (change.kill_privileges || changes_owner(inode, change)) {
    auto dropped = co_await drop_capability(my.store, inode);
    COFS_CO_TRY(dropped);
  }
  if (change.mode) {
    auto changed = co_await my.change_acl_mode(inode, *change.mode);
    COFS_CO_TRY(changed);
  }
  apply_change(inode, change, my.environment.clock.wall());
  co_return inode.attributes();
}

// ACL and mode change together: the mode is set before the transaction is gone.
Task<Result<>> Names::Impl::change_acl_mode(Inode& inode, uint32_t mode) {
  if ((inode.flags & ondisk::kInodeHasXattrs) == 0) co_return Result<>();
  const std::string name(kAccessAclName);
  auto slot = co_await find_xattr(store, inode.ino, &name);
  COFS_CO_TRY(slot);
  if (!slot->found) co_return Result<>();
  auto acl = Acl::parse(slot->value);
  if (!acl) co_return fail(Code::kCorrupt, "access ACL", inode.ino);
  acl->apply_mode(mode);
  const std::string value = acl->serialize();
  auto transaction = co_await store.begin(Cost(0, xattr_cost_bytes(name, value.size())),
                                          SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  put_xattr(*transaction, inode.ino, name, value, *slot);
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);
  inode.mode = (inode.mode & S_IFMT) | (mode & 07777);
  mark_changed(inode, environment.clock.wall(), false);
  co_return Result<>();
}

}  // namespace cofs
