#include "offload/nvme_limits.h"

#include <gtest/gtest.h>

#include <optional>

namespace cofs {
namespace {

// A namespace with LBAs of 512 bytes, and 4096 at index 1, that supports Copy.
NvmeIdentify good_namespace() {
  NvmeIdentify identify;
  identify.oncs = 0x15d;
  identify.ocfs = 0x3;
  identify.mssrl = 1024;
  identify.mcl = 16384;
  identify.msrc = 127;
  identify.nlbaf = 1;
  identify.formats[0] = {0, 9};
  identify.formats[1] = {0, 12};
  return identify;
}

std::string reason(const NvmeIdentify& identify, uint32_t lba_bytes = 512) {
  auto limits = nvme_copy_limits(identify, lba_bytes);
  return limits ? "offered" : limits.error();
}

TEST(NvmeLimits, LbasBecomeBlocks) {
  NvmeIdentify identify = good_namespace();
  EXPECT_EQ(nvme_copy_limits(identify, 512).value(), (NvmeLimits{128, 128, 2048}));
  identify.flbas = 1;
  // 16,384 blocks are 64 MiB, more than we ask for at once.
  EXPECT_EQ(nvme_copy_limits(identify, 4096).value(), (NvmeLimits{128, 1024, 4096}));
}

TEST(NvmeLimits, SupportTakesTheCommandAndItsFormat) {
  NvmeIdentify identify = good_namespace();
  identify.oncs = 0x5d;
  EXPECT_EQ(reason(identify), "does not support Copy (ONCS 0x5d)");
  identify = good_namespace();
  identify.ocfs = 0x2;
  EXPECT_EQ(reason(identify), "does not support Copy's descriptor format 0 (OCFS 0x2)");
  identify.ocfs = 0;  // controllers of before there were others
  EXPECT_EQ(reason(identify), "offered");
}

TEST(NvmeLimits, ZeroMeansNothingCanBeCopied) {
  NvmeIdentify identify = good_namespace();
  identify.mcl = 0;
  EXPECT_EQ(reason(identify), "limits Copy to nothing (MSSRL 1024, MCL 0)");
  identify = good_namespace();
  identify.mssrl = 0;
  EXPECT_EQ(reason(identify), "limits Copy to nothing (MSSRL 0, MCL 16384)");
  identify = good_namespace();
  identify.msrc = 0;  // less one
  EXPECT_EQ(nvme_copy_limits(identify, 512).value().ranges_max, 1u);
}

TEST(NvmeLimits, LessThanABlockIsNothing) {
  NvmeIdentify identify = good_namespace();
  identify.mssrl = 7;
  EXPECT_EQ(reason(identify),
            "copies less than a block of 4096 bytes at once (MSSRL 7, MCL 16384)");
  identify.mssrl = 8;
  EXPECT_EQ(nvme_copy_limits(identify, 512).value(), (NvmeLimits{128, 1, 2048}));
  identify.mcl = 7;
  EXPECT_EQ(reason(identify), "copies less than a block of 4096 bytes at once (MSSRL 8, MCL 7)");
  identify.mcl = 15;
  EXPECT_EQ(nvme_copy_limits(identify, 512).value(), (NvmeLimits{128, 1, 1}));
}

TEST(NvmeLimits, ContradictionsAndHugeValuesAreCut) {
  NvmeIdentify identify = good_namespace();
  identify.mssrl = 1000;
  identify.mcl = 100;  // a range may be longer than a command
  EXPECT_EQ(nvme_copy_limits(identify, 512).value(), (NvmeLimits{128, 12, 12}));
  identify.mssrl = UINT16_MAX;
  identify.mcl = UINT32_MAX;
  identify.msrc = UINT8_MAX;
  EXPECT_EQ(nvme_copy_limits(identify, 512).value(), (NvmeLimits{256, 4096, 4096}));
  identify.flbas = 1;
  EXPECT_EQ(nvme_copy_limits(identify, 4096).value(), (NvmeLimits{256, 4096, 4096}));
}

TEST(NvmeLimits, EveryCombinationOfEdgeValuesIsSurvived) {
  for (uint32_t mssrl : {0, 1, 7, 8, 9, 128, 0x7fff, 0xffff}) {
    for (uint32_t mcl : {0u, 1u, 7u, 8u, 9u, 128u, 0xffffu, 0x10000u, 0x7fffffffu, 0xffffffffu}) {
      for (uint32_t msrc : {0, 1, 127, 254, 255}) {
        for (uint32_t shift = 0; shift < 256; shift++) {
          NvmeIdentify identify = good_namespace();
          identify.mssrl = static_cast<uint16_t>(mssrl);
          identify.mcl = mcl;
          identify.msrc = static_cast<uint8_t>(msrc);
          identify.formats[0].data_shift = static_cast<uint8_t>(shift);
          uint32_t lba_bytes = shift < 32 ? uint32_t{1} << shift : 512;
          auto limits = nvme_copy_limits(identify, lba_bytes);
          if (!limits) continue;
          ASSERT_TRUE(shift >= 9 && shift <= 12);
          ASSERT_EQ(limits->ranges_max, msrc + 1);
          ASSERT_GE(limits->range_blocks_max, 1u);
          ASSERT_GE(limits->command_blocks_max, limits->range_blocks_max);
          ASSERT_LE(limits->range_blocks_max * 4096, uint64_t{mssrl} * lba_bytes);
          ASSERT_LE(limits->command_blocks_max * 4096, uint64_t{mcl} * lba_bytes);
          ASSERT_LE(limits->command_blocks_max * 4096, kNvmeCommandBytesMax);
          uint32_t in_flight = nvme_commands_in_flight(*limits);
          ASSERT_TRUE(in_flight >= kNvmeInFlightMin && in_flight <= kNvmeInFlightMax);
        }
      }
    }
  }
}

TEST(NvmeLimits, FormatsWithMetadataOrProtectionAreLeftAlone) {
  NvmeIdentify identify = good_namespace();
  identify.formats[0].metadata_bytes = 8;
  EXPECT_EQ(reason(identify), "is formatted with 8 bytes of metadata per LBA");
  identify = good_namespace();
  identify.formats[1].metadata_bytes = 8;  // not in use
  EXPECT_EQ(reason(identify), "offered");
  identify.dps = 1;
  EXPECT_EQ(reason(identify), "is formatted with protection information (DPS 0x1)");
}

TEST(NvmeLimits, FormatInUseIsFoundAmongSixtyFour) {
  NvmeIdentify identify = good_namespace();
  identify.flbas = 0x20 | 0x01;  // index 17, which counts with 17 formats or more
  identify.formats[17] = {16, 12};
  EXPECT_EQ(reason(identify, 4096), "offered");  // as index 1
  identify.nlbaf = 17;
  EXPECT_EQ(reason(identify, 4096), "is formatted with 16 bytes of metadata per LBA");
  identify.flbas = 0x60 | 0x10 | 0x0f;  // index 63; the bit between is of metadata
  identify.nlbaf = 63;
  identify.formats[63] = {0, 12};
  EXPECT_EQ(reason(identify, 4096), "offered");
}

TEST(NvmeLimits, LbaSizeMustBeTheKernelsAndUsable) {
  NvmeIdentify identify = good_namespace();
  EXPECT_EQ(reason(identify, 4096), "has LBAs of 512 bytes, of which the kernel makes 4096");
  identify.formats[0].data_shift = 13;
  EXPECT_EQ(reason(identify, 8192), "has LBAs of 2^13 bytes, which cannot be used");
  identify.formats[0].data_shift = 0;
  EXPECT_EQ(reason(identify, 1), "has LBAs of 2^0 bytes, which cannot be used");
}

TEST(NvmeLimits, SeveralDisksKeepTheSmallestOfEach) {
  EXPECT_EQ(smaller_limits({128, 16, 4096}, {1, 1024, 1024}), (NvmeLimits{1, 16, 1024}));
  EXPECT_EQ(smaller_limits({1, 1024, 1024}, {128, 16, 4096}), (NvmeLimits{1, 16, 1024}));
}

TEST(NvmeLimits, ManySmallCommandsAreInFlightOrFewLargeOnes) {
  EXPECT_EQ(nvme_commands_in_flight({128, 16, 16}), 64u);
  EXPECT_EQ(nvme_commands_in_flight({128, 128, 512}), 32u);
  EXPECT_EQ(nvme_commands_in_flight({128, 1024, 4096}), 8u);
}

}  // namespace
}  // namespace cofs
