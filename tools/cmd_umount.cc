// cofs umount: unmounts and waits until the server has closed the volume and is gone, so that a
// check or another mount can follow at once.
#include <fmt/format.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "fs/fuse_mounts.h"
#include "tools/command_line.h"
#include "tools/mounted.h"

namespace cofs {

namespace {

constexpr int kServerEndSeconds = 300;  // it writes what is dirty, and devices stall

struct UmountArguments {
  std::string directory;
  bool lazy = false;
  bool force = false;
};

std::optional<MountEntry> find_mount(const std::string& path) {
  std::string resolved = resolve_mount_point(path);
  if (std::optional<MountEntry> entry = mount_at(resolved); entry && entry->is_cofs()) return entry;
  for (MountEntry& entry : read_mounts()) {  // by the target's name
    if (entry.is_cofs() && (entry.source == path || entry.source == resolved)) return entry;
  }
  return {};
}

// A descriptor that becomes readable when the server ends; invalid if it cannot be known.
OwnedFd watch_server(const std::string& mount_point) {
  std::expected<MountedVolume, std::string> volume = MountedVolume::open(mount_point);
  if (!volume) return {};
  std::expected<int, std::string> pid = volume->server_pid();
  if (!pid) return {};
  OwnedFd watch(static_cast<int>(syscall(SYS_pidfd_open, *pid, 0)));
  // In another pid namespace that number is somebody else.
  std::string name;
  std::ifstream(fmt::format("/proc/{}/comm", *pid)) >> name;
  if (name.find("cofs") == std::string::npos) return {};
  return watch;
}

int run_fusermount(const std::string& mount_point, bool lazy) {
  pid_t child = fork();
  if (child == 0) {
    execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--", mount_point.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return child > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

std::expected<void, std::string> detach(const std::string& mount_point,
                                        const UmountArguments& arguments, bool dead) {
  bool lazy = arguments.lazy || dead;
  if (geteuid() != 0) {
    int status = run_fusermount(mount_point, lazy);
    if (status == 0) return {};
    return std::unexpected(fmt::format("fusermount3 failed ({})", status));
  }
  int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0) | (arguments.force ? MNT_FORCE : 0);
  if (umount2(mount_point.c_str(), flags) == 0) return {};
  if (errno == EBUSY) return std::unexpected("in use; close what is open there, or use --lazy");
  return std::unexpected(strerror(errno));
}

// statfs always asks the server; what else there is may be answered from the kernel's caches.
bool is_dead(const std::string& mount_point) {
  struct statfs figures {};
  return statfs(mount_point.c_str(), &figures) != 0 && (errno == ENOTCONN || errno == ECONNABORTED);
}

// A volume is mounted at several places by bind mounts; its server ends with the last of them.
bool is_mounted(const std::string& device) {
  const std::vector<MountEntry> mounts = read_mounts();
  return std::any_of(mounts.begin(), mounts.end(),
                     [&](const MountEntry& entry) { return entry.device == device; });
}

// False if it still runs after kServerEndSeconds.
bool wait_until_gone(const OwnedFd& server) {
  pollfd poller{server.get(), POLLIN, 0};
  int ready = 0;
  while ((ready = poll(&poller, 1, kServerEndSeconds * 1000)) < 0 && errno == EINTR) {
  }
  return ready > 0;
}

}  // namespace

int umount_command(const Invocation& invocation) {
  UmountArguments arguments;
  bool ignored = false;
  CLI::App app("Unmounts a cofs volume and waits until its server is gone.");
  app.add_option("DIR", arguments.directory, "mount point (or the target that is mounted)")
      ->required();
  app.add_flag("-l,--lazy", arguments.lazy,
               "detach now, finish when it is not used any more; no waiting");
  app.add_flag("-f,--force", arguments.force, "give up requests that wait for the server");
  app.add_flag("-n,-r,-v,--verbose", ignored, "accepted for umount(8)");
  if (std::optional<int> code = parse_arguments(app, invocation, kExitFailed)) return *code;

  std::optional<MountEntry> entry = find_mount(arguments.directory);
  if (!entry) {
    print_error(invocation, arguments.directory, "not a cofs mount");
    return kExitMount;
  }
  bool dead = !arguments.force && is_dead(entry->mount_point);
  // With --force the server may hang: it is not asked anything.
  OwnedFd server = arguments.force || dead ? OwnedFd() : watch_server(entry->mount_point);
  std::expected<void, std::string> detached = detach(entry->mount_point, arguments, dead);
  if (!detached) {
    print_error(invocation, entry->mount_point, detached.error());
    return kExitMount;
  }
  if (arguments.lazy || !server.valid() || is_mounted(entry->device)) return kExitOk;
  if (!wait_until_gone(server)) {
    print_error(invocation, entry->mount_point,
                fmt::format("unmounted here, but its server still runs after {} s: the volume is mounted in "
                            "another mount namespace, or its device hangs",
                            kServerEndSeconds));
    return kExitMount;
  }
  return kExitOk;
}

}  // namespace cofs
