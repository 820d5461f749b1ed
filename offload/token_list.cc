#include "offload/token_list.h"

#include <algorithm>

namespace cofs {

namespace {

constexpr uint8_t kActionMask = 0x1f;
constexpr uint8_t kStatusMask = 0x7f;

TokenProgress progress_of(uint8_t status) {
  switch (status) {
    case 0x01: return TokenProgress::kDone;
    case 0x02: return TokenProgress::kDoneWithErrors;
    case 0x03:
    case 0x04: return TokenProgress::kDoneShort;
    case 0x10:
    case 0x11:
    case 0x12: return TokenProgress::kRunning;
    case 0x60: return TokenProgress::kTerminated;
    default: return TokenProgress::kUnknown;
  }
}

// A transfer count in logical blocks. Disks count in these; the field could also be bytes, KiB, ….
uint64_t lbas_of_count(uint64_t count, uint8_t unit, uint32_t lba_bytes) {
  constexpr uint8_t kUnitLbas = 0xf1;
  constexpr uint8_t kUnitExbibytes = 6;  // 0 is bytes, each further one 1024 times the one before
  if (unit == kUnitLbas) return count;
  if (unit > kUnitExbibytes) return 0;
  const unsigned shift = 10U * unit;
  if (count > (UINT64_MAX >> shift)) return UINT64_MAX / lba_bytes;
  return (count << shift) / lba_bytes;
}

void write_ranges(std::span<uint8_t> list, size_t at, std::span<const LbaRange> ranges) {
  for (const LbaRange& range : ranges) {
    COFS_ASSERT(range.lbas <= UINT32_MAX);
    TokenRange entry;
    entry.lba = range.lba;
    entry.lbas = static_cast<uint32_t>(range.lbas);
    write_as(list, at, entry);
    at += sizeof(entry);
  }
}

uint16_t checked_length(size_t bytes) {
  COFS_ASSERT(bytes <= UINT16_MAX);
  return static_cast<uint16_t>(bytes);
}

ScsiCommand token_command(uint8_t action, uint32_t list_id, std::span<const uint8_t> list) {
  ScsiCommand command;
  TokenCdb cdb;
  cdb.action = action;
  cdb.list_id = list_id;
  cdb.length = static_cast<uint32_t>(list.size());
  command.set_cdb(cdb);
  command.to_device = list;
  return command;
}

}  // namespace

std::vector<uint8_t> encode_populate_list(uint32_t inactivity_s, std::span<const LbaRange> ranges) {
  const size_t range_bytes = ranges.size() * sizeof(TokenRange);
  std::vector<uint8_t> list(sizeof(PopulateListHeader) + range_bytes);
  PopulateListHeader header;
  header.data_bytes = checked_length(list.size() - sizeof(header.data_bytes));
  header.inactivity_s = inactivity_s;
  header.range_bytes = checked_length(range_bytes);
  write_as(list, 0, header);
  write_ranges(list, sizeof(header), ranges);
  return list;
}

std::vector<uint8_t> encode_write_list(const RodToken& token, uint64_t offset,
                                       std::span<const LbaRange> ranges) {
  const size_t range_bytes = ranges.size() * sizeof(TokenRange);
  std::vector<uint8_t> list(sizeof(WriteListHeader) + range_bytes);
  WriteListHeader header;
  header.data_bytes = checked_length(list.size() - sizeof(header.data_bytes));
  header.offset = offset;
  header.token = token;
  header.range_bytes = checked_length(range_bytes);
  write_as(list, 0, header);
  write_ranges(list, sizeof(header), ranges);
  return list;
}

ScsiCommand populate_command(uint32_t list_id, std::span<const uint8_t> list) {
  return token_command(kPopulateToken, list_id, list);
}

ScsiCommand write_command(uint32_t list_id, std::span<const uint8_t> list) {
  return token_command(kWriteUsingToken, list_id, list);
}

ScsiCommand information_command(uint32_t list_id, std::span<uint8_t> data) {
  ScsiCommand command;
  TokenInformationCdb cdb;
  cdb.list_id = list_id;
  cdb.allocation = static_cast<uint32_t>(data.size());
  command.set_cdb(cdb);
  command.from_device = data;
  return command;
}

ScsiCommand abort_command(uint32_t list_id) {
  ScsiCommand command;
  CopyAbortCdb cdb;
  cdb.list_id = list_id;
  command.set_cdb(cdb);
  return command;
}

std::optional<TokenInformation> parse_token_information(std::span<const uint8_t> data,
                                                        uint32_t lba_bytes) {
  const auto header = read_as<TokenInformationHeader>(data);
  if (!header) return std::nullopt;
  const uint64_t end = uint64_t{header->available} + sizeof(header->available);
  if (end < sizeof(TokenInformationHeader)) return std::nullopt;
  data = data.first(static_cast<size_t>(std::min<uint64_t>(data.size(), end)));

  TokenInformation information;
  information.action = header->action & kActionMask;
  information.progress = progress_of(header->status & kStatusMask);
  information.update_delay_ms = header->update_delay_ms;
  information.lbas = lbas_of_count(header->count, header->count_unit, lba_bytes);
  std::span<const uint8_t> rest = data.subspan(sizeof(TokenInformationHeader));
  const size_t sense_field = std::min<size_t>(rest.size(), header->sense_field_bytes);
  const size_t sense_bytes = std::min<size_t>(sense_field, header->sense_bytes);
  information.sense = parse_sense(rest.first(sense_bytes));
  rest = rest.subspan(sense_field);
  const auto descriptor = read_as<TokenDescriptor>(rest);
  constexpr size_t kDescriptorBytes = sizeof(TokenDescriptor) - sizeof(descriptor->bytes);
  if (descriptor && descriptor->bytes >= kDescriptorBytes) information.token = descriptor->token;
  return information;
}

}  // namespace cofs
