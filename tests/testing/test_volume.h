// TestVolume: a simulated machine with one cofs volume on one device: what the whole-filesystem tests
// mount, drive, crash and take apart again.
//
// It drives the world itself, step by step, so that an observer can look at the device after every step
// in which it was given work, and so that a hang ends the test with its seed. Lifetime: the device image
// outlives it by copy. Not for: judging answers (ModelState) or crashes (crash_sweep.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "fs/filesystem.h"
#include "tests/testing/model_fs.h"
#include "tests/testing/operation.h"
#include "tests/testing/sim_device.h"
#include "tests/testing/sim_world.h"

namespace cofs {

struct VolumeOptions {
  FormatOptions format;
  StoreOptions store;
  FsOptions fs;
  SimDeviceOptions device;
  uint64_t device_blocks = 1024;
  bool shuffle = true;
  uint64_t steps_max = 5'000'000;  // of one call: beyond it, it hangs

  // Everything tiny, so that segments, nodes, caches and logs run full within a few operations.
  static VolumeOptions tiny(uint64_t seed);
  std::string describe() const;
};

class TestVolume {
 public:
  TestVolume(uint64_t seed, SimImage image, const VolumeOptions& options);
  ~TestVolume();  // abandons what is still open
  TestVolume(const TestVolume&) = delete;

  // An image with a fresh, empty filesystem on it. Asserts that formatting works.
  static SimImage formatted(uint64_t seed, const VolumeOptions& options);

  // Store::open and FileSystem::open.
  Result<> open();
  Result<> close();
  void abandon();
  bool is_open() const { return fs_ != nullptr; }
  FileSystem& fs() { return *fs_; }

  // One operation, by this volume's open files.
  OperationResult perform(const Operation& operation);
  Result<ModelState> tree();
  // All problems that verify() finds, one per line; an error of verify() is one, too.
  std::string verify(bool read_data);
  // Waits until what goes on in the background has ended (a second of virtual time where the store
  // keeps timers).
  void settle();

  // Runs a task to its end. Asserts, with the seed, when it hangs.
  template <class T>
  T run(Task<T> task) {
    std::optional<T> value;
    bool done = false;
    world.executor.post(detach(finish<T>(std::move(task), &value, &done)));
    drive(done);
    return std::move(*value);
  }
  void run(Task<void> task) {
    bool done = false;
    world.executor.post(detach(finish_void(std::move(task), &done)));
    drive(done);
  }
  // Lets virtual time pass.
  void pass(uint64_t duration_ns);

  SimWorld world;
  SimDevice device;
  OpenFiles files;
  // Called after each step in which the device got or finished work.
  std::function<void()> observer;

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
  Environment environment();
  void drive(const bool& done);
  bool step();
  [[noreturn]] void hang(const char* what);

  const VolumeOptions options_;
  std::unique_ptr<FileSystem> fs_;
  uint64_t seen_operations_ = 0;
  size_t seen_in_flight_ = 0;
};

// Names the case that is being run in the message of any abort (an assertion of the code under test
// ends the whole program). The text is copied.
void set_current_case(const std::string& text);

}  // namespace cofs
