// SimImage: the content of a simulated device, as a value. Copying one costs a pointer, changing a block
// of a copy costs the path to it, so a sweep may make a crash image at every operation.
//
// Blocks lie in a radix tree of immutable 4 KiB pages, shared between images. A block that was never
// written, or was discarded, has no page and reads as poison: random bytes that depend on the image's
// seed and the block (or zeros). Copies may be used by one thread only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "offload/base/error.h"
#include "offload/base/units.h"

namespace cofs {

struct SimPage {
  std::array<std::byte, kBlockBytes> bytes;
};
using SimPageRef = std::shared_ptr<const SimPage>;  // null: poison

inline constexpr uint32_t kSimSectorBytes = 512;
inline constexpr uint32_t kSimSectorsPerBlock = kBlockBytes / kSimSectorBytes;

enum class SimDamage : uint8_t {
  kBit,     // one bit flips
  kSector,  // 512 bytes turn random
  kBlock,   // the whole block turns random
  kZero,    // the whole block turns zero
};

class SimImage {
 public:
  enum class Fill : uint8_t { kPoison, kZeros };

  // A device of `block_count` blocks, none of them written. Costs nothing however large.
  explicit SimImage(uint64_t block_count, Fill fill = Fill::kPoison, uint64_t seed = 1);

  uint64_t block_count() const { return block_count_; }

  // The page of a block; null where it reads as poison.
  SimPageRef page(uint64_t block) const;
  void set_page(uint64_t block, SimPageRef page);
  bool written(uint64_t block) const { return page(block) != nullptr; }

  // Copies one block out (kBlockBytes) and in.
  void read(uint64_t block, std::byte* out) const;
  void write(uint64_t block, const std::byte* in);
  // The block as a page, poison made real.
  SimPageRef materialise(uint64_t block) const;
  // Alters the stored block; it reads differently afterwards, for certain.
  void damage(uint64_t block, SimDamage kind, uint64_t seed);

  // Another content-preserving view of size: as if the device grew or was cut. Blocks beyond a smaller
  // end are dropped.
  void resize(uint64_t block_count);

  // Calls visit(block, page) for every written block, ascending.
  void for_each_written(const std::function<void(uint64_t, const SimPageRef&)>& visit) const;

 private:
  static constexpr uint32_t kFanoutShift = 4;
  static constexpr uint32_t kFanout = 1U << kFanoutShift;
  // Slots hold Nodes above level 0, SimPages at level 0.
  struct Node {
    std::array<std::shared_ptr<const void>, kFanout> slots;
  };

  static void visit_node(const Node& node, uint32_t level, uint64_t base,
                         const std::function<void(uint64_t, const SimPageRef&)>& visit);

  uint64_t block_count_;
  Fill fill_;
  uint64_t seed_;
  uint32_t levels_;  // above level 0
  std::shared_ptr<Node> root_;
};

SimPageRef make_sim_page(const std::byte* bytes);
// Random bytes, a function of the seed.
SimPageRef make_random_page(uint64_t seed);
SimPageRef damaged_page(const SimPage& page, SimDamage kind, uint64_t seed);
// `fresh` in the sectors of `mask` (bit i: sector i), `old` in the others.
SimPageRef torn_page(const SimPage& old, const SimPage& fresh, uint8_t mask);

}  // namespace cofs
