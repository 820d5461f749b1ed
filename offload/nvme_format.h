// The Copy command of NVMe as it goes to a device: the entry of its range list, and the command as
// the Linux driver takes it.
//
// Descriptor format 0 only: sources in the target's own namespace, without protection information.
// The others need a mode of the controller that the driver does not let user space set. LBAs are
// the namespace's; counts that the format stores less one are given as they are.
#pragma once

#include <linux/nvme_ioctl.h>
#include <sys/ioctl.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "offload/base/endian.h"
#include "offload/base/error.h"

namespace cofs {

inline constexpr uint8_t kNvmeOpcodeCopy = 0x19;
inline constexpr uint32_t kNvmeCopyRangesMax = 256;       // the field is 8 bits, less one
inline constexpr uint32_t kNvmeCopyRangeLbasMax = 65536;  // the field is 16 bits, less one

// LBAs of one source.
struct NvmeLbaRange {
  uint64_t start = 0;
  uint32_t count = 0;  // 1 … kNvmeCopyRangeLbasMax
};

// Source range entry, descriptor format 0.
struct NvmeSourceRange {
  std::array<uint8_t, 8> reserved_0;
  le64 start_lba;
  le16 lbas_less_one;
  std::array<uint8_t, 6> reserved_18;
  le32 expected_reference_tag;  // protection information: zero without
  le16 expected_tag;
  le16 expected_tag_mask;
};
static_assert(sizeof(NvmeSourceRange) == 32 && alignof(NvmeSourceRange) == 1);
static_assert(offsetof(NvmeSourceRange, start_lba) == 8);
static_assert(offsetof(NvmeSourceRange, lbas_less_one) == 16);
static_assert(offsetof(NvmeSourceRange, expected_reference_tag) == 24);
static_assert(offsetof(NvmeSourceRange, expected_tag) == 28);
static_assert(offsetof(NvmeSourceRange, expected_tag_mask) == 30);

// The driver's form of a command, in the host's byte order, and its number for an io_uring.
inline constexpr uint32_t kNvmeUringCommandIo = NVME_URING_CMD_IO;
static_assert(sizeof(nvme_uring_cmd) == 72);
static_assert(offsetof(nvme_uring_cmd, nsid) == 4 && offsetof(nvme_uring_cmd, addr) == 24);
static_assert(offsetof(nvme_uring_cmd, data_len) == 36 && offsetof(nvme_uring_cmd, cdw10) == 40);
static_assert(offsetof(nvme_uring_cmd, cdw12) == 48 && offsetof(nvme_uring_cmd, timeout_ms) == 64);

inline NvmeSourceRange encode_source_range(NvmeLbaRange range) {
  COFS_ASSERT(range.count >= 1 && range.count <= kNvmeCopyRangeLbasMax);
  NvmeSourceRange entry{};
  entry.start_lba = range.start;
  entry.lbas_less_one = static_cast<uint16_t>(range.count - 1);
  return entry;
}

// Number of ranges (less one) in bits 7:0; descriptor format in 11:8; FUA in bit 30, and the checks
// of protection information: all zero. Durability is the caller's flush, as for writes.
inline uint32_t encode_copy_cdw12(uint32_t ranges) {
  COFS_ASSERT(ranges >= 1 && ranges <= kNvmeCopyRangesMax);
  return ranges - 1;
}

// A Copy of `sources` to the run that begins at `target_lba`. `sources` must live until the command
// completed. `timeout_ms` 0 is the driver's default.
inline nvme_uring_cmd encode_copy(uint32_t namespace_id, uint64_t target_lba,
                                  std::span<const NvmeSourceRange> sources, uint32_t timeout_ms) {
  nvme_uring_cmd command{};
  command.opcode = kNvmeOpcodeCopy;
  command.nsid = namespace_id;
  command.addr = std::bit_cast<uintptr_t>(sources.data());
  // Exactly the list: devices refuse a shorter one, and some a longer one.
  command.data_len = static_cast<uint32_t>(sources.size_bytes());
  command.cdw10 = static_cast<uint32_t>(target_lba);
  command.cdw11 = static_cast<uint32_t>(target_lba >> 32);
  command.cdw12 = encode_copy_cdw12(static_cast<uint32_t>(sources.size()));
  command.timeout_ms = timeout_ms;
  return command;
}

}  // namespace cofs
