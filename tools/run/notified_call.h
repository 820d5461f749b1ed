// A system call that the supervisor was asked about, and the thread that makes it: whose
// descriptors it uses, whose memory, whose identity and limits.
//
// Everything is bound to the process before the call is known to be still waiting: a pidfd, and the
// open memory. After that no number of the caller is looked up anywhere but in its own descriptor
// table, and each is fetched once; checks are on what was fetched. So a caller that changes its
// descriptors or arguments meanwhile gets what it would have got by calling a moment later.
#pragma once

#include <linux/seccomp.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "offload/target.h"
#include "tools/ficlone/clone_calls.h"

namespace cofs {

struct CallOutcome {
  bool by_kernel = true;  // the caller's own call is to be made
  int64_t value = 0;      // else: what it returns, or a negative errno
};

class NotifiedCall {
 public:
  // Nothing if the caller is gone, or the kernel has not told who it is.
  static std::optional<NotifiedCall> open(int listener, const seccomp_notif& notice);

  CallOutcome perform();

 private:
  NotifiedCall(const seccomp_notif& notice, OwnedFd process, OwnedFd memory)
      : notice_(notice), process_(std::move(process)), memory_(std::move(memory)) {}

  CloneSystem system();
  CallOutcome clone();
  CallOutcome sync_one();
  long fetch(int64_t number) const;

  static NotifiedCall& self(void* context) { return *static_cast<NotifiedCall*>(context); }

  seccomp_notif notice_;
  OwnedFd process_;
  OwnedFd memory_;
};

// Who a thread is to filesystems.
struct Identity {
  uint32_t user = 0;
  uint32_t group = 0;
  std::vector<uint32_t> groups;
  bool operator==(const Identity&) const = default;
};

// Of /proc/TID/status. Nothing if the text is not as expected.
std::optional<Identity> parse_identity(const std::string& status);
// The number after `name` (such as "Tgid:") at the beginning of a line.
std::optional<long> parse_status_number(const std::string& status, const std::string& name);

}  // namespace cofs
