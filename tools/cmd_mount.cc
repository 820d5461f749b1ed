// cofs mount: starts the server of a volume and returns once the mount can be used. The server is a
// child that stays in the background, or this process with --foreground.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>

#include "fs/cofs_ioctl.h"
#include "fs/fuse_mounts.h"
#include "fs/fuse_options.h"
#include "fs/fuse_server.h"
#include "tools/command_line.h"
#include "tools/log_journal.h"
#include "tools/run/preload.h"
#include "tools/statistics_text.h"
#include "tools/volume.h"

namespace cofs {

namespace {

struct MountArguments {
  std::string source;
  std::string directory;
  std::vector<std::string> options;
  bool foreground = false;
  bool fake = false;
  // The device can't be written, and is mounted read-only for that, which nobody asked for.
  bool write_protected = false;
};

constexpr std::string_view kProtectedWarning = "WARNING: device write-protected, mounted read-only";

// How a background server tells its parent that it is up, or why not.
class Answer {
 public:
  Answer() = default;
  explicit Answer(OwnedFd fd) : fd_(std::move(fd)), background_(true) {}
  bool is_background() const { return background_; }

  // The mount can be used: the parent returns, and this process gives up its terminal.
  void tell_ready() {
    if (!background_) return;
    OwnedFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
    if (null.valid()) {
      for (int fd = 0; fd <= 2; fd++) dup2(null.get(), fd);
    }
    send("R");
  }
  void tell_failure(int exit_code, const std::string& reason) {
    send(fmt::format("E{:03}{}", exit_code, reason));
  }

 private:
  void send(const std::string& text) {
    // If the parent was killed meanwhile there is nobody to tell.
    [[maybe_unused]] ssize_t written = write(fd_.get(), text.data(), text.size());
    fd_ = OwnedFd();
  }
  OwnedFd fd_;
  bool background_ = false;
};

void raise_limits() {
  for (auto resource : {RLIMIT_NOFILE, RLIMIT_MEMLOCK}) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0) continue;
    rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
    if (resource == RLIMIT_MEMLOCK && setrlimit(resource, &unlimited) == 0) continue;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(resource, &limit);
  }
}

sigset_t ending_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, number);
  return signals;
}

// A server's life. Everything that fails before the mount is up goes to `answer` or, in the
// foreground, to stderr.
class MountProcess {
 public:
  MountProcess(const Invocation& invocation, MountArguments arguments, MountOptions options,
               Answer answer)
      : invocation_(invocation),
        arguments_(std::move(arguments)),
        options_(std::move(options)),
        answer_(std::move(answer)) {}

  int run() {
    // The threads that are started from here on never see these signals.
    sigset_t signals = ending_signals();
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    raise_limits();
    bound_heap();
    journal_ = answer_.is_background() ? LogJournal::to_system_log(arguments_.source)
                                       : LogJournal::to_stderr("cofs", Severity::kInfo);
    TargetMode mode = options_.read_only ? TargetMode::kReadOnly : TargetMode::kReadWrite;
    MachineOptions machine_options =
        MachineOptions::for_server(arguments_.source, mode, options_.dirty_bytes);
    machine_options.device.busy_poll = options_.busy_poll;
    Result<std::unique_ptr<Machine>> machine =
        Machine::open(arguments_.source, machine_options, *journal_);
    if (!machine) return fail_to_mount(arguments_.source, describe(machine.error()));
    if (std::string reason = why_not_engine((*machine)->device().geometry()); !reason.empty()) {
      return fail_to_mount(arguments_.source, reason);
    }
    if (arguments_.write_protected) {
      if (std::string reason = why_not_unasked(**machine); !reason.empty()) {
        return fail_to_mount(arguments_.source, reason);
      }
      if (!answer_.is_background()) print_error(invocation_, arguments_.source, kProtectedWarning);
    }
    Result<std::unique_ptr<FileSystem>> fs =
        (*machine)->open_filesystem(options_.store_options(), options_.fs_options());
    if (!fs) return fail_to_mount(arguments_.source, describe(fs.error()));
    return serve(**machine, std::move(*fs));
  }

 private:
  // Why a write-protected device is mounted read-only only if that is asked for; empty if it need not be. What the
  // mount shows is in its log, and could not be made good.
  std::string why_not_unasked(Machine& machine) const {
    if (options_.no_recovery) return {};
    Result<bool> unclean = run_blocking(machine.monitor(), Store::needs_recovery(machine.environment()));
    if (!unclean) return describe(unclean.error());
    if (!*unclean) return {};
    return "cannot mount: the device is write-protected and was not unmounted; -o ro shows it as after a recovery, "
           "read-only and without writing";
  }

  // Why the copy engine that was asked for by name cannot serve; empty if it can.
  std::string why_not_engine(const DeviceGeometry& geometry) const {
    const std::string& engine = options_.copy_engine;
    if (engine.empty() || engine == "host" || options_.read_only) return {};
    for (const CopyLimits& limits : geometry.copies) {
      if (limits.engine == engine) return {};
    }
    std::string reasons;
    for (const std::string& refusal : geometry.copy_refusals) {
      reasons += (reasons.empty() ? "" : "; ") + refusal;
    }
    return fmt::format("copy_engine={} cannot be used here ({}); see `cofs devcap {}`", engine,
                       reasons.empty() ? "the target offers other engines" : reasons,
                       arguments_.source);
  }

  int fail_to_mount(std::string_view subject, std::string_view reason) {
    if (answer_.is_background()) {
      answer_.tell_failure(kExitMount, fmt::format("{}: {}", subject, reason));
    } else {
      print_error(invocation_, subject, reason);
    }
    return kExitMount;
  }

  FuseServerOptions server_options(Machine& machine, FileSystem& fs) const {
    FuseServerOptions server;
    server.mount_point = arguments_.directory;
    server.source = arguments_.source;
    // fuseblk needs root, and mounts of that kind in user namespaces are refused.
    server.block_device = machine.device().geometry().is_block_device && geteuid() == 0;
    server.read_only = options_.read_only;
    server.writeback = options_.writeback;
    // The kernel tells of no read that its cache answers: with strict access times the first after an open is
    // to reach the server.
    server.keep_cache = options_.access_times != AccessTimes::kStrict;
    server.allow_other = options_.allow_other.value_or(geteuid() == 0);
    server.transport = options_.transport;
    server.busy_poll = options_.busy_poll;
    server.device = &machine.device();
    server.kernel_options = options_.kernel_options;
    server.release_claim = [&machine] { machine.device().target().release_claim(); };
    server.statistics = [&fs](const FuseServer& self) { return statistics_text(fs, self); };
    return server;
  }

  int serve(Machine& machine, std::unique_ptr<FileSystem> fs) {
    bool was_ready = false;
    std::expected<void, std::string> outcome;
    bool stopped = false;
    {
      FuseServer server(*fs, machine.monitor(), *journal_, server_options(machine, *fs));
      outcome = server.mount();
      if (outcome) {
        sigset_t signals = ending_signals();
        pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
        outcome = server.serve([this, &server, &was_ready] {
          was_ready = true;
          const SessionFeatures features = server.features();
          journal_->write(Severity::kInfo,
                          fmt::format("mounted on {} ({}; protocol {}.{} by {})", arguments_.directory, fuse_library(),
                                      features.protocol_major, features.protocol_minor,
                                      server.uses_ring() ? "io_uring" : "/dev/fuse"));
          answer_.tell_ready();
        });
        pthread_sigmask(SIG_BLOCK, &signals, nullptr);
      }
      stopped = server.stopped();
    }
    int code = end(machine, std::move(fs), stopped);
    if (!outcome && !was_ready) return fail_to_mount(arguments_.directory, outcome.error());
    // Whoever waits for the mount is told that there is none. In the foreground nobody does.
    if (!was_ready && !arguments_.foreground) {
      return fail_to_mount(arguments_.directory, "unmounted before it was ready");
    }
    if (!outcome) {
      journal_->write(Severity::kError, outcome.error());
      return kExitFailed;
    }
    return code;
  }

  int end(Machine& machine, std::unique_ptr<FileSystem> fs, bool stopped) {
    if (stopped) {
      abandon(machine, std::move(fs));
      journal_->write(Severity::kWarning, "shut down by request: the volume was left as it was");
      return kExitOk;
    }
    Result<> closed = run_blocking(machine.monitor(), fs->close());
    if (!closed) {
      journal_->write(Severity::kError, "closing failed: " + describe(closed.error()));
      return kExitFailed;
    }
    journal_->write(Severity::kInfo, "unmounted");
    return kExitOk;
  }

  const Invocation& invocation_;
  MountArguments arguments_;
  MountOptions options_;
  Answer answer_;
  std::unique_ptr<LogJournal> journal_;
};

// The parent's part of a background mount: waits for the server's word.
int await_answer(const Invocation& invocation, int fd, pid_t server) {
  std::string text;
  char buffer[512];
  while (true) {
    ssize_t got = read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  if (text == "R") return kExitOk;
  int status = 0;
  while (waitpid(server, &status, 0) < 0 && errno == EINTR) {
  }
  if (text.size() > 4 && text[0] == 'E') {
    print_error(invocation, {}, text.substr(4));
    return std::stoi(text.substr(1, 3));
  }
  print_error(invocation, {},
              WIFSIGNALED(status)
                  ? fmt::format("the server was killed by signal {}", WTERMSIG(status))
                  : std::string("the server ended before the mount was ready"));
  return kExitMount;
}

// Nothing is allowed at the second place that is not at the first.
unsigned long flags_of_second_mount(const MountOptions& options, unsigned long first) {
  struct Flag {
    const char* word;
    unsigned long of_statvfs;
    unsigned long of_mount;
  };
  static constexpr std::array<Flag, 4> kFlags = {{{"ro", ST_RDONLY, MS_RDONLY},
                                                  {"nosuid", ST_NOSUID, MS_NOSUID},
                                                  {"nodev", ST_NODEV, MS_NODEV},
                                                  {"noexec", ST_NOEXEC, MS_NOEXEC}}};
  unsigned long flags = options.read_only ? MS_RDONLY : 0;
  for (const Flag& flag : kFlags) {
    const bool is_asked = std::ranges::find(options.kernel_options, flag.word) != options.kernel_options.end();
    if (is_asked || (first & flag.of_statvfs) != 0) flags |= flag.of_mount;
  }
  return flags;
}

// Like a bind mount, but that the two share no events: what is mounted below one does not appear below the other, as
// between two mounts of any filesystem. False: errno says why.
bool attach_copy_of_mount(const char* mount_point, const char* directory) {
  const int copy = open_tree(AT_FDCWD, mount_point, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (copy < 0) return false;
  struct mount_attr alone {};
  alone.propagation = MS_PRIVATE;
  const bool attached = mount_setattr(copy, "", AT_EMPTY_PATH, &alone, sizeof(alone)) == 0 &&
                        move_mount(copy, "", AT_FDCWD, directory, MOVE_MOUNT_F_EMPTY_PATH) == 0;
  const int error = errno;
  close(copy);
  errno = error;
  return attached;
}

// A volume has one server: at a second place it is the same filesystem, as with any other.
int mount_again(const Invocation& invocation, const MountArguments& arguments,
                const MountOptions& options, const MountEntry& entry) {
  const bool is_dead = access(entry.mount_point.c_str(), F_OK) != 0 && errno == ENOTCONN;
  const bool is_there = entry.mount_point == arguments.directory || entry.root != "/";
  if (is_dead || is_there || arguments.foreground || geteuid() != 0) {
    print_error(invocation, arguments.source,
                fmt::format("already mounted on {}{}", entry.mount_point,
                            is_dead ? ", where its server died; cofs umount clears that" : ""));
    return kExitMount;
  }
  struct stat status {};
  struct statvfs figures {};
  if (stat(entry.mount_point.c_str(), &status) != 0 || statvfs(entry.mount_point.c_str(), &figures) != 0) {
    print_error(invocation, entry.mount_point, strerror(errno));
    return kExitMount;
  }
  if (fmt::format("{}:{}", major(status.st_dev), minor(status.st_dev)) != entry.device) {
    print_error(invocation, arguments.source,
                fmt::format("already mounted on {}, which something else hides", entry.mount_point));
    return kExitMount;
  }
  const char* directory = arguments.directory.c_str();
  if (!attach_copy_of_mount(entry.mount_point.c_str(), directory)) {
    print_error(invocation, arguments.directory, strerror(errno));
    return kExitMount;
  }
  const unsigned long flags = flags_of_second_mount(options, figures.f_flag);
  if (flags != 0 && mount(nullptr, directory, nullptr, MS_REMOUNT | MS_BIND | flags, nullptr) != 0) {
    print_error(invocation, arguments.directory, fmt::format("its options: {}", strerror(errno)));
    umount2(directory, MNT_DETACH);
    return kExitMount;
  }
  return kExitOk;
}

int start_in_background(const Invocation& invocation, const MountArguments& arguments,
                        const MountOptions& options) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    print_error(invocation, {}, fmt::format("pipe: {}", strerror(errno)));
    return kExitMount;
  }
  OwnedFd read_end(ends[0]);
  OwnedFd write_end(ends[1]);
  pid_t child = fork();
  if (child < 0) {
    print_error(invocation, {}, fmt::format("fork: {}", strerror(errno)));
    return kExitMount;
  }
  if (child > 0) {
    write_end = OwnedFd();
    return await_answer(invocation, read_end.get(), child);
  }
  read_end = OwnedFd();
  setsid();
  return MountProcess(invocation, arguments, options, Answer(std::move(write_end))).run();
}

// Such a device is mounted read-only, as mount(8) does with the kernel's filesystems.
bool is_write_protected(const std::string& path) {
  const int device = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (device < 0) return false;
  int is_protected = 0;
  const bool answered = ioctl(device, BLKROGET, &is_protected) == 0;  // ENOTTY: an image
  close(device);
  return answered && is_protected != 0;
}

// `mount -o remount`: what the kernel keeps changes, the server goes on.
int remount(const Invocation& invocation, const MountArguments& arguments,
            const MountOptions& options) {
  std::optional<MountEntry> entry = mount_at(arguments.directory);
  if (!entry || !entry->is_cofs()) {
    print_error(invocation, arguments.directory, "not a cofs mount");
    return kExitMount;
  }
  unsigned long flags = MS_REMOUNT;
  auto has = [&](const char* word) {
    return std::ranges::find(options.kernel_options, word) != options.kernel_options.end();
  };
  if (options.read_only) flags |= MS_RDONLY;
  if (has("nosuid")) flags |= MS_NOSUID;
  if (has("nodev")) flags |= MS_NODEV;
  if (has("noexec")) flags |= MS_NOEXEC;
  if (has("noatime")) flags |= MS_NOATIME;
  if (has("nodiratime")) flags |= MS_NODIRATIME;
  if (has("sync")) flags |= MS_SYNCHRONOUS;
  if (::mount(entry->source.c_str(), arguments.directory.c_str(), nullptr, flags, nullptr) != 0) {
    print_error(invocation, arguments.directory,
                fmt::format("cannot remount: {}", strerror(errno)));
    return kExitMount;
  }
  OwnedFd directory(open(arguments.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || ioctl(directory.get(), COFS_IOC_SYNC) != 0) {
    print_error(invocation, arguments.directory, fmt::format("cannot sync: {}", strerror(errno)));
    return kExitMount;
  }
  return kExitOk;
}

std::optional<int> read_arguments(const Invocation& invocation, MountArguments& arguments) {
  CLI::App app(
      "Mounts a cofs volume. Options for -o: ro, noatime, relatime, strictatime, writeback, "
      "commit=SECONDS, discard, nodiscard, cache=SIZE, dirty=SIZE, allow_other, noallow_other, "
      "copy_engine=auto|nvme|xcopy|token|hostfile|host, copy_verify=PERCENT, copy_timeout=SECONDS, "
      "copy_measure=auto|always|never, clone=device|share, io_uring, and those of mount(8) for every filesystem.");
  app.add_option("TARGET", arguments.source, "block device or image file")->required();
  app.add_option("DIR", arguments.directory, "mount point")->required();
  app.add_option("-o,--options", arguments.options, "mount options, separated by commas")
      ->allow_extra_args(false);
  app.add_flag("--foreground", arguments.foreground, "serve in this process, log to stderr");
  bool ignored = false;
  std::string ignored_text;
  app.add_flag("-f,--fake", arguments.fake, "check the arguments only");
  app.add_flag("-n,-s,-v,--verbose", ignored, "accepted for mount(8)");
  app.add_option("-t,--types,-N,--namespace", ignored_text, "accepted for mount(8)");
  return parse_arguments(app, invocation, kExitFailed);
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ",") + word;
  return text;
}

}  // namespace

int mount_command(const Invocation& invocation) {
  leave_preload();
  MountArguments arguments;
  if (std::optional<int> code = read_arguments(invocation, arguments)) return *code;
  std::expected<MountOptions, std::string> options = parse_mount_options(join(arguments.options));
  if (!options) {
    print_error(invocation, {}, options.error());
    return kExitFailed;
  }
  std::string directory = resolve_mount_point(arguments.directory);
  if (directory.empty()) {
    print_error(invocation, arguments.directory, strerror(errno));
    return kExitMount;
  }
  arguments.directory = directory;
  if (arguments.fake) return kExitOk;
  if (options->no_recovery && !options->read_only && !is_write_protected(arguments.source)) {
    print_error(invocation, arguments.source, "norecovery: only together with ro (which never writes to the device)");
    return kExitFailed;
  }
  if (options->remount) return remount(invocation, arguments, *options);

  // The server leaves its working directory, and the mount table should name the target
  // unmistakably.
  std::string source = resolve_mount_point(arguments.source);
  if (source.empty()) {
    print_error(invocation, arguments.source, strerror(errno));
    return kExitMount;
  }
  arguments.source = source;
  std::optional<MountEntry> mounted;  // rather one that shows all of it
  for (const MountEntry& entry : read_mounts()) {
    if (!entry.is_cofs() || entry.source != source) continue;
    if (!mounted || (mounted->root != "/" && entry.root == "/")) mounted = entry;
  }
  if (mounted) return mount_again(invocation, arguments, *options, *mounted);
  if (!options->read_only && is_write_protected(source)) {
    arguments.write_protected = true;
    options->read_only = true;
  }
  if (arguments.foreground) return MountProcess(invocation, arguments, *options, Answer()).run();
  const int code = start_in_background(invocation, arguments, *options);
  if (code == kExitOk && arguments.write_protected) print_error(invocation, source, kProtectedWarning);
  return code;
}

}  // namespace cofs
