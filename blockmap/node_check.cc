// check_node_image: a node image is valid if and only if its header is ours and of the level
// expected, every item lies inside the node behind the slots and none over another, values have a
// size allowed at that level, keys ascend strictly, and child pointers are set and not younger than
// the node. Nothing here trusts a byte of the image; the checksum proves only that it was not
// damaged.
#include <algorithm>
#include <cstring>

#include "blockmap/node.h"
#include "offload/base/error.h"

namespace cofs {
namespace {

template <class Structure>
Structure load_structure(const std::byte* bytes) {
  Structure structure;
  std::memcpy(&structure, bytes, sizeof(structure));
  return structure;
}

Result<> check_header(const ondisk::NodeHeader& header, size_t bytes, uint8_t level,
                      uint64_t volume_key) {
  if (header.magic != ondisk::kNodeMagic) return fail(Code::kCorrupt, "tree node: magic");
  if (header.volume_key != volume_key) return fail(Code::kCorrupt, "tree node: other volume");
  if (header.level != level || level > ondisk::kTreeLevelMax) {
    return fail(Code::kCorrupt, "tree node: level");
  }
  for (uint8_t reserved : header.reserved) {
    if (reserved != 0) return fail(Code::kCorrupt, "tree node: reserved bytes");
  }
  if (header.count > (bytes - kNodeHeaderBytes) / item_bytes(0)) {
    return fail(Code::kCorrupt, "tree node: count");
  }
  if (level > 0 && header.count == 0) return fail(Code::kCorrupt, "tree node: no children");
  return {};
}

// Every item inside the node, behind the slots, and none over another.
Result<> check_slots(Bytes image, uint32_t count, uint8_t level) {
  const NodeView view(image.data());
  const uint32_t slots_end = kNodeHeaderBytes + count * kSlotBytes;
  std::vector<uint32_t> order(count);  // offsets above, item bytes below
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t offset = view.item_offset(i);
    const uint32_t value_bytes = view.value_bytes(i);
    if (level == 0 ? value_bytes > ondisk::kValueBytesMax
                   : value_bytes != sizeof(ondisk::NodePointer)) {
      return fail(Code::kCorrupt, "tree node: value size");
    }
    if (offset < slots_end || offset + kKeyBytes + value_bytes > image.size()) {
      return fail(Code::kCorrupt, "tree node: item outside");
    }
    order[i] = offset << 16 | (kKeyBytes + value_bytes);
  }
  std::sort(order.begin(), order.end());
  for (uint32_t i = 1; i < count; i++) {
    if ((order[i - 1] >> 16) + (order[i - 1] & 0xffff) > order[i] >> 16) {
      return fail(Code::kCorrupt, "tree node: items overlap");
    }
  }
  return {};
}

Result<> check_items(const NodeView& view, const ondisk::NodeHeader& header,
                     const std::byte* image) {
  for (uint32_t i = 0; i < header.count; i++) {
    const std::byte* item = image + view.item_offset(i);
    if (load_structure<ondisk::Key>(item).snapshot != 0) {
      return fail(Code::kCorrupt, "tree node: reserved key field");
    }
    if (i > 0 && view.key(i - 1) >= view.key(i)) {
      return fail(Code::kCorrupt, "tree node: key order");
    }
    if (header.level == 0) continue;
    const auto pointer = load_structure<ondisk::NodePointer>(item + kKeyBytes);
    if (pointer.address[0] == 0 || pointer.birth > header.birth) {
      return fail(Code::kCorrupt, "tree node: child pointer");
    }
  }
  return {};
}

}  // namespace

Result<> check_node_image(Bytes image, uint8_t level, uint64_t volume_key) {
  if (image.size() < kNodeHeaderBytes || image.size() > ondisk::kNodeBytesMax) {
    return fail(Code::kCorrupt, "tree node: size");
  }
  const auto header = load_structure<ondisk::NodeHeader>(image.data());
  Result<> result = check_header(header, image.size(), level, volume_key);
  COFS_TRY(result);
  result = check_slots(image, header.count, level);
  COFS_TRY(result);
  return check_items(NodeView(image.data()), header, image.data());
}

}  // namespace cofs
