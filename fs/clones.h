// Clones: copies between files, and what programs ask of them beforehand: to share blocks or to have the
// device copy, strictly or as it comes, and to share what is equal already.
//
// Who decides: an announcement of the source's open file makes a clone strict (its data never goes through
// the host); otherwise the attribute `user.cofs.clone` of the target, "share" or "device", which files and
// directories get from the directory they are made in; otherwise the mount. A strict clone that comes in
// pieces is served from an unlinked file that shares the source's blocks from the first piece on, so
// all pieces show one state of the source. Where a piece that should have been all of it ends early, that file is
// made before anybody can change the source; if it can't be made, no other piece is served.
// Announcements and tokens belong to an open file and end with it. An announcement names its target by number
// and tells nothing of it: the target is looked at when a piece comes, for which the kernel had it opened.
//
// Not for: how blocks are copied or shared (fs/files.h).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "fs/files.h"
#include "fs/names.h"

namespace cofs {

class Clones {
 public:
  static constexpr uint64_t kDedupeBytesMax = 1ULL << 30;  // of one call
  static constexpr size_t kPerOpenFileMax = 64;            // announcements, and as many tokens
  static constexpr size_t kPartsApartMax = 1024;           // of a clone in pieces, remembered as done

  Clones(Store& store, InodeTable& inodes, Files& files, Names& names, Environment& environment,
         FsOptions& options);

  // As in FileSystem.
  Task<Result<CopyResult>> copy_range(CopyRequest request);
  Task<Result<CloneMode>> mode_for(uint64_t ino);
  Task<Result<>> announce(OpenFile source, Announcement announcement);
  Task<Result<DedupeToken>> make_token(OpenFile source);
  Task<Result<DedupeResult>> dedupe(OpenFile target, DedupeRequest request, Caller caller);
  void file_closed(uint64_t handle);

 private:
  // What is left of an announced clone.
  struct Announced {
    Announcement said;
    std::map<uint64_t, uint64_t> done;  // parts of the source, ends by starts, none touches another
    InodeRef snapshot;      // of the source, from the first piece on, if there is more than one
    Result<> torn;          // why there is none where there should be: bytes were done without it
    uint64_t users = 0;     // pieces that are being copied
    bool over = false;      // it ends with the last of them
    bool covers(const CopyRequest& request) const;
    void add_done(uint64_t from, uint64_t bytes);
    bool all_done() const;
    uint64_t source_end() const { return said.source_offset + said.length; }
  };
  using AnnouncedRef = std::shared_ptr<Announced>;
  struct PerOpenFile {
    uint64_t ino = 0;
    std::vector<AnnouncedRef> announced;
    std::vector<DedupeToken> tokens;
  };
  struct LockedPair {
    InodeRef source;
    InodeRef target;
    SharedMutex::Guard first;
    SharedMutex::Guard second;
    LockedPair() = default;
  };

  // Source shared, target exclusive (also where they are one). Errors: kStale.
  Task<Result<>> lock_pair(LockedPair* pair);
  Task<Result<CopyResult>> copy_announced(LockedPair* pair, CopyRequest request, AnnouncedRef announced,
                                          CloneMode mode);
  Task<Result<>> take_snapshot(LockedPair* pair, Announced* announced,
                               std::function<bool()> abandoned);
  AnnouncedRef find_announced(const CopyRequest& request);
  void end(const AnnouncedRef& announced);
  // Of the sizes as they are. Errors: kInvalid.
  static Result<> check_source(const Announcement& said, const Inode& source);
  static Result<> check_range(const Announcement& said, const Inode& source, const Inode& target);
  Task<Result<bool>> may_dedupe(OpenFile target, Inode* inode, Caller caller);

  Store& store_;
  InodeTable& inodes_;
  Files& files_;
  Names& names_;
  Environment& environment_;
  FsOptions& options_;
  std::unordered_map<uint64_t, PerOpenFile> open_files_;  // by handle; only those that asked for something
  std::map<DedupeToken, uint64_t> tokens_;                // the handle that each belongs to
};

}  // namespace cofs
