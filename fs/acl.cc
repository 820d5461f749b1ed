#include "fs/acl.h"

#include <cstring>

#include "offload/base/endian.h"

namespace cofs {

namespace {

constexpr uint32_t kXattrVersion = 2;  // POSIX_ACL_XATTR_VERSION of Linux
constexpr uint32_t kNoId = UINT32_MAX;

struct XattrHeader {
  le32 version;
};
struct XattrEntry {
  le16 tag;
  le16 permissions;
  le32 id;
};
static_assert(sizeof(XattrHeader) == 4 && sizeof(XattrEntry) == 8);

bool has_id(uint16_t tag) { return tag == Acl::kUser || tag == Acl::kGroup; }

// The order of tags as the kernel wants it. `stage` is the tag that came last.
bool may_follow(uint16_t stage, uint16_t tag) {
  switch (tag) {
    case Acl::kUserObj: return stage == 0;
    case Acl::kUser: return stage == Acl::kUserObj || stage == Acl::kUser;
    case Acl::kGroupObj: return stage == Acl::kUserObj || stage == Acl::kUser;
    case Acl::kGroup: return stage == Acl::kGroupObj || stage == Acl::kGroup;
    case Acl::kMask: return stage == Acl::kGroupObj || stage == Acl::kGroup;
    case Acl::kOther:
      return stage == Acl::kGroupObj || stage == Acl::kGroup || stage == Acl::kMask;
    default: return false;
  }
}

Result<> check(const std::vector<Acl::Entry>& entries) {
  uint16_t stage = 0;
  bool needs_mask = false;
  bool has_mask = false;
  for (const Acl::Entry& entry : entries) {
    if (!may_follow(stage, entry.tag) || entry.permissions > 7) {
      return fail(Code::kInvalid, "ACL entry");
    }
    if (has_id(entry.tag) && entry.id == kNoId) return fail(Code::kInvalid, "ACL entry's id");
    needs_mask = needs_mask || has_id(entry.tag);
    has_mask = has_mask || entry.tag == Acl::kMask;
    stage = entry.tag;
  }
  const bool complete = entries.empty() || stage == Acl::kOther;
  if (!complete || (needs_mask && !has_mask)) return fail(Code::kInvalid, "incomplete ACL");
  return {};
}

}  // namespace

Result<Acl> Acl::parse(std::string_view value) {
  XattrHeader header;
  if (value.size() < sizeof(header)) return fail(Code::kInvalid, "short ACL");
  std::memcpy(&header, value.data(), sizeof(header));
  if (header.version != kXattrVersion) return fail(Code::kNotSupported, "ACL version");
  value.remove_prefix(sizeof(header));
  if (value.size() % sizeof(XattrEntry) != 0) return fail(Code::kInvalid, "ACL length");

  Acl acl;
  for (; !value.empty(); value.remove_prefix(sizeof(XattrEntry))) {
    XattrEntry entry;
    std::memcpy(&entry, value.data(), sizeof(entry));
    acl.add(Entry(entry.tag, entry.permissions, has_id(entry.tag) ? uint32_t{entry.id} : kNoId));
  }
  auto valid = check(acl.entries_);
  COFS_TRY(valid);
  return acl;
}

std::string Acl::serialize() const {
  XattrHeader header;
  header.version = kXattrVersion;
  std::string value(reinterpret_cast<const char*>(&header), sizeof(header));
  for (const Entry& entry : entries_) {
    XattrEntry out;
    out.tag = entry.tag;
    out.permissions = entry.permissions;
    out.id = entry.id;
    value.append(reinterpret_cast<const char*>(&out), sizeof(out));
  }
  return value;
}

Acl::Entry* Acl::find(uint16_t tag) {
  for (Entry& entry : entries_) {
    if (entry.tag == tag) return &entry;
  }
  return nullptr;
}

uint32_t Acl::mode_bits() const {
  uint32_t owner = 0;
  uint32_t group = 0;
  uint32_t other = 0;
  for (const Entry& entry : entries_) {
    if (entry.tag == kUserObj) owner = entry.permissions;
    if (entry.tag == kGroupObj || entry.tag == kMask) group = entry.permissions;  // the mask is later
    if (entry.tag == kOther) other = entry.permissions;
  }
  return (owner << 6) | (group << 3) | other;
}

bool Acl::equals_mode() const {
  for (const Entry& entry : entries_) {
    if (has_id(entry.tag) || entry.tag == kMask) return false;
  }
  return true;
}

void Acl::apply_mode(uint32_t mode) {
  Entry* group = find(kMask) != nullptr ? find(kMask) : find(kGroupObj);
  if (Entry* owner = find(kUserObj)) owner->permissions = static_cast<uint16_t>((mode >> 6) & 7);
  if (group != nullptr) group->permissions = static_cast<uint16_t>((mode >> 3) & 7);
  if (Entry* other = find(kOther)) other->permissions = static_cast<uint16_t>(mode & 7);
}

uint32_t Acl::create(uint32_t mode) {
  Entry* group = find(kMask) != nullptr ? find(kMask) : find(kGroupObj);
  const auto limit = [&mode](Entry* entry, int shift) {
    if (entry == nullptr) return;
    entry->permissions = static_cast<uint16_t>(entry->permissions & (mode >> shift) & 7U);
    mode &= ~(7U << shift) | (uint32_t{entry->permissions} << shift);
  };
  limit(find(kUserObj), 6);
  limit(group, 3);
  limit(find(kOther), 0);
  return mode;
}

// The first class that the caller belongs to decides: owner, named users, all groups together, others.
bool Acl::permits(uint16_t permissions, uint32_t owner, uint32_t group, const Caller& caller) const {
  uint16_t mask = 7;
  for (const Entry& entry : entries_) {
    if (entry.tag == kMask) mask = entry.permissions;
  }
  const auto grants = [&](uint16_t granted) { return (granted & permissions) == permissions; };
  bool in_a_group = false;
  uint16_t others = 0;
  for (const Entry& entry : entries_) {
    switch (entry.tag) {
      case kUserObj:
        if (caller.uid == owner) return grants(entry.permissions);
        break;
      case kUser:
        if (caller.uid == entry.id) return grants(entry.permissions & mask);
        break;
      case kGroupObj:
      case kGroup:
        if (!caller.in_group(entry.tag == kGroupObj ? group : entry.id)) break;
        if (grants(entry.permissions & mask)) return true;
        in_a_group = true;
        break;
      case kOther: others = entry.permissions; break;
      default: break;
    }
  }
  return !in_a_group && grants(others);
}

}  // namespace cofs
