// NodeCache: the resident nodes of the tree, their states, and the memory bound of the clean ones.
//
// A node is clean (equals its image), dirty (changed since), or frozen (unchanged since a freeze
// whose images are not durable yet); dirty and frozen nodes stay resident. Invariants: a resident
// node's parent is resident; only clean nodes without resident children are linked in the eviction
// list; clean_bytes() is what all clean nodes take. Changed nodes (dirty or frozen) have kChangedBytes of their
// own beside the cache; what they take beyond is taken from the clean ones, down to a quarter of these, so that the
// sum is bounded as long as the store bounds the changed ones. Not for: keys, order, or reading nodes.
//
// Thread safety: inside the core only; but see Fanout for what a frozen tree reads outside.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "blockmap/btree.h"
#include "blockmap/node.h"

namespace cofs {

struct Node;

// One child in its parent. `pointer` is current while the child is clean or not resident.
struct Child {
  Key key;  // the smallest key that may be in the child
  NodePointer pointer;
  Node* node = nullptr;  // if resident
};

// The children of an internal node. A frozen tree shares it and reads keys and pointers outside the
// core; so while it is shared only `node` may be written, and everything else is copied first.
using Fanout = std::vector<Child>;

struct Node {
  static constexpr uint32_t kNotFrozen = UINT32_MAX;

  uint8_t level = 0;
  bool dirty = false;
  bool assigned = false;    // dirty, and `next` says where it goes
  bool referenced = false;  // used since the eviction hand last passed
  bool counted_clean = false;
  bool linked = false;           // in the eviction list
  uint32_t frozen = kNotFrozen;  // its number in the frozen tree being written
  uint32_t dirty_index = 0;      // in the dirty list, while dirty
  uint32_t resident_children = 0;
  uint32_t last_insert = UINT32_MAX;  // of a leaf: where the last new item went
  Node* parent = nullptr;             // nullptr: the root
  Key first_key;                      // its key in the parent; all zero for the root
  NodePointer pointer;                // its newest finished image; address[0] == 0: none
  NodePointer next;                   // while assigned
  LeafImage leaf;                     // level 0
  std::shared_ptr<Fanout> fanout;     // level > 0
  Node* newer = nullptr;
  Node* older = nullptr;
};

// The slot of the child that covers `key`: the last one whose key is not above it, else the first.
size_t child_index(const Fanout& fanout, const Key& key);

class NodeCache {
 public:
  NodeCache(uint32_t node_bytes, uint64_t cache_bytes)
      : node_bytes_(node_bytes), cache_bytes_(cache_bytes) {}
  NodeCache(const NodeCache&) = delete;
  ~NodeCache();

  // The root as if it were a child: its key is all zero.
  Child root;
  uint8_t root_level = 0;

  // A new node, not in the tree and in no list.
  Node* create_leaf(LeafImage image);
  Node* create_internal(uint8_t level);
  // The node leaves all lists and is freed; the caller removed it from its parent.
  void destroy(Node* node);

  // Puts a clean node into its place.
  void attach(Node* node, Node* parent, Child& slot);
  // The slot that holds a resident node, in its parent or the root's.
  Child& slot_of(Node* node);

  void set_dirty(Node* node);  // this node only; its ancestors are the caller's duty
  void clear_dirty(Node* node);
  const std::vector<Node*>& dirty() const { return dirty_; }

  // To be called after a change of dirty, frozen or resident_children.
  void refresh(Node* node);

  static constexpr uint64_t kChangedBytes = 64ULL << 20;
  // What clean nodes may take now.
  uint64_t clean_bytes_max() const {
    const uint64_t changed = resident_bytes_ - clean_bytes_;
    const uint64_t beyond = changed - std::min(changed, kChangedBytes);
    return std::max(cache_bytes_ / 4, cache_bytes_ - std::min(cache_bytes_, beyond));
  }
  // Whether clean nodes must go for changed ones.
  bool gives_way() const {
    return resident_bytes_ - clean_bytes_ > kChangedBytes && clean_bytes_ > clean_bytes_max();
  }

  // Evicts clean leaves-of-the-cache, least recently used first, until `incoming` more bytes fit
  // the bound or only protected nodes remain. `is_protected(node)`: must stay.
  template <class Predicate>
  void evict(uint64_t incoming, Predicate is_protected) {
    uint64_t attempts = 2 * linked_count_;
    while (clean_bytes_ + incoming > clean_bytes_max() && oldest_ != nullptr && attempts-- > 0) {
      Node* node = oldest_;
      if (node->referenced || is_protected(*node)) {
        node->referenced = false;
        unlink(node);
        link(node);
        continue;
      }
      detach(node);
      attempts += 2;  // its parent may have become a candidate
    }
  }

  uint64_t bytes_of_level(uint8_t level) const;
  uint64_t clean_bytes() const { return clean_bytes_; }
  uint64_t resident_bytes() const { return resident_bytes_; }
  uint64_t resident_nodes() const { return resident_nodes_; }

 private:
  void link(Node* node);
  void unlink(Node* node);
  void detach(Node* node);
  void destroy_subtree(Node* node);
  Node* adopt(std::unique_ptr<Node> node);

  uint32_t node_bytes_;
  uint64_t cache_bytes_;
  uint64_t clean_bytes_ = 0;
  uint64_t resident_bytes_ = 0;
  uint64_t resident_nodes_ = 0;
  uint64_t linked_count_ = 0;
  Node* newest_ = nullptr;
  Node* oldest_ = nullptr;
  std::vector<Node*> dirty_;
};

}  // namespace cofs
