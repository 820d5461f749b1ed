#include "offload/device_stack.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string_view>
#include <utility>

namespace cofs {

namespace {

using Outcome = std::expected<void, std::string>;

// Sectors are of 512 bytes, in /sys and in tables, whatever the disk's own unit is.
constexpr uint32_t kSectorShift = 9;
constexpr uint64_t kSectorsMax = uint64_t{INT64_MAX} >> kSectorShift;  // no device has more bytes
constexpr int kDepthMax = 16;  // of devices upon devices: a circle ends, too
constexpr size_t kPiecesMax = 1 << 16;

struct SectorRange {
  uint64_t start = 0;
  uint64_t count = 0;

  uint64_t end() const { return start + count; }
};

// The kernel's names of disks that take no copy command, by how they begin.
constexpr std::pair<std::string_view, std::string_view> kOtherDisks[] = {
    {"loop", "a loop device"},
    {"md", "a software RAID"},
    {"zram", "a compressed RAM disk"},
    {"ram", "a RAM disk"},
    {"nullb", "a null_blk device"},
    {"vd", "a virtio disk"},
    {"xvd", "a Xen disk"},
    {"nbd", "a network block device"},
    {"rbd", "a Ceph block device"},
    {"mmcblk", "an MMC or SD card"},
    {"mtdblock", "a flash chip"},
    {"bcache", "a bcache device"},
    {"drbd", "a DRBD device"},
    {"pmem", "persistent memory"},
    {"sr", "an optical disc"},
    {"zd", "a ZFS volume"},
    {"ublkb", "a ublk device"},
    {"dasd", "a DASD"},
};

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "8:16", in the kernel's ranges.
std::optional<dev_t> parse_device_number(std::string_view text) {
  size_t colon = text.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  std::optional<uint64_t> major_number = parse_number(text.substr(0, colon));
  std::optional<uint64_t> minor_number = parse_number(text.substr(colon + 1));
  if (!major_number || !minor_number || *major_number >= 1U << 12 || *minor_number >= 1U << 20) {
    return std::nullopt;
  }
  return makedev(static_cast<unsigned>(*major_number), static_cast<unsigned>(*minor_number));
}

// An attribute of sysfs: one line, without its end. Nothing where there is no such file.
std::optional<std::string> attribute(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<uint64_t> number_attribute(const std::filesystem::path& path) {
  std::optional<std::string> text = attribute(path);
  return text ? parse_number(*text) : std::nullopt;
}

bool is_there(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

bool all_digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// "nvme0n1", also the head of several paths; not "nvme0c0n1", which is one of the paths.
bool is_nvme_namespace(std::string_view name) {
  if (!name.starts_with("nvme")) return false;
  size_t n = name.find('n', 4);
  return n != std::string_view::npos && all_digits(name.substr(4, n - 4)) &&
         all_digits(name.substr(n + 1));
}

bool is_scsi_disk(const std::filesystem::path& path) {
  std::error_code error;
  auto driver = std::filesystem::canonical(path / "device" / "driver", error);
  return !error && driver.filename() == "sd";
}

std::string why_no_disk(const std::string& name) {
  for (auto [prefix, what] : kOtherDisks) {
    if (name.starts_with(prefix)) return fmt::format("{} is {}: no copy command", name, what);
  }
  return fmt::format("{} is a disk of an unknown kind: no copy command", name);
}

// A stretch of a device that lies on another one.
struct Mapping {
  SectorRange own;
  dev_t on = 0;
  uint64_t on_sector = 0;
};

// A block device, as it was found once.
struct Node {
  std::string name;  // for persons: a mapped device's own
  uint64_t sectors = 0;
  std::optional<uint32_t> disk;   // a whole disk: index into the stack's
  std::vector<Mapping> mappings;  // otherwise: all of it, ascending
};

// Sectors of the target that lie in one piece on one disk.
struct Piece {
  SectorRange own;
  uint32_t disk = 0;
  uint64_t disk_sector = 0;

  uint64_t disk_end() const { return disk_sector + own.count; }
};

class StackReader {
 public:
  explicit StackReader(const StackSources& sources) : sources_(sources) {}

  std::expected<DeviceStack, std::string> read(dev_t device, uint64_t size_bytes);

 private:
  std::expected<const Node*, std::string> node_of(dev_t device);
  Outcome read_partition(const std::filesystem::path& path, Node& node);
  Outcome read_table(dev_t device, Node& node);
  Outcome read_disk(const std::filesystem::path& path, dev_t device, Node& node);

  Outcome place(dev_t device, SectorRange range, uint64_t target_sector, int depth);
  Outcome add_piece(Piece piece);
  Outcome check_apart();
  Outcome make_regions();

  const StackSources& sources_;
  std::map<dev_t, Node> nodes_;
  std::vector<Piece> pieces_;  // ascending, without gaps
  DeviceStack stack_;
};

std::expected<const Node*, std::string> StackReader::node_of(dev_t device) {
  auto known = nodes_.find(device);
  if (known != nodes_.end()) return &known->second;
  std::string number = fmt::format("{}:{}", major(device), minor(device));
  std::error_code error;
  // Through the link: a partition's directory is within its disk's.
  auto path = std::filesystem::canonical(
      std::filesystem::path(sources_.sysfs) / "dev" / "block" / number, error);
  if (error) return std::unexpected(fmt::format("device {} is not in sysfs", number));

  Node node;
  node.name = path.filename();
  std::optional<uint64_t> sectors = number_attribute(path / "size");
  if (!sectors || *sectors == 0 || *sectors > kSectorsMax) {
    return std::unexpected(fmt::format("{}: its size in sysfs is not valid", node.name));
  }
  node.sectors = *sectors;
  Outcome read;
  if (is_there(path / "partition")) {
    read = read_partition(path, node);
  } else if (is_there(path / "dm")) {
    node.name = attribute(path / "dm" / "name").value_or(node.name);
    read = read_table(device, node);
  } else {
    read = read_disk(path, device, node);
  }
  COFS_TRY(read);
  return &nodes_.emplace(device, std::move(node)).first->second;
}

Outcome StackReader::read_partition(const std::filesystem::path& path, Node& node) {
  std::optional<uint64_t> start = number_attribute(path / "start");
  std::optional<std::string> on = attribute(path.parent_path() / "dev");
  std::optional<dev_t> disk = on ? parse_device_number(*on) : std::nullopt;
  if (!start || !disk || *start > kSectorsMax) {
    return std::unexpected(fmt::format("{}: its place in sysfs is not valid", node.name));
  }
  node.mappings.push_back(Mapping{{0, node.sectors}, *disk, *start});
  return {};
}

Outcome StackReader::read_table(dev_t device, Node& node) {
  auto table = sources_.tables->table_of(device);
  if (!table) return std::unexpected(fmt::format("{}: {}", node.name, table.error()));
  uint64_t at = 0;
  for (const DmTarget& line : *table) {
    if (line.type != "linear") {
      return std::unexpected(
          fmt::format("{}: dm-{} {}", node.name, line.type, effect_of_dm_type(line.type)));
    }
    size_t space = line.parameters.find(' ');
    std::string_view parameters = line.parameters;
    std::optional<dev_t> on = parse_device_number(parameters.substr(0, space));
    std::optional<uint64_t> on_sector =
        space == std::string::npos ? std::nullopt : parse_number(parameters.substr(space + 1));
    if (!on || !on_sector || *on_sector > kSectorsMax || line.first_sector != at ||
        line.sectors == 0 || line.sectors > node.sectors - at) {
      return std::unexpected(fmt::format("{}: its table is not valid", node.name));
    }
    node.mappings.push_back(Mapping{{at, line.sectors}, *on, *on_sector});
    at += line.sectors;
  }
  if (at != node.sectors) {
    return std::unexpected(fmt::format("{}: its table is not as long as the device", node.name));
  }
  return {};
}

Outcome StackReader::read_disk(const std::filesystem::path& path, dev_t device, Node& node) {
  StackDisk disk{DiskKind::kOther, node.name, device, 0};
  if (is_nvme_namespace(node.name)) {
    disk.kind = DiskKind::kNvme;
  } else if (is_scsi_disk(path)) {
    disk.kind = DiskKind::kScsi;
  } else {
    return std::unexpected(why_no_disk(node.name));
  }
  uint64_t lba_bytes = number_attribute(path / "queue" / "logical_block_size").value_or(0);
  if (!std::has_single_bit(lba_bytes) || lba_bytes < 512 || lba_bytes > kBlockBytes) {
    return std::unexpected(
        fmt::format("{}: logical blocks of {} bytes cannot be used", node.name, lba_bytes));
  }
  disk.lba_bytes = static_cast<uint32_t>(lba_bytes);
  if (!stack_.disks.empty() && stack_.disks.front().kind != disk.kind) {
    return std::unexpected(
        fmt::format("{} and {} take different commands", stack_.disks.front().name, disk.name));
  }
  node.disk = static_cast<uint32_t>(stack_.disks.size());
  stack_.disks.push_back(std::move(disk));
  return {};
}

// Follows `range` of a device, which is the target's from `target_sector` on, down to the disks.
Outcome StackReader::place(dev_t device, SectorRange range, uint64_t target_sector, int depth) {
  if (depth > kDepthMax) return std::unexpected("too many devices upon each other");
  auto found = node_of(device);
  COFS_TRY(found);
  const Node& node = **found;
  if (range.start > node.sectors || range.count > node.sectors - range.start) {
    return std::unexpected(fmt::format("{}: what is on it reaches beyond its end", node.name));
  }
  if (node.disk) {
    return add_piece(Piece{{target_sector, range.count}, *node.disk, range.start});
  }
  auto mapping = std::ranges::upper_bound(node.mappings, range.start, {},
                                          [](const Mapping& each) { return each.own.start; });
  for (--mapping; range.count != 0; ++mapping) {
    uint64_t skipped = range.start - mapping->own.start;
    uint64_t count = std::min(range.count, mapping->own.count - skipped);
    Outcome placed =
        place(mapping->on, {mapping->on_sector + skipped, count}, target_sector, depth + 1);
    COFS_TRY(placed);
    target_sector += count;
    range.start += count;
    range.count -= count;
  }
  return {};
}

Outcome StackReader::add_piece(Piece piece) {
  if (!pieces_.empty() && pieces_.back().disk == piece.disk &&
      pieces_.back().disk_end() == piece.disk_sector) {
    pieces_.back().own.count += piece.own.count;
    return {};
  }
  if (pieces_.size() == kPiecesMax) return std::unexpected("the target lies in too many pieces");
  pieces_.push_back(piece);
  return {};
}

// Sectors that are two places of the target would let a copy overwrite its own source.
Outcome StackReader::check_apart() {
  std::vector<Piece> by_place = pieces_;
  std::ranges::sort(by_place, {},
                    [](const Piece& piece) { return std::pair(piece.disk, piece.disk_sector); });
  auto overlap = std::ranges::adjacent_find(by_place, [](const Piece& one, const Piece& next) {
    return one.disk == next.disk && one.disk_end() > next.disk_sector;
  });
  if (overlap == by_place.end()) return {};
  return std::unexpected(
      fmt::format("a part of {} is mapped twice", stack_.disks[overlap->disk].name));
}

Outcome StackReader::make_regions() {
  for (const Piece& piece : pieces_) {
    uint64_t first = blocks_of_bytes(piece.own.start << kSectorShift);
    uint64_t end = (piece.own.end() << kSectorShift) >> kBlockShift;
    if (first >= end) continue;  // no block is whole in it
    const StackDisk& disk = stack_.disks[piece.disk];
    uint64_t disk_byte = (piece.disk_sector << kSectorShift) + bytes_of_blocks(first) -
                         (piece.own.start << kSectorShift);
    if (disk_byte % disk.lba_bytes != 0) {
      return std::unexpected(
          fmt::format("{}: a piece does not begin at a logical block", disk.name));
    }
    stack_.regions.push_back(StackRegion{{first, end - first}, piece.disk, disk_byte});
  }
  if (stack_.regions.empty()) return std::unexpected("no block of the target lies in one piece");
  return {};
}

std::expected<DeviceStack, std::string> StackReader::read(dev_t device, uint64_t size_bytes) {
  auto found = node_of(device);
  COFS_TRY(found);
  const Node& node = **found;
  if (size_bytes != node.sectors << kSectorShift) {
    return std::unexpected(fmt::format("{}: it has another size in sysfs", node.name));
  }
  Outcome outcome = place(device, {0, node.sectors}, 0, 0);
  COFS_TRY(outcome);
  outcome = check_apart();
  COFS_TRY(outcome);
  outcome = make_regions();
  COFS_TRY(outcome);
  return std::move(stack_);
}

}  // namespace

std::optional<StackLocation> DeviceStack::locate(BlockRange range) const {
  auto after = std::ranges::upper_bound(
      regions, range.start, {}, [](const StackRegion& region) { return region.blocks.start; });
  if (after == regions.begin()) return std::nullopt;
  const StackRegion& region = *std::prev(after);
  uint64_t skipped = range.start - region.blocks.start;
  if (skipped > region.blocks.count || range.count > region.blocks.count - skipped) {
    return std::nullopt;
  }
  return StackLocation{region.disk, region.disk_byte + bytes_of_blocks(skipped)};
}

std::vector<CopyRegion> DeviceStack::copy_regions(uint64_t block_count) const {
  COFS_ASSERT(!regions.empty());  // an empty answer means that all is one
  if (regions.size() == 1 && regions.front().blocks == BlockRange{0, block_count}) return {};
  std::vector<CopyRegion> result;
  result.reserve(regions.size());
  for (const StackRegion& region : regions) {
    result.push_back(CopyRegion{region.blocks, region.disk});
  }
  return result;
}

std::expected<DeviceStack, std::string> read_device_stack(dev_t device, uint64_t size_bytes,
                                                          const StackSources& sources) {
  return StackReader(sources).read(device, size_bytes);
}

std::expected<DeviceStack, std::string> read_device_stack(const OpenedTarget& target) {
  struct stat status {};
  if (fstat(target.fd(), &status) != 0 || !S_ISBLK(status.st_mode)) {
    return std::unexpected("the target is no block device");
  }
  DeviceMapper mapper;
  StackSources sources;
  sources.tables = &mapper;
  return read_device_stack(status.st_rdev, target.size_bytes(), sources);
}

}  // namespace cofs
