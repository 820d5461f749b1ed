// cofs run: runs a command whose clone calls work on cofs mounts.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tools/command_line.h"
#include "tools/run/clone_filter.h"
#include "tools/run/preload.h"
#include "tools/run/program.h"
#include "tools/run/supervised.h"

namespace cofs {

namespace {

struct RunArguments {
  std::string method = "auto";
  bool is_verbose = false;
  bool as_xfs = false;
};

// How many of the arguments are ours: the command begins at the first that is no option, or after
// "--".
size_t own_arguments(const std::vector<std::string>& arguments) {
  size_t count = 0;
  while (count < arguments.size() && arguments[count].starts_with('-') &&
         arguments[count] != "--") {
    count += arguments[count] == "--method" ? 2 : 1;
  }
  return std::min(count, arguments.size());
}

const char* choose_method(const Program& program) {
  if (program.kind != ProgramKind::kDynamic) return "seccomp";
  // The loader ignores the library for it. A supervisor of root serves it; another would take its
  // privilege away.
  return program.is_set_id && geteuid() == 0 ? "seccomp" : "preload";
}

int failed_to_execute(const Invocation& invocation, const std::string& name, int error) {
  print_error(invocation, name, strerror(error));
  return error == ENOENT ? kExitNotFound : kExitCannotExecute;
}

}  // namespace

int run_command(const Invocation& invocation) {
  RunArguments arguments;
  CLI::App app(
      "cofs run [OPTIONS] [--] COMMAND [ARGUMENTS]\n\n"
      "Runs a command for which FICLONE, FICLONERANGE (cp --reflink=always), FIDEDUPERANGE and "
      "FIEMAP (filefrag) work on cofs mounts, and sync and syncfs commit; for its children too. "
      "Exits as the command does; 125 if cofs run itself failed, 126 and 127 if the command cannot "
      "be run or found.\n\n"
      "Methods: preload loads a library into the command, for programs that make system calls "
      "through "
      "the C library. seccomp has a supervisor make these calls, for every program of this "
      "machine's own word size; started by others than root it ends the effect of set-id programs "
      "(sudo). auto takes preload, and seccomp for static and Go programs; it looks at the command "
      "only, not at what that starts. i386 programs run as they would without cofs run.\n\n"
      "docs/FICLONE.md tells what works how, and the limits.");
  app.add_option("--method", arguments.method, "auto, preload or seccomp")
      ->check(CLI::IsMember({"auto", "preload", "seccomp"}));
  app.add_flag("-v,--verbose", arguments.is_verbose, "say on stderr what was chosen");
  app.add_flag(
      "--as-xfs", arguments.as_xfs,
      "let statfs call cofs xfs, for programs that look for a name (duperemove); preload only");
  const size_t own = own_arguments(invocation.arguments);
  const auto first = invocation.arguments.begin();
  Invocation options{invocation.name, {first, first + static_cast<ptrdiff_t>(own)}};
  if (std::optional<int> code = parse_arguments(app, options, kExitRunFailed)) return *code;

  Command command;
  command.words.assign(first + static_cast<ptrdiff_t>(own), invocation.arguments.end());
  if (!command.words.empty() && command.words.front() == "--")
    command.words.erase(command.words.begin());
  if (command.words.empty()) {
    print_error(invocation, {}, "COMMAND is required (see --help)");
    return kExitRunFailed;
  }
  const std::string& name = command.words.front();
  std::expected<Program, int> program = find_program(name);
  if (!program) return failed_to_execute(invocation, name, program.error());
  command.path = program->path;

  const std::string method = arguments.method == "auto"
                                 ? (arguments.as_xfs ? "preload" : choose_method(*program))
                                 : arguments.method;
  if (arguments.as_xfs && method != "preload") {
    print_error(invocation, {}, "--as-xfs needs --method preload");
    return kExitRunFailed;
  }
  if (method == "preload") {
    if (std::string reason = add_preload(arguments.as_xfs); !reason.empty()) {
      print_error(invocation, {}, reason);
      return kExitRunFailed;
    }
  }
  const bool is_nested = method == "seccomp" && is_supervised();
  if (arguments.is_verbose) {
    print_error(invocation, name,
                is_nested ? std::string("served by the supervisor that is there already")
                          : fmt::format("method {}", method));
  }
  if (method == "seccomp" && !is_nested)
    return run_supervised(invocation, command, arguments.is_verbose);
  return failed_to_execute(invocation, name, execute(command));
}

}  // namespace cofs
