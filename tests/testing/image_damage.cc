#include "tests/testing/image_damage.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "blockmap/chunk.h"
#include "blockmap/ondisk.h"
#include "blockmap/volume.h"
#include "offload/base/checksum.h"

namespace cofs {
namespace {

using Area = std::vector<std::byte>;

Area read_area(const SimImage& image, uint64_t block, uint64_t blocks) {
  Area area(bytes_of_blocks(blocks));
  for (uint64_t i = 0; i < blocks; ++i) image.read(block + i, area.data() + bytes_of_blocks(i));
  return area;
}

void write_area(SimImage& image, uint64_t block, const Area& area) {
  for (uint64_t i = 0; i < blocks_of_bytes(area.size()); ++i) {
    image.write(block + i, area.data() + bytes_of_blocks(i));
  }
}

// Changes something in area[from, to); tells where.
std::string mutate(Area& area, size_t from, size_t to, SimRandom& random) {
  const size_t at = from + random.below(to - from);
  const size_t word_at = std::min(at / 4 * 4, to < 8 ? size_t{0} : to - 8);
  uint64_t word = 0;
  switch (random.below(5)) {
    case 0: area[at] ^= static_cast<std::byte>(1U << random.below(8)); break;
    case 1: area[at] = static_cast<std::byte>(random.next()); break;
    default: {
      std::memcpy(&word, area.data() + word_at, sizeof word);
      static constexpr uint64_t kInteresting[] = {0, 1, UINT64_MAX, INT64_MAX, 0xffff'ffff, 4096};
      switch (random.below(4)) {
        case 0: word = kInteresting[random.below(std::size(kInteresting))]; break;
        case 1: word += 1; break;
        case 2: word -= 1; break;
        default: word = random.below(2) == 0 ? random.next() : random.below(10'000);
      }
      const size_t bytes = random.below(2) == 0 ? 8 : 4;
      std::memcpy(area.data() + word_at, &word, bytes);
    }
  }
  return fmt::format("byte {}", at);
}

// --- What is on the volume ---

struct Superblocks {
  Geometry geometry;
  VolumeState state;
  uint64_t block = 0;  // of the newest copy
};

std::optional<Superblocks> find_superblock(const SimImage& image) {
  std::optional<Superblocks> best;
  auto consider = [&](uint64_t block) {
    if (block >= image.block_count()) return;
    const Area area = read_area(image, block, 1);
    Superblocks found;
    found.block = block;
    if (!parse_superblock(area, image.block_count(), found.geometry, found.state)) return;
    if (!best || found.state.sequence > best->state.sequence) best = std::move(found);
  };
  // A valid copy knows where the others are; at least one of these places holds one.
  consider(65'536 / kBlockBytes);
  consider(image.block_count() - 1);
  if (best) {
    const Geometry geometry = best->geometry;
    for (int copy = 0; copy < kSuperblockCopies; ++copy) consider(geometry.superblock_block(copy));
  }
  return best;
}

void write_superblock(SimImage& image, uint64_t block, Area area) {
  std::memset(area.data() + offsetof(ondisk::Superblock, checksum), 0, 8);
  const uint64_t checksum = checksum64(area, 0);
  std::memcpy(area.data() + offsetof(ondisk::Superblock, checksum), &checksum, 8);
  write_area(image, block, area);
}

std::string damage_superblock(SimImage& image, const Superblocks& superblock, SimRandom& random) {
  Area area = read_area(image, superblock.block, 1);
  const size_t end = offsetof(ondisk::Superblock, reserved) + 16;
  const std::string where = mutate(area, offsetof(ondisk::Superblock, version), end, random);
  write_superblock(image, superblock.block, std::move(area));
  return "superblock, " + where;
}

// --- Tree nodes: one on a random path from the root, checksums mended up to the superblock ---

// A node on the path, and where its pointer lies in the image of the node above.
struct PathNode {
  NodePointer pointer;
  size_t pointer_at = 0;
  Area image;
};

std::vector<PathNode> random_path(const SimImage& image, const Superblocks& superblock,
                                  SimRandom& random) {
  std::vector<PathNode> path;
  NodePointer pointer = superblock.state.root;
  size_t pointer_at = offsetof(ondisk::Superblock, root);
  const uint64_t blocks = superblock.geometry.node_blocks();
  for (int level = superblock.state.root_level; level >= 0; --level) {
    if (pointer.address[0] == 0 || pointer.address[0] + blocks > image.block_count()) break;
    PathNode node;
    node.pointer = pointer;
    node.pointer_at = pointer_at;
    node.image = read_area(image, pointer.address[0], blocks);
    ondisk::NodeHeader header;
    std::memcpy(&header, node.image.data(), sizeof header);
    const bool last = level == 0 || header.count == 0 || random.below(5) == 0;
    if (!last) {
      ondisk::NodeSlot slot;
      const uint64_t index = random.below(header.count);
      std::memcpy(&slot, node.image.data() + sizeof header + index * sizeof slot, sizeof slot);
      pointer_at = slot.offset + sizeof(ondisk::Key);
      ondisk::NodePointer raw;
      if (pointer_at + sizeof raw > node.image.size()) break;
      std::memcpy(&raw, node.image.data() + pointer_at, sizeof raw);
      pointer = NodePointer::decode(raw);
    }
    path.push_back(std::move(node));
    if (last) break;
  }
  return path;
}

std::string damage_node(SimImage& image, const Superblocks& superblock, SimRandom& random) {
  std::vector<PathNode> path = random_path(image, superblock, random);
  if (path.empty()) return "";
  std::string where;
  const uint64_t changes = random.between(1, 3);
  for (uint64_t i = 0; i < changes; ++i) {
    Area& leaf = path.back().image;
    // The slots and header, or the items, which fill the node from its end.
    const bool front = random.below(3) == 0;
    ondisk::NodeHeader header;
    std::memcpy(&header, leaf.data(), sizeof header);
    const size_t slots_end =
        std::min<size_t>(leaf.size(), sizeof header + header.count * sizeof(ondisk::NodeSlot) + 8);
    where += " " + (front ? mutate(leaf, 0, slots_end, random)
                          : mutate(leaf, leaf.size() - random.between(64, leaf.size() - 64),
                                   leaf.size(), random));
  }
  constexpr size_t kChecksumAt = offsetof(ondisk::NodePointer, checksum);
  for (size_t i = path.size(); i-- > 0;) {
    const PathNode& node = path[i];
    for (const uint64_t address : node.pointer.address) {
      const bool inside = address != 0 && address + superblock.geometry.node_blocks() <=
                                              image.block_count();
      if (inside) write_area(image, address, node.image);
    }
    const uint64_t checksum = checksum64(node.image, superblock.geometry.volume_key);
    if (i != 0) {
      std::memcpy(path[i - 1].image.data() + node.pointer_at + kChecksumAt, &checksum, 8);
      continue;
    }
    Area area = read_area(image, superblock.block, 1);
    std::memcpy(area.data() + node.pointer_at + kChecksumAt, &checksum, 8);
    write_superblock(image, superblock.block, std::move(area));
  }
  return fmt::format("node {} levels below the root,{}", path.size() - 1, where);
}

// --- Log chunks: one changed, and the chain behind it made to fit again ---

struct ChunkPlace {
  uint64_t segment = 0;
  uint32_t generation = 0;
  uint32_t block = 0;
  ondisk::ChunkHeader header{};
};

std::optional<ChunkPlace> chunk_at(const SimImage& image, const Geometry& geometry,
                                   const LogPosition& log) {
  auto look = [&](uint64_t segment, uint32_t generation,
                  uint32_t block) -> std::optional<ChunkPlace> {
    if (segment >= geometry.segment_count || block == 0 || block >= geometry.segment_blocks) {
      return std::nullopt;
    }
    const Area first = read_area(image, geometry.block_of_segment(segment) + block, 1);
    auto header = parse_chunk_header(geometry, segment, generation, block, first);
    if (!header || header->sequence != log.sequence) return std::nullopt;
    ChunkPlace place;
    place.segment = segment;
    place.generation = generation;
    place.block = block;
    place.header = *header;
    return place;
  };
  auto place = look(log.segment, log.generation, log.block);
  if (!place) place = look(log.next_segment, log.next_generation, 1);
  return place;
}

std::vector<ChunkPlace> log_chain(const SimImage& image, const Superblocks& superblock) {
  std::vector<ChunkPlace> chain;
  LogPosition log = superblock.state.log;
  while (chain.size() < 100'000) {
    const auto place = chunk_at(image, superblock.geometry, log);
    if (!place) break;
    chain.push_back(*place);
    log.sequence++;
    log.segment = place->segment;
    log.generation = place->generation;
    log.block = place->block + place->header.header_blocks + place->header.payload_blocks;
    log.next_segment = place->header.next_segment;
    log.next_generation = place->header.next_generation;
  }
  return chain;
}

void mutate_chunk(Chunk& chunk, SimRandom& random) {
  const bool records = !chunk.records.empty() && random.below(4) != 0;
  if (records) {
    mutate(chunk.records, 0, chunk.records.size(), random);
    return;
  }
  Area header(sizeof chunk.header);
  std::memcpy(header.data(), &chunk.header, header.size());
  // Not the place: a chunk that is not found is only the end of the log.
  mutate(header, offsetof(ondisk::ChunkHeader, sequence), header.size(), random);
  ondisk::ChunkHeader changed;
  std::memcpy(&changed, header.data(), header.size());
  changed.segment = chunk.header.segment;
  changed.generation = chunk.header.generation;
  chunk.header = changed;
}

std::string damage_log(SimImage& image, const Superblocks& superblock, SimRandom& random) {
  const Geometry& geometry = superblock.geometry;
  const std::vector<ChunkPlace> chain = log_chain(image, superblock);
  if (chain.empty()) return "";
  const size_t chosen = random.below(chain.size());
  uint64_t previous = 0;
  for (size_t i = chosen; i < chain.size(); ++i) {
    const ChunkPlace& place = chain[i];
    const uint64_t block = geometry.block_of_segment(place.segment) + place.block;
    Area area = read_area(image, block, place.header.header_blocks);
    auto chunk = parse_chunk(geometry, place.header, area);
    if (!chunk) break;
    if (i == chosen) {
      mutate_chunk(*chunk, random);
    } else {
      chunk->header.previous_checksum = previous;
    }
    encode_chunk(geometry, chunk->header, chunk->entries, chunk->records, area);
    previous = chunk->header.checksum;
    write_area(image, block, area);
  }
  return fmt::format("log chunk {} of {}", chosen, chain.size());
}

}  // namespace

std::string damage_anywhere(SimImage& image, uint64_t count, SimRandom& random) {
  std::vector<uint64_t> written;
  image.for_each_written([&](uint64_t block, const SimPageRef&) { written.push_back(block); });
  if (written.empty()) return "";
  auto pick = [&] { return written[random.below(written.size())]; };
  std::string what;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t block = pick();
    const uint64_t other = pick();
    const SimPageRef page = image.materialise(block);
    switch (random.below(count == 1 ? 6 : 7)) {  // the last kind damages two
      case 0: image.damage(block, SimDamage::kBit, random.next()); break;
      case 1: image.damage(block, SimDamage::kSector, random.next()); break;
      case 2: image.damage(block, SimDamage::kBlock, random.next()); break;
      case 3: image.damage(block, SimDamage::kZero, random.next()); break;
      case 4: image.set_page(block, image.materialise(other)); break;
      case 5: image.set_page(block, nullptr); break;
      default:
        image.set_page(block, image.materialise(other));
        image.set_page(other, page);
        what += fmt::format("swapped {} and {}; ", block, other);
        continue;
    }
    what += fmt::format("block {}; ", block);
  }
  return what;
}

std::string damage_with_mended_checksums(SimImage& image, SimRandom& random) {
  const auto superblock = find_superblock(image);
  if (!superblock) return "";
  switch (random.below(6)) {
    case 0: return damage_superblock(image, *superblock, random);
    case 1:
    case 2: return damage_log(image, *superblock, random);
    default: return damage_node(image, *superblock, random);
  }
}

}  // namespace cofs
