// What disks answer: sense data, designators, capacities, in every length and with every lie.
#include "offload/scsi_disk.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "offload/scsi_exchange.h"
#include "offload/scsi_layout.h"
#include "offload/scsi_sense.h"
#include "offload/token_limits.h"
#include "offload/token_list.h"
#include "offload/xcopy_limits.h"
#include "tests/testing/sim_scsi_target.h"

namespace cofs {
namespace {

using Bytes = std::vector<uint8_t>;

TEST(ScsiLayout, IntegersAreBigEndian) {
  const Bytes bytes = {0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0};
  EXPECT_EQ(*read_as<be64>(bytes), 0x123456789abcdef0U);
  EXPECT_EQ(*read_as<be32>(bytes, 4), 0x9abcdef0U);
  EXPECT_EQ(*read_as<be16>(bytes, 6), 0xdef0U);
  EXPECT_FALSE(read_as<be16>(bytes, 7));
  EXPECT_FALSE(read_as<be16>(bytes, 9));
  EXPECT_FALSE(read_as<be64>(bytes, SIZE_MAX));
  Bytes written(8);
  write_as(written, 0, be64(0x0102030405060708U));
  EXPECT_EQ(written, (Bytes{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(ScsiSense, FixedFormat) {
  Bytes sense = {0x70, 0, 0x0a, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0d, 0x02, 0, 0, 0, 0};
  EXPECT_EQ(parse_sense(sense), (ScsiSense{0xa, 0x0d, 0x02, false}));
  sense[0] = 0xf1;  // deferred, with a valid information field
  EXPECT_EQ(parse_sense(sense), (ScsiSense{0xa, 0x0d, 0x02, true}));
  sense[7] = 4;  // ends before the codes, whatever lies there
  EXPECT_EQ(parse_sense(sense), (ScsiSense{0xa, 0, 0, true}));
  sense.resize(13);
  sense[7] = 10;
  EXPECT_EQ(parse_sense(sense), (ScsiSense{0xa, 0x0d, 0, true}));
  sense.resize(3);
  EXPECT_EQ(parse_sense(sense), (ScsiSense{0xa, 0, 0, true}));
  sense.resize(2);
  EXPECT_FALSE(parse_sense(sense));
}

TEST(ScsiSense, DescriptorFormat) {
  EXPECT_EQ(parse_sense(Bytes{0x72, 0x05, 0x26, 0x08, 0, 0, 0, 0}),
            (ScsiSense{5, 0x26, 0x08, false}));
  EXPECT_EQ(parse_sense(Bytes{0x73, 0x06, 0x29, 0x00}), (ScsiSense{6, 0x29, 0, true}));
  EXPECT_FALSE(parse_sense(Bytes{0x72, 0x05, 0x26}));
  EXPECT_FALSE(parse_sense(Bytes{}));
  EXPECT_FALSE(parse_sense(Bytes{0x7f, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(ScsiSense, MeansCodeAndReason) {
  struct Case {
    ScsiSense sense;
    Code code;
    const char* what;
  };
  const Case cases[] = {
      {{5, 0x20, 0x00}, Code::kNotSupported, "invalid operation code"},
      {{5, 0x26, 0x08}, Code::kNotSupported, "too many segments"},
      {{5, 0x26, 0x07}, Code::kNotSupported, "unsupported target descriptor"},
      {{5, 0x26, 0x09}, Code::kNotSupported, "unsupported segment descriptor"},
      {{5, 0x26, 0x77}, Code::kNotSupported, "invalid field in parameter list"},
      {{5, 0x1a, 0x00}, Code::kNotSupported, "parameter list length refused"},
      {{0xa, 0x0d, 0x02}, Code::kIo, "copy target not reachable, or copy failed midway"},
      {{0xa, 0x00, 0x00}, Code::kIo, "device aborted the copy"},
      {{5, 0x21, 0x00}, Code::kIo, "address out of range"},
      {{5, 0x23, 0x07}, Code::kIo, "token expired"},
      {{5, 0x23, 0x04}, Code::kIo, "token unknown"},
      {{7, 0x27, 0x07}, Code::kNoSpace, "thin provisioned space is used up"},
      {{3, 0x11, 0x00}, Code::kIo, "medium error"},
      {{5, 0x99, 0x99}, Code::kNotSupported, "illegal request"},
      {{0, 0x00, 0x00}, Code::kIo, "unknown sense"},
      {{5, 0x20, 0x00, true}, Code::kIo, "deferred error of an earlier command"},
  };
  for (const Case& one : cases) {
    const Error error = error_of_sense(one.sense);
    EXPECT_EQ(error.code, one.code) << one.what;
    EXPECT_STREQ(error.what, one.what);
  }
}

TEST(ScsiDisk, Inquiry) {
  EXPECT_FALSE(parse_inquiry(Bytes{0, 0, 6, 2, 31}));
  const auto with = parse_inquiry(Bytes{0, 0, 6, 2, 31, 0x08});
  ASSERT_TRUE(with);
  EXPECT_TRUE(with->third_party_copy);
  EXPECT_EQ(with->peripheral, 0);
  const auto without = parse_inquiry(Bytes{0x1f, 0, 6, 2, 31, 0xf7});
  ASSERT_TRUE(without);
  EXPECT_FALSE(without->third_party_copy);
  EXPECT_EQ(without->peripheral, 0x1f);
}

Bytes page83(const Bytes& designators) {
  Bytes page = {0x00, 0x83, 0x00, static_cast<uint8_t>(designators.size())};
  page.insert(page.end(), designators.begin(), designators.end());
  return page;
}
Bytes designator(uint8_t code_set, uint8_t kind, const Bytes& name) {
  Bytes bytes = {code_set, kind, 0, static_cast<uint8_t>(name.size())};
  bytes.insert(bytes.end(), name.begin(), name.end());
  return bytes;
}
Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(ScsiDisk, DesignatorsInTheStandardOrder) {
  const Bytes vendor = designator(2, 0x00, {'v', 'e', 'n'});
  const Bytes t10 = designator(2, 0x01, {'L', 'I', 'O', '-', 'O', 'R', 'G', ' ', 'x'});
  const Bytes eui = designator(1, 0x02, {1, 2, 3, 4, 5, 6, 7, 8});
  const Bytes naa = designator(1, 0x03, {0x50, 1, 2, 3, 4, 5, 6, 7});
  const Bytes naa_long = designator(1, 0x03, Bytes(16, 0x60));
  const Bytes port = designator(1, 0x13, Bytes(16, 0x61));     // association: target port
  const Bytes unit = designator(1, 0x23, Bytes(16, 0x62));     // association: target device
  const Bytes name = designator(3, 0x08, Bytes(20, 'n'));      // SCSI name string: not in the order
  const Bytes t10_long = designator(2, 0x01, Bytes(21, 'l'));  // does not fit a copy command
  const Bytes empty = designator(1, 0x03, {});

  auto best = parse_designators(page83(vendor));
  ASSERT_TRUE(best);
  EXPECT_EQ(best->type, 0);
  EXPECT_EQ(best->code_set, 2);
  EXPECT_EQ(best->length, 3);
  EXPECT_EQ(best->bytes[0], 'v');
  EXPECT_EQ(best->bytes[3], 0);
  EXPECT_EQ(parse_designators(page83(vendor + t10))->type, 1);
  EXPECT_EQ(parse_designators(page83(t10 + vendor))->type, 1);
  EXPECT_EQ(parse_designators(page83(eui + t10 + vendor))->type, 2);
  EXPECT_EQ(parse_designators(page83(eui + port + unit + name))->type, 2);
  EXPECT_EQ(parse_designators(page83(vendor + naa + eui))->type, 3);
  EXPECT_EQ(parse_designators(page83(naa + naa_long))->length, 16);
  EXPECT_EQ(parse_designators(page83(naa_long + naa))->length, 16);
  EXPECT_FALSE(parse_designators(page83(port + unit + name + t10_long + empty)));
  EXPECT_FALSE(parse_designators(page83({})));
  // Two that are wrong do not hide one behind them; one that is cut off does not count.
  EXPECT_EQ(parse_designators(page83(port + t10_long + eui))->type, 2);
  Bytes cut = page83(eui + naa);
  cut.pop_back();
  EXPECT_EQ(parse_designators(cut)->type, 2);
  Bytes lying = page83(eui);
  lying[3] = 0xff;  // the page says it is longer than what was sent
  EXPECT_EQ(parse_designators(lying)->type, 2);
  lying[3] = 11;  // or shorter
  EXPECT_FALSE(parse_designators(lying));
  Bytes wrong_page = page83(eui);
  wrong_page[1] = 0x80;
  EXPECT_FALSE(parse_designators(wrong_page));
}

TEST(ScsiDisk, BlockLength) {
  Bytes data = {0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 0x10, 0x00, 0, 0, 0, 0};
  EXPECT_EQ(parse_block_length(data), 4096U);
  data.resize(12);
  EXPECT_EQ(parse_block_length(data), 4096U);
  data.resize(11);
  EXPECT_FALSE(parse_block_length(data));
}

StackDisk stack_disk(uint32_t lba_bytes) {
  StackDisk disk;
  disk.kind = DiskKind::kScsi;
  disk.name = "sda";
  disk.lba_bytes = lba_bytes;
  return disk;
}

std::string refusal(const SimScsiOptions& options, const SimScsiFaults& faults = {},
                    uint32_t lba_bytes = 512) {
  auto target = std::make_shared<SimScsiTarget>(options);
  target->set_faults(faults);
  const auto disk = identify_scsi_disk(stack_disk(lba_bytes), target);
  return disk ? "" : disk.error();
}

TEST(ScsiDisk, IsIdentified) {
  SimScsiOptions options;
  options.lba_count = 64;
  options.lba_bytes = 4096;
  auto target = std::make_shared<SimScsiTarget>(options);
  const auto disk = identify_scsi_disk(stack_disk(4096), target);
  ASSERT_TRUE(disk) << disk.error();
  EXPECT_EQ(disk->name, "sda");
  EXPECT_EQ(disk->lba_bytes, 4096U);
  EXPECT_EQ(disk->lbas_per_block(), 1U);
  EXPECT_EQ(disk->designator.type, 3);
  EXPECT_EQ(disk->designator.length, 16);
  EXPECT_EQ(disk->designator.bytes[0], 0x60);
}

TEST(ScsiDisk, SaysWhyNot) {
  SimScsiOptions options;
  options.lba_count = 64;
  EXPECT_EQ(refusal(options), "");
  SimScsiOptions without = options;
  without.third_party_copy = false;
  EXPECT_EQ(refusal(without), "sda has no third-party copy (3PC is 0)");
  EXPECT_EQ(refusal(options, {}, 4096), "sda has blocks of 512 bytes, the kernel says 4096");
  SimScsiOptions nameless = options;
  nameless.designators = designator(1, 0x13, Bytes(16, 0x61));
  EXPECT_EQ(refusal(nameless), "sda has no name that a copy command could use (VPD 0x83)");
  SimScsiFaults faults;
  faults.response_bytes_max = 5;
  EXPECT_EQ(refusal(options, faults), "sda does not answer INQUIRY: the answer is too short");
  faults.response_bytes_max = 6;
  EXPECT_EQ(refusal(options, faults),
            "sda does not answer READ CAPACITY(16): the answer is too short");
  faults.response_bytes_max = 12;
  EXPECT_EQ(refusal(options, faults), "sda has no name that a copy command could use (VPD 0x83)");
  SimScsiOptions odd = options;
  odd.lba_bytes = 520;
  EXPECT_EQ(refusal(odd, {}, 520), "sda has blocks of 520 bytes, the kernel says 520");
}

// A transport with a list of answers.
class Script final : public ScsiTransport {
 public:
  ScsiOutcome execute(const ScsiCommand&) override {
    commands++;
    if (commands > outcomes.size()) return outcomes.back();
    return outcomes[commands - 1];
  }
  void pause(std::chrono::milliseconds time) override { paused += time; }
  std::vector<ScsiOutcome> outcomes;
  size_t commands = 0;
  std::chrono::milliseconds paused{0};
};
ScsiOutcome with_status(uint8_t status) {
  ScsiOutcome outcome;
  outcome.delivery = ScsiDelivery::kAnswered;
  outcome.status = status;
  return outcome;
}
ScsiOutcome with_sense(uint8_t key, uint8_t asc, uint8_t ascq) {
  ScsiOutcome outcome = with_status(0x02);
  outcome.sense = {0x72, key, asc, ascq};
  outcome.sense_bytes = 8;
  return outcome;
}
ScsiOutcome undelivered(ScsiDelivery delivery) {
  ScsiOutcome outcome;
  outcome.delivery = delivery;
  return outcome;
}

TEST(ScsiExchange, TriesAgainAfterUnitAttentionThreeTimes) {
  Script script;
  script.outcomes = {with_sense(6, 0x29, 0), with_sense(6, 0x2a, 1), with_sense(6, 0x3f, 0xe),
                     with_status(0)};
  EXPECT_TRUE(exchange(script, {}));
  EXPECT_EQ(script.commands, 4U);
  EXPECT_EQ(script.paused.count(), 0);
  Script endless;
  endless.outcomes = {with_sense(6, 0x29, 0)};
  const auto result = exchange(endless, {});
  ASSERT_FALSE(result);
  EXPECT_STREQ(result.error().what, "unit attention again and again");
  EXPECT_EQ(endless.commands, 4U);
}

TEST(ScsiExchange, PausesWhileTheDiskIsBusy) {
  Script script;
  script.outcomes = {with_status(0x08), with_status(0x28), with_status(0x08), with_status(0)};
  EXPECT_TRUE(exchange(script, {}));
  EXPECT_EQ(script.paused.count(), 70);
  Script endless;
  endless.outcomes = {with_status(0x28)};
  const auto result = exchange(endless, {});
  ASSERT_FALSE(result);
  EXPECT_STREQ(result.error().what, "device queue full");
  EXPECT_EQ(endless.commands, 8U);
}

TEST(ScsiExchange, JudgesTheRest) {
  struct Case {
    ScsiOutcome outcome;
    Code code;
    const char* what;
  };
  ScsiOutcome without_sense = with_status(0x02);
  const Case cases[] = {
      {with_status(0x18), Code::kIo, "reserved by another host"},
      {with_status(0x40), Code::kIo, "command aborted"},
      {with_status(0x55), Code::kIo, "unknown status"},
      {without_sense, Code::kIo, "failed without sense data"},
      {with_sense(5, 0x26, 8), Code::kNotSupported, "too many segments"},
      {undelivered(ScsiDelivery::kTimedOut), Code::kIo, "aborted after its timeout"},
      {undelivered(ScsiDelivery::kGone), Code::kIo, "disk is gone"},
      {undelivered(ScsiDelivery::kNotSent), Code::kIo, "command could not be sent"},
      {undelivered(ScsiDelivery::kLost), Code::kTimedOut,
       "connection lost, the command may still take effect"},
      {undelivered(ScsiDelivery::kNotPermitted), Code::kNotSupported,
       "the kernel wants CAP_SYS_RAWIO for this; run as root"},
  };
  for (const Case& one : cases) {
    Script script;
    script.outcomes = {one.outcome};
    const auto result = exchange(script, {});
    ASSERT_FALSE(result) << one.what;
    EXPECT_EQ(result.error().code, one.code) << one.what;
    EXPECT_STREQ(result.error().what, one.what);
    EXPECT_EQ(script.commands, 1U);
  }
}

TEST(ScsiExchange, RecoveredErrorIsSuccess) {
  Script script;
  script.outcomes = {with_sense(1, 0x17, 0)};
  EXPECT_TRUE(exchange(script, {}));
}

TEST(ScsiExchange, BelievesNoLengthBeyondTheBuffer) {
  Script script;
  script.outcomes = {with_status(0)};
  script.outcomes[0].received = 1000;
  Bytes buffer(10);
  ScsiCommand command;
  command.from_device = buffer;
  EXPECT_EQ(*exchange(script, command), 10U);
  script.outcomes = {with_status(0x02)};
  script.outcomes[0].sense_bytes = 255;  // more than the field has
  EXPECT_FALSE(exchange(script, command));
}

TEST(ScsiExchange, Timeouts) {
  EXPECT_EQ(scsi_timeout(0).count(), 60'000);
  EXPECT_EQ(scsi_timeout(1).count(), 1);
  EXPECT_EQ(scsi_timeout(1'000'000).count(), 1);
  EXPECT_EQ(scsi_timeout(1'000'001).count(), 2);
  EXPECT_EQ(scsi_timeout(30'000'000'000).count(), 30'000);
  EXPECT_EQ(scsi_timeout(UINT64_MAX).count(), 3'600'000);
}

// Whatever comes in whatever length, nothing is read that is not there (the sanitizers watch).
TEST(ScsiParsing, SurvivesAnything) {
  SimRandom random(20);
  for (int i = 0; i < 200'000; i++) {
    Bytes data(random.below(random.chance(0.9) ? 80 : 1200));
    data.shrink_to_fit();
    for (uint8_t& byte : data) {
      byte = random.chance(0.3) ? 0 : static_cast<uint8_t>(random.next());
    }
    // The pages' codes right, mostly: the rest is only looked at then.
    if (data.size() > 4 && random.chance(0.9)) {
      const uint8_t codes[] = {0x83, 0x8f, 0xb0, 0x70, 0x72};
      data[1] = codes[random.below(3)];
      if (random.chance(0.3)) data[0] = codes[3 + random.below(2)];
      data[2] = 0;
    }
    (void)parse_sense(data);
    (void)parse_inquiry(data);
    (void)parse_block_length(data);
    (void)parse_transfer_limit(data);
    if (const auto best = parse_designators(data)) {
      EXPECT_GE(best->length, 1);
      EXPECT_LE(best->length, 20);
    }
    if (const auto parameters = parse_operating_parameters(data)) {
      if (const auto limits = derive_xcopy_limits(*parameters, 512)) {
        EXPECT_GE(limits->segments_max, 1U);
        EXPECT_GE(limits->segment_blocks_max, 1U);
        EXPECT_GE(limits->command_blocks_max, limits->segment_blocks_max);
      }
    }
    if (const auto parameters = parse_third_party_page(data)) {
      if (const auto limits = derive_token_limits(*parameters, 0, 512)) {
        EXPECT_GE(limits->ranges_max, 1U);
        EXPECT_GE(limits->operation_blocks_max, limits->range_blocks_max);
      }
    }
    (void)parse_token_information(data, 512);
  }
}

}  // namespace
}  // namespace cofs
