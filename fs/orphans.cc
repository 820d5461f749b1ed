// Files without names: they live while they are open, or while the kernel knows them, and are freed
// then. Each has an orphan record from the transaction that took its last name, so that a file that
// was in use at a crash is freed after the next mount.

#include <sys/stat.h>

#include "fs/names_impl.h"

namespace cofs {

namespace {
constexpr uint64_t kOrphanBatch = 256;
}

Task<> Names::forget(uint64_t ino) {
  Impl& my = *impl_;
  const auto orphan = my.orphans.find(ino);
  if (orphan == my.orphans.end()) co_return;
  orphan->second.forgotten = true;
  const Inode* resident = my.inodes.find_resident(ino);
  if (resident != nullptr && resident->open_count > 0) co_return;  // freed by its last close
  co_await my.free_inode(ino);
}

Task<> Names::Impl::free_inode(uint64_t ino) {
  auto inode = co_await inodes.get(ino);
  if (!inode) co_return;
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_exclusive();
  if ((*inode)->deleted || (*inode)->nlink != 0 || (*inode)->open_count != 0) co_return;
  auto freed = co_await free_locked(**inode);
  if (!freed && !store.shut_down()) {
    environment.journal.write(Severity::kWarning,
                              "an unlinked file stays until the next mount: " + describe(freed.error()));
  }
}

Task<Result<>> Names::Impl::free_locked(Inode& inode) {
  if (inode.is_regular()) {
    auto freed = co_await files.free_data(inode);
    COFS_CO_TRY(freed);
  }
  if ((inode.flags & ondisk::kInodeHasXattrs) != 0) {
    auto erased = co_await erase_all_xattrs(store, inode.ino);
    COFS_CO_TRY(erased);
  }
  auto transaction = co_await store.begin(Cost(), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  transaction->erase(Key::inode(inode.ino));
  transaction->erase(Key::orphan(inode.ino));
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);
  inodes.mark_deleted(inode);
  orphans.erase(inode.ino);
  co_return Result<>();
}

// It is nobody's to open, so it is freed by whoever made it, and never by forget().
Task<Result<InodeRef>> Names::make_temporary() {
  Impl& my = *impl_;
  const uint64_t bytes = inode_cost_bytes(0) + kOrphanCostBytes;
  auto transaction = co_await my.store.begin(Cost(0, bytes), SpaceClass::kUser);
  COFS_CO_TRY(transaction);
  InodeRef inode = my.inodes.create(S_IFREG | 0600);
  transaction->put(Key::orphan(inode->ino), {});
  my.orphans.try_emplace(inode->ino);  // before it can be seen in the tree: free_orphans()
  auto applied = co_await transaction->apply();
  if (!applied) {
    my.orphans.erase(inode->ino);
    my.inodes.mark_deleted(*inode);
    co_return fail(applied.error());
  }
  co_return inode;
}

void Names::free_temporary(uint64_t ino) {
  impl_->background_tasks++;
  spawn(impl_->environment.executor, impl_->free_inode_in_background(ino));
}

Task<> Names::Impl::free_inode_in_background(uint64_t ino) {
  if (!draining) co_await free_inode(ino);
  background_tasks--;
  background_ended.notify_all();
}

// Counted from the call on, not from the first step: the task may still be queued when drain() asks.
Task<> Names::free_orphans() {
  impl_->background_tasks++;
  return impl_->free_orphans();
}

Task<> Names::Impl::free_orphans() {
  auto freed = co_await free_stale_orphans();
  if (!freed && !store.shut_down()) {
    environment.journal.write(Severity::kWarning,
                              "freeing unlinked files stopped: " + describe(freed.error()));
  }
  background_tasks--;
  background_ended.notify_all();
}

Task<Result<>> Names::Impl::free_stale_orphans() {
  Key from = Key::orphan(0);
  const Key end = Key::orphan(UINT64_MAX);
  for (;;) {
    std::vector<uint64_t> batch;
    std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes) {
      batch.push_back(key.id);
      return true;
    };
    auto scanned = co_await store.scan(from, end, kOrphanBatch, visit);
    COFS_CO_TRY(scanned);
    if (batch.empty()) co_return Result<>();
    for (uint64_t ino : batch) {
      if (draining) co_return Result<>();
      auto freed = co_await free_stale_orphan(ino);
      COFS_CO_TRY(freed);
    }
    from = Key::orphan(batch.back() + 1);
  }
}

// An orphan record that the scan met. Those of this mount are left to forget(); whoever unlinks holds
// the inode's lock until both the record and the map say so.
Task<Result<>> Names::Impl::free_stale_orphan(uint64_t ino) {
  if (orphans.contains(ino)) co_return Result<>();
  auto inode = co_await inodes.get(ino);
  if (!inode && inode.error().code == Code::kStale) co_return Result<>();  // freed meanwhile
  if (!inode && inode.error().code == Code::kCorrupt) {
    environment.journal.write(Severity::kError, "orphan: " + describe(inode.error()));
    co_return Result<>();  // for fsck
  }
  COFS_CO_TRY(inode);
  const SharedMutex::Guard guard = co_await (*inode)->lock.lock_exclusive();
  if ((*inode)->deleted || orphans.contains(ino) || (*inode)->open_count != 0) co_return Result<>();
  if ((*inode)->nlink != 0) {
    // A link() may have taken the record away meanwhile; if not, fsck tells.
    co_return Result<>();
  }
  auto freed = co_await free_locked(**inode);
  co_return freed;
}

Task<> Names::settle() {
  Impl& my = *impl_;
  while (my.background_tasks > 0) co_await my.background_ended.wait();
}

Task<> Names::drain() {
  impl_->draining = true;
  co_await settle();
}

}  // namespace cofs
