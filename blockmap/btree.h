// BTree: the one keyspace, a copy-on-write B+-tree of fixed-size nodes.
//
// Nodes are read through a NodeReader, cached under a memory bound, changed in memory only, and
// written by checkpoints: a checkpoint gives every dirty node its new address, takes a frozen snapshot
// of the dirty set without waiting, and writes that while the tree goes on changing (a frozen node
// that changes again is copied first). Invariants: keys strictly ascending in and between nodes; a
// dirty node's ancestors are dirty; every node but the root holds an item; a clean node equals its
// image at its pointer. Not for: transactions (blockmap/transaction.h) or the meaning of values.
//
// Thread safety: inside the core only. Mutations are serialised by the caller (the store's apply
// lock) and may wait for node reads; readers run at any time between, and each single get / seek /
// put / erase acts atomically on the tree. A failed read leaves the tree as it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "blockmap/key.h"
#include "offload/base/buffer.h"
#include "offload/base/error.h"
#include "offload/base/task.h"

namespace cofs {

using Bytes = std::span<const std::byte>;

// A pointer to a node image, native form. address[0] == 0: no image.
struct NodePointer {
  uint64_t address[2] = {0, 0};
  uint64_t checksum = 0;
  uint64_t birth = 0;
  bool operator==(const NodePointer&) const = default;

  ondisk::NodePointer encode() const;
  static NodePointer decode(const ondisk::NodePointer& pointer);
};

// Brings node images from the device.
class NodeReader {
 public:
  virtual ~NodeReader() = default;
  // Reads the image at `pointer` (the second copy if the first does not match pointer.checksum).
  // The buffer holds node_bytes. Errors: kIo, kChecksum.
  virtual Task<Result<BufferRef>> read_node(NodePointer pointer) = 0;
};

// Checks an image whose checksum already matched: header, level, slots and items inside the node
// without overlap, keys strictly ascending, values within limits. Errors: kCorrupt.
Result<> check_node_image(Bytes image, uint8_t level, uint64_t volume_key);

struct TreeOptions {
  uint32_t node_bytes = ondisk::kNodeBytesDefault;
  uint64_t cache_bytes = 64ULL << 20;  // of clean nodes; dirty ones come on top
  uint64_t volume_key = 0;
};

struct TreeEntry {
  Key key;
  std::vector<std::byte> value;
};

// One dirty node at a checkpoint, before the freeze.
struct DirtyNode {
  uint8_t level = 0;
  Key first_key;            // smallest key it may hold
  NodePointer old_pointer;  // where its former image lies; address[0] == 0 if it never had one
  void* node = nullptr;     // the tree's own handle
};

// A frozen node to be written: its image goes to pointer.address[].
struct FrozenNode {
  uint8_t level = 0;
  Key first_key;
  NodePointer pointer;  // checksum is set by FrozenTree::serialize
  void* node = nullptr;
};

class FrozenTree {
 public:
  virtual ~FrozenTree() = default;
  // Children before parents.
  virtual size_t size() const = 0;
  virtual const FrozenNode& node(size_t i) const = 0;
  // Writes node i's image (node_bytes) to `image` and fixes its checksum. Must be called for
  // i = 0, 1, … in order. Touches nothing that the live tree changes, so it may run outside the core.
  virtual void serialize(size_t i, std::span<std::byte> image) = 0;
  // After all were serialized: the root of the frozen tree.
  virtual NodePointer root() const = 0;
  virtual uint8_t root_level() const = 0;
};

class BTree {
 public:
  // An empty tree, or the tree whose root image is at `root` (read when first needed; empty if
  // root.address[0] is 0).
  BTree(NodeReader& reader, BufferPool& buffers, TreeOptions options);
  BTree(NodeReader& reader, BufferPool& buffers, TreeOptions options, NodePointer root,
        uint8_t root_level);
  ~BTree();
  BTree(const BTree&) = delete;

  // The value of `key`, if there is such a record.
  Task<Result<std::optional<std::vector<std::byte>>>> get(Key key);
  // The first record with from <= key < to.
  Task<Result<std::optional<TreeEntry>>> first_at_or_after(Key from, Key to);
  // The last record with from <= key <= to.
  Task<Result<std::optional<TreeEntry>>> last_at_or_before(Key from, Key to);
  // All records with from <= key < to in order, until `visit` returns false or `limit` were seen. The
  // visitor runs inside the tree: it must not wait nor change the tree.
  Task<Result<>> scan(Key from, Key to, uint64_t limit,
                      std::function<bool(const Key&, Bytes)> visit);

  // Adds or replaces. value.size() <= kValueBytesMax. The bytes are copied before the first wait.
  Task<Result<>> put(Key key, Bytes value);
  // True if there was such a record.
  Task<Result<bool>> erase(Key key);

  // Makes the leaves that cover the keys from <= key <= to resident, and one more on either side, where a put
  // goes whose own leaf was emptied and is gone. Put and erase of these keys then read nothing, but for what was
  // evicted meanwhile.
  Task<Result<>> load_around(Key from, Key to);

  // --- Checkpoint ---
  uint64_t dirty_nodes() const;    // live dirty nodes, not counting a frozen set being written
  uint64_t resident_nodes() const;
  uint64_t cached_bytes() const;
  // Visits dirty nodes that have no new address yet. The visitor may not change the tree.
  void for_each_unassigned(const std::function<void(const DirtyNode&)>& visit) const;
  // Gives a dirty node the address its next image goes to. A node that is assigned and then dirtied
  // again before freeze() keeps the address.
  void assign(const DirtyNode& node, const uint64_t address[2], uint64_t birth);
  // Images that no node uses any more (merged or emptied nodes) since the last call.
  std::vector<NodePointer> take_dropped();
  // Snapshot of all dirty nodes, each of which must be assigned. Without waiting. One at a time: the
  // former one has been passed to finish() or abandon().
  std::unique_ptr<FrozenTree> freeze();
  // The frozen images are durable: nodes unchanged since the freeze become clean.
  void finish(FrozenTree& frozen);
  // The frozen images could not be written: everything in the frozen set is dirty and unassigned again.
  void abandon(FrozenTree& frozen);

  // Makes the node of `level` that covers `key` dirty if its image lies at address (either copy); for
  // moving nodes out of a segment. True if it did.
  Task<Result<bool>> dirty_node_at(uint8_t level, Key key, uint64_t address);

  // Walks every node top-down and reports each (also unreadable ones, with the error); for verify().
  struct VisitedNode {
    uint8_t level = 0;
    Key first_key;
    NodePointer pointer;  // address[0] == 0: dirty, never written
    Result<> result;
  };
  // `entry` is called for each leaf record in key order of the readable leaves.
  Task<Result<>> walk(std::function<void(const VisitedNode&)> node,
                      std::function<void(const Key&, Bytes)> entry);

  // The nodes from the root down to the leaf that covers `key`, which is not read for it.
  struct PathNode {
    uint8_t level = 0;
    Key first_key;        // smallest key it may hold
    NodePointer pointer;  // its newest finished image
    bool clean = true;    // false: another image of it is being written, or will be
    Result<> result;      // of an inner node that cannot be read: why. It is the last one then
  };
  struct Path {
    std::vector<PathNode> nodes;
    std::optional<Key> next;  // the first key beyond the last of the nodes; none: there is nothing beyond
  };
  Task<Path> path_to(Key key);

  // Asserts what can be checked without reading: for tests.
  void check_invariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cofs
