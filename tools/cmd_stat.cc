// cofs stat: the statistics of a mounted volume, for people or as JSON.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "tools/command_line.h"
#include "tools/mounted.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

std::string value_text(const std::string& name, const Json& value) {
  if (name.ends_with("_bytes") && value.is_number_unsigned())
    return size_text(value.get<uint64_t>());
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void print_group(const std::string& title, const Json& group) {
  fmt::print("{}\n", title);
  for (const auto& [name, value] : group.items()) {
    if (value.is_object()) {
      for (const auto& [reason, count] : value.items()) {
        fmt::print("  {:<20} {} ({})\n", name, value_text({}, count), reason);
      }
    } else {
      fmt::print("  {:<20} {}\n", name, value_text(name, value));
    }
  }
}

// What the server tells, and which process that is.
std::expected<Json, std::string> fetch(const std::string& path) {
  std::expected<MountedVolume, std::string> volume = MountedVolume::open(path);
  if (!volume) return std::unexpected(volume.error());
  std::expected<std::string, std::string> text = volume->statistics();
  if (!text) return std::unexpected(text.error());
  std::expected<int, std::string> pid = volume->server_pid();
  if (!pid) return std::unexpected(pid.error());
  Json figures = Json::parse(*text, nullptr, false);
  if (!figures.is_object()) return std::unexpected("the server's answer is not JSON");
  figures["server_pid"] = *pid;
  return figures;
}

}  // namespace

int stat_command(const Invocation& invocation) {
  std::string directory;
  bool json = false;
  CLI::App app("Shows the statistics of a mounted cofs volume since it was mounted.");
  app.add_option("DIR", directory, "any file or directory on the mount")->required();
  app.add_flag("--json", json, "as JSON");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::expected<Json, std::string> figures = fetch(directory);
  if (!figures) {
    print_error(invocation, directory, figures.error());
    return kExitFailed;
  }
  if (json) {
    fmt::print("{}\n", figures->dump(2));
    return kExitOk;
  }
  for (const auto& [name, value] : figures->items()) {
    if (value.is_object()) {
      print_group(name, value);
    } else {
      fmt::print("{:<22} {}\n", name, value.dump());
    }
  }
  return kExitOk;
}

}  // namespace cofs
