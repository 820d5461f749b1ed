// The lowest module: integers on disk, checksums, errors, buffers.
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "offload/base/buffer.h"
#include "offload/base/checksum.h"
#include "offload/base/endian.h"
#include "offload/base/error.h"
#include "offload/base/units.h"
#include "tests/testing/sim_random.h"

namespace cofs {
namespace {

TEST(Endian, LowestByteFirst) {
  const le16 two = 0x0201;
  const le32 four = 0x04030201;
  const le64 eight = 0x0807060504030201;
  const unsigned char bytes[] = {1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(std::memcmp(&two, bytes, 2), 0);
  EXPECT_EQ(std::memcmp(&four, bytes, 4), 0);
  EXPECT_EQ(std::memcmp(&eight, bytes, 8), 0);
}

TEST(Endian, RoundTripsUnaligned) {
  SimRandom random(1);
  std::array<std::byte, 9> place;
  for (int i = 0; i < 1000; i++) {
    const uint64_t value = i == 0 ? std::numeric_limits<uint64_t>::max() : random.next();
    const le64 stored = value;
    std::memcpy(place.data() + 1, &stored, sizeof(stored));
    le64 loaded;
    std::memcpy(&loaded, place.data() + 1, sizeof(loaded));
    EXPECT_EQ(uint64_t{loaded}, value);
  }
}

TEST(Units, BlocksRoundUp) {
  EXPECT_EQ(blocks_of_bytes(0), 0U);
  EXPECT_EQ(blocks_of_bytes(1), 1U);
  EXPECT_EQ(blocks_of_bytes(kBlockBytes), 1U);
  EXPECT_EQ(blocks_of_bytes(kBlockBytes + 1), 2U);
  EXPECT_EQ(blocks_of_bytes(UINT64_MAX), uint64_t{1} << 52);
  EXPECT_EQ(bytes_of_blocks(3), 12288U);
}

// These values are on disks: they must never change.
TEST(Checksum, KnownValues) {
  std::vector<std::byte> zeros(kBlockBytes);
  EXPECT_EQ(checksum64({}, 0), 0x2d06800538d394c2U);  // XXH3_64bits of nothing, as published
  EXPECT_EQ(block_hash(zeros.data()), checksum64(zeros, 0));
}

TEST(Checksum, DependsOnSeedAndEveryByte) {
  std::vector<std::byte> bytes(kBlockBytes, std::byte{0x5a});
  const uint64_t hash = checksum64(bytes, 1);
  EXPECT_NE(hash, checksum64(bytes, 2));
  for (size_t at = 0; at < bytes.size(); at += 61) {
    bytes[at] ^= std::byte{1};
    EXPECT_NE(hash, checksum64(bytes, 1)) << at;
    bytes[at] ^= std::byte{1};
  }
}

TEST(Checksum, RekeyingEqualsKeyingAnew) {
  SimRandom random(2);
  for (int i = 0; i < 1000; i++) {
    const uint64_t hash = random.next();
    const uint64_t from = random.next();
    const uint64_t to = random.next();
    const uint64_t volume = random.next();
    const uint32_t stored = key_block_checksum(hash, from, volume);
    EXPECT_EQ(rekey_block_checksum(stored, from, to, volume),
              key_block_checksum(hash, to, volume));
    EXPECT_EQ(rekey_block_checksum(stored, from, from, volume), stored);
    EXPECT_NE(stored, key_block_checksum(hash, to, volume));  // 1 in 2^32 each: not for this seed
  }
}

TEST(Error, EveryCodeHasANameAndAnErrno) {
  for (int i = 0; i <= static_cast<int>(Code::kUnknownFeature); i++) {
    const Code code = static_cast<Code>(i);
    EXPECT_GT(errno_of(code), 0) << i;
    EXPECT_NE(name_of(code), "unknown error") << i;
  }
  EXPECT_EQ(errno_of(Code::kNoSpace), ENOSPC);
  EXPECT_EQ(errno_of(Code::kChecksum), EIO);
  EXPECT_EQ(errno_of(Code::kCorrupt), EUCLEAN);
  EXPECT_EQ(errno_of(Code::kNoSuchOffset), ENXIO);
  EXPECT_EQ(errno_of(Code::kNotSupported), EOPNOTSUPP);
}

TEST(Error, DescribesStepAndPlace) {
  EXPECT_EQ(describe(Error(Code::kIo, "read", 17)), "device error: read (at 17)");
  EXPECT_EQ(describe(Error(Code::kNoSpace, "")), "no space left");
  const Result<int> failed = fail(Code::kStale, "handle", 3);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Code::kStale);
  EXPECT_EQ(failed.error().where, 3U);
}

TEST(BufferPool, ReusesTheMostRecentBufferOfItsClass) {
  BufferPool pool(1 << 20);
  BufferRef first = pool.allocate(3);
  EXPECT_EQ(first->block_count(), 4U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first->data()) % kBlockBytes, 0U);
  EXPECT_EQ(pool.bytes_in_use(), 4U * kBlockBytes);
  Buffer* address = first.get();
  BufferRef second = pool.allocate(4);
  EXPECT_NE(second.get(), address);
  second.reset();
  first.reset();
  EXPECT_EQ(pool.bytes_in_use(), 0U);
  EXPECT_EQ(pool.allocate(4).get(), address);
  EXPECT_NE(pool.allocate(5).get(), address);
}

TEST(BufferPool, BeyondTheArenaComesFromTheHeap) {
  BufferPool pool(8 * kBlockBytes);
  const BufferRef inside = pool.allocate(8);
  const BufferRef outside = pool.allocate(8);
  const auto in_arena = [&pool](const BufferRef& buffer) {
    return buffer->data() >= pool.arena().data() &&
           buffer->data() < pool.arena().data() + pool.arena().size();
  };
  EXPECT_TRUE(in_arena(inside));
  EXPECT_FALSE(in_arena(outside));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(outside->data()) % kBlockBytes, 0U);
}

TEST(BufferPool, EverySizeAndNoOverlap) {
  BufferPool pool(64 << 20);
  std::vector<BufferRef> held;
  std::set<std::byte*> addresses;
  for (uint32_t blocks = 1; blocks <= BufferPool::kBufferBlocksMax; blocks++) {
    held.push_back(pool.allocate(blocks));
    EXPECT_GE(held.back()->block_count(), blocks);
    EXPECT_TRUE(addresses.insert(held.back()->data()).second);
  }
  for (const BufferRef& buffer : held) {
    const auto next = addresses.upper_bound(buffer->data());
    if (next != addresses.end()) {
      EXPECT_LE(buffer->bytes().data() + buffer->bytes().size(), *next);
    }
  }
}

// What one size gave back serves the others: it takes what is in use at once, not the sum over the sizes.
TEST(BufferPool, MemoryIsNotBoundToASize) {
  constexpr uint64_t kArenaBytes = 8ULL << 20;
  BufferPool pool(kArenaBytes);
  for (uint32_t blocks = 1; blocks <= BufferPool::kBufferBlocksMax; blocks *= 2) {
    std::vector<BufferRef> held;
    for (uint64_t bytes = 0; bytes < 4 * kArenaBytes; bytes += uint64_t{blocks} * kBlockBytes) {
      held.push_back(pool.allocate(blocks));
    }
    EXPECT_LE(pool.bytes_held(), 4 * kArenaBytes + (2ULL << 20)) << blocks;
    pool.check_invariants();
  }
  // Beside the arena no more stays than serves the next ones.
  EXPECT_LE(pool.bytes_held(), kArenaBytes + (8ULL << 20));
}

TEST(BufferPool, RandomSizesKeepTheInvariants) {
  for (uint64_t seed = 1; seed <= 20; seed++) {
    SimRandom random(seed);
    BufferPool pool((random.below(3) << 20) + random.below(64) * kBlockBytes);
    std::vector<BufferRef> held(200);
    uint64_t most = 0;
    for (int i = 0; i < 4000; i++) {
      const auto blocks = static_cast<uint32_t>(1 + random.below(uint64_t{1} << random.below(10)));
      BufferRef& place = held[random.below(held.size())];
      place = BufferRef();
      if (random.below(3) == 0) continue;
      place = pool.allocate(blocks);
      std::memset(place->data(), static_cast<int>(i & 255), place->bytes().size());
      most = std::max(most, pool.bytes_in_use());
      if (i % 256 == 0) pool.check_invariants();
    }
    pool.check_invariants();
    EXPECT_LE(pool.bytes_held(), 2 * most + pool.arena().size() + (16ULL << 20)) << "seed " << seed;
    held.clear();
    pool.check_invariants();
  }
}

TEST(BufferRef, CountsItsHolders) {
  BufferPool pool(0);
  BufferRef one = pool.allocate(1);
  EXPECT_TRUE(one.unique());
  BufferRef two = one;
  EXPECT_FALSE(one.unique());
  BufferRef three = std::move(two);
  EXPECT_FALSE(two);  // NOLINT: moved from is empty, by contract
  three = BufferRef();
  EXPECT_TRUE(one.unique());
}

TEST(BufferPool, IsSafeFromManyThreads) {
  BufferPool pool(1 << 20);
  const auto churn = [&pool](uint64_t seed) {
    SimRandom random(seed);
    std::vector<BufferRef> held(8);
    for (int i = 0; i < 5000; i++) {
      held[random.below(held.size())] = pool.allocate(static_cast<uint32_t>(1 + random.below(16)));
    }
  };
  std::thread other(churn, 1);
  churn(2);
  other.join();
  EXPECT_EQ(pool.bytes_in_use(), 0U);
}

}  // namespace
}  // namespace cofs
