#include "blockmap/btree.h"

#include <algorithm>

#include "blockmap/btree_impl.h"

namespace cofs {

BTree::Impl::Impl(NodeReader& r, BufferPool& b, const TreeOptions& o)
    : reader(r), buffers(b), options(o), cache(o.node_bytes, o.cache_bytes) {
  COFS_ASSERT(o.node_bytes >= ondisk::kNodeBytesMin && o.node_bytes <= ondisk::kNodeBytesMax &&
              o.node_bytes % kBlockBytes == 0);
}

BTree::Impl::~Impl() {
  COFS_ASSERT(loads.empty());
}

void BTree::Impl::start_empty() {
  Node* leaf =
      cache.create_leaf(LeafImage::create(buffers, options.node_bytes, options.volume_key));
  cache.root = Child();
  cache.root_level = 0;
  cache.attach(leaf, nullptr, cache.root);
  mark_dirty(leaf);
}

BTree::BTree(NodeReader& reader, BufferPool& buffers, TreeOptions options)
    : impl_(std::make_unique<Impl>(reader, buffers, options)) {
  impl_->start_empty();
}

// No root image at level 0: a volume whose tree was never written. At another level it is an error,
// which the first use reports.
BTree::BTree(NodeReader& reader, BufferPool& buffers, TreeOptions options, NodePointer root,
             uint8_t root_level)
    : impl_(std::make_unique<Impl>(reader, buffers, options)) {
  if (root.address[0] == 0 && root_level == 0) {
    impl_->start_empty();
    return;
  }
  impl_->cache.root.pointer = root;
  impl_->cache.root_level = root_level;
}

BTree::~BTree() = default;

uint64_t BTree::dirty_nodes() const {
  return impl_->cache.dirty().size();
}
uint64_t BTree::resident_nodes() const {
  return impl_->cache.resident_nodes();
}
uint64_t BTree::cached_bytes() const {
  return impl_->cache.resident_bytes();
}

// --- Descending ---------------------------------------------------------------------------------

Node* BTree::Impl::descend(const Key& key, uint8_t level, MissingNode& missing, const Key** upper) {
  const Child* slot = &cache.root;
  const Key* bound = nullptr;
  for (uint8_t at = cache.root_level;; at--) {
    Node* node = slot->node;
    if (node == nullptr) {
      missing = MissingNode(slot->pointer, key, at);
      return nullptr;
    }
    if (at == level) {
      node->referenced = true;
      if (upper != nullptr) *upper = bound;
      return node;
    }
    const Fanout& fanout = *node->fanout;
    const size_t index = child_index(fanout, key);
    if (index + 1 < fanout.size()) bound = &fanout[index + 1].key;
    slot = &fanout[index];
  }
}

BTree::Impl::Outcome BTree::Impl::last_leaf_before(Before& before, Node*& leaf,
                                                   MissingNode& missing) {
  const Child* slot = &cache.root;
  for (uint8_t level = cache.root_level;; level--) {
    Node* node = slot->node;
    if (node == nullptr) {
      missing =
          MissingNode(slot->pointer, level == cache.root_level ? before.bound : slot->key, level);
      return Outcome::kMissing;
    }
    if (level == 0) {
      node->referenced = true;
      leaf = node;
      return Outcome::kFound;
    }
    const Fanout& fanout = *node->fanout;
    size_t index = child_index(fanout, before.bound);
    const Key& key = fanout[index].key;
    if (key == before.bound && !before.inclusive) {
      if (index > 0) {
        index--;
      } else if (node->parent == nullptr) {
        return Outcome::kNone;
      } else {  // nothing below the bound in this node: what is below the node itself
        before = {node->first_key, false};
        return Outcome::kRetry;
      }
    } else if (key > before.bound) {  // the bound lies before this node's first child
      if (node->parent == nullptr) return Outcome::kNone;
      before = {node->first_key, false};
      return Outcome::kRetry;
    }
    slot = &fanout[index];
  }
}

// --- Loading ------------------------------------------------------------------------------------

// Nodes being read, and those into which nodes are being read.
bool BTree::Impl::is_loading(const Node& node) const {
  for (const std::shared_ptr<NodeLoad>& load : loads) {
    const MissingNode& missing = load->missing;
    if (node.level == missing.level) {
      if (node.pointer.address[0] == missing.pointer.address[0]) return true;
    } else if (node.level == missing.level + 1) {
      const Fanout& fanout = *node.fanout;
      const Child& child = fanout[child_index(fanout, missing.key)];
      if (child.pointer.address[0] == missing.pointer.address[0]) return true;
    }
  }
  return false;
}

void BTree::Impl::evict(uint64_t incoming) {
  cache.evict(incoming, [this](const Node& node) { return is_loading(node); });
}

Task<Result<>> BTree::Impl::load(const MissingNode& missing) {
  if (missing.level > ondisk::kTreeLevelMax || missing.pointer.address[0] == 0) {
    co_return fail(Code::kCorrupt, "tree node pointer", missing.pointer.address[0]);
  }
  for (const std::shared_ptr<NodeLoad>& other : loads) {
    if (other->done || other->missing.pointer != missing.pointer) continue;
    const std::shared_ptr<NodeLoad> shared = other;
    co_await NodeLoadAwaiter{*shared};
    co_return shared->result;
  }
  const auto load = std::make_shared<NodeLoad>(missing);
  loads.push_back(load);
  evict(cache.bytes_of_level(missing.level));
  auto image = co_await reader.read_node(load->missing.pointer);
  load->result = finish_load(*load, image);
  load->done = true;
  // Nobody joins a load that is done, so this list is complete. There is no executor here: each
  // waiter runs on this stack until it waits for something else.
  const auto waiters = std::exchange(load->waiters, {});
  for (std::coroutine_handle<> waiter : waiters) waiter.resume();
  std::erase(loads, load);
  co_return load->result;
}

// Puts the node into the tree, unless its place has gone: then nobody needs it, and an error in
// reading it means nothing.
Result<> BTree::Impl::finish_load(const NodeLoad& load, Result<BufferRef>& image) {
  const MissingNode& missing = load.missing;
  Node* parent = nullptr;
  Child* slot = &cache.root;
  const Key* upper = nullptr;
  if (missing.level != cache.root_level) {
    if (missing.level > cache.root_level) return {};
    MissingNode other;
    parent = descend(missing.key, static_cast<uint8_t>(missing.level + 1), other, &upper);
    if (parent == nullptr) return {};
    Fanout& fanout = *parent->fanout;
    const size_t index = child_index(fanout, missing.key);
    if (index + 1 < fanout.size()) upper = &fanout[index + 1].key;
    slot = &fanout[index];
  }
  if (slot->node != nullptr || slot->pointer != missing.pointer) return {};
  COFS_TRY(image);
  const Result<> checked = check_image(*image, missing.pointer, missing.level, slot->key, upper);
  COFS_TRY(checked);

  Node* node = nullptr;
  if (missing.level == 0) {
    node = cache.create_leaf(LeafImage::adopt(std::move(*image), options.node_bytes));
  } else {
    node = cache.create_internal(missing.level);
    for (const ParsedChild& child :
         parse_children(Bytes((*image)->bytes()).first(options.node_bytes))) {
      node->fanout->push_back(Child{child.key, child.pointer, nullptr});
    }
  }
  node->pointer = missing.pointer;
  cache.attach(node, parent, *slot);
  return {};
}

Result<> BTree::Impl::check_image(const BufferRef& image, const NodePointer& pointer, uint8_t level,
                                  const Key& lower, const Key* upper) const {
  if (image->bytes().size() < options.node_bytes) {
    return fail(Code::kCorrupt, "tree node: short image", pointer.address[0]);
  }
  const Bytes bytes = Bytes(image->bytes()).first(options.node_bytes);
  const Result<> checked = check_node_image(bytes, level, options.volume_key);
  if (!checked) return fail(checked.error().code, checked.error().what, pointer.address[0]);
  const NodeView view(bytes.data());
  if (view.birth() != pointer.birth) {
    return fail(Code::kCorrupt, "tree node: birth", pointer.address[0]);
  }
  if (view.count() == 0) {
    if (level == cache.root_level) return {};
    return fail(Code::kCorrupt, "tree node: empty", pointer.address[0]);
  }
  if (view.key(0) < lower || (upper != nullptr && view.key(view.count() - 1) >= *upper)) {
    return fail(Code::kCorrupt, "tree node: keys outside its parent's bounds", pointer.address[0]);
  }
  return {};
}

// --- Reading ------------------------------------------------------------------------------------

namespace {

TreeEntry entry_at(const NodeView& view, uint32_t index) {
  const Bytes value = view.value(index);
  return TreeEntry{view.key(index), std::vector<std::byte>(value.begin(), value.end())};
}

}  // namespace

Task<Result<std::optional<std::vector<std::byte>>>> BTree::get(Key key) {
  using Value = std::optional<std::vector<std::byte>>;
  MissingNode missing;
  for (;;) {
    if (const Node* leaf = impl_->descend(key, 0, missing)) {
      const NodeView view = leaf->leaf.view();
      const Position position = view.lower_bound(key);
      if (!position.found) co_return Value();
      const Bytes value = view.value(position.index);
      co_return Value(std::in_place, value.begin(), value.end());
    }
    auto loaded = co_await impl_->load(missing);
    COFS_CO_TRY(loaded);
  }
}

Task<Result<std::optional<TreeEntry>>> BTree::first_at_or_after(Key from, Key to) {
  using Found = std::optional<TreeEntry>;
  MissingNode missing;
  while (from < to) {
    const Key* upper = nullptr;
    const Node* leaf = impl_->descend(from, 0, missing, &upper);
    if (leaf == nullptr) {
      auto loaded = co_await impl_->load(missing);
      COFS_CO_TRY(loaded);
      continue;
    }
    const NodeView view = leaf->leaf.view();
    const uint32_t index = view.lower_bound(from).index;
    if (index < view.count()) {
      if (view.key(index) >= to) co_return Found();
      co_return Found(entry_at(view, index));
    }
    if (upper == nullptr) co_return Found();
    from = *upper;
  }
  co_return Found();
}

Task<Result<std::optional<TreeEntry>>> BTree::last_at_or_before(Key from, Key to) {
  using Found = std::optional<TreeEntry>;
  using Outcome = Impl::Outcome;
  MissingNode missing;
  Impl::Before before{to, true};
  while (from <= before.bound) {
    Node* leaf = nullptr;
    const Outcome outcome = impl_->last_leaf_before(before, leaf, missing);
    if (outcome == Outcome::kNone) break;
    if (outcome == Outcome::kRetry) continue;
    if (outcome == Outcome::kMissing) {
      auto loaded = co_await impl_->load(missing);
      COFS_CO_TRY(loaded);
      continue;
    }
    const NodeView view = leaf->leaf.view();
    const Position position = view.lower_bound(before.bound);
    if (position.found && before.inclusive) co_return Found(entry_at(view, position.index));
    if (position.index > 0) {
      if (view.key(position.index - 1) < from) break;
      co_return Found(entry_at(view, position.index - 1));
    }
    if (leaf->parent == nullptr) break;
    before = {leaf->first_key, false};
  }
  co_return Found();
}

Task<Result<>> BTree::scan(Key from, Key to, uint64_t limit,
                           std::function<bool(const Key&, Bytes)> visit) {
  MissingNode missing;
  while (limit > 0 && from < to) {
    const Key* upper = nullptr;
    const Node* leaf = impl_->descend(from, 0, missing, &upper);
    if (leaf == nullptr) {
      auto loaded = co_await impl_->load(missing);
      COFS_CO_TRY(loaded);
      continue;
    }
    const NodeView view = leaf->leaf.view();
    const uint32_t count = view.count();
    for (uint32_t i = view.lower_bound(from).index; i < count; i++) {
      const Key key = view.key(i);
      if (key >= to) co_return Result<>();
      if (!visit(key, view.value(i)) || --limit == 0) co_return Result<>();
    }
    if (upper == nullptr) break;
    from = *upper;
  }
  co_return Result<>();
}

Task<Result<>> BTree::load_around(Key from, Key to) {
  using Outcome = Impl::Outcome;
  MissingNode missing;
  Impl::Before before{from, false};  // what the first leaf holds, and then what lies before that
  bool first = true;
  Key at = from;
  while (true) {
    const Key* upper = nullptr;
    const Node* leaf = impl_->descend(at, 0, missing, &upper);
    if (leaf == nullptr) {
      auto loaded = co_await impl_->load(missing);
      COFS_CO_TRY(loaded);
      continue;
    }
    if (first) before.bound = leaf->first_key;
    first = false;
    if (upper == nullptr || at > to) break;
    at = *upper;
  }
  while (true) {
    Node* leaf = nullptr;
    const Outcome outcome = impl_->last_leaf_before(before, leaf, missing);
    if (outcome == Outcome::kFound || outcome == Outcome::kNone) co_return Result<>();
    if (outcome == Outcome::kRetry) continue;
    auto loaded = co_await impl_->load(missing);
    COFS_CO_TRY(loaded);
  }
}

}  // namespace cofs
