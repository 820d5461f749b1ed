// Directory entries as tree records: one record per entry, found by the hash of its name.
//
// Key: (directory, hash, n) with a 63-bit hash whose low 4 bits are zero, and n = 0 … 15 for names
// with the same hash, in no particular order and with gaps (a name is found by looking at all n of its
// hash). An entry's cookie is hash | n: above 2, positive as a loff_t, strictly increasing in key
// order, and unchanged for as long as the entry exists. Cookies 1 and 2 are "." and "..", which are not
// stored. A seventeenth name with one 59-bit hash is refused with kTooManyLinks.
// The functions expect the directory's lock to be held. Not for: what an entry means (fs/names.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "blockmap/store.h"
#include "fs/types.h"

namespace cofs {

inline constexpr uint64_t kCookieDot = 1;
inline constexpr uint64_t kCookieDotDot = 2;
inline constexpr uint16_t kEntryChainMax = 16;  // names with one hash

// The hash part of a name's key: 16 … 2^63 - 16, a multiple of 16.
uint64_t name_hash(std::string_view name);

// Errors: kNoEntry if empty, kNameTooLong, kInvalid for '/' or NUL in it. "." and ".." pass.
Result<> check_name(std::string_view name);
inline bool is_dot_name(std::string_view name) { return name == "." || name == ".."; }

// The DT_* type of a mode.
uint8_t entry_type(uint32_t mode);

// A decoded record. Valid if and only if: the name is one that check_name accepts and no dot name, the
// key's hash is its hash, n is below kEntryChainMax, the type is a known DT_*, and reserved is zero.
struct EntryRecord {
  uint64_t ino = 0;
  uint8_t type = 0;
  std::string_view name;  // inside the record
  EntryRecord() = default;
};
Result<EntryRecord> decode_entry(const Key& key, Bytes value);
std::vector<std::byte> encode_entry(std::string_view name, uint64_t ino, uint8_t type);

// Where a name is in its directory, or where it would go.
struct EntrySlot {
  bool found = false;
  uint64_t hash = 0;
  uint16_t n = kEntryChainMax;  // of the entry if found, else the first free one; kEntryChainMax: none
  uint64_t ino = 0;
  uint8_t type = 0;
  EntrySlot() = default;
  bool full() const { return n == kEntryChainMax; }
  Key key(uint64_t directory) const { return Key::dirent(directory, hash, n); }
};

// Searches the records of one hash, given in key order.
class EntryChain {
 public:
  explicit EntryChain(std::string_view name);
  // False: found, no further record is needed. Errors: kCorrupt.
  Result<bool> add(const Key& key, Bytes value);
  const EntrySlot& slot() const { return slot_; }

 private:
  std::string_view name_;
  EntrySlot slot_;
};

// `name` must live until the task is done. Errors: kCorrupt, those of reading.
Task<Result<EntrySlot>> find_entry(Store& store, uint64_t directory, const std::string* name);

// Up to `limit` stored entries with cookies above `cookie`.
Task<Result<std::vector<DirectoryEntry>>> list_entries(Store& store, uint64_t directory,
                                                       uint64_t cookie, uint64_t limit);

void put_entry(Transaction& transaction, uint64_t directory, const EntrySlot& slot,
               std::string_view name, uint64_t ino, uint8_t type);
uint64_t entry_cost_bytes(std::string_view name);

}  // namespace cofs
