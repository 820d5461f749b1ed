// rename, in all its forms.
//
// The inodes involved are known only after the names were looked up, and the lock order is by number:
// so both names are looked up without locks, everything is locked, and both are looked up again; if
// they changed, all over. A move between two directories holds the rename mutex from the start, so
// that no directory's parent changes while the ancestors of the new place are walked.

#include <sys/stat.h>

#include <algorithm>

#include "fs/names_impl.h"

namespace cofs {

namespace {

constexpr uint32_t kNoReplace = static_cast<uint32_t>(RenameFlags::kNoReplace);
constexpr uint32_t kExchange = static_cast<uint32_t>(RenameFlags::kExchange);
constexpr uint32_t kWhiteout = static_cast<uint32_t>(RenameFlags::kWhiteout);
constexpr uint32_t kDepthMax = 1U << 20;  // of directories: beyond it, a cycle

// One rename under way. The guards are the last members, so that they go before the refs.
struct Rename {
  const std::string* source_name = nullptr;
  const std::string* target_name = nullptr;
  uint32_t flags = 0;
  InodeRef source_parent;
  InodeRef target_parent;
  InodeRef source;
  InodeRef target;  // empty: nothing there
  EntrySlot source_slot;
  EntrySlot target_slot;
  Mutex::Guard rename_guard;
  std::vector<SharedMutex::Guard> guards;
  Rename() = default;

  bool exchange() const { return (flags & kExchange) != 0; }
  bool whiteout() const { return (flags & kWhiteout) != 0; }
  bool same_parent() const { return source_parent.get() == target_parent.get(); }
};

Result<> check_request(const std::string& name, const std::string& new_name, uint32_t flags) {
  if ((flags & ~(kNoReplace | kExchange | kWhiteout)) != 0) {
    return fail(Code::kInvalid, "rename flags", flags);
  }
  if ((flags & kExchange) != 0 && (flags & (kNoReplace | kWhiteout)) != 0) {
    return fail(Code::kInvalid, "rename flags", flags);
  }
  auto checked = check_name(name);
  COFS_TRY(checked);
  checked = check_name(new_name);
  COFS_TRY(checked);
  if (is_dot_name(name)) return fail(Code::kBusy, "rename of a dot name");
  if (is_dot_name(new_name)) {
    return fail((flags & kNoReplace) != 0 ? Code::kExists : Code::kBusy, "rename to a dot name");
  }
  return {};
}

// Looks both names up; *changed tells whether they name something else than in `work`.
Task<Result<>> find_names(Store& store, Rename* work, bool* changed) {
  auto source = co_await find_entry(store, work->source_parent->ino, work->source_name);
  COFS_CO_TRY(source);
  auto target = co_await find_entry(store, work->target_parent->ino, work->target_name);
  COFS_CO_TRY(target);
  const auto same = [](const EntrySlot& a, const EntrySlot& b) {
    return a.found == b.found && (!a.found || a.ino == b.ino);
  };
  *changed = !same(*source, work->source_slot) || !same(*target, work->target_slot);
  work->source_slot = *source;
  work->target_slot = *target;
  co_return Result<>();
}

Task<> lock_all(Rename* work) {
  std::vector<Inode*> inodes = {work->source_parent.get(), work->target_parent.get(),
                                work->source.get()};
  if (work->target) inodes.push_back(work->target.get());
  std::ranges::sort(inodes, {}, &Inode::ino);
  const auto duplicates = std::ranges::unique(inodes);
  inodes.erase(duplicates.begin(), duplicates.end());
  for (Inode* inode : inodes) {
    SharedMutex::Guard guard = co_await inode->lock.lock_exclusive();
    work->guards.push_back(std::move(guard));
  }
}

// Whether both names may take part at all.
Result<> check_presence(const Rename& work) {
  if (work.source_parent->nlink == 0 || work.target_parent->nlink == 0) {
    return fail(Code::kNoEntry, "directory was removed");
  }
  if (!work.source_slot.found) return fail(Code::kNoEntry, "old name");
  if (work.exchange() && !work.target_slot.found) return fail(Code::kNoEntry, "new name");
  if ((work.flags & kNoReplace) != 0 && work.target_slot.found) {
    return fail(Code::kExists, "new name", work.target_slot.ino);
  }
  return {};
}

// Whether the source may take the target's place.
Result<> check_kinds(const Rename& work) {
  if (!work.target || work.exchange()) return {};
  const bool moves_directory = work.source->is_directory();
  if (moves_directory && !work.target->is_directory()) {
    return fail(Code::kNotDirectory, "new name", work.target->ino);
  }
  if (!moves_directory && work.target->is_directory()) {
    return fail(Code::kIsDirectory, "new name", work.target->ino);
  }
  if (moves_directory && work.target->size != 0) {
    return fail(Code::kNotEmpty, "new name", work.target->ino);
  }
  return {};
}

Result<> check_flags(const Rename& work) {
  auto checked = check_may_remove(*work.source_parent, *work.source);
  COFS_TRY(checked);
  return work.target ? check_may_remove(*work.target_parent, *work.target)
                     : check_may_add(*work.target_parent);
}

// Whether a directory gains a subdirectory too many.
Result<> check_links(const Rename& work) {
  if (work.same_parent()) return {};
  const bool source_moves = work.source->is_directory();
  const bool target_is_directory = work.target && work.target->is_directory();
  if (source_moves && !target_is_directory && work.target_parent->nlink >= kLinksMax) {
    return fail(Code::kTooManyLinks, "subdirectories", work.target_parent->ino);
  }
  if (work.exchange() && target_is_directory && !source_moves &&
      work.source_parent->nlink >= kLinksMax) {
    return fail(Code::kTooManyLinks, "subdirectories", work.source_parent->ino);
  }
  return {};
}

// kInvalid if `inode` is `directory` or above it. Parents hold still: the rename mutex is held.
Task<Result<>> check_not_above(InodeTable& inodes, uint64_t inode, uint64_t directory) {
  uint64_t at = directory;
  for (uint32_t depth = 0; depth < kDepthMax; depth++) {
    if (at == inode) co_return fail(Code::kInvalid, "directory into its own subtree", inode);
    if (at == ondisk::kRootInode) co_return Result<>();
    auto next = co_await inodes.get(at);
    COFS_CO_TRY(next);
    at = (*next)->parent;
  }
  co_return fail(Code::kCorrupt, "directories in a cycle", directory);
}

Task<Result<>> check_ancestors(InodeTable& inodes, const Rename* work) {
  if (work->same_parent()) co_return Result<>();
  if (work->source->is_directory()) {
    auto outside = co_await check_not_above(inodes, work->source->ino, work->target_parent->ino);
    COFS_CO_TRY(outside);
  }
  if (work->exchange() && work->target->is_directory()) {
    auto outside = co_await check_not_above(inodes, work->target->ino, work->source_parent->ino);
    COFS_CO_TRY(outside);
  }
  co_return Result<>();
}

// With everything locked. Two names of one file are no error, and nothing is to be done for them.
Task<Result<>> check_rename(InodeTable& inodes, const Rename* work) {
  auto checked = co_await check_ancestors(inodes, work);
  COFS_CO_TRY(checked);
  checked = check_kinds(*work);
  COFS_CO_TRY(checked);
  checked = check_flags(*work);
  COFS_CO_TRY(checked);
  checked = check_links(*work);
  COFS_CO_TRY(checked);
  if (work->target_slot.full()) {
    co_return fail(Code::kTooManyLinks, "names with one hash", work->target_parent->ino);
  }
  co_return Result<>();
}

// A directory went from one parent to another.
void move_directory(Inode& inode, Inode& from, Inode& to) {
  if (!inode.is_directory() || &from == &to) return;
  inode.parent = to.ino;
  if (from.nlink > 2) from.nlink--;
  to.nlink++;
}

void put_exchange(Transaction& transaction, const Rename& work) {
  put_entry(transaction, work.source_parent->ino, work.source_slot, *work.source_name,
            work.target->ino, entry_type(work.target->mode));
  put_entry(transaction, work.target_parent->ino, work.target_slot, *work.target_name,
            work.source->ino, entry_type(work.source->mode));
}

void put_move(Transaction& transaction, const Rename& work, const Inode* whiteout) {
  if (whiteout != nullptr) {
    put_entry(transaction, work.source_parent->ino, work.source_slot, *work.source_name,
              whiteout->ino, entry_type(whiteout->mode));
  } else {
    transaction.erase(work.source_slot.key(work.source_parent->ino));
  }
  put_entry(transaction, work.target_parent->ino, work.target_slot, *work.target_name,
            work.source->ino, entry_type(work.source->mode));
  if (work.target && (work.target->is_directory() || work.target->nlink <= 1)) {
    transaction.put(Key::orphan(work.target->ino), {});
  }
}

void finish_exchange(const Rename& work, WallTime now) {
  move_directory(*work.source, *work.source_parent, *work.target_parent);
  move_directory(*work.target, *work.target_parent, *work.source_parent);
  mark_changed(*work.target, now, false);
}

// True if the target lost its last name.
bool finish_move(const Rename& work, WallTime now) {
  Inode& from = *work.source_parent;
  Inode& to = *work.target_parent;
  move_directory(*work.source, from, to);
  if (!work.whiteout() && from.size > 0) from.size--;
  if (!work.target) {
    to.size++;
    return false;
  }
  Inode& victim = *work.target;
  const bool last = victim.is_directory() || victim.nlink <= 1;
  victim.nlink = last ? 0 : victim.nlink - 1;
  if (victim.is_directory() && to.nlink > 2) to.nlink--;
  mark_changed(victim, now, false);
  return last;
}

// Loads the inodes that the slots name. kCorrupt where an entry has none.
Task<Result<>> load_inodes(InodeTable& inodes, Rename* work) {
  auto source = co_await inodes.get(work->source_slot.ino);
  COFS_CO_TRY(source);
  work->source = *source;
  work->target = InodeRef();
  if (!work->target_slot.found) co_return Result<>();
  auto target = co_await inodes.get(work->target_slot.ino);
  COFS_CO_TRY(target);
  work->target = *target;
  co_return Result<>();
}

// Fills `work` with the inodes, all locked, and both entries; check_presence() holds.
Task<Result<>> lock_names(Store& store, InodeTable& inodes, Rename* work) {
  bool changed = false;
  auto found = co_await find_names(store, work, &changed);
  COFS_CO_TRY(found);
  for (;;) {
    auto present = check_presence(*work);
    COFS_CO_TRY(present);
    auto loaded = co_await load_inodes(inodes, work);
    if (loaded) co_await lock_all(work);
    found = co_await find_names(store, work, &changed);
    COFS_CO_TRY(found);
    if (!changed && loaded) co_return check_presence(*work);
    work->guards.clear();
    if (changed) continue;
    if (loaded.error().code == Code::kStale) {  // nobody removed the names meanwhile
      co_return fail(Code::kCorrupt, "entry without an inode", loaded.error().where);
    }
    co_return loaded;
  }
}

InodeRef make_whiteout(InodeTable& inodes, const Inode& directory) {
  InodeRef whiteout = inodes.create(S_IFCHR);
  whiteout->nlink = 1;
  if ((directory.mode & S_ISGID) != 0) whiteout->gid = directory.gid;
  return whiteout;
}

}  // namespace

Task<Result<>> Names::rename(uint64_t parent, std::string name, uint64_t new_parent,
                             std::string new_name, uint32_t flags) {
  Impl& my = *impl_;
  auto checked = check_request(name, new_name, flags);
  COFS_CO_TRY(checked);
  auto bounded = co_await my.bound_dirty();
  COFS_CO_TRY(bounded);
  Rename work;
  work.source_name = &name;
  work.target_name = &new_name;
  work.flags = flags;
  auto from = co_await my.directory(parent);
  COFS_CO_TRY(from);
  work.source_parent = *from;
  auto to = co_await my.directory(new_parent);
  COFS_CO_TRY(to);
  work.target_parent = *to;
  if (parent != new_parent) work.rename_guard = co_await my.rename_mutex.lock();
  checked = co_await lock_names(my.store, my.inodes, &work);
  COFS_CO_TRY(checked);
  if (work.target.get() == work.source.get()) co_return Result<>();
  checked = co_await check_rename(my.inodes, &work);
  COFS_CO_TRY(checked);

  const uint64_t cost = 2 * entry_cost_bytes(new_name) + entry_cost_bytes(name) +
                        kOrphanCostBytes + inode_cost_bytes(0);
  auto transaction = co_await my.store.begin(Cost(0, cost), SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  InodeRef whiteout;
  if (work.whiteout()) whiteout = make_whiteout(my.inodes, *work.source_parent);
  if (work.exchange()) {
    put_exchange(*transaction, work);
  } else {
    put_move(*transaction, work, whiteout.get());
  }
  auto applied = co_await transaction->apply();
  if (!applied && whiteout) my.inodes.mark_deleted(*whiteout);
  COFS_CO_TRY(applied);

  const WallTime now = my.environment.clock.wall();
  if (work.exchange()) {
    finish_exchange(work, now);
  } else if (finish_move(work, now)) {
    my.orphans.try_emplace(work.target->ino);
  }
  mark_changed(*work.source, now, false);
  mark_changed(*work.source_parent, now, true);
  mark_changed(*work.target_parent, now, true);
  co_return Result<>();
}

}  // namespace cofs
