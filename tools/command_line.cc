#include "tools/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "fs/fuse_options.h"
#include "fs/fuse_queues.h"
#include "fs/fuse_server.h"

namespace cofs {

std::string version_text() {
  return fmt::format("cofs {} ({}{})", kVersion, fuse_library(), FuseQueues::are_ours() ? ", serves -o io_uring" : "");
}

std::optional<int> parse_arguments(CLI::App& app, const Invocation& invocation, int usage_error) {
  app.name(invocation.name);
  app.set_version_flag("--version", version_text());
  std::vector<std::string> reversed(invocation.arguments.rbegin(), invocation.arguments.rend());
  try {
    app.parse(std::move(reversed));
    return {};
  } catch (const CLI::Success& done) {
    app.exit(done);
    return kExitOk;
  } catch (const CLI::Error& error) {
    print_error(invocation, {}, fmt::format("{} (see --help)", error.what()));
    return usage_error;
  }
}

void print_error(const Invocation& invocation, std::string_view subject, std::string_view reason) {
  std::string line = subject.empty() ? fmt::format("{}: {}", invocation.name, reason)
                                     : fmt::format("{}: {}: {}", invocation.name, subject, reason);
  std::ranges::replace(line, '\n', ' ');
  fmt::print(stderr, "{}\n", line);
}

void print_error(const Invocation& invocation, std::string_view subject, const Error& error) {
  print_error(invocation, subject, describe(error));
}

std::string size_text(uint64_t bytes) {
  constexpr std::array kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  double value = static_cast<double>(bytes);
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    unit++;
  }
  if (unit == 0) return fmt::format("{} bytes", bytes);
  return fmt::format("{:.{}f} {}", value, value < 100 ? 1 : 0, kUnits[unit]);
}

CLI::Option* add_size_option(CLI::App& app, const std::string& name, uint64_t& value,
                             const std::string& description) {
  return app.add_option_function<std::string>(
      name,
      [&value, name](const std::string& text) {
        std::optional<uint64_t> size = parse_size(text);
        if (!size)
          throw CLI::ValidationError(name, "expected a size such as 64K or 10G, not " + text);
        value = *size;
      },
      description);
}

}  // namespace cofs
