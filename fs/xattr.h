// Extended attributes as tree records, and which names exist.
//
// An attribute is kept in parts of up to 2 KiB: key (inode, 32-bit hash of the name, n) with
// n = index * 64 + part, where index tells apart names with one hash. Every part repeats the name and
// the length of the whole value. The functions expect the inode's lock to be held. Setting and erasing
// is part of the caller's transaction. Not for: ACL semantics (fs/acl.h), the inode's flag and times.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "blockmap/store.h"
#include "fs/inode.h"

namespace cofs {

inline constexpr uint32_t kXattrValueMax = 65'536;
inline constexpr uint32_t kXattrPartBytes = 2048;
inline constexpr uint16_t kXattrPartsMax = 64;   // of one attribute: the low 6 bits of n
inline constexpr uint16_t kXattrIndexMax = 1024; // names with one hash

// A symlink's target that does not fit into the inode; never listed, not reachable by name.
inline constexpr std::string_view kSymlinkXattr = "cofs.symlink";
inline constexpr std::string_view kCapabilityXattr = "security.capability";
// "share" or "device": what copies into a file do; new files and directories get their directory's.
inline constexpr std::string_view kCloneXattr = "user.cofs.clone";

uint32_t xattr_hash(std::string_view name);

// Which names an inode of this mode can have. Errors: kRange (longer than 255), kNotSupported (no known
// prefix), kInvalid (nothing after the prefix), kNotPermitted (user. on neither file nor directory;
// ACLs on symlinks are kNotSupported).
Result<> check_xattr_name(std::string_view name, uint32_t mode);

// Where an attribute is, or would go.
struct XattrSlot {
  bool found = false;
  uint16_t index = kXattrIndexMax;  // if not found: the first free one; kXattrIndexMax: none
  uint16_t parts = 0;
  std::string value;
  XattrSlot() = default;
};

// Searches the records of one hash, given in key order.
class XattrChain {
 public:
  XattrChain(uint64_t ino, std::string_view name) : ino_(ino), name_(name) {}
  Result<> add(const Key& key, Bytes value);  // Errors: kCorrupt
  Result<XattrSlot> finish();

 private:
  uint64_t ino_;
  std::string_view name_;
  XattrSlot slot_;
  bool in_match_ = false;   // the last record belonged to the name
  uint32_t value_bytes_ = 0;
  uint16_t next_free_ = 0;
};

// A decoded record. Valid if and only if: part equals the key's, the name is 1 … 255 bytes and hashes
// to the key, the value's length is within bounds and this part has exactly its share of it.
struct XattrPart {
  std::string_view name;
  std::string_view data;
  uint32_t value_bytes = 0;
  XattrPart() = default;
};
Result<XattrPart> decode_xattr(const Key& key, Bytes value);
uint16_t xattr_parts(uint64_t value_bytes);  // at least 1

// `name` must live until the task is done.
Task<Result<XattrSlot>> find_xattr(Store& store, uint64_t ino, const std::string* name);
// All names, the internal ones left out.
Task<Result<std::vector<std::string>>> list_xattr_names(Store& store, uint64_t ino);
// True if there are more than `parts` attribute records.
Task<Result<bool>> has_xattrs_beyond(Store& store, uint64_t ino, uint64_t parts);
// Erases all attributes of a file that is being freed, in transactions of bounded size.
Task<Result<>> erase_all_xattrs(Store& store, uint64_t ino);

// Writes the value in the slot (which must not be full), erasing parts that it no longer needs.
void put_xattr(Transaction& transaction, uint64_t ino, std::string_view name,
               std::string_view value, const XattrSlot& slot);
void erase_xattr(Transaction& transaction, uint64_t ino, std::string_view name,
                 const XattrSlot& slot);
uint64_t xattr_cost_bytes(std::string_view name, uint64_t value_bytes);

// Drops the file capabilities, as a write or a change of owner must; the inode's exclusive lock is
// held. Nothing happens, without any wait, where the inode has no attributes.
Task<Result<>> drop_capability(Store& store, Inode& inode);

}  // namespace cofs
