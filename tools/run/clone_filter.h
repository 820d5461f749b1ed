// The seccomp filter that has a supervisor asked about FICLONE, FICLONERANGE, FIDEDUPERANGE,
// FIEMAP, sync and syncfs, and lets everything else pass; all calls of other architectures (i386,
// x32) too.
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "offload/target.h"

namespace cofs {

struct FilterOutcome {
  OwnedFd listener;
  bool gave_up_privileges =
      false;  // no_new_privs had to be set: set-id bits have no effect from here on
};

// Puts the filter on the calling thread, for good, for it and all it starts. Needs a process of one
// thread. Errors: one line for a person, saying what else to do.
std::expected<FilterOutcome, std::string> install_clone_filter();

// True if a supervisor of ours answers this process's calls already.
bool is_supervised();

// The question of is_supervised(): FICLONE on descriptor -1 with this argument, and its answer.
// Without a supervisor it is EBADF.
inline constexpr uint64_t kSupervisedQuestion = 0x73666f63;
inline constexpr int64_t kSupervisedAnswer = 0x636f6673;

}  // namespace cofs
