// InodeTable: which inodes are in memory, and why they may or may not leave it.

#include <algorithm>
#include <utility>

#include "fs/inode.h"

namespace cofs {

namespace {
constexpr uint64_t kDirtyGroupsMin = 16;
constexpr uint64_t kDirtyNodeShare = 4;  // dirty inodes may take a quarter of the dirty tree nodes
constexpr uint64_t kDirtyInodesMin = 1024;
constexpr uint64_t kBoundedInodesMax = 512;      // for collect_bytes_bound()
}  // namespace

InodeRef::InodeRef(Inode* inode) : inode_(inode) {
  if (inode_ != nullptr) inode_->table.pin(*inode_);
}

InodeRef::~InodeRef() {
  if (inode_ != nullptr) inode_->table.unpin(*inode_);
}

InodeTable::InodeTable(Store& store, Environment& environment, uint64_t cached_max)
    : store_(store), environment_(environment), cached_max_(std::max<uint64_t>(cached_max, 1)) {}

InodeTable::~InodeTable() {
  for (const auto& [ino, inode] : inodes_) COFS_ASSERT(inode->pins == 0);
  COFS_ASSERT(loading_.empty());
}

Task<Result<InodeRef>> InodeTable::get(uint64_t ino) {
  for (;;) {
    if (Inode* resident = find_resident(ino)) {
      if (resident->deleted) co_return fail(Code::kStale, "inode was deleted", ino);
      co_return InodeRef(resident);
    }
    const auto loading = loading_.find(ino);
    if (loading == loading_.end()) break;
    co_await loading->second->wait();
  }

  loading_.emplace(ino, std::make_unique<Event>(environment_.executor));
  auto value = co_await store_.get(Key::inode(ino));
  auto node = loading_.extract(ino);
  node.mapped()->notify_all();

  COFS_CO_TRY(value);
  if (!value->has_value()) co_return fail(Code::kStale, "no such inode", ino);
  auto inode = std::make_unique<Inode>(*this, environment_.executor, ino);
  auto decoded = decode_inode(**value, *inode);
  COFS_CO_TRY(decoded);
  co_return adopt(std::move(inode));
}

InodeRef InodeTable::adopt(std::unique_ptr<Inode> inode) {
  Inode* object = inode.get();
  COFS_ASSERT(!inodes_.contains(object->ino));
  inodes_.emplace(object->ino, std::move(inode));
  InodeRef ref(object);
  evict();
  return ref;
}

InodeRef InodeTable::create(uint32_t mode) {
  auto inode = std::make_unique<Inode>(*this, environment_.executor, store_.allocate_inode());
  inode->mode = mode;
  inode->birth_time = environment_.clock.wall();
  inode->access_time = inode->modify_time = inode->change_time = inode->birth_time;
  InodeRef ref = adopt(std::move(inode));
  mark_dirty(*ref);
  return ref;
}

InodeRef InodeTable::create_root(uint32_t mode) {
  const uint64_t number = store_.allocate_inode();
  COFS_ASSERT(number == ondisk::kRootInode);  // the first number of a fresh volume
  auto inode = std::make_unique<Inode>(*this, environment_.executor, number);
  inode->mode = mode;
  inode->nlink = 2;
  inode->parent = ondisk::kRootInode;
  inode->birth_time = environment_.clock.wall();
  inode->access_time = inode->modify_time = inode->change_time = inode->birth_time;
  InodeRef ref = adopt(std::move(inode));
  mark_dirty(*ref);
  return ref;
}

uint64_t InodeTable::collect_bytes_bound() const {
  if (dirty_.size() + with_data_.size() > kBoundedInodesMax) return UINT64_MAX;
  uint64_t bytes = 0;
  const auto add = [&bytes](const Inode& inode) {
    bytes += sizeof(ondisk::RecordHeader) + sizeof(ondisk::Key) + sizeof(ondisk::Inode) +
             inode.inline_data.size();
  };
  for (const Inode* inode : dirty_) add(*inode);
  for (const auto& [ino, inode] : with_data_) {
    if (!inode->dirty) add(*inode);
  }
  return bytes;
}

Inode* InodeTable::find_resident(uint64_t ino) {
  const auto it = inodes_.find(ino);
  return it == inodes_.end() ? nullptr : it->second.get();
}

void InodeTable::mark_dirty(Inode& inode) {
  if (inode.dirty || inode.deleted) return;
  inode.dirty = true;
  inode.dirty_index = dirty_.size();
  dirty_.push_back(&inode);
  dirty_groups_.insert(inode.ino >> kDirtyGroupShift);
  settle(inode);
}

void InodeTable::forget_dirty(Inode& inode) {
  if (!inode.dirty) return;
  Inode* last = dirty_.back();
  dirty_[inode.dirty_index] = last;
  last->dirty_index = inode.dirty_index;
  dirty_.pop_back();
  inode.dirty = false;
}

bool InodeTable::wants_commit() const {
  const uint64_t groups_max = std::max(kDirtyGroupsMin, store_.dirty_nodes_floor() / kDirtyNodeShare);
  return dirty_groups_.size() > groups_max || dirty_.size() > std::max(cached_max_ / 2, kDirtyInodesMin);
}

void InodeTable::collect(Transaction& transaction) {
  // The former commit's records are in the tree by now.
  for (Inode* inode : std::exchange(collected_, {})) {
    inode->collected = false;
    settle(*inode);
  }
  for (Inode* inode : std::exchange(dirty_, {})) {
    transaction.put(Key::inode(inode->ino), encode_inode(*inode));
    inode->dirty = false;
    inode->collected = true;
    collected_.push_back(inode);
  }
  dirty_groups_.clear();
  evict();
}

void InodeTable::mark_deleted(Inode& inode) {
  inode.deleted = true;
  forget_dirty(inode);
  settle(inode);
}

void InodeTable::for_each_with_data(const std::function<void(Inode&)>& visit) {
  // The visitor may empty an inode's data, which takes it out of the map.
  std::vector<Inode*> inodes;
  inodes.reserve(with_data_.size());
  for (const auto& [ino, inode] : with_data_) inodes.push_back(inode);
  std::ranges::sort(inodes, {}, &Inode::ino);  // a hash order would differ between runs
  for (Inode* inode : inodes) visit(*inode);
}

void InodeTable::data_changed(Inode& inode) {
  if (inode.data.empty()) {
    with_data_.erase(inode.ino);
  } else {
    with_data_.emplace(inode.ino, &inode);
  }
  settle(inode);
}

void InodeTable::pin(Inode& inode) {
  inode.pins++;
  if (inode.in_lru) settle(inode);
}

void InodeTable::unpin(Inode& inode) {
  COFS_ASSERT(inode.pins > 0);
  inode.pins--;
  settle(inode);
  evict();
}

void InodeTable::settle(Inode& inode) {
  const bool idle = inode.pins == 0 && !inode.dirty && !inode.collected && inode.data.empty() &&
                    inode.open_count == 0;
  if (idle && inode.deleted) {
    if (inode.in_lru) lru_.erase(inode.lru);
    inodes_.erase(inode.ino);
    return;
  }
  if (idle == inode.in_lru) return;
  if (idle) {
    inode.lru = lru_.insert(lru_.end(), &inode);
  } else {
    lru_.erase(inode.lru);
  }
  inode.in_lru = idle;
}

void InodeTable::evict() {
  while (inodes_.size() > cached_max_ && !lru_.empty()) {
    Inode* oldest = lru_.front();
    lru_.pop_front();
    inodes_.erase(oldest->ino);
  }
}

}  // namespace cofs
