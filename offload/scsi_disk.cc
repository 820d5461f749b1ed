#include "offload/scsi_disk.h"

#include <fmt/format.h>

#include <algorithm>

#include "offload/base/units.h"
#include "offload/scsi_exchange.h"
#include "offload/scsi_layout.h"

namespace cofs {

namespace {

struct InquiryCdb {
  uint8_t opcode = 0x12;
  uint8_t vital = 0;  // EVPD
  uint8_t page = 0;
  be16 allocation = 0;
  uint8_t control = 0;
};
static_assert(sizeof(InquiryCdb) == 6);

struct ReadCapacity16Cdb {
  uint8_t opcode = 0x9e;
  uint8_t action = 0x10;
  be64 lba = 0;
  be32 allocation = 0;
  uint8_t partial = 0;
  uint8_t control = 0;
};
static_assert(sizeof(ReadCapacity16Cdb) == 16);

constexpr size_t kStandardInquiryBytes = 36;
constexpr uint8_t kThirdPartyCopyBit = 0x08;  // of byte 5

constexpr uint8_t kPageIdentification = 0x83;

struct VitalPageHeader {
  uint8_t peripheral;
  uint8_t page;
  be16 length;
};
static_assert(sizeof(VitalPageHeader) == 4);

struct DesignatorHeader {
  uint8_t code_set;  // bits 3-0
  uint8_t kind;      // association in bits 5-4, designator type in bits 3-0
  uint8_t reserved;
  uint8_t length;
};
static_assert(sizeof(DesignatorHeader) == 4);

constexpr uint8_t kAssociationUnit = 0;
// By type number: vendor specific, T10, EUI-64, NAA. What is beyond has no place in the order.
constexpr uint8_t kDesignatorTypes = 4;

struct Capacity16 {
  be64 last_lba;
  be32 block_bytes;
};
static_assert(sizeof(Capacity16) == 12);

bool is_better(const ScsiDesignator& candidate, const ScsiDesignator& best) {
  if (candidate.type != best.type) return candidate.type > best.type;
  return candidate.length > best.length;
}

}  // namespace

std::optional<ScsiInquiry> parse_inquiry(std::span<const uint8_t> data) {
  if (data.size() < 6) return std::nullopt;
  ScsiInquiry inquiry;
  inquiry.peripheral = data[0];
  inquiry.third_party_copy = (data[5] & kThirdPartyCopyBit) != 0;
  return inquiry;
}

std::optional<ScsiDesignator> parse_designators(std::span<const uint8_t> page) {
  const auto header = read_as<VitalPageHeader>(page);
  if (!header || header->page != kPageIdentification) return std::nullopt;
  std::span<const uint8_t> rest = page.subspan(sizeof(VitalPageHeader));
  rest = rest.first(std::min<size_t>(rest.size(), header->length));
  std::optional<ScsiDesignator> best;
  while (const auto entry = read_as<DesignatorHeader>(rest)) {
    rest = rest.subspan(sizeof(DesignatorHeader));
    if (entry->length > rest.size()) break;
    ScsiDesignator designator;
    designator.code_set = entry->code_set & 0x0f;
    designator.type = entry->kind & 0x0f;
    designator.length = entry->length;
    const bool usable = (entry->kind >> 4 & 3) == kAssociationUnit &&
                        designator.type < kDesignatorTypes && entry->length != 0 &&
                        entry->length <= ScsiDesignator::kBytesMax;
    if (usable) {
      std::copy_n(rest.begin(), entry->length, designator.bytes.begin());
      if (!best || is_better(designator, *best)) best = designator;
    }
    rest = rest.subspan(entry->length);
  }
  return best;
}

std::optional<uint32_t> parse_block_length(std::span<const uint8_t> data) {
  const auto capacity = read_as<Capacity16>(data);
  if (!capacity) return std::nullopt;
  return capacity->block_bytes;
}

uint64_t ScsiDisk::lbas_per_block() const {
  return kBlockBytes / lba_bytes;
}

Result<std::vector<uint8_t>> read_vital_page(ScsiTransport& disk, uint8_t page) {
  std::vector<uint8_t> data(4096);
  ScsiCommand command;
  InquiryCdb cdb;
  cdb.vital = 1;
  cdb.page = page;
  cdb.allocation = static_cast<uint16_t>(data.size());
  command.set_cdb(cdb);
  command.from_device = data;
  command.timeout = kScsiQuestionTimeout;
  const auto received = exchange(disk, command);
  if (!received) return fail(received.error());
  data.resize(*received);
  return data;
}

namespace {

Result<std::vector<uint8_t>> read_standard_inquiry(ScsiTransport& disk) {
  std::vector<uint8_t> data(kStandardInquiryBytes);
  ScsiCommand command;
  InquiryCdb cdb;
  cdb.allocation = static_cast<uint16_t>(data.size());
  command.set_cdb(cdb);
  command.from_device = data;
  command.timeout = kScsiQuestionTimeout;
  const auto received = exchange(disk, command);
  if (!received) return fail(received.error());
  data.resize(*received);
  return data;
}

Result<std::vector<uint8_t>> read_capacity(ScsiTransport& disk) {
  std::vector<uint8_t> data(32);
  ScsiCommand command;
  ReadCapacity16Cdb cdb;
  cdb.allocation = static_cast<uint32_t>(data.size());
  command.set_cdb(cdb);
  command.from_device = data;
  command.timeout = kScsiQuestionTimeout;
  const auto received = exchange(disk, command);
  if (!received) return fail(received.error());
  data.resize(*received);
  return data;
}

std::unexpected<std::string> unanswered(const std::string& name, const char* question,
                                        const char* why) {
  return std::unexpected(fmt::format("{} does not answer {}: {}", name, question, why));
}

}  // namespace

std::expected<ScsiDisk, std::string> identify_scsi_disk(const StackDisk& stack_disk,
                                                        std::shared_ptr<ScsiTransport> transport) {
  ScsiDisk disk;
  disk.name = stack_disk.name;
  disk.transport = std::move(transport);

  const auto standard = read_standard_inquiry(*disk.transport);
  if (!standard) return unanswered(disk.name, "INQUIRY", standard.error().what);
  const auto inquiry = parse_inquiry(*standard);
  if (!inquiry) return unanswered(disk.name, "INQUIRY", "the answer is too short");
  if (inquiry->peripheral != 0) {
    return std::unexpected(
        fmt::format("{} is not a disk (peripheral type 0x{:02x})", disk.name, inquiry->peripheral));
  }
  if (!inquiry->third_party_copy) {
    return std::unexpected(fmt::format("{} has no third-party copy (3PC is 0)", disk.name));
  }

  const auto capacity = read_capacity(*disk.transport);
  if (!capacity) return unanswered(disk.name, "READ CAPACITY(16)", capacity.error().what);
  const auto length = parse_block_length(*capacity);
  if (!length) return unanswered(disk.name, "READ CAPACITY(16)", "the answer is too short");
  if (*length != stack_disk.lba_bytes || *length == 0 || kBlockBytes % *length != 0) {
    return std::unexpected(fmt::format("{} has blocks of {} bytes, the kernel says {}", disk.name,
                                       *length, stack_disk.lba_bytes));
  }
  disk.lba_bytes = *length;

  const auto page = read_vital_page(*disk.transport, kPageIdentification);
  if (!page) return unanswered(disk.name, "INQUIRY of page 0x83", page.error().what);
  const auto designator = parse_designators(*page);
  if (!designator) {
    return std::unexpected(
        fmt::format("{} has no name that a copy command could use (VPD 0x83)", disk.name));
  }
  disk.designator = *designator;
  return disk;
}

}  // namespace cofs
