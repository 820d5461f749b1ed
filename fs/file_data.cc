#include "fs/file_data.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "offload/base/error.h"

namespace cofs {

namespace {

FileData::Run part_of(const FileData::Run& run, uint64_t skip, uint64_t count) {
  COFS_ASSERT(skip + count <= run.count);
  FileData::Run part;
  part.count = static_cast<uint32_t>(count);
  part.buffer = run.buffer;
  part.buffer_block = run.buffer_block + static_cast<uint32_t>(skip);
  const auto first = run.hashes.begin() + static_cast<std::ptrdiff_t>(skip);
  part.hashes.assign(first, first + static_cast<std::ptrdiff_t>(count));
  return part;
}

FileData::Piece piece_of(const FileData::Run& run, uint64_t run_start, uint64_t from, uint64_t to) {
  FileData::Piece piece;
  piece.file_block = from;
  piece.count = static_cast<uint32_t>(to - from);
  piece.buffer = run.buffer;
  piece.buffer_block = run.buffer_block + static_cast<uint32_t>(from - run_start);
  return piece;
}

// The first entry of a map of {start → something with count} that ends after `block`.
template <class Map>
auto first_ending_after(Map& map, uint64_t block) {
  auto at = map.upper_bound(block);
  if (at != map.begin()) {
    auto before = std::prev(at);
    if (before->first + before->second.count > block) return before;
  }
  return at;
}

}  // namespace

// --- Primitives: every change of dirty_ goes through insert_run and erase_run, which keep the counts.

uint64_t FileData::neighbours(DirtyMap::const_iterator at) const {
  uint64_t joined = 0;
  if (at != dirty_.begin()) {
    const auto before = std::prev(at);
    if (before->first + before->second.count == at->first) joined++;
  }
  const auto after = std::next(at);
  if (after != dirty_.end() && at->first + at->second.count == after->first) joined++;
  return joined;
}

FileData::DirtyMap::iterator FileData::insert_run(uint64_t file_block, Run run) {
  dirty_blocks_ += run.count;
  const auto [at, added] = dirty_.emplace(file_block, std::move(run));
  COFS_ASSERT(added);
  dirty_fragments_ = dirty_fragments_ + 1 - neighbours(at);
  return at;
}

FileData::DirtyMap::iterator FileData::erase_run(DirtyMap::iterator at) {
  dirty_blocks_ -= at->second.count;
  dirty_fragments_ = dirty_fragments_ + neighbours(at) - 1;
  return dirty_.erase(at);
}

void FileData::split_dirty(uint64_t at) {
  const auto found = first_ending_after(dirty_, at);
  if (found == dirty_.end() || found->first >= at) return;
  const uint64_t start = found->first;
  const uint64_t head = at - start;
  Run run = std::move(found->second);
  // The halves are neighbours of each other, so the counts stay as they are.
  Run tail = part_of(run, head, run.count - head);
  run.count = static_cast<uint32_t>(head);
  run.hashes.resize(head);
  found->second = std::move(run);
  dirty_.emplace_hint(std::next(found), at, std::move(tail));
}

void FileData::split_claims(uint64_t at) {
  const auto found = first_ending_after(claims_, at);
  if (found == claims_.end() || found->first >= at) return;
  const uint32_t head = static_cast<uint32_t>(at - found->first);
  const Claim tail{found->second.count - head, found->second.token};
  found->second.count = head;
  claims_.emplace_hint(std::next(found), at, tail);
}

uint64_t FileData::drop_dirty(uint64_t file_block, uint64_t end) {
  const uint64_t before = dirty_blocks_;
  split_dirty(file_block);
  split_dirty(end);
  auto at = dirty_.lower_bound(file_block);
  while (at != dirty_.end() && at->first < end) at = erase_run(at);
  return before - dirty_blocks_;
}

void FileData::drop_claims(uint64_t file_block, uint64_t end) {
  split_claims(file_block);
  split_claims(end);
  claims_.erase(claims_.lower_bound(file_block), claims_.lower_bound(end));
}

// --- Looking.

std::optional<BlockView> FileData::find(uint64_t file_block) const {
  const auto dirty = first_ending_after(dirty_, file_block);
  if (dirty != dirty_.end() && dirty->first <= file_block) {
    const uint32_t skip = static_cast<uint32_t>(file_block - dirty->first);
    const Run& run = dirty->second;
    return BlockView{run.buffer, run.buffer_block + skip, run.hashes[skip]};
  }
  const auto claim = first_ending_after(claims_, file_block);
  if (claim == claims_.end() || claim->first > file_block) return std::nullopt;
  const InFlight& flight = in_flight_.at(claim->second.token);
  const uint32_t skip = static_cast<uint32_t>(file_block - flight.file_block);
  return BlockView{flight.run.buffer, flight.run.buffer_block + skip, flight.run.hashes[skip]};
}

void FileData::append_claimed(uint64_t file_block, uint64_t end, std::vector<Piece>* pieces) const {
  for (auto at = first_ending_after(claims_, file_block); at != claims_.end() && at->first < end;
       ++at) {
    const InFlight& flight = in_flight_.at(at->second.token);
    const uint64_t from = std::max(at->first, file_block);
    const uint64_t to = std::min(at->first + at->second.count, end);
    pieces->push_back(piece_of(flight.run, flight.file_block, from, to));
  }
}

std::vector<FileData::Piece> FileData::pieces(uint64_t file_block, uint64_t count) const {
  std::vector<Piece> found;
  if (empty()) return found;
  const uint64_t end = file_block + count;
  uint64_t cursor = file_block;
  for (auto at = first_ending_after(dirty_, file_block); at != dirty_.end() && at->first < end; ++at) {
    const uint64_t from = std::max(at->first, file_block);
    const uint64_t to = std::min(at->first + at->second.count, end);
    if (cursor < from) append_claimed(cursor, from, &found);
    found.push_back(piece_of(at->second, at->first, from, to));
    cursor = to;
  }
  if (cursor < end) append_claimed(cursor, end, &found);
  return found;
}

bool FileData::overlaps_dirty(uint64_t file_block, uint64_t count) const {
  const auto at = first_ending_after(dirty_, file_block);
  return at != dirty_.end() && at->first < file_block + count;
}

bool FileData::overlaps(uint64_t file_block, uint64_t count) const {
  if (overlaps_dirty(file_block, count)) return true;
  const auto at = first_ending_after(claims_, file_block);
  return at != claims_.end() && at->first < file_block + count;
}

std::vector<BlockRange> FileData::dirty_ranges(uint64_t file_block, uint64_t count) const {
  const uint64_t end = file_block + count;
  std::vector<BlockRange> ranges;
  for (auto at = first_ending_after(dirty_, file_block); at != dirty_.end() && at->first < end; ++at) {
    const uint64_t from = std::max(at->first, file_block);
    ranges.push_back(BlockRange{from, std::min(at->first + at->second.count, end) - from});
  }
  return ranges;
}

std::vector<BlockRange> FileData::ranges_from(uint64_t file_block, size_t limit) const {
  std::vector<BlockRange> ranges;
  auto dirty = first_ending_after(dirty_, file_block);
  auto claim = first_ending_after(claims_, file_block);
  while (ranges.size() < limit && (dirty != dirty_.end() || claim != claims_.end())) {
    const bool take_dirty = claim == claims_.end() ||
                            (dirty != dirty_.end() && dirty->first <= claim->first);
    if (take_dirty) {
      ranges.push_back(BlockRange{dirty->first, dirty->second.count});
      ++dirty;
    } else {
      ranges.push_back(BlockRange{claim->first, claim->second.count});
      ++claim;
    }
  }
  return ranges;
}

uint64_t FileData::dirty_blocks_in(uint64_t file_block, uint64_t count) const {
  const uint64_t end = file_block + count;
  uint64_t blocks = 0;
  for (auto at = first_ending_after(dirty_, file_block); at != dirty_.end() && at->first < end; ++at) {
    blocks += std::min(at->first + at->second.count, end) - std::max(at->first, file_block);
  }
  return blocks;
}

std::optional<uint64_t> FileData::next_block(uint64_t file_block) const {
  std::optional<uint64_t> next;
  const auto dirty = first_ending_after(dirty_, file_block);
  if (dirty != dirty_.end()) next = std::max(dirty->first, file_block);
  const auto claim = first_ending_after(claims_, file_block);
  if (claim != claims_.end()) {
    const uint64_t block = std::max(claim->first, file_block);
    if (!next || block < *next) next = block;
  }
  return next;
}

// --- Changing.

uint64_t FileData::add_dirty(uint64_t file_block, Run run) {
  COFS_ASSERT(run.count > 0 && run.hashes.size() == run.count);
  const uint64_t count = run.count;
  const uint64_t replaced = drop_dirty(file_block, file_block + count);
  insert_run(file_block, std::move(run));
  return count - replaced;
}

uint64_t FileData::drop(uint64_t file_block, uint64_t count) {
  drop_claims(file_block, file_block + count);
  return drop_dirty(file_block, file_block + count);
}

std::vector<FileData::Taken> FileData::take_dirty(uint64_t from, uint64_t count, uint64_t blocks_max,
                                                  uint64_t fragments_max, uint64_t* next_token) {
  std::vector<Taken> taken;
  const uint64_t end = from + count;
  uint64_t blocks = 0;
  uint64_t fragments = 0;
  uint64_t previous_end = UINT64_MAX;
  split_dirty(from);
  auto at = dirty_.lower_bound(from);
  while (at != dirty_.end() && at->first < end && blocks < blocks_max) {
    const uint64_t start = at->first;
    if (start != previous_end && ++fragments > fragments_max) break;
    const uint64_t length = std::min({uint64_t{at->second.count}, end - start, blocks_max - blocks});
    split_dirty(start + length);
    Run run = at->second;
    at = erase_run(at);
    blocks += length;
    previous_end = start + length;

    const uint64_t token = (*next_token)++;
    drop_claims(start, start + length);
    claims_.emplace(start, Claim{run.count, token});
    in_flight_.emplace(token, InFlight{start, run});
    taken.push_back(Taken{start, token, std::move(run)});
  }
  return taken;
}

std::vector<BlockRange> FileData::release_claims(uint64_t token, const InFlight& flight) {
  std::vector<BlockRange> released;
  const uint64_t end = flight.file_block + flight.run.count;
  auto at = claims_.lower_bound(flight.file_block);
  while (at != claims_.end() && at->first < end) {
    if (at->second.token != token) {
      ++at;
      continue;
    }
    released.push_back(BlockRange{at->first, at->second.count});
    at = claims_.erase(at);
  }
  return released;
}

void FileData::written(uint64_t token) {
  const auto flight = in_flight_.find(token);
  COFS_ASSERT(flight != in_flight_.end());
  release_claims(token, flight->second);
  in_flight_.erase(flight);
}

void FileData::put_back(uint64_t token) {
  const auto found = in_flight_.find(token);
  COFS_ASSERT(found != in_flight_.end());
  const InFlight flight = std::move(found->second);
  in_flight_.erase(found);
  for (const BlockRange& range : release_claims(token, flight)) {
    uint64_t cursor = range.start;
    while (cursor < range.end()) {
      const auto newer = first_ending_after(dirty_, cursor);
      if (newer != dirty_.end() && newer->first <= cursor) {
        cursor = newer->first + newer->second.count;
        continue;
      }
      const uint64_t stop =
          newer == dirty_.end() ? range.end() : std::min(newer->first, range.end());
      insert_run(cursor, part_of(flight.run, cursor - flight.file_block, stop - cursor));
      cursor = stop;
    }
  }
}

void FileData::check_invariants() const {
  uint64_t blocks = 0;
  uint64_t fragments = 0;
  uint64_t previous_end = UINT64_MAX;
  for (const auto& [start, run] : dirty_) {
    COFS_ASSERT(run.count > 0 && run.hashes.size() == run.count && run.buffer);
    COFS_ASSERT(previous_end == UINT64_MAX || start >= previous_end);
    if (start != previous_end) fragments++;
    blocks += run.count;
    previous_end = start + run.count;
  }
  COFS_ASSERT(blocks == dirty_blocks_ && fragments == dirty_fragments_);
  uint64_t claimed_end = 0;
  for (const auto& [start, claim] : claims_) {
    COFS_ASSERT(claim.count > 0 && start >= claimed_end);
    claimed_end = start + claim.count;
    const InFlight& flight = in_flight_.at(claim.token);
    COFS_ASSERT(start >= flight.file_block &&
                claimed_end <= flight.file_block + flight.run.count);
  }
}

}  // namespace cofs
