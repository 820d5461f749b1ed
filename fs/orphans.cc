// Files without names: they live while they are open, or while the kernel knows them, and are freed
// then. Each has an orphan record from the transaction that took its last name, so that a file that
// was in use at a crash is freed after the next mount.

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "fs/names_impl.h"

namespace cofs {

namespace {
constexpr uint64_t kOrphanBatch = 256;
constexpr size_t kForgottenMax = 16'384;          // files that wait to be freed
constexpr uint64_t kRoomPerForgotten = 8;         // blocks that must be left for each that waits
constexpr uint64_t kFreeDelayMaxNs = 1'000'000'000;
constexpr uint64_t kFreeLookNs = 500'000;
}  // namespace

Task<> Names::forget(uint64_t ino) {
  Impl& my = *impl_;
  const auto orphan = my.orphans.find(ino);
  if (orphan == my.orphans.end()) co_return;
  orphan->second.forgotten = true;
  const Inode* resident = my.inodes.find_resident(ino);
  if (resident != nullptr && resident->open_count > 0) co_return;  // freed by its last close
  if (!my.free_later(ino)) co_await my.free_inode(ino);
}

// --- Freeing later ---
//
// Who removes a tree waits for each answer, and freeing blocks takes longer than removing names. So files with data wait until
// no other was forgotten for a moment. What is only in memory is dropped at once, before it is written for nothing. The
// blocks count as taken meanwhile: who needs room has them freed (Store::reserve), and who asks how much there is waits for it.

bool Names::Impl::free_later(uint64_t ino) {
  Inode* inode = inodes.find_resident(ino);
  if (options.free_delay_ns == 0 || draining || frees_now) return false;
  if (inode == nullptr || inode->blocks == 0 || !inode->data.empty()) return false;
  const uint64_t blocks = forgotten_blocks + inode->blocks;
  if (forgotten.size() == kForgottenMax ||
      !store.has_room(Cost(blocks * kRoomPerForgotten, 0), SpaceClass::kUser)) {
    hurry();
    return false;
  }
  forgotten_blocks = blocks;
  forgotten.push_back(Forgotten{InodeRef(inode), inode->blocks, environment.clock.monotonic_ns()});
  if (!is_freeing) {
    is_freeing = true;
    background_tasks++;
    spawn(environment.executor, free_forgotten());
  }
  return true;
}

Task<> Names::Impl::free_forgotten() {
  bool has_failed = false;
  while (!forgotten.empty()) {
    co_await pause_before_freeing();
    for (size_t left = forgotten.size(); left > 0 && !forgotten.empty(); left--) {
      const Forgotten file = std::move(forgotten.front());
      forgotten.pop_front();
      if (file.inode->lock.idle()) {
        auto freed = co_await free_unnamed(*file.inode);
        // Where the device fails, it does for all of them: one line is enough.
        if (!freed && !std::exchange(has_failed, true)) tell_not_freed(freed.error());
      } else {
        // Met again, by a file handle. Who holds it may be waiting for the room that is made here.
        free_in_background(file.inode->ino);
      }
      forgotten_blocks -= file.blocks;
      co_await outside(environment.executor, [] {});  // lets others in
    }
  }
  is_freeing = false;
  frees_now = false;
  background_tasks--;
  background_ended.notify_all();
}

Task<> Names::Impl::pause_before_freeing() {
  while (!frees_now && !forgotten.empty()) {
    const uint64_t due = std::min(forgotten.back().at_ns + options.free_delay_ns,
                                  forgotten.front().at_ns + kFreeDelayMaxNs);
    if (environment.clock.monotonic_ns() >= due) co_return;
    pause = TimerRequest();
    pause.due_ns = due;
    pauses = true;
    co_await sleep_until(environment.clock, pause);
    pauses = false;
  }
}

void Names::Impl::hurry() {
  if (!is_freeing || frees_now) return;
  frees_now = true;
  if (pauses) environment.clock.cancel(pause);
}

Task<bool> Names::free_now(uint64_t patience_ns) {
  Impl& my = *impl_;
  if (!my.is_freeing) co_return false;
  my.hurry();
  Clock& clock = my.environment.clock;
  const uint64_t begin_ns = clock.monotonic_ns();
  while (my.is_freeing && clock.monotonic_ns() - begin_ns < patience_ns) {
    TimerRequest request;
    request.due_ns = clock.monotonic_ns() + kFreeLookNs;
    co_await sleep_until(clock, request);
  }
  co_return true;
}

void Names::leave_forgotten() {
  impl_->forgotten.clear();
  impl_->hurry();
}

Task<> Names::Impl::free_inode(uint64_t ino) {
  auto inode = co_await inodes.get(ino);
  if (!inode) co_return;
  auto freed = co_await free_unnamed(**inode);
  if (!freed) tell_not_freed(freed.error());
}

Task<Result<>> Names::Impl::free_unnamed(Inode& inode) {
  const SharedMutex::Guard guard = co_await inode.lock.lock_exclusive();
  if (inode.deleted || inode.nlink != 0 || inode.open_count != 0) co_return Result<>();
  auto freed = co_await free_locked(inode);
  co_return freed;
}

void Names::Impl::tell_not_freed(const Error& error) {
  if (store.shut_down()) return;
  environment.journal.write(Severity::kWarning, "an unlinked file stays until the next mount: " + describe(error));
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

void Names::free_temporary(uint64_t ino) { impl_->free_in_background(ino); }

void Names::Impl::free_in_background(uint64_t ino) {
  background_tasks++;
  spawn(environment.executor, free_inode_in_background(ino));
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
  my.hurry();
  while (my.background_tasks > 0) co_await my.background_ended.wait();
}

Task<> Names::drain() {
  impl_->draining = true;
  co_await settle();
}

}  // namespace cofs
