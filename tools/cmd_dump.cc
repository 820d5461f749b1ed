// cofs dump: what is on a volume that is not mounted, record by record. It writes nothing; of an
// unclean volume it shows the state after replaying the log in memory.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <map>

#include "blockmap/volume.h"
#include "tools/command_line.h"
#include "tools/log_journal.h"
#include "tools/volume.h"

namespace cofs {

namespace {

struct DumpArguments {
  std::string target;
  uint64_t inode = 0;
  bool tree = false;
  bool segments = false;
};

using ondisk::KeyType;

std::string_view name_of_type(KeyType type) {
  switch (type) {
    case KeyType::kInode: return "inode";
    case KeyType::kXattr: return "xattr";
    case KeyType::kExtent: return "extent";
    case KeyType::kDirent: return "dirent";
    case KeyType::kVmap: return "vmap";
    case KeyType::kVref: return "vref";
    case KeyType::kSegment: return "segment";
    case KeyType::kOrphan: return "orphan";
    case KeyType::kLoggedOp: return "logged-op";
    case KeyType::kLabel: return "label";
  }
  return "unknown";
}

std::string printable(Bytes bytes) {
  std::string text;
  for (std::byte byte : bytes) {
    char c = static_cast<char>(byte);
    text += c >= ' ' && c <= '~' && c != '\\'
                ? std::string(1, c)
                : fmt::format("\\x{:02x}", static_cast<unsigned>(byte));
  }
  return text;
}

// The structure at the front of a value; false if the value is too short for it.
template <class Structure>
bool read_front(Bytes value, Structure& structure) {
  if (value.size() < sizeof(Structure)) return false;
  std::memcpy(&structure, value.data(), sizeof(Structure));
  return true;
}

std::string time_text(const ondisk::Time& time) {
  return fmt::format("{}.{:09}", static_cast<int64_t>(uint64_t{time.seconds}),
                     uint32_t{time.nanoseconds});
}

std::string inode_text(Bytes value) {
  ondisk::Inode inode;
  if (!read_front(value, inode)) return "too short";
  return fmt::format(
      "mode {:o} uid {} gid {} nlink {} size {} blocks {} flags {:#x} rdev {:#x} parent {} inline "
      "{} "
      "atime {} mtime {} ctime {} btime {} generation {}",
      uint32_t{inode.mode}, uint32_t{inode.uid}, uint32_t{inode.gid}, uint32_t{inode.nlink},
      uint64_t{inode.size}, uint64_t{inode.blocks}, uint32_t{inode.flags}, uint64_t{inode.rdev},
      uint64_t{inode.parent}, uint32_t{inode.inline_bytes}, time_text(inode.access_time),
      time_text(inode.modify_time), time_text(inode.change_time), time_text(inode.birth_time),
      uint64_t{inode.generation});
}

std::string extent_text(Bytes value) {
  ondisk::Extent extent;
  if (!read_front(value, extent)) return "too short";
  uint32_t flags = extent.flags;
  return fmt::format("virtual {} count {}{}{}", uint64_t{extent.virtual_block},
                     uint32_t{extent.count},
                     (flags & ondisk::kExtentUnwritten) != 0 ? " unwritten" : "",
                     (flags & ondisk::kExtentMaybeShared) != 0 ? " maybe-shared" : "");
}

std::string dirent_text(Bytes value) {
  ondisk::Dirent dirent;
  if (!read_front(value, dirent)) return "too short";
  return fmt::format("ino {} type {} \"{}\"", uint64_t{dirent.ino}, dirent.type,
                     printable(value.subspan(sizeof(dirent))));
}

std::string xattr_text(Bytes value) {
  ondisk::Xattr xattr;
  if (!read_front(value, xattr)) return "too short";
  Bytes rest = value.subspan(sizeof(xattr));
  size_t name_bytes = std::min<size_t>(uint16_t{xattr.name_bytes}, rest.size());
  return fmt::format("\"{}\" part {} of {} bytes: \"{}\"", printable(rest.first(name_bytes)),
                     uint16_t{xattr.part}, uint32_t{xattr.value_bytes},
                     printable(rest.subspan(name_bytes)));
}

std::string vmap_text(Bytes value) {
  ondisk::Vmap vmap;
  if (!read_front(value, vmap)) return "too short";
  return fmt::format("physical {} count {} generation {}", uint64_t{vmap.physical_block},
                     uint32_t{vmap.count}, uint32_t{vmap.generation});
}

std::string value_text(const Key& key, Bytes value) {
  switch (key.type) {
    case KeyType::kInode: return inode_text(value);
    case KeyType::kXattr: return xattr_text(value);
    case KeyType::kExtent: return extent_text(value);
    case KeyType::kDirent: return dirent_text(value);
    case KeyType::kVmap: return vmap_text(value);
    case KeyType::kVref: {
      ondisk::Vref vref;
      if (!read_front(value, vref)) return "too short";
      return fmt::format("count {} references {}", uint64_t{vref.count}, uint32_t{vref.references});
    }
    case KeyType::kLoggedOp: {
      ondisk::LoggedOp operation;
      if (!read_front(value, operation)) return "too short";
      return fmt::format("kind {} argument {}", operation.kind, uint64_t{operation.argument});
    }
    case KeyType::kLabel: return fmt::format("\"{}\"", printable(value));
    case KeyType::kSegment:
    case KeyType::kOrphan: break;
  }
  return fmt::format("{} bytes", value.size());
}

std::string_view name_of_state(uint8_t state) {
  constexpr std::array<std::string_view, 4> kNames = {"free", "open", "sealed", "quarantine"};
  return state < kNames.size() ? kNames[state] : "unknown";
}
std::string_view name_of_stream(uint8_t stream) {
  constexpr std::array<std::string_view, ondisk::kStreamCount> kNames = {
      "log", "data", "gc-warm", "gc-cold", "meta", "meta-mirror"};
  return stream < kNames.size() ? kNames[stream] : "unknown";
}

void print_segments(const Key& key, Bytes value) {
  size_t count =
      std::min<size_t>(value.size() / sizeof(ondisk::SegmentInfo), ondisk::kSegmentGroup);
  for (size_t i = 0; i < count; i++) {
    ondisk::SegmentInfo info;
    std::memcpy(&info, value.data() + i * sizeof(info), sizeof(info));
    if (uint32_t{info.generation} == 0) continue;  // never used
    bool is_free = info.state == static_cast<uint8_t>(ondisk::SegmentState::kFree);
    fmt::print(
        "segment {} generation {} {}{}{} live {} age {}\n", key.id * ondisk::kSegmentGroup + i,
        uint32_t{info.generation}, name_of_state(info.state), is_free ? "" : " ",
        is_free ? "" : name_of_stream(info.stream), uint32_t{info.live_blocks}, uint64_t{info.age});
  }
}

void print_record(const Key& key, Bytes value) {
  fmt::print("{} {}", name_of_type(key.type), key.id);
  if (key.offset != 0 || key.type == KeyType::kExtent) fmt::print(" @{}", key.offset);
  if (key.n != 0) fmt::print(" #{}", key.n);
  fmt::print(": {}\n", value_text(key, value));
}

// --- Superblocks -------------------------------------------------------------------------------

void print_superblock_copy(const OpenedTarget& target, uint64_t block_number) {
  alignas(kBlockBytes) std::byte block[kBlockBytes];
  ssize_t got =
      pread(target.fd(), block, sizeof(block), static_cast<off_t>(bytes_of_blocks(block_number)));
  if (got != static_cast<ssize_t>(sizeof(block))) {
    fmt::print("superblock at block {}: cannot be read\n", block_number);
    return;
  }
  Geometry geometry;
  VolumeState state;
  Result<> parsed = parse_superblock(block, target.size_bytes() / kBlockBytes, geometry, state);
  if (!parsed) {
    fmt::print("superblock at block {}: {}\n", block_number, describe(parsed.error()));
    return;
  }
  fmt::print(
      "superblock at block {}: checkpoint {} epoch {} mounts {} {} root {} level {} commit {} "
      "log chunk {} at segment {} block {}\n",
      block_number, state.sequence, state.epoch, state.mount_count,
      state.clean ? "clean" : "unclean", state.root.address[0], state.root_level, state.commit,
      state.log.sequence, state.log.segment, state.log.block);
}

void print_volume(Machine& machine, FileSystem& fs) {
  VolumeInfo info = fs.store().info();
  fmt::print("volume {}{}\n", info.uuid,
             info.label.empty() ? "" : fmt::format(" \"{}\"", info.label));
  fmt::print("blocks {} of 4096 bytes, segments of {} blocks, nodes of {} bytes in {} copies\n",
             info.block_count, info.segment_blocks, info.node_bytes, info.metadata_copies);
  fmt::print("over-provisioned by {} %\n", info.over_provision_percent);
  fmt::print("last use ended {}", info.was_clean ? "cleanly" : "without an unmount");
  if (info.replayed_commits != 0) {
    fmt::print("; {} commits, {} of log replayed in memory", info.replayed_commits,
               size_text(info.replayed_log_bytes));
  }
  fmt::print("\n");
  // The first copy tells where the others are.
  alignas(kBlockBytes) std::byte block[kBlockBytes];
  const OpenedTarget& target = machine.device().target();
  VolumeState state;
  Geometry parsed_geometry;
  off_t first = static_cast<off_t>(bytes_of_blocks(Geometry().superblock_block(0)));
  if (pread(target.fd(), block, sizeof(block), first) == static_cast<ssize_t>(sizeof(block)) &&
      parse_superblock(block, target.size_bytes() / kBlockBytes, parsed_geometry, state)) {
    for (int copy = 0; copy < kSuperblockCopies; copy++) {
      print_superblock_copy(target, parsed_geometry.superblock_block(copy));
    }
  } else {
    print_superblock_copy(target, Geometry().superblock_block(0));
  }
}

void print_space(const SpaceReport& space) {
  fmt::print(
      "space: {} blocks for data, {} available, {} free; {} live data, {} dead, {} in nodes\n",
      space.total_blocks, space.available_blocks, space.free_blocks, space.live_data_blocks,
      space.dead_blocks, space.node_blocks);
  fmt::print("segments: {}, {} of them free; inodes: {}\n", space.segment_count,
             space.free_segments, space.inode_count);
}

// --- Records -----------------------------------------------------------------------------------

Key last_key() {
  return Key(static_cast<ondisk::KeySpace>(UINT8_MAX), UINT64_MAX, static_cast<KeyType>(UINT8_MAX),
             UINT64_MAX, UINT16_MAX);
}

struct TypeTotals {
  uint64_t records = 0;
  uint64_t bytes = 0;
};

Result<> scan(Machine& machine, FileSystem& fs, const Key& from, const Key& to,
              std::function<bool(const Key&, Bytes)> visit) {
  return run_blocking(machine.monitor(), fs.store().scan(from, to, UINT64_MAX, std::move(visit)));
}

Result<> print_totals(Machine& machine, FileSystem& fs) {
  std::map<KeyType, TypeTotals> totals;
  Result<> scanned = scan(machine, fs, Key(), last_key(), [&](const Key& key, Bytes value) {
    TypeTotals& total = totals[key.type];
    total.records++;
    total.bytes += sizeof(ondisk::Key) + value.size();
    return true;
  });
  COFS_TRY(scanned);
  fmt::print("records of the tree:\n");
  for (const auto& [type, total] : totals) {
    fmt::print("  {:<10} {:>10} {:>12}\n", name_of_type(type), total.records,
               size_text(total.bytes));
  }
  return {};
}

Result<> print_range(Machine& machine, FileSystem& fs, const Key& from, const Key& to,
                     uint64_t& count) {
  return scan(machine, fs, from, to, [&count](const Key& key, Bytes value) {
    count++;
    print_record(key, value);
    return true;
  });
}

Result<> dump(Machine& machine, FileSystem& fs, const DumpArguments& arguments) {
  uint64_t count = 0;
  if (arguments.inode != 0) {
    Key last(ondisk::KeySpace::kFiles, arguments.inode, static_cast<KeyType>(UINT8_MAX), UINT64_MAX,
             UINT16_MAX);
    Result<> printed = print_range(machine, fs, Key::inode(arguments.inode), last, count);
    COFS_TRY(printed);
    if (count == 0)
      return fail(Code::kNoEntry, "there is no inode with this number", arguments.inode);
    return {};
  }
  if (arguments.tree) return print_range(machine, fs, Key(), last_key(), count);
  if (arguments.segments) {
    return scan(machine, fs, Key::segment_group(0), Key::segment_group(UINT64_MAX),
                [](const Key& key, Bytes value) {
                  if (key.type == KeyType::kSegment) print_segments(key, value);
                  return true;
                });
  }
  print_volume(machine, fs);
  print_space(fs.store().space());
  return print_totals(machine, fs);
}

}  // namespace

int dump_command(const Invocation& invocation) {
  DumpArguments arguments;
  CLI::App app(
      "Shows what is on a cofs volume that is not mounted. Without options: the superblocks, "
      "space, and how many records of each type there are.");
  app.add_option("TARGET", arguments.target, "block device or image file")->required();
  CLI::Option* inode = app.add_option("--inode", arguments.inode, "the records of one inode");
  CLI::Option* tree = app.add_flag("--tree", arguments.tree, "all records of the tree");
  CLI::Option* segments =
      app.add_flag("--segments", arguments.segments, "the segments, as of the last checkpoint");
  inode->excludes(tree)->excludes(segments);
  tree->excludes(segments);
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::unique_ptr<LogJournal> journal = LogJournal::to_stderr(invocation.name, Severity::kWarning);
  Result<std::unique_ptr<Machine>> machine =
      Machine::open(arguments.target,
                    MachineOptions::for_tool(arguments.target, TargetMode::kReadOnly), *journal);
  if (!machine) {
    print_error(invocation, arguments.target, machine.error());
    return kExitFailed;
  }
  Result<std::unique_ptr<FileSystem>> fs = (*machine)->open_for_reading();
  if (!fs) {
    print_error(invocation, arguments.target, fs.error());
    return kExitFailed;
  }
  Result<> dumped = dump(**machine, **fs, arguments);
  abandon(**machine, std::move(*fs));
  if (!dumped) {
    print_error(invocation, arguments.target, dumped.error());
    return kExitFailed;
  }
  return kExitOk;
}

}  // namespace cofs
