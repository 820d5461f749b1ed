#include "tests/testing/sim_image.h"

#include <cstring>
#include <utility>

#include "offload/base/checksum.h"
#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

void fill_random(uint64_t seed, std::byte* out, size_t bytes) {
  SimRandom random(seed);
  for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    const uint64_t word = random.next();
    std::memcpy(out + at, &word, sizeof(word));
  }
}

}  // namespace

SimPageRef make_sim_page(const std::byte* bytes) {
  auto page = std::make_shared<SimPage>();
  std::memcpy(page->bytes.data(), bytes, kBlockBytes);
  return page;
}

SimPageRef make_random_page(uint64_t seed) {
  auto page = std::make_shared<SimPage>();
  fill_random(seed, page->bytes.data(), kBlockBytes);
  return page;
}

SimPageRef damaged_page(const SimPage& page, SimDamage kind, uint64_t seed) {
  auto copy = std::make_shared<SimPage>(page);
  SimRandom random(seed);
  // Flipped afterwards in any case, so that the result differs even where the random bytes agree.
  const uint64_t bit = random.below(uint64_t{kBlockBytes} * 8);
  std::byte& at = copy->bytes[bit / 8];
  switch (kind) {
    case SimDamage::kBit: at ^= std::byte{static_cast<unsigned char>(1U << (bit % 8))}; break;
    case SimDamage::kSector: {
      const std::byte before = at;
      fill_random(random.next(), copy->bytes.data() + bit / 8 / kSimSectorBytes * kSimSectorBytes,
                  kSimSectorBytes);
      if (at == before) at ^= std::byte{1};
      break;
    }
    case SimDamage::kBlock: {
      const std::byte before = at;
      fill_random(random.next(), copy->bytes.data(), kBlockBytes);
      if (at == before) at ^= std::byte{1};
      break;
    }
    case SimDamage::kZero:
      copy->bytes.fill(std::byte{0});
      if (copy->bytes == page.bytes) copy->bytes[0] = std::byte{1};
      break;
  }
  return copy;
}

SimPageRef torn_page(const SimPage& old, const SimPage& fresh, uint8_t mask) {
  auto page = std::make_shared<SimPage>(old);
  for (uint32_t sector = 0; sector < kSimSectorsPerBlock; sector++) {
    if ((mask >> sector & 1) == 0) continue;
    const size_t at = size_t{sector} * kSimSectorBytes;
    std::memcpy(page->bytes.data() + at, fresh.bytes.data() + at, kSimSectorBytes);
  }
  return page;
}

SimImage::SimImage(uint64_t block_count, Fill fill, uint64_t seed)
    : block_count_(block_count), fill_(fill), seed_(seed), levels_(0) {
  COFS_ASSERT(block_count < uint64_t{1} << 52);
  // A tree for the largest device is no deeper than 13 levels; take what this one needs.
  while ((block_count - 1) >> (kFanoutShift * (levels_ + 1)) != 0 && block_count != 0) levels_++;
}

SimPageRef SimImage::page(uint64_t block) const {
  COFS_ASSERT(block < block_count_);
  const Node* node = root_.get();
  for (uint32_t level = levels_; node != nullptr; level--) {
    const auto& slot = node->slots[(block >> (kFanoutShift * level)) % kFanout];
    if (level == 0) return std::static_pointer_cast<const SimPage>(slot);
    node = static_cast<const Node*>(slot.get());
  }
  return nullptr;
}

void SimImage::set_page(uint64_t block, SimPageRef page) {
  COFS_ASSERT(block < block_count_);
  // A node that only this image refers to is changed in place, a shared one is copied first.
  if (root_ == nullptr) {
    root_ = std::make_shared<Node>();
  } else if (root_.use_count() > 1) {
    root_ = std::make_shared<Node>(*root_);
  }
  Node* node = root_.get();
  for (uint32_t level = levels_; level > 0; level--) {
    auto& slot = node->slots[(block >> (kFanoutShift * level)) % kFanout];
    if (slot == nullptr) {
      slot = std::make_shared<Node>();
    } else if (slot.use_count() > 1) {
      slot = std::make_shared<Node>(*static_cast<const Node*>(slot.get()));
    }
    // Every Node was made non-const and is reachable from this image only.
    node = const_cast<Node*>(static_cast<const Node*>(slot.get()));
  }
  node->slots[block % kFanout] = std::move(page);
}

void SimImage::read(uint64_t block, std::byte* out) const {
  const SimPageRef stored = page(block);
  if (stored != nullptr) {
    std::memcpy(out, stored->bytes.data(), kBlockBytes);
  } else if (fill_ == Fill::kZeros) {
    std::memset(out, 0, kBlockBytes);
  } else {
    fill_random(mix64(seed_, block), out, kBlockBytes);
  }
}

void SimImage::write(uint64_t block, const std::byte* in) { set_page(block, make_sim_page(in)); }

SimPageRef SimImage::materialise(uint64_t block) const {
  SimPageRef stored = page(block);
  if (stored != nullptr) return stored;
  auto made = std::make_shared<SimPage>();
  read(block, made->bytes.data());
  return made;
}

void SimImage::damage(uint64_t block, SimDamage kind, uint64_t seed) {
  set_page(block, damaged_page(*materialise(block), kind, seed));
}

void SimImage::resize(uint64_t block_count) {
  SimImage other(block_count, fill_, seed_);
  for_each_written([&other](uint64_t block, const SimPageRef& page) {
    if (block < other.block_count()) other.set_page(block, page);
  });
  *this = std::move(other);
}

void SimImage::for_each_written(
    const std::function<void(uint64_t, const SimPageRef&)>& visit) const {
  if (root_ != nullptr) visit_node(*root_, levels_, 0, visit);
}

void SimImage::visit_node(const Node& node, uint32_t level, uint64_t base,
                          const std::function<void(uint64_t, const SimPageRef&)>& visit) {
  for (uint64_t i = 0; i < kFanout; i++) {
    const auto& slot = node.slots[i];
    if (slot == nullptr) continue;
    const uint64_t block = base + (i << (kFanoutShift * level));
    if (level == 0) {
      visit(block, std::static_pointer_cast<const SimPage>(slot));
    } else {
      visit_node(*static_cast<const Node*>(slot.get()), level - 1, block, visit);
    }
  }
}

}  // namespace cofs
