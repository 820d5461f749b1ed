#include "tools/run/notified_call.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <sstream>
#include <string_view>

#include "tools/ficlone/mount_sync.h"
#include "tools/ficlone/own_process.h"
#include "tools/run/clone_filter.h"

namespace cofs {

namespace {

constexpr unsigned kPidfdThread = O_EXCL;  // PIDFD_THREAD, Linux 6.9

std::string read_process_file(uint32_t thread, const char* name) {
  OwnedFd fd(open(fmt::format("/proc/{}/{}", thread, name).c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  char buffer[4096];
  ssize_t got;
  while (fd.valid() && (got = read(fd.get(), buffer, sizeof(buffer))) > 0) {
    text.append(buffer, static_cast<size_t>(got));
  }
  return text;
}

// By the thread, whose descriptor table may be its own; before Linux 6.9 by its process.
OwnedFd open_process(uint32_t thread) {
  OwnedFd fd(static_cast<int>(syscall(SYS_pidfd_open, thread, kPidfdThread)));
  if (fd.valid() || errno != EINVAL) return fd;
  std::optional<long> process = parse_status_number(read_process_file(thread, "status"), "Tgid:");
  if (!process) return OwnedFd();
  return OwnedFd(static_cast<int>(syscall(SYS_pidfd_open, *process, 0)));
}

// The whole range or nothing.
long move_memory(int fd, bool is_read, uint64_t address, void* bytes, size_t count) {
  if (address > INT64_MAX - count) return -EFAULT;
  const off_t place = static_cast<off_t>(address);
  const ssize_t moved = is_read ? pread(fd, bytes, count, place) : pwrite(fd, bytes, count, place);
  return moved == static_cast<ssize_t>(count) ? 0 : -EFAULT;
}

// RLIMIT_FSIZE. A root without CAP_SYS_RESOURCE (of a container) may read others' limits only as
// text.
long file_size_limit(uint32_t thread, uint64_t* bytes) {
  rlimit limit{};
  if (prlimit(static_cast<pid_t>(thread), RLIMIT_FSIZE, nullptr, &limit) == 0) {
    *bytes = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
    return 0;
  }
  const std::string text = read_process_file(thread, "limits");
  constexpr std::string_view kName = "Max file size";
  const size_t line = text.find(kName);
  if (line == std::string::npos) return -EPERM;
  std::istringstream words(text.substr(line + kName.size()));
  std::string soft;
  words >> soft;
  if (soft == "unlimited") {
    *bytes = UINT64_MAX;
    return 0;
  }
  const auto [end, error] = std::from_chars(soft.data(), soft.data() + soft.size(), *bytes);
  return error == std::errc() && end == soft.data() + soft.size() ? 0 : -EPERM;
}

// While it lives, this thread is to filesystems who the caller is: what root may do and the caller
// may not (keep set-id bits, write what is not the caller's) is not done in its name. For a
// supervisor of root only; another has the caller's identity from the start, or cannot fetch its
// descriptors.
class ActingAs {
 public:
  explicit ActingAs(uint32_t thread) {
    if (geteuid() != 0) return;
    std::optional<Identity> theirs = parse_identity(read_process_file(thread, "status"));
    const auto own_thread = static_cast<uint32_t>(gettid());
    std::optional<Identity> ours = parse_identity(read_process_file(own_thread, "status"));
    if (!theirs || !ours) {
      failed_ = true;
      return;
    }
    if (*theirs == *ours) return;
    own_ = std::move(ours);
    failed_ = !become(*theirs);
  }
  ~ActingAs() {
    if (own_) become(*own_);
  }
  ActingAs(const ActingAs&) = delete;
  ActingAs& operator=(const ActingAs&) = delete;
  bool failed() const { return failed_; }

 private:
  // The raw calls are about this thread; those of the C library about all. Groups first and last:
  // they need the capability that is kept.
  static bool become(const Identity& identity) {
    const bool has_groups =
        syscall(SYS_setgroups, identity.groups.size(), identity.groups.data()) == 0;
    syscall(SYS_setfsgid, identity.group);
    syscall(SYS_setfsuid, identity.user);
    return has_groups && syscall(SYS_setfsgid, -1) == static_cast<long>(identity.group) &&
           syscall(SYS_setfsuid, -1) == static_cast<long>(identity.user);
  }

  std::optional<Identity> own_;
  bool failed_ = false;
};

CallOutcome answer(int64_t value) {
  return {false, value};
}

}  // namespace

std::optional<long> parse_status_number(const std::string& status, const std::string& name) {
  std::istringstream lines(status);
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with(name)) continue;
    std::istringstream words(line.substr(name.size()));
    long value = 0;
    if (words >> value) return value;
    return {};
  }
  return {};
}

std::optional<Identity> parse_identity(const std::string& status) {
  std::istringstream lines(status);
  std::string line;
  Identity identity;
  int found = 0;
  // The fourth number of a line is that for filesystems.
  const auto fourth = [](const std::string& numbers, uint32_t& value) {
    std::istringstream words(numbers);
    for (int i = 0; i < 4; i++) words >> value;
    return !words.fail();
  };
  while (std::getline(lines, line)) {
    if (line.starts_with("Uid:")) {
      found += fourth(line.substr(4), identity.user) ? 1 : 0;
    } else if (line.starts_with("Gid:")) {
      found += fourth(line.substr(4), identity.group) ? 1 : 0;
    } else if (line.starts_with("Groups:")) {
      std::istringstream words(line.substr(7));
      uint32_t group = 0;
      while (words >> group) identity.groups.push_back(group);
      found++;
    }
  }
  if (found != 3) return {};
  return identity;
}

std::optional<NotifiedCall> NotifiedCall::open(int listener, const seccomp_notif& notice) {
  if (notice.pid == 0) return {};
  OwnedFd process = open_process(notice.pid);
  OwnedFd memory(::open(fmt::format("/proc/{}/mem", notice.pid).c_str(), O_RDWR | O_CLOEXEC));
  uint64_t id = notice.id;
  if (ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) != 0) return {};
  return NotifiedCall(notice, std::move(process), std::move(memory));
}

long NotifiedCall::fetch(int64_t number) const {
  if (number < 0 || number > INT32_MAX) return -EBADF;
  const long fd = syscall(SYS_pidfd_getfd, process_.get(), static_cast<int>(number), 0);
  return fd >= 0 ? fd : -errno;
}

CloneSystem NotifiedCall::system() {
  CloneSystem system = own_process();  // what is done on descriptors is the same
  system.context = this;
  system.read_memory = [](void* context, uint64_t address, void* bytes, size_t count) {
    return move_memory(self(context).memory_.get(), true, address, bytes, count);
  };
  system.write_memory = [](void* context, uint64_t address, const void* bytes, size_t count) {
    return move_memory(self(context).memory_.get(), false, address, const_cast<void*>(bytes),
                       count);
  };
  system.fetch = [](void* context, int64_t number) { return self(context).fetch(number); };
  system.release = [](void*, int fd) { close(fd); };
  system.file_size_limit = [](void* context, uint64_t* bytes) {
    return file_size_limit(self(context).notice_.pid, bytes);
  };
  system.raise_file_size_signal = [](void* context) {
    syscall(SYS_pidfd_send_signal, self(context).process_.get(), SIGXFSZ, nullptr, 0);
  };
  return system;
}

CallOutcome NotifiedCall::clone() {
  const seccomp_data& data = notice_.data;
  const auto request = static_cast<uint32_t>(data.args[1]);
  const int64_t number = static_cast<int32_t>(data.args[0]);
  if (number == -1 && request == static_cast<uint32_t>(FICLONE) &&
      data.args[2] == kSupervisedQuestion) {
    return answer(kSupervisedAnswer);
  }
  // What cannot be fetched is none of ours to serve; the kernel then gives the right error.
  OwnedFd fd(static_cast<int>(fetch(number)));
  const CloneSystem calls = system();
  if (!fd.valid() || !memory_.valid() || !is_cofs_file(calls, fd.get())) return {};
  ActingAs caller(notice_.pid);
  if (caller.failed()) return answer(-EPERM);
  const long result = clone_ioctl(calls, fd.get(), request, data.args[2]);
  if (result == kServedByKernel) return {};
  return answer(result);
}

CallOutcome NotifiedCall::sync_one() {
  OwnedFd fd(static_cast<int>(fetch(static_cast<int32_t>(notice_.data.args[0]))));
  if (!fd.valid() || !is_cofs_file(own_process(), fd.get())) return {};
  // What the kernel holds goes to the server first.
  if (syncfs(fd.get()) != 0) return answer(-errno);
  return answer(sync_mount_of(own_process(), fd.get()));
}

CallOutcome NotifiedCall::perform() {
  switch (notice_.data.nr) {
    case SYS_ioctl: return clone();
    case SYS_syncfs: return sync_one();
    case SYS_sync:
      sync();
      sync_all_mounts(own_process());
      return answer(0);
    default: return {};
  }
}

}  // namespace cofs
