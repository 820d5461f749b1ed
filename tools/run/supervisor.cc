#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "tools/run/clone_filter.h"
#include "tools/run/supervised.h"

namespace cofs {

namespace {

// What the command's process tells the supervisor before it becomes the command.
struct FilterWord {
  int32_t is_there = 0;  // then the listener comes with it
  int32_t gave_up_privileges = 0;
  char text[400] = {};  // else why not
};

void put_text(char (&place)[400], const std::string& text) {
  const size_t count = std::min(text.size(), sizeof(place) - 1);
  std::memcpy(place, text.data(), count);
  place[count] = '\0';
}

void tell(int foreground, SupervisorWord::Kind kind, int32_t value, const std::string& text = {}) {
  SupervisorWord word;
  word.kind = kind;
  word.value = value;
  put_text(word.text, text);
  send(foreground, &word, sizeof(word), MSG_NOSIGNAL);  // it may have been killed; we go on
}

bool send_filter(int socket, const FilterWord& word, int listener) {
  iovec part = {const_cast<FilterWord*>(&word), sizeof(word)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (listener >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(head), &listener, sizeof(listener));
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL) == sizeof(word);
}

OwnedFd receive_filter(int socket, FilterWord& word) {
  iovec part = {&word, sizeof(word)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  const cmsghdr* head = got == sizeof(word) ? CMSG_FIRSTHDR(&message) : nullptr;
  if (got != sizeof(word)) {
    word = {};
    put_text(word.text, "the command's process ended before it was the command");
  }
  if (head == nullptr || head->cmsg_type != SCM_RIGHTS) return OwnedFd();
  int listener = -1;
  std::memcpy(&listener, CMSG_DATA(head), sizeof(listener));
  return OwnedFd(listener);
}

// The command's process, until it is the command.
[[noreturn]] void become_command(const Command& command, int supervisor,
                                 const sigset_t& inherited) {
  FilterWord word;
  std::expected<FilterOutcome, std::string> filter = install_clone_filter();
  if (filter) {
    word.is_there = 1;
    word.gave_up_privileges = filter->gave_up_privileges ? 1 : 0;
  } else {
    put_text(word.text, filter.error());
  }
  char go = 0;
  if (!send_filter(supervisor, word, filter ? filter->listener.get() : -1) || !filter ||
      recv(supervisor, &go, 1, 0) != 1) {
    _exit(kExitRunFailed);
  }
  filter->listener = OwnedFd();
  sigprocmask(SIG_SETMASK, &inherited, nullptr);
  const int32_t error = execute(command);
  send(supervisor, &error, sizeof(error), MSG_NOSIGNAL);
  _exit(kExitRunFailed);
}

// Whether this process may do what it is for. Empty, or why not.
std::string why_not_fetch(pid_t command, int its_socket) {
  OwnedFd process(static_cast<int>(syscall(SYS_pidfd_open, command, 0)));
  OwnedFd fetched(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), its_socket, 0)));
  if (fetched.valid()) return {};
  const int error = errno;
  std::ifstream file("/proc/sys/kernel/yama/ptrace_scope");
  int scope = 0;
  if (file >> scope && scope >= 2) {
    return fmt::format(
        "kernel.yama.ptrace_scope = {} forbids to fetch the command's descriptors; "
        "{}use --method preload",
        scope, scope == 2 ? "run it as root, or " : "");
  }
  return fmt::format("cannot fetch the command's descriptors: {}; use --method preload",
                     strerror(error));
}

// Keeps three descriptors, and nothing of the caller's: no pipe whose reader waits for its end, no
// terminal, no directory.
void let_go_of_everything(std::vector<int> kept) {
  if (chdir("/") != 0) return;
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd <= 2 && null >= 0; fd++) dup2(null, fd);
  std::ranges::sort(kept);
  unsigned from = 3;
  for (int fd : kept) {
    const auto number = static_cast<unsigned>(fd);
    if (number > from) syscall(SYS_close_range, from, number - 1, 0);
    from = number + 1;
  }
  syscall(SYS_close_range, from, ~0u, 0);
}

class Supervisor {
 public:
  Supervisor(pid_t command, OwnedFd foreground_process, OwnedFd foreground, OwnedFd listener,
             OwnedFd children)
      : command_(command),
        foreground_process_(std::move(foreground_process)),
        foreground_(std::move(foreground)),
        listener_(std::move(listener)),
        children_(std::move(children)) {}

  // Until the command is reaped and nobody is left whom the filter concerns.
  void run() {
    bool has_users = true;
    while (has_users || command_ > 0) {
      pollfd ready[3] = {{children_.get(), POLLIN, 0},
                         {foreground_.get(), POLLIN, 0},
                         {has_users ? listener_.get() : -1, 0, 0}};
      if (poll(ready, 3, -1) < 0) continue;
      if (ready[0].revents != 0) {
        signalfd_siginfo info;
        [[maybe_unused]] ssize_t got = read(children_.get(), &info, sizeof(info));
      }
      if (ready[1].revents != 0) hand_on_signal();
      if ((ready[2].revents & POLLHUP) != 0) has_users = false;
      reap();
    }
  }

 private:
  void hand_on_signal() {
    int32_t number = 0;
    if (recv(foreground_.get(), &number, sizeof(number), 0) == sizeof(number)) {
      // Not reaped yet, so the pid is still the command's.
      if (command_ > 0) kill(command_, number);
    } else {
      foreground_ = OwnedFd();  // killed: the command goes on
    }
  }

  // The foreground stops and continues as the command does. Both are signals of this thread, so the
  // last one counts, whatever it was doing.
  void signal_foreground(int number) {
    if (foreground_.valid()) {
      syscall(SYS_pidfd_send_signal, foreground_process_.get(), number, nullptr, 0);
    }
  }

  void reap() {
    int status = 0;
    pid_t child;
    while ((child = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED)) > 0) {
      if (child != command_) continue;
      if (WIFSTOPPED(status)) {
        signal_foreground(SIGSTOP);
      } else if (WIFCONTINUED(status)) {
        signal_foreground(SIGCONT);
      } else {
        command_ = 0;
        tell(foreground_.get(), SupervisorWord::Kind::kEnded, status);
        foreground_ = OwnedFd();
      }
    }
  }

  pid_t command_;
  OwnedFd foreground_process_;  // a pidfd
  OwnedFd foreground_;
  OwnedFd listener_;
  OwnedFd children_;
};

}  // namespace

void supervise(const Command& command, OwnedFd foreground, const sigset_t& inherited) {
  using Kind = SupervisorWord::Kind;
  const auto fail = [&foreground](int status, const std::string& reason) {
    tell(foreground.get(), Kind::kFailed, status, reason);
    _exit(status);
  };
  OwnedFd foreground_process(static_cast<int>(syscall(SYS_pidfd_open, getppid(), 0)));
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    fail(kExitRunFailed, fmt::format("socketpair: {}", strerror(errno)));
  }
  OwnedFd own_end(ends[0]);
  OwnedFd its_end(ends[1]);
  const pid_t child = fork();
  if (child < 0) fail(kExitRunFailed, fmt::format("fork: {}", strerror(errno)));
  if (child == 0) {
    own_end = OwnedFd();
    foreground = OwnedFd();
    become_command(command, its_end.get(), inherited);
  }
  // Signals of the terminal are for the command alone.
  setsid();
  prctl(PR_SET_NAME, "cofs-run");
  const int its_socket = its_end.get();
  its_end = OwnedFd();

  FilterWord word;
  OwnedFd listener = receive_filter(own_end.get(), word);
  if (word.is_there == 0 || !listener.valid()) fail(kExitRunFailed, word.text);
  if (std::string reason = why_not_fetch(child, its_socket); !reason.empty()) {
    fail(kExitRunFailed, reason);
  }
  if (word.gave_up_privileges != 0) {
    tell(foreground.get(), Kind::kNote, 0,
         "set-id programs such as sudo have no effect under this");
  }
  sigset_t child_signal;
  sigemptyset(&child_signal);
  sigaddset(&child_signal, SIGCHLD);
  OwnedFd children(signalfd(-1, &child_signal, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!children.valid()) fail(kExitRunFailed, fmt::format("signalfd: {}", strerror(errno)));
  tell(foreground.get(), Kind::kStarted, child);
  int32_t error = 0;
  if (send(own_end.get(), "g", 1, MSG_NOSIGNAL) != 1) error = EPIPE;
  // Its end closes when the command is there.
  if (recv(own_end.get(), &error, sizeof(error), 0) == sizeof(error) && error != 0) {
    fail(error == ENOENT ? kExitNotFound : kExitCannotExecute,
         fmt::format("{}: {}", command.words.front(), strerror(error)));
  }
  own_end = OwnedFd();
  let_go_of_everything(
      {foreground_process.get(), foreground.get(), listener.get(), children.get()});
  // Not before: what they open must not be let go of. Calls made meanwhile wait.
  start_call_workers(listener.get());
  Supervisor(child, std::move(foreground_process), std::move(foreground), std::move(listener),
             std::move(children))
      .run();
  _exit(0);
}

}  // namespace cofs
