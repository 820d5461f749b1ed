// BTree: put and erase. Each makes the path to its leaf resident (may wait), then changes the tree
// without waiting, so that nobody sees half a split and a failed read leaves everything as it was.
//
// Separators only ever shrink downwards: when the first child of a node vanishes, the next one
// keeps its key, and the node then covers keys below its first child's. Searches clamp to the first
// child; put widens that child's key on the way (widen_down_to). So no node outside the path is
// ever needed.
#include <algorithm>

#include "blockmap/btree_impl.h"

namespace cofs {

Task<Result<>> BTree::put(Key key, Bytes value) {
  COFS_ASSERT(value.size() <= ondisk::kValueBytesMax);
  std::vector<std::byte> copy;
  MissingNode missing;
  for (;;) {
    if (Node* leaf = impl_->descend(key, 0, missing)) {
      impl_->put_resident(leaf, key, value);
      impl_->evict_beyond();
      co_return Result<>();
    }
    if (copy.empty() && !value.empty()) {
      copy.assign(value.begin(), value.end());
      value = copy;
    }
    auto loaded = co_await impl_->load(missing);
    COFS_CO_TRY(loaded);
  }
}

Task<Result<bool>> BTree::erase(Key key) {
  MissingNode missing;
  for (;;) {
    if (Node* leaf = impl_->descend(key, 0, missing)) {
      co_return impl_->erase_resident(leaf, key);
    }
    auto loaded = co_await impl_->load(missing);
    COFS_CO_TRY(loaded);
  }
}

Task<Result<bool>> BTree::dirty_node_at(uint8_t level, Key key, uint64_t address) {
  const auto lies_there = [address](const NodePointer& pointer) {
    return pointer.address[0] != 0 &&
           (pointer.address[0] == address || pointer.address[1] == address);
  };
  MissingNode missing;
  for (;;) {
    if (level > impl_->cache.root_level || address == 0) co_return false;
    if (Node* node = impl_->descend(key, level, missing)) {
      if (!lies_there(impl_->old_pointer(*node))) co_return false;
      impl_->mark_dirty(node);
      co_return true;
    }
    // The parent tells where the node lies, so only the one that is meant is read.
    if (missing.level == level && !lies_there(missing.pointer)) co_return false;
    auto loaded = co_await impl_->load(missing);
    COFS_CO_TRY(loaded);
  }
}

// --- Changing nodes -----------------------------------------------------------------------------

void BTree::Impl::mark_dirty(Node* node) {
  for (; node != nullptr && !node->dirty; node = node->parent) cache.set_dirty(node);
}

// Dirty, and its content not shared with a frozen tree.
void BTree::Impl::make_writable(Node* node) {
  mark_dirty(node);
  if (node->level == 0) {
    node->leaf.make_private(buffers);
  } else if (node->fanout.use_count() > 1) {
    auto copy = std::make_shared<Fanout>();
    copy->reserve(fanout_max(options.node_bytes));
    copy->assign(node->fanout->begin(), node->fanout->end());
    node->fanout = std::move(copy);
  }
}

// Lowers the keys on the path so that `node` may hold `key`.
void BTree::Impl::widen_down_to(Node* node, const Key& key) {
  while (node->parent != nullptr && key < node->first_key) {
    make_writable(node->parent);
    Child& slot = node->parent->fanout->front();
    COFS_ASSERT(slot.node == node);
    slot.key = key;
    node->first_key = key;
    node = node->parent;
  }
}

void BTree::Impl::put_resident(Node* leaf, const Key& key, Bytes value) {
  const Position position = leaf->leaf.view().lower_bound(key);
  const uint32_t index = position.index;
  if (position.found && std::ranges::equal(leaf->leaf.view().value(index), value)) return;
  make_writable(leaf);
  if (position.found) {
    if (leaf->leaf.replace(index, value)) return;
    leaf->leaf.erase(index);
  } else {
    widen_down_to(leaf, key);
  }
  const bool sequential =
      !position.found && (index == leaf->leaf.count() || index == leaf->last_insert + 1);
  if (leaf->leaf.fits(value.size())) {
    leaf->leaf.insert(buffers, index, key, value);
    leaf->last_insert = index;
    return;
  }
  Node* left = leaf;
  for (LeafImage& part : leaf->leaf.insert_split(buffers, index, key, value, sequential)) {
    Node* right = cache.create_leaf(std::move(part));
    right->first_key = right->leaf.view().key(0);
    add_sibling(left, right);
    left = right;
  }
  leaf->last_insert = index;
}

// --- Growing ------------------------------------------------------------------------------------

// Puts the new node `right` behind the dirty node `left`, under the same parent.
void BTree::Impl::add_sibling(Node* left, Node* right) {
  if (left->parent == nullptr) grow_root();
  if (left->parent->fanout->size() == fanout_max(options.node_bytes)) {
    split_internal(left->parent, child_index(*left->parent->fanout, left->first_key) + 1);
  }
  Node* parent = left->parent;
  make_writable(parent);
  const size_t index = child_index(*parent->fanout, left->first_key) + 1;
  parent->fanout->insert(parent->fanout->begin() + static_cast<ptrdiff_t>(index),
                         Child{right->first_key, NodePointer(), right});
  right->parent = parent;
  parent->resident_children++;
  cache.refresh(parent);
  mark_dirty(right);
}

// A new root above the old one, which becomes its only child.
void BTree::Impl::grow_root() {
  COFS_ASSERT(cache.root_level < ondisk::kTreeLevelMax);
  Node* old_root = cache.root.node;
  Node* root = cache.create_internal(++cache.root_level);
  root->fanout->push_back(Child{Key(), old_root->pointer, old_root});
  root->resident_children = 1;
  old_root->parent = root;
  cache.root.node = root;
  cache.root.pointer = NodePointer();
  mark_dirty(root);
}

// Moves the upper children of a full node to a new right sibling: half of them, or at the end of
// the node only the last one, so that ascending keys leave full nodes behind.
void BTree::Impl::split_internal(Node* node, size_t insert_index) {
  make_writable(node);
  Fanout& fanout = *node->fanout;
  const size_t cut = insert_index == fanout.size() ? fanout.size() - 1 : fanout.size() / 2;
  Node* right = cache.create_internal(node->level);
  right->first_key = fanout[cut].key;
  right->fanout->assign(fanout.begin() + static_cast<ptrdiff_t>(cut), fanout.end());
  fanout.resize(cut);
  for (const Child& child : *right->fanout) {
    if (child.node == nullptr) continue;
    child.node->parent = right;
    right->resident_children++;
    node->resident_children--;
  }
  add_sibling(node, right);
}

// --- Shrinking ----------------------------------------------------------------------------------

bool BTree::Impl::erase_resident(Node* leaf, const Key& key) {
  const Position position = leaf->leaf.view().lower_bound(key);
  if (!position.found) return false;
  make_writable(leaf);
  leaf->leaf.erase(position.index);
  leaf->last_insert = UINT32_MAX;
  shrink_upwards(leaf);
  settle_root();
  return true;
}

namespace {

uint32_t used_bytes(const Node& node) {
  if (node.level == 0) return node.leaf.used_bytes();
  return static_cast<uint32_t>(node.fanout->size()) * item_bytes(sizeof(ondisk::NodePointer));
}

}  // namespace

// Frees empty nodes and merges small ones, from `node` up, as far as anything changes.
void BTree::Impl::shrink_upwards(Node* node) {
  while (node->parent != nullptr) {
    Node* parent = node->parent;
    if (used_bytes(*node) == 0) {
      remove_from_parent(node);
      vanish(node);
    } else if (!merge_with_neighbour(node)) {
      return;
    }
    node = parent;
  }
}

// A node below a quarter joins a resident neighbour if they fill at most three quarters together.
bool BTree::Impl::merge_with_neighbour(Node* node) {
  if (used_bytes(*node) >= node_capacity(options.node_bytes) / 4) return false;
  const Fanout& fanout = *node->parent->fanout;
  const size_t index = child_index(fanout, node->first_key);
  if (index + 1 < fanout.size() && fanout[index + 1].node != nullptr &&
      merge_if_small(node, fanout[index + 1].node)) {
    return true;
  }
  return index > 0 && fanout[index - 1].node != nullptr &&
         merge_if_small(fanout[index - 1].node, node);
}

bool BTree::Impl::merge_if_small(Node* left, Node* right) {
  if (used_bytes(*left) + used_bytes(*right) > node_capacity(options.node_bytes) / 4 * 3) {
    return false;
  }
  make_writable(left);
  if (left->level == 0) {
    left->leaf.append(buffers, right->leaf);
  } else {
    left->fanout->insert(left->fanout->end(), right->fanout->begin(), right->fanout->end());
    for (const Child& child : *right->fanout) {
      if (child.node == nullptr) continue;
      child.node->parent = left;
      left->resident_children++;
    }
    right->resident_children = 0;
    cache.refresh(left);
  }
  remove_from_parent(right);
  vanish(right);
  return true;
}

void BTree::Impl::remove_from_parent(Node* node) {
  Node* parent = node->parent;
  make_writable(parent);
  const size_t index = child_index(*parent->fanout, node->first_key);
  COFS_ASSERT((*parent->fanout)[index].node == node);
  parent->fanout->erase(parent->fanout->begin() + static_cast<ptrdiff_t>(index));
  parent->resident_children--;
  cache.refresh(parent);
  node->parent = nullptr;
}

// An empty tree is one empty leaf; a root with one child gives way to it, once that is resident.
// The new root is made dirty, so that the checkpoint sees that the tree changed.
void BTree::Impl::settle_root() {
  Node* root = cache.root.node;
  if (root->level > 0 && root->fanout->empty()) {
    vanish(root);
    start_empty();
    return;
  }
  while (root->level > 0 && root->fanout->size() == 1 && root->fanout->front().node != nullptr) {
    Node* child = root->fanout->front().node;
    child->parent = nullptr;
    child->first_key = Key();
    vanish(root);
    cache.root.node = child;
    cache.root.pointer = child->pointer;
    cache.root_level = child->level;
    mark_dirty(child);
    root = child;
  }
}

// Frees a node that is out of the tree and says which of its images nobody uses any more. An image
// that assign() showed as an old pointer has been counted as dropped by the caller already.
void BTree::Impl::vanish(Node* node) {
  if (node->frozen != Node::kNotFrozen) {
    FrozenSet::Entry& entry = in_flight->entries[node->frozen];
    entry.live = nullptr;
    entry.fate = node->assigned ? FrozenSet::Fate::kVanishedCounted : FrozenSet::Fate::kVanished;
  } else if (!node->assigned && node->pointer.address[0] != 0) {
    dropped.push_back(node->pointer);
  }
  if (node->assigned) dropped.push_back(node->next);  // never written
  cache.destroy(node);
}

}  // namespace cofs
