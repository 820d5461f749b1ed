#include "fs/recent_edges.h"

#include <cstring>

namespace cofs {

const RecentEdges::Entry* RecentEdges::find(uint64_t ino, uint64_t file_block) const {
  for (const Entry& entry : entries_) {
    if (entry.ino == ino && entry.file_block == file_block) return &entry;
  }
  return nullptr;
}

void RecentEdges::keep(uint64_t ino, uint64_t file_block, const std::byte* content,
                       BufferPool& pool) {
  size_t at = 0;
  while (at < kBlocks && (entries_[at].ino != ino || entries_[at].file_block != file_block)) at++;
  if (at == kBlocks) {
    at = next_;
    next_ = (next_ + 1) % kBlocks;
  }
  Entry& entry = entries_[at];
  if (!entry.buffer) entry.buffer = pool.allocate(1);
  std::memcpy(entry.buffer->data(), content, kBlockBytes);
  entry.ino = ino;
  entry.file_block = file_block;
  entry.token = 0;
  entry.virtual_block = 0;
}

void RecentEdges::keep_placed(uint64_t ino, uint64_t file_block, uint64_t virtual_block, const std::byte* content,
                              BufferPool& pool) {
  keep(ino, file_block, content, pool);
  for (Entry& entry : entries_) {
    if (entry.ino == ino && entry.file_block == file_block) entry.virtual_block = virtual_block;
  }
}

void RecentEdges::forget(uint64_t ino, uint64_t file_block, uint64_t count) {
  for (Entry& entry : entries_) {
    if (entry.ino == ino && entry.file_block - file_block < count) entry.ino = 0;
  }
}

void RecentEdges::placing(uint64_t ino, uint64_t file_block, uint64_t count, uint64_t token) {
  for (Entry& entry : entries_) {
    if (entry.ino != ino || entry.file_block - file_block >= count) continue;
    if (entry.token != 0 || entry.virtual_block != 0) continue;
    entry.token = token;
    entry.offset = entry.file_block - file_block;
  }
}

void RecentEdges::placed(uint64_t token, uint64_t first_virtual) {
  for (Entry& entry : entries_) {
    if (entry.ino == 0 || entry.token != token) continue;
    entry.virtual_block = first_virtual + entry.offset;
    entry.token = 0;
  }
}

void RecentEdges::not_placed(uint64_t token) {
  for (Entry& entry : entries_) {
    if (entry.token == token) entry.token = 0;
  }
}

bool RecentEdges::knows(uint64_t ino, uint64_t file_block) const {
  const Entry* entry = find(ino, file_block);
  return entry != nullptr && entry->virtual_block != 0;
}

bool RecentEdges::copy(uint64_t ino, uint64_t file_block, uint64_t virtual_block,
                       std::byte* target) const {
  const Entry* entry = find(ino, file_block);
  if (entry == nullptr || entry->virtual_block == 0 || entry->virtual_block != virtual_block) return false;
  std::memcpy(target, entry->buffer->data(), kBlockBytes);
  return true;
}

}  // namespace cofs
