#include "fs/inode.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "fs/filesystem.h"

namespace cofs {

namespace {

constexpr uint64_t kSizeMax = INT64_MAX;
constexpr uint64_t kBlocksMax = kSizeMax >> kBlockShift;
constexpr uint32_t kSymlinkBytesMax = 4095;
constexpr int64_t kRelativeAgeSeconds = 24 * 3600;

ondisk::Time encode_time(const WallTime& time) {
  ondisk::Time out{};
  out.seconds = static_cast<uint64_t>(time.seconds);
  out.nanoseconds = time.nanoseconds;
  return out;
}

WallTime decode_time(const ondisk::Time& time) {
  WallTime out;
  out.seconds = static_cast<int64_t>(uint64_t{time.seconds});
  out.nanoseconds = time.nanoseconds;
  return out;
}

bool valid_mode(uint32_t mode) {
  if ((mode & ~static_cast<uint32_t>(S_IFMT | 07777)) != 0) return false;
  switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK: return true;
    default: return false;
  }
}

// Size, inline data and rdev against the type. Valid if and only if:
// regular: size <= 2^63 - 1; inline data is the whole file and at most kInlineDataMax;
// symlink: size 1 … 4095; inline data is the whole target, and is there unless it is too long;
// all others: no inline data, and a size only for directories; rdev only for devices.
bool valid_contents(const ondisk::Inode& record) {
  const uint32_t type = record.mode & S_IFMT;
  const bool has_inline = (record.flags & ondisk::kInodeInline) != 0;
  if (!has_inline && record.inline_bytes != 0) return false;
  if (has_inline && (record.inline_bytes != record.size || record.size > ondisk::kInlineDataMax)) {
    return false;
  }
  if (type != S_IFCHR && type != S_IFBLK && record.rdev != 0) return false;
  if (type != S_IFREG && record.blocks != 0) return false;
  switch (type) {
    case S_IFREG: return record.size <= kSizeMax;
    case S_IFDIR: return !has_inline && record.size <= kSizeMax;
    case S_IFLNK:
      return record.size >= 1 && record.size <= kSymlinkBytesMax &&
             (has_inline || record.size > ondisk::kInlineDataMax);
    default: return !has_inline && record.size == 0;
  }
}

bool valid_record(const ondisk::Inode& record) {
  const bool directory = (record.mode & S_IFMT) == S_IFDIR;
  const auto is_zero = [](uint8_t byte) { return byte == 0; };
  return valid_mode(record.mode) && valid_contents(record) &&
         (record.flags & ~ondisk::kInodeFlagsKnown) == 0 && directory == (record.parent != 0) &&
         record.blocks <= kBlocksMax && record.access_time.nanoseconds < 1'000'000'000 &&
         record.modify_time.nanoseconds < 1'000'000'000 &&
         record.change_time.nanoseconds < 1'000'000'000 &&
         record.birth_time.nanoseconds < 1'000'000'000 && std::ranges::all_of(record.reserved, is_zero);
}

}  // namespace

Inode::Inode(InodeTable& in_table, Executor& executor, uint64_t number)
    : ino(number), table(in_table), lock(executor) {}

bool Inode::is_directory() const { return (mode & S_IFMT) == S_IFDIR; }
bool Inode::is_regular() const { return (mode & S_IFMT) == S_IFREG; }
bool Inode::is_symlink() const { return (mode & S_IFMT) == S_IFLNK; }

// The blocks of a file: those mapped, and those in memory that will be; dirty blocks may also replace
// mapped ones, so the sum counts only as far as the file's size explains it. Inline data counts as one
// block, because programs take a file with a size and no blocks for one hole.
static uint64_t visible_blocks(const Inode& inode) {
  if (!inode.is_regular()) return 0;
  const uint64_t sum = inode.blocks + inode.data.dirty_blocks();
  const uint64_t blocks = std::max(inode.blocks, std::min(sum, blocks_of_bytes(inode.size)));
  const bool has_inline = (inode.flags & ondisk::kInodeInline) != 0 && inode.size != 0;
  return has_inline ? std::max<uint64_t>(blocks, 1) : blocks;
}

Attributes Inode::attributes() const {
  Attributes out;
  out.ino = ino;
  out.mode = mode;
  out.nlink = nlink;
  out.uid = uid;
  out.gid = gid;
  out.rdev = rdev;
  out.size = size;
  out.blocks = visible_blocks(*this);
  out.flags = flags & (ondisk::kInodeImmutable | ondisk::kInodeAppend);
  out.access_time = access_time;
  out.modify_time = modify_time;
  out.change_time = change_time;
  out.birth_time = birth_time;
  return out;
}

std::vector<std::byte> encode_inode(const Inode& inode) {
  const bool has_inline = (inode.flags & ondisk::kInodeInline) != 0;
  COFS_ASSERT(!has_inline || inode.inline_data.size() == inode.size);
  const uint32_t inline_bytes = has_inline ? static_cast<uint32_t>(inode.inline_data.size()) : 0;

  ondisk::Inode record{};
  record.mode = inode.mode;
  record.uid = inode.uid;
  record.gid = inode.gid;
  record.nlink = inode.nlink;
  record.size = inode.size;
  record.rdev = inode.rdev;
  record.parent = inode.parent;
  record.flags = inode.flags;
  record.inline_bytes = inline_bytes;
  record.access_time = encode_time(inode.access_time);
  record.modify_time = encode_time(inode.modify_time);
  record.change_time = encode_time(inode.change_time);
  record.birth_time = encode_time(inode.birth_time);
  record.blocks = inode.blocks;
  record.generation = inode.generation;

  std::vector<std::byte> value(sizeof(record) + inline_bytes);
  std::memcpy(value.data(), &record, sizeof(record));
  if (inline_bytes != 0) {
    std::memcpy(value.data() + sizeof(record), inode.inline_data.data(), inline_bytes);
  }
  return value;
}

Result<> decode_inode(Bytes value, Inode& inode) {
  ondisk::Inode record;
  if (value.size() < sizeof(record)) return fail(Code::kCorrupt, "short inode record", inode.ino);
  std::memcpy(&record, value.data(), sizeof(record));
  if (!valid_record(record) || value.size() != sizeof(record) + record.inline_bytes) {
    return fail(Code::kCorrupt, "inode record breaks its rules", inode.ino);
  }
  inode.mode = record.mode;
  inode.uid = record.uid;
  inode.gid = record.gid;
  inode.nlink = record.nlink;
  inode.size = record.size;
  inode.rdev = record.rdev;
  inode.parent = record.parent;
  inode.flags = record.flags;
  inode.blocks = record.blocks;
  inode.generation = record.generation;
  inode.access_time = decode_time(record.access_time);
  inode.modify_time = decode_time(record.modify_time);
  inode.change_time = decode_time(record.change_time);
  inode.birth_time = decode_time(record.birth_time);
  const Bytes tail = value.subspan(sizeof(record));
  inode.inline_data.assign(reinterpret_cast<const char*>(tail.data()), tail.size());
  return {};
}

bool should_update_access_time(const Inode& inode, WallTime now, AccessTimes policy) {
  switch (policy) {
    case AccessTimes::kNone: return false;
    case AccessTimes::kStrict: return now != inode.access_time;
    case AccessTimes::kRelative: break;
  }
  if (inode.access_time <= inode.modify_time || inode.access_time <= inode.change_time) {
    return now != inode.access_time;
  }
  return now.seconds - inode.access_time.seconds >= kRelativeAgeSeconds;
}

void mark_changed(Inode& inode, WallTime now, bool contents) {
  inode.change_time = now;
  if (contents) inode.modify_time = now;
  inode.generation++;
  inode.table.mark_dirty(inode);
}

bool clear_privileges(Inode& inode, bool plain_setgid) {
  if (inode.is_directory()) return false;
  uint32_t cleared = inode.mode & static_cast<uint32_t>(S_ISUID);
  if ((inode.mode & S_IXGRP) != 0 || plain_setgid) {
    cleared |= inode.mode & static_cast<uint32_t>(S_ISGID);
  }
  inode.mode &= ~cleared;
  if (cleared != 0) inode.lost_privileges = true;
  return cleared != 0;
}

}  // namespace cofs
