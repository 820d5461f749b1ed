#include "blockmap/volume.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint32_t kSegmentBlocksMin = 16;
constexpr uint32_t kSegmentBlocksMax = 16384;
constexpr uint64_t kSegmentCountMin = 24;  // six streams, the log's next one, reserves
constexpr uint64_t kDeviceBlocksMax = 1ULL << 56;  // the top 8 bits of an address are the device index

bool valid_power(uint64_t value, uint64_t low, uint64_t high) {
  return std::has_single_bit(value) && value >= low && value <= high;
}

uint64_t superblock_checksum(const ondisk::Superblock& superblock) {
  ondisk::Superblock copy = superblock;
  copy.checksum = 0;
  return checksum64(std::as_bytes(std::span(&copy, 1)), 0);
}

static_assert(kRateEnginesMax == ondisk::kCopyRates);
static_assert(sizeof(ondisk::CopyRate::bytes_per_second) / sizeof(le64) == kRateClasses);

void encode_copy_rates(const CopyRates& rates, ondisk::Superblock& out) {
  out.copy_signature = rates.signature;
  COFS_ASSERT(rates.engines.size() <= kRateEnginesMax);
  for (size_t i = 0; i < rates.engines.size(); i++) {
    ondisk::CopyRate& rate = out.copy_rates[i];
    const CopyRate& from = rates.engines[i];
    COFS_ASSERT(from.engine.size() <= kEngineNameBytesMax);
    std::memcpy(rate.engine, from.engine.data(), from.engine.size());
    for (size_t k = 0; k < kRateClasses; k++) rate.bytes_per_second[k] = from.bytes_per_second[k];
  }
}

bool is_zero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

Result<> parse_copy_rates(const ondisk::Superblock& in, CopyRates& rates) {
  rates = CopyRates();
  rates.signature = in.copy_signature;
  const std::span<const ondisk::CopyRate> stored(in.copy_rates);
  for (size_t i = 0; i < stored.size(); i++) {
    if (is_zero(std::as_bytes(stored.subspan(i)))) return {};
    const std::string_view name(reinterpret_cast<const char*>(stored[i].engine),
                                sizeof(stored[i].engine));
    const size_t length = std::min(name.find('\0'), name.size());
    const bool is_word = std::ranges::all_of(
        name.substr(0, length), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); });
    if (rates.signature == 0 || length == 0 || length > kEngineNameBytesMax || !is_word ||
        name.find_first_not_of('\0', length) != std::string_view::npos) {
      return fail(Code::kCorrupt, "superblock: copy rates", i);
    }
    CopyRate& rate = rates.engines.emplace_back();
    rate.engine = name.substr(0, length);
    for (size_t k = 0; k < kRateClasses; k++) {
      rate.bytes_per_second[k] = stored[i].bytes_per_second[k];
    }
  }
  return {};
}

uint64_t first_segment_block_for(uint32_t segment_blocks) { return segment_blocks >= 256 ? 256 : 32; }

Result<> check_geometry(const Geometry& geometry, uint64_t device_blocks) {
  if (!valid_power(geometry.segment_blocks, kSegmentBlocksMin, kSegmentBlocksMax) ||
      !valid_power(geometry.node_bytes, ondisk::kNodeBytesMin, ondisk::kNodeBytesMax) ||
      geometry.metadata_copies < 1 || geometry.metadata_copies > 2 ||
      geometry.block_count > kDeviceBlocksMax ||
      geometry.first_segment_block != first_segment_block_for(geometry.segment_blocks) ||
      geometry.block_count <= geometry.first_segment_block ||
      geometry.segment_count !=
          (geometry.block_count - 1 - geometry.first_segment_block) / geometry.segment_blocks ||
      geometry.segment_count < kSegmentCountMin || geometry.log_limit_blocks == 0 ||
      geometry.log_limit_blocks > geometry.block_count || geometry.volume_key == 0 ||
      geometry.over_provision_percent > ondisk::kOverProvisionMax) {
    return fail(Code::kCorrupt, "superblock: impossible geometry");
  }
  if (geometry.block_count > device_blocks) {
    return fail(Code::kCorrupt, "the device is smaller than the volume on it: truncated?",
                device_blocks);
  }
  return {};
}

Result<> check_state(const Geometry& geometry, const VolumeState& state) {
  if (state.sequence == 0 || state.root_level > ondisk::kTreeLevelMax ||
      state.free_segments > geometry.segment_count || state.next_virtual == 0 ||
      state.next_virtual >> 62 != 0 || state.next_inode == 0 || state.next_inode >> 62 != 0 ||
      state.log.sequence == 0 || state.log.segment >= geometry.segment_count ||
      state.log.next_segment >= geometry.segment_count ||
      state.log.after_segment >= geometry.segment_count ||
      state.log.block > geometry.segment_blocks || state.shared_blocks > state.live_data_blocks ||
      state.shared_blocks > state.extra_references || state.unwritten_blocks >> 52 != 0) {
    return fail(Code::kCorrupt, "superblock: impossible state");
  }
  for (const OpenPosition& stream : state.streams) {
    if (stream.segment >= geometry.segment_count || stream.next_block > geometry.segment_blocks) {
      return fail(Code::kCorrupt, "superblock: impossible stream position");
    }
  }
  if (state.root.address[0] != 0) {
    for (uint32_t copy = 0; copy < geometry.metadata_copies; copy++) {
      if (!geometry.inside_segment(state.root.address[copy], geometry.node_blocks())) {
        return fail(Code::kCorrupt, "superblock: tree root outside of any segment");
      }
    }
  }
  return {};
}

}  // namespace

bool Geometry::inside_segment(uint64_t start, uint64_t count) const {
  if (count == 0 || count >= segment_blocks) return false;
  const uint64_t segment = segment_of_block(start);
  if (segment == segment_count || segment == reserved_segment()) return false;
  const uint64_t first = block_of_segment(segment);
  return start > first && start + count <= first + segment_blocks;
}

uint64_t Geometry::superblock_block(int copy) const {
  if (copy == 0) return 65536 / kBlockBytes;
  return copy == 1 ? block_of_segment(reserved_segment()) : block_count - 1;
}

bool valid_label(std::string_view label) {
  return label.size() <= kLabelBytesMax && label.find('\0') == std::string_view::npos;
}

std::string Geometry::uuid_text() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < uuid.size(); i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[uuid[i] >> 4];
    text += kDigits[uuid[i] & 15];
  }
  return text;
}

Result<Geometry> plan_geometry(uint64_t block_count, const FormatOptions& options) {
  Geometry geometry;
  geometry.block_count = block_count;
  geometry.label = options.label;
  geometry.node_bytes = options.node_bytes;
  geometry.metadata_copies = options.metadata_copies;
  if (!valid_label(options.label)) return fail(Code::kInvalid, kLabelRule);
  if (!valid_power(options.node_bytes, ondisk::kNodeBytesMin, ondisk::kNodeBytesMax)) {
    return fail(Code::kInvalid, "the node size must be a power of two from 4096 to 65536");
  }
  if (options.metadata_copies < 1 || options.metadata_copies > 2) {
    return fail(Code::kInvalid, "there can be one or two copies of metadata");
  }
  if (options.segment_blocks != 0) {
    geometry.segment_blocks = options.segment_blocks;
  } else if (block_count >= 65536) {  // 256 MiB: 1 MiB segments and up, about a thousand of them
    geometry.segment_blocks =
        static_cast<uint32_t>(std::clamp<uint64_t>(std::bit_floor(block_count / 1024), 256, 16384));
  } else {
    geometry.segment_blocks =
        static_cast<uint32_t>(std::clamp<uint64_t>(std::bit_floor(block_count / 256), 16, 256));
  }
  if (!valid_power(geometry.segment_blocks, kSegmentBlocksMin, kSegmentBlocksMax)) {
    return fail(Code::kInvalid, "the segment size must be a power of two from 64 KiB to 64 MiB");
  }
  if (geometry.node_blocks() + 4 > geometry.segment_blocks) {
    return fail(Code::kInvalid, "a tree node must be much smaller than a segment");
  }
  geometry.first_segment_block = first_segment_block_for(geometry.segment_blocks);
  if (block_count <= geometry.first_segment_block + 1) {
    return fail(Code::kInvalid, "the target is too small for a volume", block_count);
  }
  geometry.segment_count =
      (block_count - 1 - geometry.first_segment_block) / geometry.segment_blocks;
  if (geometry.segment_count < kSegmentCountMin) {
    return fail(Code::kInvalid, "the target is too small for segments of this size", block_count);
  }
  if (block_count > kDeviceBlocksMax) return fail(Code::kInvalid, "the target is too large");
  if (options.over_provision_percent > ondisk::kOverProvisionMax) {
    return fail(Code::kInvalid, "at most 50 percent can be over-provisioned");
  }
  geometry.over_provision_percent = options.over_provision_percent;
  const uint64_t log_blocks_max = (256ULL << 20) / kBlockBytes;
  geometry.log_limit_blocks =
      options.log_limit_blocks != 0
          ? options.log_limit_blocks
          : std::clamp<uint64_t>(block_count / 32, 2 * geometry.segment_blocks,
                                 std::max<uint64_t>(log_blocks_max, 2 * geometry.segment_blocks));
  if (geometry.log_limit_blocks > block_count / 4) {
    return fail(Code::kInvalid, "the log limit must be at most a quarter of the volume");
  }
  return geometry;
}

void encode_superblock(const Geometry& geometry, const VolumeState& state,
                       std::span<std::byte> block) {
  ondisk::Superblock out{};
  out.magic = ondisk::kSuperblockMagic;
  out.version = ondisk::kFormatVersion;
  out.superblock_bytes = kBlockBytes;
  std::copy(geometry.uuid.begin(), geometry.uuid.end(), out.uuid);
  out.volume_key = geometry.volume_key;
  out.block_count = geometry.block_count;
  out.block_bytes = kBlockBytes;
  out.segment_blocks = geometry.segment_blocks;
  out.segment_count = geometry.segment_count;
  out.first_segment_block = geometry.first_segment_block;
  out.node_bytes = geometry.node_bytes;
  out.metadata_copies = geometry.metadata_copies;
  out.log_limit_blocks = geometry.log_limit_blocks;
  out.over_provision_percent = geometry.over_provision_percent;
  out.created_seconds = static_cast<uint64_t>(geometry.created_seconds);
  std::memcpy(out.label, geometry.label.data(), std::min(geometry.label.size(), kLabelBytesMax));
  out.sequence = state.sequence;
  out.epoch = state.epoch;
  out.mount_count = state.mount_count;
  out.clean = state.clean ? 1 : 0;
  out.tree_level = state.root_level;
  out.root = state.root.encode();
  out.next_virtual = state.next_virtual;
  out.next_inode = state.next_inode;
  out.commit = state.commit;
  out.log_sequence = state.log.sequence;
  out.log_previous = state.log.previous;
  out.log_segment = state.log.segment;
  out.log_block = state.log.block;
  out.log_generation = state.log.generation;
  out.log_next_segment = state.log.next_segment;
  out.log_next_generation = state.log.next_generation;
  out.log_after_segment = state.log.after_segment;
  out.log_after_generation = state.log.after_generation;
  out.free_segments = state.free_segments;
  out.live_data_blocks = state.live_data_blocks;
  out.live_node_blocks = state.live_node_blocks;
  out.inode_count = state.inode_count;
  out.node_segments = state.node_segments;
  out.shared_blocks = state.shared_blocks;
  out.extra_references = state.extra_references;
  out.unwritten_blocks = state.unwritten_blocks;
  for (size_t i = 0; i < state.streams.size(); i++) {
    out.streams[i].segment = state.streams[i].segment;
    out.streams[i].next_block = state.streams[i].next_block;
    out.streams[i].generation = state.streams[i].generation;
  }
  encode_copy_rates(state.copy_rates, out);
  out.checksum = superblock_checksum(out);
  COFS_ASSERT(block.size() == sizeof(out));
  std::memcpy(block.data(), &out, sizeof(out));
}

Result<> parse_superblock(std::span<const std::byte> block, uint64_t device_blocks,
                          Geometry& geometry, VolumeState& state) {
  ondisk::Superblock in;
  COFS_ASSERT(block.size() == sizeof(in));
  std::memcpy(&in, block.data(), sizeof(in));
  if (in.magic != ondisk::kSuperblockMagic) return fail(Code::kNotCofs, "no superblock");
  if (in.checksum != superblock_checksum(in)) return fail(Code::kCorrupt, "superblock: checksum");
  if (in.version != ondisk::kFormatVersion || in.superblock_bytes != kBlockBytes ||
      in.block_bytes != kBlockBytes) {
    return fail(Code::kUnknownFeature, "superblock: format version", in.version);
  }
  if (in.incompat != 0) return fail(Code::kUnknownFeature, "superblock: incompatible features");
  if (in.ro_compat != 0) return fail(Code::kUnknownFeature, "superblock: read-only features");
  if (in.clean > 1 || in.reserved1 != 0 || in.reserved2 != 0 || in.reserved3 != 0 || in.label[63] != 0 ||
      std::any_of(std::begin(in.reserved), std::end(in.reserved), [](uint8_t b) { return b != 0; })) {
    return fail(Code::kCorrupt, "superblock: reserved bytes");
  }
  std::copy(std::begin(in.uuid), std::end(in.uuid), geometry.uuid.begin());
  geometry.volume_key = in.volume_key;
  geometry.block_count = in.block_count;
  geometry.segment_blocks = in.segment_blocks;
  geometry.segment_count = in.segment_count;
  geometry.first_segment_block = in.first_segment_block;
  geometry.node_bytes = in.node_bytes;
  geometry.metadata_copies = in.metadata_copies;
  geometry.log_limit_blocks = in.log_limit_blocks;
  geometry.over_provision_percent = in.over_provision_percent;
  geometry.created_seconds = static_cast<int64_t>(static_cast<uint64_t>(in.created_seconds));
  geometry.label = reinterpret_cast<const char*>(in.label);
  auto checked = check_geometry(geometry, device_blocks);
  COFS_TRY(checked);
  state.sequence = in.sequence;
  state.epoch = in.epoch;
  state.mount_count = in.mount_count;
  state.clean = in.clean == 1;
  if (in.tree_level > ondisk::kTreeLevelMax) return fail(Code::kCorrupt, "superblock: tree level");
  state.root_level = static_cast<uint8_t>(in.tree_level);
  state.root = NodePointer::decode(in.root);
  state.next_virtual = in.next_virtual;
  state.next_inode = in.next_inode;
  state.commit = in.commit;
  state.log.sequence = in.log_sequence;
  state.log.previous = in.log_previous;
  state.log.segment = in.log_segment;
  state.log.block = in.log_block;
  state.log.generation = in.log_generation;
  state.log.next_segment = in.log_next_segment;
  state.log.next_generation = in.log_next_generation;
  state.log.after_segment = in.log_after_segment;
  state.log.after_generation = in.log_after_generation;
  state.free_segments = in.free_segments;
  state.live_data_blocks = in.live_data_blocks;
  state.live_node_blocks = in.live_node_blocks;
  state.inode_count = in.inode_count;
  state.node_segments = in.node_segments;
  state.shared_blocks = in.shared_blocks;
  state.extra_references = in.extra_references;
  state.unwritten_blocks = in.unwritten_blocks;
  for (size_t i = 0; i < state.streams.size(); i++) {
    state.streams[i].segment = in.streams[i].segment;
    state.streams[i].next_block = in.streams[i].next_block;
    state.streams[i].generation = in.streams[i].generation;
  }
  auto rates = parse_copy_rates(in, state.copy_rates);
  COFS_TRY(rates);
  return check_state(geometry, state);
}

}  // namespace cofs
