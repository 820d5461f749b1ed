#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tools/run/supervised.h"

namespace cofs {

namespace {

// Those that someone may send us for the command. Faults are our own, SIGCHLD is the supervisor's.
sigset_t handed_on_signals() {
  sigset_t signals;
  sigfillset(&signals);
  for (int number : {SIGCHLD, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) {
    sigdelset(&signals, number);
  }
  return signals;
}

// Ends as the command ended.
int end_as(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  const int number = WTERMSIG(status);
  rlimit no_core = {0, 0};  // the command wrote its own
  setrlimit(RLIMIT_CORE, &no_core);
  signal(number, SIG_DFL);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, number);
  sigprocmask(SIG_UNBLOCK, &one, nullptr);
  kill(getpid(), number);
  return 128 + number;
}

class Foreground {
 public:
  Foreground(const Invocation& invocation, bool is_verbose, pid_t supervisor_pid,
             OwnedFd supervisor, OwnedFd signals)
      : invocation_(invocation),
        is_verbose_(is_verbose),
        supervisor_pid_(supervisor_pid),
        supervisor_(std::move(supervisor)),
        signals_(std::move(signals)) {}

  int run() {
    while (true) {
      pollfd ready[2] = {{signals_.get(), POLLIN, 0}, {supervisor_.get(), POLLIN, 0}};
      if (poll(ready, 2, -1) < 0) continue;
      if ((ready[0].revents & POLLIN) != 0) hand_on_signal();
      if (ready[1].revents == 0) continue;
      SupervisorWord word;
      if (recv(supervisor_.get(), &word, sizeof(word), 0) != sizeof(word))
        return outlive_supervisor();
      word.text[sizeof(word.text) - 1] = '\0';
      switch (word.kind) {
        case SupervisorWord::Kind::kStarted: command_ = word.value; break;
        case SupervisorWord::Kind::kNote:
          if (is_verbose_) print_error(invocation_, {}, word.text);
          break;
        case SupervisorWord::Kind::kFailed:
          print_error(invocation_, {}, word.text);
          return word.value;
        case SupervisorWord::Kind::kEnded: return end_as(word.value);
      }
    }
  }

 private:
  // What the terminal sends it sends to the command too. What the supervisor sends comes from the
  // command: handed back, it would continue a command that was stopped again meanwhile.
  void hand_on_signal() {
    signalfd_siginfo info;
    if (read(signals_.get(), &info, sizeof(info)) != sizeof(info)) return;
    if (info.ssi_code == SI_KERNEL || static_cast<pid_t>(info.ssi_pid) == supervisor_pid_) return;
    const auto number = static_cast<int32_t>(info.ssi_signo);
    send(supervisor_.get(), &number, sizeof(number), MSG_NOSIGNAL);
  }

  // The command is ours to wait for then.
  int outlive_supervisor() {
    print_error(invocation_, {},
                "the supervisor is gone: from here on the command's clone calls fail with ENOSYS");
    int status = 0;
    pid_t child;
    while ((child = waitpid(-1, &status, 0)) > 0 || errno == EINTR) {
      if (child > 0 && child == command_) return end_as(status);
    }
    return kExitRunFailed;
  }

  const Invocation& invocation_;
  bool is_verbose_;
  pid_t supervisor_pid_;
  OwnedFd supervisor_;
  OwnedFd signals_;
  pid_t command_ = 0;
};

}  // namespace

int execute(const Command& command) {
  std::vector<char*> words;
  for (const std::string& word : command.words) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  // As the shell does: what is no program for the kernel is a script.
  execvp(command.path.c_str(), words.data());
  return errno;
}

int run_supervised(const Invocation& invocation, const Command& command, bool is_verbose) {
  const auto fail = [&invocation](const char* what) {
    print_error(invocation, {}, fmt::format("{}: {}", what, strerror(errno)));
    return kExitRunFailed;
  };
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return fail("socketpair");
  OwnedFd own_end(ends[0]);
  OwnedFd its_end(ends[1]);
  const sigset_t signals = handed_on_signals();
  sigset_t inherited;
  sigprocmask(SIG_BLOCK, &signals, &inherited);
  OwnedFd incoming(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!incoming.valid()) return fail("signalfd");
  // Should the supervisor be killed, the command comes to us.
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  fflush(nullptr);
  const pid_t supervisor = fork();
  if (supervisor < 0) return fail("fork");
  if (supervisor == 0) {
    own_end = OwnedFd();
    incoming = OwnedFd();
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, nullptr);
    supervise(command, std::move(its_end), inherited);
  }
  its_end = OwnedFd();
  return Foreground(invocation, is_verbose, supervisor, std::move(own_end), std::move(incoming))
      .run();
}

}  // namespace cofs
