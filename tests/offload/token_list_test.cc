// Token copy: the bytes of its commands and lists and of what disks say of it, written out by hand,
// and what they allow.
#include "offload/token_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "offload/token_limits.h"

namespace cofs {
namespace {

// Bytes are laid out by the fields they make.
// clang-format off

using Bytes = std::vector<uint8_t>;

TEST(TokenList, Populate) {
  const LbaRange ranges[] = {{0x0102030405060708, 0xa1a2a3a4}, {0x10, 0x20}};
  const Bytes expected = {
      0x00, 0x2e,              // 46 bytes follow
      0x00, 0x00,              // no RTV, no IMMED
      0x00, 0x00, 0x01, 0x0f,  // inactivity timeout
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
      0x00, 0x20,              // 32 bytes of ranges
      0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0xa1, 0xa2, 0xa3, 0xa4, 0, 0, 0, 0,
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x20, 0, 0, 0, 0,
  };
  EXPECT_EQ(encode_populate_list(0x10f, ranges), expected);
}

TEST(TokenList, Write) {
  RodToken token;
  for (size_t i = 0; i < token.size(); i++) token[i] = static_cast<uint8_t>(i * 7 + i / 256);
  const LbaRange range{0x1112131415161718, 0x21222324};
  const Bytes list = encode_write_list(token, 0x3132333435363738, {&range, 1});
  ASSERT_EQ(list.size(), 552U);
  const Bytes front(list.begin(), list.begin() + 16);
  EXPECT_EQ(front, (Bytes{0x02, 0x26, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 550 bytes follow
                          0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38}));
  EXPECT_TRUE(std::equal(token.begin(), token.end(), list.begin() + 16));
  const Bytes back(list.begin() + 528, list.end());
  EXPECT_EQ(back, (Bytes{0, 0, 0, 0, 0, 0, 0x00, 0x10,
                         0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
                         0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0}));
}

TEST(TokenList, Commands) {
  const Bytes list(0x123);
  const ScsiCommand populate = populate_command(0xdeadbeef, list);
  EXPECT_EQ(populate.cdb_bytes, 16);
  EXPECT_EQ(populate.cdb, (std::array<uint8_t, 16>{0x83, 0x10, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef,
                                                   0, 0, 0x01, 0x23, 0, 0}));
  EXPECT_EQ(populate.to_device.size(), list.size());
  const ScsiCommand write = write_command(0xdeadbeef, list);
  EXPECT_EQ(write.cdb, (std::array<uint8_t, 16>{0x83, 0x11, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef,
                                                0, 0, 0x01, 0x23, 0, 0}));
  Bytes data(0x400);
  const ScsiCommand information = information_command(0xdeadbeef, data);
  EXPECT_EQ(information.cdb, (std::array<uint8_t, 16>{0x84, 0x07, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0,
                                                      0, 0, 0, 0x04, 0x00, 0, 0}));
  EXPECT_EQ(information.from_device.size(), data.size());
  EXPECT_EQ(abort_command(0xdeadbeef).cdb,
            (std::array<uint8_t, 16>{0x83, 0x1c, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                     0}));
}

// An answer about POPULATE TOKEN with 8 bytes of sense data in a field of 12.
Bytes information_bytes() {
  Bytes bytes = {0x00, 0x00, 0x02, 0x2e,              // 32 + 12 + 518 bytes, less these four
                 0xf0, 0x83, 0x00, 0x01,              // POPULATE TOKEN and status 3, under reserved bits
                 0x00, 0x00, 0x01, 0x02,              // delay
                 0x02, 0x0c, 0x08, 0xf1,              // CHECK CONDITION; sense 12, 8; logical blocks
                 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03,  // count
                 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                 0x72, 0x03, 0x11, 0x01, 0x00, 0x00, 0x00, 0x00,  // sense
                 0xff, 0xff, 0xff, 0xff,
                 0x00, 0x00, 0x02, 0x02, 0x00, 0x00};  // token descriptor of 514 bytes
  for (size_t i = 0; i < 512; i++) bytes.push_back(static_cast<uint8_t>(i * 3));
  return bytes;
}

TEST(TokenInformation, IsParsed) {
  const auto information = parse_token_information(information_bytes(), 512);
  ASSERT_TRUE(information);
  EXPECT_EQ(information->action, 0x10);
  EXPECT_EQ(information->progress, TokenProgress::kDoneShort);
  EXPECT_EQ(information->update_delay_ms, 0x102U);
  EXPECT_EQ(information->lbas, 0x10203U);
  EXPECT_EQ(information->sense, (ScsiSense{3, 0x11, 1, false}));
  ASSERT_TRUE(information->token);
  EXPECT_EQ((*information->token)[0], 0);
  EXPECT_EQ((*information->token)[1], 3);
  EXPECT_EQ((*information->token)[511], static_cast<uint8_t>(511 * 3));
}

TEST(TokenInformation, Statuses) {
  auto progress_of = [](uint8_t status) {
    Bytes bytes = information_bytes();
    bytes[5] = status;
    return parse_token_information(bytes, 512)->progress;
  };
  EXPECT_EQ(progress_of(0x01), TokenProgress::kDone);
  EXPECT_EQ(progress_of(0x02), TokenProgress::kDoneWithErrors);
  EXPECT_EQ(progress_of(0x03), TokenProgress::kDoneShort);
  EXPECT_EQ(progress_of(0x04), TokenProgress::kDoneShort);
  EXPECT_EQ(progress_of(0x10), TokenProgress::kRunning);
  EXPECT_EQ(progress_of(0x11), TokenProgress::kRunning);
  EXPECT_EQ(progress_of(0x12), TokenProgress::kRunning);
  EXPECT_EQ(progress_of(0x60), TokenProgress::kTerminated);
  EXPECT_EQ(progress_of(0x00), TokenProgress::kUnknown);
  EXPECT_EQ(progress_of(0x7f), TokenProgress::kUnknown);
}

TEST(TokenInformation, CountUnits) {
  auto lbas_of = [](uint8_t unit, uint8_t high) {
    Bytes bytes = information_bytes();
    bytes[15] = unit;
    bytes[16] = high;
    return parse_token_information(bytes, 512)->lbas;
  };
  EXPECT_EQ(lbas_of(0xf1, 0), 0x10203U);
  EXPECT_EQ(lbas_of(0x00, 0), 0x10203U / 512);
  EXPECT_EQ(lbas_of(0x01, 0), 0x10203U * 2);
  EXPECT_EQ(lbas_of(0x02, 0), 0x10203U * 2048);
  EXPECT_EQ(lbas_of(0x06, 0), UINT64_MAX / 512);  // more than can be
  EXPECT_EQ(lbas_of(0x01, 0xff), UINT64_MAX / 512);
  EXPECT_EQ(lbas_of(0x07, 0), 0U);
  EXPECT_EQ(lbas_of(0xf0, 0), 0U);
}

TEST(TokenInformation, OnlyWhatWasSentCounts) {
  const Bytes whole = information_bytes();
  for (size_t bytes = 0; bytes < whole.size(); bytes++) {
    const Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(bytes));
    const auto information = parse_token_information(cut, 512);
    ASSERT_EQ(information.has_value(), bytes >= 32) << bytes;
    if (information) {
      EXPECT_FALSE(information->token) << bytes;
    }
  }
  Bytes lying = whole;
  lying[3] = 0x2d;  // the device says it sent one byte less
  EXPECT_FALSE(parse_token_information(lying, 512)->token);
  lying[0] = 0xff;
  EXPECT_TRUE(parse_token_information(lying, 512)->token);
  lying[2] = lying[0] = 0;
  lying[3] = 27;
  EXPECT_FALSE(parse_token_information(lying, 512));
  Bytes small_descriptor = whole;
  small_descriptor[47] = 0x01;  // 513 bytes: too little for a token
  EXPECT_FALSE(parse_token_information(small_descriptor, 512)->token);
  Bytes wide_sense = whole;
  wide_sense[13] = 0xff;
  wide_sense[14] = 0xff;
  EXPECT_FALSE(parse_token_information(wide_sense, 512)->token == std::nullopt &&
               parse_token_information(wide_sense, 512)->sense == std::nullopt);
}

Bytes third_party_page() {
  return {0x00, 0x8f, 0x00, 0x40,
          // Supported Commands, padded.
          0x00, 0x01, 0x00, 0x0c, 0x08, 0x83, 0x02, 0x10, 0x11, 0x84, 0x02, 0x03, 0x07, 0, 0, 0,
          // A kind we do not know.
          0x00, 0x0c, 0x00, 0x02, 0x00, 0x00,
          // Block Device ROD Limits.
          0x00, 0x00, 0x00, 0x20, 1, 2, 3, 4, 5, 6,
          0x01, 0x02,                                      // ranges
          0x03, 0x04, 0x05, 0x06,                          // most inactivity
          0x07, 0x08, 0x09, 0x0a,                          // default inactivity
          0x00, 0x00, 0x00, 0x00, 0x0b, 0x0c, 0x0d, 0x0e,  // token transfer size
          0x00, 0x00, 0x00, 0x00, 0x00, 0x0f, 0x10, 0x11,  // optimal count
          // General copy operations, cut short as far as it is of no interest.
          0x80, 0x01, 0x00, 0x04, 0x00, 0x00, 0x00, 0x05};
}

TEST(TokenLimits, PageIsParsed) {
  Bytes page = third_party_page();
  page[3] = static_cast<uint8_t>(page.size() - 4);
  const auto parameters = parse_third_party_page(page);
  ASSERT_TRUE(parameters);
  EXPECT_TRUE(parameters->has_commands);
  EXPECT_TRUE(parameters->populate);
  EXPECT_TRUE(parameters->write);
  EXPECT_TRUE(parameters->information);
  EXPECT_TRUE(parameters->has_limits);
  EXPECT_EQ(parameters->ranges_max, 0x0102);
  EXPECT_EQ(parameters->inactivity_max_s, 0x03040506U);
  EXPECT_EQ(parameters->token_lbas_max, 0x0b0c0d0eU);
  EXPECT_EQ(parameters->optimal_lbas, 0x0f1011U);
  EXPECT_EQ(parameters->copies_total, 5U);

  page[1] = 0x83;
  EXPECT_FALSE(parse_third_party_page(page));
  page[1] = 0x8f;
  for (size_t bytes = 4; bytes < page.size(); bytes++) {
    const Bytes cut(page.begin(), page.begin() + static_cast<ptrdiff_t>(bytes));
    const auto some = parse_third_party_page(cut);
    ASSERT_TRUE(some);
    EXPECT_EQ(some->has_commands, bytes >= 20) << bytes;
    EXPECT_EQ(some->has_limits, bytes >= 62) << bytes;
    EXPECT_EQ(some->copies_total, 0U);
  }
  EXPECT_FALSE(parse_third_party_page(Bytes{0, 0x8f, 0}));
}

// clang-format on

TEST(TokenLimits, CommandsThatAreCutOff) {
  Bytes page = {0x00, 0x8f, 0x00, 0x08, 0x00, 0x01, 0x00, 0x04, 0xff, 0x83, 0xff, 0x10};
  const auto parameters = parse_third_party_page(page);
  ASSERT_TRUE(parameters);
  EXPECT_TRUE(parameters->populate);
  EXPECT_FALSE(parameters->write);
}

TEST(TokenLimits, TransferLimit) {
  Bytes page = {0, 0xb0, 0, 0x3c, 0, 0, 0, 0, 0x01, 0x02, 0x03, 0x04};
  EXPECT_EQ(parse_transfer_limit(page), 0x01020304U);
  page[3] = 7;  // the page ends before
  EXPECT_EQ(parse_transfer_limit(page), 0U);
  page[3] = 0x3c;
  page.pop_back();
  EXPECT_EQ(parse_transfer_limit(page), 0U);
  EXPECT_EQ(parse_transfer_limit(Bytes(64)), 0U);
}

TokenParameters good_parameters() {
  TokenParameters parameters;
  parameters.has_commands = parameters.populate = parameters.write = parameters.information = true;
  parameters.has_limits = true;
  parameters.ranges_max = 8;
  parameters.inactivity_max_s = 3600;
  return parameters;
}

TEST(TokenLimits, AreDerived) {
  TokenParameters parameters = good_parameters();
  auto limits = derive_token_limits(parameters, 0, 512);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->ranges_max, 8U);
  EXPECT_EQ(limits->range_blocks_max, 16384U);  // 64 MiB
  EXPECT_EQ(limits->operation_blocks_max, 16384U);
  EXPECT_EQ(limits->inactivity_s, 15U);
  EXPECT_EQ(limits->in_flight_max, 4U);
  parameters.token_lbas_max = 1000;
  parameters.inactivity_max_s = 5;
  parameters.copies_total = 1;
  limits = derive_token_limits(parameters, 0, 512);
  EXPECT_EQ(limits->operation_blocks_max, 125U);
  EXPECT_EQ(limits->range_blocks_max, 125U);
  EXPECT_EQ(limits->inactivity_s, 5U);
  EXPECT_EQ(limits->in_flight_max, 2U);
  limits = derive_token_limits(parameters, 87, 512);
  EXPECT_EQ(limits->operation_blocks_max, 80U);  // eight ranges of ten
  EXPECT_EQ(limits->range_blocks_max, 10U);
  parameters.optimal_lbas = 80;
  EXPECT_EQ(derive_token_limits(parameters, 0, 4096)->operation_blocks_max, 80U);
  EXPECT_EQ(derive_token_limits(parameters, 0, 512)->operation_blocks_max, 10U);
  parameters.optimal_lbas = 1;  // no advice
  EXPECT_EQ(derive_token_limits(parameters, 0, 512)->operation_blocks_max, 1U);
}

TEST(TokenLimits, ZeroHugeAndMissing) {
  TokenParameters parameters;
  parameters.has_limits = true;  // and nothing in it
  auto limits = derive_token_limits(parameters, 0, 512);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->ranges_max, 1U);
  EXPECT_EQ(limits->inactivity_s, 0U);
  parameters.has_limits = false;
  EXPECT_EQ(derive_token_limits(parameters, 0, 512).error(), "has no token copy (VPD 0x8F)");
  parameters.has_commands = parameters.populate = parameters.write = true;
  EXPECT_FALSE(derive_token_limits(parameters, 0, 512));
  parameters.information = true;
  EXPECT_TRUE(derive_token_limits(parameters, 0, 512));
  parameters = good_parameters();
  parameters.ranges_max = UINT16_MAX;
  parameters.token_lbas_max = UINT64_MAX;
  parameters.optimal_lbas = UINT64_MAX;
  parameters.inactivity_max_s = UINT32_MAX;
  parameters.copies_total = UINT32_MAX;
  limits = derive_token_limits(parameters, UINT32_MAX, 512);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->ranges_max, 256U);
  EXPECT_EQ(limits->operation_blocks_max, 16384U);
  EXPECT_EQ(limits->in_flight_max, 8U);
  parameters.token_lbas_max = 7;  // less than a block
  EXPECT_EQ(derive_token_limits(parameters, 0, 512).error(), "has a token limit below one block");
  parameters.token_lbas_max = 0;
  EXPECT_FALSE(derive_token_limits(parameters, 7, 512));
}

}  // namespace
}  // namespace cofs
