#include "tests/testing/filled_volume.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>

namespace cofs {

VolumeOptions FilledVolume::small_options(uint64_t seed, bool device_copies) {
  VolumeOptions options;
  options.device_blocks = 8192 + 40;
  options.format.segment_blocks = 64;
  options.format.node_bytes = 4096;
  options.store.dirty_nodes_max = 64;
  options.store.background = false;
  options.store.copy_verify_percent = 100;
  options.device.seed = seed;
  if (device_copies) {
    CopyLimits limits;
    limits.engine = "sim";
    limits.ranges_max = 8;
    limits.range_blocks_max = 16;
    limits.operation_blocks_max = 64;
    limits.in_flight_max = 4;
    options.device.copies.push_back(limits);
  }
  return options;
}

void FilledVolume::mount(uint64_t seed, const VolumeOptions& options) {
  mount_image(seed, TestVolume::formatted(seed, options), options);
  random = SimRandom(seed + 99);
  files.clear();
}

void FilledVolume::mount_image(uint64_t seed, const SimImage& image, const VolumeOptions& options) {
  volume = std::make_unique<TestVolume>(seed, image, options);
  const auto opened = volume->open();
  ASSERT_TRUE(opened) << describe(opened.error());
}

std::string FilledVolume::random_bytes(uint64_t length) {
  std::string bytes(length, '\0');
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random.next();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  return bytes;
}

Result<> FilledVolume::write_at(const std::string& name, uint64_t at, const std::string& bytes) {
  File& file = files.at(name);
  auto written = volume->run(fs().write(
      file.ino,
      WriteData::fill(volume->world.buffers, at, bytes.data(), static_cast<uint32_t>(bytes.size())),
      false, false));
  if (!written) return written;
  file.bytes.resize(std::max(file.bytes.size(), at + bytes.size()));
  std::memcpy(file.bytes.data() + at, bytes.data(), bytes.size());
  return {};
}

Result<> FilledVolume::create(const std::string& name, uint64_t blocks) {
  bool created = false;
  auto inode = volume->run(
      fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(), true, &created));
  if (!inode) return fail(inode.error());
  files[name].ino = inode->ino;
  return write_at(name, 0, random_bytes(bytes_of_blocks(blocks)));
}

void FilledVolume::remove(const std::string& name) {
  const auto removed = volume->run(fs().unlink(ondisk::kRootInode, name));
  ASSERT_TRUE(removed) << describe(removed.error());
  volume->run(fs().forget(files.at(name).ino));
  files.erase(name);
}

void FilledVolume::fragment(int count, uint64_t blocks, int keep) {
  for (int i = 0; i < count; i++) {
    const auto done = create("f" + std::to_string(i), blocks);
    ASSERT_TRUE(done) << describe(done.error());
    if (i % 8 == 7) {
      ASSERT_TRUE(volume->run(fs().sync()));
    }
  }
  ASSERT_TRUE(volume->run(fs().sync()));
  for (int i = 0; i < count; i++) {
    if (i % keep != 0) remove("f" + std::to_string(i));
  }
  ASSERT_TRUE(volume->run(fs().sync()));
}

std::string FilledVolume::read_file(const File& file) {
  std::string bytes;
  while (bytes.size() < file.bytes.size()) {
    const auto n = static_cast<uint32_t>(
        std::min<uint64_t>(file.bytes.size() - bytes.size(), 128 * kBlockBytes));
    const auto data = volume->run(fs().read(file.ino, bytes.size(), n));
    if (!data) return "error: " + describe(data.error());
    if (data->length == 0) break;
    bytes.append(reinterpret_cast<const char*>(data->data()), data->length);
  }
  return bytes;
}

void FilledVolume::expect_contents() {
  for (const auto& [name, file] : files) {
    const std::string found = read_file(file);
    EXPECT_TRUE(found == file.bytes) << name << ": " << found.substr(0, 60);
  }
}

void FilledVolume::expect_clean_after_remount() {
  EXPECT_EQ(volume->verify(true), "");
  const auto closed = volume->close();
  ASSERT_TRUE(closed) << describe(closed.error());
  ASSERT_TRUE(volume->open());
  expect_contents();
  EXPECT_EQ(volume->verify(true), "");
}

uint64_t FilledVolume::place_of(const std::string& name, uint64_t block) {
  const char* wanted = files.at(name).bytes.data() + bytes_of_blocks(block);
  for (uint64_t place = 0; place < volume->device.image().block_count(); place++) {
    const SimPageRef page = volume->device.image().page(place);
    if (page != nullptr && std::memcmp(page->bytes.data(), wanted, kBlockBytes) == 0) return place;
  }
  return 0;
}

}  // namespace cofs
