// What the subcommands of `cofs` share: their arguments, their error line, their exit codes.
//
// An error is one line, "cofs NAME: what: why", on stderr. Exceptions of CLI11 end in
// parse_arguments().
#pragma once

#include <CLI/CLI.hpp>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "offload/base/error.h"

namespace cofs {

inline constexpr std::string_view kVersion = "0.1.0";

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // also for wrong arguments
inline constexpr int kExitMount = 32;  // mount(8): the mount or unmount failed
// fsck(8)
inline constexpr int kExitRepaired = 1;
inline constexpr int kExitErrorsLeft = 4;
inline constexpr int kExitCannotRun = 8;

// "cofs 0.1.0 (libfuse 3.18.3, pinned)"
std::string version_text();

struct Invocation {
  std::string name;                    // "cofs mkfs", or "mkfs.cofs"
  std::vector<std::string> arguments;  // without the name
};

// Parses into what `app` was told to fill. Returns the exit code if the command is done with that:
// after
// --help or --version (0), or with `usage_error` after telling what is wrong.
std::optional<int> parse_arguments(CLI::App& app, const Invocation& invocation, int usage_error);

// Prints the error line. `subject` is the path it is about, or empty.
void print_error(const Invocation& invocation, std::string_view subject, std::string_view reason);
void print_error(const Invocation& invocation, std::string_view subject, const Error& error);

// The subcommands; each returns the exit code.
int mkfs_command(const Invocation& invocation);
int mount_command(const Invocation& invocation);
int umount_command(const Invocation& invocation);
int fsck_command(const Invocation& invocation);
int dump_command(const Invocation& invocation);
int stat_command(const Invocation& invocation);
int sync_command(const Invocation& invocation);
int label_command(const Invocation& invocation);
int clone_command(const Invocation& invocation);
int map_command(const Invocation& invocation);
int run_command(const Invocation& invocation);
int devcap_command(const Invocation& invocation);
int gc_command(const Invocation& invocation);
int scrub_command(const Invocation& invocation);

// "1.5 GiB"
std::string size_text(uint64_t bytes);

// A size argument for CLI11: "10G" and the like.
CLI::Option* add_size_option(CLI::App& app, const std::string& name, uint64_t& value,
                             const std::string& description);

}  // namespace cofs
