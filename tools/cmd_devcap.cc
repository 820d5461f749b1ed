// cofs devcap: what a device or image can do for cofs: sizes, discard, and which ways of copying it
// offers, or why not. It writes nothing.
#include <fcntl.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "tools/command_line.h"
#include "tools/log_journal.h"
#include "tools/volume.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

Json copy_text(const CopyLimits& limits) {
  return {{"path", std::string(name_of(limits.path))},
          {"engine", limits.engine},
          {"ranges_max", limits.ranges_max},
          {"range_bytes_max", bytes_of_blocks(limits.range_blocks_max)},
          {"operation_bytes_max", bytes_of_blocks(limits.operation_blocks_max)},
          {"in_flight_max", limits.in_flight_max}};
}

Json capabilities(FileDevice& device) {
  const DeviceGeometry& geometry = device.geometry();
  int flags = fcntl(device.target().fd(), F_GETFL);
  Json copies = Json::array();
  for (const CopyLimits& limits : geometry.copies) copies.push_back(copy_text(limits));
  return {{"target", geometry.name},
          {"kind", geometry.is_block_device ? "block device" : "image file"},
          {"size_bytes", bytes_of_blocks(geometry.block_count)},
          {"lba_bytes", geometry.lba_bytes},
          {"direct_io", flags >= 0 && (flags & O_DIRECT) != 0},
          {"discard", geometry.can_discard},
          {"discard_granularity_bytes", bytes_of_blocks(geometry.discard_granularity_blocks)},
          {"copy", copies},
          {"copy_refusals", geometry.copy_refusals}};
}

std::string limit_text(uint64_t bytes) {
  return bytes >= (1ULL << 60) ? "any size" : size_text(bytes);
}

void print_capabilities(FileDevice& device) {
  const DeviceGeometry& geometry = device.geometry();
  Json text = capabilities(device);
  fmt::print("{}: {}, {}, LBAs of {} bytes\n", geometry.name, text["kind"].get<std::string>(),
             size_text(bytes_of_blocks(geometry.block_count)), geometry.lba_bytes);
  fmt::print("  direct I/O: {}\n",
             text["direct_io"].get<bool>() ? "yes" : "no, through the page cache");
  if (geometry.can_discard) {
    fmt::print("  discard: yes, in units of {}\n",
               size_text(bytes_of_blocks(geometry.discard_granularity_blocks)));
  } else {
    fmt::print("  discard: no\n");
  }
  for (const CopyLimits& limits : geometry.copies) {
    fmt::print("  copy by {} ({}): {} ranges, {} per range, {} per operation, {} in flight\n",
               name_of(limits.path), limits.engine, limits.ranges_max,
               limit_text(bytes_of_blocks(limits.range_blocks_max)),
               limit_text(bytes_of_blocks(limits.operation_blocks_max)), limits.in_flight_max);
  }
  fmt::print("  copy by host (read and write): always\n");
  for (const std::string& refusal : geometry.copy_refusals) fmt::print("  not: {}\n", refusal);
}

}  // namespace

int devcap_command(const Invocation& invocation) {
  std::string target;
  bool json = false;
  CLI::App app(
      "Shows what a block device or image file can do, and how it can copy. Writes nothing.");
  app.add_option("TARGET", target, "block device or image file")->required();
  app.add_flag("--json", json, "as JSON");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::unique_ptr<LogJournal> journal = LogJournal::to_stderr(invocation.name, Severity::kError);
  // What can be copied and discarded shows only on a target that could be written.
  Result<std::unique_ptr<Machine>> machine =
      Machine::open(target, MachineOptions::for_tool(target, TargetMode::kReadWrite), *journal);
  if (!machine &&
      (machine.error().code == Code::kAccess || machine.error().code == Code::kReadOnly)) {
    machine =
        Machine::open(target, MachineOptions::for_tool(target, TargetMode::kReadOnly), *journal);
  }
  if (!machine) {
    print_error(invocation, target, machine.error());
    return kExitFailed;
  }
  if (json) {
    fmt::print(
        "{}\n",
        capabilities((*machine)->device()).dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    print_capabilities((*machine)->device());
  }
  return kExitOk;
}

}  // namespace cofs
