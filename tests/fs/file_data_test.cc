// FileData against a plain model: per block, what is dirty, and a list of in-flight versions.

#include "fs/file_data.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint64_t kBlocks = 96;

class Model {
 public:
  struct Version {
    uint64_t token;
    uint64_t stamp;
  };
  std::map<uint64_t, uint64_t> dirty;                // block → stamp
  std::map<uint64_t, std::optional<Version>> flying;  // block → the newest in-flight version
  std::optional<uint64_t> find(uint64_t block) const {
    if (const auto at = dirty.find(block); at != dirty.end()) return at->second;
    const auto at = flying.find(block);
    if (at != flying.end() && at->second) return at->second->stamp;
    return std::nullopt;
  }
};

uint64_t stamp_at(const std::byte* block) {
  uint64_t stamp;
  std::memcpy(&stamp, block, sizeof stamp);
  return stamp;
}

class Driver {
 public:
  explicit Driver(uint64_t seed) : random_(seed) {}

  void step() {
    const uint64_t start = below(kBlocks);
    const uint64_t count = 1 + below(std::min<uint64_t>(kBlocks - start, 20));
    switch (below(8)) {
      case 0:
      case 1:
      case 2: write(start, count); break;
      case 3: drop(start, count); break;
      case 4: take(start, count); break;
      case 5:
      case 6: finish(false); break;
      default: finish(true); break;
    }
  }

  void compare() {
    data.check_invariants();
    EXPECT_EQ(data.dirty_blocks(), model.dirty.size());
    bool any = false;
    std::optional<uint64_t> next;
    std::map<uint64_t, uint64_t> in_pieces;
    uint64_t cursor = 0;
    for (const FileData::Piece& piece : data.pieces(0, kBlocks)) {
      ASSERT_GE(piece.file_block, cursor);
      cursor = piece.end();
      for (uint32_t i = 0; i < piece.count; i++) {
        in_pieces[piece.file_block + i] = stamp_at(piece.data() + uint64_t{i} * kBlockBytes);
      }
    }
    for (uint64_t block = kBlocks; block-- > 0;) {
      const auto expected = model.find(block);
      const auto found = data.find(block);
      ASSERT_EQ(found.has_value(), expected.has_value()) << "block " << block;
      ASSERT_EQ(in_pieces.contains(block), expected.has_value()) << "block " << block;
      if (expected) {
        any = true;
        next = block;
        ASSERT_EQ(stamp_at(found->data()), *expected) << "block " << block;
        ASSERT_EQ(found->hash, *expected * 3);
        ASSERT_EQ(in_pieces[block], *expected);
      }
      ASSERT_EQ(data.overlaps(block, 1), expected.has_value());
      ASSERT_EQ(data.overlaps_dirty(block, 1), model.dirty.contains(block));
      ASSERT_EQ(data.next_block(block), next);
    }
    EXPECT_EQ(data.empty(), !any);
    EXPECT_EQ(data.dirty_blocks_in(10, 50),
              static_cast<uint64_t>(std::distance(model.dirty.lower_bound(10),
                                                  model.dirty.lower_bound(60))));
  }

  void finish_all() {
    while (!tokens_.empty()) finish(false);
  }

  BufferPool pool{0};
  FileData data;
  Model model;

 private:
  uint64_t below(uint64_t n) { return random_() % n; }

  void write(uint64_t start, uint64_t count) {
    FileData::Run run;
    run.count = static_cast<uint32_t>(count);
    run.buffer_block = static_cast<uint32_t>(below(3));
    run.buffer = pool.allocate(run.count + run.buffer_block);
    uint64_t fresh = 0;
    for (uint32_t i = 0; i < count; i++) {
      const uint64_t stamp = ++stamps_;
      std::memcpy(run.buffer->block(run.buffer_block + i), &stamp, sizeof stamp);
      run.hashes.push_back(stamp * 3);
      fresh += model.dirty.contains(start + i) ? 0 : 1;
      model.dirty[start + i] = stamp;
    }
    EXPECT_EQ(data.add_dirty(start, std::move(run)), fresh);
  }

  void drop(uint64_t start, uint64_t count) {
    uint64_t dropped = 0;
    for (uint64_t block = start; block < start + count; block++) {
      dropped += model.dirty.erase(block);
      model.flying.erase(block);
    }
    EXPECT_EQ(data.drop(start, count), dropped);
  }

  void take(uint64_t start, uint64_t count) {
    const uint64_t blocks_max = 1 + below(12);
    const uint64_t fragments_max = 1 + below(4);
    uint64_t blocks = 0;
    uint64_t cursor = start;
    for (const FileData::Taken& taken :
         data.take_dirty(start, count, blocks_max, fragments_max, &next_token_)) {
      ASSERT_GE(taken.file_block, cursor);
      for (; cursor < taken.file_block; cursor++) ASSERT_FALSE(model.dirty.contains(cursor));
      for (uint32_t i = 0; i < taken.run.count; i++, cursor++, blocks++) {
        const uint64_t stamp = stamp_at(taken.run.buffer->block(taken.run.buffer_block + i));
        ASSERT_TRUE(model.dirty.contains(cursor));
        ASSERT_EQ(model.dirty[cursor], stamp);
        ASSERT_EQ(taken.run.hashes[i], stamp * 3);
        model.dirty.erase(cursor);
        model.flying[cursor] = Model::Version{taken.token, stamp};
      }
      tokens_.push_back(taken.token);
    }
    ASSERT_LE(blocks, blocks_max);
    ASSERT_LE(cursor, start + count);
  }

  void finish(bool failed) {
    if (tokens_.empty()) return;
    const size_t index = below(tokens_.size());
    const uint64_t token = tokens_[index];
    tokens_.erase(tokens_.begin() + static_cast<std::ptrdiff_t>(index));
    for (auto& [block, version] : model.flying) {
      if (!version || version->token != token) continue;
      if (failed) model.dirty.try_emplace(block, version->stamp);
      version.reset();
    }
    if (failed) {
      data.put_back(token);
    } else {
      data.written(token);
    }
    ASSERT_EQ(data.in_flight_runs(), tokens_.size());
  }

  std::mt19937_64 random_;
  uint64_t stamps_ = 0;
  uint64_t next_token_ = 1;
  std::vector<uint64_t> tokens_;
};

TEST(FileData, RandomOperationsAgreeWithAModel) {
  for (uint64_t seed = 1; seed <= 60; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Driver driver(seed);
    for (int i = 0; i < 400; i++) {
      driver.step();
      driver.compare();
      if (testing::Test::HasFailure()) return;
    }
    driver.finish_all();
    driver.data.drop(0, kBlocks);
    EXPECT_TRUE(driver.data.empty());
    EXPECT_EQ(driver.data.dirty_fragments(), 0U);
    EXPECT_EQ(driver.pool.bytes_in_use(), 0U);
  }
}

TEST(FileData, AMegabyteIsOneRun) {
  BufferPool pool(0);
  FileData data;
  FileData::Run run;
  run.count = 256;
  run.buffer = pool.allocate(256);
  run.hashes.resize(256);
  EXPECT_EQ(data.add_dirty(1000, std::move(run)), 256U);
  EXPECT_EQ(data.dirty_runs(), 1U);
  uint64_t token = 1;
  const auto taken = data.take_dirty(0, UINT64_MAX, 1024, 8, &token);
  ASSERT_EQ(taken.size(), 1U);
  EXPECT_EQ(taken[0].file_block, 1000U);
  EXPECT_EQ(data.pieces(0, 1ULL << 50).size(), 1U);
}

TEST(FileData, AdjacentRunsAreOneFragment) {
  BufferPool pool(0);
  FileData data;
  for (uint64_t block = 0; block < 10; block++) {
    FileData::Run run;
    run.count = 1;
    run.buffer = pool.allocate(1);
    run.hashes.resize(1);
    data.add_dirty((block * 7) % 10, std::move(run));
  }
  EXPECT_EQ(data.dirty_runs(), 10U);
  EXPECT_EQ(data.dirty_fragments(), 1U);
  data.drop(5, 1);
  EXPECT_EQ(data.dirty_fragments(), 2U);
}

}  // namespace
}  // namespace cofs
