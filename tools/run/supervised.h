// Runs a command under a supervisor that serves the clone calls of it and all its descendants.
//
// Three processes. The caller's own stays in the foreground: it hands on signals, is stopped and
// continued by the supervisor as the command stops and continues, and ends as it ended. The
// supervisor is its child: parent of the command and reaper of its orphans, which is what kernels
// with restrictions on ptrace want of whoever fetches descriptors. It lives as long as anything
// that was started does, so that a server left behind keeps its system calls: a filter whose
// listener is gone answers ENOSYS. The command is the supervisor's child, in the caller's process
// group, with the caller's signals, descriptors and identity.
//
//   run_supervised.cc   the foreground process, and how the three are started
//   supervisor.cc       the supervisor's main thread
//   call_workers.cc     its other threads
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "offload/target.h"
#include "tools/command_line.h"

namespace cofs {

struct Command {
  std::vector<std::string> words;  // the program's name as given, and its arguments
  std::string path;                // the program's file
};

// As env(1), nohup(1), timeout(1) use them.
inline constexpr int kExitRunFailed = 125;
inline constexpr int kExitCannotExecute = 126;
inline constexpr int kExitNotFound = 127;

// Returns the exit status, or ends this process by the signal that ended the command.
int run_supervised(const Invocation& invocation, const Command& command, bool is_verbose);

// execv(3) of the command. Returns errno.
int execute(const Command& command);

// What the supervisor tells the foreground process.
struct SupervisorWord {
  enum class Kind : int32_t {
    kStarted,  // value: the command's pid
    kNote,     // text: a line for --verbose
    kFailed,   // text: why nothing was started; value: the exit status
    kEnded,  // value: as wait(2) gave it
  };
  Kind kind = Kind::kEnded;
  int32_t value = 0;
  char text[400] = {};
};

// The supervisor's life, from the fork on; does not return. `foreground` is a socket of packets:
// SupervisorWord there, signal numbers (int32_t) back. `inherited` is the signal mask of the
// command.
[[noreturn]] void supervise(const Command& command, OwnedFd foreground, const sigset_t& inherited);

// Threads that answer notices: one is always free to take the next, so that a call whose file is
// served by a descendant of the same command cannot keep that descendant's own calls waiting.
void start_call_workers(int listener);

}  // namespace cofs
