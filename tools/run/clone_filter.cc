#include "tools/run/clone_filter.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fiemap.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

namespace cofs {

namespace {

std::unexpected<std::string> failure(const char* what, int error) {
  return std::unexpected(fmt::format("{}: {}; use --method preload", what, strerror(error)));
}

// As a program of the kernel's filter machine: libseccomp 2.5 cannot load one with the flag that is
// needed here.
std::expected<std::vector<sock_filter>, std::string> filter_program() {
  std::unique_ptr<void, void (*)(void*)> filter(seccomp_init(SCMP_ACT_ALLOW), seccomp_release);
  if (!filter) return failure("seccomp_init", ENOMEM);
  int result = seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ALLOW);
  for (uint64_t request : {FICLONE, FICLONERANGE, FIDEDUPERANGE, FS_IOC_FIEMAP}) {
    if (result != 0) break;
    // The kernel looks at 32 bits of it.
    result = seccomp_rule_add(filter.get(), SCMP_ACT_NOTIFY, SCMP_SYS(ioctl), 1,
                              SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, request));
  }
  if (result == 0) result = seccomp_rule_add(filter.get(), SCMP_ACT_NOTIFY, SCMP_SYS(sync), 0);
  if (result == 0) result = seccomp_rule_add(filter.get(), SCMP_ACT_NOTIFY, SCMP_SYS(syncfs), 0);
  if (result != 0) return failure("seccomp rules", -result);

  OwnedFd file(memfd_create("filter", MFD_CLOEXEC));
  if (!file.valid()) return failure("memfd_create", errno);
  result = seccomp_export_bpf(filter.get(), file.get());
  if (result != 0) return failure("seccomp_export_bpf", -result);
  struct stat info;
  if (fstat(file.get(), &info) != 0) return failure("fstat", errno);
  std::vector<sock_filter> program(static_cast<size_t>(info.st_size) / sizeof(sock_filter));
  const ssize_t bytes = static_cast<ssize_t>(program.size() * sizeof(sock_filter));
  if (pread(file.get(), program.data(), static_cast<size_t>(bytes), 0) != bytes) {
    return failure("reading the filter", EIO);
  }
  return program;
}

int load(const sock_fprog& program) {
  // The second flag: a call that was taken up goes to its end, whatever signals the caller gets.
  // Without it a handler would undo calls that took effect, and repeat them for ever with
  // SA_RESTART.
  return static_cast<int>(
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
              SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program));
}

}  // namespace

std::expected<FilterOutcome, std::string> install_clone_filter() {
  std::expected<std::vector<sock_filter>, std::string> code = filter_program();
  if (!code) return std::unexpected(code.error());
  const sock_fprog program = {static_cast<unsigned short>(code->size()), code->data()};
  FilterOutcome outcome;
  int listener = load(program);
  if (listener < 0 && errno == EACCES) {
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failure("no_new_privs", errno);
    outcome.gave_up_privileges = true;
    listener = load(program);
  }
  if (listener >= 0) {
    outcome.listener = OwnedFd(listener);
    return outcome;
  }
  switch (errno) {
    case EBUSY:
      return std::unexpected(
          "another supervisor (of a container, say) is told of this process's system calls "
          "already, and there can be one only; use --method preload");
    case EINVAL:
      return std::unexpected(
          "this kernel's seccomp cannot keep calls from being interrupted (Linux 5.19 can); "
          "use --method preload");
    default: return failure("seccomp", errno);
  }
}

bool is_supervised() {
  return syscall(SYS_ioctl, -1, FICLONE, kSupervisedQuestion) == kSupervisedAnswer;
}

}  // namespace cofs
