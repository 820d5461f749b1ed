// What statfs and the report of space say, against what is there and what can be written.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "blockmap/store.h"
#include "blockmap/volume.h"
#include "tests/testing/test_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kBlock = kBlockBytes;

VolumeOptions small_options(uint64_t seed) {
  VolumeOptions options;
  options.device_blocks = 8192 + 40;
  options.format.segment_blocks = 64;
  options.format.node_bytes = 4096;
  options.store.dirty_nodes_max = 64;
  options.store.background = false;
  options.store.gc = GcMode::kAuto;
  options.device.seed = seed;
  return options;
}

class Space : public testing::Test {
 public:
  void mount(uint64_t seed, const VolumeOptions& options) {
    volume = std::make_unique<TestVolume>(seed, TestVolume::formatted(seed, options), options);
    const auto opened = volume->open();
    ASSERT_TRUE(opened) << describe(opened.error());
    random = SimRandom(seed + 7);
    files.clear();
  }
  SpaceReport report() { return volume->fs().store().space(); }

  Result<> write(const std::string& name, uint64_t block, uint64_t blocks) {
    const std::string bytes(blocks * kBlock, static_cast<char>('a' + random.below(26)));
    return volume->run(volume->fs().write(
        files.at(name), WriteData::fill(volume->world.buffers, block * kBlock, bytes.data(),
                                        static_cast<uint32_t>(bytes.size())),
        false, false));
  }
  Result<> create(const std::string& name, uint64_t blocks) {
    bool created = false;
    auto inode = volume->run(volume->fs().create(ondisk::kRootInode, name, S_IFREG | 0644, Caller(),
                                                 true, &created));
    if (!inode) return fail(inode.error());
    files[name] = inode->ino;
    return write(name, 0, blocks);
  }
  Task<Result<>> allocate(const std::string& name, AllocateMode mode, uint64_t offset, uint64_t length) {
    return volume->fs().allocate(files.at(name), mode, offset, length);
  }
  Result<> remove(const std::string& name) {
    auto removed = volume->run(volume->fs().unlink(ondisk::kRootInode, name));
    if (!removed) return removed;
    volume->run(volume->fs().forget(files.at(name)));
    volume->settle();
    files.erase(name);
    return {};
  }
  // Fills the volume to the first ENOSPC; returns the blocks written.
  uint64_t fill(uint64_t each) {
    uint64_t written = 0;
    while (true) {
      const std::string name = "f" + std::to_string(serial++);
      const auto done = create(name, each);
      if (!done) {
        EXPECT_EQ(done.error().code, Code::kNoSpace) << describe(done.error());
        return written;
      }
      written += each;
    }
  }
  void expect_sums() {
    const SpaceReport space = report();
    EXPECT_EQ(space.outside_blocks + space.live_data_blocks + space.node_blocks +
                  space.winnable_blocks + space.fixed_blocks + space.waiting_blocks +
                  space.unused_blocks,
              space.device_blocks);
    EXPECT_EQ(space.room_blocks,
              space.winnable_blocks + space.waiting_blocks + space.unused_blocks);
    EXPECT_EQ(space.available_blocks + space.over_provisioned_blocks + space.promised_blocks +
                  space.preallocated_blocks + space.delete_reserve + space.gc_reserve + space.growth_reserve +
                  space.node_reserve + space.log_reserve + space.checkpoint_reserve +
                  space.framing_blocks,
              space.room_blocks);
    EXPECT_EQ(space.dead_blocks, space.winnable_blocks + space.fixed_blocks);
    EXPECT_LE(space.available_blocks, space.total_blocks);
    EXPECT_LE(space.total_blocks, space.device_blocks);
    EXPECT_LE(space.waiting_segments, space.free_segments);
  }

  std::unique_ptr<TestVolume> volume;
  SimRandom random{1};
  std::map<std::string, uint64_t> files;
  uint64_t serial = 0;
};

// At any moment, whatever was done: all blocks are accounted for, and verify() finds the same counts.
TEST_F(Space, TheClassesAddUp) {
  for (uint64_t seed = 0; seed < 30; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = seed % 3 == 0 ? VolumeOptions::tiny(seed) : small_options(seed);
    options.format.over_provision_percent = static_cast<uint32_t>(seed % 4 * 10);
    mount(seed, options);
    for (int i = 0; i < 300; i++) {
      const uint64_t what = random.below(10);
      std::string name = "f" + std::to_string(random.below(40));
      if (!files.contains(name)) {
        (void)create(name, random.between(1, 40));
      } else if (what < 2) {
        ASSERT_TRUE(remove(name));
      } else if (what < 8) {
        (void)write(name, random.below(30), random.between(1, 10));
      } else if (what == 8) {
        ASSERT_TRUE(volume->run(volume->fs().sync()));
      } else {
        ASSERT_TRUE(volume->run(volume->fs().store().checkpoint()));
      }
      expect_sums();
      if (HasFailure()) return;
    }
    EXPECT_EQ(volume->verify(false), "");
    expect_sums();
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
    expect_sums();
    EXPECT_EQ(volume->verify(true), "");
    volume.reset();
  }
}

TEST_F(Space, ReferencesBeyondTheFirstAreCounted) {
  mount(1, small_options(1));
  ASSERT_TRUE(create("a", 20));
  ASSERT_TRUE(create("b", 1));
  ASSERT_TRUE(volume->run(volume->fs().sync()));
  Store& store = volume->fs().store();
  EXPECT_EQ(report().extra_references, 0U);
  const auto share = [&](uint64_t from, uint64_t to, uint64_t count) {
    ShareRange range;
    range.source_ino = files.at("a");
    range.source_block = from;
    range.target_ino = files.at("b");
    range.target_block = to;
    range.count = count;
    auto transaction = volume->run(store.begin(Cost(0, 1000), SpaceClass::kUser));
    ASSERT_TRUE(transaction);
    transaction->share_extents(range);
    ASSERT_TRUE(volume->run(transaction->apply()));
  };
  share(0, 100, 20);
  EXPECT_EQ(report().extra_references, 20U);
  EXPECT_EQ(report().shared_blocks, 20U);
  share(5, 200, 3);
  EXPECT_EQ(report().extra_references, 23U);
  EXPECT_EQ(report().shared_blocks, 20U);
  const uint64_t before = report().live_data_blocks;
  auto transaction = volume->run(store.begin(Cost(0, 1000), SpaceClass::kUser));
  ASSERT_TRUE(transaction);
  transaction->map_extent(files.at("b"), 104, 8, 0, 0);
  ASSERT_TRUE(volume->run(transaction->apply()));
  transaction = fail(Code::kInvalid, "done");
  EXPECT_EQ(report().extra_references, 15U);
  EXPECT_EQ(report().shared_blocks, 15U) << "three of the eight have another one";
  EXPECT_EQ(report().live_data_blocks, before);
  ASSERT_TRUE(volume->close());
  ASSERT_TRUE(volume->open());
  EXPECT_EQ(report().extra_references, 15U);
}

// What is said to be available can be preallocated at once, whatever the volume holds, and hardly more.
TEST_F(Space, AllThatIsAvailableCanBePreallocated) {
  for (uint64_t seed = 0; seed < 8; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = small_options(seed);
    options.device_blocks = 64 * (seed % 2 == 0 ? 256 : 2048) + 40;
    options.format.over_provision_percent = seed % 4 == 0 ? 0 : 7;
    mount(seed, options);
    for (int i = 0; i < 20 * static_cast<int>(seed % 3); i++) {
      ASSERT_TRUE(create("f" + std::to_string(serial++), random.between(1, 40)));
    }
    for (uint64_t i = 0; i < serial; i += 2) ASSERT_TRUE(remove("f" + std::to_string(i)));
    serial = 0;
    ASSERT_TRUE(create("big", 1));
    const uint64_t available = report().available_blocks;
    const auto allocate = [&](uint64_t blocks) {
      return volume->run(volume->fs().allocate(files.at("big"), AllocateMode::kAllocate, kBlock,
                                               blocks * kBlock));
    };
    const auto refused = allocate(available + available / 50 + 256);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::kNoSpace);
    const auto allocated = allocate(available - 16);
    EXPECT_TRUE(allocated) << describe(allocated.error()) << " of " << available;
  }
}

// What was preallocated is kept for its file: others run out of space, it does not, and a crash or a
// clean unmount between changes nothing.
TEST_F(Space, WhatIsPreallocatedCanBeWritten) {
  for (uint64_t seed = 0; seed < 12; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = small_options(seed);
    options.device_blocks = 64 * 400 + 40;
    options.format.over_provision_percent = seed % 2 == 0 ? 0 : 7;
    mount(seed, options);
    ASSERT_TRUE(create("kept", 1));
    const uint64_t blocks = 3000;
    ASSERT_TRUE(volume->run(allocate("kept", AllocateMode::kAllocate, kBlock, blocks * kBlock)));
    EXPECT_GE(report().preallocated_blocks, blocks);
    EXPECT_EQ(report().live_data_blocks, 0U);
    fill(24);
    ASSERT_TRUE(volume->run(volume->fs().sync()));
    EXPECT_LE(report().available_blocks, 24U + 60U);
    expect_sums();
    if (seed % 3 == 1) {
      ASSERT_TRUE(volume->close());
      ASSERT_TRUE(volume->open());
    }
    EXPECT_EQ(create("other", 100).error().code, Code::kNoSpace);
    uint64_t written = 0;  // in pieces that follow each other, but not in order
    for (uint64_t piece = 0; piece < 30; piece++) {
      const uint64_t at = piece * 7 % 30 * 100;
      for (uint64_t i = 0; i < 100; i += 25, written += 25) {
        const auto done = write("kept", 1 + at + i, 25);
        ASSERT_TRUE(done) << written << " written: " << describe(done.error());
      }
      if (seed % 4 == 3) {
        ASSERT_TRUE(volume->run(volume->fs().sync()));
      }
      expect_sums();
    }
    ASSERT_TRUE(volume->run(volume->fs().sync()));
    EXPECT_EQ(written, blocks);
    EXPECT_EQ(report().preallocated_blocks, 0U);
    EXPECT_EQ(volume->verify(false), "");
    ASSERT_TRUE(remove("kept"));
    ASSERT_TRUE(volume->run(volume->fs().store().checkpoint()));
    EXPECT_TRUE(create("again", 200)) << "what it took is free again";
  }
}

// By a copy, too, which needs space for what it copies before it may give up what it replaces.
TEST_F(Space, WhatIsPreallocatedCanBeCopiedInto) {
  for (uint64_t seed = 0; seed < 6; seed++) {
    SCOPED_TRACE(seed);
    VolumeOptions options = small_options(seed);
    options.device_blocks = 64 * 400 + 40;
    mount(seed, options);
    const uint64_t blocks = 2000;
    ASSERT_TRUE(create("source", 200));
    for (uint64_t at = 200; at < blocks; at += 200) {
      ASSERT_TRUE(write("source", at, 200));
    }
    ASSERT_TRUE(create("kept", 1));
    ASSERT_TRUE(volume->run(allocate("kept", AllocateMode::kAllocate, 0, blocks * kBlock)));
    fill(24);
    ASSERT_TRUE(volume->run(volume->fs().sync()));
    for (uint64_t done = 0; done < blocks * kBlock;) {
      const auto copied = volume->run(volume->fs().copy_range(files.at("source"), done, files.at("kept"), done,
                                                              blocks * kBlock - done));
      ASSERT_TRUE(copied) << done / kBlock << " blocks copied: " << describe(copied.error());
      done += copied->bytes;
    }
    expect_sums();
    ASSERT_TRUE(volume->run(volume->fs().sync()));
    EXPECT_EQ(report().preallocated_blocks, 0U);
    for (uint64_t block = 0; block < blocks; block += 100) {
      const auto source = volume->run(volume->fs().read(files.at("source"), block * kBlock, 100 * kBlock));
      const auto target = volume->run(volume->fs().read(files.at("kept"), block * kBlock, 100 * kBlock));
      ASSERT_TRUE(source && target);
      EXPECT_EQ(std::memcmp(source->data(), target->data(), 100 * kBlock), 0) << block;
    }
    EXPECT_EQ(create("other", 100).error().code, Code::kNoSpace);
    EXPECT_EQ(volume->verify(false), "");
  }
}

// Preallocated blocks that are given back are free again: punched, truncated, deleted.
TEST_F(Space, WhatIsPreallocatedIsGivenBack) {
  mount(1, small_options(1));
  ASSERT_TRUE(create("file", 1));
  ASSERT_TRUE(volume->run(volume->fs().sync()));
  ASSERT_TRUE(volume->run(allocate("file", AllocateMode::kKeepSize, 10 * kBlock, 1000 * kBlock)));
  const uint64_t kept = report().preallocated_blocks;
  EXPECT_GE(kept, 1000U);
  ASSERT_TRUE(volume->run(allocate("file", AllocateMode::kPunchHole, 100 * kBlock, 500 * kBlock)));
  EXPECT_NEAR(static_cast<double>(report().preallocated_blocks), static_cast<double>(kept) / 2, 2);
  ASSERT_TRUE(volume->run(allocate("file", AllocateMode::kAllocate, 0, 2000 * kBlock)));
  EXPECT_NEAR(static_cast<double>(report().preallocated_blocks), 2047, 2);
  expect_sums();
  AttributeChange change;
  change.size = 50 * kBlock;
  ASSERT_TRUE(volume->run(volume->fs().set_attributes(files.at("file"), change, Caller())));
  EXPECT_NEAR(static_cast<double>(report().preallocated_blocks), 50, 2);
  ASSERT_TRUE(remove("file"));
  EXPECT_EQ(report().preallocated_blocks, 0U);
  EXPECT_EQ(volume->verify(false), "");
}

// Users stop at their share, while the rest is there for all else.
TEST_F(Space, OverProvisioningIsNotForUsers) {
  uint64_t total_without = 0;
  for (const uint32_t percent : {0U, 7U, 25U, 50U}) {
    SCOPED_TRACE(percent);
    VolumeOptions options = small_options(percent);
    options.format.over_provision_percent = percent;
    mount(percent, options);
    EXPECT_EQ(volume->fs().store().info().over_provision_percent, percent);
    const uint64_t total = report().total_blocks;
    if (percent == 0) total_without = total;
    EXPECT_NEAR(static_cast<double>(total),
                static_cast<double>(total_without) * (100 - percent) / 100, 8);
    const uint64_t promised = report().available_blocks;
    const uint64_t written = fill(24);
    EXPECT_GE(written, promised * 9 / 10);
    EXPECT_LE(report().live_data_blocks, total + 64);
    EXPECT_LE(report().available_blocks, 24U + 60U);
    if (percent >= 25) {
      EXPECT_GT(report().over_provisioned_blocks, total_without / 8);
      EXPECT_EQ(volume->fs().store().counters().gc_victims, 0U) << "there was room all the time";
    }
    expect_sums();
    // Deleting works, and what it frees can be written.
    std::vector<std::string> names;
    for (const auto& [name, ino] : files) {
      if (names.size() < 8) names.push_back(name);
    }
    for (const std::string& name : names) ASSERT_TRUE(remove(name));
    EXPECT_GE(fill(24), 5 * 24U);
    ASSERT_TRUE(volume->close());
    ASSERT_TRUE(volume->open());
    EXPECT_EQ(report().total_blocks, total);
    EXPECT_EQ(volume->fs().store().info().over_provision_percent, percent);
    EXPECT_EQ(volume->verify(true), "");
    volume.reset();
  }
}

TEST_F(Space, OverProvisioningHasALimit) {
  FormatOptions options;
  options.over_provision_percent = 51;
  const auto geometry = plan_geometry(65'536, options);
  ASSERT_FALSE(geometry);
  EXPECT_EQ(geometry.error().code, Code::kInvalid);
}

// Random overwrites of a nearly full volume move less the more of it is over-provisioned.
TEST_F(Space, OverProvisioningSavesMoving) {
  double moved_before = 0;
  for (const uint32_t percent : {4U, 20U}) {
    VolumeOptions options = small_options(3);
    options.device_blocks = 16'384 + 40;
    options.format.over_provision_percent = percent;
    mount(3, options);
    while (report().available_blocks > report().total_blocks / 12) {  // short extents take nodes
      ASSERT_TRUE(create("f" + std::to_string(serial++), 32));
    }
    std::vector<std::string> names;
    for (const auto& [name, ino] : files) names.push_back(name);
    const StoreCounters before = volume->fs().store().counters();
    for (uint64_t written = 0; written < 2 * options.device_blocks;) {
      const uint64_t n = random.between(1, 8);
      const auto done = write(names[random.below(names.size())], random.below(24), n);
      ASSERT_TRUE(done) << describe(done.error());
      written += n;
    }
    const StoreCounters after = volume->fs().store().counters();
    const double moved =
        static_cast<double>(after.gc_relocated_bytes - before.gc_relocated_bytes) /
        static_cast<double>(after.data_bytes - before.data_bytes);
    std::printf("over-provisioned by %u %%: %.2f bytes moved for each written\n", percent, moved);
    if (moved_before != 0) {
      EXPECT_LT(moved, moved_before * 0.6);
    }
    moved_before = moved;
    EXPECT_EQ(volume->verify(true), "");
    volume.reset();
  }
}

// Full to the last block with a tree of short extents: all can be deleted, on every geometry, however small
// its reserves; and nothing ever stops for lack of room.
TEST_F(Space, DeletingWorksWhenFull) {
  uint64_t cases = 0;
  for (const uint32_t segment_blocks : {16U, 64U, 256U}) {
    for (const uint32_t node_bytes : {4096U, 8192U}) {
      for (const GcMode mode : {GcMode::kOff, GcMode::kAuto}) {
        cases++;
        SCOPED_TRACE("segments of " + std::to_string(segment_blocks) + ", nodes of " +
                     std::to_string(node_bytes) + ", gc " + std::to_string(static_cast<int>(mode)));
        VolumeOptions options = small_options(cases);
        options.format.segment_blocks = segment_blocks;
        options.format.node_bytes = node_bytes;
        options.store.gc = mode;
        options.store.dirty_nodes_max = 0;
        options.device_blocks = 256 + std::max<uint64_t>(8192, 64ULL * segment_blocks);
        mount(cases, options);
        // Interleaved single blocks of a few files: as many extents and vmap records as blocks.
        for (int i = 0; i < 4; i++) ASSERT_TRUE(create("s" + std::to_string(i), 1));
        const uint64_t total = report().total_blocks;
        Result<> done;
        for (uint64_t block = 2; block < total / 4 && done; block += 2) {
          for (int i = 0; i < 4 && done; i++) done = write("s" + std::to_string(i), block, 1);
          if (done && block % 16 == 0) done = volume->run(volume->fs().sync());
        }
        if (!done) {
          ASSERT_EQ(done.error().code, Code::kNoSpace) << describe(done.error());
        }
        for (uint64_t i = 0; i < total / 2 && done; i++) {
          done = write("s" + std::to_string(random.below(4)), 2 * random.below(total / 8), 1);
        }
        fill(16);
        fill(1);
        expect_sums();
        ASSERT_FALSE(volume->fs().store().shut_down());
        const std::map<std::string, uint64_t> all = files;
        for (const auto& [name, ino] : all) {
          auto removed = remove(name);
          if (!removed && removed.error().code == Code::kNoEntry) removed = Result<>();  // its create failed
          ASSERT_TRUE(removed) << name << ": " << describe(removed.error());
        }
        ASSERT_FALSE(volume->fs().store().shut_down());
        EXPECT_EQ(volume->verify(false), "");
        EXPECT_EQ(report().live_data_blocks, 0U);
        EXPECT_GE(report().available_blocks, total * 17 / 20);  // open segments, the tree's rest
        volume.reset();
      }
    }
  }
}

}  // namespace
}  // namespace cofs
