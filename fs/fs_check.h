// NamespaceCheck: compares everything in the tree's file space with everything else, in one ordered
// scan, and lists what breaks a rule. Behind FileSystem::verify() and repair().
//
// The rules: every entry names an inode of its type, once per name, under its name's hash; every
// directory but the root has exactly one entry, its parent field says where, and it can be reached
// from the root; link counts are the numbers of entries (directories: 2 + subdirectories), a
// directory's size is its number of entries; an inode has an orphan record if and only if its link
// count is 0; `blocks` is the number of mapped blocks; extents are ordered, do not overlap, and what
// lies beyond the file's end is unwritten; attributes have all their parts.
// Memory: about 200 bytes for each inode of the volume. Nothing may change meanwhile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "blockmap/store.h"
#include "fs/inode.h"

namespace cofs {

struct Finding {
  enum Kind : uint8_t {
    kUnreadableInode,   // not repairable
    kStrayRecord,       // of an inode that does not exist; not repairable
    kUnknownRecord,     // not repairable
    kBadEntry,          // key: erase it
    kDanglingEntry,     // key: erase it
    kSecondEntry,       // key: erase it (of a directory)
    kEntryType,         // key: put it again with the type in `value`
    kLinkCount,         // ino: value
    kDirectorySize,     // ino: value
    kParent,            // ino: value
    kBlocks,            // ino: value
    kMissingOrphan,     // ino
    kExtraOrphan,       // ino
    kUnreachable,       // ino: goes to lost+found
    kDetachedCycle,     // ino: key is its entry; goes to lost+found
    kBeyondEnd,         // ino: mapped blocks from `value` on
    kBadExtent,         // not repairable
    kBadXattr,          // key: erase it
  };
  Kind kind = kUnknownRecord;
  uint64_t ino = 0;
  uint64_t value = 0;
  Key key;
  std::string what;
  Finding() = default;
  bool repairable() const;
};

class NamespaceCheck {
 public:
  NamespaceCheck(Store& store, InodeTable& inodes) : store_(store), inodes_(inodes) {}

  // Errors: those of reading the tree; findings are no errors.
  Task<Result<>> run(const VerifyOptions* options);
  const std::vector<Finding>& findings() const { return findings_; }
  uint64_t records() const { return records_; }
  uint64_t inode_count() const { return inode_count_; }

 private:
  struct Node {
    uint32_t mode = 0;
    uint32_t nlink = 0;
    uint64_t size = 0;
    uint64_t parent = 0;
    uint64_t blocks = 0;
    uint64_t mapped = 0;
    uint64_t entries = 0;         // names that point here
    uint64_t entry_directory = 0; // of the first of them
    Key entry_key;
    uint64_t children = 0;        // a directory's entries
    uint64_t subdirectories = 0;
    bool exists = false;
    bool directory() const;
  };
  // What an entry says, kept until all inodes are known.
  struct Entry {
    Key key;
    uint64_t ino = 0;
    uint8_t type = 0;
  };
  struct CurrentXattr {  // the attribute whose parts are being read
    uint64_t ino = 0;
    uint64_t hash = 0;
    uint16_t next_n = 0;
    uint16_t parts_left = 0;
    Key first;
  };

  void visit(const Key& key, Bytes value);
  void visit_inode(const Key& key, Bytes value);
  void visit_xattr(const Key& key, Bytes value);
  void visit_extent(const Key& key, Bytes value);
  void visit_entry(const Key& key, Bytes value);
  void end_xattr();
  void check_entries();
  void check_node(uint64_t ino, const Node& node);
  void check_directory(uint64_t ino, const Node& node);
  void check_reachable();
  Task<Result<>> read_keys(Key from, Key to, std::unordered_set<uint64_t>* out);
  Finding& add(Finding::Kind kind, uint64_t ino, const char* format, ...)
      __attribute__((format(printf, 4, 5)));

  Store& store_;
  InodeTable& inodes_;
  std::vector<Finding> findings_;
  std::unordered_map<uint64_t, Node> nodes_;
  std::vector<Entry> entries_;
  std::unordered_set<uint64_t> orphans_;
  std::unordered_set<uint64_t> truncating_;
  CurrentXattr xattr_;
  uint64_t extent_ino_ = 0;
  uint64_t extent_end_ = 0;
  uint64_t records_ = 0;
  uint64_t inode_count_ = 0;
};

}  // namespace cofs
