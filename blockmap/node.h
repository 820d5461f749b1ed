// One tree node as its image: the slotted page of docs/ONDISK.md, read, edited and checked.
//
// A leaf lives in memory as its image (LeafImage), so that the cache bound is real and writing one
// is a copy. An internal node lives as a parsed Fanout (blockmap/node_cache.h); only its two
// conversions are here. Invariants of an edited leaf: every rule of check_node_image; used_bytes()
// is what the slots and live items take; items lie in [items_begin, node_bytes), with holes until
// compaction. Not for: where nodes are, or which node a key belongs to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "blockmap/btree.h"
#include "blockmap/key.h"
#include "blockmap/ondisk.h"
#include "offload/base/buffer.h"

namespace cofs {

inline constexpr uint32_t kNodeHeaderBytes = sizeof(ondisk::NodeHeader);
inline constexpr uint32_t kSlotBytes = sizeof(ondisk::NodeSlot);
inline constexpr uint32_t kKeyBytes = sizeof(ondisk::Key);

// Bytes an item takes of a node, its slot included.
constexpr uint32_t item_bytes(size_t value_bytes) {
  return kSlotBytes + kKeyBytes + static_cast<uint32_t>(value_bytes);
}
// Bytes of a node that items may take.
constexpr uint32_t node_capacity(uint32_t node_bytes) {
  return node_bytes - kNodeHeaderBytes;
}
// Children an internal node may have.
constexpr uint32_t fanout_max(uint32_t node_bytes) {
  return node_capacity(node_bytes) / item_bytes(sizeof(ondisk::NodePointer));
}
static_assert(item_bytes(ondisk::kValueBytesMax) <= node_capacity(ondisk::kNodeBytesMin));
static_assert(fanout_max(ondisk::kNodeBytesMin) >= 4);
static_assert(ondisk::kNodeBytesMax <= 65536, "a slot's offset is 16 bits");

struct Position {
  uint32_t index = 0;  // of the first item whose key is not below the one sought
  bool found = false;  // its key is the one sought
};

// Reads an image that check_node_image accepted or that LeafImage made.
class NodeView {
 public:
  explicit NodeView(const std::byte* image) : image_(image) {}

  uint64_t birth() const;
  uint32_t count() const;
  Key key(uint32_t index) const;
  Bytes value(uint32_t index) const;
  uint32_t value_bytes(uint32_t index) const;
  uint32_t item_offset(uint32_t index) const;
  Position lower_bound(const Key& key) const;

 private:
  const std::byte* image_;
};

// A leaf's image and its free space. Copies share the image; writers call make_private() first.
class LeafImage {
 public:
  LeafImage() = default;
  // An empty leaf.
  static LeafImage create(BufferPool& buffers, uint32_t node_bytes, uint64_t volume_key);
  // Takes an image that check_node_image accepted.
  static LeafImage adopt(BufferRef image, uint32_t node_bytes);

  NodeView view() const { return NodeView(buffer_->data()); }
  uint32_t count() const { return view().count(); }
  uint32_t used_bytes() const { return used_bytes_; }
  uint32_t capacity() const { return node_capacity(node_bytes_); }
  bool fits(size_t value_bytes) const {
    return used_bytes_ + item_bytes(value_bytes) <= capacity();
  }
  Bytes image() const { return {buffer_->data(), node_bytes_}; }

  // Copies the image first if somebody else (a frozen tree, the reader) refers to it too.
  void make_private(BufferPool& buffers);

  // The editing functions below require a private image.
  // Inserts before `index`; requires fits(value.size()) and the key's right place.
  void insert(BufferPool& buffers, uint32_t index, const Key& key, Bytes value);
  // Inserts where fits() is false: keeps the left part here and returns the one or two parts to its
  // right, none empty. `sequential`: keys come in ascending order here, so the left part is kept
  // full.
  std::vector<LeafImage> insert_split(BufferPool& buffers, uint32_t index, const Key& key,
                                      Bytes value, bool sequential);
  // Replaces the value in place if the new one is not longer; false: nothing was done.
  bool replace(uint32_t index, Bytes value);
  void erase(uint32_t index);
  // Appends all of `other`, whose keys are all above; requires that the sum of used_bytes() fits.
  void append(BufferPool& buffers, const LeafImage& other);

  // Asserts the invariants.
  void check(uint64_t volume_key) const;

 private:
  uint32_t contiguous_bytes() const;
  void set_count(uint32_t count);
  void compact(BufferPool& buffers);
  void push_back(const Key& key, Bytes value);
  void append_range(const LeafImage& other, uint32_t first, uint32_t end);
  void truncate(uint32_t count);

  BufferRef buffer_;
  uint32_t node_bytes_ = 0;
  uint32_t items_begin_ = 0;  // lowest offset of an item; node_bytes when there is none
  uint32_t used_bytes_ = 0;
};

// One child of an internal node, as read from its image.
struct ParsedChild {
  Key key;
  NodePointer pointer;
};
// All children in an internal image that check_node_image accepted.
std::vector<ParsedChild> parse_children(Bytes image);

// Writes an internal node's image item by item, in key order.
class InternalWriter {
 public:
  // Clears `image` (node_bytes) and writes its header for `count` children.
  InternalWriter(std::span<std::byte> image, uint8_t level, uint64_t volume_key, uint64_t birth,
                 uint32_t count);
  void add(const Key& key, const NodePointer& pointer);

 private:
  std::span<std::byte> image_;
  uint32_t index_ = 0;
};

// Copies a leaf's image to `target` with `birth` in its header and its free space zeroed.
void write_leaf_image(const LeafImage& leaf, uint64_t birth, std::span<std::byte> target);

}  // namespace cofs
