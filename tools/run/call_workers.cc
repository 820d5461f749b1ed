#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "tools/run/notified_call.h"
#include "tools/run/supervised.h"

namespace cofs {

namespace {

constexpr int kIdleWorkersMax = 4;

// Outlives its threads: they end with the process.
struct Workers {
  int listener = -1;
  std::atomic<int> idle = 0;
  seccomp_notif_sizes sizes = {};
};

void work(Workers& workers);

// A thread that cannot be had is asked for again by the next notice; those that are there go on.
void start_worker(Workers& workers) {
  workers.idle++;
  try {
    std::thread([&workers] { work(workers); }).detach();
  } catch (const std::system_error&) {
    workers.idle--;
  }
}

// The kernel's structures may be longer than those this was built with.
struct Packet {
  std::vector<uint64_t> words;
  explicit Packet(size_t bytes) : words((bytes + 7) / 8) {}
  template <class T>
  T& as() {
    return *reinterpret_cast<T*>(words.data());
  }
  void clear() { std::fill(words.begin(), words.end(), 0); }
};

void answer(Workers& workers, const seccomp_notif& notice, const CallOutcome& outcome) {
  Packet packet(std::max<size_t>(workers.sizes.seccomp_notif_resp, sizeof(seccomp_notif_resp)));
  auto& response = packet.as<seccomp_notif_resp>();
  response.id = notice.id;
  if (outcome.by_kernel) {
    response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
  } else if (outcome.value < 0) {
    response.error = static_cast<int32_t>(outcome.value);
  } else {
    response.val = outcome.value;
  }
  // ENOENT: the caller was killed meanwhile.
  ioctl(workers.listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

void work(Workers& workers) {
  Packet packet(std::max<size_t>(workers.sizes.seccomp_notif, sizeof(seccomp_notif)));
  while (true) {
    // RECV alone cannot tell a caller that went away from the end of all callers.
    pollfd ready = {workers.listener, POLLIN, 0};
    if (poll(&ready, 1, -1) < 0 && errno != EINTR) return;
    if ((ready.revents & POLLIN) == 0) {
      if ((ready.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0) return;
      continue;
    }
    packet.clear();
    if (ioctl(workers.listener, SECCOMP_IOCTL_NOTIF_RECV, &packet.as<seccomp_notif>()) != 0)
      continue;
    if (--workers.idle == 0) start_worker(workers);
    const seccomp_notif notice = packet.as<seccomp_notif>();
    std::optional<NotifiedCall> call = NotifiedCall::open(workers.listener, notice);
    answer(workers, notice, call ? call->perform() : CallOutcome());
    if (++workers.idle > kIdleWorkersMax) {
      workers.idle--;
      return;
    }
  }
}

}  // namespace

void start_call_workers(int listener) {
  static Workers workers;
  workers.listener = listener;
  if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &workers.sizes) != 0) workers.sizes = {};
  start_worker(workers);
  start_worker(workers);
}

}  // namespace cofs
