// The real store moves as much as the simulator says (tools/gcsim): the same geometry, the same
// utilisation of the segments that hold data, the same overwrites.

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "blockmap/store.h"
#include "offload/base/checksum.h"
#include "tests/testing/sim_device.h"
#include "tests/testing/sim_world.h"
#include "tools/gcsim/simulation.h"

namespace cofs {
namespace {

constexpr uint32_t kSegmentBlocks = 64;
constexpr uint64_t kDeviceBlocks = 480 * kSegmentBlocks;
constexpr uint64_t kInode = 10;
constexpr uint32_t kBatch = 128;                  // overwrites of one transaction
constexpr uint32_t kLiveBlocks = 106 * kBatch;
constexpr uint64_t kFreeSegmentsKept = 160;       // so many that nobody ever waits for room
constexpr uint32_t kPayloadBlocks = 60;           // of a segment: the rest are headers and the footer
constexpr uint64_t kRoundBlocks = 8 * kBatch;     // between two looks at the segments
constexpr uint64_t kWarmUpRounds = 4 * 13;        // the data is overwritten four times
constexpr uint64_t kRounds = kWarmUpRounds + 26;  // and twice more

struct DataSegments {
  uint64_t segments = 0;
  uint64_t live_blocks = 0;
};

class Volume {
 public:
  Volume() : world(1), device(world, SimImage(kDeviceBlocks), SimDeviceOptions()) {
    Environment env{device, world.executor, world.clock, world.random, world.journal, world.buffers};
    FormatOptions format;
    format.segment_blocks = kSegmentBlocks;
    format.node_bytes = 4096;
    EXPECT_TRUE(world.run(Store::format(env, format)));
    StoreOptions options;
    options.background = false;
    options.gc = GcMode::kAuto;
    options.dirty_nodes_max = 1024;
    auto opened = world.run(Store::open(env, options));
    EXPECT_TRUE(opened);
    store = std::move(*opened);
  }
  ~Volume() {
    world.run(store->abandon());
    store.reset();
    world.run_until_idle();
  }

  // Writes each of these blocks of the file.
  static Task<Result<>> write(Volume* v, const std::vector<uint32_t>* blocks) {
    const Cost cost(blocks->size(), 100 * blocks->size());
    auto transaction = co_await v->store->begin(cost, SpaceClass::kUser);
    COFS_CO_TRY(transaction);
    for (const uint32_t block : *blocks) {
      DataRun run;
      run.ino = kInode;
      run.file_block = block;
      run.count = 1;
      run.buffer = v->world.buffers.allocate(1);
      run.hashes.push_back(block_hash(run.buffer->block(0)));
      transaction->write_data(std::move(run));
    }
    auto applied = co_await transaction->apply();
    co_return applied;
  }

  // As the simulator does: a victim whenever less than so many segments are free.
  void collect() {
    GcRequest one;
    one.victims_max = 1;
    one.urgent = false;
    while (store->space().free_segments < kFreeSegmentsKept) {
      const auto report = world.run(store->collect_garbage(one));
      ASSERT_TRUE(report) << describe(report.error());
      ASSERT_EQ(report->victims, 1U);
    }
  }

  DataSegments data_segments() {
    EXPECT_TRUE(world.run(store->checkpoint()));
    DataSegments found;
    const auto scanned = world.run(store->scan(
        Key::segment_group(0), Key::segment_group(UINT64_MAX), UINT64_MAX,
        [&](const Key&, Bytes value) {
          std::array<ondisk::SegmentInfo, ondisk::kSegmentGroup> group;
          EXPECT_EQ(value.size(), sizeof(group));
          std::memcpy(group.data(), value.data(), sizeof(group));
          for (const ondisk::SegmentInfo& info : group) {
            const auto stream = static_cast<ondisk::Stream>(info.stream);
            if (info.state == static_cast<uint8_t>(ondisk::SegmentState::kFree) ||
                stream == ondisk::Stream::kMeta || stream == ondisk::Stream::kMetaMirror ||
                (stream == ondisk::Stream::kLog && info.live_blocks == 0)) {
              continue;
            }
            found.segments++;
            found.live_blocks += info.live_blocks;
          }
          return true;
        }));
    EXPECT_TRUE(scanned);
    return found;
  }

  SimWorld world;
  SimDevice device;
  std::unique_ptr<Store> store;
};

TEST(GcAmplification, TheStoreFollowsTheSimulator) {
  for (const char* skew_text : {"uniform", "10/90"}) {
    SCOPED_TRACE(skew_text);
    const auto skew = Skew::parse(skew_text);
    ASSERT_TRUE(skew);
    Volume volume;
    const Workload workload(*skew, kLiveBlocks);
    SeededRandom random(7);
    std::vector<uint32_t> batch;
    for (uint32_t block = 0; block < kLiveBlocks; block++) {
      batch.push_back(block);
      if (batch.size() < kBatch) continue;
      ASSERT_TRUE(volume.world.run(Volume::write(&volume, &batch)));
      batch.clear();
    }
    DataSegments sum;
    uint64_t samples = 0;
    uint64_t moved_before = 0;
    uint64_t written_before = 0;
    for (uint64_t round = 0; round < kRounds; round++) {
      if (round == kWarmUpRounds) {
        sum = DataSegments();
        samples = 0;
        moved_before = volume.store->counters().gc_relocated_bytes;
        written_before = volume.store->counters().data_bytes;
      }
      for (uint64_t done = 0; done < kRoundBlocks; done += kBatch) {
        batch.clear();
        while (batch.size() < kBatch) batch.push_back(workload.next_page(random));
        const auto written = volume.world.run(Volume::write(&volume, &batch));
        ASSERT_TRUE(written) << describe(written.error());
        volume.collect();
        if (HasFatalFailure()) return;
      }
      const DataSegments now = volume.data_segments();
      sum.segments += now.segments;
      sum.live_blocks += now.live_blocks;
      samples++;
    }
    const double moved = static_cast<double>(volume.store->counters().gc_relocated_bytes - moved_before);
    const double written = static_cast<double>(volume.store->counters().data_bytes - written_before);
    const double found = (written + moved) / written;

    SimOptions options;
    options.segments = sum.segments / samples + 4;  // the simulator keeps four free
    options.segment_blocks = kPayloadBlocks;
    options.utilisation = static_cast<double>(sum.live_blocks / samples) /
                          static_cast<double>(options.segments * kPayloadBlocks);
    options.skew = *skew;
    ASSERT_EQ(check(options), "");
    const auto simulated = simulate(options);
    ASSERT_TRUE(simulated) << simulated.error();
    const double expected = simulated->write_amplification();
    std::printf("%s: %.3f of %llu data segments live: the store %.3f, the simulator %.3f\n", skew_text,
                options.utilisation, static_cast<unsigned long long>(options.segments), found, expected);
    EXPECT_GT(options.utilisation, 0.7);
    EXPECT_NEAR(found, expected, 0.15 * expected);
    EXPECT_EQ(volume.store->counters().gc_skipped, 0U);
  }
}

}  // namespace
}  // namespace cofs
