// Files: the data of regular files: reading, writing, sizes, holes, copies. Called by FileSystem.
//
// Writes go to memory (FileData) and are moved to the store in transactions of bounded size: when a
// megabyte or so has gathered, when memory is short, and at every commit. Space is promised at the
// write. Inline data (up to kInlineDataMax bytes) lives in the inode and becomes block data when the
// file outgrows it.
//
// Locks: an operation takes the inode's lock, then the store's apply lock (a Transaction, empty if the
// change is in memory only). Every change of data, size or times is made under both and in one step,
// so that a commit, which holds the apply lock while it collects, sees each change whole and none that
// came after another it did not see. Flushing takes the apply lock alone. Not for: names and
// permissions (fs/names.h).
#pragma once

#include <cstdint>
#include <memory>

#include "fs/filesystem.h"

namespace cofs {

enum class CopyPolicy : uint8_t {
  kCopy,          // by the copy engine, as it sees fit
  kShare,         // shared blocks; by the engine where a block cannot have more references
  kStrictShare,   // whole blocks only; only shared
  kStrictDevice,  // whole blocks only; by a device path, else shared
};

class Files {
 public:
  Files(Store& store, InodeTable& inodes, Environment& environment, const FsOptions& options,
        DataSink& sink);
  ~Files();

  // The public operations, as in FileSystem; they take the inode's lock themselves.
  Task<Result<ReadData>> read(uint64_t ino, uint64_t offset, uint32_t length);
  Task<Result<>> write(uint64_t ino, WriteData data, bool append, Unprivileged kill_privileges);
  Task<Result<>> write_direct(uint64_t ino, WriteData data, Unprivileged kill_privileges);
  Task<Result<>> allocate(uint64_t ino, AllocateMode mode, uint64_t offset, uint64_t length,
                          Unprivileged kill_privileges);
  Task<Result<uint64_t>> seek(uint64_t ino, uint64_t offset, bool for_data);
  Task<Result<FileMap>> map_extents(uint64_t ino, uint64_t start, uint64_t length, uint64_t limit,
                                    bool sync);

  // With the inode's exclusive lock held by the caller: changes the size, frees or zeroes what lies
  // beyond, updates times and marks the inode dirty. Long truncations run in logged steps.
  Task<Result<>> set_size(Inode& inode, uint64_t size);
  // For copies. The regular file `ino` (kIsDirectory, kInvalid, those of InodeTable::get), and, without
  // locks, room in memory for what a copy makes dirty.
  Task<Result<InodeRef>> get_file(uint64_t ino);
  Task<Result<>> make_room();
  // With the source's lock (shared or exclusive) and the target's exclusive lock held: copies a prefix of
  // request's range; all or nothing of it is in the target up to the length returned. Longer ranges
  // than options.copy_bytes_max are cut where data is copied.
  Task<Result<uint64_t>> copy_locked(InodeRef source, InodeRef target, CopyRequest request,
                                     CopyPolicy policy);
  // After a copy: access time, flushing.
  void copied(InodeRef source, InodeRef target);
  // Whether the device, or the filesystem that holds the image, copies long ranges.
  bool device_copies() const;
  // Locked as for copy_locked: compares whole blocks (or up to the ends of both files) and has the target
  // name the source's blocks where they are the same. No time changes.
  Task<Result<bool>> share_if_same(InodeRef source, InodeRef target, uint64_t source_offset,
                                   uint64_t target_offset, uint64_t length);
  // Frees all data of a file that nobody can open any more, in steps; exclusive lock held.
  Task<Result<>> free_data(Inode& inode);
  // At open after a crash: completes logged truncations.
  Task<Result<>> finish_logged_operations();

  // --- for commits ---
  Task<Result<>> flush_dirty_data();
  void collect_data(Transaction& transaction);
  void collecting_failed();
  void data_written(uint64_t token, const Result<>& result, uint64_t first_virtual);
  // Waits until no background work and no device write of file data is under way. No background work
  // is started from then on.
  Task<> drain();

  // Bytes that copy_range moved by the host, because the copy engine works in whole blocks.
  uint64_t edge_bytes_copied() const;
  uint64_t shared_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cofs
