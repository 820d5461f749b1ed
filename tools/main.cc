// cofs: one program for all that is done with a volume. Under the names that mount(8), mkfs(8) and
// fsck(8) look for (mount.cofs, mount.fuse.cofs, mkfs.cofs, fsck.cofs) it is that subcommand.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "tools/command_line.h"

namespace {

using cofs::Invocation;

struct Subcommand {
  std::string_view name;
  int (*run)(const Invocation&);
  std::string_view help;
};

constexpr Subcommand kSubcommands[] = {
    {"mkfs", cofs::mkfs_command, "make an empty volume on a device or in an image file"},
    {"mount", cofs::mount_command, "mount a volume on a directory"},
    {"umount", cofs::umount_command, "unmount, and wait until the server is gone"},
    {"fsck", cofs::fsck_command, "check a volume that is not mounted, and repair it"},
    {"dump", cofs::dump_command, "show what is on a volume that is not mounted"},
    {"stat", cofs::stat_command, "statistics of a mounted volume"},
    {"sync", cofs::sync_command, "make everything on a mounted volume durable"},
    {"label", cofs::label_command, "show or change the label of a mounted volume"},
    {"gc", cofs::gc_command, "make room: have live data moved out of partly filled segments"},
    {"scrub", cofs::scrub_command, "read and verify everything on a mounted volume, repair metadata"},
    {"clone", cofs::clone_command, "copy files and trees by sharing or by the device"},
    {"map", cofs::map_command, "the extents of a file, and which are shared"},
    {"run", cofs::run_command, "run a command whose clone calls (FICLONE, dedupe, FIEMAP) work on cofs"},
    {"devcap", cofs::devcap_command, "what a device or image can do, and how it copies"},
};

struct Alias {
  std::string_view program;
  std::string_view subcommand;
};
constexpr Alias kAliases[] = {{"mkfs.cofs", "mkfs"},     {"fsck.cofs", "fsck"},
                              {"mount.cofs", "mount"},   {"mount.fuse.cofs", "mount"},
                              {"umount.cofs", "umount"}, {"umount.fuse.cofs", "umount"}};

const Subcommand* find_subcommand(std::string_view name) {
  for (const Subcommand& subcommand : kSubcommands) {
    if (subcommand.name == name) return &subcommand;
  }
  return nullptr;
}

void print_help() {
  fmt::print(
      "Usage: cofs SUBCOMMAND [ARGUMENTS]\n\nA log-structured filesystem whose device copies.\n\n");
  for (const Subcommand& subcommand : kSubcommands) {
    fmt::print("  {:<8} {}\n", subcommand.name, subcommand.help);
  }
  fmt::print("\ncofs SUBCOMMAND --help says more. cofs --version tells the version.\n");
}

int run(std::string_view program, std::vector<std::string> arguments) {
  for (const Alias& alias : kAliases) {
    if (program != alias.program) continue;
    // What mount(8) has us do we say under its name.
    const std::string_view name = alias.subcommand == "mount" ? alias.subcommand : program;
    return find_subcommand(alias.subcommand)
        ->run(Invocation{std::string(name), std::move(arguments)});
  }
  if (arguments.empty()) {
    print_help();
    return cofs::kExitFailed;
  }
  std::string name = arguments.front();
  if (name == "--help" || name == "-h" || name == "help") {
    print_help();
    return cofs::kExitOk;
  }
  if (name == "--version") {
    fmt::print("{}\n", cofs::version_text());
    return cofs::kExitOk;
  }
  const Subcommand* subcommand = find_subcommand(name);
  if (subcommand == nullptr) {
    fmt::print(stderr, "cofs: {}: no such subcommand (see cofs --help)\n", name);
    return cofs::kExitFailed;
  }
  arguments.erase(arguments.begin());
  return subcommand->run(Invocation{"cofs " + name, std::move(arguments)});
}

}  // namespace

int main(int count, char** values) {
  // A reader that went away (of a pipe, of the mount command's answer) must not kill a server. What `cofs
  // run` becomes keeps the signal as it is.
  const bool is_run = count > 1 && std::string_view(values[1]) == "run";
  if (!is_run) std::signal(SIGPIPE, SIG_IGN);
  std::string_view program = count > 0 ? values[0] : "cofs";
  program = program.substr(program.rfind('/') + 1);
  return run(program, std::vector<std::string>(values + (count > 0 ? 1 : 0), values + count));
}
