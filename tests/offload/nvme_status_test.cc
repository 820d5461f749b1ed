#include "offload/nvme_status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

namespace cofs {
namespace {

const std::vector<BlockRange> kSources = {{10, 1}, {20, 2}, {30, 4}, {40, 8}};

struct Expected {
  int32_t outcome;
  Code code;
  std::string what;
  uint64_t good_blocks;  // where DW0 is 2
};

TEST(NvmeStatus, SuccessIsAllOfIt) {
  for (uint32_t dw0 : {0u, 2u, UINT32_MAX}) {  // says nothing then
    NvmeOutcome outcome = outcome_of(0, dw0, kSources);
    EXPECT_TRUE(outcome.result);
    EXPECT_EQ(outcome.good_blocks, 15u);
  }
}

TEST(NvmeStatus, EachStatusHasItsCodeAndText) {
  const std::vector<Expected> kExpected = {
      {0x001, Code::kNotSupported, "Invalid Command Opcode", 0},
      {0x002, Code::kNotSupported, "Invalid Field in Command", 0},
      {0x006, Code::kIo, "Internal Error", 3},
      {0x007, Code::kIo, "Command Abort Requested", 0},
      {0x00f, Code::kIo, "Data SGL Length Invalid", 0},
      {0x080, Code::kIo, "LBA Out of Range", 3},
      {0x081, Code::kNoSpace, "Capacity Exceeded", 3},
      {0x10a, Code::kNotSupported, "Invalid Format", 0},
      {0x182, Code::kIo, "Attempted Write to Read Only Range", 3},
      {0x183, Code::kNotSupported, "Command Size Limit Exceeded", 3},
      {0x186, Code::kNotSupported, "Fast Copy Not Possible", 0},
      {0x187, Code::kIo, "Overlapping I/O Range", 3},
      {0x189, Code::kIo, "Insufficient Resources", 3},
      {0x280, Code::kIo, "Write Fault", 3},
      {0x281, Code::kIo, "Unrecovered Read Error", 3},
      {0x2ff, Code::kIo, "media error", 3},
      {0x370, Code::kTimedOut, "the driver gave the command up", 0},
      {0x371, Code::kTimedOut, "the driver gave the command up", 0},
      {0x1bc, Code::kIo, "unknown status", 3},
      {0x7ff, Code::kIo, "unknown status", 3},
  };
  for (const Expected& expected : kExpected) {
    for (int32_t flags : {0, 0x4000, 0x2000, 0x7800}) {  // do not retry, more, delay
      NvmeOutcome outcome = outcome_of(expected.outcome | flags, 2, kSources);
      ASSERT_FALSE(outcome.result) << expected.what;
      EXPECT_EQ(outcome.result.error().code, expected.code) << expected.what;
      EXPECT_EQ(outcome.result.error().what, expected.what);
      EXPECT_EQ(outcome.good_blocks, expected.good_blocks) << expected.what;
    }
  }
}

TEST(NvmeStatus, RangesBeforeTheOneThatFailedAreGood) {
  for (auto [dw0, blocks] : {std::pair<uint32_t, uint64_t>{0, 0}, {1, 1}, {2, 3}, {3, 7}}) {
    EXPECT_EQ(outcome_of(0x4080, dw0, kSources).good_blocks, blocks);
  }
  // A failed command has a range that failed: anything else is not believed.
  for (uint32_t dw0 : {4u, 5u, 0x80000000u, UINT32_MAX}) {
    EXPECT_EQ(outcome_of(0x4080, dw0, kSources).good_blocks, 0u);
  }
}

TEST(NvmeStatus, EachErrnoHasItsCodeAndNothingIsGood) {
  const std::vector<Expected> kExpected = {
      {-EINTR, Code::kTimedOut, "the driver gave the command up", 0},
      {-ETIMEDOUT, Code::kTimedOut, "the driver gave the command up", 0},
      {-EACCES, Code::kNotSupported, "the kernel permits Copy only with CAP_SYS_ADMIN here", 0},
      {-EPERM, Code::kNotSupported, "the kernel permits Copy only with CAP_SYS_ADMIN here", 0},
      {-EOPNOTSUPP, Code::kNotSupported, "the kernel does not pass Copy on", 0},
      {-EINVAL, Code::kNotSupported, "the kernel does not pass Copy on", 0},
      {-ENODEV, Code::kIo, "the device is gone", 0},
      {-ENOMEM, Code::kIo, "the kernel is short of resources", 0},
      {-EIO, Code::kIo, "the kernel failed the command", 0},
      {INT32_MIN, Code::kIo, "the kernel failed the command", 0},
  };
  for (const Expected& expected : kExpected) {
    NvmeOutcome outcome = outcome_of(expected.outcome, 2, kSources);
    ASSERT_FALSE(outcome.result);
    EXPECT_EQ(outcome.result.error().code, expected.code) << expected.outcome;
    EXPECT_EQ(outcome.result.error().what, expected.what);
    EXPECT_EQ(outcome.good_blocks, 0u);
  }
}

TEST(NvmeStatus, EveryStatusIsSurvived) {
  for (int32_t status = 1; status < 0x8000; status++) {
    NvmeOutcome outcome = outcome_of(status, 1, kSources);
    ASSERT_FALSE(outcome.result);
    ASSERT_LE(outcome.good_blocks, 1u);
    ASSERT_STRNE(outcome.result.error().what, "");
  }
}

}  // namespace
}  // namespace cofs
