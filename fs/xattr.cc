#include "fs/xattr.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "fs/acl.h"
#include "offload/base/checksum.h"

namespace cofs {

namespace {

constexpr uint64_t kXattrHashSeed = 0x7861'7474'7231;  // part of the format
constexpr uint64_t kEraseBatch = 128;                  // records in one transaction

Key first_key(uint64_t ino) { return Key::xattr(ino, 0, 0); }
Key end_key(uint64_t ino) { return Key::xattr(ino, uint64_t{1} << 32, 0); }

Key part_key(uint64_t ino, std::string_view name, uint16_t index, uint16_t part) {
  return Key::xattr(ino, xattr_hash(name), static_cast<uint16_t>(index * kXattrPartsMax + part));
}

uint64_t part_length(uint64_t value_bytes, uint16_t part) {
  const uint64_t start = uint64_t{part} * kXattrPartBytes;
  return value_bytes <= start ? 0 : std::min<uint64_t>(value_bytes - start, kXattrPartBytes);
}

}  // namespace

uint32_t xattr_hash(std::string_view name) {
  return static_cast<uint32_t>(checksum64(std::as_bytes(std::span(name)), kXattrHashSeed));
}

uint16_t xattr_parts(uint64_t value_bytes) {
  const uint64_t parts = (value_bytes + kXattrPartBytes - 1) / kXattrPartBytes;
  return static_cast<uint16_t>(std::max<uint64_t>(parts, 1));
}
static_assert(kXattrValueMax / kXattrPartBytes <= kXattrPartsMax);
static_assert(sizeof(ondisk::Xattr) + ondisk::kNameBytesMax + kXattrPartBytes <=
              ondisk::kValueBytesMax);

Result<> check_xattr_name(std::string_view name, uint32_t mode) {
  if (name.size() > ondisk::kNameBytesMax) return fail(Code::kRange, "attribute name");
  if (name.empty()) return fail(Code::kRange, "attribute name");
  if (name.find('\0') != name.npos) return fail(Code::kInvalid, "NUL in an attribute name");
  const uint32_t type = mode & S_IFMT;
  if (name == kAccessAclName || name == kDefaultAclName) {
    if (type == S_IFLNK) return fail(Code::kNotSupported, "ACL of a symlink");
    return {};
  }
  for (std::string_view prefix : {"user.", "trusted.", "security."}) {
    if (!name.starts_with(prefix)) continue;
    if (name.size() == prefix.size()) return fail(Code::kInvalid, "attribute name");
    if (prefix == "user." && type != S_IFREG && type != S_IFDIR) {
      return fail(Code::kNotPermitted, "user attribute of a special file");
    }
    return {};
  }
  return fail(Code::kNotSupported, "attribute namespace");
}

Result<XattrPart> decode_xattr(const Key& key, Bytes value) {
  ondisk::Xattr header;
  if (value.size() < sizeof(header)) return fail(Code::kCorrupt, "short attribute", key.id);
  std::memcpy(&header, value.data(), sizeof(header));
  const uint64_t name_bytes = header.name_bytes;
  const Bytes rest = value.subspan(sizeof(header));
  if (name_bytes == 0 || name_bytes > ondisk::kNameBytesMax || name_bytes > rest.size()) {
    return fail(Code::kCorrupt, "attribute's name", key.id);
  }
  XattrPart part;
  const char* text = reinterpret_cast<const char*>(rest.data());
  part.name = std::string_view(text, name_bytes);
  part.data = std::string_view(text + name_bytes, rest.size() - name_bytes);
  part.value_bytes = header.value_bytes;
  const uint16_t number = key.n % kXattrPartsMax;
  const bool valid = header.part == number && part.value_bytes <= kXattrValueMax &&
                     number < xattr_parts(part.value_bytes) &&
                     part.data.size() == part_length(part.value_bytes, number) &&
                     key.offset == xattr_hash(part.name);
  if (!valid) return fail(Code::kCorrupt, "attribute breaks its rules", key.id);
  return part;
}

Result<> XattrChain::add(const Key& key, Bytes value) {
  auto part = decode_xattr(key, value);
  COFS_TRY(part);
  const uint16_t index = key.n / kXattrPartsMax;
  const uint16_t number = key.n % kXattrPartsMax;
  if (number == 0) {
    in_match_ = part->name == name_;
    if (in_match_ && slot_.found) return fail(Code::kCorrupt, "attribute twice", ino_);
    if (in_match_) {
      slot_.found = true;
      slot_.index = index;
      value_bytes_ = part->value_bytes;
    }
    if (index == next_free_) next_free_++;
  }
  if (!in_match_) return {};
  if (index != slot_.index || number != slot_.parts || part->name != name_ ||
      part->value_bytes != value_bytes_) {
    return fail(Code::kCorrupt, "parts of an attribute", ino_);
  }
  slot_.parts++;
  slot_.value += part->data;
  return {};
}

Result<XattrSlot> XattrChain::finish() {
  if (!slot_.found) {
    slot_.index = next_free_;
    return std::move(slot_);
  }
  if (slot_.value.size() != value_bytes_) {
    return fail(Code::kCorrupt, "missing part of an attribute", ino_);
  }
  return std::move(slot_);
}

Task<Result<XattrSlot>> find_xattr(Store& store, uint64_t ino, const std::string* name) {
  XattrChain chain(ino, *name);
  Result<> added;
  std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes value) {
    added = chain.add(key, value);
    return added.has_value();
  };
  const uint64_t hash = xattr_hash(*name);
  auto scanned = co_await store.scan(Key::xattr(ino, hash, 0), Key::xattr(ino, hash + 1, 0),
                                     UINT64_MAX, visit);
  COFS_CO_TRY(scanned);
  COFS_CO_TRY(added);
  co_return chain.finish();
}

Task<Result<std::vector<std::string>>> list_xattr_names(Store& store, uint64_t ino) {
  std::vector<std::string> names;
  Result<> decoded;
  std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes value) {
    auto part = decode_xattr(key, value);
    if (!part) {
      decoded = fail(part.error());
      return false;
    }
    if (key.n % kXattrPartsMax == 0 && part->name != kSymlinkXattr) names.emplace_back(part->name);
    return true;
  };
  auto scanned = co_await store.scan(first_key(ino), end_key(ino), UINT64_MAX, visit);
  COFS_CO_TRY(scanned);
  COFS_CO_TRY(decoded);
  co_return names;
}

Task<Result<bool>> has_xattrs_beyond(Store& store, uint64_t ino, uint64_t parts) {
  uint64_t seen = 0;
  std::function<bool(const Key&, Bytes)> visit = [&](const Key&, Bytes) {
    seen++;
    return true;
  };
  auto scanned = co_await store.scan(first_key(ino), end_key(ino), parts + 1, visit);
  COFS_CO_TRY(scanned);
  co_return seen > parts;
}

Task<Result<>> erase_all_xattrs(Store& store, uint64_t ino) {
  for (;;) {
    std::vector<Key> keys;
    std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes) {
      keys.push_back(key);
      return true;
    };
    auto scanned = co_await store.scan(first_key(ino), end_key(ino), kEraseBatch, visit);
    COFS_CO_TRY(scanned);
    if (keys.empty()) co_return Result<>();
    auto transaction = co_await store.begin(Cost(), SpaceClass::kDelete);
    COFS_CO_TRY(transaction);
    for (const Key& key : keys) transaction->erase(key);
    auto applied = co_await transaction->apply();
    COFS_CO_TRY(applied);
  }
}

void put_xattr(Transaction& transaction, uint64_t ino, std::string_view name,
               std::string_view value, const XattrSlot& slot) {
  COFS_ASSERT(slot.index < kXattrIndexMax && value.size() <= kXattrValueMax);
  const uint16_t parts = xattr_parts(value.size());
  for (uint16_t part = 0; part < parts; part++) {
    ondisk::Xattr header{};
    header.name_bytes = static_cast<uint16_t>(name.size());
    header.part = part;
    header.value_bytes = static_cast<uint32_t>(value.size());
    const std::string_view data = value.substr(size_t{part} * kXattrPartBytes, kXattrPartBytes);
    std::vector<std::byte> record(sizeof(header) + name.size() + data.size());
    std::memcpy(record.data(), &header, sizeof(header));
    std::memcpy(record.data() + sizeof(header), name.data(), name.size());
    std::ranges::copy(std::as_bytes(std::span(data)),
                      record.begin() + static_cast<ptrdiff_t>(sizeof(header) + name.size()));
    transaction.put(part_key(ino, name, slot.index, part), record);
  }
  for (uint16_t part = parts; part < slot.parts; part++) {
    transaction.erase(part_key(ino, name, slot.index, part));
  }
}

void erase_xattr(Transaction& transaction, uint64_t ino, std::string_view name,
                 const XattrSlot& slot) {
  for (uint16_t part = 0; part < slot.parts; part++) {
    transaction.erase(part_key(ino, name, slot.index, part));
  }
}

uint64_t xattr_cost_bytes(std::string_view name, uint64_t value_bytes) {
  const uint64_t head = sizeof(ondisk::Key) + sizeof(ondisk::Xattr) + name.size();
  return xattr_parts(value_bytes) * head + value_bytes;
}

Task<Result<>> drop_capability(Store& store, Inode& inode) {
  if ((inode.flags & ondisk::kInodeHasXattrs) == 0) co_return Result<>();
  const std::string name(kCapabilityXattr);
  auto slot = co_await find_xattr(store, inode.ino, &name);
  COFS_CO_TRY(slot);
  if (!slot->found) co_return Result<>();
  auto transaction = co_await store.begin(Cost(), SpaceClass::kDelete);
  COFS_CO_TRY(transaction);
  erase_xattr(*transaction, inode.ino, name, *slot);
  auto applied = co_await transaction->apply();
  co_return applied;
}

}  // namespace cofs
