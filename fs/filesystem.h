// FileSystem: POSIX files and directories on a Store. What the FUSE server, the tools and the
// simulated tests call; every operation is a coroutine of the core.
//
// Semantics are POSIX's and Linux's; permission checks are the caller's (the kernel's
// default_permissions), all else is decided here. Errors are Codes; each operation names those that
// are its own. Names are 1 … 255 bytes without '/' and NUL and are checked here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "blockmap/store.h"
#include "fs/inode.h"
#include "fs/jobs.h"
#include "fs/types.h"

namespace cofs {

enum class AccessTimes : uint8_t { kRelative, kNone, kStrict };

struct FsOptions {
  AccessTimes access_times = AccessTimes::kRelative;
  bool directory_access_times = true;       // false: reading a directory leaves its access time alone
  uint64_t dirty_bytes_max = 64ULL << 20;   // of file data in memory before writers wait
  uint64_t inodes_cached_max = 32'768;      // unused ones; a commit is due when half as many have changed
  uint64_t copy_bytes_max = 1ULL << 30;     // of one copy_range call; it replies short beyond
  uint32_t direct_bytes_min = 512U << 10;   // direct writes from this length on wait for the device
  // The blocks of a file that nobody knows any more are freed so long after the last such file; 0: at once.
  uint64_t free_delay_ns = 0;
  bool read_only = false;
  CloneMode clone_mode = CloneMode::kDevice;  // where no attribute says otherwise
  FsOptions() = default;
};

enum class RenameFlags : uint32_t { kNone = 0, kNoReplace = 1, kExchange = 2, kWhiteout = 4 };

enum class AllocateMode : uint8_t { kAllocate, kKeepSize, kPunchHole, kZeroRange, kZeroKeepSize };

class FileSystem final : public CommitClient, public DataSink {
 public:
  // A root directory on a freshly formatted store (mode 0755, owner uid/gid).
  static Task<Result<>> format(Environment environment, FormatOptions options, uint32_t uid,
                               uint32_t gid);
  // Takes the store; finishes what a crash interrupted (truncations at once, orphans in background).
  static Task<Result<std::unique_ptr<FileSystem>>> open(std::unique_ptr<Store> store,
                                                        Environment environment, FsOptions options);
  ~FileSystem() override;
  // Commits everything, frees orphans' leftovers no more than it must, closes the store.
  Task<Result<>> close();
  Task<> abandon();  // as a crash would: nothing is written; waits until all activity ended

  // --- Names (parent must be a directory: kNotDirectory) ---
  Task<Result<Attributes>> lookup(uint64_t parent, std::string name);  // "." and ".." too
  Task<Result<Attributes>> create(uint64_t parent, std::string name, uint32_t mode, Caller caller,
                                  bool exclusive, bool* created);  // regular file; opens nothing
  Task<Result<Attributes>> make_node(uint64_t parent, std::string name, uint32_t mode,
                                     uint64_t rdev, Caller caller);
  Task<Result<Attributes>> make_directory(uint64_t parent, std::string name, uint32_t mode,
                                          Caller caller);
  Task<Result<Attributes>> make_symlink(uint64_t parent, std::string name, std::string target,
                                        Caller caller);
  // An unnamed regular file (O_TMPFILE), to be opened at once; link() can name it.
  Task<Result<Attributes>> make_unnamed(uint64_t parent, uint32_t mode, Caller caller);
  Task<Result<Attributes>> link(uint64_t ino, uint64_t new_parent, std::string new_name);
  Task<Result<>> unlink(uint64_t parent, std::string name);
  Task<Result<>> remove_directory(uint64_t parent, std::string name);
  Task<Result<>> rename(uint64_t parent, std::string name, uint64_t new_parent,
                        std::string new_name, uint32_t flags);
  Task<Result<std::string>> read_symlink(uint64_t ino);
  // Up to `limit` entries after `cookie` (0: from the start, beginning with "." and ".."). Cookies are
  // stable while the directory changes.
  Task<Result<std::vector<DirectoryEntry>>> read_directory(uint64_t ino, uint64_t cookie,
                                                           uint64_t limit);

  // --- Attributes ---
  Task<Result<Attributes>> get_attributes(uint64_t ino);
  Task<Result<Attributes>> set_attributes(uint64_t ino, AttributeChange change, Caller caller);
  Task<Result<std::string>> get_xattr(uint64_t ino, std::string name);
  // create_only: kExists if present; replace_only: kNoAttribute if absent. POSIX ACLs are xattrs
  // system.posix_acl_access/default: checked, and folded into the mode where they are equivalent.
  Task<Result<>> set_xattr(uint64_t ino, std::string name, std::string value, bool create_only,
                           bool replace_only, Caller caller);
  Task<Result<std::vector<std::string>>> list_xattrs(uint64_t ino);
  Task<Result<>> remove_xattr(uint64_t ino, std::string name);

  // --- Open files. An unlinked file lives until its last close (and, over FUSE, forget()). ---
  // Errors: kNotPermitted for a write to an immutable file, or one that is not an append to an append-only one.
  Task<Result<Attributes>> open_file(uint64_t ino, OpenIntent intent);
  // What was announced and asked for by `handle` ends (0: it never was).
  Task<> close_file(uint64_t ino, uint64_t handle = 0);
  // Whether a change has cleared setuid or setgid since the inode is in memory, where it is for as long as the change
  // is not durable: if so, somebody may still take it to have them.
  bool lost_privileges(uint64_t ino) const;
  Task<> forget(uint64_t ino);  // the kernel dropped it: an unlinked, closed file is freed now

  // --- Data ---
  // At most 1 MiB; short only at the end of the file.
  Task<Result<ReadData>> read(uint64_t ino, uint64_t offset, uint32_t length);
  // All or an error. append: at the end of the file, whatever data.offset's block says (the data is
  // moved if it must be). kill_privileges, here and below: in the same step that changes the data, clear
  // setuid and setgid (fs/inode.h) and drop security.capability, as a change by an unprivileged process does.
  Task<Result<>> write(uint64_t ino, WriteData data, bool append, Unprivileged kill_privileges);
  // For who writes past the cache: kIo while the device refuses writes. From options.direct_bytes_min on the data is
  // on the device when it returns (durable after a sync), or else the file is as it was; but where there is no room
  // without collecting garbage, or very many extents are replaced, it is a write like any other.
  Task<Result<>> write_direct(uint64_t ino, WriteData data, Unprivileged kill_privileges);
  Task<Result<>> allocate(uint64_t ino, AllocateMode mode, uint64_t offset, uint64_t length,
                          Unprivileged kill_privileges = false);
  Task<Result<uint64_t>> seek_data(uint64_t ino, uint64_t offset);  // kNoSuchOffset past the end
  Task<Result<uint64_t>> seek_hole(uint64_t ino, uint64_t offset);
  // Copies through the copy engine, or shares blocks (fs/clones.h says which); may be short (never 0
  // before the source's end). kInterrupted: abandoned before anything was copied.
  Task<Result<CopyResult>> copy_range(CopyRequest request);
  Task<Result<CopyResult>> copy_range(uint64_t source, uint64_t source_offset, uint64_t target,
                                      uint64_t target_offset, uint64_t length,
                                      uint64_t source_handle = 0, Unprivileged kill_privileges = false);

  // --- Clones; the errors are those that cofs_ioctl.h says ---
  // What a copy into this file, or into files to be made below this directory, does.
  Task<Result<CloneMode>> clone_mode_for(uint64_t ino);
  Task<Result<>> announce_clone(OpenFile source, Announcement announcement);
  Task<Result<DedupeToken>> make_dedupe_token(OpenFile source);
  Task<Result<DedupeResult>> dedupe(OpenFile target, DedupeRequest request, Caller caller);
  // The extents that touch [start, start + length), cut to its blocks, at most `limit`; with `sync`
  // dirty data gets its place first.
  Task<Result<FileMap>> map_file(uint64_t ino, uint64_t start, uint64_t length, uint64_t limit,
                                 bool sync);
  void set_clone_mode(CloneMode mode) { options_.clone_mode = mode; }
  uint64_t shared_bytes() const;  // by copies and dedupes since the volume was opened

  // --- Durability and reports ---
  Task<Result<>> sync();  // everything
  Task<Result<>> sync_file(uint64_t ino);  // fsync: everything too (docs/decisions/0003)
  // syncfs: everything; and after writes had failed, though it succeeds by now, kIo once (docs/decisions/0015).
  Task<Result<>> sync_volume();
  // Of what is free as soon as what was removed is freed, which is waited for a moment.
  Task<FsStatistics> statistics();
  // Has the blocks freed of files that are gone and wait for that (FsOptions::free_delay_ns); waits a moment for it.
  Task<> free_removed();
  uint64_t inodes_in_memory() const { return inodes_->resident_count(); }
  Store& store() { return *store_; }
  Jobs& jobs() { return *jobs_; }
  Environment& environment() { return environment_; }
  const FsOptions& options() const { return options_; }

  // For fsck and tests: namespace and data rules on top of Store::verify (every entry names an inode,
  // link counts, parents, orphans, sizes against extents, no cycles).
  Task<Result<VerifyReport>> verify(VerifyOptions options);
  // Mends what verify() calls repairable; returns how many things it changed.
  Task<Result<uint64_t>> repair();

  // --- CommitClient, DataSink (called by the store) ---
  Task<Result<>> flush_dirty_data() override;
  void collect_data(Transaction& transaction) override;
  void collecting_failed() override;
  uint64_t inode_bytes_bound() const override;
  void collect_inodes(Transaction& transaction) override;
  void mapped_blocks_changed(uint64_t ino, int64_t delta) override;
  Task<bool> free_space() override;
  void data_written(uint64_t token, const Result<>& result, uint64_t first_virtual) override;

 private:
  friend class Files;
  friend class Names;
  FileSystem(std::unique_ptr<Store> store, Environment environment, FsOptions options);
  Task<Result<>> make_root(uint32_t uid, uint32_t gid);
  Task<Result<>> prepare();

  Environment environment_;
  FsOptions options_;
  std::unique_ptr<Store> store_;
  uint64_t stalls_told_ = 0;  // so many of the store's by sync_volume()
  std::unique_ptr<InodeTable> inodes_;
  std::unique_ptr<class Names> names_;
  std::unique_ptr<class Files> files_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<class Clones> clones_;
};

}  // namespace cofs
