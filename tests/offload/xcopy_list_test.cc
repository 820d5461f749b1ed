// EXTENDED COPY: the bytes of its lists and of what disks say of it, written out by hand, and what
// they allow.
#include "offload/xcopy_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "offload/xcopy_limits.h"

namespace cofs {
namespace {

// Bytes are laid out by the fields they make.
// clang-format off

using Bytes = std::vector<uint8_t>;

ScsiDisk example_disk(uint32_t lba_bytes) {
  ScsiDisk disk;
  disk.lba_bytes = lba_bytes;
  disk.designator.code_set = 1;
  disk.designator.type = 3;
  disk.designator.length = 16;
  for (uint8_t i = 0; i < 16; i++) disk.designator.bytes[i] = static_cast<uint8_t>(0x60 + i);
  return disk;
}

TEST(XcopyList, OneSegmentWithoutListId) {
  const XcopySegment segment{0x0102030405060708, 0x1112131415161718, 0xfffe};
  const Bytes expected = {
      // Header: list id 0, usage 3, 32 bytes of CSCDs, 28 bytes of segments, no inline data.
      0x00, 0x18, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00,
      0x00, 0x00, 0x00, 0x1c, 0x00, 0x00, 0x00, 0x00,
      // CSCD: identification descriptor; binary, NAA, 16 bytes; 512-byte blocks.
      0xe4, 0x00, 0x00, 0x00, 0x01, 0x03, 0x00, 0x10,
      0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67,
      0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f,
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00,
      // Segment: block to block, 24 bytes follow, CSCD 0 to CSCD 0, count, source, target.
      0x02, 0x00, 0x00, 0x18, 0x00, 0x00, 0x00, 0x00,
      0x00, 0x00, 0xff, 0xfe,
      0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,
      0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
  };
  EXPECT_EQ(encode_xcopy_list({}, example_disk(512), {&segment, 1}), expected);
}

TEST(XcopyList, TwoSegmentsTwoCscdsAndAListId) {
  const XcopySegment segments[] = {{1, 2, 3}, {4, 5, 6}};
  const XcopyList list{.list_id_use = XcopyListId::kDiscard, .list_id = 0x7b, .two_cscds = true};
  const Bytes bytes = encode_xcopy_list(list, example_disk(4096), segments);
  ASSERT_EQ(bytes.size(), 16U + 2 * 32 + 2 * 28);
  const Bytes header(bytes.begin(), bytes.begin() + 16);
  EXPECT_EQ(header, (Bytes{0x7b, 0x10, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x38, 0, 0, 0, 0}));
  EXPECT_TRUE(std::equal(bytes.begin() + 16, bytes.begin() + 48, bytes.begin() + 48));
  const Bytes block_length(bytes.begin() + 76, bytes.begin() + 80);
  EXPECT_EQ(block_length, (Bytes{0x00, 0x00, 0x10, 0x00}));
  const Bytes second(bytes.begin() + 108, bytes.end());
  EXPECT_EQ(second, (Bytes{0x02, 0, 0, 0x18, 0, 0, 0, 1, 0, 0, 0, 6,
                           0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5}));
  XcopyList held{.list_id_use = XcopyListId::kHold, .list_id = 1, .two_cscds = false};
  EXPECT_EQ(encode_xcopy_list(held, example_disk(512), segments)[1], 0x00);
}

TEST(XcopyList, Command) {
  const Bytes list(76);
  const ScsiCommand command = xcopy_command(list);
  EXPECT_EQ(command.cdb_bytes, 16);
  const std::array<uint8_t, 16> expected = {0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 76, 0, 0};
  EXPECT_EQ(command.cdb, expected);
  EXPECT_EQ(command.to_device.data(), list.data());
  EXPECT_TRUE(command.from_device.empty());
}

// What LIO answers.
Bytes lio_parameters() {
  return {0, 0, 0, 42,       // bytes that follow
          0x01, 0, 0, 0,     // SNLID
          0, 2, 0, 1,        // two CSCDs, one segment
          0, 0, 4, 0,        // 1024 bytes of descriptors
          0x10, 0, 0, 0,     // 256 MiB per segment
          0, 0, 0, 0,        // inline data
          0, 0, 0, 0,        // held data
          0, 0, 0, 0,        // stream
          0, 0, 0, 1,        // total concurrent copies
          1, 9, 0, 0,        // concurrent copies; granularity 512
          0, 0, 0, 2,        // two descriptor types
          0x02, 0xe4};
}

TEST(XcopyLimits, ParametersAreParsed) {
  const auto parameters = parse_operating_parameters(lio_parameters());
  ASSERT_TRUE(parameters);
  EXPECT_TRUE(parameters->no_list_id);
  EXPECT_EQ(parameters->cscds_max, 2);
  EXPECT_EQ(parameters->segments_max, 1);
  EXPECT_EQ(parameters->descriptor_bytes_max, 1024U);
  EXPECT_EQ(parameters->segment_bytes_max, 256U << 20);
  EXPECT_EQ(parameters->held_data_max, 0U);
  EXPECT_EQ(parameters->copies_total, 1);
  EXPECT_EQ(parameters->copies_max, 1);
  EXPECT_EQ(parameters->granularity_log2, 9);
  EXPECT_TRUE(parameters->block_to_block);
  EXPECT_TRUE(parameters->identification);

  Bytes distinct = lio_parameters();
  for (size_t i = 8; i < 44; i++) distinct[i] = static_cast<uint8_t>(i);
  distinct[43] = 1;
  const auto other = parse_operating_parameters(distinct);
  ASSERT_TRUE(other);
  EXPECT_EQ(other->cscds_max, 0x0809);
  EXPECT_EQ(other->segments_max, 0x0a0b);
  EXPECT_EQ(other->descriptor_bytes_max, 0x0c0d0e0fU);
  EXPECT_EQ(other->segment_bytes_max, 0x10111213U);
  EXPECT_EQ(other->held_data_max, 0x18191a1bU);
  EXPECT_EQ(other->copies_total, 0x2223);
  EXPECT_EQ(other->copies_max, 0x24);
  EXPECT_EQ(other->granularity_log2, 0x25);
  EXPECT_TRUE(other->block_to_block);
  EXPECT_FALSE(other->identification);  // the list ends before it
}

TEST(XcopyLimits, OnlyWhatWasSentCounts) {
  Bytes data = lio_parameters();
  data.pop_back();
  ASSERT_TRUE(parse_operating_parameters(data));
  EXPECT_FALSE(parse_operating_parameters(data)->identification);
  data.resize(44);
  ASSERT_TRUE(parse_operating_parameters(data));
  EXPECT_FALSE(parse_operating_parameters(data)->block_to_block);
  data.resize(43);
  EXPECT_FALSE(parse_operating_parameters(data));
  data = lio_parameters();
  data[3] = 41;  // the device says it sent one byte less
  EXPECT_FALSE(parse_operating_parameters(data)->identification);
  data[3] = 39;
  EXPECT_FALSE(parse_operating_parameters(data));
  data[0] = data[1] = data[2] = data[3] = 0xff;
  EXPECT_TRUE(parse_operating_parameters(data)->identification);
}

// clang-format on

XcopyParameters good_parameters() {
  return *parse_operating_parameters(lio_parameters());
}

TEST(XcopyLimits, OfLio) {
  const auto limits = derive_xcopy_limits(good_parameters(), 512);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->segments_max, 1U);
  EXPECT_EQ(limits->segment_blocks_max, 4096U);  // 16 MiB
  EXPECT_EQ(limits->command_blocks_max, 4096U);
  EXPECT_EQ(limits->in_flight_max, 2U);
  EXPECT_EQ(limits->list_id, XcopyListId::kNone);
  EXPECT_TRUE(limits->two_cscds);
}

TEST(XcopyLimits, SegmentsByCountAndByRoom) {
  XcopyParameters parameters = good_parameters();
  parameters.segments_max = 1000;
  parameters.descriptor_bytes_max = 64 + 10 * 28 + 27;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512)->segments_max, 10U);
  parameters.descriptor_bytes_max = UINT32_MAX;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512)->segments_max, 256U);
  parameters.segments_max = 3;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512)->segments_max, 3U);
  parameters.segment_bytes_max = 3 * 4096 + 4095;
  const auto limits = derive_xcopy_limits(parameters, 512);
  EXPECT_EQ(limits->segment_blocks_max, 3U);
  EXPECT_EQ(limits->command_blocks_max, 9U);
}

TEST(XcopyLimits, ZeroHugeAndContradictory) {
  XcopyParameters parameters = good_parameters();
  parameters.cscds_max = 0;
  parameters.segments_max = 0;
  parameters.descriptor_bytes_max = 0;
  parameters.segment_bytes_max = 0;  // no limit: 65535 LBAs
  parameters.copies_total = 0;
  parameters.granularity_log2 = 0;
  auto limits = derive_xcopy_limits(parameters, 512);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->segments_max, 1U);
  EXPECT_EQ(limits->segment_blocks_max, 4096U);
  EXPECT_EQ(limits->in_flight_max, 2U);
  EXPECT_FALSE(limits->two_cscds);
  parameters.segments_max = UINT16_MAX;
  parameters.descriptor_bytes_max = UINT32_MAX;
  parameters.segment_bytes_max = UINT32_MAX;
  parameters.copies_total = UINT16_MAX;
  limits = derive_xcopy_limits(parameters, 4096);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->segment_blocks_max, 4096U);
  EXPECT_EQ(limits->command_blocks_max, 4096U);
  EXPECT_EQ(limits->in_flight_max, 8U);
}

TEST(XcopyLimits, ListIds) {
  XcopyParameters parameters = good_parameters();
  parameters.no_list_id = false;
  parameters.copies_total = 200;  // not meant where there must be an identifier
  parameters.copies_max = 5;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512)->list_id, XcopyListId::kDiscard);
  EXPECT_EQ(derive_xcopy_limits(parameters, 512)->in_flight_max, 5U);
  parameters.held_data_max = 1;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512)->list_id, XcopyListId::kHold);
}

TEST(XcopyLimits, SaysWhyNot) {
  XcopyParameters parameters = good_parameters();
  parameters.block_to_block = false;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512).error(),
            "does not copy from block to block (segment type 0x02)");
  parameters = good_parameters();
  parameters.identification = false;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512).error(),
            "does not take identification descriptors (CSCD type 0xe4)");
  parameters = good_parameters();
  parameters.granularity_log2 = 12;
  EXPECT_TRUE(derive_xcopy_limits(parameters, 512));
  parameters.granularity_log2 = 16;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512).error(),
            "copies multiples of 2^16 bytes only, a block has 4096");
  parameters.granularity_log2 = 255;
  EXPECT_FALSE(derive_xcopy_limits(parameters, 512));
  parameters = good_parameters();
  parameters.segment_bytes_max = 4095;
  EXPECT_EQ(derive_xcopy_limits(parameters, 512).error(),
            "copies at most 4095 bytes per segment, a block has 4096");
}

}  // namespace
}  // namespace cofs
