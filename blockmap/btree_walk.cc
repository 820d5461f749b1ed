// BTree: the walk over all nodes for verification, and the check of the invariants for tests.
#include <array>

#include "blockmap/btree_impl.h"

namespace cofs {

namespace {

// A walk's place, by keys alone, so that the tree may change under it: everything below `cursor`
// has been visited. Internal nodes are met once per leaf below them and reported the first time.
struct Walk {
  Key cursor;
  std::array<std::optional<Key>, ondisk::kTreeLevelMax + 1> reported;

  // Set by locate(): the leaf at the cursor, or the node missing on the way to it.
  MissingNode missing;
  Key lower;
  std::optional<Key> upper;

  // To what lies behind the node located last; false: nothing does.
  bool advance() {
    if (!upper) return false;
    cursor = *upper;
    return true;
  }
};

using NodeVisitor = std::function<void(const BTree::VisitedNode&)>;
using EntryVisitor = std::function<void(const Key&, Bytes)>;

BTree::VisitedNode visited(uint8_t level, const Key& first_key, const NodePointer& pointer,
                           const Result<>& result = {}) {
  BTree::VisitedNode node;
  node.level = level;
  node.first_key = first_key;
  node.pointer = pointer;
  node.result = result;
  return node;
}

// From the cursor on: a leaf may have joined its left neighbour, visited before.
void visit_entries(const NodeView& view, const Key& cursor, const EntryVisitor& visit) {
  const uint32_t count = view.count();
  for (uint32_t i = view.lower_bound(cursor).index; i < count; i++) {
    visit(view.key(i), view.value(i));
  }
}

// The pointer under which a resident node's image is counted as live.
NodePointer counted_pointer(const Node& node, const FrozenSet* in_flight) {
  if (node.assigned) return node.next;
  if (node.frozen == Node::kNotFrozen) return node.pointer;
  return in_flight->entries[node.frozen].target;
}

// The leaf at the cursor, or nullptr and walk.missing. Reports internal nodes not reported before.
Node* locate(const NodeCache& cache, const FrozenSet* in_flight, Walk& walk,
             const NodeVisitor& visit) {
  const Child* slot = &cache.root;
  walk.lower = Key();
  walk.upper.reset();
  for (uint8_t level = cache.root_level;; level--) {
    walk.lower = slot->key;
    Node* node = slot->node;
    if (node == nullptr) {
      walk.missing = MissingNode(slot->pointer, slot->key, level);
      return nullptr;
    }
    if (level == 0) return node;
    std::optional<Key>& reported = walk.reported[level];
    if (!reported || *reported < node->first_key) {
      reported = node->first_key;
      visit(visited(level, node->first_key, counted_pointer(*node, in_flight)));
    }
    const Fanout& fanout = *node->fanout;
    const size_t index = child_index(fanout, walk.cursor);
    if (index + 1 < fanout.size()) walk.upper = fanout[index + 1].key;
    slot = &fanout[index];
  }
}

}  // namespace

// Internal nodes, a hundredth of the tree, are loaded as usual; missing leaves are read past the
// cache. What a wait brought counts only if its place in the tree is still the same.
Task<Result<>> BTree::walk(std::function<void(const VisitedNode&)> node,
                           std::function<void(const Key&, Bytes)> entry) {
  Walk walk;
  const NodeCache& cache = impl_->cache;
  for (;;) {
    if (const Node* leaf = locate(cache, impl_->in_flight, walk, node)) {
      node(visited(0, leaf->first_key, counted_pointer(*leaf, impl_->in_flight)));
      visit_entries(leaf->leaf.view(), walk.cursor, entry);
      if (!walk.advance()) co_return Result<>();
      continue;
    }
    const MissingNode wanted = walk.missing;
    Result<> result;
    BufferRef image;
    if (wanted.level > 0) {
      result = co_await impl_->load(wanted);
      if (result) continue;
    } else if (wanted.pointer.address[0] == 0) {
      result = fail(Code::kCorrupt, "tree node pointer");
    } else {
      auto read = co_await impl_->reader.read_node(wanted.pointer);
      if (read) {
        image = std::move(*read);
      } else {
        result = fail(read.error());
      }
    }
    const Node* now = locate(cache, impl_->in_flight, walk, node);
    if (now != nullptr || walk.missing.pointer != wanted.pointer) continue;
    if (result)
      result = impl_->check_image(image, wanted.pointer, 0, walk.lower,
                                  walk.upper ? &*walk.upper : nullptr);
    node(visited(wanted.level, walk.lower, wanted.pointer, result));
    if (result) visit_entries(NodeView(image->data()), walk.cursor, entry);
    if (!walk.advance()) co_return Result<>();
  }
}

// --- One path -----------------------------------------------------------------------------------

Task<BTree::Path> BTree::path_to(Key key) {
  for (;;) {
    Path path;
    MissingNode missing;
    const Child* slot = &impl_->cache.root;
    for (uint8_t level = impl_->cache.root_level;; level--) {
      PathNode node;
      node.level = level;
      node.first_key = slot->key;
      node.pointer = slot->pointer;
      const Node* resident = slot->node;
      if (resident != nullptr) {
        node.pointer = resident->pointer;
        node.clean = !resident->dirty && resident->frozen == Node::kNotFrozen;
      }
      path.nodes.push_back(node);
      if (level == 0) co_return path;
      if (resident == nullptr) {
        missing = MissingNode(slot->pointer, key, level);
        break;
      }
      const Fanout& fanout = *resident->fanout;
      const size_t index = child_index(fanout, key);
      if (index + 1 < fanout.size()) path.next = fanout[index + 1].key;
      slot = &fanout[index];
    }
    // An error says that the node is still part of the tree.
    auto loaded = co_await impl_->load(missing);
    if (loaded) continue;
    path.nodes.back().result = loaded;
    co_return path;
  }
}

// --- Invariants ---------------------------------------------------------------------------------

void BTree::Impl::check_node(const Node* node, const Key* upper, Totals& totals) const {
  totals.nodes++;
  totals.bytes += cache.bytes_of_level(node->level);
  const bool clean = !node->dirty && node->frozen == Node::kNotFrozen;
  if (clean) totals.clean_bytes += cache.bytes_of_level(node->level);
  COFS_ASSERT(clean == node->counted_clean);
  COFS_ASSERT(node->linked == (clean && node->resident_children == 0));
  COFS_ASSERT(node->dirty || !node->assigned);
  if (node->dirty) {
    totals.dirty++;
    COFS_ASSERT(cache.dirty()[node->dirty_index] == node);
    COFS_ASSERT(node->parent == nullptr || node->parent->dirty);
  }
  if (node->frozen != Node::kNotFrozen) {
    COFS_ASSERT(in_flight != nullptr && in_flight->entries[node->frozen].live == node);
    const Node* parent = node->parent;
    COFS_ASSERT(parent == nullptr || parent->dirty || parent->frozen != Node::kNotFrozen);
  }
  if (node->level == 0) {
    node->leaf.check(options.volume_key);
    const NodeView view = node->leaf.view();
    COFS_ASSERT(view.count() > 0 || node->parent == nullptr);
    if (view.count() == 0) return;
    COFS_ASSERT(view.key(0) >= node->first_key);
    COFS_ASSERT(upper == nullptr || view.key(view.count() - 1) < *upper);
    return;
  }
  const Fanout& fanout = *node->fanout;
  COFS_ASSERT(!fanout.empty() && fanout.size() <= fanout_max(options.node_bytes));
  COFS_ASSERT(fanout.front().key >= node->first_key);
  uint32_t resident = 0;
  for (size_t i = 0; i < fanout.size(); i++) {
    const Key* end = i + 1 < fanout.size() ? &fanout[i + 1].key : upper;
    COFS_ASSERT(end == nullptr || fanout[i].key < *end);
    const Node* child = fanout[i].node;
    if (child == nullptr) {
      COFS_ASSERT(fanout[i].pointer.address[0] != 0);
      continue;
    }
    resident++;
    COFS_ASSERT(child->parent == node && child->level + 1 == node->level);
    COFS_ASSERT(child->first_key == fanout[i].key);
    const bool child_clean = !child->dirty && child->frozen == Node::kNotFrozen;
    COFS_ASSERT(!child_clean || child->pointer == fanout[i].pointer);
    check_node(child, end, totals);
  }
  COFS_ASSERT(resident == node->resident_children);
}

void BTree::check_invariants() const {
  const NodeCache& cache = impl_->cache;
  Impl::Totals totals;
  if (const Node* root = cache.root.node) {
    COFS_ASSERT(root->parent == nullptr && root->first_key == Key());
    COFS_ASSERT(root->level == cache.root_level);
    impl_->check_node(root, nullptr, totals);
  }
  COFS_ASSERT(totals.nodes == cache.resident_nodes());
  COFS_ASSERT(totals.bytes == cache.resident_bytes());
  COFS_ASSERT(totals.clean_bytes == cache.clean_bytes());
  COFS_ASSERT(totals.dirty == cache.dirty().size());
}

}  // namespace cofs
