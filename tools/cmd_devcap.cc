// cofs devcap: what a device or image can do for cofs: sizes, discard, which ways of copying it offers
// or why not, how fast they are, and which would be used. It writes nothing, unless it is asked to
// measure in a part of the device that is given to it for that.
#include <fcntl.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "fs/fuse_options.h"
#include "offload/copy_meter.h"
#include "tools/command_line.h"
#include "tools/log_journal.h"
#include "tools/volume.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

struct DevcapArguments {
  std::string target;
  std::string measure;  // "START:LENGTH"
  bool force = false;
  bool json = false;
};

struct Capabilities {
  CopyRates rates;
  std::string rates_from;  // "measured now", "kept in the volume"; empty: there are none
};

std::string range_text(size_t index) { return size_text(bytes_of_blocks(kRateRangeBlocks[index])); }

struct Choice {
  std::string engine;
  std::string reason;
};

// What a mount with default options would copy ranges of this length by.
Choice choose(const DeviceGeometry& geometry, const Capabilities& found, size_t index) {
  std::string declined;
  for (const CopyLimits& limits : geometry.copies) {
    if (!limits.automatic) continue;
    const std::string_view reason = better_not(found.rates, limits.engine, kRateRangeBlocks[index]);
    if (reason.empty()) {
      return {limits.engine, found.rates_from.empty() ? "offered; not measured yet"
                                                      : "not slower than half of the host's rate"};
    }
    declined = fmt::format("{}: {}", limits.engine, reason);
  }
  return {"host", declined.empty() ? "nothing else is offered" : declined};
}

Json limits_figures(const CopyLimits& limits) {
  uint32_t disks = 1;
  for (const CopyRegion& region : limits.regions) disks = std::max(disks, region.disk + 1);
  return {{"engine", limits.engine},
          {"path", std::string(name_of(limits.path))},
          {"automatic", limits.automatic},
          {"ranges_max", limits.ranges_max},
          {"range_bytes_max", bytes_of_blocks(limits.range_blocks_max)},
          {"operation_bytes_max", bytes_of_blocks(limits.operation_blocks_max)},
          {"in_flight_max", limits.in_flight_max},
          {"disks", disks}};
}

Json figures(FileDevice& device, const Capabilities& found) {
  const DeviceGeometry& geometry = device.geometry();
  const int flags = fcntl(device.target().fd(), F_GETFL);
  Json copies = Json::array();
  for (const CopyLimits& limits : geometry.copies) copies.push_back(limits_figures(limits));
  Json rates = Json::object();
  for (const CopyRate& rate : found.rates.engines) {
    for (size_t i = 0; i < kRateClasses; i++) {
      rates[rate.engine][std::to_string(bytes_of_blocks(kRateRangeBlocks[i]))] =
          rate.bytes_per_second[i];
    }
  }
  Json choices = Json::array();
  for (size_t i = 0; i < kRateClasses; i++) {
    const Choice choice = choose(geometry, found, i);
    choices.push_back({{"range_bytes", bytes_of_blocks(kRateRangeBlocks[i])},
                       {"engine", choice.engine},
                       {"reason", choice.reason}});
  }
  return {{"target", geometry.name},
          {"kind", geometry.is_block_device ? "block device" : "image file"},
          {"size_bytes", bytes_of_blocks(geometry.block_count)},
          {"lba_bytes", geometry.lba_bytes},
          {"direct_io", flags >= 0 && (flags & O_DIRECT) != 0},
          {"discard", geometry.can_discard},
          {"discard_granularity_bytes", bytes_of_blocks(geometry.discard_granularity_blocks)},
          {"copy", copies},
          {"copy_refusals", geometry.copy_refusals},
          {"rates_from", found.rates_from},
          {"rates_bytes_per_second", rates},
          {"choice", choices}};
}

std::string limit_text(uint64_t bytes) {
  return bytes >= (1ULL << 60) ? "any size" : size_text(bytes);
}

void print_engines(const DeviceGeometry& geometry) {
  fmt::print("  {:<10} {:>8} {:>12} {:>12} {:>10}\n", "engine", "ranges", "per range", "per command",
             "in flight");
  for (const CopyLimits& limits : geometry.copies) {
    fmt::print("  {:<10} {:>8} {:>12} {:>12} {:>10}{}\n", limits.engine, limits.ranges_max,
               limit_text(bytes_of_blocks(limits.range_blocks_max)),
               limit_text(bytes_of_blocks(limits.operation_blocks_max)), limits.in_flight_max,
               limits.automatic ? "" : "  (only by copy_engine=" + limits.engine + ")");
  }
  fmt::print("  {:<10} {:>8}\n", "host", "always");
  for (const std::string& refusal : geometry.copy_refusals) fmt::print("  not {}\n", refusal);
}

void print_rates(const Capabilities& found) {
  if (found.rates_from.empty()) {
    fmt::print("  rates: not measured (a mount does it; or --measure START:LENGTH)\n");
    return;
  }
  fmt::print("  {:<24}", "rates, " + found.rates_from);
  for (size_t i = 0; i < kRateClasses; i++) fmt::print(" {:>14}", "ranges " + range_text(i));
  fmt::print("\n");
  for (const CopyRate& rate : found.rates.engines) {
    fmt::print("    {:<22}", rate.engine);
    for (uint64_t bytes : rate.bytes_per_second) {
      fmt::print(" {:>14}", bytes == 0 ? "failed" : size_text(bytes) + "/s");
    }
    fmt::print("\n");
  }
}

void print_capabilities(FileDevice& device, const Capabilities& found) {
  const DeviceGeometry& geometry = device.geometry();
  const int flags = fcntl(device.target().fd(), F_GETFL);
  fmt::print("{}: {}, {}, LBAs of {} bytes\n", geometry.name,
             geometry.is_block_device ? "block device" : "image file",
             size_text(bytes_of_blocks(geometry.block_count)), geometry.lba_bytes);
  fmt::print("  direct I/O: {}\n",
             flags >= 0 && (flags & O_DIRECT) != 0 ? "yes" : "no, through the page cache");
  fmt::print("  discard: {}\n",
             geometry.can_discard
                 ? "yes, in units of " + size_text(bytes_of_blocks(geometry.discard_granularity_blocks))
                 : "no");
  print_engines(geometry);
  print_rates(found);
  for (size_t i = 0; i < kRateClasses; i++) {
    const Choice choice = choose(geometry, found, i);
    fmt::print("  ranges of {} would be copied by {} ({})\n", range_text(i), choice.engine,
               choice.reason);
  }
}

// "64M:512M" as blocks, rounded inwards.
std::optional<BlockRange> parse_scratch(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos) return std::nullopt;
  const std::optional<uint64_t> start = parse_size(text.substr(0, colon));
  const std::optional<uint64_t> length = parse_size(text.substr(colon + 1));
  if (!start || !length || *length > UINT64_MAX - *start) return std::nullopt;
  const uint64_t first = blocks_of_bytes(*start);  // rounds up
  const uint64_t end = (*start + *length) >> kBlockShift;
  if (end <= first) return std::nullopt;
  return BlockRange{first, end - first};
}

std::expected<Capabilities, std::string> measure(Machine& machine, const DevcapArguments& arguments,
                                                 Journal& journal) {
  const std::optional<BlockRange> scratch = parse_scratch(arguments.measure);
  if (!scratch || scratch->count < kMeterBlocksMin) {
    return std::unexpected(fmt::format("--measure {}: expected START:LENGTH, such as 1G:64M, of at least {}",
                                       arguments.measure,
                                       size_text(bytes_of_blocks(kMeterBlocksMin))));
  }
  if (scratch->end() > machine.device().geometry().block_count) {
    return std::unexpected(fmt::format("--measure {}: ends beyond the device's {}", arguments.measure,
                                       size_text(bytes_of_blocks(machine.device().geometry().block_count))));
  }
  if (!arguments.force) {
    Result<std::optional<std::string>> present = present_contents(machine.device().target());
    if (!present) return std::unexpected(describe(present.error()));
    if (*present) {
      return std::unexpected(fmt::format("holds {}: measuring overwrites {}, use --force to do it",
                                         **present, arguments.measure));
    }
  }
  Environment environment = machine.environment();
  MeterOptions options;
  options.scratch = *scratch;
  Result<MeterOutcome> measured = run_blocking(
      machine.monitor(), measure_copies(&environment.device, &environment.executor,
                                        &environment.clock, &environment.buffers, &journal, options));
  if (!measured) return std::unexpected(describe(measured.error()));
  return Capabilities{std::move(measured->rates), "measured now"};
}

Capabilities look_up_rates(Machine& machine) {
  Result<CopyRates> stored =
      run_blocking(machine.monitor(), Store::stored_copy_rates(machine.environment()));
  if (!stored || stored->signature != copy_signature(machine.device().geometry())) return {};
  return Capabilities{std::move(*stored), "kept in the volume"};
}

}  // namespace

int devcap_command(const Invocation& invocation) {
  DevcapArguments arguments;
  CLI::App app(
      "Shows what a block device or image file can do, and how it can copy. Writes nothing without "
      "--measure.");
  app.add_option("TARGET", arguments.target, "block device or image file")->required();
  app.add_option("--measure", arguments.measure,
                 "START:LENGTH: measure all ways of copying there, overwriting what it holds");
  app.add_flag("-f,--force", arguments.force, "measure although the target holds something");
  app.add_flag("--json", arguments.json, "as JSON");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::unique_ptr<LogJournal> journal = LogJournal::to_stderr(invocation.name, Severity::kWarning);
  // What can be copied and discarded shows only on a target that could be written.
  Result<std::unique_ptr<Machine>> machine = Machine::open(
      arguments.target, MachineOptions::for_tool(arguments.target, TargetMode::kReadWrite), *journal);
  if (!machine && arguments.measure.empty() &&
      (machine.error().code == Code::kAccess || machine.error().code == Code::kReadOnly)) {
    machine = Machine::open(arguments.target,
                            MachineOptions::for_tool(arguments.target, TargetMode::kReadOnly), *journal);
  }
  if (!machine) {
    print_error(invocation, arguments.target, machine.error());
    return kExitFailed;
  }
  Capabilities found;
  if (arguments.measure.empty()) {
    found = look_up_rates(**machine);
  } else {
    auto measured = measure(**machine, arguments, *journal);
    if (!measured) {
      print_error(invocation, arguments.target, measured.error());
      return kExitFailed;
    }
    found = std::move(*measured);
  }
  FileDevice& device = (*machine)->device();
  if (arguments.json) {
    fmt::print("{}\n", figures(device, found).dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    print_capabilities(device, found);
  }
  return kExitOk;
}

}  // namespace cofs
