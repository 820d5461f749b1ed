// BTree: the checkpoint's side. assign() gives dirty nodes their next address, freeze() takes their
// content as it is, serialize() writes it elsewhere, finish() or abandon() ends it.
//
// A frozen node shares its content with the FrozenSet; whoever changes it copies it first
// (make_writable). Frozen nodes stay resident until the end, so each keeps its parent and its slot,
// or vanishes and says so in its entry. Which images count as dropped, and when, is the same
// whatever happens in between: every assigned address is later shown exactly once, as
// DirtyNode.old_pointer of the node's next assignment or in take_dropped().
#include <algorithm>

#include "blockmap/btree_impl.h"
#include "offload/base/checksum.h"

namespace cofs {

// --- FrozenSet: outside the core ----------------------------------------------------------------

void FrozenSet::serialize(size_t i, std::span<std::byte> image) {
  COFS_ASSERT(i == serialized && image.size() >= node_bytes);
  serialized++;
  const std::span<std::byte> target = image.first(node_bytes);
  Entry& entry = entries[i];
  if (entry.frozen.level == 0) {
    write_leaf_image(entry.leaf, entry.frozen.pointer.birth, target);
    entry.leaf = LeafImage();  // where the live node has changed since, nobody else has it
  } else {
    const Fanout& fanout = *entry.fanout;
    InternalWriter writer(target, entry.frozen.level, volume_key, entry.frozen.pointer.birth,
                          static_cast<uint32_t>(fanout.size()));
    uint32_t frozen_child = entry.first_child;
    const uint32_t frozen_end = entry.first_child + entry.child_count;
    for (uint32_t slot = 0; slot < fanout.size(); slot++) {
      const bool is_frozen = frozen_child < frozen_end && entries[frozen_child].slot == slot;
      writer.add(fanout[slot].key,
                 is_frozen ? entries[frozen_child++].frozen.pointer : fanout[slot].pointer);
    }
    COFS_ASSERT(frozen_child == frozen_end);
  }
  entry.frozen.pointer.checksum = checksum64(target, volume_key);
}

NodePointer FrozenSet::root() const {
  COFS_ASSERT(serialized == entries.size());
  return root_frozen ? entries.back().frozen.pointer : clean_root;
}

// --- The tree's side ----------------------------------------------------------------------------

NodePointer BTree::Impl::old_pointer(const Node& node) const {
  if (node.frozen == Node::kNotFrozen) return node.pointer;
  return in_flight->entries[node.frozen].target;
}

// Children before parents, and in key order within a level: the order in which they are written.
std::vector<Node*> BTree::Impl::sorted_dirty() const {
  std::vector<Node*> nodes = cache.dirty();
  std::ranges::sort(nodes, [](const Node* a, const Node* b) {
    return a->level != b->level ? a->level < b->level : a->first_key < b->first_key;
  });
  return nodes;
}

void BTree::for_each_unassigned(const std::function<void(const DirtyNode&)>& visit) const {
  for (Node* node : impl_->sorted_dirty()) {
    if (node->assigned) continue;
    DirtyNode dirty;
    dirty.level = node->level;
    dirty.first_key = node->first_key;
    dirty.old_pointer = impl_->old_pointer(*node);
    dirty.node = node;
    visit(dirty);
  }
}

void BTree::assign(const DirtyNode& dirty, const uint64_t address[2], uint64_t birth) {
  Node* node = static_cast<Node*>(dirty.node);
  COFS_ASSERT(node->dirty && !node->assigned && address[0] != 0);
  node->assigned = true;
  node->next = NodePointer();
  node->next.address[0] = address[0];
  node->next.address[1] = address[1];
  node->next.birth = birth;
}

std::vector<NodePointer> BTree::take_dropped() {
  return std::exchange(impl_->dropped, {});
}

std::unique_ptr<FrozenTree> BTree::freeze() {
  COFS_ASSERT(impl_->in_flight == nullptr);
  auto frozen = std::make_unique<FrozenSet>();
  NodeCache& cache = impl_->cache;
  frozen->level = cache.root_level;
  frozen->volume_key = impl_->options.volume_key;
  frozen->node_bytes = impl_->options.node_bytes;
  frozen->clean_root = cache.root.pointer;
  frozen->root_frozen = !cache.dirty().empty();  // a dirty node's ancestors are dirty
  const std::vector<Node*> nodes = impl_->sorted_dirty();
  frozen->entries.resize(nodes.size());
  for (uint32_t i = 0; i < nodes.size(); i++) {
    Node* node = nodes[i];
    COFS_ASSERT(node->assigned);
    FrozenSet::Entry& entry = frozen->entries[i];
    entry.frozen.level = node->level;
    entry.frozen.first_key = node->first_key;
    entry.frozen.pointer = node->next;
    entry.leaf = node->leaf;
    entry.fanout = node->fanout;
    entry.live = node;
    entry.former = node->pointer;
    entry.target = node->next;
    node->frozen = i;
    node->assigned = false;
    cache.clear_dirty(node);
    cache.refresh(node);
  }
  for (uint32_t i = 0; i < nodes.size(); i++) {
    const Node* parent = nodes[i]->parent;
    if (parent == nullptr) continue;
    frozen->entries[i].slot =
        static_cast<uint32_t>(child_index(*parent->fanout, nodes[i]->first_key));
    FrozenSet::Entry& above = frozen->entries[parent->frozen];
    if (above.child_count++ == 0) above.first_child = i;
  }
  impl_->in_flight = frozen.get();
  return frozen;
}

void BTree::finish(FrozenTree& frozen_tree) {
  auto& frozen = static_cast<FrozenSet&>(frozen_tree);
  COFS_ASSERT(impl_->in_flight == &frozen && frozen.serialized == frozen.entries.size());
  impl_->in_flight = nullptr;
  for (FrozenSet::Entry& entry : frozen.entries) {
    entry.leaf = LeafImage();
    entry.fanout.reset();
    const NodePointer& pointer = entry.frozen.pointer;
    if (entry.live == nullptr) {
      if (entry.fate == FrozenSet::Fate::kVanished) impl_->dropped.push_back(pointer);
      continue;
    }
    Node* node = entry.live;
    node->frozen = Node::kNotFrozen;
    node->pointer = pointer;
    impl_->cache.slot_of(node).pointer = pointer;
    impl_->cache.refresh(node);
  }
  impl_->evict(0);
}

void BTree::abandon(FrozenTree& frozen_tree) {
  auto& frozen = static_cast<FrozenSet&>(frozen_tree);
  COFS_ASSERT(impl_->in_flight == &frozen);
  impl_->in_flight = nullptr;
  for (FrozenSet::Entry& entry : frozen.entries) {
    entry.leaf = LeafImage();
    entry.fanout.reset();
    if (entry.live == nullptr) {
      if (entry.former.address[0] != 0) impl_->dropped.push_back(entry.former);
      continue;
    }
    Node* node = entry.live;
    node->frozen = Node::kNotFrozen;
    if (node->assigned) impl_->dropped.push_back(node->next);
    node->assigned = false;
    if (!node->dirty) impl_->cache.set_dirty(node);
  }
}

}  // namespace cofs
