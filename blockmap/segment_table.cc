#include "blockmap/segment_table.h"

#include <algorithm>
#include <cstring>

namespace cofs {
namespace {

constexpr size_t kResidentGroupsMax = 4096;  // 6 MiB of memory
constexpr uint64_t kGroupsSearched = 256;    // from the front: so many take no time
constexpr size_t kUsableMax = 65'536;        // free segments known by number

bool is_node_stream(ondisk::Stream stream) {
  return stream == ondisk::Stream::kMeta || stream == ondisk::Stream::kMetaMirror;
}

std::vector<std::byte> encode_group(const std::array<SegmentState, ondisk::kSegmentGroup>& segments) {
  std::array<ondisk::SegmentInfo, ondisk::kSegmentGroup> out{};
  for (size_t i = 0; i < segments.size(); i++) {
    out[i].generation = segments[i].generation;
    out[i].live_blocks = segments[i].live_blocks;
    out[i].state = static_cast<uint8_t>(segments[i].state);
    out[i].stream = static_cast<uint8_t>(segments[i].stream);
    out[i].age = segments[i].age;
  }
  const Bytes bytes = std::as_bytes(std::span(out));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Result<std::array<SegmentState, ondisk::kSegmentGroup>> parse_segment_group(
    Bytes value, const Geometry& geometry) {
  std::array<ondisk::SegmentInfo, ondisk::kSegmentGroup> in;
  if (value.size() != sizeof(in)) return fail(Code::kCorrupt, "segment record: size");
  std::memcpy(in.data(), value.data(), sizeof(in));
  std::array<SegmentState, ondisk::kSegmentGroup> segments;
  for (size_t i = 0; i < in.size(); i++) {
    const auto reserved = std::span(in[i].reserved);
    if (in[i].state > static_cast<uint8_t>(ondisk::SegmentState::kSealed) ||
        in[i].stream >= ondisk::kStreamCount || in[i].live_blocks > geometry.segment_blocks ||
        std::any_of(reserved.begin(), reserved.end(), [](uint8_t b) { return b != 0; })) {
      return fail(Code::kCorrupt, "segment record: impossible state");
    }
    segments[i].generation = in[i].generation;
    segments[i].live_blocks = in[i].live_blocks;
    segments[i].state = static_cast<ondisk::SegmentState>(in[i].state);
    segments[i].stream = static_cast<ondisk::Stream>(in[i].stream);
    segments[i].age = in[i].age;
    if (segments[i].state == ondisk::SegmentState::kFree && segments[i].live_blocks != 0) {
      return fail(Code::kCorrupt, "segment record: a free segment with live blocks");
    }
  }
  return segments;
}

SegmentTable::SegmentTable(const Geometry& geometry, BTree& tree)
    : geometry_(geometry), tree_(tree) {}

void SegmentTable::set_counts(uint64_t free_segments, uint64_t node_segments) {
  free_count_ = free_segments;
  node_segments_ = node_segments;
}

void SegmentTable::start_search_at(uint64_t segment) {
  if (group_count() > kGroupsSearched) scan_group_ = segment / ondisk::kSegmentGroup % group_count();
}

uint64_t SegmentTable::group_count() const {
  return (geometry_.segment_count + ondisk::kSegmentGroup - 1) / ondisk::kSegmentGroup;
}

Task<Result<SegmentTable::Group>> SegmentTable::read_group(uint64_t group) {
  auto value = co_await tree_.get(Key::segment_group(group));
  COFS_CO_TRY(value);
  Group loaded;
  if (value->has_value()) {
    auto segments = parse_segment_group(**value, geometry_);
    COFS_CO_TRY(segments);
    loaded.segments = *segments;
  }
  co_return loaded;
}

Task<Result<SegmentTable::Group*>> SegmentTable::load_group(uint64_t group) {
  if (auto found = groups_.find(group); found != groups_.end()) co_return &found->second;
  auto loaded = co_await read_group(group);
  COFS_CO_TRY(loaded);
  // A volume at rest makes no checkpoints, and its segments are looked at all the same.
  if (groups_.size() >= 2 * kResidentGroupsMax) trim();
  co_return &groups_.try_emplace(group, *loaded).first->second;  // somebody else may have been first
}

Task<Result<SegmentState*>> SegmentTable::load(uint64_t segment) {
  if (segment >= geometry_.segment_count || segment == geometry_.reserved_segment()) {
    co_return fail(Code::kCorrupt, "a segment number outside of the volume", segment);
  }
  auto group = co_await load_group(segment / ondisk::kSegmentGroup);
  COFS_CO_TRY(group);
  co_return &(*group)->segments[segment % ondisk::kSegmentGroup];
}

bool SegmentTable::may_use(uint64_t segment) const {
  return segment < geometry_.segment_count && segment != geometry_.reserved_segment() &&
         !held_.contains(segment) && !set_aside_.contains(segment);
}

Task<Result<uint64_t>> SegmentTable::open_free(ondisk::Stream stream, uint64_t age) {
  auto segment = co_await find_free();
  COFS_CO_TRY(segment);
  auto state = co_await load(*segment);
  COFS_CO_TRY(state);
  const uint32_t generation = (*state)->generation + 1;
  auto opened = co_await open_named(*segment, generation, stream, age);
  COFS_CO_TRY(opened);
  co_return *segment;
}

Task<Result<uint64_t>> SegmentTable::borrow_free() {
  auto segment = co_await find_free();
  COFS_CO_TRY(segment);
  set_aside_.insert(*segment);
  co_return *segment;
}

Task<Result<bool>> SegmentTable::is_usable(uint64_t segment) {
  if (!may_use(segment)) co_return false;
  auto state = co_await load(segment);
  COFS_CO_TRY(state);
  co_return (*state)->state == ondisk::SegmentState::kFree && may_use(segment);
}

Task<Result<BlockRange>> SegmentTable::find_free_run(uint64_t from) {
  BlockRange run;
  for (uint64_t segment = from; segment < geometry_.segment_count && run.count < kRunMax; segment++) {
    auto usable = co_await is_usable(segment);
    COFS_CO_TRY(usable);
    if (*usable && run.count == 0) run.start = segment;
    if (*usable) {
      run.count++;
    } else if (run.count != 0) {
      break;
    }
  }
  co_return run;
}

Task<Result<uint64_t>> SegmentTable::borrow_run(uint64_t first, uint64_t count) {
  uint64_t lent = 0;
  while (lent < count) {
    auto usable = co_await is_usable(first + lent);
    if (usable && *usable) {
      set_aside_.insert(first + lent);
      lent++;
      continue;
    }
    if (usable) break;
    while (lent > 0) add_usable(first + --lent);
    co_return fail(usable.error());
  }
  co_return lent;
}

// A segment that may be opened, taken out of usable_.
Task<Result<uint64_t>> SegmentTable::find_free() {
  while (true) {
    while (!usable_.empty()) {
      const uint64_t segment = *usable_.begin();
      usable_.erase(usable_.begin());
      auto state = co_await load(segment);
      COFS_CO_TRY(state);
      if (!may_use(segment) || (*state)->state != ondisk::SegmentState::kFree) continue;
      co_return segment;
    }
    if (scanned_groups_ >= group_count()) co_return fail(Code::kNoSpace, "no free segment");
    const uint64_t number = scan_group_;
    auto group = co_await load_group(number);
    COFS_CO_TRY(group);
    scan_group_ = (number + 1) % group_count();
    scanned_groups_++;
    for (uint32_t i = 0; i < ondisk::kSegmentGroup; i++) {
      const uint64_t segment = number * ondisk::kSegmentGroup + i;
      if ((*group)->segments[i].state == ondisk::SegmentState::kFree && may_use(segment)) {
        usable_.insert(segment);
      }
    }
  }
}

Task<Result<>> SegmentTable::open_named(uint64_t segment, uint32_t generation,
                                        ondisk::Stream stream, uint64_t age) {
  auto loaded = co_await load(segment);
  COFS_CO_TRY(loaded);
  SegmentState& state = **loaded;
  if (state.state == ondisk::SegmentState::kOpen && state.generation == generation) {
    co_return Result<>();  // replayed over a checkpoint that has it already
  }
  if (state.live_blocks != 0 || generation <= state.generation) {
    co_return fail(Code::kCorrupt, "opening a segment that is in use", segment);
  }
  // The log does not tell when a segment was sealed: one that it opens again had been sealed, emptied
  // and freed before.
  if (state.state != ondisk::SegmentState::kFree) mark_free(segment, state, Hold());
  free_count_--;
  if (is_node_stream(stream)) node_segments_++;
  held_.erase(segment);
  usable_.erase(segment);
  state.state = ondisk::SegmentState::kOpen;
  state.generation = generation;
  state.stream = stream;
  state.live_blocks = 0;
  state.age = age;
  groups_.at(segment / ondisk::kSegmentGroup).dirty = true;
  co_return Result<>();
}

void SegmentTable::mark_free(uint64_t segment, SegmentState& state, Hold hold) {
  if (is_node_stream(state.stream)) node_segments_--;
  state.state = ondisk::SegmentState::kFree;
  free_count_++;
  freed_total_++;
  held_[segment] = hold;
  groups_.at(segment / ondisk::kSegmentGroup).dirty = true;
  observer_(segment, state);
}

Task<Result<>> SegmentTable::seal(uint64_t segment, uint64_t age, Hold hold) {
  auto loaded = co_await load(segment);
  COFS_CO_TRY(loaded);
  SegmentState& state = **loaded;
  if (state.state != ondisk::SegmentState::kOpen) co_return Result<>();
  state.state = ondisk::SegmentState::kSealed;
  state.age = age;
  groups_.at(segment / ondisk::kSegmentGroup).dirty = true;
  if (state.live_blocks == 0 && !pins_.contains(segment)) {
    mark_free(segment, state, hold);
  } else {
    observer_(segment, state);
  }
  co_return Result<>();
}

Task<Result<>> SegmentTable::add_live(uint64_t segment, int64_t blocks, Hold hold) {
  auto loaded = co_await load(segment);
  COFS_CO_TRY(loaded);
  SegmentState& state = **loaded;
  const int64_t live = int64_t{state.live_blocks} + blocks;
  if (live < 0 || live > int64_t{geometry_.segment_blocks} ||
      state.state == ondisk::SegmentState::kFree) {
    co_return fail(Code::kCorrupt, "segment accounting does not add up", segment);
  }
  state.live_blocks = static_cast<uint32_t>(live);
  groups_.at(segment / ondisk::kSegmentGroup).dirty = true;
  if (state.state != ondisk::SegmentState::kSealed) co_return Result<>();
  if (live == 0 && !pins_.contains(segment)) {
    mark_free(segment, state, hold);
  } else {
    observer_(segment, state);
  }
  co_return Result<>();
}

Task<Result<>> SegmentTable::unpin(uint64_t segment, Hold hold) {
  auto pinned = pins_.find(segment);
  COFS_ASSERT(pinned != pins_.end());
  if (--pinned->second != 0) co_return Result<>();
  pins_.erase(pinned);
  auto loaded = co_await load(segment);
  COFS_CO_TRY(loaded);
  SegmentState& state = **loaded;
  if (state.live_blocks == 0 && state.state == ondisk::SegmentState::kSealed &&
      !pins_.contains(segment)) {
    mark_free(segment, state, hold);
  }
  co_return Result<>();
}

bool SegmentTable::is_unmapped(uint64_t segment, const SegmentState& state) const {
  return state.state == ondisk::SegmentState::kSealed && state.live_blocks == 0 && !is_node_stream(state.stream) &&
         state.stream != ondisk::Stream::kLog && pins_.contains(segment);
}

uint64_t SegmentTable::durable_free_count() const {
  uint64_t count = free_count_;
  for (const auto& [segment, pins] : pins_) {
    const auto group = groups_.find(segment / ondisk::kSegmentGroup);  // of a sealed one it is there
    if (group != groups_.end() && is_unmapped(segment, group->second.segments[segment % ondisk::kSegmentGroup])) count++;
  }
  return count;
}

Task<Result<>> SegmentTable::revive(uint64_t segment, uint32_t generation) {
  auto loaded = co_await load(segment);
  COFS_CO_TRY(loaded);
  SegmentState& state = **loaded;
  if (state.state != ondisk::SegmentState::kFree || state.generation != generation || generation == 0) {
    co_return Result<>();
  }
  free_count_--;
  held_.erase(segment);
  usable_.erase(segment);
  state.state = ondisk::SegmentState::kSealed;
  groups_.at(segment / ondisk::kSegmentGroup).dirty = true;
  co_return Result<>();
}

std::vector<uint64_t> SegmentTable::release_held(const HoldProgress& progress) {
  std::vector<uint64_t> released;
  waits_for_readers_ = false;
  for (auto it = held_.begin(); it != held_.end();) {
    const Hold& hold = it->second;
    const bool commit_done = hold.commit == 0 || progress.durable_commit > hold.commit ||
                             progress.checkpoint_commit >= hold.commit;
    const bool durable = commit_done && hold.checkpoint <= progress.checkpoint;
    const bool unread = hold.readers < progress.oldest_reader;
    if (durable && !unread) waits_for_readers_ = true;
    if (durable && unread) {
      released.push_back(it->first);
      set_aside_.insert(it->first);
      it = held_.erase(it);
    } else {
      ++it;
    }
  }
  std::sort(released.begin(), released.end());
  return released;
}

void SegmentTable::add_usable(uint64_t segment) {
  set_aside_.erase(segment);
  if (usable_.size() < kUsableMax) {
    usable_.insert(segment);
  } else {
    scanned_groups_ = 0;  // it is found again once those are used up
  }
}

Task<Result<bool>> SegmentTable::flush_groups() {
  std::vector<uint64_t> changed;
  for (auto& [number, group] : groups_) {
    if (group.dirty) changed.push_back(number);
  }
  std::sort(changed.begin(), changed.end());
  for (uint64_t number : changed) {
    Group& group = groups_.at(number);
    auto segments = group.segments;
    for (uint32_t i = 0; i < ondisk::kSegmentGroup; i++) {
      if (is_unmapped(number * ondisk::kSegmentGroup + i, segments[i])) segments[i].state = ondisk::SegmentState::kFree;
    }
    const std::vector<std::byte> value = encode_group(segments);
    auto put = co_await tree_.put(Key::segment_group(number), value);
    COFS_CO_TRY(put);
    group.dirty = false;  // not before: a clean group may be forgotten, and read again as the tree has it
  }
  co_return !changed.empty();
}

Task<Result<>> SegmentTable::visit_some(
    uint64_t& cursor_group, uint64_t groups,
    const std::function<void(uint64_t, const SegmentState&)>& visit) {
  for (uint64_t n = 0; n < std::min(groups, group_count()); n++) {
    const uint64_t number = cursor_group % group_count();
    Group read;
    if (!groups_.contains(number)) {
      auto group = co_await read_group(number);
      COFS_CO_TRY(group);
      read = *group;
    }
    const auto resident = groups_.find(number);  // perhaps since a moment ago
    const Group& group = resident != groups_.end() ? resident->second : read;
    for (uint32_t i = 0; i < ondisk::kSegmentGroup; i++) {
      visit(number * ondisk::kSegmentGroup + i, group.segments[i]);
    }
    cursor_group = number + 1;
  }
  co_return Result<>();
}

void SegmentTable::trim() {
  if (groups_.size() <= kResidentGroupsMax) return;
  std::unordered_set<uint64_t> pinned;
  for (const auto& [segment, pins] : pins_) pinned.insert(segment / ondisk::kSegmentGroup);
  for (auto it = groups_.begin(); it != groups_.end() && groups_.size() > kResidentGroupsMax;) {
    it = it->second.dirty || pinned.contains(it->first) ? std::next(it) : groups_.erase(it);
  }
}

}  // namespace cofs
