// cofs fsck: checks a volume that is not mounted, and mends it if asked. Exit codes are fsck(8)'s.
//
// The check opens the volume without writing: what the log of an unclean volume holds is replayed
// in memory. Only --repair opens it for writing, which replays the log on the device first.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "tools/command_line.h"
#include "tools/log_journal.h"
#include "tools/volume.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

struct FsckArguments {
  std::string target;
  bool repair = false;
  bool never_repair = false;
  bool json = false;
  bool read_data = false;
  bool quiet = false;
};

struct FsckOutcome {
  VolumeInfo info;
  VerifyReport report;
  uint64_t repaired = 0;
  bool repair_ran = false;
};

VerifyOptions verify_options(const FsckArguments& arguments) {
  VerifyOptions options;
  options.read_data = arguments.read_data;
  if (isatty(STDERR_FILENO) != 0 && !arguments.json && !arguments.quiet) {
    options.progress = [](uint64_t done, uint64_t total) {
      fmt::print(stderr, "\r{:3} %", total == 0 ? 100 : done * 100 / total);
      if (done >= total) fmt::print(stderr, "\r     \r");
      std::fflush(stderr);
    };
  }
  return options;
}

Result<FsckOutcome> check(const FsckArguments& arguments, Journal& journal) {
  Result<std::unique_ptr<Machine>> machine = Machine::open(
      arguments.target, MachineOptions::for_tool(arguments.target, TargetMode::kReadOnly), journal);
  COFS_TRY(machine);
  Result<std::unique_ptr<FileSystem>> fs = (*machine)->open_for_reading();
  COFS_TRY(fs);
  FsckOutcome outcome;
  outcome.info = (*fs)->store().info();
  Result<VerifyReport> report =
      run_blocking((*machine)->monitor(), (*fs)->verify(verify_options(arguments)));
  abandon(**machine, std::move(*fs));
  COFS_TRY(report);
  outcome.report = std::move(*report);
  return outcome;
}

Result<uint64_t> repair(const FsckArguments& arguments, Journal& journal) {
  Result<std::unique_ptr<Machine>> machine =
      Machine::open(arguments.target,
                    MachineOptions::for_tool(arguments.target, TargetMode::kReadWrite), journal);
  COFS_TRY(machine);
  StoreOptions store_options;
  store_options.background = false;
  Result<std::unique_ptr<FileSystem>> fs = (*machine)->open_filesystem(store_options, FsOptions());
  COFS_TRY(fs);
  Result<uint64_t> count = run_blocking((*machine)->monitor(), (*fs)->repair());
  Result<> closed = run_blocking((*machine)->monitor(), (*fs)->close());
  COFS_TRY(count);
  COFS_TRY(closed);
  return count;
}

Result<FsckOutcome> check_and_repair(const FsckArguments& arguments, Journal& journal) {
  Result<FsckOutcome> outcome = check(arguments, journal);
  COFS_TRY(outcome);
  if (!arguments.repair || outcome->report.problem_count == 0) return outcome;
  Result<uint64_t> count = repair(arguments, journal);
  COFS_TRY(count);
  Result<FsckOutcome> again = check(arguments, journal);
  COFS_TRY(again);
  again->repaired = *count;
  again->repair_ran = true;
  return again;
}

std::string_view verdict(const FsckOutcome& outcome) {
  if (outcome.report.problem_count != 0) return "errors";
  return outcome.repair_ran ? "repaired" : "clean";
}

void print_json(const FsckArguments& arguments, const FsckOutcome& outcome) {
  const VerifyReport& report = outcome.report;
  Json problems = Json::array();
  for (const VerifyProblem& problem : report.problems) {
    problems.push_back({{"what", problem.what}, {"repairable", problem.repairable}});
  }
  Json text = {{"target", arguments.target},
               {"uuid", outcome.info.uuid},
               {"result", std::string(verdict(outcome))},
               {"was_clean", outcome.info.was_clean},
               {"replayed_commits", outcome.info.replayed_commits},
               {"repaired", outcome.repaired},
               {"problem_count", report.problem_count},
               {"problems", problems},
               {"nodes", report.nodes},
               {"records", report.records},
               {"inodes", report.inodes},
               {"data_blocks", report.data_blocks},
               {"data_blocks_read", report.data_blocks_read}};
  fmt::print("{}\n", text.dump(2, ' ', false, Json::error_handler_t::replace));
}

void print_words(const FsckArguments& arguments, const FsckOutcome& outcome) {
  const VerifyReport& report = outcome.report;
  for (const VerifyProblem& problem : report.problems) {
    fmt::print("{}: {}{}\n", arguments.target, problem.what,
               problem.repairable ? " (repairable)" : "");
  }
  if (report.problem_count > report.problems.size()) {
    fmt::print("{}: and {} more\n", arguments.target,
               report.problem_count - report.problems.size());
  }
  if (outcome.repair_ran)
    fmt::print("{}: {} things repaired\n", arguments.target, outcome.repaired);
  if (arguments.quiet) return;
  fmt::print("{}: {}: {} inodes, {} records in {} nodes, {} of data{}\n", arguments.target,
             verdict(outcome), report.inodes, report.records, report.nodes,
             size_text(bytes_of_blocks(report.data_blocks)),
             arguments.read_data ? fmt::format(", {} read and verified",
                                               size_text(bytes_of_blocks(report.data_blocks_read)))
                                 : "");
}

std::optional<int> read_arguments(const Invocation& invocation, FsckArguments& arguments) {
  bool ignored = false;
  CLI::App app(
      "Checks a cofs volume that is not mounted. Exit codes: 0 clean, 1 repaired, 4 errors left, "
      "8 could not run.");
  app.add_option("TARGET", arguments.target, "block device or image file")->required();
  app.add_flag("-y,-p,-a,--repair", arguments.repair, "mend what can be mended");
  app.add_flag("-n", arguments.never_repair, "only check");
  app.add_flag("--json", arguments.json, "report as JSON");
  app.add_flag("--data", arguments.read_data, "read all file data too and verify its checksums");
  app.add_flag("-q,--quiet", arguments.quiet, "problems only");
  app.add_flag("-f,-v,-V", ignored, "accepted for fsck(8)");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitCannotRun)) return code;
  if (arguments.never_repair) arguments.repair = false;
  return {};
}

}  // namespace

int fsck_command(const Invocation& invocation) {
  FsckArguments arguments;
  if (std::optional<int> code = read_arguments(invocation, arguments)) return *code;
  std::unique_ptr<LogJournal> journal = LogJournal::to_stderr(invocation.name, Severity::kWarning);
  Result<FsckOutcome> outcome = check_and_repair(arguments, *journal);
  if (!outcome) {
    Code code = outcome.error().code;
    print_error(invocation, arguments.target, outcome.error());
    // A volume that is there and cannot be read is damaged; anything else means that no check was
    // made.
    return code == Code::kCorrupt || code == Code::kChecksum ? kExitErrorsLeft : kExitCannotRun;
  }
  if (arguments.json) {
    print_json(arguments, *outcome);
  } else {
    print_words(arguments, *outcome);
  }
  if (outcome->report.problem_count != 0) return kExitErrorsLeft;
  return outcome->repair_ran ? kExitRepaired : kExitOk;
}

}  // namespace cofs
