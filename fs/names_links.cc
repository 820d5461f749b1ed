// link, unlink and rmdir.

#include <algorithm>

#include "fs/names_impl.h"

namespace cofs {

namespace {

constexpr uint64_t kJournalLifeNs = 5'000'000'000;  // from a file's fsync to its unlink

// The codes that Linux answers for the names that are not entries.
Result<> check_victim_name(const std::string& name, bool directory) {
  auto checked = check_name(name);
  COFS_TRY(checked);
  if (!is_dot_name(name)) return {};
  if (!directory) return fail(Code::kIsDirectory, "unlink of a dot name");
  return name == "." ? fail(Code::kInvalid, "rmdir of \".\"")
                     : fail(Code::kNotEmpty, "rmdir of \"..\"");
}

Result<> check_victim_type(const Inode& victim, bool directory) {
  if (victim.is_directory() && !directory) return fail(Code::kIsDirectory, "unlink", victim.ino);
  if (!victim.is_directory() && directory) return fail(Code::kNotDirectory, "rmdir", victim.ino);
  if (directory && victim.size != 0) return fail(Code::kNotEmpty, "rmdir", victim.ino);
  return {};
}

}  // namespace

// A name that was removed stays removed after a crash only when it has been committed. Programs that
// keep a journal in a file of its own (SQLite, journal_mode=DELETE) take its unlink for their commit
// and do not sync the directory, so the unlink of a file that was synced a moment ago is committed
// before it is answered (docs/decisions/0007).
Task<Result<>> Names::unlink(uint64_t parent, std::string name, bool directory) {
  bool commit_due = false;
  auto removed = co_await remove_name(parent, std::move(name), directory, &commit_due);
  COFS_CO_TRY(removed);
  if (!commit_due) co_return Result<>();
  auto committed = co_await impl_->store.commit();
  co_return committed;
}

Task<Result<>> Names::remove_name(uint64_t parent, std::string name, bool directory,
                                  bool* commit_due) {
  Impl& my = *impl_;
  auto checked = check_victim_name(name, directory);
  COFS_CO_TRY(checked);
  auto bounded = co_await my.bound_dirty();
  COFS_CO_TRY(bounded);
  LockedEntry entry;
  auto locked = co_await my.lock_entry(parent, &name, &entry);
  COFS_CO_TRY(locked);
  Inode& dir = *entry.parent;
  Inode& victim = *entry.child;
  checked = check_may_remove(dir, victim);
  COFS_CO_TRY(checked);
  checked = check_victim_type(victim, directory);
  COFS_CO_TRY(checked);

  auto transaction = co_await my.store.begin(Cost(0, kOrphanCostBytes), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  const bool last = directory || victim.nlink <= 1;
  const uint64_t synced_ago_ns = my.environment.clock.monotonic_ns() - victim.synced_ns;
  *commit_due = !directory && last && victim.synced_ns != 0 && synced_ago_ns < kJournalLifeNs;
  if (*commit_due) {
    auto stalled = my.store.check_stall();  // it could not be committed
    COFS_CO_TRY(stalled);
  }
  transaction->erase(entry.slot.key(parent));
  if (last) transaction->put(Key::orphan(victim.ino), {});
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);

  const WallTime now = my.environment.clock.wall();
  victim.nlink = last ? 0 : victim.nlink - 1;
  mark_changed(victim, now, false);
  if (last) my.orphans.try_emplace(victim.ino);
  if (dir.size > 0) dir.size--;
  if (directory && dir.nlink > 2) dir.nlink--;
  mark_changed(dir, now, true);
  co_return Result<>();
}

Task<Result<Attributes>> Names::link(uint64_t ino, uint64_t new_parent, std::string new_name) {
  Impl& my = *impl_;
  auto checked = check_name(new_name);
  COFS_CO_TRY(checked);
  if (is_dot_name(new_name)) co_return fail(Code::kExists, "dot name", new_parent);
  auto bounded = co_await my.bound_dirty();
  COFS_CO_TRY(bounded);
  auto directory = co_await my.directory(new_parent);
  COFS_CO_TRY(directory);
  auto target = co_await my.inodes.get(ino);
  COFS_CO_TRY(target);
  if ((*target)->is_directory()) co_return fail(Code::kNotPermitted, "link to a directory", ino);
  Inode& dir = **directory;
  Inode& file = **target;
  const SharedMutex::Guard first =
      co_await (dir.ino < file.ino ? dir : file).lock.lock_exclusive();
  const SharedMutex::Guard second =
      co_await (dir.ino < file.ino ? file : dir).lock.lock_exclusive();

  if (file.deleted) co_return fail(Code::kStale, "inode was deleted", ino);
  checked = check_may_add(dir);
  COFS_CO_TRY(checked);
  if ((file.flags & (ondisk::kInodeImmutable | ondisk::kInodeAppend)) != 0) {
    co_return fail(Code::kNotPermitted, "immutable or append-only file", ino);
  }
  const auto orphan = my.orphans.find(ino);
  const bool was_unnamed = file.nlink == 0;
  if (was_unnamed && (orphan == my.orphans.end() || !orphan->second.linkable)) {
    co_return fail(Code::kNoEntry, "file was unlinked", ino);
  }
  if (file.nlink >= kLinksMax) co_return fail(Code::kTooManyLinks, "links", ino);
  auto slot = co_await find_entry(my.store, new_parent, &new_name);
  COFS_CO_TRY(slot);
  if (slot->found) co_return fail(Code::kExists, "name", slot->ino);
  if (slot->full()) co_return fail(Code::kTooManyLinks, "names with one hash", new_parent);

  auto transaction = co_await my.store.begin(Cost(0, entry_cost_bytes(new_name)), SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  put_entry(*transaction, new_parent, *slot, new_name, ino, entry_type(file.mode));
  if (was_unnamed) transaction->erase(Key::orphan(ino));
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);

  const WallTime now = my.environment.clock.wall();
  file.nlink++;
  mark_changed(file, now, false);
  if (was_unnamed) my.orphans.erase(ino);
  dir.size++;
  mark_changed(dir, now, true);
  co_return file.attributes();
}

}  // namespace cofs
