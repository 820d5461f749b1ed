// Clones and dedupes on a volume with one unreadable tree node, each node in turn: they succeed or answer an
// error, and never stop the store.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = kBlockBytes;
constexpr uint64_t kFileBlocks = 600;
const Caller kRoot(0, 0, 022);

VolumeOptions options_of_test() {
  VolumeOptions options;
  options.device_blocks = 16'384;
  options.format.segment_blocks = 64;
  options.format.node_bytes = 4096;
  options.store.background = false;
  options.fs.clone_mode = CloneMode::kShare;
  return options;
}

class Volume {
 public:
  explicit Volume(const SimImage& image)
      : volume(std::make_unique<TestVolume>(3, image, options_of_test())) {}

  uint64_t create(const std::string& name) {
    bool created = false;
    return volume->run(fs().create(ondisk::kRootInode, name, S_IFREG | 0644, kRoot, true, &created))
        ->ino;
  }
  void write(uint64_t ino, uint64_t block, const std::string& bytes) {
    ASSERT_TRUE(volume->run(
        fs().write(ino, WriteData::fill(volume->world.buffers, block * kBlock, bytes.data(),
                                        static_cast<uint32_t>(bytes.size())), false, false)));
  }
  void sync() { ASSERT_TRUE(volume->run(fs().sync())); }
  Result<CopyResult> copy(uint64_t source, uint64_t target, uint64_t block, uint64_t count) {
    return volume->run(
        fs().copy_range(source, block * kBlock, target, block * kBlock, count * kBlock));
  }
  Result<DedupeResult> dedupe(uint64_t source, uint64_t target) {
    OpenFile from;
    from.handle = 1;
    from.ino = source;
    from.readable = true;
    OpenFile to;
    to.handle = 2;
    to.ino = target;
    to.readable = to.writable = true;
    auto token = volume->run(fs().make_dedupe_token(from));
    if (!token) return fail(token.error());
    DedupeRequest request;
    request.token = *token;
    request.length = kFileBlocks * kBlock;
    return volume->run(fs().dedupe(to, request, kRoot));
  }
  FileSystem& fs() { return volume->fs(); }

  std::unique_ptr<TestVolume> volume;
};

std::string block_of(uint64_t file, uint64_t block) {
  std::string bytes(kBlock, static_cast<char>(file));
  std::memcpy(bytes.data(), &block, sizeof(block));
  return bytes;
}

// Every block an extent of its own, and many a vmap record.
void write_scattered(Volume& v, uint64_t ino, uint64_t content) {
  for (const uint64_t first : {0, 1, 2}) {
    for (uint64_t block = first; block < kFileBlocks; block += 3) {
      v.write(ino, block, block_of(content, block));
    }
    v.sync();
  }
  for (uint64_t block = 2; block < kFileBlocks; block += 6) v.write(ino, block, block_of(content, block));
  v.sync();
}

struct Files {
  uint64_t source = 0;
  uint64_t target = 0;
  uint64_t twin = 0;
};

// A source that is shared in part, a target of all kinds of blocks, a twin of the source in other blocks.
SimImage prepared(Files* files) {
  const VolumeOptions options = options_of_test();
  Volume v(TestVolume::formatted(3, options));
  EXPECT_TRUE(v.volume->open());
  files->source = v.create("source");
  files->target = v.create("target");
  files->twin = v.create("twin");
  const uint64_t other = v.create("other");
  write_scattered(v, files->source, 1);
  write_scattered(v, files->target, 2);
  write_scattered(v, other, 3);
  write_scattered(v, files->twin, 1);
  EXPECT_TRUE(v.copy(files->source, other, 100, 50));
  EXPECT_TRUE(v.copy(other, files->target, 50, 200));
  EXPECT_TRUE(v.copy(other, v.create("third"), 0, kFileBlocks));
  EXPECT_TRUE(v.volume->run(
      v.fs().allocate(files->target, AllocateMode::kPunchHole, 300 * kBlock, 50 * kBlock)));
  EXPECT_TRUE(v.volume->close());
  v.volume->settle();
  return v.volume->device.image();
}

// Where each tree node lies, both copies (as some that are dead).
std::vector<std::vector<uint64_t>> node_places(const SimImage& image) {
  std::map<std::string, std::vector<uint64_t>> by_content;
  for (uint64_t block = 0; block < image.block_count(); block++) {
    const SimPageRef page = image.page(block);
    if (page == nullptr || std::memcmp(page->bytes.data(), "COFNODE1", 8) != 0) continue;
    by_content[std::string(reinterpret_cast<const char*>(page->bytes.data()), kBlock)].push_back(block);
  }
  std::vector<std::vector<uint64_t>> places;
  for (auto& [content, blocks] : by_content) places.push_back(std::move(blocks));
  return places;
}

TEST(CloneDamage, AnUnreadableNodeIsAnErrorOfTheCall) {
  Files files;
  const SimImage image = prepared(&files);
  uint64_t copies_failed = 0;
  uint64_t dedupes_failed = 0;
  for (const std::vector<uint64_t>& places : node_places(image)) {
    for (const bool dedupes : {false, true}) {
      Volume v(image);
      for (const uint64_t block : places) v.volume->device.mark_bad(block);
      if (!v.volume->open()) continue;
      Store& store = v.fs().store();
      if (dedupes) {
        if (!v.dedupe(files.source, files.twin)) dedupes_failed++;
      } else {
        auto done = v.copy(files.source, files.target, 0, kFileBlocks);
        if (!done) copies_failed++;
        if (done && done->bytes == kFileBlocks * kBlock) {
          for (const uint64_t block : {0, 60, 120, 310, 599}) {
            const auto data = v.volume->run(v.fs().read(files.target, block * kBlock, kBlock));
            if (!data) continue;
            EXPECT_EQ(std::memcmp(data->data(), block_of(1, block).data(), kBlock), 0) << block;
          }
        }
      }
      EXPECT_FALSE(store.shut_down())
          << (dedupes ? "dedupe" : "copy") << " with node " << places.front() << " unreadable";
      v.volume->abandon();
    }
  }
  EXPECT_GE(copies_failed, 8U);  // all that is read is part of what was damaged
  EXPECT_GE(dedupes_failed, 8U);
}

}  // namespace
}  // namespace cofs
