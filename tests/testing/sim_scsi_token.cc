// Token copy of the simulated target: a token stands for the data as it was when it was made (or
// ends when its source is written), lives while it is used, and is told from every other.
// Operations are done at once, or after some polls; one that is aborted before has written nothing.
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

void push(std::vector<uint8_t>* bytes, size_t count, uint64_t value) {
  for (size_t i = 0; i < count; i++) {
    bytes->push_back(static_cast<uint8_t>(value >> (8 * (count - 1 - i))));
  }
}

}  // namespace

std::vector<uint8_t> SimScsiTarget::third_party_page() const {
  std::vector<uint8_t> body;
  if (options_.commands_descriptor) {
    std::vector<uint8_t> commands = {0x83, 3, 0x10, 0x11, 0x1c, 0x84, 2, 0x03, 0x07};
    push(&body, 2, 0x0001);
    push(&body, 2, 12);  // padded to a multiple of four
    body.push_back(static_cast<uint8_t>(commands.size()));
    body.insert(body.end(), commands.begin(), commands.end());
    body.resize(body.size() + 2);
  }
  if (options_.limits_descriptor) {
    push(&body, 2, 0x0000);
    push(&body, 2, 0x0020);
    push(&body, 6, 0);
    push(&body, 2, options_.ranges_max);
    push(&body, 4, options_.inactivity_max_s);
    push(&body, 4, options_.inactivity_default_s);
    push(&body, 8, options_.token_lbas_max);
    push(&body, 8, options_.optimal_lbas);
  }
  push(&body, 2, 0x8001);
  push(&body, 2, 0x0020);
  push(&body, 4, options_.copies_total);
  body.resize(body.size() + 28);
  return body;
}

// False with an answer when a range cannot be served.
bool SimScsiTarget::parse_ranges(std::span<const uint8_t> bytes, std::vector<Range>* ranges,
                                 Answer* answer) const {
  uint64_t sum = 0;
  for (size_t at = 0; at + 16 <= bytes.size(); at += 16) {
    Range range{field(bytes, at, 8), field(bytes, at + 8, 4)};
    bool overlaps = std::ranges::any_of(*ranges, [&](const Range& other) {
      return range.lba < other.lba + other.count && other.lba < range.lba + range.count;
    });
    bool too_long = options_.transfer_lbas_max != 0 && range.count > options_.transfer_lbas_max;
    if (overlaps || too_long || field(bytes, at + 12, 4) != 0) *answer = check(5, 0x26, 0);
    if (!on_disk(range.lba, range.count)) *answer = check(5, 0x21, 0);
    if (answer->status != 0) return false;
    sum += range.count;
    ranges->push_back(range);
  }
  if (ranges->empty()) *answer = check(5, 0x26, 0);
  if (options_.ranges_max != 0 && ranges->size() > options_.ranges_max) {
    *answer = check(5, 0x26, 0x08);
  }
  if (options_.token_lbas_max != 0 && sum > options_.token_lbas_max) *answer = check(5, 0x26, 0);
  return answer->status == 0;
}

SimScsiTarget::Answer SimScsiTarget::populate_token(const uint8_t* cdb,
                                                    std::span<const uint8_t> list) {
  if (list.empty()) return {};
  if (list.size() < 16) return check(5, 0x1a, 0);
  size_t declared = field(list, 0, 2);
  if (declared < 0x1e || declared + 2 != list.size()) return check(5, 0x26, 0);
  if ((list[2] & ~3) != 0 || list[3] != 0 || field(list, 12, 2) != 0) return check(5, 0x26, 0);
  if ((list[2] & 2) != 0 && (field(list, 8, 4) & 0x00800000) == 0) return check(5, 0x26, 0);
  uint64_t inactivity = field(list, 4, 4);
  if (options_.inactivity_max_s != 0 && inactivity > options_.inactivity_max_s) {
    return check(5, 0x26, 0);
  }
  if (field(list, 14, 2) != list.size() - 16) return check(5, 0x26, 0);
  std::vector<Range> ranges;
  Answer answer;
  if (!parse_ranges(list.subspan(16), &ranges, &answer)) return answer;
  counters_.populates++;

  Token token;
  uint64_t asked = 0;
  for (const Range& range : ranges) asked += range.count;
  uint64_t left = std::min(asked, options_.populate_lbas_max);
  Operation operation;
  operation.action = 0x10;
  operation.status = left == asked ? 1 : 3;
  operation.transferred = left;
  for (Range range : ranges) {
    range.count = std::min(range.count, left);
    left -= range.count;
    if (range.count == 0) break;
    auto begin = memory_.begin() + static_cast<ptrdiff_t>(range.lba * options_.lba_bytes);
    token.data.insert(token.data.end(), begin,
                      begin + static_cast<ptrdiff_t>(range.count * options_.lba_bytes));
    token.sources.push_back(range);
  }
  token.inactivity_ms = 1000 * (inactivity != 0 ? inactivity : options_.inactivity_default_s);
  token.expires_ms = now_ms_ + token.inactivity_ms;
  // ROD type "point in time, default", the length of what follows, then whatever tells tokens
  // apart.
  push(&operation.token, 4, 0x00800000);
  push(&operation.token, 2, 0);
  push(&operation.token, 2, 0x01f8);
  while (operation.token.size() < 512) push(&operation.token, 8, random_.next());
  tokens_[operation.token] = std::move(token);
  return begin(cdb, std::move(operation), (list[2] & 1) != 0);
}

SimScsiTarget::Answer SimScsiTarget::write_using_token(const uint8_t* cdb,
                                                       std::span<const uint8_t> list) {
  if (list.empty()) return {};
  if (list.size() < 552) return check(5, 0x26, 0);
  size_t declared = field(list, 0, 2);
  if (declared + 2 != list.size() || field(list, 534, 2) + 534 != declared) {
    return check(5, 0x26, 0);
  }
  if ((list[2] & ~3) != 0 || field(list, 3, 5) != 0 || field(list, 528, 6) != 0) {
    return check(5, 0x26, 0);
  }
  uint64_t offset = field(list, 8, 8);
  std::vector<uint8_t> name(list.begin() + 16, list.begin() + 528);
  if (field(name, 6, 2) != 0x01f8) return check(5, 0x23, 0x0a);
  auto found = tokens_.find(name);
  if (found == tokens_.end() || faults_.forgets_tokens) return check(5, 0x23, 0x04);
  Token& token = found->second;
  if (now_ms_ >= token.expires_ms) return check(5, 0x23, 0x07);
  if (token.invalid) return check(5, 0x23, 0x06);
  token.expires_ms = now_ms_ + token.inactivity_ms;
  uint64_t covered = token.data.size() / options_.lba_bytes;
  if (offset >= covered) return check(5, 0x26, 0);
  std::vector<Range> ranges;
  Answer answer;
  if (!parse_ranges(list.subspan(536), &ranges, &answer)) return answer;
  counters_.token_writes++;

  uint64_t asked = 0;
  for (const Range& range : ranges) asked += range.count;
  Operation operation;
  operation.action = 0x11;
  uint64_t left = std::min({asked, covered - offset, options_.write_lbas_max});
  operation.status = left == asked ? 1 : options_.short_write_status;
  if (left > faults_.fail_write_after_lbas) {
    left = faults_.fail_write_after_lbas;
    operation.status = 2;
    operation.key = 3;
    operation.asc = 0x0c;
  }
  operation.transferred = left;
  auto from = token.data.begin() + static_cast<ptrdiff_t>(offset * options_.lba_bytes);
  for (const Range& range : ranges) {
    uint64_t count = std::min(range.count, left);
    left -= count;
    auto end = from + static_cast<ptrdiff_t>(count * options_.lba_bytes);
    if (count != 0 && !faults_.copies_nothing) {
      operation.pending.emplace_back(range.lba, std::vector<uint8_t>(from, end));
    }
    from = end;
  }
  if ((list[2] & 2) != 0) tokens_.erase(found);
  return begin(cdb, std::move(operation), (list[2] & 1) != 0);
}

// Starts an operation under the list identifier of its command.
SimScsiTarget::Answer SimScsiTarget::begin(const uint8_t* cdb, Operation operation,
                                           bool immediate) {
  uint32_t id = static_cast<uint32_t>(field({cdb, 16}, 6, 4));
  auto running = operations_.find(id);
  if (running != operations_.end() && running->second.polls_left != 0) return check(5, 0x00, 0x16);
  operation.polls_left =
      operation.action == 0x10 ? options_.polls_until_token : options_.polls_until_written;
  if (operation.polls_left == 0) finish(operation);
  bool failed = operation.status == 2 && operation.polls_left == 0 && !immediate;
  Answer answer = failed ? check(operation.key, operation.asc, operation.ascq) : Answer{};
  // That a command failed is said by its status; the transfer count is in the information.
  if (operation.action == 0x11 && faults_.write_answer_lost) {
    answer.delivery = ScsiDelivery::kTimedOut;
  }
  operations_[id] = std::move(operation);
  return answer;
}

void SimScsiTarget::finish(Operation& operation) {
  for (auto& [lba, bytes] : operation.pending) store(lba, bytes);
  operation.pending.clear();
}

SimScsiTarget::Answer SimScsiTarget::token_information(const uint8_t* cdb) {
  uint32_t id = static_cast<uint32_t>(field({cdb, 16}, 2, 4));
  uint64_t allocation = field({cdb, 16}, 10, 4);
  counters_.polls++;
  auto found = operations_.find(id);
  if (found == operations_.end()) return check(5, 0x24, 0);
  Operation& operation = found->second;
  bool running = operation.polls_left != 0;
  if (running && --operation.polls_left == 0) finish(operation);

  bool failed = operation.status == 2 && !running;
  std::vector<uint8_t> sense(failed ? 18 : 0);
  if (failed) {
    sense[0] = 0x70;
    sense[2] = operation.key;
    sense[7] = 10;
    sense[12] = operation.asc;
    sense[13] = operation.ascq;
  }
  Answer answer;
  std::vector<uint8_t>& data = answer.data;
  push(&data, 4, 0);
  push(&data, 1, operation.action);
  push(&data, 1, running ? 0x12 : operation.status);
  push(&data, 2, 1);
  push(&data, 4, running ? options_.update_delay_ms : 0xffffffff);
  push(&data, 1, failed ? 0x02 : 0x00);
  push(&data, 1, sense.size());
  push(&data, 1, sense.size());
  push(&data, 1, 0xf1);  // counted in logical blocks
  push(&data, 8, running ? 0 : operation.transferred);
  push(&data, 2, 0);
  push(&data, 6, 0);
  data.insert(data.end(), sense.begin(), sense.end());
  if (operation.action == 0x10 && !running) {
    push(&data, 4, 514);
    push(&data, 2, 0);
    data.insert(data.end(), operation.token.begin(), operation.token.end());
  } else {
    push(&data, 4, 0);
  }
  uint64_t available = data.size() - 4;
  for (size_t i = 0; i < 4; i++) data[i] = static_cast<uint8_t>(available >> (8 * (3 - i)));
  data.resize(std::min<uint64_t>(data.size(), allocation));
  return answer;
}

SimScsiTarget::Answer SimScsiTarget::abort_operation(const uint8_t* cdb) {
  counters_.aborts++;
  auto found = operations_.find(static_cast<uint32_t>(field({cdb, 16}, 2, 4)));
  if (found == operations_.end() || found->second.polls_left == 0) return check(5, 0x24, 0);
  if (faults_.abort_does_nothing) return {};
  found->second.pending.clear();
  found->second.polls_left = 0;
  found->second.status = 0x60;
  found->second.transferred = 0;
  return {};
}

}  // namespace cofs
