// cofs gc: has a mounted volume collect garbage now.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "fs/cofs_ioctl.h"
#include "tools/command_line.h"
#include "tools/job_client.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

struct GcArguments {
  std::string directory;
  uint32_t until_free = 0;
  bool wait = false;
  bool status = false;
  bool cancel = false;
  bool json = false;
};

double seconds_of(const cofs_gc_status& status) { return static_cast<double>(status.elapsed_ns) / 1e9; }

double percent_ready(const cofs_gc_status& status) {
  if (status.total_bytes == 0) return 0;
  return 100.0 * static_cast<double>(status.ready_bytes) / static_cast<double>(status.total_bytes);
}

std::string state_text(const cofs_gc_status& status) {
  switch (status.state) {
    case COFS_JOB_NEVER: return "none since the volume was mounted";
    case COFS_JOB_RUNNING: return "running";
    case COFS_JOB_CANCELLED: return "cancelled";
    case COFS_JOB_FAILED: return fmt::format("failed: {}", ioctl_words(static_cast<int>(status.error)));
    default: break;
  }
  switch (status.end_reason) {
    case COFS_GC_END_NOTHING_GAINS: return "done: nothing more gains";
    case COFS_GC_END_NO_ROOM: return "ended: there is no room to move anything to; delete something, or mount it with gc=auto, which "
             "keeps some";
    case COFS_GC_END_FREE_ENOUGH:
      return fmt::format("done: {} % can be written", status.until_free_percent);
    default: return "ended: so much is overwritten meanwhile that it would go on for ever";
  }
}

std::string figures_text(const cofs_gc_status& status) {
  return fmt::format("{} segments emptied, {} moved ({} by the device, {} by the host), {} won, {:.1f} s",
                     status.segments_emptied, size_text(status.moved_bytes),
                     size_text(status.device_bytes), size_text(status.host_bytes),
                     size_text(status.won_bytes), seconds_of(status));
}

std::string_view state_name(uint32_t state) {
  constexpr std::string_view kNames[] = {"never", "running", "done", "cancelled", "failed"};
  return state < std::size(kNames) ? kNames[state] : "unknown";
}

std::string_view reason_name(uint32_t reason) {
  constexpr std::string_view kNames[] = {"nothing gains", "no room", "free enough", "long enough"};
  return reason < std::size(kNames) ? kNames[reason] : "unknown";
}

void print(const GcArguments& arguments, const cofs_gc_status& status) {
  if (!arguments.json) {
    fmt::print("{}: garbage collection: {}\n", arguments.directory, state_text(status));
    if (status.state == COFS_JOB_NEVER) return;
    fmt::print("  {}\n", figures_text(status));
    fmt::print("  {} of {} ({:.1f} %) can be written before more is collected\n",
               size_text(status.ready_bytes), size_text(status.total_bytes), percent_ready(status));
    return;
  }
  Json text = {{"state", state_name(status.state)}};
  if (status.state == COFS_JOB_DONE) text["end_reason"] = reason_name(status.end_reason);
  if (status.state == COFS_JOB_FAILED) text["error"] = ioctl_words(static_cast<int>(status.error));
  text["number"] = static_cast<uint64_t>(status.number);
  text["until_free_percent"] = static_cast<uint32_t>(status.until_free_percent);
  text["seconds"] = seconds_of(status);
  text["segments_emptied"] = static_cast<uint64_t>(status.segments_emptied);
  text["moved_bytes"] = static_cast<uint64_t>(status.moved_bytes);
  text["device_bytes"] = static_cast<uint64_t>(status.device_bytes);
  text["host_bytes"] = static_cast<uint64_t>(status.host_bytes);
  text["won_bytes"] = static_cast<uint64_t>(status.won_bytes);
  text["ready_bytes"] = static_cast<uint64_t>(status.ready_bytes);
  text["total_bytes"] = static_cast<uint64_t>(status.total_bytes);
  fmt::print("{}\n", text.dump(2));
}

int fail_with(const Invocation& invocation, const GcArguments& arguments, const std::string& reason) {
  print_error(invocation, arguments.directory, reason);
  return kExitFailed;
}

// Until the collection with this number is over.
int wait_for(const Invocation& invocation, const GcArguments& arguments, uint64_t number) {
  ProgressLine line;
  cofs_gc_status status{};
  auto end = follow_job([&]() -> std::expected<bool, std::string> {
    auto called = job_call(arguments.directory, COFS_IOC_GC_STATUS, &status);
    if (!called) return std::unexpected(called.error());
    if (status.number != number) return std::unexpected("it is over, and another one was started");
    if (status.state != COFS_JOB_RUNNING) return true;
    line.show(fmt::format("collecting: {}; {:.1f} % free", figures_text(status), percent_ready(status)));
    return false;
  });
  line.clear();
  if (!end) return fail_with(invocation, arguments, end.error());
  if (*end == FollowEnd::kInterrupted) {
    return fail_with(invocation, arguments,
                     "interrupted; the collection goes on (--status shows it, --cancel ends it)");
  }
  print(arguments, status);
  return status.state == COFS_JOB_DONE ? kExitOk : kExitFailed;
}

int start(const Invocation& invocation, const GcArguments& arguments) {
  cofs_gc_start request{};
  request.until_free_percent = arguments.until_free;
  auto started = job_call(arguments.directory, COFS_IOC_GC_START, &request);
  if (!started) return fail_with(invocation, arguments, started.error());
  if (arguments.wait) return wait_for(invocation, arguments, request.number);
  if (arguments.json) {
    Json text = {{"state", "running"}, {"number", static_cast<uint64_t>(request.number)}};
    fmt::print("{}\n", text.dump(2));
  } else {
    fmt::print("{}: garbage collection started; --status shows it, --cancel ends it\n",
               arguments.directory);
  }
  return kExitOk;
}

int show_status(const Invocation& invocation, const GcArguments& arguments) {
  cofs_gc_status status{};
  auto called = job_call(arguments.directory, COFS_IOC_GC_STATUS, &status);
  if (!called) return fail_with(invocation, arguments, called.error());
  print(arguments, status);
  return kExitOk;
}

int cancel(const Invocation& invocation, const GcArguments& arguments) {
  cofs_job_cancel request{};
  request.kind = COFS_JOB_KIND_GC;
  auto called = job_call(arguments.directory, COFS_IOC_JOB_CANCEL, &request);
  if (!called) return fail_with(invocation, arguments, called.error());
  return kExitOk;
}

}  // namespace

int gc_command(const Invocation& invocation) {
  GcArguments arguments;
  CLI::App app(
      "Has the server of a mounted cofs volume move live data out of partly filled segments, so that these "
      "become free: until nothing more gains, or as far as --until-free says. Also where the volume is "
      "mounted with gc=off. The volume can be used meanwhile. Interrupting the command (^C) ends the "
      "waiting only: the collection goes on until --cancel or the unmount. Exit codes: 0 started, or with "
      "--wait come to its end; 1 not started, failed, cancelled, or not waited for to the end.");
  app.add_option("DIR", arguments.directory, "any file or directory on the mount")->required();
  app.add_flag("--wait", arguments.wait, "follow it to its end, and tell what it did");
  auto* until = app.add_option("--until-free", arguments.until_free,
                               "end once PERCENT of the volume's total can be written without collecting "
                               "more (df counts as free also what collecting can still win)");
  until->type_name("PERCENT")->check(CLI::Range(1, 100));
  auto* status = app.add_flag("--status", arguments.status, "only tell about the one that runs, or the last one");
  auto* stop = app.add_flag("--cancel", arguments.cancel, "end the one that runs");
  status->excludes(stop)->excludes(until);
  stop->excludes(until);
  app.add_flag("--json", arguments.json, "as JSON");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;
  if (arguments.status) return show_status(invocation, arguments);
  if (arguments.cancel) return cancel(invocation, arguments);
  return start(invocation, arguments);
}

}  // namespace cofs
