// The client side of jobs in a server (fs/cofs_ioctl.h, "Jobs"): what `cofs gc` and `cofs scrub` share.
//
// A job belongs to the server: a command starts it and may follow it, and the job goes on without the
// command. While it is followed nothing of the mount is kept open between two looks, so that it can be
// unmounted.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <string>

#include "tools/mounted.h"

namespace cofs {

// One private ioctl on a file or directory of the mount. Errors: one line for a person.
std::expected<void, std::string> job_call(const std::string& path, unsigned long command,
                                          void* argument);

// A line on stderr that is written over and over, if that is a terminal; else nothing.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  void show(const std::string& text);
  void clear();

 private:
  const bool on_terminal_;
  size_t shown_ = 0;  // characters
};

enum class FollowEnd : uint8_t {
  kOver,         // look() said so
  kInterrupted,  // by SIGINT: the job goes on
};
// Calls look() now and then until it says that the job is over. While this runs, SIGINT only ends it.
// Errors: those of look().
std::expected<FollowEnd, std::string> follow_job(
    const std::function<std::expected<bool, std::string>()>& look);

// "1:05:09", "0:12"
std::string duration_text(double seconds);

}  // namespace cofs
