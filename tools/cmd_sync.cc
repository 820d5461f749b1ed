// cofs sync: makes everything on a mounted volume durable.
#include "tools/command_line.h"
#include "tools/mounted.h"

namespace cofs {

int sync_command(const Invocation& invocation) {
  std::string directory;
  CLI::App app("Makes everything that was done on a mounted cofs volume durable.");
  app.add_option("DIR", directory, "any file or directory on the mount")->required();
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::expected<MountedVolume, std::string> volume = MountedVolume::open(directory);
  std::expected<void, std::string> outcome;
  if (volume) {
    outcome = volume->sync();
  } else {
    outcome = std::unexpected(volume.error());
  }
  if (!outcome) {
    print_error(invocation, directory, outcome.error());
    return kExitFailed;
  }
  return kExitOk;
}

}  // namespace cofs
