#include "tools/job_client.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <ctime>

namespace cofs {

namespace {

constexpr std::chrono::milliseconds kFirstLook{10};  // short jobs are over at once
constexpr std::chrono::milliseconds kLookEvery{250};

volatile std::sig_atomic_t interrupted = 0;

extern "C" void note_interrupt(int) { interrupted = 1; }

// SIGINT sets a flag, as long as this lives; it also cuts sleeps short.
class InterruptNote {
 public:
  InterruptNote() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = note_interrupt;
    sigaction(SIGINT, &action, &former_);
  }
  ~InterruptNote() { sigaction(SIGINT, &former_, nullptr); }
  InterruptNote(const InterruptNote&) = delete;

 private:
  struct sigaction former_ {};
};

}  // namespace

std::expected<void, std::string> job_call(const std::string& path, unsigned long command,
                                          void* argument) {
  std::expected<MountedVolume, std::string> volume = MountedVolume::open(path);
  if (!volume) return std::unexpected(volume.error());
  switch (const int error = volume->call(command, argument)) {
    case 0: return {};
    case EPERM: return std::unexpected("only root may do this");
    case EBUSY: return std::unexpected("one is running already; --status shows it, --cancel ends it");
    case EROFS: return std::unexpected("the volume is mounted read-only");
    case ESRCH: return std::unexpected("none is running");
    case EIO: return std::unexpected("the filesystem has stopped; the server's log says why");
    default: return std::unexpected(ioctl_words(error));
  }
}

ProgressLine::ProgressLine() : on_terminal_(isatty(STDERR_FILENO) == 1) {}

void ProgressLine::show(const std::string& text) {
  if (!on_terminal_) return;
  const size_t erased = text.size() < shown_ ? shown_ - text.size() : 0;
  fmt::print(stderr, "\r{}{}", text, std::string(erased, ' '));
  std::fflush(stderr);
  shown_ = text.size();
}

void ProgressLine::clear() {
  if (shown_ == 0) return;
  fmt::print(stderr, "\r{}\r", std::string(shown_, ' '));
  std::fflush(stderr);
  shown_ = 0;
}

std::expected<FollowEnd, std::string> follow_job(
    const std::function<std::expected<bool, std::string>()>& look) {
  const InterruptNote note;
  std::chrono::milliseconds wait = kFirstLook;
  while (interrupted == 0) {
    const std::expected<bool, std::string> over = look();
    if (!over) return std::unexpected(over.error());
    if (*over) return FollowEnd::kOver;
    // Not std::this_thread::sleep_for: that sleeps on after a signal.
    const timespec pause{0, std::chrono::nanoseconds(wait).count()};
    nanosleep(&pause, nullptr);
    wait = std::min(2 * wait, kLookEvery);
  }
  return FollowEnd::kInterrupted;
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<uint64_t>(std::max(0.0, std::round(seconds)));
  const uint64_t hours = whole / 3600;
  const uint64_t minutes = whole / 60 % 60;
  if (hours == 0) return fmt::format("{}:{:02}", minutes, whole % 60);
  return fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60);
}

}  // namespace cofs
