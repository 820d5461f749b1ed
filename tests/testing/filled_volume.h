// FilledVolume: a TestVolume with files of random bytes on it whose contents are known, for tests of what
// goes on below files: garbage collection, scrubbing, jobs.
//
// A test fixture: failures inside are gtest's. Not for: judging single operations (ModelState).
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "tests/testing/test_volume.h"

namespace cofs {

class FilledVolume : public testing::Test {
 public:
  struct File {
    uint64_t ino = 0;
    std::string bytes;
  };

  // Small segments and nodes, 32 MiB, nothing in the background; with or without a copy command.
  static VolumeOptions small_options(uint64_t seed, bool device_copies);

  // A fresh volume, or that of an image.
  void mount(uint64_t seed, const VolumeOptions& options);
  void mount_image(uint64_t seed, const SimImage& image, const VolumeOptions& options);
  FileSystem& fs() { return volume->fs(); }
  Store& store() { return volume->fs().store(); }
  const StoreCounters& counters() { return store().counters(); }

  std::string random_bytes(uint64_t length);
  Result<> write_at(const std::string& name, uint64_t at, const std::string& bytes);
  Result<> create(const std::string& name, uint64_t blocks);
  void remove(const std::string& name);
  // Many small files, every `keep`-th of which stays: f0, f<keep>, ….
  void fragment(int count, uint64_t blocks, int keep);
  std::string read_file(const File& file);
  void expect_contents();
  void expect_clean_after_remount();
  // The physical block that holds this block of the file, looked for by its bytes; 0: none does.
  uint64_t place_of(const std::string& name, uint64_t block);

  std::unique_ptr<TestVolume> volume;
  SimRandom random{4711};
  std::map<std::string, File> files;
};

}  // namespace cofs
