// Inode: one file, directory or other object in memory; InodeTable keeps those that are in use.
//
// Everything of an inode that programs see is in here; the tree holds what it was at the last commit.
// A changed inode is marked dirty and its record is written at the next commit (InodeTable::collect).
// Rules: namespace and data operations hold `lock` (exclusive to change, shared to read) across their
// waits; two inodes are locked in ascending number; fields change only under the exclusive lock, or,
// for commits and access times, between two waits. An InodeRef keeps the object alive; dirty inodes,
// open ones and those with data in memory stay in the table, the rest are kept least recently used
// first out, up to a bound. An inode that a commit just collected stays until the next commit, because
// its record may not have reached the tree yet.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "blockmap/store.h"
#include "fs/file_data.h"
#include "fs/types.h"
#include "offload/base/sync.h"

namespace cofs {

class InodeTable;
enum class AccessTimes : uint8_t;  // fs/filesystem.h

struct Inode {
  Inode(InodeTable& table, Executor& executor, uint64_t number);

  bool is_directory() const;
  bool is_regular() const;
  bool is_symlink() const;
  Attributes attributes() const;

  const uint64_t ino;
  InodeTable& table;
  SharedMutex lock;

  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t nlink = 0;
  uint64_t size = 0;    // bytes; of a directory: its number of entries, "." and ".." not counted
  uint64_t rdev = 0;
  uint64_t parent = 0;  // of a directory
  uint32_t flags = 0;   // ondisk::kInode…; kInodeInline is set exactly when inline_data is the data
  uint64_t blocks = 0;  // mapped in the tree, unwritten extents included
  uint64_t generation = 0;
  WallTime access_time;
  WallTime modify_time;
  WallTime change_time;
  WallTime birth_time;
  // File data (its length is `size`) or the symlink's target; a target longer than kInlineDataMax is
  // kept as the internal attribute kSymlinkXattr (fs/xattr.h) instead.
  std::string inline_data;

  FileData data;  // written data that is not on the device yet

  CloneChoice clone_choice = CloneChoice::kUnknown;  // kept from its attribute (Names::clone_choice)

  Unprivileged changed_by;       // see PrivilegeKill
  bool lost_privileges = false;   // clear_privileges() cleared something, since it is in memory

  uint64_t open_count = 0;
  uint64_t synced_ns = 0;  // monotonic time of the last fsync of this file; 0: none
  bool dirty = false;     // differs from its record in the tree
  bool collected = false; // its record was given to the last commit, and may be on its way
  bool deleted = false;   // its record is gone: every operation answers kStale
  size_t dirty_index = 0; // where it is in the table's list, while dirty
  uint32_t pins = 0;      // InodeRefs
  std::list<Inode*>::iterator lru;
  bool in_lru = false;
};

class InodeRef {
 public:
  InodeRef() = default;
  explicit InodeRef(Inode* inode);
  InodeRef(const InodeRef& other) : InodeRef(other.inode_) {}
  InodeRef(InodeRef&& other) noexcept : inode_(std::exchange(other.inode_, nullptr)) {}
  InodeRef& operator=(InodeRef other) noexcept {
    std::swap(inode_, other.inode_);
    return *this;
  }
  ~InodeRef();
  Inode* operator->() const { return inode_; }
  Inode& operator*() const { return *inode_; }
  Inode* get() const { return inode_; }
  explicit operator bool() const { return inode_ != nullptr; }

 private:
  Inode* inode_ = nullptr;
};

class InodeTable {
 public:
  InodeTable(Store& store, Environment& environment, uint64_t cached_max);
  ~InodeTable();

  // The inode, from memory or the tree. Errors: kStale if there is none, kCorrupt.
  Task<Result<InodeRef>> get(uint64_t ino);
  // A new inode object with a number never used before, not yet in the tree; dirty.
  // All its times are now, nlink is 0. To be called with the apply lock held (inside a transaction),
  // so that no commit sees it before its entry; if apply() fails: mark_deleted().
  InodeRef create(uint32_t mode);
  // The root directory of a volume being formatted.
  InodeRef create_root(uint32_t mode);
  // To be called after every change of an inode's fields.
  void mark_dirty(Inode& inode);
  // Adds the records of all dirty inodes to the transaction and regards them as clean. Never waits.
  void collect(Transaction& transaction);
  // At most so many bytes of log records would collect() add now, inodes whose data is being placed
  // included. UINT64_MAX where there are too many to count.
  uint64_t collect_bytes_bound() const;
  // The inode if it is in memory, else null; not pinned.
  Inode* find_resident(uint64_t ino);
  // The record was erased: the object answers kStale from now on and leaves the table when unpinned.
  void mark_deleted(Inode& inode);

  // Calls `visit` for all inodes that hold data in memory.
  void for_each_with_data(const std::function<void(Inode&)>& visit);
  // To be told when FileData becomes non-empty or empty. May destroy an inode that is deleted, empty
  // and not pinned.
  void data_changed(Inode& inode);

  // True when so many inodes are dirty that the caller should commit before it dirties more (the
  // tree nodes that a commit changes are bounded by the store).
  bool wants_commit() const;

  uint64_t dirty_count() const { return dirty_.size(); }
  uint64_t resident_count() const { return inodes_.size(); }

 private:
  friend class InodeRef;
  static constexpr uint64_t kDirtyGroupShift = 4;  // 16 neighbours share about one tree leaf
  InodeRef adopt(std::unique_ptr<Inode> inode);
  void pin(Inode& inode);
  void unpin(Inode& inode);
  void forget_dirty(Inode& inode);
  // Puts the inode on the list of those that may go, takes it off, or destroys it, as its state says.
  void settle(Inode& inode);
  void evict();

  Store& store_;
  Environment& environment_;
  uint64_t cached_max_;
  std::unordered_map<uint64_t, std::unique_ptr<Inode>> inodes_;
  std::unordered_map<uint64_t, std::unique_ptr<Event>> loading_;
  std::vector<Inode*> dirty_;
  std::unordered_set<uint64_t> dirty_groups_;  // inode numbers / 16 that became dirty since a commit
  std::vector<Inode*> collected_;
  std::unordered_map<uint64_t, Inode*> with_data_;
  std::list<Inode*> lru_;  // unpinned, clean, without data; oldest first
};

// The record of an inode, and back. Errors: kCorrupt with the inode number.
std::vector<std::byte> encode_inode(const Inode& inode);
Result<> decode_inode(Bytes value, Inode& inode);

// Whether reading `inode` at `now` changes its access time (kRelative: if it is not newer than the
// last change, or a day old).
bool should_update_access_time(const Inode& inode, WallTime now, AccessTimes policy);

// For fields that changed at `now`: change time (and modify time where `contents`), change counter,
// dirty.
void mark_changed(Inode& inode, WallTime now, bool contents);

// Clears setuid and setgid of anything but a directory. `plain_setgid`: also of a file that its group may not execute,
// as Linux (6.2) does when somebody changes it who is not in that group. True if bits were cleared.
bool clear_privileges(Inode& inode, bool plain_setgid);

// While it lives, every change of the file's data also clears its privileges if `by` is not privileged, in the same step, so that no
// commit sees the one without the other. The inode's exclusive lock must be held for as long.
class PrivilegeKill {
 public:
  PrivilegeKill(Inode& inode, Unprivileged by) : inode_(inode) { inode_.changed_by = by; }
  PrivilegeKill(const PrivilegeKill&) = delete;
  ~PrivilegeKill() { inode_.changed_by = Unprivileged(); }

 private:
  Inode& inode_;
};

}  // namespace cofs
