// Names' private parts, shared by names*.cc, rename.cc, attributes.cc, names_xattr.cc and orphans.cc.
//
// Locking: an operation gets InodeRefs, locks the inodes in ascending number, reads what it needs,
// begins a transaction, applies it, and then changes the inodes without waiting. InodeRefs are
// declared before the guards, so that the guards go first.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fs/directory.h"
#include "fs/files.h"
#include "fs/inode.h"
#include "fs/names.h"
#include "fs/xattr.h"

namespace cofs {

inline constexpr uint32_t kLinksMax = INT32_MAX;
inline constexpr size_t kSymlinkTargetMax = 4095;  // PATH_MAX without its NUL

// Bytes of the record of an inode with so much inline data.
inline constexpr uint64_t inode_cost_bytes(uint64_t inline_bytes) {
  return sizeof(ondisk::Key) + sizeof(ondisk::Inode) + inline_bytes;
}
inline constexpr uint64_t kOrphanCostBytes = sizeof(ondisk::Key);

// With the directory locked: whether entries may be added (kNoEntry if it was removed, kNotPermitted).
Result<> check_may_add(const Inode& directory);
// With both locked: whether the entry may go (kNotPermitted).
Result<> check_may_remove(const Inode& directory, const Inode& victim);

// What a new object is to be; lives in the frame of the public operation.
struct NewObject {
  const std::string* name = nullptr;    // null: unnamed
  uint32_t mode = 0;
  uint64_t rdev = 0;
  const std::string* target = nullptr;  // of a symlink
  const Caller* caller = nullptr;
  bool may_exist = false;               // an existing entry is the answer instead of an error
  bool existed = false;                 // out
  NewObject() = default;
};

// An entry and the two inodes it ties together, both locked exclusively.
struct LockedEntry {
  InodeRef parent;
  InodeRef child;
  EntrySlot slot;
  SharedMutex::Guard first;
  SharedMutex::Guard second;
  LockedEntry() = default;
};

// An attribute to be stored or, with `store` false, erased.
struct XattrChange {
  const std::string* name = nullptr;
  const std::string* value = nullptr;
  bool store = false;
  uint32_t mode = 0;  // of the inode afterwards
  XattrChange() = default;
};

struct Names::Impl {
  Impl(Store& in_store, InodeTable& in_inodes, Files& in_files, Environment& in_environment,
       const FsOptions& in_options)
      : store(in_store),
        inodes(in_inodes),
        files(in_files),
        environment(in_environment),
        options(in_options),
        rename_mutex(in_environment.executor),
        background_ended(in_environment.executor) {}

  Store& store;
  InodeTable& inodes;
  Files& files;
  Environment& environment;
  const FsOptions& options;

  // Held by renames between two directories: directories' parents change only under it.
  Mutex rename_mutex;

  // Files without a name that were unlinked, or made unnamed, since the volume was opened.
  struct Orphan {
    bool forgotten = false;  // the kernel dropped it: to be freed at its last close
    bool linkable = false;   // made unnamed: link() may name it
  };
  std::unordered_map<uint64_t, Orphan> orphans;

  // Files of `orphans` that can be freed and wait for free_forgotten(), the first one longest.
  struct Forgotten {
    InodeRef inode;
    uint64_t blocks = 0;
    uint64_t at_ns = 0;
  };
  std::deque<Forgotten> forgotten;
  uint64_t forgotten_blocks = 0;  // of these, and of the one that is being freed
  bool is_freeing = false;        // free_forgotten() runs
  bool frees_now = false;         // it does not wait
  bool pauses = false;            // it sleeps until `pause`
  TimerRequest pause;

  uint64_t background_tasks = 0;
  bool draining = false;
  Event background_ended;

  // Before an operation that dirties inodes, without locks: keeps their number bounded.
  Task<Result<>> bound_dirty();  // errors: those of a commit

  // The inode, if it is a directory (kNotDirectory).
  Task<Result<InodeRef>> directory(uint64_t ino);
  // The inode an entry names; an entry without an inode is kCorrupt.
  Task<Result<InodeRef>> entry_inode(uint64_t ino);

  // Finds an entry and locks parent and child. Errors: kNoEntry, kNotDirectory.
  Task<Result<>> lock_entry(uint64_t parent, const std::string* name, LockedEntry* out);

  Task<Result<Attributes>> make(uint64_t parent, NewObject* object);

  Task<Result<CloneChoice>> clone_choice(Inode& inode);

  void touch_access_time(Inode& inode);
  // Frees an inode without names. What cannot be freed now stays an orphan for the next mount.
  Task<> free_inode(uint64_t ino);
  Task<Result<>> free_unnamed(Inode& inode);  // pinned; nothing where it is used again
  void tell_not_freed(const Error& error);
  Task<> free_inode_in_background(uint64_t ino);
  void free_in_background(uint64_t ino);
  // Of a file that nobody knows any more: leaves it to free_forgotten(). False: it is to be freed at once.
  bool free_later(uint64_t ino);
  Task<> free_forgotten();
  Task<> pause_before_freeing();
  void hurry();
  Task<Result<>> free_locked(Inode& inode);
  Task<> free_orphans();
  Task<Result<>> free_stale_orphan(uint64_t ino);
  Task<Result<>> free_stale_orphans();

  // Has the access ACL, if there is one, and with it the mode follow a chmod.
  Task<Result<>> change_acl_mode(Inode& inode, uint32_t mode);
  // Stores or erases one attribute and sets the mode that comes with it; `slot` is where it is or goes.
  Task<Result<>> change_xattr(Inode& inode, const XattrChange* change, const XattrSlot* slot);
};

}  // namespace cofs
