// Leaf images against std::map, and check_node_image against damaged images.
#include "blockmap/node.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

namespace cofs {
namespace {

constexpr uint64_t kVolumeKey = 0x1234'5678'9abc'def0;

using Value = std::vector<std::byte>;
using Model = std::map<Key, Value>;

Key random_key(std::mt19937_64& random, uint64_t ids) {
  return Key(static_cast<ondisk::KeySpace>(1 + random() % 3), random() % ids,
             static_cast<ondisk::KeyType>(1 + random() % 4), random() % 3,
             static_cast<uint16_t>(random() % 2));
}

Value random_value(std::mt19937_64& random, uint64_t bytes_max) {
  Value value(random() % (bytes_max + 1));
  for (std::byte& byte : value) byte = static_cast<std::byte>(random());
  return value;
}

void expect_equal(const LeafImage& leaf, Model::const_iterator begin, Model::const_iterator end) {
  const NodeView view = leaf.view();
  ASSERT_EQ(view.count(), static_cast<uint32_t>(std::distance(begin, end)));
  uint32_t i = 0;
  for (auto it = begin; it != end; ++it, ++i) {
    ASSERT_EQ(view.key(i), it->first);
    ASSERT_TRUE(std::ranges::equal(view.value(i), it->second));
    ASSERT_EQ(view.lower_bound(it->first).index, i);
    ASSERT_TRUE(view.lower_bound(it->first).found);
  }
}

// The parts hold `model`'s items in order; none is empty.
void expect_parts(const LeafImage& left, const std::vector<LeafImage>& rights, const Model& model) {
  ASSERT_TRUE(rights.size() == 1 || rights.size() == 2);
  auto begin = model.begin();
  auto take = [&](const LeafImage& part) {
    part.check(kVolumeKey);
    ASSERT_GT(part.count(), 0u);
    ASSERT_LE(part.count(), static_cast<uint32_t>(std::distance(begin, model.end())));
    auto end = std::next(begin, part.count());
    expect_equal(part, begin, end);
    begin = end;
  };
  take(left);
  for (const LeafImage& part : rights) take(part);
  ASSERT_EQ(begin, model.end());
}

class LeafTest : public testing::TestWithParam<uint32_t> {
 protected:
  LeafTest() : buffers_(0) {}
  BufferPool buffers_;
};

TEST_P(LeafTest, RandomEdits) {
  const uint32_t node_bytes = GetParam();
  for (uint64_t seed = 1; seed <= 24; seed++) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << " node " << node_bytes);
    std::mt19937_64 random(seed);
    const uint64_t value_max = seed % 3 == 0 ? ondisk::kValueBytesMax : seed % 3 == 1 ? 100 : 12;
    const uint64_t ids = std::max<uint64_t>(4, node_bytes / (24 + value_max / 2) / 12);
    LeafImage leaf = LeafImage::create(buffers_, node_bytes, kVolumeKey);
    Model model;
    for (int step = 0; step < 3000; step++) {
      const Key key = random_key(random, ids);
      const Position position = leaf.view().lower_bound(key);
      ASSERT_EQ(position.found, model.contains(key));
      if (position.found && random() % 3 == 0) {
        leaf.erase(position.index);
        model.erase(key);
      } else {
        const Value value = random_value(random, value_max);
        if (position.found) {
          if (leaf.replace(position.index, value)) {
            model[key] = value;
            continue;
          }
          leaf.erase(position.index);
          model.erase(key);
        }
        const uint32_t index = leaf.view().lower_bound(key).index;
        model[key] = value;
        if (leaf.fits(value.size())) {
          leaf.insert(buffers_, index, key, value);
        } else {
          const auto rights = leaf.insert_split(buffers_, index, key, value, random() % 2 == 0);
          expect_parts(leaf, rights, model);
          model.erase(std::next(model.begin(), leaf.count()), model.end());
        }
      }
      if (step % 16 == 0) {
        leaf.check(kVolumeKey);
        expect_equal(leaf, model.begin(), model.end());
      }
    }
    leaf.check(kVolumeKey);
    expect_equal(leaf, model.begin(), model.end());
    std::vector<std::byte> image(node_bytes, std::byte{0xaa});
    write_leaf_image(leaf, 77, image);
    ASSERT_TRUE(check_node_image(image, 0, kVolumeKey));
    BufferRef buffer = buffers_.allocate(node_bytes / kBlockBytes);
    std::memcpy(buffer->data(), image.data(), node_bytes);
    const LeafImage again = LeafImage::adopt(std::move(buffer), node_bytes);
    ASSERT_EQ(again.view().birth(), 77u);
    ASSERT_EQ(again.used_bytes(), leaf.used_bytes());
    expect_equal(again, model.begin(), model.end());
  }
}

// Every place of a big new item between items of all sizes.
TEST_P(LeafTest, SplitsOfAllShapes) {
  const uint32_t node_bytes = GetParam();
  std::mt19937_64 random(5);
  int three_parts = 0;
  for (int round = 0; round < 400; round++) {
    SCOPED_TRACE(testing::Message() << "round " << round);
    LeafImage leaf = LeafImage::create(buffers_, node_bytes, kVolumeKey);
    Model model;
    for (uint64_t id = 0;; id++) {
      const Value value = random_value(random, ondisk::kValueBytesMax);
      if (!leaf.fits(value.size())) break;
      leaf.insert(buffers_, leaf.count(), Key::vmap(2 * id + 1), value);
      model[Key::vmap(2 * id + 1)] = value;
    }
    const Value value(leaf.capacity() - leaf.used_bytes() < item_bytes(ondisk::kValueBytesMax)
                          ? ondisk::kValueBytesMax
                          : 0,
                      std::byte{7});
    if (value.empty()) continue;
    const uint32_t index = static_cast<uint32_t>(random() % (leaf.count() + 1));
    const Key key = Key::vmap(2 * index);
    model[key] = value;
    const auto rights = leaf.insert_split(buffers_, index, key, value, round % 2 == 0);
    expect_parts(leaf, rights, model);
    three_parts += rights.size() == 2 ? 1 : 0;
  }
  EXPECT_TRUE(node_bytes > 4096 || three_parts > 10) << three_parts;
}

TEST_P(LeafTest, SequentialSplitLeavesFullNode) {
  LeafImage leaf = LeafImage::create(buffers_, GetParam(), kVolumeKey);
  const Value value(20);
  uint64_t id = 0;
  for (; leaf.fits(value.size()); id++) {
    leaf.insert(buffers_, leaf.count(), Key::vmap(id), value);
  }
  const uint32_t full = leaf.count();
  const auto rights = leaf.insert_split(buffers_, full, Key::vmap(id), value, true);
  EXPECT_EQ(leaf.count(), full);
  ASSERT_EQ(rights.size(), 1u);
  EXPECT_EQ(rights[0].count(), 1u);
}

TEST_P(LeafTest, SharedImageIsCopiedBeforeChange) {
  LeafImage leaf = LeafImage::create(buffers_, GetParam(), kVolumeKey);
  leaf.insert(buffers_, 0, Key::vmap(1), Value(5, std::byte{1}));
  const LeafImage frozen = leaf;
  leaf.make_private(buffers_);
  leaf.insert(buffers_, 1, Key::vmap(2), Value(5, std::byte{2}));
  EXPECT_EQ(frozen.count(), 1u);
  EXPECT_EQ(leaf.count(), 2u);
}

std::vector<std::byte> internal_image(uint32_t node_bytes, uint32_t count) {
  std::vector<std::byte> image(node_bytes);
  InternalWriter writer(image, 3, kVolumeKey, 9, count);
  for (uint32_t i = 0; i < count; i++) {
    NodePointer pointer;
    pointer.address[0] = 100 + i;
    pointer.checksum = i;
    pointer.birth = 1 + i % 9;
    writer.add(Key::vmap(uint64_t{i} * 5), pointer);
  }
  return image;
}

TEST_P(LeafTest, InternalRoundTrip) {
  for (uint32_t count : {1u, 2u, fanout_max(GetParam())}) {
    const auto image = internal_image(GetParam(), count);
    ASSERT_TRUE(check_node_image(image, 3, kVolumeKey));
    EXPECT_FALSE(check_node_image(image, 2, kVolumeKey));
    EXPECT_FALSE(check_node_image(image, 3, kVolumeKey + 1));
    const auto children = parse_children(image);
    ASSERT_EQ(children.size(), count);
    EXPECT_EQ(children.back().key, Key::vmap(uint64_t{count - 1} * 5));
    EXPECT_EQ(children.back().pointer.address[0], 100 + count - 1);
  }
}

// An accepted image, whatever it is, can be read without leaving it (under ASan) and is in order.
void read_all(Bytes image, uint8_t level) {
  if (level > 0) {
    ASSERT_EQ(parse_children(image).size(), NodeView(image.data()).count());
    return;
  }
  const NodeView view(image.data());
  uint64_t sum = 0;
  for (uint32_t i = 0; i < view.count(); i++) {
    for (std::byte byte : view.value(i)) sum += static_cast<uint64_t>(byte);
    ASSERT_TRUE(i == 0 || view.key(i - 1) < view.key(i));
    ASSERT_TRUE(view.lower_bound(view.key(i)).found);
  }
  ASSERT_LE(sum, uint64_t{255} * image.size());
}

TEST_P(LeafTest, DamagedImagesAreRejectedOrReadable) {
  const uint32_t node_bytes = GetParam();
  std::mt19937_64 random(11);
  LeafImage leaf = LeafImage::create(buffers_, node_bytes, kVolumeKey);
  for (uint64_t id = 0;; id++) {
    const Value value = random_value(random, 40);
    if (!leaf.fits(value.size())) break;
    leaf.insert(buffers_, leaf.count(), Key::vmap(id), value);
  }
  std::vector<std::byte> images[2] = {std::vector<std::byte>(node_bytes),
                                      internal_image(node_bytes, fanout_max(node_bytes) - 1)};
  write_leaf_image(leaf, 1, images[0]);
  const int mutations = node_bytes <= 8192 ? 60000 : 5000;
  int rejected = 0;
  for (int i = 0; i < mutations; i++) {
    const uint8_t level = i % 2 == 0 ? 0 : 3;
    std::vector<std::byte> image = images[i % 2];
    const uint64_t changes = 1 + random() % 4;
    for (uint64_t c = 0; c < changes; c++) {
      const uint64_t range = random() % 3 == 0 ? node_bytes : 160;  // the header and slots, mostly
      image[random() % range] = static_cast<std::byte>(random());
    }
    if (check_node_image(image, level, kVolumeKey)) {
      read_all(image, level);
    } else {
      rejected++;
    }
  }
  EXPECT_GT(rejected, mutations / 4);
  EXPECT_FALSE(check_node_image(Bytes(images[0]).first(8), 0, kVolumeKey));
}

INSTANTIATE_TEST_SUITE_P(NodeBytes, LeafTest, testing::Values(4096u, 8192u, 16384u, 65536u));

}  // namespace
}  // namespace cofs
