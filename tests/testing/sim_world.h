// SimWorld: everything around the core in a test, from one seed: executor, clock, random numbers,
// journal, buffers. It drives the coroutines; devices are added by constructing SimDevice on it.
//
//   SimWorld world(seed);
//   SimDevice device(world, SimImage(blocks), options);
//   auto result = world.run(store.something());
//
// A crash: device.power_off_at(n), run until everything has failed with kIo, destroy the store, and
// mount SimDevice(world, old.crash_image(seed, mode), options) again.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "offload/base/buffer.h"
#include "offload/base/checksum.h"
#include "offload/base/task.h"
#include "tests/testing/sim_clock.h"
#include "tests/testing/sim_executor.h"
#include "tests/testing/sim_random.h"

namespace cofs {

// Keeps the lines; tests count and search them.
class SimJournal final : public Journal {
 public:
  struct Line {
    Severity severity;
    std::string text;
  };

  explicit SimJournal(bool echo) : echo_(echo) {}
  void write(Severity severity, std::string_view line) override {
    lines_.push_back(Line{severity, std::string(line)});
    if (echo_) std::fprintf(stderr, "journal: %s\n", lines_.back().text.c_str());
  }
  void set_echo(bool echo) { echo_ = echo; }
  const std::vector<Line>& lines() const { return lines_; }
  // How many lines contain `text`.
  size_t count(std::string_view text) const {
    size_t n = 0;
    for (const Line& line : lines_) n += line.text.find(text) != std::string::npos ? 1 : 0;
    return n;
  }
  void clear() { lines_.clear(); }

 private:
  bool echo_;
  std::vector<Line> lines_;
};

struct SimWorldOptions {
  bool shuffle = true;        // any runnable task next, and events before tasks now and then
  bool echo_journal = false;  // also to stderr
  uint64_t run_limit_ns = 24ULL * 3600 * 1'000'000'000;  // of virtual time in one run(): then it hangs
};

struct SimWorld {
  explicit SimWorld(uint64_t world_seed, const SimWorldOptions& world_options = SimWorldOptions())
      : seed(world_seed),
        options(world_options),
        executor(mix64(world_seed, 1), world_options.shuffle),
        clock(executor),
        random(mix64(world_seed, 2)),
        journal(world_options.echo_journal),
        buffers(0),
        choices(mix64(world_seed, 3)) {}
  SimWorld(const SimWorld&) = delete;

  // Drives everything until `task` has finished, and returns its value. Aborts, with the seed, when
  // nothing is left that could ever resume it.
  template <class T>
  T run(Task<T> task) {
    bool done = false;
    if constexpr (std::is_void_v<T>) {
      executor.post(detach(finish_void(std::move(task), &done)));
      drive_until(done);
    } else {
      std::optional<T> value;
      executor.post(detach(finish<T>(std::move(task), &value, &done)));
      drive_until(done);
      return std::move(*value);
    }
  }

  // Lets this much virtual time pass, running all that happens in it.
  void run_for(uint64_t duration_ns) {
    const uint64_t deadline_ns = clock.monotonic_ns() + duration_ns;
    while (step_before(deadline_ns)) {
    }
    clock.pass_until(deadline_ns);
  }

  // Runs until nothing is runnable and no event is due. Not for a store with a periodic timer.
  void run_until_idle() {
    const uint64_t limit_ns = clock.monotonic_ns() + options.run_limit_ns;
    while (step_before(limit_ns)) {
    }
    if (!executor.idle() || clock.next_due()) give_up("never becomes idle");
  }

  // One task step or one event. False: nothing is left to do.
  bool step() { return step_before(UINT64_MAX); }

  // Abandons all tasks and events where they stand: their frames are never resumed nor freed (but
  // stay reachable, so a leak checker is content). Objects that they refer to must not be destroyed
  // either, which makes powering the device off the better crash. The world is dead afterwards.
  void drop_all() {
    static std::vector<std::coroutine_handle<>> abandoned_handles;
    static std::vector<std::function<void()>> abandoned_events;
    for (std::coroutine_handle<> handle : executor.abandon()) abandoned_handles.push_back(handle);
    for (auto& action : clock.abandon()) abandoned_events.push_back(std::move(action));
  }

  const uint64_t seed;
  const SimWorldOptions options;
  SimExecutor executor;
  SimClock clock;
  SimRandom random;    // for the core
  SimJournal journal;
  BufferPool buffers;  // all from the heap, where a sanitizer sees each
  SimRandom choices;   // the simulation's own, apart from what the core draws

 private:
  template <class T>
  static Task<void> finish(Task<T> task, std::optional<T>* value, bool* done) {
    T result = co_await std::move(task);
    value->emplace(std::move(result));
    *done = true;
  }
  static Task<void> finish_void(Task<void> task, bool* done) {
    co_await std::move(task);
    *done = true;
  }

  static constexpr uint64_t kDelayMaxNs = 1'000'000;  // of a runnable task by one event

  bool step_before(uint64_t deadline_ns) {
    const std::optional<uint64_t> due = clock.next_due();
    const bool event_possible = due && *due <= deadline_ns;
    // An event may come before tasks that are runnable, as completions do in real life; but no task is
    // kept from running for so long that a timeout would be its fault.
    const bool event_first = event_possible && *due - clock.monotonic_ns() < kDelayMaxNs &&
                             executor.shuffle() && choices.below(8) == 0;
    if (!event_first && executor.run_one()) return true;
    return event_possible && clock.advance();
  }

  void drive_until(const bool& done) {
    const uint64_t limit_ns = clock.monotonic_ns() + options.run_limit_ns;
    while (!done) {
      const bool moved = step_before(limit_ns);
      if (!moved) give_up(clock.next_due() ? "run() exceeds its limit of virtual time" : "deadlock");
    }
  }

  [[noreturn]] void give_up(const char* what) {
    std::fprintf(stderr, "simulation (seed %llu): %s: after %llu steps, at %llu ns\n",
                 static_cast<unsigned long long>(seed), what,
                 static_cast<unsigned long long>(executor.steps()),
                 static_cast<unsigned long long>(clock.monotonic_ns()));
    for (const SimJournal::Line& line : journal.lines()) {
      std::fprintf(stderr, "  journal: %s\n", line.text.c_str());
    }
    assertion_failed(what, __FILE__, __LINE__);
  }
};

}  // namespace cofs
