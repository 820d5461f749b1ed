// cofs label: shows or changes the label of a mounted volume.
#include <fmt/format.h>
#include <linux/fs.h>

#include <cerrno>
#include <cstring>

#include "tools/command_line.h"
#include "tools/mounted.h"

namespace cofs {

namespace {

std::string words_for(int error_number) {
  switch (error_number) {
    case EINVAL: return "a label has at most 63 bytes";
    case EPERM: return "only root may change it";
    default: return ioctl_words(error_number);
  }
}

}  // namespace

int label_command(const Invocation& invocation) {
  std::string directory;
  std::optional<std::string> label;
  CLI::App app("Shows the label of a mounted cofs volume, or gives it another one.");
  app.add_option("DIR", directory, "any file or directory on the mount")->required();
  app.add_option("LABEL", label, "the new one, up to 63 bytes; \"\": none");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::expected<MountedVolume, std::string> volume = MountedVolume::open(directory);
  if (!volume) {
    print_error(invocation, directory, volume.error());
    return kExitFailed;
  }
  // Others answer this ioctl, too.
  if (auto server = volume->server_pid(); !server) {
    print_error(invocation, directory, server.error());
    return kExitFailed;
  }
  char text[FSLABEL_MAX] = {};
  int error_number = 0;
  if (!label) {
    error_number = volume->call(FS_IOC_GETFSLABEL, text);
  } else if (label->size() >= sizeof(text)) {
    error_number = EINVAL;
  } else {
    std::memcpy(text, label->data(), label->size());
    error_number = volume->call(FS_IOC_SETFSLABEL, text);
  }
  if (error_number != 0) {
    print_error(invocation, directory, words_for(error_number));
    return kExitFailed;
  }
  if (!label) fmt::print("{}\n", std::string_view(text, strnlen(text, sizeof(text))));
  return kExitOk;
}

}  // namespace cofs
