#include "tools/bench/memory_tree.h"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <ctime>

namespace cofs {

namespace {

constexpr blksize_t kBlockSize = 4096;

std::unique_ptr<MemoryInode> new_inode(uint64_t ino, const NewNode& node) {
  auto inode = std::make_unique<MemoryInode>();
  struct stat& status = inode->status;
  status.st_ino = ino;
  status.st_mode = node.mode;
  status.st_nlink = S_ISDIR(node.mode) ? 2 : 1;
  status.st_uid = node.uid;
  status.st_gid = node.gid;
  status.st_blksize = kBlockSize;
  status.st_atim = status.st_mtim = status.st_ctim = wall_time();
  inode->target = node.target;
  status.st_size = static_cast<off_t>(node.target.size());
  return inode;
}

size_t kept_part(uint64_t offset, size_t length) {
  return offset >= MemoryTree::kKeptBytes ? 0 : std::min<uint64_t>(length, MemoryTree::kKeptBytes - offset);
}

}  // namespace

timespec wall_time() {
  timespec time{};
  clock_gettime(CLOCK_REALTIME, &time);
  return time;
}

void touch(MemoryInode& inode) { inode.status.st_mtim = inode.status.st_ctim = wall_time(); }

ChunkPool::ChunkPool(size_t ready_bytes) {
  static_assert(kSlabBytes % kChunkBytes == 0);
  for (size_t ready = 0; ready < ready_bytes; ready += kSlabBytes) add_slab();
}

char* ChunkPool::take() {
  if (free_.empty()) add_slab();
  char* chunk = free_.back();
  free_.pop_back();
  return chunk;
}

void ChunkPool::give_back(char* chunk) {
  if (chunk != nullptr) free_.push_back(chunk);
}

void ChunkPool::add_slab() {
  void* slab = mmap(nullptr, kSlabBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  assert(slab != MAP_FAILED);
  for (size_t at = kSlabBytes; at != 0; at -= kChunkBytes) free_.push_back(static_cast<char*>(slab) + at - kChunkBytes);
}

uint64_t MemoryDirectory::find(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? 0 : entries_[found->second].ino;
}

void MemoryDirectory::add(std::string_view name, uint64_t ino) {
  entries_.push_back({std::string(name), ino});
  places_.emplace(entries_.back().name, entries_.size() - 1);
}

void MemoryDirectory::remove(std::string_view name) {
  const auto found = places_.find(name);
  Entry& entry = entries_[found->second];
  places_.erase(found);  // before the name that it points to
  entry = Entry();
}

MemoryTree::MemoryTree(size_t ready_bytes) : pool_(ready_bytes) {
  inodes_.resize(kRoot + 1);
  NewNode root;
  root.mode = S_IFDIR | 0755;
  inodes_[kRoot] = new_inode(kRoot, root);
}

MemoryInode* MemoryTree::make(uint64_t parent, std::string_view name, const NewNode& node) {
  MemoryInode& directory = at(parent);
  if (directory.directory.find(name) != 0) return nullptr;
  const uint64_t ino = inodes_.size();
  inodes_.push_back(new_inode(ino, node));
  if (S_ISDIR(node.mode)) {
    at(ino).parent = parent;
    directory.status.st_nlink++;
  }
  directory.directory.add(name, ino);
  touch(directory);
  return &at(ino);
}

int MemoryTree::link(uint64_t ino, uint64_t parent, std::string_view name) {
  MemoryInode& directory = at(parent);
  if (directory.directory.find(name) != 0) return EEXIST;
  directory.directory.add(name, ino);
  touch(directory);
  at(ino).status.st_nlink++;
  at(ino).status.st_ctim = wall_time();
  return 0;
}

int MemoryTree::remove(uint64_t parent, std::string_view name) {
  MemoryInode& directory = at(parent);
  const uint64_t ino = directory.directory.find(name);
  if (ino == 0) return ENOENT;
  MemoryInode& inode = at(ino);
  if (!inode.directory.empty()) return ENOTEMPTY;
  directory.directory.remove(name);
  touch(directory);
  if (S_ISDIR(inode.status.st_mode)) {
    directory.status.st_nlink--;
    inode.status.st_nlink = 0;
  } else {
    inode.status.st_nlink--;
  }
  inode.status.st_ctim = directory.status.st_ctim;
  release_if_unused(ino);
  return 0;
}

int MemoryTree::rename(uint64_t parent, std::string_view name, uint64_t new_parent, std::string_view new_name,
                       bool may_replace) {
  const uint64_t ino = at(parent).directory.find(name);
  if (ino == 0) return ENOENT;
  const uint64_t present = at(new_parent).directory.find(new_name);
  if (present == ino) return 0;
  if (present != 0) {
    if (!may_replace) return EEXIST;
    if (const int error = remove(new_parent, new_name); error != 0) return error;
  }
  at(parent).directory.remove(name);
  at(new_parent).directory.add(new_name, ino);
  if (S_ISDIR(at(ino).status.st_mode)) {
    at(parent).status.st_nlink--;
    at(new_parent).status.st_nlink++;
    at(ino).parent = new_parent;
  }
  touch(at(parent));
  touch(at(new_parent));
  at(ino).status.st_ctim = wall_time();
  return 0;
}

void MemoryTree::resize(MemoryInode& inode, uint64_t bytes) {
  const size_t kept = (bytes + ChunkPool::kChunkBytes - 1) / ChunkPool::kChunkBytes;
  for (size_t i = kept; i < inode.chunks.size(); i++) pool_.give_back(inode.chunks[i]);
  if (kept < inode.chunks.size()) inode.chunks.resize(kept);
  // What is read after the file has grown again must be zeros.
  const size_t within = bytes % ChunkPool::kChunkBytes;
  const bool shrinks = bytes < static_cast<uint64_t>(inode.status.st_size);
  if (shrinks && within != 0 && kept == inode.chunks.size() && inode.chunks.back() != nullptr) {
    std::memset(inode.chunks.back() + within, 0, ChunkPool::kChunkBytes - within);
  }
  inode.status.st_size = static_cast<off_t>(bytes);
  inode.status.st_blocks = static_cast<blkcnt_t>((bytes + 511) / 512);
}

void MemoryTree::prepare_write(MemoryInode& inode, uint64_t offset, size_t length) {
  touch(inode);
  if (offset + length > static_cast<uint64_t>(inode.status.st_size)) resize(inode, offset + length);
  for_chunks(offset, kept_part(offset, length), [&](size_t number, size_t, size_t part) {
    if (number >= inode.chunks.size()) inode.chunks.resize(number + 1);
    if (inode.chunks[number] != nullptr) return;
    inode.chunks[number] = pool_.take();
    if (part < ChunkPool::kChunkBytes) std::memset(inode.chunks[number], 0, ChunkPool::kChunkBytes);
  });
}

void MemoryTree::write(const MemoryInode& inode, uint64_t offset, const char* bytes, size_t length) {
  for_chunks(offset, kept_part(offset, length), [&](size_t number, size_t within, size_t part) {
    if (number < inode.chunks.size()) std::memcpy(inode.chunks[number] + within, bytes, part);
    bytes += part;
  });
}

void MemoryTree::forget(uint64_t ino, uint64_t lookups) {
  if (ino == kRoot) return;
  at(ino).lookups -= lookups;
  release_if_unused(ino);
}

void MemoryTree::release_if_unused(uint64_t ino) {
  MemoryInode& inode = at(ino);
  if (inode.status.st_nlink != 0 || inode.lookups != 0) return;
  resize(inode, 0);
  inodes_[ino].reset();
}

}  // namespace cofs
