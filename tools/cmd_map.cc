// cofs map: where the extents of a file are, and which of them others share.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "fs/cofs_ioctl.h"
#include "offload/target.h"
#include "tools/command_line.h"
#include "tools/file_map.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

struct FlagName {
  uint32_t flag;
  const char* name;
};
constexpr FlagName kFlagNames[] = {{COFS_EXTENT_SHARED, "shared"},
                                   {COFS_EXTENT_UNWRITTEN, "unwritten"},
                                   {COFS_EXTENT_INLINE, "inline"},
                                   {COFS_EXTENT_DELAYED, "delayed"},
                                   {COFS_EXTENT_LAST, "last"}};

std::vector<std::string> flag_names(uint32_t flags) {
  std::vector<std::string> names;
  for (const FlagName& known : kFlagNames) {
    if ((flags & known.flag) != 0) names.push_back(known.name);
  }
  return names;
}

// Extents without a place have none to show.
bool has_place(const cofs_map_extent& extent) {
  return (extent.flags & (COFS_EXTENT_DELAYED | COFS_EXTENT_INLINE)) == 0;
}

void print_json(const FileExtents& map) {
  Json extents = Json::array();
  for (const cofs_map_extent& extent : map.extents) {
    extents.push_back({{"offset", extent.logical},
                       {"bytes", extent.length},
                       {"physical", has_place(extent) ? Json(extent.physical) : Json()},
                       {"flags", flag_names(extent.flags)}});
  }
  const FileMapTotals totals = map.totals();
  Json text = {{"size_bytes", map.size_bytes},
               {"mapped_bytes", totals.mapped_bytes},
               {"shared_bytes", totals.shared_bytes},
               {"inline_bytes", totals.inline_bytes},
               {"delayed_bytes", totals.delayed_bytes},
               {"unwritten_bytes", totals.unwritten_bytes},
               {"extents", extents}};
  fmt::print("{}\n", text.dump(2));
}

void print_table(const FileExtents& map) {
  fmt::print("{:>16} {:>16} {:>18}  {}\n", "offset", "bytes", "physical", "flags");
  for (const cofs_map_extent& extent : map.extents) {
    std::string flags;
    for (const std::string& name : flag_names(extent.flags))
      flags += (flags.empty() ? "" : ",") + name;
    fmt::print("{:>16} {:>16} {:>18}  {}\n", extent.logical, extent.length,
               has_place(extent) ? std::to_string(extent.physical) : "-", flags);
  }
  const FileMapTotals totals = map.totals();
  fmt::print("{} extents, {} of {}; {} shared with others\n", map.extents.size(),
             size_text(totals.mapped_bytes), size_text(map.size_bytes),
             size_text(totals.shared_bytes));
}

}  // namespace

int map_command(const Invocation& invocation) {
  std::string path;
  bool json = false;
  bool no_sync = false;
  CLI::App app(
      "Shows the extents of a file on a mounted cofs volume: offset in the file, length, place on "
      "the volume's device, and flags (shared: others refer to these blocks too; unwritten: "
      "preallocated; "
      "inline: in the inode's record; delayed: in memory only; last). Holes are left out.");
  app.add_option("FILE", path, "a file on a mounted volume")->required();
  app.add_flag("--json", json, "as JSON");
  app.add_flag("--no-sync", no_sync, "do not write first what is dirty; it is shown as delayed");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  OwnedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) {
    print_error(invocation, path, strerror(errno));
    return kExitFailed;
  }
  std::expected<FileExtents, std::string> map = read_file_map(fd.get(), !no_sync);
  if (!map) {
    print_error(invocation, path, map.error());
    return kExitFailed;
  }
  if (json) {
    print_json(*map);
  } else {
    print_table(*map);
  }
  return kExitOk;
}

}  // namespace cofs
