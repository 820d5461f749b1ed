#include "blockmap/node.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "offload/base/error.h"

namespace cofs {
namespace {

using ondisk::NodeHeader;
using ondisk::NodeSlot;

// Same as the little-endian wrappers, in one load: the search below is the hottest code of a mount.
template <class Integer>
Integer load(const std::byte* bytes) {
  Integer value;
  std::memcpy(&value, bytes, sizeof(value));
  if constexpr (std::endian::native == std::endian::big) value = std::byteswap(value);
  return value;
}

template <class Structure>
Structure load_structure(const std::byte* bytes) {
  Structure structure;
  std::memcpy(&structure, bytes, sizeof(structure));
  return structure;
}

const std::byte* slot_at(const std::byte* image, uint32_t index) {
  return image + kNodeHeaderBytes + size_t{index} * kSlotBytes;
}
std::byte* slot_at(std::byte* image, uint32_t index) {
  return image + kNodeHeaderBytes + size_t{index} * kSlotBytes;
}

void store_slot(std::byte* image, uint32_t index, uint32_t offset, size_t value_bytes) {
  NodeSlot slot;
  slot.offset = static_cast<uint16_t>(offset);
  slot.bytes = static_cast<uint16_t>(value_bytes);
  std::memcpy(slot_at(image, index), &slot, sizeof(slot));
}

void store_item(std::byte* item, const Key& key, Bytes value) {
  const ondisk::Key encoded = key.encode();
  std::memcpy(item, &encoded, sizeof(encoded));
  if (!value.empty()) std::memcpy(item + kKeyBytes, value.data(), value.size());
}

void store_header(std::byte* image, uint8_t level, uint64_t volume_key, uint64_t birth,
                  uint32_t count) {
  NodeHeader header{};
  header.magic = ondisk::kNodeMagic;
  header.volume_key = volume_key;
  header.birth = birth;
  header.level = level;
  header.count = count;
  std::memcpy(image, &header, sizeof(header));
}

// Negative, zero or positive as the item's key is below, equal to or above `key`. The first word of
// an encoded key is snapshot (32 bits), space, type (8 each) and n (16).
int compare_item(const std::byte* item, const Key& key) {
  const uint64_t head = load<uint64_t>(item);
  const auto space = static_cast<uint8_t>(head >> 32);
  if (space != static_cast<uint8_t>(key.space)) {
    return space < static_cast<uint8_t>(key.space) ? -1 : 1;
  }
  const uint64_t id = load<uint64_t>(item + 8);
  if (id != key.id) return id < key.id ? -1 : 1;
  const auto type = static_cast<uint8_t>(head >> 40);
  if (type != static_cast<uint8_t>(key.type)) {
    return type < static_cast<uint8_t>(key.type) ? -1 : 1;
  }
  const uint64_t offset = load<uint64_t>(item + 16);
  if (offset != key.offset) return offset < key.offset ? -1 : 1;
  const auto n = static_cast<uint16_t>(head >> 48);
  if (n != key.n) return n < key.n ? -1 : 1;
  return 0;
}

Key load_key(const std::byte* item) {
  const uint64_t head = load<uint64_t>(item);
  return Key(static_cast<ondisk::KeySpace>(static_cast<uint8_t>(head >> 32)),
             load<uint64_t>(item + 8),
             static_cast<ondisk::KeyType>(static_cast<uint8_t>(head >> 40)),
             load<uint64_t>(item + 16), static_cast<uint16_t>(head >> 48));
}

}  // namespace

ondisk::NodePointer NodePointer::encode() const {
  ondisk::NodePointer pointer{};
  pointer.address[0] = address[0];
  pointer.address[1] = address[1];
  pointer.checksum = checksum;
  pointer.birth = birth;
  return pointer;
}

NodePointer NodePointer::decode(const ondisk::NodePointer& pointer) {
  NodePointer native;
  native.address[0] = pointer.address[0];
  native.address[1] = pointer.address[1];
  native.checksum = pointer.checksum;
  native.birth = pointer.birth;
  return native;
}

// --- NodeView -----------------------------------------------------------------------------------

uint64_t NodeView::birth() const {
  return load<uint64_t>(image_ + offsetof(NodeHeader, birth));
}
uint32_t NodeView::count() const {
  return load<uint32_t>(image_ + offsetof(NodeHeader, count));
}
uint32_t NodeView::item_offset(uint32_t index) const {
  return load<uint16_t>(slot_at(image_, index));
}
uint32_t NodeView::value_bytes(uint32_t index) const {
  return load<uint16_t>(slot_at(image_, index) + offsetof(NodeSlot, bytes));
}
Key NodeView::key(uint32_t index) const {
  return load_key(image_ + item_offset(index));
}
Bytes NodeView::value(uint32_t index) const {
  return {image_ + item_offset(index) + kKeyBytes, value_bytes(index)};
}

Position NodeView::lower_bound(const Key& key) const {
  // The slots come together, rather than one by one as the search touches them.
  for (uint32_t line = 0; line < 512; line += 64) __builtin_prefetch(image_ + line);
  uint32_t begin = 0;
  uint32_t end = count();
  while (begin < end) {
    const uint32_t middle = (begin + end) / 2;
    const int order = compare_item(image_ + item_offset(middle), key);
    if (order == 0) return {middle, true};
    if (order < 0) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return {begin, false};
}

// --- LeafImage ----------------------------------------------------------------------------------

LeafImage LeafImage::create(BufferPool& buffers, uint32_t node_bytes, uint64_t volume_key) {
  LeafImage leaf;
  leaf.buffer_ = buffers.allocate(node_bytes / kBlockBytes);
  leaf.node_bytes_ = node_bytes;
  leaf.items_begin_ = node_bytes;
  store_header(leaf.buffer_->data(), 0, volume_key, 0, 0);
  return leaf;
}

LeafImage LeafImage::adopt(BufferRef image, uint32_t node_bytes) {
  LeafImage leaf;
  leaf.buffer_ = std::move(image);
  leaf.node_bytes_ = node_bytes;
  leaf.items_begin_ = node_bytes;
  const NodeView view = leaf.view();
  const uint32_t count = view.count();
  for (uint32_t i = 0; i < count; i++) {
    leaf.items_begin_ = std::min(leaf.items_begin_, view.item_offset(i));
    leaf.used_bytes_ += item_bytes(view.value_bytes(i));
  }
  return leaf;
}

uint32_t LeafImage::contiguous_bytes() const {
  return items_begin_ - kNodeHeaderBytes - count() * kSlotBytes;
}

void LeafImage::set_count(uint32_t count) {
  le32 encoded = count;
  std::memcpy(buffer_->data() + offsetof(NodeHeader, count), &encoded, sizeof(encoded));
}

void LeafImage::make_private(BufferPool& buffers) {
  if (buffer_.unique()) return;
  BufferRef copy = buffers.allocate(node_bytes_ / kBlockBytes);
  std::memcpy(copy->data(), buffer_->data(), node_bytes_);
  buffer_ = std::move(copy);
}

// Rebuilds the image in a new buffer without holes; nothing else sees the old one.
void LeafImage::compact(BufferPool& buffers) {
  LeafImage packed;
  packed.buffer_ = buffers.allocate(node_bytes_ / kBlockBytes);
  packed.node_bytes_ = node_bytes_;
  packed.items_begin_ = node_bytes_;
  std::memcpy(packed.buffer_->data(), buffer_->data(), kNodeHeaderBytes);
  packed.set_count(0);
  packed.append_range(*this, 0, count());
  *this = std::move(packed);
}

void LeafImage::insert(BufferPool& buffers, uint32_t index, const Key& key, Bytes value) {
  COFS_ASSERT(fits(value.size()));
  if (contiguous_bytes() < item_bytes(value.size())) compact(buffers);
  std::byte* image = buffer_->data();
  const uint32_t before = count();
  const uint32_t offset = items_begin_ - kKeyBytes - static_cast<uint32_t>(value.size());
  std::byte* slot = slot_at(image, index);
  std::memmove(slot + kSlotBytes, slot, size_t{before - index} * kSlotBytes);
  store_item(image + offset, key, value);
  store_slot(image, index, offset, value.size());
  set_count(before + 1);
  items_begin_ = offset;
  used_bytes_ += item_bytes(value.size());
}

// Appends one item; requires contiguous room.
void LeafImage::push_back(const Key& key, Bytes value) {
  const uint32_t offset = items_begin_ - kKeyBytes - static_cast<uint32_t>(value.size());
  const uint32_t before = count();
  store_item(buffer_->data() + offset, key, value);
  store_slot(buffer_->data(), before, offset, value.size());
  set_count(before + 1);
  items_begin_ = offset;
  used_bytes_ += item_bytes(value.size());
}

// Appends items [first, end) of `other`; requires contiguous room.
void LeafImage::append_range(const LeafImage& other, uint32_t first, uint32_t end) {
  const std::byte* source = other.buffer_->data();
  const NodeView view = other.view();
  std::byte* image = buffer_->data();
  uint32_t total = count();
  for (uint32_t i = first; i < end; i++) {
    const uint32_t value_bytes = view.value_bytes(i);
    items_begin_ -= kKeyBytes + value_bytes;
    std::memcpy(image + items_begin_, source + view.item_offset(i), kKeyBytes + value_bytes);
    store_slot(image, total++, items_begin_, value_bytes);
    used_bytes_ += item_bytes(value_bytes);
  }
  set_count(total);
}

void LeafImage::append(BufferPool& buffers, const LeafImage& other) {
  COFS_ASSERT(used_bytes_ + other.used_bytes_ <= capacity());
  if (contiguous_bytes() < other.used_bytes_) compact(buffers);
  append_range(other, 0, other.count());
}

// Keeps the first `keep` items.
void LeafImage::truncate(uint32_t keep) {
  const NodeView items = view();
  items_begin_ = node_bytes_;
  used_bytes_ = 0;
  for (uint32_t i = 0; i < keep; i++) {
    items_begin_ = std::min(items_begin_, items.item_offset(i));
    used_bytes_ += item_bytes(items.value_bytes(i));
  }
  set_count(keep);
}

bool LeafImage::replace(uint32_t index, Bytes value) {
  const uint32_t old_bytes = view().value_bytes(index);
  if (value.size() > old_bytes) return false;
  const uint32_t offset = view().item_offset(index);
  if (!value.empty()) {
    std::memcpy(buffer_->data() + offset + kKeyBytes, value.data(), value.size());
  }
  store_slot(buffer_->data(), index, offset, value.size());
  used_bytes_ -= old_bytes - static_cast<uint32_t>(value.size());
  return true;
}

void LeafImage::erase(uint32_t index) {
  const uint32_t before = count();
  COFS_ASSERT(index < before);
  const uint32_t offset = view().item_offset(index);
  const uint32_t bytes = kKeyBytes + view().value_bytes(index);
  std::byte* slot = slot_at(buffer_->data(), index);
  std::memmove(slot, slot + kSlotBytes, size_t{before - index - 1} * kSlotBytes);
  set_count(before - 1);
  used_bytes_ -= kSlotBytes + bytes;
  if (before == 1) {
    items_begin_ = node_bytes_;
  } else if (offset == items_begin_) {
    items_begin_ += bytes;  // the hole joins the free space; holes above it stay until compaction
  }
}

namespace {

// Where an overfull leaf is cut: positions in the list of its items with the new one among them.
struct SplitPlan {
  uint32_t first = 0;   // the right part (or the middle one) begins here
  uint32_t second = 0;  // the third part begins here; 0: two parts
};

// Two parts wherever both fit: the most even cut, or for sequential keys the one right after the
// new item, else right before it. With items of up to 5/8 of a small node it may be that no cut
// fits; then the new item gets a node of its own, which fits since both what is before and after it
// did.
SplitPlan plan_split(const NodeView& view, uint32_t capacity, uint32_t index, uint32_t new_bytes,
                     bool sequential) {
  const uint32_t count = view.count();
  if (sequential && index == count) return {count, 0};
  uint32_t total = new_bytes;
  for (uint32_t i = 0; i < count; i++) total += item_bytes(view.value_bytes(i));

  uint32_t best = 0;
  uint32_t best_score = UINT32_MAX;
  uint32_t left = 0;
  for (uint32_t cut = 1; cut <= count; cut++) {
    const uint32_t added = cut - 1;  // the item that the left part gains
    left += added == index ? new_bytes
                           : item_bytes(view.value_bytes(added < index ? added : added - 1));
    const uint32_t right = total - left;
    if (left > capacity || right > capacity) continue;
    uint32_t score = left > right ? left - right : right - left;
    if (sequential && cut == index + 1) score = 0;
    if (sequential && cut == index && score > 0) score = 1;
    if (score < best_score) {
      best = cut;
      best_score = score;
    }
  }
  if (best != 0) return {best, 0};
  COFS_ASSERT(index > 0 && index < count);
  return {index, index + 1};
}

}  // namespace

std::vector<LeafImage> LeafImage::insert_split(BufferPool& buffers, uint32_t index, const Key& key,
                                               Bytes value, bool sequential) {
  const uint32_t before = count();
  const NodeView items = view();
  const uint64_t volume_key = load<uint64_t>(buffer_->data() + offsetof(NodeHeader, volume_key));
  const SplitPlan plan = plan_split(items, capacity(), index, item_bytes(value.size()), sequential);

  // Part [begin, end) of the list of the items with the new one at `index`.
  auto make_part = [&](uint32_t begin, uint32_t end) {
    LeafImage part = create(buffers, node_bytes_, volume_key);
    const uint32_t low_end = std::min(end, index);
    if (begin < low_end) part.append_range(*this, begin, low_end);
    if (begin <= index && index < end) part.push_back(key, value);
    const uint32_t high_begin = std::max(begin, index + 1);
    if (high_begin < end) part.append_range(*this, high_begin - 1, end - 1);
    return part;
  };
  const uint32_t all = before + 1;
  std::vector<LeafImage> parts;
  if (plan.second == 0) {
    parts.push_back(make_part(plan.first, all));
  } else {
    parts.push_back(make_part(plan.first, plan.second));
    parts.push_back(make_part(plan.second, all));
  }
  const bool left_holds_new = index < plan.first;
  truncate(left_holds_new ? plan.first - 1 : plan.first);
  if (left_holds_new) insert(buffers, index, key, value);
  return parts;
}

void LeafImage::check(uint64_t volume_key) const {
  COFS_ASSERT(check_node_image(image(), 0, volume_key).has_value());
  uint32_t used = 0;
  for (uint32_t i = 0; i < count(); i++) {
    used += item_bytes(view().value_bytes(i));
    COFS_ASSERT(view().item_offset(i) >= items_begin_);
  }
  COFS_ASSERT(used == used_bytes_ && used <= capacity());
}

// --- Images to and from the device --------------------------------------------------------------

void write_leaf_image(const LeafImage& leaf, uint64_t birth, std::span<std::byte> target) {
  const Bytes image = leaf.image();
  const NodeView view = leaf.view();
  uint32_t items_begin = static_cast<uint32_t>(image.size());
  for (uint32_t i = 0; i < view.count(); i++) {
    items_begin = std::min(items_begin, view.item_offset(i));
  }
  const size_t slots_end = kNodeHeaderBytes + size_t{view.count()} * kSlotBytes;
  std::memcpy(target.data(), image.data(), slots_end);
  std::memset(target.data() + slots_end, 0, items_begin - slots_end);
  std::memcpy(target.data() + items_begin, image.data() + items_begin, image.size() - items_begin);
  const le64 encoded = birth;
  std::memcpy(target.data() + offsetof(NodeHeader, birth), &encoded, sizeof(encoded));
}

InternalWriter::InternalWriter(std::span<std::byte> image, uint8_t level, uint64_t volume_key,
                               uint64_t birth, uint32_t count)
    : image_(image) {
  COFS_ASSERT(count <= fanout_max(static_cast<uint32_t>(image.size())));
  std::memset(image.data(), 0, image.size());
  store_header(image.data(), level, volume_key, birth, count);
}

void InternalWriter::add(const Key& key, const NodePointer& pointer) {
  constexpr uint32_t kBytes = kKeyBytes + sizeof(ondisk::NodePointer);
  const uint32_t offset = static_cast<uint32_t>(image_.size()) - (index_ + 1) * kBytes;
  const ondisk::NodePointer encoded = pointer.encode();
  store_item(image_.data() + offset, key, std::as_bytes(std::span(&encoded, 1)));
  store_slot(image_.data(), index_++, offset, sizeof(encoded));
}

std::vector<ParsedChild> parse_children(Bytes image) {
  const NodeView view(image.data());
  std::vector<ParsedChild> children;
  children.reserve(view.count());
  for (uint32_t i = 0; i < view.count(); i++) {
    children.push_back({view.key(i), NodePointer::decode(load_structure<ondisk::NodePointer>(
                                         view.value(i).data()))});
  }
  return children;
}

}  // namespace cofs
