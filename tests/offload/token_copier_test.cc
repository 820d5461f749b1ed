// Token copy through the simulated target, with tokens that expire, cover too little, or are
// unknown, and operations that fail, go on, or are never done.
#include "offload/token_copier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "offload/token_list.h"
#include "tests/testing/sim_scsi_bench.h"

namespace cofs {
namespace {

using Bytes = std::vector<uint8_t>;

SimScsiOptions token_disk(uint64_t blocks, uint32_t lba_bytes) {
  SimScsiOptions options;
  options.lba_bytes = lba_bytes;
  options.lba_count = blocks * 4096 / lba_bytes;
  options.xcopy = false;
  options.tokens = true;
  options.copies_total = 4;
  return options;
}

TEST(TokenCopier, CopiesLikeTheModel) {
  uint64_t seed = 1;
  for (uint32_t lba_bytes : {512U, 4096U}) {
    for (int shape = 0; shape < 8; shape++) {
      SimScsiOptions options = token_disk(300, lba_bytes);
      options.ranges_max = static_cast<uint16_t>(1 + shape * 5);
      options.polls_until_token = shape % 3 == 2 ? 3 : 0;
      options.polls_until_written = shape % 3 == 1 ? 2 : 0;
      options.descriptor_sense = shape % 2 == 1;
      options.vulnerable_tokens = shape % 4 == 1;
      const uint64_t per_block = 4096 / lba_bytes;
      if (shape == 3) options.populate_lbas_max = 7 * per_block + per_block / 2;
      if (shape == 4) options.write_lbas_max = 5 * per_block + per_block - 1;
      if (shape == 5) {
        options.populate_lbas_max = 9 * per_block;
        options.write_lbas_max = 4 * per_block;
        options.short_write_status = 4;
      }
      if (shape == 6) options.transfer_lbas_max = static_cast<uint32_t>(3 * per_block + 1);
      if (shape == 7) options.token_lbas_max = 11 * per_block;
      options.limits_descriptor = shape != 0;
      SimScsiBench bench({options}, 17);
      const auto probed = bench.probe<TokenCopier>();
      ASSERT_TRUE(probed) << probed.error();
      EXPECT_EQ(bench.copier->limits().engine, "token");
      EXPECT_EQ(bench.copier->limits().path, CopyPath::kDevice);
      EXPECT_EQ(bench.run_random_copies(seed++, 30), "") << "shape " << shape;
    }
  }
}

TEST(TokenCopier, AskedOncePerCommandWhereNothingRuns) {
  SimScsiBench bench({token_disk(300, 512)}, 0);
  ASSERT_TRUE(bench.probe<TokenCopier>());
  EXPECT_EQ(bench.copier->limits().ranges_max, 8U);
  ASSERT_TRUE(bench.copy({{10, 3}, {20, 5}}, 100).result);
  const SimScsiTarget::Counters counters = bench.targets[0]->counters();
  EXPECT_EQ(counters.populates, 1U);
  EXPECT_EQ(counters.token_writes, 1U);
  EXPECT_EQ(counters.polls, 2U);
  EXPECT_EQ(counters.paused_ms, 0U);
}

TEST(TokenCopier, SeveralDisks) {
  SimScsiOptions first = token_disk(200, 512);
  SimScsiOptions second = token_disk(150, 4096);
  second.ranges_max = 3;
  second.token_lbas_max = 33;
  SimScsiBench bench({first, second}, 3);
  ASSERT_TRUE(bench.probe<TokenCopier>());
  EXPECT_EQ(bench.copier->limits().ranges_max, 3U);
  EXPECT_EQ(bench.copier->limits().operation_blocks_max, 33U);
  EXPECT_EQ(bench.run_random_copies(77, 40), "");
  EXPECT_FALSE(bench.copy({{0, 1}}, 300).result);
}

TEST(TokenCopier, ManyAtOnce) {
  SimScsiOptions options = token_disk(4096, 512);
  options.polls_until_token = options.polls_until_written = 2;
  // The pauses of all threads advance one clock; together they must not outlast a token, however
  // long the scheduler keeps a thread from using its own.
  options.update_delay_ms = 1;
  SimScsiBench bench({options}, 0);
  ASSERT_TRUE(bench.probe<TokenCopier>());
  EXPECT_EQ(bench.copier->limits().in_flight_max, 4U);
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
    ASSERT_TRUE(requests[i].result) << requests[i].result.error().what;
    for (uint64_t b = 0; b < 10; b++) {
      ASSERT_TRUE(std::ranges::equal(bench.block(i * 10 + b), bench.block(2048 + i * 10 + b)));
    }
  }
}

std::string refusal(const SimScsiOptions& options, const SimScsiFaults& faults = {}) {
  SimScsiBench bench({options}, 0);
  bench.targets[0]->set_faults(faults);
  const auto probed = bench.probe<TokenCopier>();
  const SimScsiTarget::Counters counters = bench.targets[0]->counters();
  EXPECT_EQ(counters.populates + counters.token_writes, 0U);
  return probed ? "" : probed.error();
}

TEST(TokenCopier, ProbeSaysWhyNot) {
  const SimScsiOptions good = token_disk(64, 512);
  EXPECT_EQ(refusal(good), "");
  SimScsiOptions options = good;
  options.third_party_copy = false;
  EXPECT_EQ(refusal(options), "token: sda has no third-party copy (3PC is 0)");
  options = good;
  options.tokens = false;
  EXPECT_EQ(refusal(options),
            "token: sda has no third-party copy page (VPD 0x8F): invalid field in command");
  options = good;
  options.limits_descriptor = options.commands_descriptor = false;
  EXPECT_EQ(refusal(options), "token: sda has no token copy (VPD 0x8F)");
  options.limits_descriptor = true;
  EXPECT_EQ(refusal(options), "");
  options = good;
  options.token_lbas_max = 7;
  EXPECT_EQ(refusal(options), "token: sda has a token limit below one block");
}

TEST(TokenCopier, ProbeSurvivesGarbage) {
  for (uint64_t seed = 1; seed <= 300; seed++) {
    SimScsiFaults faults;
    faults.garbage_seed = seed;
    const std::string why = refusal(token_disk(64, 512), faults);
    ASSERT_TRUE(why.starts_with("token: sda ")) << why << ", seed " << seed;
  }
}

class TokenFault : public testing::Test {
 protected:
  void open(const SimScsiOptions& options) {
    bench_ = std::make_unique<SimScsiBench>(std::vector{options}, 0);
    const auto probed = bench_->probe<TokenCopier>();
    ASSERT_TRUE(probed) << probed.error();
    bench_->fill(8);
  }
  void SetUp() override { open(token_disk(256, 512)); }
  IoRequest copy() { return bench_->copy({{10, 3}, {20, 3}, {30, 3}}, 100); }
  void expect_failure(const SimScsiFaults& faults, Code code, const char* what,
                      uint64_t good_blocks = 0) {
    bench_->targets[0]->set_faults(faults);
    const IoRequest request = copy();
    ASSERT_FALSE(request.result) << what;
    EXPECT_EQ(request.result.error().code, code);
    EXPECT_STREQ(request.result.error().what, what);
    EXPECT_EQ(request.good_blocks, good_blocks);
    EXPECT_EQ(request.result.error().where, 100 + good_blocks);
    for (uint64_t i = 0; i < good_blocks; i++) {
      EXPECT_TRUE(
          std::ranges::equal(bench_->block(10 + i / 3 * 10 + i % 3), bench_->block(100 + i)));
    }
    bench_->targets[0]->set_faults({});
  }

  std::unique_ptr<SimScsiBench> bench_;
};

TEST_F(TokenFault, UnknownToken) {
  SimScsiFaults faults;
  faults.forgets_tokens = true;
  expect_failure(faults, Code::kIo, "token unknown");
  EXPECT_TRUE(copy().result);
}

TEST_F(TokenFault, TokenExpires) {
  SimScsiOptions options = token_disk(256, 512);
  options.inactivity_max_s = 1;
  options.polls_until_token = 60;  // of 20 ms each
  open(options);
  const IoRequest request = bench_->copy({{10, 3}}, 100);
  ASSERT_FALSE(request.result);
  EXPECT_EQ(request.result.error().code, Code::kIo);
  // It was not used for more than a second.
  EXPECT_STREQ(request.result.error().what, "token expired");
}

TEST_F(TokenFault, WriteFailsMidway) {
  SimScsiFaults faults;
  faults.fail_write_after_lbas = 5 * 8 + 3;
  expect_failure(faults, Code::kIo, "medium error", 5);
}

TEST_F(TokenFault, WriteFailsMidwayInTheBackground) {
  SimScsiOptions options = token_disk(256, 512);
  options.polls_until_token = options.polls_until_written = 2;
  open(options);
  SimScsiFaults faults;
  faults.fail_write_after_lbas = 5 * 8 + 3;
  expect_failure(faults, Code::kIo, "medium error", 5);
}

TEST_F(TokenFault, WriteFailsAtOnce) {
  SimScsiFaults faults;
  faults.fail_write_after_lbas = 0;
  expect_failure(faults, Code::kIo, "medium error", 0);
}

TEST_F(TokenFault, LittleAtATime) {
  SimScsiOptions options = token_disk(256, 512);
  options.write_lbas_max = 8;
  open(options);
  EXPECT_TRUE(copy().result);  // nine blocks, nine writes
  const IoRequest request = bench_->copy({{0, 100}}, 110);
  ASSERT_FALSE(request.result);
  EXPECT_STREQ(request.result.error().what, "device copies too little at a time");
  EXPECT_EQ(request.good_blocks, 64U);
  EXPECT_TRUE(std::ranges::equal(bench_->block(63), bench_->block(173)));
}

TEST_F(TokenFault, LessThanABlock) {
  SimScsiOptions options = token_disk(256, 512);
  options.write_lbas_max = 7;
  open(options);
  expect_failure({}, Code::kIo, "device copied less than a block");
  options = token_disk(256, 512);
  options.populate_lbas_max = 7;
  open(options);
  expect_failure({}, Code::kIo, "token covers less than a block");
}

TEST_F(TokenFault, RefusedAfterWorking) {
  SimScsiFaults faults;
  faults.good_copies = 2;
  faults.then = SimScsiFaults::Then::kInvalidOpcode;
  bench_->targets[0]->set_faults(faults);
  EXPECT_TRUE(copy().result);
  const IoRequest second = copy();
  ASSERT_FALSE(second.result);
  EXPECT_EQ(second.result.error().code, Code::kNotSupported);
  EXPECT_STREQ(second.result.error().what, "invalid operation code");
}

TEST_F(TokenFault, FirstOrSecondCommandFails) {
  struct Case {
    SimScsiFaults::Then then;
    Code code_of_populate;
    Code code_of_write;
    const char* what;
  };
  using Then = SimScsiFaults::Then;
  const char* lost = "connection lost, the command may still take effect";
  const Case cases[] = {
      {Then::kCopyAborted, Code::kIo, Code::kIo, "device aborted the copy"},
      {Then::kMediumError, Code::kIo, Code::kIo, "medium error"},
      {Then::kTimedOut, Code::kIo, Code::kIo, "aborted after its timeout"},
      {Then::kGone, Code::kIo, Code::kIo, "disk is gone"},
      {Then::kLost, Code::kIo, Code::kTimedOut, lost},  // a lost POPULATE TOKEN harms nobody
  };
  for (const Case& one : cases) {
    for (uint32_t good : {0U, 1U}) {
      SimScsiFaults faults;
      faults.good_copies = good;
      faults.then = one.then;
      expect_failure(faults, good == 0 ? one.code_of_populate : one.code_of_write, one.what);
    }
  }
}

TEST_F(TokenFault, BusyAndUnitAttentionPass) {
  SimScsiFaults faults;
  faults.busy_times = 2;
  faults.unit_attention_times = 3;
  bench_->targets[0]->set_faults(faults);
  EXPECT_TRUE(copy().result);
  EXPECT_EQ(bench_->targets[0]->counters().paused_ms, 30U);
}

TEST_F(TokenFault, PollsWithTheDelayTheDeviceAsksFor) {
  SimScsiOptions options = token_disk(256, 512);
  options.polls_until_token = options.polls_until_written = 10;
  open(options);
  EXPECT_TRUE(copy().result);
  const SimScsiTarget::Counters counters = bench_->targets[0]->counters();
  EXPECT_EQ(counters.polls, 22U);
  EXPECT_EQ(counters.paused_ms, 20U * 20);
  EXPECT_EQ(counters.aborts, 0U);
}

TEST_F(TokenFault, NeverDoneIsAborted) {
  for (bool token : {true, false}) {
    SimScsiOptions options = token_disk(256, 512);
    (token ? options.polls_until_token : options.polls_until_written) = 1'000'000;
    open(options);
    const auto before = bench_->snapshot();
    expect_failure({}, Code::kIo, "aborted after its timeout");
    const SimScsiTarget::Counters counters = bench_->targets[0]->counters();
    EXPECT_EQ(counters.token_writes, token ? 0U : 1U);
    EXPECT_EQ(counters.aborts, 1U);
    EXPECT_GE(counters.paused_ms, 2000U);  // the timeout of the request
    EXPECT_LT(counters.paused_ms, 2200U);
    EXPECT_TRUE(bench_->snapshot() == before);
  }
}

// A copy that neither ends nor can be aborted may still write: only then is the target in doubt.
TEST_F(TokenFault, CannotBeAborted) {
  SimScsiFaults faults;
  faults.abort_does_nothing = true;
  SimScsiOptions options = token_disk(256, 512);
  options.polls_until_token = 1'000'000;
  open(options);
  expect_failure(faults, Code::kIo, "copy goes on after it was aborted");
  EXPECT_EQ(bench_->targets[0]->counters().token_writes, 0U);
  options.polls_until_token = 0;
  options.polls_until_written = 1'000'000;
  open(options);
  expect_failure(faults, Code::kTimedOut, "copy goes on after it was aborted");
  EXPECT_EQ(bench_->targets[0]->counters().aborts, 1U);
}

// The kernel has aborted the command, or thinks so.
TEST_F(TokenFault, GoesOnAfterItsCommandWasAborted) {
  SimScsiOptions options = token_disk(256, 512);
  options.polls_until_written = 1'000'000;
  open(options);
  const auto before = bench_->snapshot();
  SimScsiFaults faults;
  faults.write_answer_lost = true;
  expect_failure(faults, Code::kIo, "aborted after its timeout");
  EXPECT_EQ(bench_->targets[0]->counters().aborts, 1U);
  EXPECT_TRUE(bench_->snapshot() == before);
  open(options);
  faults.abort_does_nothing = true;
  expect_failure(faults, Code::kTimedOut, "copy goes on after it was aborted");
}

// Changes what comes back from the questions about writes.
class Meddler final : public ScsiTransport {
 public:
  using Change =
      std::function<void(int question, const ScsiCommand& command, ScsiOutcome& outcome)>;
  Meddler(std::shared_ptr<SimScsiTarget> target, Change change)
      : target_(std::move(target)), change_(std::move(change)) {}
  ScsiOutcome execute(const ScsiCommand& command) override {
    ScsiOutcome outcome = target_->execute(command);
    wrote_ |= command.cdb[0] == 0x83 && command.cdb[1] == 0x11;
    if (wrote_ && command.cdb[0] == 0x84 && command.cdb[1] == 0x07) {
      change_(questions_++, command, outcome);
    }
    return outcome;
  }
  void pause(std::chrono::milliseconds time) override { target_->pause(time); }

 private:
  std::shared_ptr<SimScsiTarget> target_;
  Change change_;
  bool wrote_ = false;
  int questions_ = 0;
};

// One copy of three blocks on a disk whose answers are meddled with.
IoRequest meddled_copy(uint32_t polls_until_written, const Meddler::Change& change) {
  SimScsiOptions options = token_disk(256, 512);
  options.polls_until_written = polls_until_written;
  SimScsiBench bench({options}, 0);
  auto meddler = std::make_shared<Meddler>(bench.targets[0], change);
  auto copier = TokenCopier::probe(bench.stack, bench.block_count, {meddler}, bench.sink);
  EXPECT_TRUE(copier);
  bench.copier = *std::move(copier);
  return bench.copy({{10, 3}}, 100);
}

TEST(TokenMeddled, NotAtAll) {
  const IoRequest request = meddled_copy(2, [](int, const ScsiCommand&, ScsiOutcome&) {});
  EXPECT_TRUE(request.result);
  EXPECT_EQ(request.good_blocks, 3U);
}

TEST(TokenMeddled, WriteThatCannotBeAskedAbout) {
  for (int heard : {0, 2}) {
    const IoRequest request =
        meddled_copy(4, [&](int question, const ScsiCommand&, ScsiOutcome& outcome) {
          if (question >= heard) outcome = {};
        });
    ASSERT_FALSE(request.result);
    // It had ended for all we know; or it was seen to go on.
    EXPECT_EQ(request.result.error().code, heard == 0 ? Code::kIo : Code::kTimedOut);
    EXPECT_EQ(request.good_blocks, 0U);
  }
}

TEST(TokenMeddled, AnswerAboutAnotherCommand) {
  const IoRequest request = meddled_copy(0, [](int, const ScsiCommand& command, ScsiOutcome&) {
    command.from_device[4] = 0x10;  // POPULATE TOKEN
  });
  ASSERT_FALSE(request.result);
  EXPECT_STREQ(request.result.error().what, "no usable information about the copy");
  EXPECT_EQ(request.good_blocks, 0U);
}

// Neither says that what it counts lies on the medium.
TEST(TokenMeddled, CountsOfTerminatedAndUnknownAreNotBelieved) {
  struct Case {
    uint8_t status;
    const char* what;
  };
  for (const Case& one :
       {Case{0x60, "device terminated the copy"}, Case{0x05, "unknown copy status"}}) {
    const IoRequest request = meddled_copy(0, [&](int, const ScsiCommand& command, ScsiOutcome&) {
      command.from_device[5] = one.status;
    });
    ASSERT_FALSE(request.result);
    EXPECT_EQ(request.result.error().code, Code::kIo);
    EXPECT_STREQ(request.result.error().what, one.what);
    EXPECT_EQ(request.good_blocks, 0U);
  }
}

// A count beyond what was asked is cut to it.
TEST(TokenMeddled, CountTooLarge) {
  const IoRequest request = meddled_copy(
      0, [](int, const ScsiCommand& command, ScsiOutcome&) { command.from_device[16] = 0xff; });
  EXPECT_TRUE(request.result);
  EXPECT_EQ(request.good_blocks, 3U);
}

TEST_F(TokenFault, ShortAndGarbledAnswers) {
  for (uint32_t bytes : {0U, 31U, 40U, 300U}) {
    SimScsiFaults faults;
    faults.response_bytes_max = bytes;
    bench_->targets[0]->set_faults(faults);
    const IoRequest request = copy();
    ASSERT_FALSE(request.result);
    EXPECT_EQ(request.good_blocks, 0U);
    EXPECT_STREQ(request.result.error().what,
                 bytes < 32 ? "no usable information about the copy" : "device gave no token");
  }
  for (uint64_t seed = 1; seed < 300; seed++) {
    SimScsiFaults faults;
    faults.garbage_seed = seed;
    bench_->targets[0]->set_faults(faults);
    const IoRequest request = copy();
    EXPECT_LE(request.good_blocks, 9U);
    EXPECT_EQ(request.result.has_value(), request.good_blocks == 9);
  }
}

TEST_F(TokenFault, SuccessWithoutDoingAnything) {
  SimScsiFaults faults;
  faults.copies_nothing = true;
  bench_->targets[0]->set_faults(faults);
  const auto before = bench_->snapshot();
  const IoRequest request = copy();
  EXPECT_TRUE(request.result);
  EXPECT_EQ(request.good_blocks, 9U);
  EXPECT_TRUE(bench_->snapshot() == before);
}

// The simulated target's tokens are real ones, so that the tests above mean something.
class SimTokens : public testing::Test {
 protected:
  void open(SimScsiOptions options) {
    options.unit_attention_first = false;
    target_ = std::make_unique<SimScsiTarget>(options);
    std::ranges::fill(target_->memory().first(8 * 512), uint8_t{'a'});
  }
  void SetUp() override { open(token_disk(64, 512)); }
  std::vector<int> sense_of(const ScsiCommand& command) {
    const ScsiOutcome outcome = target_->execute(command);
    if (outcome.status == 0) return {};
    return {outcome.sense[2], outcome.sense[12], outcome.sense[13]};
  }
  RodToken token_of_first_block(bool immediate = false) {
    const LbaRange range{0, 8};
    Bytes list = encode_populate_list(10, {&range, 1});
    if (immediate) list[2] |= 1;
    EXPECT_EQ(sense_of(populate_command(7, list)), (std::vector<int>{}));
    Bytes data(1024);
    target_->execute(information_command(7, data));
    const auto information = parse_token_information(data, 512);
    return information && information->token ? *information->token : RodToken{};
  }
  std::vector<int> write(const RodToken& token, uint64_t offset = 0) {
    const LbaRange range{64, 8};
    const Bytes list = encode_write_list(token, offset, {&range, 1});
    return sense_of(write_command(8, list));
  }

  std::unique_ptr<SimScsiTarget> target_;
};

TEST_F(SimTokens, KeepTheDataAsItWas) {
  const RodToken token = token_of_first_block();
  std::ranges::fill(target_->memory().first(8 * 512), uint8_t{'b'});
  EXPECT_EQ(write(token), (std::vector<int>{}));
  EXPECT_EQ(target_->memory()[64 * 512], 'a');
  EXPECT_EQ(write(token, 8), (std::vector{5, 0x26, 0}));  // offset beyond the end
}

TEST_F(SimTokens, Expire) {
  const RodToken token = token_of_first_block();
  target_->pause(std::chrono::seconds(9));
  EXPECT_EQ(write(token), (std::vector<int>{}));
  target_->pause(std::chrono::seconds(11));
  EXPECT_EQ(write(token), (std::vector{5, 0x23, 0x07}));
}

TEST_F(SimTokens, AreToldApart) {
  RodToken token = token_of_first_block();
  token[100] ^= 1;
  EXPECT_EQ(write(token), (std::vector{5, 0x23, 0x04}));
  token[7] = 0;  // its length
  EXPECT_EQ(write(token), (std::vector{5, 0x23, 0x0a}));
}

TEST_F(SimTokens, VulnerableOnesEndWithAWrite) {
  SimScsiOptions options = token_disk(64, 512);
  options.vulnerable_tokens = true;
  open(options);
  const RodToken token = token_of_first_block();
  const LbaRange over_source{4, 8};
  const Bytes list = encode_write_list(token, 0, {&over_source, 1});
  EXPECT_EQ(sense_of(write_command(9, list)), (std::vector<int>{}));
  EXPECT_EQ(write(token), (std::vector{5, 0x23, 0x06}));
}

TEST_F(SimTokens, ImmediateOperationsArePolled) {
  SimScsiOptions options = token_disk(64, 512);
  options.polls_until_token = 1;
  open(options);
  token_of_first_block(true);
  Bytes data(1024);
  target_->execute(information_command(7, data));
  const auto information = parse_token_information(data, 512);
  ASSERT_TRUE(information && information->token);
  EXPECT_EQ(information->progress, TokenProgress::kDone);
  EXPECT_EQ(information->lbas, 8U);
}

TEST_F(SimTokens, LimitsAreEnforced) {
  SimScsiOptions options = token_disk(64, 512);
  options.ranges_max = 2;
  options.token_lbas_max = 20;
  options.unit_attention_first = false;
  open(options);
  auto populate = [&](const std::vector<LbaRange>& ranges, uint32_t inactivity) {
    const Bytes list = encode_populate_list(inactivity, ranges);
    return sense_of(populate_command(1, list));
  };
  EXPECT_EQ(populate({{0, 10}, {10, 10}}, 0), (std::vector<int>{}));
  EXPECT_EQ(populate({{0, 10}, {10, 11}}, 0), (std::vector{5, 0x26, 0x00}));
  EXPECT_EQ(populate({{0, 1}, {1, 1}, {2, 1}}, 0), (std::vector{5, 0x26, 0x08}));
  EXPECT_EQ(populate({{0, 5}, {4, 5}}, 0), (std::vector{5, 0x26, 0x00}));
  EXPECT_EQ(populate({{505, 8}}, 0), (std::vector{5, 0x21, 0x00}));
  EXPECT_EQ(populate({{0, 8}}, 61), (std::vector{5, 0x26, 0x00}));
}

}  // namespace
}  // namespace cofs
