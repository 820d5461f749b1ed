// EXTENDED COPY(LID1) of the simulated target, as strict as LIO: the descriptors' types, counts,
// lengths and the designator are checked before anything is copied; what fails later is COPY
// ABORTED.
#include <algorithm>
#include <cstring>

#include "tests/testing/sim_scsi_target.h"

namespace cofs {

namespace {

uint64_t field(std::span<const uint8_t> bytes, size_t from, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; i++) value = value << 8 | bytes[from + i];
  return value;
}

void put(std::vector<uint8_t>* bytes, size_t at, size_t count, uint64_t value) {
  for (size_t i = 0; i < count; i++) {
    (*bytes)[at + i] = static_cast<uint8_t>(value >> (8 * (count - 1 - i)));
  }
}

}  // namespace

SimScsiTarget::Answer SimScsiTarget::operating_parameters() {
  Answer answer;
  std::vector<uint8_t>& data = answer.data;
  size_t types = options_.descriptor_types.size();
  data.resize(44 + types);
  put(&data, 0, 4, 40 + types);  // what follows these four bytes
  data[4] = options_.no_list_id ? 1 : 0;
  put(&data, 8, 2, options_.cscds_max);
  put(&data, 10, 2, options_.segments_max);
  put(&data, 12, 4, options_.list_bytes_max);
  put(&data, 16, 4, options_.segment_bytes_max);
  put(&data, 24, 4, options_.held_data_max);
  put(&data, 34, 2, options_.copies_total);
  data[36] = options_.copies_max;
  data[37] = options_.granularity_log2;
  data[43] = static_cast<uint8_t>(types);
  std::ranges::copy(options_.descriptor_types, data.begin() + 44);
  return answer;
}

SimScsiTarget::Answer SimScsiTarget::extended_copy(const uint8_t* cdb,
                                                   std::span<const uint8_t> list) {
  for (int i : {2, 3, 4, 5, 6, 7, 8, 9, 14, 15}) {
    if (cdb[i] != 0) return check(5, 0x24, 0);
  }
  if (list.empty()) return {};
  if (list.size() < 16) return check(5, 0x1a, 0);
  uint64_t cscd_bytes = field(list, 2, 2);
  uint64_t segment_bytes = field(list, 8, 4);
  if (field(list, 4, 4) != 0 || field(list, 12, 4) != 0) return check(5, 0x26, 0);
  unsigned usage = list[1] >> 3 & 3;
  if (usage == 1 || (usage == 3 && (!options_.no_list_id || list[0] != 0))) {
    return check(5, 0x26, 0);
  }
  if (list.size() != 16 + cscd_bytes + segment_bytes) return check(5, 0x1a, 0);
  if (options_.list_bytes_max != 0 && cscd_bytes + segment_bytes > options_.list_bytes_max) {
    return check(5, 0x1a, 0);
  }
  if (cscd_bytes % 32 != 0 || segment_bytes % 28 != 0) return check(5, 0x26, 0);
  size_t cscds = cscd_bytes / 32;
  size_t segments = segment_bytes / 28;
  if (cscds > options_.cscds_max) return check(5, 0x26, 0x06);
  if (segments > options_.segments_max) return check(5, 0x26, 0x08);
  if (cscds < options_.cscds_min) return check(5, 0x26, 0x00);

  Answer answer;
  for (size_t i = 0; i < cscds && answer.status == 0; i++) {
    answer = check_cscd(list.subspan(16 + 32 * i, 32));
  }
  for (size_t i = 0; i < segments && answer.status == 0; i++) {
    answer = check_segment(list.subspan(16 + cscd_bytes + 28 * i, 28), cscds);
  }
  uint64_t segments_before = counters_.segments;
  for (size_t i = 0; i < segments && answer.status == 0; i++) {
    answer = faults_.fail_segment == static_cast<int>(i)
                 ? check(0xa, 0x0d, 0x02)
                 : copy_segment(list.subspan(16 + cscd_bytes + 28 * i, 28));
  }
  if (answer.status == 0 && counters_.segments != segments_before) counters_.xcopies++;
  return answer;
}

// It must name this disk as page 0x83 does, with the rest of the designator's field zero.
SimScsiTarget::Answer SimScsiTarget::check_cscd(std::span<const uint8_t> cscd) const {
  if (cscd[0] != 0xe4) return check(5, 0x26, 0x07);
  if (cscd[1] != 0 || field(cscd, 2, 2) != 0 || cscd[6] != 0) return check(5, 0x26, 0);
  if (field(cscd, 29, 3) != options_.lba_bytes) return check(5, 0x26, 0);
  std::span<const uint8_t> known = options_.designators;
  for (size_t at = 0; at + 4 <= known.size(); at += 4U + known[at + 3]) {
    size_t length = known[at + 3];
    if (length > 20 || at + 4 + length > known.size()) continue;
    if ((cscd[4] & 0x0f) != (known[at] & 0x0f) || cscd[5] != (known[at + 1] & 0x3f)) continue;
    std::vector<uint8_t> expected(known.begin() + static_cast<ptrdiff_t>(at) + 4,
                                  known.begin() + static_cast<ptrdiff_t>(at + 4 + length));
    expected.resize(20);
    if (cscd[7] == length && std::ranges::equal(cscd.subspan(8, 20), expected)) return {};
  }
  return check(0xa, 0x0d, 0x02);
}

SimScsiTarget::Answer SimScsiTarget::check_segment(std::span<const uint8_t> segment,
                                                   size_t cscds) const {
  if (segment[0] != 0x02) return check(5, 0x26, 0x09);
  if ((segment[1] & ~0x02) != 0 || field(segment, 2, 2) != 0x18 || field(segment, 8, 2) != 0) {
    return check(5, 0x26, 0);
  }
  if (field(segment, 4, 2) >= cscds || field(segment, 6, 2) >= cscds) return check(5, 0x26, 0);
  uint64_t bytes = field(segment, 10, 2) * options_.lba_bytes;
  if (options_.segment_bytes_max != 0 && bytes > options_.segment_bytes_max) {
    return check(5, 0x26, 0);
  }
  if (bytes % (uint64_t{1} << options_.granularity_log2) != 0) return check(5, 0x26, 0x0d);
  return {};
}

SimScsiTarget::Answer SimScsiTarget::copy_segment(std::span<const uint8_t> segment) {
  uint64_t count = field(segment, 10, 2);
  uint64_t source = field(segment, 12, 8);
  uint64_t target = field(segment, 20, 8);
  if (!on_disk(source, count) || !on_disk(target, count)) return check(0xa, 0x0d, 0x02);
  if (count == 0) return {};
  counters_.segments++;
  if (faults_.copies_nothing) return {};
  auto begin = memory_.begin() + static_cast<ptrdiff_t>(source * options_.lba_bytes);
  std::vector<uint8_t> data(begin, begin + static_cast<ptrdiff_t>(count * options_.lba_bytes));
  store(target, data);
  return {};
}

}  // namespace cofs
