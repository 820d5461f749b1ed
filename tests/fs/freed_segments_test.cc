// Segments that became free: when they may be written again.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "blockmap/store.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kFileBytes = 2 * kBlockBytes;
constexpr uint64_t kSecondNs = 1'000'000'000;

struct File {
  uint64_t ino = 0;
  std::string bytes;
};

Result<> write_file(TestVolume& volume, File& file, char fill) {
  const std::string bytes(kFileBytes, fill);
  auto written = volume.run(volume.fs().write(
      file.ino,
      WriteData::fill(volume.world.buffers, 0, bytes.data(), static_cast<uint32_t>(bytes.size())),
      false, false));
  if (written) file.bytes = bytes;
  return written;
}

void expect_contents(TestVolume& volume, const std::map<std::string, File>& files) {
  for (const auto& [name, file] : files) {
    const auto data = volume.run(volume.fs().read(file.ino, 0, kFileBytes));
    ASSERT_TRUE(data) << name << ": " << describe(data.error());
    ASSERT_EQ(data->length, kFileBytes);
    EXPECT_EQ(std::memcmp(data->data(), file.bytes.data(), kFileBytes), 0) << name;
  }
}

// A log segment that a checkpoint gave up keeps until that checkpoint is durable, also where the data in
// it dies in between, and commits overtake the checkpoint.
TEST(FreedSegments, LogSegmentsWaitForTheirCheckpoint) {
  uint64_t states = 0;
  for (uint64_t seed = 0; seed < 40; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options;
    options.device_blocks = 8192 + 40;
    options.format.segment_blocks = 16;
    options.format.node_bytes = 4096;
    options.format.log_limit_blocks = 256;
    options.store.background = false;
    options.store.dirty_nodes_max = 64;
    options.device.seed = seed;
    auto volume =
        std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    ASSERT_TRUE(volume->open());
    // Small files whose data goes into the log with the commit.
    std::map<std::string, File> files;
    for (int i = 0; i < 12; i++) {
      const std::string name = "f" + std::to_string(i);
      bool created = false;
      const auto inode = volume->run(volume->fs().create(ondisk::kRootInode, name, S_IFREG | 0644,
                                                         Caller(), true, &created));
      ASSERT_TRUE(inode);
      files[name].ino = inode->ino;
      ASSERT_TRUE(write_file(*volume, files[name], static_cast<char>('a' + i)));
      ASSERT_TRUE(volume->run(volume->fs().sync()));
    }
    bool checkpointing = true;
    const auto checkpointer = [](TestVolume* v, bool* running) -> Task<> {
      auto done = co_await v->fs().store().checkpoint();
      EXPECT_TRUE(done);
      *running = false;
    };
    volume->device.delay_writes_at(volume->device.operation_count() + 3, 8, kSecondNs);
    spawn(volume->world.executor, checkpointer(volume.get(), &checkpointing));
    volume->pass(200'000);
    for (int i = 0; i < 40 && checkpointing; i++) {
      ASSERT_TRUE(write_file(*volume, files["f" + std::to_string(i % 12)], static_cast<char>('A' + i)));
      ASSERT_TRUE(volume->run(volume->fs().sync()));
      ASSERT_TRUE(volume->run(volume->fs().sync()));
      if (!checkpointing) break;
      const SimImage image = volume->device.crash_image(static_cast<uint64_t>(i), CrashMode::kDropAll);
      TestVolume recovered(seed, image, options);
      const auto opened = recovered.open();
      EXPECT_TRUE(opened) << describe(opened.error());
      if (opened) {
        expect_contents(recovered, files);
        EXPECT_EQ(recovered.verify(true), "");
      }
      states++;
    }
    volume->settle();
    expect_contents(*volume, files);
    EXPECT_EQ(volume->verify(true), "");
    ASSERT_TRUE(volume->close());
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(states, 40U);
}

}  // namespace
}  // namespace cofs
