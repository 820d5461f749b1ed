// POSIX.1e access control lists in the form of the xattrs system.posix_acl_access / _default, and their
// tie to the permission bits of a mode. Pure functions on bytes.
//
// The kernel checks permissions against them; this side keeps them consistent: an ACL that says no
// more than the mode is not stored, a new file gets its ACL from the directory's default, a chmod
// changes the ACL and setting an ACL changes the mode.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fs/types.h"
#include "offload/base/error.h"

namespace cofs {

inline constexpr std::string_view kAccessAclName = "system.posix_acl_access";
inline constexpr std::string_view kDefaultAclName = "system.posix_acl_default";

class Acl {
 public:
  enum Tag : uint16_t {
    kUserObj = 0x01,
    kUser = 0x02,
    kGroupObj = 0x04,
    kGroup = 0x08,
    kMask = 0x10,
    kOther = 0x20,
  };
  struct Entry {
    uint16_t tag = 0;
    uint16_t permissions = 0;  // rwx: 4, 2, 1
    uint32_t id = 0;           // of kUser and kGroup
    Entry() = default;
    Entry(uint16_t t, uint16_t p, uint32_t i) : tag(t), permissions(p), id(i) {}
  };

  // Valid if and only if: version 2, whole entries, permissions 0 … 7, and either no entry at all, or
  // in this order one kUserObj, any kUser, one kGroupObj, any kGroup, a kMask (needed if there is a
  // kUser or kGroup), one kOther. Errors: kInvalid; kNotSupported for another version.
  static Result<Acl> parse(std::string_view value);
  std::string serialize() const;

  bool empty() const { return entries_.empty(); }
  const std::vector<Entry>& entries() const { return entries_; }
  void add(Entry entry) { entries_.push_back(entry); }

  // The nine permission bits that a mode shows for this ACL (the group bits are the mask's).
  uint32_t mode_bits() const;
  // True if mode_bits() say all that the ACL says.
  bool equals_mode() const;
  // Whether it grants all of `permissions` (rwx: 4, 2, 1) on a file of this owner and group; POSIX.1e
  // 23.1.5, root's privileges not counted.
  bool permits(uint16_t permissions, uint32_t owner, uint32_t group, const Caller& caller) const;
  // After chmod: owner, mask (or group) and other become what `mode` says.
  void apply_mode(uint32_t mode);
  // For a new file whose directory has this as default: limits the ACL by the mode asked for, and
  // returns that mode limited by the ACL.
  uint32_t create(uint32_t mode);

 private:
  Entry* find(uint16_t tag);
  std::vector<Entry> entries_;
};

}  // namespace cofs
