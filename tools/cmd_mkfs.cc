// cofs mkfs: makes an empty volume on a block device, or in an image file that it creates if asked.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "blockmap/ondisk.h"
#include "tools/command_line.h"
#include "tools/log_journal.h"
#include "tools/volume.h"

namespace cofs {

namespace {

struct MkfsArguments {
  std::string target;
  uint64_t size_bytes = 0;
  uint64_t segment_bytes = 0;
  uint64_t node_bytes = ondisk::kNodeBytesDefault;
  uint32_t metadata_copies = 2;
  uint32_t over_provision_percent = 7;
  std::string label;
  bool force = false;
  bool discard = true;
  bool quiet = false;
};

// Other formats keep their signatures within so much of the start and the end.
constexpr uint64_t kWipeStartBlocks = 16;
constexpr uint64_t kWipeEndBlocks = 32;
constexpr uint64_t kDiscardBlocks = 1ULL << 18;  // 1 GiB in one request

// Makes the image file as it was asked for; true if it was not there before. Errors: a reason for
// the error line.
std::expected<bool, std::string> prepare_image(const MkfsArguments& arguments) {
  struct stat status {};
  bool exists = stat(arguments.target.c_str(), &status) == 0;
  if (arguments.size_bytes == 0) {
    if (!exists && errno == ENOENT) {
      return std::unexpected("no such file; --size SIZE creates an image");
    }
    return false;
  }
  uint64_t size = arguments.size_bytes / kBlockBytes * kBlockBytes;
  if (!exists) {
    Result<> created = create_image(arguments.target, size);
    if (!created) return std::unexpected(describe(created.error()));
    return true;
  }
  if (!S_ISREG(status.st_mode)) return std::unexpected("--size is for image files only");
  if (static_cast<uint64_t>(status.st_size) != size && !arguments.force) {
    return std::unexpected("exists with another size, use --force to replace it");
  }
  return false;
}

// An image to be replaced by one of another size; under the target's lock, so that it is not in
// use.
Result<OpenedTarget> resize_image(OpenedTarget target, const MkfsArguments& arguments) {
  uint64_t size = arguments.size_bytes / kBlockBytes * kBlockBytes;
  if (arguments.size_bytes == 0 || target.size_bytes() == size) return target;
  std::string path = target.path();
  if (ftruncate(target.fd(), 0) != 0 || ftruncate(target.fd(), static_cast<off_t>(size)) != 0) {
    return fail(code_of_errno(errno), "cannot change the image's size");
  }
  { OpenedTarget closed = std::move(target); }
  return open_target(path, TargetMode::kReadWrite, std::chrono::milliseconds(0));
}

Task<Result<>> wipe(Environment& environment, bool discard) {
  const DeviceGeometry& geometry = environment.device.geometry();
  uint64_t count = geometry.block_count;
  if (discard && geometry.can_discard) {
    for (uint64_t block = 0; block < count; block += kDiscardBlocks) {
      BlockRange range{block, std::min(kDiscardBlocks, count - block)};
      Result<> discarded = co_await environment.device.discard(range);
      if (!discarded) break;  // it only saves space
    }
  }
  BufferRef zeros = environment.buffers.allocate(kWipeEndBlocks);
  std::ranges::fill(zeros->bytes(), std::byte{0});
  uint64_t start_blocks = std::min(kWipeStartBlocks, count);
  uint64_t end_blocks = std::min(kWipeEndBlocks, count);
  MemoryPiece start_piece{zeros->data(), static_cast<uint32_t>(start_blocks)};
  MemoryPiece end_piece{zeros->data(), static_cast<uint32_t>(end_blocks)};
  Result<> start_done =
      co_await environment.device.write(BlockRange{0, start_blocks}, {&start_piece, 1});
  COFS_CO_TRY(start_done);
  Result<> end_done = co_await environment.device.write(BlockRange{count - end_blocks, end_blocks},
                                                        {&end_piece, 1});
  co_return end_done;
}

Task<Result<>> make_volume(Environment* environment, const FormatOptions* options, bool discard) {
  Result<> wiped = co_await wipe(*environment, discard);
  COFS_CO_TRY(wiped);
  Result<> formatted = co_await FileSystem::format(*environment, *options, geteuid(), getegid());
  COFS_CO_TRY(formatted);
  Result<> flushed = co_await environment->device.flush();
  co_return flushed;
}

void print_summary(const MkfsArguments& arguments, FileSystem& fs) {
  VolumeInfo info = fs.store().info();
  fmt::print("{}: cofs volume {}{}\n", arguments.target, info.uuid,
             info.label.empty() ? "" : fmt::format(" \"{}\"", info.label));
  fmt::print("  {}, segments of {}, tree nodes of {} in {} {}\n",
             size_text(bytes_of_blocks(info.block_count)),
             size_text(bytes_of_blocks(info.segment_blocks)), size_text(info.node_bytes),
             info.metadata_copies, info.metadata_copies == 1 ? "copy" : "copies");
  fmt::print("  {} for data, over-provisioned by {} %\n",
             size_text(bytes_of_blocks(fs.store().space().available_blocks)),
             info.over_provision_percent);
}

std::optional<int> read_arguments(const Invocation& invocation, MkfsArguments& arguments) {
  CLI::App app("Makes an empty cofs volume on a block device or in an image file.");
  app.add_option("TARGET", arguments.target, "block device or image file")->required();
  add_size_option(app, "--size", arguments.size_bytes, "create an image file of this size (10G)");
  add_size_option(app, "--segment-size", arguments.segment_bytes, "a power of two, 64K to 64M");
  add_size_option(app, "--node-size", arguments.node_bytes, "of tree nodes, 4K to 64K; default 8K");
  app.add_option("--metadata-copies", arguments.metadata_copies, "1 or 2; default 2")
      ->check(CLI::Range(1, 2));
  app.add_option("--over-provision", arguments.over_provision_percent,
                 "percent that users can't fill, for garbage collection to be cheap; 0 to 50, default 7")
      ->check(CLI::Range(0U, ondisk::kOverProvisionMax));
  app.add_option("-L,--label", arguments.label, "name of the volume, up to 63 bytes");
  app.add_flag("-f,--force", arguments.force, "overwrite whatever is there");
  app.add_flag("!--no-discard", arguments.discard, "do not discard the device's blocks first");
  app.add_flag("-q,--quiet", arguments.quiet, "no summary");
  return parse_arguments(app, invocation, kExitFailed);
}

Result<> format_target(OpenedTarget target, const MkfsArguments& arguments, Journal& journal) {
  FormatOptions options;
  options.label = arguments.label;
  options.segment_blocks = static_cast<uint32_t>(arguments.segment_bytes / kBlockBytes);
  options.node_bytes = static_cast<uint32_t>(arguments.node_bytes);
  options.metadata_copies = arguments.metadata_copies;
  options.over_provision_percent = arguments.over_provision_percent;
  Result<std::unique_ptr<Machine>> machine =
      Machine::open(std::move(target),
                    MachineOptions::for_tool(arguments.target, TargetMode::kReadWrite), journal);
  COFS_TRY(machine);
  Environment environment = (*machine)->environment();
  Result<> made =
      run_blocking((*machine)->monitor(), make_volume(&environment, &options, arguments.discard));
  COFS_TRY(made);
  // Reading it back proves that it can be mounted.
  Result<std::unique_ptr<FileSystem>> fs = (*machine)->open_for_reading();
  COFS_TRY(fs);
  if (!arguments.quiet) print_summary(arguments, **fs);
  abandon(**machine, std::move(*fs));
  return {};
}

std::expected<void, std::string> make(const Invocation& invocation,
                                      const MkfsArguments& arguments) {
  if (arguments.segment_bytes > (64ULL << 20) || arguments.node_bytes > ondisk::kNodeBytesMax) {
    return std::unexpected("segments are 64 MiB, nodes 64 KiB at most");
  }
  if (arguments.segment_bytes % kBlockBytes != 0) {
    return std::unexpected("the segment size must be a power of two from 64 KiB to 64 MiB");
  }
  Result<OpenedTarget> target =
      open_target(arguments.target, TargetMode::kReadWrite, lock_wait_for(arguments.target));
  if (!target) return std::unexpected(describe(target.error()));
  if (!arguments.force) {
    Result<std::optional<std::string>> present = present_contents(*target);
    if (!present) return std::unexpected(describe(present.error()));
    if (*present) {
      return std::unexpected(fmt::format("holds {}, use --force to overwrite", **present));
    }
  }
  std::unique_ptr<LogJournal> journal = LogJournal::to_stderr(invocation.name, Severity::kWarning);
  Result<OpenedTarget> sized = resize_image(std::move(*target), arguments);
  if (!sized) return std::unexpected(describe(sized.error()));
  Result<> formatted = format_target(std::move(*sized), arguments, *journal);
  if (!formatted) return std::unexpected(describe(formatted.error()));
  return {};
}

}  // namespace

int mkfs_command(const Invocation& invocation) {
  MkfsArguments arguments;
  if (std::optional<int> code = read_arguments(invocation, arguments)) return *code;
  std::expected<bool, std::string> created = prepare_image(arguments);
  if (!created) {
    print_error(invocation, arguments.target, created.error());
    return kExitFailed;
  }
  std::expected<void, std::string> made = make(invocation, arguments);
  if (made) return kExitOk;
  if (*created) unlink(arguments.target.c_str());
  print_error(invocation, arguments.target, made.error());
  return kExitFailed;
}

}  // namespace cofs
