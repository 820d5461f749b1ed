#include "fs/directory.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "offload/base/checksum.h"

namespace cofs {

namespace {

// Part of the format: the same in every volume, so that cookies survive a dump and restore.
constexpr uint64_t kNameHashSeed = 0x6469'7265'6e74'7331;
constexpr uint64_t kChainMask = kEntryChainMax - 1;

bool known_type(uint8_t type) {
  switch (type) {
    case DT_REG:
    case DT_DIR:
    case DT_LNK:
    case DT_CHR:
    case DT_BLK:
    case DT_FIFO:
    case DT_SOCK: return true;
    default: return false;
  }
}

}  // namespace

uint64_t name_hash(std::string_view name) {
  const uint64_t hash = checksum64(std::as_bytes(std::span(name)), kNameHashSeed) >> 1;
  return std::max<uint64_t>(hash & ~kChainMask, kEntryChainMax);
}

Result<> check_name(std::string_view name) {
  if (name.empty()) return fail(Code::kNoEntry, "empty name");
  if (name.size() > ondisk::kNameBytesMax) return fail(Code::kNameTooLong, "name");
  if (name.find('/') != name.npos || name.find('\0') != name.npos) {
    return fail(Code::kInvalid, "'/' or NUL in a name");
  }
  return {};
}

uint8_t entry_type(uint32_t mode) { return static_cast<uint8_t>((mode & S_IFMT) >> 12); }

Result<EntryRecord> decode_entry(const Key& key, Bytes value) {
  ondisk::Dirent header;
  if (value.size() < sizeof(header)) return fail(Code::kCorrupt, "short directory entry", key.id);
  std::memcpy(&header, value.data(), sizeof(header));
  const Bytes name = value.subspan(sizeof(header));
  EntryRecord record;
  record.ino = header.ino;
  record.type = header.type;
  record.name = std::string_view(reinterpret_cast<const char*>(name.data()), name.size());
  const bool valid = record.name.size() == header.name_bytes && check_name(record.name) &&
                     !is_dot_name(record.name) && name_hash(record.name) == key.offset &&
                     key.n < kEntryChainMax && known_type(record.type) && record.ino != 0 &&
                     header.reserved[0] == 0 && header.reserved[1] == 0;
  if (!valid) return fail(Code::kCorrupt, "directory entry breaks its rules", key.id);
  return record;
}

std::vector<std::byte> encode_entry(std::string_view name, uint64_t ino, uint8_t type) {
  ondisk::Dirent header{};
  header.ino = ino;
  header.type = type;
  header.name_bytes = static_cast<uint8_t>(name.size());
  std::vector<std::byte> value(sizeof(header) + name.size());
  std::memcpy(value.data(), &header, sizeof(header));
  std::memcpy(value.data() + sizeof(header), name.data(), name.size());
  return value;
}

EntryChain::EntryChain(std::string_view name) : name_(name) {
  slot_.hash = name_hash(name);
  slot_.n = 0;
}

Result<bool> EntryChain::add(const Key& key, Bytes value) {
  auto record = decode_entry(key, value);
  COFS_TRY(record);
  if (record->name == name_) {
    slot_.found = true;
    slot_.n = key.n;
    slot_.ino = record->ino;
    slot_.type = record->type;
    return false;
  }
  if (key.n == slot_.n) slot_.n++;  // in key order, so the first gap stays
  return true;
}

Task<Result<EntrySlot>> find_entry(Store& store, uint64_t directory, const std::string* name) {
  EntryChain chain(*name);
  const uint64_t hash = chain.slot().hash;
  const Key end = Key::dirent(directory, hash + kEntryChainMax, 0);
  Key from = Key::dirent(directory, hash, 0);
  for (;;) {
    auto entry = co_await store.first_at_or_after(from, end);
    COFS_CO_TRY(entry);
    if (!entry->has_value()) co_return chain.slot();
    auto more = chain.add((*entry)->key, (*entry)->value);
    COFS_CO_TRY(more);
    if (!*more) co_return chain.slot();
    from = Key::dirent(directory, hash, static_cast<uint16_t>((*entry)->key.n + 1));
  }
}

Task<Result<std::vector<DirectoryEntry>>> list_entries(Store& store, uint64_t directory,
                                                       uint64_t cookie, uint64_t limit) {
  std::vector<DirectoryEntry> entries;
  Result<> decoded;
  std::function<bool(const Key&, Bytes)> visit = [&](const Key& key, Bytes value) {
    auto record = decode_entry(key, value);
    if (!record) {
      decoded = fail(record.error());
      return false;
    }
    DirectoryEntry& entry = entries.emplace_back();
    entry.name = record->name;
    entry.ino = record->ino;
    entry.type = record->type;
    entry.cookie = key.offset | key.n;
    return true;
  };
  const uint64_t next = std::max<uint64_t>(cookie, kCookieDotDot) + 1;
  const Key from =
      Key::dirent(directory, next & ~kChainMask, static_cast<uint16_t>(next & kChainMask));
  auto scanned = co_await store.scan(from, Key::dirent(directory, UINT64_MAX, 0), limit, visit);
  COFS_CO_TRY(scanned);
  COFS_CO_TRY(decoded);
  co_return entries;
}

void put_entry(Transaction& transaction, uint64_t directory, const EntrySlot& slot,
               std::string_view name, uint64_t ino, uint8_t type) {
  COFS_ASSERT(!slot.full());
  transaction.put(slot.key(directory), encode_entry(name, ino, type));
}

uint64_t entry_cost_bytes(std::string_view name) {
  return sizeof(ondisk::Key) + sizeof(ondisk::Dirent) + name.size();
}

}  // namespace cofs
