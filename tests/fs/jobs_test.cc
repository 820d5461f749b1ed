// Jobs: one of each kind at a time, figures while they run and after, and every way to end them. What a
// collection and a scrub do is tested in gc_test and scrub_test.
#include "fs/jobs.h"

#include <gtest/gtest.h>

#include "tests/testing/filled_volume.h"

namespace cofs {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

class JobsTest : public FilledVolume {
 public:
  Jobs& jobs() { return fs().jobs(); }
  // Until no collection runs; hangs, with the seed, if one never ends.
  void wait_for_gc() {
    for (int i = 0; i < 100'000 && jobs().gc().state == JobState::kRunning; i++) {
      volume->pass(1'000'000);
    }
  }
  double ready_percent() {
    const SpaceReport space = store().space();
    return 100.0 * static_cast<double>(space.ready_blocks()) /
           static_cast<double>(space.total_blocks);
  }
};

TEST_F(JobsTest, CollectsUntilNothingGains) {
  for (const GcMode mode : {GcMode::kOff, GcMode::kAuto}) {
    SCOPED_TRACE(static_cast<int>(mode));
    VolumeOptions options = small_options(1, true);
    options.store.gc = mode;
    mount(1, options);
    EXPECT_EQ(jobs().gc().state, JobState::kNever);
    EXPECT_EQ(jobs().gc().number, 0U);
    fragment(120, 16, 4);
    const uint64_t free_before = store().space().free_segments;
    const auto number = jobs().start_gc(0);
    ASSERT_TRUE(number) << describe(number.error());
    EXPECT_EQ(*number, 1U);
    EXPECT_EQ(jobs().gc().state, JobState::kRunning);
    const auto second = jobs().start_gc(0);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Code::kBusy);
    wait_for_gc();
    const GcJobFigures figures = jobs().gc();
    EXPECT_EQ(figures.state, JobState::kDone);
    EXPECT_EQ(figures.report.end, GcEnd::kNothingGains);
    EXPECT_FALSE(figures.free_enough);
    EXPECT_GT(figures.report.victims, 10U);
    EXPECT_EQ(figures.report.victims, counters().gc_segments_freed);
    EXPECT_EQ(bytes_of_blocks(figures.report.moved_blocks), counters().gc_relocated_bytes);
    EXPECT_EQ(bytes_of_blocks(figures.report.device_blocks), counters().gc_device_bytes);
    EXPECT_EQ(figures.report.device_blocks, figures.report.moved_blocks);
    EXPECT_EQ(figures.report.host_blocks, 0U);
    EXPECT_GT(figures.report.won_blocks, 10 * 64 / 2);
    EXPECT_GT(figures.elapsed_ns, 0U);
    // It was made durable: what became free can be used.
    EXPECT_GT(store().space().free_segments, free_before + 10);
    expect_contents();
    // Again: there is nothing left to do.
    ASSERT_TRUE(jobs().start_gc(0));
    wait_for_gc();
    EXPECT_EQ(jobs().gc().number, 2U);
    EXPECT_EQ(jobs().gc().report.victims, 0U);
    expect_clean_after_remount();
    volume.reset();
  }
}

TEST_F(JobsTest, CollectsAsFarAsAsked) {
  for (const GcMode mode : {GcMode::kOff, GcMode::kAuto}) {
    SCOPED_TRACE(static_cast<int>(mode));
    VolumeOptions options = small_options(2, false);
    options.store.gc = mode;
    mount(2, options);
    fragment(240, 16, 4);
    const double before = ready_percent();
    const auto percent = static_cast<uint32_t>(before) + 10;
    ASSERT_TRUE(jobs().start_gc(percent));
    wait_for_gc();
    const GcJobFigures figures = jobs().gc();
    EXPECT_EQ(figures.state, JobState::kDone);
    EXPECT_EQ(figures.report.end, GcEnd::kAsRequested);
    EXPECT_TRUE(figures.free_enough);
    EXPECT_EQ(figures.until_free_percent, percent);
    EXPECT_GE(ready_percent(), percent);
    EXPECT_LT(ready_percent(), percent + 8);
    // That is there already.
    ASSERT_TRUE(jobs().start_gc(static_cast<uint32_t>(before)));
    wait_for_gc();
    EXPECT_EQ(jobs().gc().report.victims, 0U);
    EXPECT_TRUE(jobs().gc().free_enough);
    // That cannot be had.
    ASSERT_TRUE(jobs().start_gc(100));
    wait_for_gc();
    EXPECT_EQ(jobs().gc().state, JobState::kDone);
    EXPECT_EQ(jobs().gc().report.end, GcEnd::kNothingGains);
    EXPECT_FALSE(jobs().gc().free_enough);
    const auto wrong = jobs().start_gc(101);
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code, Code::kInvalid);
    expect_clean_after_remount();
    volume.reset();
  }
}

TEST_F(JobsTest, CancelEndsACollectionAtItsNextUnit) {
  mount(3, small_options(3, false));
  fragment(240, 16, 4);
  EXPECT_FALSE(jobs().cancel(JobKind::kGc));
  ASSERT_TRUE(jobs().start_gc(0));
  while (jobs().gc().report.victims < 3) volume->pass(100'000);
  const uint64_t victims = jobs().gc().report.victims;
  EXPECT_TRUE(jobs().cancel(JobKind::kGc));
  wait_for_gc();
  EXPECT_EQ(jobs().gc().state, JobState::kCancelled);
  EXPECT_LE(jobs().gc().report.victims, victims + 1);
  expect_clean_after_remount();
}

// At any moment of a collection: closing waits for no more than what is under way.
TEST_F(JobsTest, ACollectionEndsWithTheMount) {
  for (uint64_t seed = 0; seed < 30; seed++) {
    SCOPED_TRACE(seed);
    mount(seed, small_options(seed, seed % 2 == 0));
    fragment(96, 16, 4);
    ASSERT_TRUE(jobs().start_gc(0));
    volume->pass(seed * 2'000'000);
    const uint64_t start = volume->world.clock.monotonic_ns();
    const auto closed = volume->close();
    ASSERT_TRUE(closed) << describe(closed.error());
    EXPECT_LT(volume->world.clock.monotonic_ns() - start, kSecondNs);
    ASSERT_TRUE(volume->open());
    EXPECT_TRUE(store().info().was_clean);
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
    if (HasFailure()) return;
    volume.reset();
  }
}

// A shutdown leaves the volume as a crash would: nothing is written any more, not by a job either.
TEST_F(JobsTest, ACollectionEndsWithTheStore) {
  for (uint64_t seed = 0; seed < 30; seed++) {
    SCOPED_TRACE(seed);
    const VolumeOptions options = small_options(seed, seed % 2 == 0);
    mount(seed, options);
    fragment(96, 16, 4);
    ASSERT_TRUE(jobs().start_gc(0));
    volume->pass(seed * 2'000'000);
    const uint64_t checkpoints = counters().checkpoints;
    volume->run(store().abandon());
    const auto refused = jobs().start_gc(0);
    ASSERT_FALSE(refused);
    EXPECT_LE(counters().checkpoints, checkpoints + 1);
    volume->abandon();
    const SimImage image = volume->device.image();
    mount_image(seed, image, options);
    expect_contents();
    EXPECT_EQ(volume->verify(true), "");
    if (HasFailure()) return;
    volume.reset();
  }
}

TEST_F(JobsTest, AFailedStoreFailsTheCollection) {
  mount(5, small_options(5, false));
  fragment(96, 16, 4);
  ASSERT_TRUE(jobs().start_gc(0));
  volume->pass(1'000'000);
  SimFaults faults;
  faults.flush_error = 1;
  volume->device.set_faults(faults);
  wait_for_gc();
  EXPECT_EQ(jobs().gc().state, JobState::kFailed);
  EXPECT_EQ(jobs().gc().error.code, Code::kShutdown);
  const auto again = jobs().start_gc(0);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Code::kShutdown);
}

TEST_F(JobsTest, ADeviceThatRefusesWritesFailsTheCollectionButNotTheNext) {
  mount(5, small_options(5, false));
  fragment(96, 16, 4);
  ASSERT_TRUE(jobs().start_gc(0));
  volume->pass(1'000'000);
  volume->device.refuse_writes(0, UINT64_MAX);
  wait_for_gc();
  EXPECT_EQ(jobs().gc().state, JobState::kFailed);
  EXPECT_EQ(jobs().gc().error.code, Code::kIo);
  volume->device.refuse_writes(0, 0);
  ASSERT_TRUE(volume->run(fs().sync()));
  ASSERT_TRUE(jobs().start_gc(0));
  wait_for_gc();
  EXPECT_EQ(jobs().gc().state, JobState::kDone);
  expect_contents();
  EXPECT_EQ(volume->verify(true), "");
}

TEST_F(JobsTest, ReadOnlyMountsCollectNothing) {
  VolumeOptions options = small_options(6, false);
  mount(6, options);
  ASSERT_TRUE(volume->close());
  const SimImage image = volume->device.image();
  options.store.read_only = true;
  options.fs.read_only = true;
  mount_image(6, image, options);
  const auto refused = jobs().start_gc(0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kReadOnly);
}

// Where no reserve is kept for it, a collection leaves what deleting needs, and says that it has no room.
TEST_F(JobsTest, AFullVolumeWithoutAReserveCanStillDelete) {
  VolumeOptions options = small_options(7, false);
  options.store.gc = GcMode::kOff;
  mount(7, options);
  int count = 0;
  while (create("f" + std::to_string(count), 16)) count++;
  files.erase("f" + std::to_string(count));  // its data found no room
  ASSERT_GT(count, 100);
  ASSERT_TRUE(volume->run(fs().sync()));
  for (int i = 0; i < count; i += 3) remove("f" + std::to_string(i));
  ASSERT_TRUE(volume->run(fs().sync()));
  ASSERT_TRUE(jobs().start_gc(0));
  wait_for_gc();
  EXPECT_EQ(jobs().gc().state, JobState::kDone);
  EXPECT_EQ(jobs().gc().report.end, GcEnd::kNoRoom);
  expect_contents();
  // Whole segments become free by this.
  for (int i = 0; i < count / 2; i++) {
    if (i % 3 != 0) remove("f" + std::to_string(i));
  }
  ASSERT_TRUE(volume->run(fs().sync()));
  expect_clean_after_remount();
  ASSERT_TRUE(jobs().start_gc(0));
  wait_for_gc();
  EXPECT_EQ(jobs().gc().state, JobState::kDone);
  EXPECT_EQ(jobs().gc().report.end, GcEnd::kNothingGains);
  EXPECT_GT(jobs().gc().report.victims, 10U);
  expect_clean_after_remount();
}

}  // namespace
}  // namespace cofs
