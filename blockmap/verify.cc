// verify(): recomputes everything that can be recomputed and compares; docs/CRASH.md numbers the rules.
//
// One walk over the tree gathers what refers to what; then ranges are sorted and swept. Memory grows
// with the number of extents and vmap records, not with the device.

#include <algorithm>
#include <map>

#include "blockmap/records.h"
#include "blockmap/store_impl.h"

namespace cofs {
namespace {

constexpr size_t kProblemsKept = 1000;

struct ExtentSeen {
  uint64_t virtual_block;
  uint64_t count;
  uint64_t ino;
  bool shared;
};
struct VmapSeen {
  uint64_t virtual_block;
  uint64_t physical_block;
  uint64_t count;
  uint32_t generation;
};
struct NodeSeen {
  uint8_t level;
  NodePointer pointer;
};

class Verifier {
 public:
  Verifier(Store::Impl& store, const VerifyOptions& options) : store_(store), options_(options) {}

  Task<Result<VerifyReport>> run();

 private:
  void problem(std::string what, bool repairable = false) {
    report_.problem_count++;
    if (report_.problems.size() < kProblemsKept) {
      report_.problems.push_back(VerifyProblem{std::move(what), repairable});
    }
  }
  void see_node(const BTree::VisitedNode& node);
  void see_record(const Key& key, Bytes value);
  void see_extent(const Key& key, const ExtentValue& extent);
  Task<Result<>> check_node_copies();
  void check_references();
  void check_places();
  Task<Result<>> check_segments();
  Task<Result<>> check_data();
  void expect_count(uint64_t* counter, uint64_t expected, const char* what);
  void expect_beyond(uint64_t* next, uint64_t used, const char* what);

  Store::Impl& store_;
  const VerifyOptions& options_;
  VerifyReport report_;
  std::vector<ExtentSeen> extents_;
  std::vector<VmapSeen> vmaps_;
  std::vector<VrefRange> vrefs_;
  uint64_t shared_blocks_ = 0;
  uint64_t extra_references_ = 0;
  uint64_t unwritten_blocks_ = 0;
  bool mends_ = false;
  std::vector<NodeSeen> nodes_;
  std::map<uint64_t, uint64_t> data_live_;  // by segment
  std::map<uint64_t, uint64_t> node_live_;
  uint64_t extent_ino_ = 0;
  uint64_t extent_end_ = 0;
  uint64_t max_virtual_ = 0;
  uint64_t max_inode_ = 0;
};

std::string at(uint64_t number) { return std::to_string(number); }

void Verifier::expect_count(uint64_t* counter, uint64_t expected, const char* what) {
  if (*counter == expected) return;
  if (mends_) {
    *counter = expected;
    report_.counters_mended++;
  } else {
    problem(std::string(what) + " is " + at(*counter) + ", should be " + at(expected), true);
  }
}

void Verifier::expect_beyond(uint64_t* next, uint64_t used, const char* what) {
  if (*next > used) return;
  if (mends_) {
    *next = used + 1;
    report_.counters_mended++;
  } else {
    problem(what, true);
  }
}

void Verifier::see_node(const BTree::VisitedNode& node) {
  report_.nodes++;
  if (!node.result) {
    problem("tree node at block " + at(node.pointer.address[0]) + ": " +
            describe(node.result.error()));
    return;
  }
  if (node.pointer.address[0] == 0) return;
  nodes_.push_back(NodeSeen{node.level, node.pointer});
  for (uint32_t copy = 0; copy < store_.geometry.metadata_copies; copy++) {
    const uint64_t segment = store_.geometry.segment_of_block(node.pointer.address[copy]);
    node_live_[segment] += store_.geometry.node_blocks();
  }
}

void Verifier::see_extent(const Key& key, const ExtentValue& extent) {
  if (key.id != extent_ino_) {
    extent_ino_ = key.id;
    extent_end_ = 0;
  }
  if (key.offset < extent_end_) {
    problem("inode " + at(key.id) + ": extents overlap at block " + at(key.offset));
  }
  if (key.offset + extent.count < key.offset) {
    problem("inode " + at(key.id) + ": an extent wraps around");
  }
  extent_end_ = key.offset + extent.count;
  if (extent.virtual_block != 0) {
    extents_.push_back(ExtentSeen{extent.virtual_block, extent.count, key.id,
                                  (extent.flags & ondisk::kExtentMaybeShared) != 0});
  } else {
    unwritten_blocks_ += extent.count;
  }
}

void Verifier::see_record(const Key& key, Bytes value) {
  report_.records++;
  const auto bad = [&](const char* what, const Error& error) {
    problem(std::string(what) + " record " + at(key.id) + "/" + at(key.offset) + ": " +
            describe(error));
  };
  if (key.space == ondisk::KeySpace::kFiles) max_inode_ = std::max(max_inode_, key.id);
  switch (key.type) {
    case ondisk::KeyType::kInode: report_.inodes++; break;
    case ondisk::KeyType::kExtent: {
      auto extent = parse_extent(value);
      if (!extent) return bad("extent", extent.error());
      see_extent(key, *extent);
      break;
    }
    case ondisk::KeyType::kVmap: {
      auto vmap = parse_vmap(value, store_.geometry);
      if (!vmap) return bad("vmap", vmap.error());
      vmaps_.push_back(
          VmapSeen{key.id, vmap->physical_block, vmap->checksums.size(), vmap->generation});
      report_.data_blocks += vmap->checksums.size();
      max_virtual_ = std::max(max_virtual_, key.id + vmap->checksums.size() - 1);
      break;
    }
    case ondisk::KeyType::kVref: {
      auto vref = parse_vref(key, value);
      if (!vref) return bad("vref", vref.error());
      vrefs_.push_back(*vref);
      shared_blocks_ += vref->count;
      extra_references_ += vref->count * (vref->references - 1);
      break;
    }
    case ondisk::KeyType::kSegment: {
      auto group = parse_segment_group(value, store_.geometry);
      if (!group) return bad("segment", group.error());
      break;
    }
    case ondisk::KeyType::kXattr:
    case ondisk::KeyType::kDirent:
    case ondisk::KeyType::kOrphan:
    case ondisk::KeyType::kLoggedOp:
    case ondisk::KeyType::kLabel: break;
    default: problem("a record of unknown type " + at(static_cast<uint64_t>(key.type)));
  }
}

// Both copies of every node must be good, else the next failure loses it.
Task<Result<>> Verifier::check_node_copies() {
  for (const NodeSeen& node : nodes_) {
    for (uint32_t copy = 0; copy < store_.geometry.metadata_copies; copy++) {
      auto image = co_await store_.nodes.read_copy(node.pointer, static_cast<int>(copy));
      if (!image) {
        problem("copy " + at(copy + 1) + " of the tree node at block " +
                    at(node.pointer.address[copy]) + " is bad: " + describe(image.error()),
                true);
      }
    }
  }
  co_return Result<>();
}

// Every block of every extent has a place; every place has exactly the references that vref says.
void Verifier::check_references() {
  std::map<uint64_t, int64_t> steps;      // virtual block → change of the number of references
  std::map<uint64_t, int64_t> unshared;   // the same, of extents without the shared flag
  for (const ExtentSeen& extent : extents_) {
    steps[extent.virtual_block]++;
    steps[extent.virtual_block + extent.count]--;
    if (extent.shared) continue;
    unshared[extent.virtual_block]++;
    unshared[extent.virtual_block + extent.count]--;
  }
  for (const auto& [block, step] : unshared) steps.try_emplace(block, 0);
  std::map<uint64_t, int64_t> mapped;
  for (const VmapSeen& vmap : vmaps_) {
    mapped[vmap.virtual_block]++;
    mapped[vmap.virtual_block + vmap.count]--;
  }
  std::map<uint64_t, int64_t> counted;
  for (const VrefRange& vref : vrefs_) {
    counted[vref.start] += vref.references;
    counted[vref.end()] -= vref.references;
  }
  std::vector<uint64_t> borders;
  for (const auto* map : {&steps, &mapped, &counted}) {
    for (const auto& [block, step] : *map) borders.push_back(block);
  }
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  int64_t references = 0;
  int64_t plain = 0;
  int64_t places = 0;
  int64_t vref = 0;
  const auto take = [](std::map<uint64_t, int64_t>& map, uint64_t block) {
    auto found = map.find(block);
    return found == map.end() ? int64_t{0} : found->second;
  };
  for (uint64_t block : borders) {
    references += take(steps, block);
    plain += take(unshared, block);
    places += take(mapped, block);
    vref += take(counted, block);
    const std::string here = "virtual block " + at(block) + ": ";
    if (places > 1) problem(here + "two places");
    if (references > 0 && places == 0) problem(here + "used by a file but has no place");
    if (references == 0 && places > 0) problem(here + "has a place but no file uses it", true);
    if (references == 0 && places == 0 && vref == 0) continue;
    const int64_t expected = vref == 0 ? 1 : vref;
    if (references != 0 && references != expected) {
      problem(here + at(static_cast<uint64_t>(references)) + " references, " +
              at(static_cast<uint64_t>(expected)) + " counted");
    }
    if (references == 0 && vref != 0) problem(here + "counted references but no file uses it");
    if (vref >= 2 && plain > 0) problem(here + "shared, but an extent does not say so");
  }
}

// No two vmap records name the same physical block; each lies in a segment in use, of its generation.
void Verifier::check_places() {
  std::vector<const VmapSeen*> by_place;
  for (const VmapSeen& vmap : vmaps_) {
    by_place.push_back(&vmap);
    data_live_[store_.geometry.segment_of_block(vmap.physical_block)] += vmap.count;
  }
  std::sort(by_place.begin(), by_place.end(), [](const VmapSeen* a, const VmapSeen* b) {
    return a->physical_block < b->physical_block;
  });
  for (size_t i = 1; i < by_place.size(); i++) {
    if (by_place[i - 1]->physical_block + by_place[i - 1]->count > by_place[i]->physical_block) {
      problem("physical block " + at(by_place[i]->physical_block) + ": two virtual blocks lie here");
    }
  }
}

Task<Result<>> Verifier::check_segments() {
  const bool exact_nodes = store_.tree.dirty_nodes() == 0;
  const Geometry& geometry = store_.geometry;
  std::map<uint64_t, SegmentState> in_use;
  uint64_t free_count = 0;
  uint64_t node_segments = 0;
  uint64_t cursor = 0;
  const uint64_t groups = geometry.segment_count / ondisk::kSegmentGroup + 1;
  auto visited = co_await store_.segments.visit_some(
      cursor, groups, [&](uint64_t segment, const SegmentState& state) {
        if (segment >= geometry.segment_count || segment == geometry.reserved_segment()) {
          if (state.state != ondisk::SegmentState::kFree) {
            problem("segment " + at(segment) + " does not exist but is in use");
          }
          return;
        }
        if (state.state == ondisk::SegmentState::kFree) {
          free_count++;
          return;
        }
        in_use.emplace(segment, state);
        if (state.stream == ondisk::Stream::kMeta || state.stream == ondisk::Stream::kMetaMirror) {
          node_segments++;
        }
      });
  COFS_CO_TRY(visited);
  uint64_t live_data = 0;
  uint64_t live_nodes = 0;
  for (const auto& [segment, live] : data_live_) live_data += live;
  for (const auto& [segment, live] : node_live_) live_nodes += live;
  for (const auto& [segment, state] : in_use) {
    const uint64_t data = data_live_.contains(segment) ? data_live_[segment] : 0;
    const uint64_t nodes = node_live_.contains(segment) ? node_live_[segment] : 0;
    const bool node_stream =
        state.stream == ondisk::Stream::kMeta || state.stream == ondisk::Stream::kMetaMirror;
    if (node_stream ? data != 0 : nodes != 0) {
      problem("segment " + at(segment) + " holds blocks of the wrong kind");
    }
    if ((!node_stream || exact_nodes) && state.live_blocks != data + nodes) {
      problem("segment " + at(segment) + ": " + at(state.live_blocks) + " live blocks counted, " +
                  at(data + nodes) + " found",
              true);
    }
    const bool in_chain = std::find(store_.log_chain.begin(), store_.log_chain.end(), segment) !=
                          store_.log_chain.end();
    if (state.state == ondisk::SegmentState::kSealed && state.live_blocks == 0 && !in_chain &&
        exact_nodes) {
      problem("segment " + at(segment) + " is empty but not free", true);
    }
    data_live_.erase(segment);
    node_live_.erase(segment);
  }
  for (const auto& [segment, live] : data_live_) {
    problem("segment " + at(segment) + " is free but holds live data");
  }
  for (const auto& [segment, live] : node_live_) {
    problem("segment " + at(segment) + " is free but holds tree nodes");
  }
  for (const VmapSeen& vmap : vmaps_) {
    auto found = in_use.find(geometry.segment_of_block(vmap.physical_block));
    if (found != in_use.end() && found->second.generation != vmap.generation) {
      problem("virtual block " + at(vmap.virtual_block) + ": its segment has another generation");
    }
  }
  // What could not be read is not counted.
  mends_ = options_.mend_counters && report_.problem_count == 0;
  uint64_t free_counted = store_.segments.free_count();
  uint64_t node_counted = store_.segments.node_segments();
  expect_count(&free_counted, free_count, "the count of free segments");
  expect_count(&node_counted, node_segments, "the count of node segments");
  if (mends_) store_.segments.set_counts(free_counted, node_counted);
  expect_count(&store_.live_data_blocks, live_data, "the count of live data blocks");
  if (exact_nodes) expect_count(&store_.live_node_blocks, live_nodes, "the count of node blocks");
  expect_count(&store_.shared_blocks, shared_blocks_, "the count of shared blocks");
  expect_count(&store_.extra_references, extra_references_, "the count of extra references");
  expect_count(&store_.unwritten_blocks, unwritten_blocks_, "the count of preallocated blocks");
  expect_count(&store_.inode_count, report_.inodes, "the count of inodes");
  expect_beyond(&store_.next_virtual, max_virtual_, "the next virtual block number is in use");
  expect_beyond(&store_.next_inode, max_inode_, "the next inode number is in use");
  co_return Result<>();
}

Task<Result<>> Verifier::check_data() {
  for (const VmapSeen& vmap : vmaps_) {
    BufferRef buffer = store_.env.buffers.allocate(static_cast<uint32_t>(vmap.count));
    BlockRange range;
    range.start = vmap.virtual_block;
    range.count = vmap.count;
    auto read = co_await store_.store->read_blocks(range, buffer->data());
    if (!read && store_.shut_down) co_return read;
    if (!read) {
      problem("virtual blocks " + at(vmap.virtual_block) + " … " +
              at(vmap.virtual_block + vmap.count - 1) + ": " + describe(read.error()));
    }
    report_.data_blocks_read += vmap.count;
    if (options_.progress) options_.progress(report_.data_blocks_read, report_.data_blocks);
  }
  co_return Result<>();
}

Task<Result<VerifyReport>> Verifier::run() {
  auto walked = co_await store_.tree.walk(
      [this](const BTree::VisitedNode& node) { see_node(node); },
      [this](const Key& key, Bytes value) { see_record(key, value); });
  COFS_CO_TRY(walked);
  auto copies = co_await check_node_copies();
  COFS_CO_TRY(copies);
  check_references();
  check_places();
  auto segments = co_await check_segments();
  COFS_CO_TRY(segments);
  if (options_.read_data) {
    auto data = co_await check_data();
    COFS_CO_TRY(data);
  }
  co_return std::move(report_);
}

}  // namespace

Task<Result<VerifyReport>> Store::verify(VerifyOptions options) {
  auto guard = co_await impl_->gc.lock.lock();  // nothing moves meanwhile
  // With everything on the device, memory and device can be compared exactly.
  if (!impl_->options.read_only && !impl_->shut_down) {
    auto done = co_await checkpoint();
    COFS_CO_TRY(done);
  }
  Verifier verifier(*impl_, options);
  auto report = co_await verifier.run();
  COFS_CO_TRY(report);
  if (report->counters_mended != 0) {
    auto done = co_await checkpoint();
    COFS_CO_TRY(done);
  }
  co_return std::move(*report);
}

}  // namespace cofs
