// Large direct writes: to the device first, and part of the file when it has taken them.
//
// Who writes past the cache asks the device: as long as it refuses writes, a direct write gets kIo, whatever its size;
// and a large one learns from itself that the device refuses it, and leaves the file as it was.
//
// The data of a large one goes to new space and is mapped as a copy's is: without the inode's lock until then, so that
// many writes to one file can be under way, if it is whole blocks; others are completed from the file, under the lock.
// Small writes, and those that find no room of their own or replace too many extents at once, are taken into memory like
// all others; but not a small one that comes beside large ones: it may be the end of what was one write(2) (the kernel
// cuts it where a request is full). One that comes before them is not known for that, and is there if they fail.

#include <optional>
#include <span>
#include <utility>

#include "fs/files_impl.h"

namespace cofs {

// Data that is on the device and in no file yet. Without runs: nothing was staged.
struct Files::Impl::StagedWrite {
  Reservation space;
  std::vector<StagedRun> runs;
};

// While it lives, small direct writes of the file are taken for large ones.
class Files::Impl::DirectWrite {
 public:
  explicit DirectWrite(Inode& inode) : inode_(inode) { inode_.data.direct_writes++; }
  DirectWrite(const DirectWrite&) = delete;
  ~DirectWrite() { inode_.data.direct_writes--; }

 private:
  Inode& inode_;
};

// The blocks that the write covers, whole.
static BlockRange blocks_of(const WriteData& data) {
  const uint64_t first = data.offset / kBlockBytes;
  return BlockRange{first, blocks_of_bytes(data.offset + data.length) - first};
}

// Writes the blocks to new space, if there is room.
Task<Result<>> Files::Impl::stage_write(const WriteData& data, StagedWrite* staged) {
  const uint64_t count = blocks_of(data).count;
  const uint64_t chunks = 2 + 2 * count / store.info().segment_blocks;
  const Cost cost = data_cost(count + chunks, chunks + count / ondisk::kVmapBlocksMax);
  if (!store.has_room(cost, SpaceClass::kUser)) co_return Result<>();
  auto space = co_await store.reserve(cost, SpaceClass::kUser);
  if (!space && space.error().code == Code::kNoSpace) co_return Result<>();  // others were faster
  COFS_CO_TRY(space);
  staged->space = std::move(*space);
  StagedData source;
  source.buffer = data.buffer;
  source.hashes = std::span(data.hashes).first(count);
  auto runs = co_await store.stage_data(&source, &staged->space);
  COFS_CO_TRY(runs);
  staged->runs = std::move(*runs);
  co_return Result<>();
}

// Exclusive lock: has the file name what was staged. False: it replaces too much for one transaction.
Task<Result<bool>> Files::Impl::map_staged(Inode& inode, const WriteData& data, StagedWrite* staged) {
  const BlockRange blocks = blocks_of(data);
  BlockHold hold(inode);
  auto in_blocks = co_await to_block_form(inode);
  COFS_CO_TRY(in_blocks);
  auto transaction = co_await store.begin_within_bounds(std::move(staged->space));
  COFS_CO_TRY(transaction);
  const uint64_t extents_max = step_extents();
  auto replaced = co_await store.map_range(inode.ino, blocks.start, blocks.count, extents_max + 1);
  COFS_CO_TRY(replaced);
  if (replaced->size() > extents_max) co_return false;
  uint64_t at = blocks.start;
  for (StagedRun& run : staged->runs) {
    const uint32_t count = run.count;
    transaction->map_staged(inode.ino, at, std::move(run));
    at += count;
  }
  auto applied = co_await transaction->apply();
  COFS_CO_TRY(applied);
  replace_blocks(inode, blocks, data.offset + data.length);
  co_return true;
}

Task<Result<>> Files::write_direct(uint64_t ino, WriteData data, Unprivileged kill_privileges) {
  auto stalled = impl_->store.check_stall();
  COFS_CO_TRY(stalled);
  auto inode = co_await impl_->get_file(ino);
  COFS_CO_TRY(inode);
  Inode& file = **inode;
  const bool is_large = data.length >= impl_->options.direct_bytes_min;
  const bool is_possible = data.length > 0 && data.offset <= kFileBytesMax - data.length;
  if (!is_possible || !(is_large || file.data.direct_writes > 0)) {
    co_return co_await write(ino, std::move(data), false, kill_privileges);
  }
  std::optional<Impl::DirectWrite> under_way;
  if (is_large) under_way.emplace(file);
  auto room = co_await impl_->throttle();
  COFS_CO_TRY(room);
  co_await impl_->store.pace(blocks_of(data).count);
  auto allowed = Impl::check_changeable(file, data.offset >= file.size);
  COFS_CO_TRY(allowed);
  // What is only to be appended to is so in order.
  const bool needs_lock = data.offset % kBlockBytes != 0 || data.length % kBlockBytes != 0 ||
                          (file.flags & ondisk::kInodeAppend) != 0;
  Impl::StagedWrite staged;
  if (!needs_lock) {
    auto written = co_await impl_->stage_write(data, &staged);
    COFS_CO_TRY(written);
  }
  SharedMutex::Guard guard = co_await file.lock.lock_exclusive();
  auto finished = co_await impl_->finish_truncation(file);
  COFS_CO_TRY(finished);
  if (needs_lock) {
    allowed = Impl::check_changeable(file, data.offset >= file.size);
    COFS_CO_TRY(allowed);
    auto completed = co_await impl_->complete_edges(file, data);
    COFS_CO_TRY(completed);
    auto written = co_await impl_->stage_write(data, &staged);
    COFS_CO_TRY(written);
  }
  auto admitted = co_await impl_->admit_write(file, data, kill_privileges);
  COFS_CO_TRY(admitted);
  const PrivilegeKill kill(file, kill_privileges);
  if (!staged.runs.empty()) {
    auto mapped = co_await impl_->map_staged(file, data, &staged);
    COFS_CO_TRY(mapped);
    if (*mapped) co_return Result<>();
    staged = Impl::StagedWrite();  // its place is given up first
  }
  auto written = co_await impl_->write_locked(file, data);
  COFS_CO_TRY(written);
  impl_->flush_if_due(*inode);
  co_return Result<>();
}

}  // namespace cofs
