// Each layout against bytes written out by hand; and whole commands made of requests.
#include "offload/nvme_format.h"

#include <gtest/gtest.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "offload/nvme_command.h"

namespace cofs {
namespace {

using Bytes = std::vector<uint8_t>;

template <class T>
Bytes bytes_of(const T& object) {
  Bytes bytes(sizeof(object));
  std::memcpy(bytes.data(), &object, sizeof(object));
  return bytes;
}

TEST(NvmeFormat, SourceRangeIsByteExact) {
  EXPECT_EQ(bytes_of(encode_source_range({0x1122334455667788, 0x9abd})),
            (Bytes{0,    0,    0,    0,    0,    0,    0,    0,     // reserved
                   0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,  // first LBA
                   0xbc, 0x9a,                                      // LBAs, less one
                   0,    0,    0,    0,    0,    0,                 // reserved
                   0,    0,    0,    0,    0,    0,    0,    0}));  // no protection information
  // One LBA is 0, and 65,536 fill the field.
  EXPECT_EQ(encode_source_range({0, 1}).lbas_less_one, 0);
  EXPECT_EQ(encode_source_range({0, 65536}).lbas_less_one, 0xffff);
}

TEST(NvmeFormat, CommandDword12HasTheRangesLessOneAndNothingElse) {
  EXPECT_EQ(encode_copy_cdw12(1), 0x00000000u);
  EXPECT_EQ(encode_copy_cdw12(2), 0x00000001u);
  EXPECT_EQ(encode_copy_cdw12(128), 0x0000007fu);
  EXPECT_EQ(encode_copy_cdw12(256), 0x000000ffu);
}

TEST(NvmeFormat, CommandIsByteExact) {
  std::vector<NvmeSourceRange> list(3);
  const auto address = std::bit_cast<uint64_t>(list.data());
  auto byte_of_address = [&](int index) { return static_cast<uint8_t>(address >> (8 * index)); };
  EXPECT_EQ(bytes_of(encode_copy(0x01020304, 0x1122334455667788, list, 0x5060708)),
            (Bytes{0x19,
                   0,
                   0,
                   0,  // opcode, flags
                   0x04,
                   0x03,
                   0x02,
                   0x01,  // namespace
                   0,
                   0,
                   0,
                   0,  // cdw2
                   0,
                   0,
                   0,
                   0,  // cdw3
                   0,
                   0,
                   0,
                   0,
                   0,
                   0,
                   0,
                   0,  // no metadata
                   byte_of_address(0),
                   byte_of_address(1),
                   byte_of_address(2),
                   byte_of_address(3),
                   byte_of_address(4),
                   byte_of_address(5),
                   byte_of_address(6),
                   byte_of_address(7),
                   0,
                   0,
                   0,
                   0,  // length of metadata
                   96,
                   0,
                   0,
                   0,  // length of the list: 3 × 32
                   0x88,
                   0x77,
                   0x66,
                   0x55,  // cdw10: first target LBA, low
                   0x44,
                   0x33,
                   0x22,
                   0x11,  // cdw11: high
                   2,
                   0,
                   0,
                   0,  // cdw12: 3 ranges, format 0, no FUA
                   0,
                   0,
                   0,
                   0,  // cdw13
                   0,
                   0,
                   0,
                   0,  // cdw14
                   0,
                   0,
                   0,
                   0,  // cdw15
                   0x08,
                   0x07,
                   0x06,
                   0x05,  // timeout
                   0,
                   0,
                   0,
                   0}));
}

// Two disks: 512 bytes per LBA with the volume at byte 1 MiB + 512, and 4096 bytes at byte 8 GiB.
class NvmeCommandTest : public testing::Test {
 protected:
  static DeviceStack two_disks() {
    DeviceStack stack;
    stack.disks = {{DiskKind::kNvme, "nvme0n1", 0, 512}, {DiskKind::kNvme, "nvme0n2", 0, 4096}};
    stack.regions = {{{0, 1000}, 0, (1 << 20) + 512}, {{1000, 1000}, 1, uint64_t{8} << 30}};
    return stack;
  }
  nvme_uring_cmd sent() const {
    nvme_uring_cmd command;
    EXPECT_EQ(command_.payload().size(), sizeof(command));
    std::memcpy(&command, command_.payload().data(), sizeof(command));
    return command;
  }
  void begin(BlockRange target, std::vector<BlockRange> sources) {
    sources_ = std::move(sources);
    request_.op = IoRequest::Op::kCopy;
    request_.range = target;
    request_.sources = sources_;
    command_.begin(request_);
  }

  DeviceStack stack_ = two_disks();
  std::vector<NvmeDestination> destinations_ = {{70, 7}, {90, 9}};
  std::vector<NvmeSourceRange> list_ = std::vector<NvmeSourceRange>(kNvmeCopyRangesMax);
  NvmeCommand command_{stack_, destinations_, list_};
  std::vector<BlockRange> sources_;
  IoRequest request_;
};

TEST_F(NvmeCommandTest, BlocksBecomeLbasOfTheDiskThatHoldsThem) {
  begin({100, 5}, {{10, 2}, {20, 3}});
  EXPECT_EQ(command_.fd(), 70);
  EXPECT_EQ(sent().nsid, 7u);
  EXPECT_EQ(sent().cdw10, 2049u + 800);  // the volume begins at LBA 2049
  EXPECT_EQ(sent().cdw12, 1u);
  EXPECT_EQ(sent().data_len, 64u);
  EXPECT_EQ(sent().addr, std::bit_cast<uint64_t>(list_.data()));
  EXPECT_EQ(list_[0].start_lba, 2049u + 80);
  EXPECT_EQ(list_[0].lbas_less_one, 15);
  EXPECT_EQ(list_[1].start_lba, 2049u + 160);
  EXPECT_EQ(list_[1].lbas_less_one, 23);

  begin({1500, 1}, {{1001, 1}});
  EXPECT_EQ(command_.fd(), 90);
  EXPECT_EQ(sent().nsid, 9u);
  EXPECT_EQ(sent().cdw10, (2u << 20) + 500);
  EXPECT_EQ(sent().cdw11, 0u);
  EXPECT_EQ(list_[0].start_lba, (2u << 20) + 1);
  EXPECT_EQ(list_[0].lbas_less_one, 0);
}

TEST_F(NvmeCommandTest, TimeoutIsRoundedUpToMilliseconds) {
  for (auto [ns, ms] : {std::pair<uint64_t, uint32_t>{0, 0},
                        {1, 1},
                        {1'000'000, 1},
                        {1'000'001, 2},
                        {30'000'000'000, 30'000},
                        {UINT64_MAX, INT32_MAX}}) {
    request_.timeout_ns = ns;
    begin({100, 1}, {{10, 1}});
    EXPECT_EQ(sent().timeout_ms, ms) << ns;
  }
}

TEST_F(NvmeCommandTest, CompletionSetsTheResult) {
  begin({100, 6}, {{10, 1}, {20, 2}, {30, 3}});
  request_.good_blocks = 77;
  request_.result = fail(Code::kIo, "left from before");
  EXPECT_TRUE(command_.finish({&command_, 0, 99}));
  EXPECT_TRUE(request_.result);
  EXPECT_EQ(request_.good_blocks, 6u);

  begin({100, 6}, {{10, 1}, {20, 2}, {30, 3}});
  // Only the low half of what the device returned is DW0.
  EXPECT_TRUE(command_.finish({&command_, 0x4080, 0xdeadbeef00000002}));
  EXPECT_EQ(request_.result.error().code, Code::kIo);
  EXPECT_EQ(request_.result.error().where, 100u);
  EXPECT_EQ(request_.good_blocks, 3u);
}

TEST_F(NvmeCommandTest, IsSentAgainWhenTheKernelIsShortOfResources) {
  begin({100, 1}, {{10, 1}});
  uint32_t sent_again = 0;
  while (!command_.finish({&command_, -EAGAIN, 0})) sent_again++;
  EXPECT_GT(sent_again, 1u);
  EXPECT_EQ(request_.result.error().code, Code::kIo);
  EXPECT_EQ(request_.good_blocks, 0u);
  begin({100, 1}, {{10, 1}});
  EXPECT_FALSE(command_.finish({&command_, -EAGAIN, 0}));
  EXPECT_TRUE(command_.finish({&command_, 0, 0}));
  EXPECT_TRUE(request_.result);
}

}  // namespace
}  // namespace cofs
