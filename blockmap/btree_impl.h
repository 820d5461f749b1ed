// BTree::Impl: what the parts of the tree's implementation share. Private to blockmap/btree*.cc.
//
// The one pattern: every operation descends from the root through resident nodes without waiting.
// If a node is missing it awaits load(), then starts over from the root, because anything may have
// changed meanwhile; no Node* is held across a wait. When nothing is missing it acts without
// waiting.
#pragma once

#include <coroutine>
#include <memory>
#include <utility>
#include <vector>

#include "blockmap/btree.h"
#include "blockmap/node.h"
#include "blockmap/node_cache.h"

namespace cofs {

// A node that a descent needs and that is not resident.
struct MissingNode {
  NodePointer pointer;
  Key key;  // one that it covers
  uint8_t level = 0;

  MissingNode() = default;
  MissingNode(const NodePointer& p, const Key& k, uint8_t l) : pointer(p), key(k), level(l) {}
};

// One read of a node, shared by all who miss it. It stays in the table, and so keeps the node and
// its parent from eviction, until everybody who waited has been resumed once.
struct NodeLoad {
  explicit NodeLoad(const MissingNode& m) : missing(m) {}
  MissingNode missing;
  bool done = false;
  Result<> result;
  std::vector<std::coroutine_handle<>> waiters;
};

struct NodeLoadAwaiter {
  NodeLoad& load;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) { load.waiters.push_back(awaiter); }
  void await_resume() const {}
};

// The dirty set of one checkpoint. What serialize() reads is the frozen content and this object's
// own tables; `live`, `fate`, `former` and `target` belong to the core.
class FrozenSet final : public FrozenTree {
 public:
  enum class Fate : uint8_t {
    kLives,
    kVanished,         // the frozen image is dropped as soon as it exists
    kVanishedCounted,  // as above, but an assign() already showed it as an old pointer
  };
  struct Entry {
    FrozenNode frozen;
    LeafImage leaf;
    std::shared_ptr<const Fanout> fanout;
    uint32_t slot = 0;  // in the parent's fanout
    // Of an internal node: its frozen children, entries [first_child, first_child + child_count).
    uint32_t first_child = 0;
    uint32_t child_count = 0;
    Node* live = nullptr;
    Fate fate = Fate::kLives;
    NodePointer former;  // the newest finished image at the freeze
    NodePointer target;  // frozen.pointer without its checksum, which serialize() may be writing
  };

  size_t size() const override { return entries.size(); }
  const FrozenNode& node(size_t i) const override { return entries[i].frozen; }
  void serialize(size_t i, std::span<std::byte> image) override;
  NodePointer root() const override;
  uint8_t root_level() const override { return level; }

  std::vector<Entry> entries;  // by level, then key
  NodePointer clean_root;      // the root where it is not among the entries
  bool root_frozen = false;
  uint8_t level = 0;
  uint64_t volume_key = 0;
  uint32_t node_bytes = 0;
  size_t serialized = 0;
};

struct BTree::Impl {
  Impl(NodeReader& r, BufferPool& b, const TreeOptions& o);
  ~Impl();

  // --- btree.cc: descending and loading ---

  void start_empty();  // requires that nothing is resident

  // The resident node of `level` that covers `key`; nullptr: `missing` says what to load. `upper`,
  // if given, gets the first key beyond the node (nullptr: none), valid until the tree changes.
  // Requires level <= root_level.
  Node* descend(const Key& key, uint8_t level, MissingNode& missing, const Key** upper = nullptr);
  // For descending order: the last leaf that may hold a key below `bound` (or equal to it, where
  // inclusive), going by separators. kFound: `leaf`, which need not hold such a key. kMissing: load
  // `missing`. kRetry: the bound has been lowered past a gap. kNone: there is no such leaf.
  struct Before {
    Key bound;
    bool inclusive = false;
  };
  enum class Outcome { kFound, kMissing, kRetry, kNone };
  Outcome last_leaf_before(Before& before, Node*& leaf, MissingNode& missing);

  // Makes the missing node resident if its place in the tree is still there; the caller starts
  // over. `missing` lives in the caller's frame. Errors: those of NodeReader, kCorrupt.
  Task<Result<>> load(const MissingNode& missing);
  Result<> finish_load(const NodeLoad& load, Result<BufferRef>& image);
  // Checks an image read for `pointer`, and its keys against the bounds that its parent gives.
  Result<> check_image(const BufferRef& image, const NodePointer& pointer, uint8_t level,
                       const Key& lower, const Key* upper) const;
  bool is_loading(const Node& node) const;
  void evict(uint64_t incoming);
  // What changed nodes need by now. Between two operations: any clean node may go.
  void evict_beyond() {
    if (cache.gives_way()) evict(0);
  }

  // --- btree_update.cc ---

  void put_resident(Node* leaf, const Key& key, Bytes value);
  bool erase_resident(Node* leaf, const Key& key);
  void mark_dirty(Node* node);  // and its ancestors
  void make_writable(Node* node);
  void widen_down_to(Node* node, const Key& key);
  void add_sibling(Node* left, Node* right);
  void grow_root();
  void split_internal(Node* node, size_t insert_index);
  void shrink_upwards(Node* node);
  bool merge_with_neighbour(Node* node);
  bool merge_if_small(Node* left, Node* right);
  void remove_from_parent(Node* node);
  void settle_root();
  void vanish(Node* node);

  // --- btree_checkpoint.cc ---

  // Where the image lies that this node's next one replaces.
  NodePointer old_pointer(const Node& node) const;
  std::vector<Node*> sorted_dirty() const;

  // --- btree_walk.cc ---

  struct Totals {
    uint64_t nodes = 0;
    uint64_t dirty = 0;
    uint64_t bytes = 0;
    uint64_t clean_bytes = 0;
  };
  void check_node(const Node* node, const Key* upper, Totals& totals) const;

  NodeReader& reader;
  BufferPool& buffers;
  TreeOptions options;
  NodeCache cache;
  std::vector<std::shared_ptr<NodeLoad>> loads;
  std::vector<NodePointer> dropped;
  FrozenSet* in_flight = nullptr;
};

}  // namespace cofs
