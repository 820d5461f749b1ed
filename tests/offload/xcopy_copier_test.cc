// EXTENDED COPY through the simulated target, right and wrong.
#include "offload/xcopy_copier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "offload/xcopy_list.h"
#include "tests/testing/sim_scsi_bench.h"

namespace cofs {
namespace {

SimScsiOptions disk_of_blocks(uint64_t blocks, uint32_t lba_bytes) {
  SimScsiOptions options;
  options.lba_bytes = lba_bytes;
  options.lba_count = blocks * 4096 / lba_bytes;
  return options;
}

TEST(XcopyCopier, CopiesLikeTheModel) {
  struct Shape {
    uint32_t lba_bytes;
    uint16_t segments;
    bool no_list_id;
    uint32_t held_data;
    uint16_t cscds_min;
    bool descriptor_sense;
  };
  const Shape shapes[] = {{512, 1, true, 0, 1, false},
                          {4096, 1, true, 0, 1, true},
                          {512, 9, false, 0, 1, false},
                          {1024, 30, false, 64, 2, true},
                          {2048, 7, true, 0, 2, false}};
  uint64_t seed = 1;
  for (const Shape& shape : shapes) {
    SimScsiOptions options = disk_of_blocks(300, shape.lba_bytes);
    options.segments_max = shape.segments;
    options.no_list_id = shape.no_list_id;
    options.held_data_max = shape.held_data;
    options.cscds_min = shape.cscds_min;
    options.descriptor_sense = shape.descriptor_sense;
    SimScsiBench bench({options}, 17);
    const auto probed = bench.probe<XcopyCopier>();
    ASSERT_TRUE(probed) << probed.error();
    EXPECT_EQ(bench.copier->limits().engine, "xcopy");
    EXPECT_EQ(bench.copier->limits().path, CopyPath::kDevice);
    EXPECT_EQ(bench.copier->limits().ranges_max, shape.segments);
    EXPECT_EQ(bench.run_random_copies(seed++, 60), "");
    const SimScsiTarget::Counters counters = bench.targets[0]->counters();
    EXPECT_EQ(counters.xcopies, 60U);  // one command each
  }
}

TEST(XcopyCopier, SeveralDisks) {
  SimScsiOptions first = disk_of_blocks(200, 512);
  first.segments_max = 5;
  SimScsiOptions second = disk_of_blocks(150, 4096);
  second.segments_max = 9;
  second.segment_bytes_max = 20 * 4096;
  SimScsiBench bench({first, second}, 3);
  ASSERT_TRUE(bench.probe<XcopyCopier>());
  const CopyLimits& limits = bench.copier->limits();
  EXPECT_EQ(limits.ranges_max, 5U);
  EXPECT_EQ(limits.range_blocks_max, 20U);
  EXPECT_EQ(limits.operation_blocks_max, 9U * 20);  // the ranges bound it more
  ASSERT_EQ(limits.regions.size(), 2U);
  EXPECT_EQ(bench.run_random_copies(99, 60), "");
  EXPECT_GT(bench.targets[0]->counters().xcopies, 0U);
  EXPECT_GT(bench.targets[1]->counters().xcopies, 0U);
  // Between the disks nothing can be copied.
  const IoRequest across = bench.copy({{0, 1}}, 300);
  ASSERT_FALSE(across.result);
  EXPECT_EQ(across.result.error().code, Code::kNotSupported);
  EXPECT_EQ(across.good_blocks, 0U);
}

TEST(XcopyCopier, ManyAtOnce) {
  SimScsiOptions options = disk_of_blocks(4096, 512);
  options.no_list_id = false;
  options.copies_max = 6;
  SimScsiBench bench({options}, 0);
  ASSERT_TRUE(bench.probe<XcopyCopier>());
  EXPECT_EQ(bench.copier->limits().in_flight_max, 6U);
  bench.fill(5);
  constexpr size_t kRequests = 200;
  std::vector<IoRequest> requests(kRequests);
  std::vector<BlockRange> sources(kRequests);
  for (size_t i = 0; i < kRequests; i++) {
    sources[i] = {i * 10, 10};
    requests[i].op = IoRequest::Op::kCopy;
    requests[i].range = {2048 + i * 10, 10};
    requests[i].sources = {&sources[i], 1};
    bench.copier->start(requests[i]);
  }
  bench.sink.wait_for(kRequests);
  for (size_t i = 0; i < kRequests; i++) {
    ASSERT_TRUE(requests[i].result);
    for (uint64_t b = 0; b < 10; b++) {
      ASSERT_TRUE(std::ranges::equal(bench.block(i * 10 + b), bench.block(2048 + i * 10 + b)));
    }
  }
}

// Sees the list identifiers of the commands that are with the disk at one time.
class ListIdWatch final : public ScsiTransport {
 public:
  explicit ListIdWatch(std::shared_ptr<SimScsiTarget> target) : target_(std::move(target)) {}
  ScsiOutcome execute(const ScsiCommand& command) override {
    if (command.cdb[0] != 0x83) return target_->execute(command);
    const uint8_t id = command.to_device[0];
    {
      std::lock_guard lock(mutex_);
      if (id == 0 || !in_flight_.insert(id).second) twice_ = true;
      in_flight_max_ = std::max(in_flight_max_, in_flight_.size());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // until others are there, too
    const ScsiOutcome outcome = target_->execute(command);
    std::lock_guard lock(mutex_);
    in_flight_.erase(id);
    return outcome;
  }
  void pause(std::chrono::milliseconds time) override { target_->pause(time); }
  bool twice_ = false;
  size_t in_flight_max_ = 0;

 private:
  std::shared_ptr<SimScsiTarget> target_;
  std::mutex mutex_;
  std::set<uint8_t> in_flight_;
};

TEST(XcopyCopier, ListIdsInFlightDiffer) {
  SimScsiOptions options = disk_of_blocks(1024, 512);
  options.no_list_id = false;
  options.copies_max = 5;
  SimScsiBench bench({options}, 0);
  auto watch = std::make_shared<ListIdWatch>(bench.targets[0]);
  auto copier = XcopyCopier::probe(bench.stack, bench.block_count, {watch}, bench.sink);
  ASSERT_TRUE(copier) << copier.error();
  constexpr size_t kRequests = 50;
  std::vector<IoRequest> requests(kRequests);
  std::vector<BlockRange> sources(kRequests);
  for (size_t i = 0; i < kRequests; i++) {
    sources[i] = {i, 1};
    requests[i].op = IoRequest::Op::kCopy;
    requests[i].range = {512 + i, 1};
    requests[i].sources = {&sources[i], 1};
    (*copier)->start(requests[i]);
  }
  bench.sink.wait_for(kRequests);
  EXPECT_FALSE(watch->twice_);
  EXPECT_GT(watch->in_flight_max_, 1U);
  EXPECT_LE(watch->in_flight_max_, 5U);
}

std::string refusal(const SimScsiOptions& options, const SimScsiFaults& faults = {}) {
  SimScsiBench bench({options}, 0);
  bench.targets[0]->set_faults(faults);
  const auto probed = bench.probe<XcopyCopier>();
  EXPECT_EQ(bench.targets[0]->counters().xcopies, 0U);  // nothing was written in any case
  return probed ? "" : probed.error();
}

TEST(XcopyCopier, ProbeSaysWhyNot) {
  const SimScsiOptions good = disk_of_blocks(64, 512);
  EXPECT_EQ(refusal(good), "");
  SimScsiOptions options = good;
  options.third_party_copy = false;
  EXPECT_EQ(refusal(options), "xcopy: sda has no third-party copy (3PC is 0)");
  options = good;
  options.xcopy = false;
  EXPECT_EQ(refusal(options),
            "xcopy: sda refuses RECEIVE COPY OPERATING PARAMETERS: invalid operation code");
  options = good;
  options.descriptor_types = {0x02, 0xe5};
  EXPECT_EQ(refusal(options),
            "xcopy: sda does not take identification descriptors (CSCD type 0xe4)");
  options = good;
  options.granularity_log2 = 13;
  EXPECT_EQ(refusal(options), "xcopy: sda copies multiples of 2^13 bytes only, a block has 4096");
  options = good;
  options.cscds_min = 3;  // nothing we can send pleases it
  EXPECT_EQ(refusal(options), "xcopy: sda refuses EXTENDED COPY: invalid field in parameter list");
  SimScsiFaults faults;
  faults.good_copies = 0;
  faults.then = SimScsiFaults::Then::kNotPermitted;
  EXPECT_EQ(
      refusal(good, faults),
      "xcopy: sda refuses EXTENDED COPY: the kernel wants CAP_SYS_RAWIO for this; run as root");
  faults.then = SimScsiFaults::Then::kInvalidOpcode;
  EXPECT_EQ(refusal(good, faults), "xcopy: sda refuses EXTENDED COPY: invalid operation code");
  faults = {};
  faults.response_bytes_max = 43;
  EXPECT_EQ(refusal(good, faults),
            "xcopy: sda refuses RECEIVE COPY OPERATING PARAMETERS: the answer is too short");
}

TEST(XcopyCopier, ProbeSurvivesGarbage) {
  for (uint64_t seed = 1; seed <= 300; seed++) {
    SimScsiFaults faults;
    faults.garbage_seed = seed;
    const std::string why = refusal(disk_of_blocks(64, 512), faults);
    ASSERT_TRUE(why.starts_with("xcopy: sda ")) << why << ", seed " << seed;
  }
}

class XcopyFault : public testing::Test {
 protected:
  void SetUp() override {
    SimScsiOptions options = disk_of_blocks(256, 512);
    options.segments_max = 4;
    bench_ = std::make_unique<SimScsiBench>(std::vector{options}, 0);
    ASSERT_TRUE(bench_->probe<XcopyCopier>());
    bench_->fill(8);
  }
  IoRequest copy() { return bench_->copy({{10, 3}, {20, 3}, {30, 3}}, 100); }
  void expect_failure(const SimScsiFaults& faults, Code code, const char* what) {
    bench_->targets[0]->set_faults(faults);
    const IoRequest request = copy();
    ASSERT_FALSE(request.result) << what;
    EXPECT_EQ(request.result.error().code, code);
    EXPECT_STREQ(request.result.error().what, what);
    EXPECT_EQ(request.good_blocks, 0U);  // nothing is known about what was copied
    bench_->targets[0]->set_faults({});
    EXPECT_TRUE(copy().result);  // and repeating it is harmless
    EXPECT_TRUE(std::ranges::equal(bench_->block(32), bench_->block(108)));
  }

  std::unique_ptr<SimScsiBench> bench_;
};

TEST_F(XcopyFault, ASegmentInTheMiddle) {
  SimScsiFaults faults;
  faults.fail_segment = 1;
  expect_failure(faults, Code::kIo, "copy target not reachable, or copy failed midway");
}

TEST_F(XcopyFault, AbortedAfterSomeCommands) {
  SimScsiFaults faults;
  faults.good_copies = 2;
  bench_->targets[0]->set_faults(faults);
  EXPECT_TRUE(copy().result);
  EXPECT_TRUE(copy().result);
  const IoRequest third = copy();
  ASSERT_FALSE(third.result);
  EXPECT_EQ(third.result.error().code, Code::kIo);
  EXPECT_STREQ(third.result.error().what, "device aborted the copy");
}

TEST_F(XcopyFault, RefusedAfterWorking) {
  SimScsiFaults faults;
  faults.good_copies = 0;
  faults.then = SimScsiFaults::Then::kInvalidOpcode;
  expect_failure(faults, Code::kNotSupported, "invalid operation code");
}

TEST_F(XcopyFault, MediumError) {
  SimScsiFaults faults;
  faults.good_copies = 0;
  faults.then = SimScsiFaults::Then::kMediumError;
  expect_failure(faults, Code::kIo, "medium error");
}

TEST_F(XcopyFault, TimedOut) {
  SimScsiFaults faults;
  faults.good_copies = 0;
  faults.then = SimScsiFaults::Then::kTimedOut;
  expect_failure(faults, Code::kIo, "aborted after its timeout");
}

TEST_F(XcopyFault, ConnectionLost) {
  SimScsiFaults faults;
  faults.good_copies = 0;
  faults.then = SimScsiFaults::Then::kLost;
  expect_failure(faults, Code::kTimedOut, "connection lost, the command may still take effect");
}

TEST_F(XcopyFault, Reserved) {
  SimScsiFaults faults;
  faults.reservation_conflict = true;
  expect_failure(faults, Code::kIo, "reserved by another host");
}

TEST_F(XcopyFault, BusyAndUnitAttentionPass) {
  SimScsiFaults faults;
  faults.busy_times = 5;
  faults.unit_attention_times = 3;
  bench_->targets[0]->set_faults(faults);
  EXPECT_TRUE(copy().result);
  EXPECT_EQ(bench_->targets[0]->counters().paused_ms, 10U + 20 + 40 + 80 + 160);
}

// Only whoever owns the data can notice.
TEST_F(XcopyFault, SuccessWithoutDoingAnything) {
  SimScsiFaults faults;
  faults.copies_nothing = true;
  bench_->targets[0]->set_faults(faults);
  const auto before = bench_->snapshot();
  const IoRequest request = copy();
  EXPECT_TRUE(request.result);
  EXPECT_EQ(request.good_blocks, 9U);
  EXPECT_TRUE(bench_->snapshot() == before);
}

using Bytes = std::vector<uint8_t>;

ScsiDisk disk_of_another_name(uint32_t lba_bytes) {
  ScsiDisk disk;
  disk.lba_bytes = lba_bytes;
  disk.designator.code_set = 1;
  disk.designator.type = 3;
  disk.designator.length = 16;
  for (uint8_t i = 0; i < 16; i++) disk.designator.bytes[i] = static_cast<uint8_t>(0x60 + i);
  return disk;
}

// The simulated target enforces what it reports, so that the tests above mean something.
TEST(SimScsiTarget, EnforcesItsLimits) {
  SimScsiOptions options = disk_of_blocks(64, 512);
  options.unit_attention_first = false;
  SimScsiTarget target(options);
  const std::vector<uint8_t> naa = {0x60, 0x01, 0x40, 0x51, 0x22, 0x33, 0x44, 0x55,
                                    0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd};
  ScsiDisk disk = disk_of_another_name(512);
  std::ranges::copy(naa, disk.designator.bytes.begin());
  auto sense_of = [&](const Bytes& list) -> std::vector<int> {
    const ScsiOutcome outcome = target.execute(xcopy_command(list));
    if (outcome.status == 0) return {};
    return {outcome.sense[2], outcome.sense[12], outcome.sense[13]};
  };
  const XcopySegment one{0, 64, 8};
  const XcopySegment two[] = {{0, 64, 8}, {8, 72, 8}};
  const XcopySegment off_the_end{512 - 7, 0, 8};
  EXPECT_EQ(sense_of(encode_xcopy_list({}, disk, {&one, 1})), (std::vector<int>{}));
  EXPECT_EQ(sense_of(encode_xcopy_list({}, disk, two)), (std::vector{5, 0x26, 0x08}));
  EXPECT_EQ(sense_of(encode_xcopy_list({}, disk, {&off_the_end, 1})),
            (std::vector{0xa, 0x0d, 0x02}));
  EXPECT_EQ(sense_of(encode_xcopy_list({}, disk_of_another_name(512), {&one, 1})),
            (std::vector{0xa, 0x0d, 0x02}));  // another disk's name
  ScsiDisk wrong_length = disk;
  wrong_length.lba_bytes = 4096;
  EXPECT_EQ(sense_of(encode_xcopy_list({}, wrong_length, {&one, 1})), (std::vector{5, 0x26, 0}));
  Bytes short_list = encode_xcopy_list({}, disk, {&one, 1});
  short_list.pop_back();
  EXPECT_EQ(sense_of(short_list), (std::vector{5, 0x1a, 0}));
  EXPECT_EQ(target.counters().xcopies, 1U);
}

}  // namespace
}  // namespace cofs
