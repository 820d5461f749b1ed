// cofs scrub: has a mounted volume read and verify everything it holds.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "fs/cofs_ioctl.h"
#include "tools/command_line.h"
#include "tools/job_client.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

struct ScrubArguments {
  std::string directory;
  uint64_t rate = 0;
  bool background = false;
  bool status = false;
  bool cancel = false;
  bool json = false;
};

double seconds_of(const cofs_scrub_status& status) {
  return static_cast<double>(status.elapsed_ns) / 1e9;
}

uint64_t errors_of(const cofs_scrub_status& status) {
  return status.data_errors + status.node_errors + status.superblock_errors;
}

std::string_view state_name(uint32_t state) {
  constexpr std::string_view kNames[] = {"never", "running", "done", "cancelled", "failed"};
  return state < std::size(kNames) ? kNames[state] : "unknown";
}

// As fsck(8), for a scrub that is over.
int exit_code_of(const cofs_scrub_status& status) {
  if (errors_of(status) > status.repaired) return kExitErrorsLeft;
  if (status.state != COFS_JOB_DONE) return kExitCannotRun;
  return status.repaired != 0 ? kExitRepaired : kExitOk;
}

std::string_view result_name(const cofs_scrub_status& status) {
  switch (exit_code_of(status)) {
    case kExitOk: return "clean";
    case kExitRepaired: return "repaired";
    case kExitErrorsLeft: return "errors";
    default: return "incomplete";
  }
}

std::string progress_text(const cofs_scrub_status& status) {
  const uint64_t done = std::min<uint64_t>(status.done_bytes, status.total_bytes);
  const double share = status.total_bytes == 0 ? 0
                                               : static_cast<double>(done) /
                                                     static_cast<double>(status.total_bytes);
  const double seconds = seconds_of(status);
  const double rate = seconds > 0 ? static_cast<double>(status.done_bytes) / seconds : 0;
  std::string text = fmt::format("{} of {} ({:.1f} %), {}/s", size_text(status.done_bytes),
                                 size_text(status.total_bytes), 100 * share,
                                 size_text(static_cast<uint64_t>(rate)));
  if (rate > 0 && seconds >= 1) {
    text += fmt::format(", {} left",
                        duration_text(static_cast<double>(status.total_bytes - done) / rate));
  }
  if (errors_of(status) != 0) text += fmt::format(", {} errors", errors_of(status));
  return text;
}

void print_words(const ScrubArguments& arguments, const cofs_scrub_status& status,
                 const std::string& problems) {
  std::istringstream lines(problems);
  uint64_t shown = 0;
  for (std::string line; std::getline(lines, line); shown++) {
    fmt::print("{}: {}\n", arguments.directory, line);
  }
  if (status.problem_count > shown) {
    fmt::print("{}: and {} more\n", arguments.directory, status.problem_count - shown);
  }
  if (status.state == COFS_JOB_NEVER) {
    fmt::print("{}: no scrub since the volume was mounted\n", arguments.directory);
    return;
  }
  if (status.state == COFS_JOB_RUNNING) {
    fmt::print("{}: scrubbing: {}\n", arguments.directory, progress_text(status));
    return;
  }
  std::string how(state_name(status.state));
  if (status.state == COFS_JOB_FAILED) how += ": " + ioctl_words(static_cast<int>(status.error));
  fmt::print("{}: scrub {}: {}: {} verified in {:.1f} s; {} damaged blocks of data, {} bad tree nodes, "
             "{} bad superblock copies, {} repaired\n",
             arguments.directory, how, result_name(status), size_text(status.done_bytes),
             seconds_of(status), status.data_errors, status.node_errors, status.superblock_errors,
             status.repaired);
}

void print_json(const cofs_scrub_status& status, const std::string& problems) {
  Json lines = Json::array();
  std::istringstream stream(problems);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  Json text = {{"state", state_name(status.state)}};
  const bool is_over = status.state != COFS_JOB_NEVER && status.state != COFS_JOB_RUNNING;
  if (is_over) text["result"] = result_name(status);
  if (status.state == COFS_JOB_FAILED) text["error"] = ioctl_words(static_cast<int>(status.error));
  text["number"] = static_cast<uint64_t>(status.number);
  text["seconds"] = seconds_of(status);
  text["bytes_per_second_max"] = static_cast<uint64_t>(status.bytes_per_second);
  text["done_bytes"] = static_cast<uint64_t>(status.done_bytes);
  text["total_bytes"] = static_cast<uint64_t>(status.total_bytes);
  text["data_errors"] = static_cast<uint64_t>(status.data_errors);
  text["node_errors"] = static_cast<uint64_t>(status.node_errors);
  text["superblock_errors"] = static_cast<uint64_t>(status.superblock_errors);
  text["repaired"] = static_cast<uint64_t>(status.repaired);
  text["problem_count"] = static_cast<uint64_t>(status.problem_count);
  text["problems"] = lines;
  fmt::print("{}\n", text.dump(2, ' ', false, Json::error_handler_t::replace));
}

int fail_with(const Invocation& invocation, const ScrubArguments& arguments,
              const std::string& reason) {
  print_error(invocation, arguments.directory, reason);
  return kExitCannotRun;
}

// Prints the status with what was found, and returns the exit code for the end of it.
int tell(const Invocation& invocation, const ScrubArguments& arguments,
         const cofs_scrub_status& status) {
  std::expected<MountedVolume, std::string> volume = MountedVolume::open(arguments.directory);
  if (!volume) return fail_with(invocation, arguments, volume.error());
  std::expected<std::string, std::string> problems = volume->scrub_problems();
  if (!problems) return fail_with(invocation, arguments, problems.error());
  if (arguments.json) {
    print_json(status, *problems);
  } else {
    print_words(arguments, status, *problems);
  }
  return exit_code_of(status);
}

// Until the scrub with this number is over.
int wait_for(const Invocation& invocation, const ScrubArguments& arguments, uint64_t number) {
  ProgressLine line;
  cofs_scrub_status status{};
  auto end = follow_job([&]() -> std::expected<bool, std::string> {
    auto called = job_call(arguments.directory, COFS_IOC_SCRUB_STATUS, &status);
    if (!called) return std::unexpected(called.error());
    if (status.number != number) return std::unexpected("it is over, and another one was started");
    if (status.state != COFS_JOB_RUNNING) return true;
    line.show("scrubbing: " + progress_text(status));
    return false;
  });
  line.clear();
  if (!end) return fail_with(invocation, arguments, end.error());
  if (*end == FollowEnd::kInterrupted) {
    return fail_with(invocation, arguments,
                     "interrupted; the scrub goes on (--status shows it, --cancel ends it)");
  }
  return tell(invocation, arguments, status);
}

int start(const Invocation& invocation, const ScrubArguments& arguments) {
  cofs_scrub_start request{};
  request.bytes_per_second = arguments.rate;
  auto started = job_call(arguments.directory, COFS_IOC_SCRUB_START, &request);
  if (!started) return fail_with(invocation, arguments, started.error());
  if (!arguments.background) return wait_for(invocation, arguments, request.number);
  if (arguments.json) {
    Json text = {{"state", "running"}, {"number", static_cast<uint64_t>(request.number)}};
    fmt::print("{}\n", text.dump(2));
  } else {
    fmt::print("{}: scrub started; --status shows it, --cancel ends it\n", arguments.directory);
  }
  return kExitOk;
}

int show_status(const Invocation& invocation, const ScrubArguments& arguments) {
  cofs_scrub_status status{};
  auto called = job_call(arguments.directory, COFS_IOC_SCRUB_STATUS, &status);
  if (!called) return fail_with(invocation, arguments, called.error());
  const int code = tell(invocation, arguments, status);
  const bool is_over = status.state != COFS_JOB_NEVER && status.state != COFS_JOB_RUNNING;
  return is_over || code == kExitErrorsLeft ? code : kExitOk;
}

int cancel(const Invocation& invocation, const ScrubArguments& arguments) {
  cofs_job_cancel request{};
  request.kind = COFS_JOB_KIND_SCRUB;
  auto called = job_call(arguments.directory, COFS_IOC_JOB_CANCEL, &request);
  if (!called) return fail_with(invocation, arguments, called.error());
  return kExitOk;
}

}  // namespace

int scrub_command(const Invocation& invocation) {
  ScrubArguments arguments;
  bool wait = false;
  CLI::App app(
      "Has the server of a mounted cofs volume read all file data and all copies of the metadata, and "
      "compare them with their checksums. Metadata with a good copy left is written anew; damaged data has "
      "no second copy: its file, by inode number (find -inum), and offset are told, here and in the "
      "server's log, and it goes on reading as EIO. The volume can be used meanwhile. Interrupting the "
      "command (^C) ends the waiting only: the scrub goes on until --cancel or the unmount. Exit codes: 0 "
      "clean, 1 all repaired, 4 errors left, 8 not run, or not to its end.");
  app.add_option("DIR", arguments.directory, "any file or directory on the mount")->required();
  auto* follow = app.add_flag("--wait", wait, "follow it to its end (the default)");
  auto* background =
      app.add_flag("--background", arguments.background, "only start it")->excludes(follow);
  auto* rate = add_size_option(app, "--rate", arguments.rate,
                               "bytes to read per second, at most, such as 50M (default: as fast as it goes "
                               "while nobody else wants anything, a quarter of the time otherwise)");
  auto* status = app.add_flag("--status", arguments.status,
                              "only tell about the one that runs, or the last one");
  auto* stop = app.add_flag("--cancel", arguments.cancel, "end the one that runs");
  status->excludes(stop)->excludes(rate)->excludes(background);
  stop->excludes(rate)->excludes(background);
  app.add_flag("--json", arguments.json, "as JSON");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitCannotRun)) return *code;
  if (arguments.status) return show_status(invocation, arguments);
  if (arguments.cancel) return cancel(invocation, arguments);
  return start(invocation, arguments);
}

}  // namespace cofs
