// Names: directories, links, attributes, extended attributes and ACLs. Called by FileSystem.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fs/filesystem.h"

namespace cofs {

class Files;

class Names {
 public:
  Names(Store& store, InodeTable& inodes, Files& files, Environment& environment,
        const FsOptions& options);
  ~Names();

  Task<Result<Attributes>> lookup(uint64_t parent, std::string name);
  Task<Result<Attributes>> create(uint64_t parent, std::string name, uint32_t mode, Caller caller,
                                  bool exclusive, bool* created);
  Task<Result<Attributes>> make_node(uint64_t parent, std::string name, uint32_t mode,
                                     uint64_t rdev, std::string symlink_target, Caller caller);
  Task<Result<Attributes>> make_unnamed(uint64_t parent, uint32_t mode, Caller caller);
  Task<Result<Attributes>> link(uint64_t ino, uint64_t new_parent, std::string new_name);
  Task<Result<>> unlink(uint64_t parent, std::string name, bool directory);
  Task<Result<>> rename(uint64_t parent, std::string name, uint64_t new_parent,
                        std::string new_name, uint32_t flags);
  Task<Result<std::string>> read_symlink(uint64_t ino);
  Task<Result<std::vector<DirectoryEntry>>> read_directory(uint64_t ino, uint64_t cookie,
                                                           uint64_t limit);

  Task<Result<Attributes>> get_attributes(uint64_t ino);
  Task<Result<Attributes>> set_attributes(uint64_t ino, AttributeChange change, Caller caller);
  Task<Result<std::string>> get_xattr(uint64_t ino, std::string name);
  Task<Result<>> set_xattr(uint64_t ino, std::string name, std::string value, bool create_only,
                           bool replace_only, Caller caller);
  Task<Result<std::vector<std::string>>> list_xattrs(uint64_t ino);
  Task<Result<>> remove_xattr(uint64_t ino, std::string name);

  Task<Result<Attributes>> open_file(uint64_t ino, OpenIntent intent);
  Task<> close_file(uint64_t ino);
  Task<> forget(uint64_t ino);

  // What an inode's attribute user.cofs.clone says, its lock being held (shared or exclusive).
  Task<Result<CloneChoice>> clone_choice(Inode& inode);
  // Whether mode and ACL let the caller write it; its lock is held. For what the kernel does not check.
  Task<Result<bool>> may_write(Inode& inode, Caller caller);
  // An empty regular file that has no name and never gets one; a crash leaves it to the next mount.
  Task<Result<InodeRef>> make_temporary();
  // Frees it in the background, once its lock is free. Nothing else refers to it any more.
  void free_temporary(uint64_t ino);

  // Frees the files that were unlinked and open when the volume was last in use. To be spawned: it is
  // background work from the call on.
  Task<> free_orphans();
  // Frees what waits to be freed, at once. Returns when that was done, or after `patience_ns`; false: nothing waited.
  Task<bool> free_now(uint64_t patience_ns);
  // The files that wait to be freed stay on the device, for the next mount.
  void leave_forgotten();
  // Waits until no background work is under way.
  Task<> settle();
  // The same, and new background work is refused from now on.
  Task<> drain();

 private:
  Task<Result<>> remove_name(uint64_t parent, std::string name, bool directory, bool* commit_due);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cofs
