#include "blockmap/node_cache.h"

#include <algorithm>

#include "offload/base/error.h"

namespace cofs {

size_t child_index(const Fanout& fanout, const Key& key) {
  size_t begin = 0;
  size_t end = fanout.size();
  while (begin < end) {
    const size_t middle = (begin + end) / 2;
    if (fanout[middle].key <= key) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin == 0 ? 0 : begin - 1;
}

NodeCache::~NodeCache() {
  if (root.node != nullptr) destroy_subtree(root.node);
  COFS_ASSERT(resident_nodes_ == 0 && dirty_.empty());
}

void NodeCache::destroy_subtree(Node* node) {
  if (node->level > 0) {
    for (Child& child : *node->fanout) {
      if (child.node != nullptr) destroy_subtree(child.node);
    }
  }
  destroy(node);
}

uint64_t NodeCache::bytes_of_level(uint8_t level) const {
  if (level == 0) return sizeof(Node) + sizeof(Buffer) + node_bytes_;
  return sizeof(Node) + sizeof(Fanout) + uint64_t{fanout_max(node_bytes_)} * sizeof(Child);
}

Node* NodeCache::adopt(std::unique_ptr<Node> node) {
  resident_nodes_++;
  resident_bytes_ += bytes_of_level(node->level);
  return node.release();
}

Node* NodeCache::create_leaf(LeafImage image) {
  auto node = std::make_unique<Node>();
  node->leaf = std::move(image);
  return adopt(std::move(node));
}

Node* NodeCache::create_internal(uint8_t level) {
  auto node = std::make_unique<Node>();
  node->level = level;
  node->fanout = std::make_shared<Fanout>();
  node->fanout->reserve(fanout_max(node_bytes_));
  return adopt(std::move(node));
}

void NodeCache::destroy(Node* node) {
  if (node->dirty) clear_dirty(node);
  if (node->linked) unlink(node);
  if (node->counted_clean) clean_bytes_ -= bytes_of_level(node->level);
  resident_nodes_--;
  resident_bytes_ -= bytes_of_level(node->level);
  delete node;
}

void NodeCache::attach(Node* node, Node* parent, Child& slot) {
  COFS_ASSERT(slot.node == nullptr);
  node->parent = parent;
  node->first_key = slot.key;
  slot.node = node;
  refresh(node);
  if (parent == nullptr) return;
  parent->resident_children++;
  refresh(parent);
}

Child& NodeCache::slot_of(Node* node) {
  if (node->parent == nullptr) {
    COFS_ASSERT(root.node == node);
    return root;
  }
  Fanout& fanout = *node->parent->fanout;
  Child& slot = fanout[child_index(fanout, node->first_key)];
  COFS_ASSERT(slot.node == node);
  return slot;
}

void NodeCache::set_dirty(Node* node) {
  COFS_ASSERT(!node->dirty);
  node->dirty = true;
  node->dirty_index = static_cast<uint32_t>(dirty_.size());
  dirty_.push_back(node);
  refresh(node);
}

void NodeCache::clear_dirty(Node* node) {
  COFS_ASSERT(node->dirty && dirty_[node->dirty_index] == node);
  node->dirty = false;
  dirty_[node->dirty_index] = dirty_.back();
  dirty_[node->dirty_index]->dirty_index = node->dirty_index;
  dirty_.pop_back();
}

void NodeCache::refresh(Node* node) {
  const bool clean = !node->dirty && node->frozen == Node::kNotFrozen;
  if (clean != node->counted_clean) {
    node->counted_clean = clean;
    if (clean) {
      clean_bytes_ += bytes_of_level(node->level);
    } else {
      clean_bytes_ -= bytes_of_level(node->level);
    }
  }
  const bool evictable = clean && node->resident_children == 0;
  if (evictable == node->linked) return;
  if (evictable) {
    link(node);
  } else {
    unlink(node);
  }
}

void NodeCache::link(Node* node) {
  node->linked = true;
  linked_count_++;
  node->older = newest_;
  node->newer = nullptr;
  if (newest_ != nullptr) {
    newest_->newer = node;
  } else {
    oldest_ = node;
  }
  newest_ = node;
}

void NodeCache::unlink(Node* node) {
  node->linked = false;
  linked_count_--;
  (node->newer != nullptr ? node->newer->older : newest_) = node->older;
  (node->older != nullptr ? node->older->newer : oldest_) = node->newer;
  node->newer = nullptr;
  node->older = nullptr;
}

// The node's slot holds its current pointer, so it can be read again.
void NodeCache::detach(Node* node) {
  Node* parent = node->parent;
  Child& slot = slot_of(node);
  COFS_ASSERT(slot.pointer == node->pointer);
  slot.node = nullptr;
  destroy(node);
  if (parent == nullptr) return;
  parent->resident_children--;
  refresh(parent);
}

}  // namespace cofs
