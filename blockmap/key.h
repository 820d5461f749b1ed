// Keys of the one tree: typed, totally ordered, 24 bytes on disk. Key is the native form.
#pragma once

#include <compare>
#include <cstdint>

#include "blockmap/ondisk.h"

namespace cofs {

struct Key {
  ondisk::KeySpace space{};
  ondisk::KeyType type{};
  uint16_t n = 0;
  uint64_t id = 0;
  uint64_t offset = 0;

  Key() = default;
  Key(ondisk::KeySpace s, uint64_t i, ondisk::KeyType t, uint64_t o = 0, uint16_t number = 0)
      : space(s), type(t), n(number), id(i), offset(o) {}

  bool operator==(const Key&) const = default;
  std::strong_ordering operator<=>(const Key& other) const {
    if (space != other.space) return space <=> other.space;
    if (id != other.id) return id <=> other.id;
    if (type != other.type) return type <=> other.type;
    if (offset != other.offset) return offset <=> other.offset;
    return n <=> other.n;
  }

  ondisk::Key encode() const {
    ondisk::Key key{};
    key.space = static_cast<uint8_t>(space);
    key.type = static_cast<uint8_t>(type);
    key.n = n;
    key.id = id;
    key.offset = offset;
    return key;
  }
  // Any bytes decode; whether the types exist is checked where the value is read.
  static Key decode(const ondisk::Key& key) {
    return Key(static_cast<ondisk::KeySpace>(key.space), key.id,
               static_cast<ondisk::KeyType>(key.type), key.offset, key.n);
  }

  static Key inode(uint64_t ino) { return {ondisk::KeySpace::kFiles, ino, ondisk::KeyType::kInode}; }
  static Key xattr(uint64_t ino, uint64_t hash, uint16_t number) {
    return {ondisk::KeySpace::kFiles, ino, ondisk::KeyType::kXattr, hash, number};
  }
  static Key extent(uint64_t ino, uint64_t file_block) {
    return {ondisk::KeySpace::kFiles, ino, ondisk::KeyType::kExtent, file_block};
  }
  static Key dirent(uint64_t parent, uint64_t hash63, uint16_t number) {
    return {ondisk::KeySpace::kFiles, parent, ondisk::KeyType::kDirent, hash63, number};
  }
  static Key vmap(uint64_t virtual_block) {
    return {ondisk::KeySpace::kVmap, virtual_block, ondisk::KeyType::kVmap};
  }
  static Key vref(uint64_t virtual_block) {
    return {ondisk::KeySpace::kVref, virtual_block, ondisk::KeyType::kVref};
  }
  static Key segment_group(uint64_t group) {
    return {ondisk::KeySpace::kSegment, group, ondisk::KeyType::kSegment};
  }
  static Key orphan(uint64_t ino) {
    return {ondisk::KeySpace::kOrphan, ino, ondisk::KeyType::kOrphan};
  }
  static Key logged_op(uint64_t ino) {
    return {ondisk::KeySpace::kLoggedOp, ino, ondisk::KeyType::kLoggedOp};
  }
  static Key label() { return {ondisk::KeySpace::kVolume, 0, ondisk::KeyType::kLabel}; }
};

}  // namespace cofs
