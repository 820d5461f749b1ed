// ScsiDisk: what every SCSI copy engine must know of a disk, asked for at open: whether it copies
// at all, by which name a copy command addresses it, and the length of its blocks.
//
// The parse functions are pure and trust nothing: what the device did not send is not read,
// whatever lengths it claims.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "offload/device_stack.h"
#include "offload/scsi_transport.h"

namespace cofs {

struct ScsiInquiry {
  uint8_t peripheral = 0;  // qualifier and device type; 0: a disk that is there
  bool third_party_copy = false;
};
std::optional<ScsiInquiry> parse_inquiry(std::span<const uint8_t> data);

// A name that a logical unit has, as its page 0x83 tells it and as copy commands take it.
struct ScsiDesignator {
  static constexpr size_t kBytesMax = 20;

  uint8_t code_set = 0;
  uint8_t type = 0;
  uint8_t length = 0;  // 1 … 20
  std::array<uint8_t, kBytesMax> bytes{};

  bool operator==(const ScsiDesignator&) const = default;
};
// The best of the page: NAA before EUI-64, T10 and vendor; of several of one type the longest.
// Those too long for a copy command, and those of ports and targets, do not count.
std::optional<ScsiDesignator> parse_designators(std::span<const uint8_t> page);

// The block length in bytes of READ CAPACITY(16).
std::optional<uint32_t> parse_block_length(std::span<const uint8_t> data);

struct ScsiDisk {
  std::string name;
  std::shared_ptr<ScsiTransport> transport;
  ScsiDesignator designator;
  uint32_t lba_bytes = 0;  // what READ CAPACITY(16) says, which is what the kernel says

  uint64_t lbas_per_block() const;
};

// Asks the disk. The error is a reason without the engine's name: "sda has no third-party copy (3PC
// is 0)".
std::expected<ScsiDisk, std::string> identify_scsi_disk(const StackDisk& disk,
                                                        std::shared_ptr<ScsiTransport> transport);

// A page of vital product data, as much of it as the device sent.
Result<std::vector<uint8_t>> read_vital_page(ScsiTransport& disk, uint8_t page);

}  // namespace cofs
