// cofs clone: copies files and trees on a mounted volume without moving their data through the
// host.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "tools/clone_tree.h"
#include "tools/command_line.h"
#include "tools/mounted.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;
using SteadyClock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kProgressInterval{200};

struct CloneArguments {
  std::string source;
  std::string target;
  CloneOptions options;
  bool json = false;
  bool is_verbose = false;
};

// What the volume counted for copies: of all that use it.
struct CopyFigures {
  uint64_t device_bytes = 0;
  uint64_t hostfile_bytes = 0;
  uint64_t host_bytes = 0;
};

CopyFigures copy_figures(const std::string& path) {
  CopyFigures figures;
  std::expected<MountedVolume, std::string> volume = MountedVolume::open(path);
  if (!volume) return figures;
  std::expected<std::string, std::string> text = volume->statistics();
  if (!text) return figures;
  const Json all = Json::parse(*text, nullptr, false);
  if (!all.is_object() || !all.contains("copy")) return figures;
  const Json& copy = all["copy"];
  figures.device_bytes = copy.value("device_bytes", uint64_t{0});
  figures.hostfile_bytes = copy.value("hostfile_bytes", uint64_t{0});
  figures.host_bytes = copy.value("host_bytes", uint64_t{0});
  return figures;
}

std::string data_text(const CloneTotals& totals) {
  std::string text;
  const auto add = [&text](uint64_t bytes, const char* what) {
    if (bytes != 0)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", size_text(bytes), what);
  };
  add(totals.shared_bytes, "shared");
  add(totals.copied_bytes, "device-copied");
  add(totals.inline_bytes, "inline");
  return text.empty() ? "no data" : text;
}

Json data_json(const CloneTotals& totals) {
  return {{"size_bytes", totals.size_bytes},
          {"shared_bytes", totals.shared_bytes},
          {"device_copied_bytes", totals.copied_bytes},
          {"host_copied_bytes", 0},  // an announced clone never is
          {"inline_bytes", totals.inline_bytes}};
}

// On a terminal, a line that is written over.
class Progress {
 public:
  explicit Progress(bool is_wanted) : is_shown_(is_wanted && isatty(STDERR_FILENO) == 1) {}
  ~Progress() {
    if (was_shown_) fmt::print(stderr, "\r\033[K");
  }
  void update(const CloneTotals& totals) {
    if (!is_shown_ || SteadyClock::now() - last_ < kProgressInterval) return;
    last_ = SteadyClock::now();
    was_shown_ = true;
    fmt::print(stderr, "\r\033[K{} files, {}", totals.files, size_text(totals.size_bytes));
  }

 private:
  bool is_shown_;
  bool was_shown_ = false;
  SteadyClock::time_point last_ = SteadyClock::now();
};

bool is_directory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// The name of what a path leads to, also of "." and "..".
std::string own_name(const std::string& path) {
  std::unique_ptr<char, void (*)(void*)> real(realpath(path.c_str(), nullptr), std::free);
  std::string text = path;
  while (text.size() > 1 && text.ends_with('/')) text.pop_back();
  const std::string last = text.substr(text.rfind('/') + 1);
  if ((last == "." || last == ".." || last.empty()) && real) text = real.get();
  return text.substr(text.rfind('/') + 1);
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

void print_totals(const CloneArguments& arguments, const CloneTotals& totals,
                  const CopyFigures& before, const CopyFigures& after, const Json& files) {
  if (arguments.json) {
    Json text = {{"target", arguments.target},
                 {"files", totals.files},
                 {"directories", totals.directories},
                 {"others", totals.others}};
    text.update(data_json(totals));
    // Of the whole volume meanwhile: by which path the device-copied bytes went.
    text["volume"] = {{"device_bytes", after.device_bytes - before.device_bytes},
                      {"hostfile_bytes", after.hostfile_bytes - before.hostfile_bytes},
                      {"host_bytes", after.host_bytes - before.host_bytes}};
    if (arguments.is_verbose) text["list"] = files;
    fmt::print("{}\n", text.dump(2, ' ', false, Json::error_handler_t::replace));
  } else if (arguments.options.is_recursive) {
    fmt::print("{} files, {} directories, {} others; {}\n", totals.files, totals.directories,
               totals.others, data_text(totals));
  }
}

}  // namespace

int clone_command(const Invocation& invocation) {
  CloneArguments arguments;
  CLI::App app(
      "Copies a file, or with -r a tree, on a mounted cofs volume, keeping modes, owners, times, "
      "attributes, links and holes as cp -a does. Data is shared, or copied by the device, as the "
      "volume's clone mode says; it never goes through the host. A line tells which it was, for "
      "each file with -v.");
  app.add_option("SRC", arguments.source, "what to clone")->required();
  app.add_option("DST", arguments.target, "the copy's name, or a directory to put it in")
      ->required();
  app.add_flag("-r,--recursive", arguments.options.is_recursive, "trees");
  app.add_flag("--force", arguments.options.replaces, "replace files that are there already");
  app.add_flag("-v,--verbose", arguments.is_verbose, "a line per file; with --json, a list");
  app.add_flag("--json", arguments.json, "the totals as JSON");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;
  if (is_directory(arguments.target)) {
    if (!arguments.target.ends_with('/')) arguments.target += '/';
    arguments.target += own_name(arguments.source);
  }
  raise_descriptor_limit();

  const CopyFigures before = arguments.json ? copy_figures(arguments.source) : CopyFigures{};
  const bool shows_files = arguments.is_verbose || !arguments.options.is_recursive;
  Json files = Json::array();
  std::expected<void, std::string> outcome;
  CloneTotals totals;
  {
    Progress progress(!shows_files || arguments.json);
    CloneTotals so_far;
    TreeCloner cloner(arguments.options, [&](const std::string& path, const CloneTotals& file) {
      so_far.files++;
      so_far.size_bytes += file.size_bytes;
      progress.update(so_far);
      if (arguments.json && arguments.is_verbose) {
        Json entry = {{"path", path}};
        entry.update(data_json(file));
        files.push_back(entry);
      } else if (shows_files && !arguments.json) {
        fmt::print("{}: {}\n", path, data_text(file));
      }
    });
    outcome = cloner.clone(arguments.source, arguments.target);
    totals = cloner.totals();
  }
  if (!outcome) {
    print_error(invocation, {}, outcome.error());
    return kExitFailed;
  }
  print_totals(arguments, totals, before, arguments.json ? copy_figures(arguments.source) : before,
               files);
  return kExitOk;
}

}  // namespace cofs
