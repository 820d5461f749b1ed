#include "tests/testing/sim_scsi_target.h"

#include <algorithm>
#include <cstring>

namespace cofs {

namespace {

std::vector<uint8_t> number(uint64_t value, int bytes) {
  std::vector<uint8_t> out;
  for (int i = bytes - 1; i >= 0; i--) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
  return out;
}
void append(std::vector<uint8_t>* to, const std::vector<uint8_t>& bytes) {
  to->insert(to->end(), bytes.begin(), bytes.end());
}

// Association "logical unit", binary, NAA; 16 bytes beginning with 6.
const std::vector<uint8_t> kNaaDesignator = {0x01, 0x03, 0x00, 0x10, 0x60, 0x01, 0x40,
                                             0x51, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                             0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd};

}  // namespace

SimScsiTarget::SimScsiTarget(SimScsiOptions options) : options_(std::move(options)) {
  if (options_.designators.empty()) options_.designators = kNaaDesignator;
  memory_.resize(options_.lba_bytes * options_.lba_count);
  attention_ = options_.unit_attention_first;
}

void SimScsiTarget::pause(std::chrono::milliseconds time) {
  std::lock_guard lock(mutex_);
  now_ms_ += static_cast<uint64_t>(time.count());
  counters_.paused_ms += static_cast<uint64_t>(time.count());
}

void SimScsiTarget::set_faults(const SimScsiFaults& faults) {
  std::lock_guard lock(mutex_);
  faults_ = faults;
  copies_ = 0;
  if (faults.garbage_seed != 0) random_ = SimRandom(faults.garbage_seed);
}

SimScsiTarget::Counters SimScsiTarget::counters() {
  std::lock_guard lock(mutex_);
  return counters_;
}

SimScsiTarget::Answer SimScsiTarget::check(uint8_t key, uint8_t asc, uint8_t ascq) {
  Answer answer;
  answer.status = 0x02;
  answer.key = key;
  answer.asc = asc;
  answer.ascq = ascq;
  return answer;
}

std::vector<uint8_t> SimScsiTarget::sense_of(const Answer& answer) const {
  if (options_.descriptor_sense) {
    return {0x72, answer.key, answer.asc, answer.ascq, 0, 0, 0, 0};
  }
  std::vector<uint8_t> sense(18);
  sense[0] = 0x70;
  sense[2] = answer.key;
  sense[7] = 10;
  sense[12] = answer.asc;
  sense[13] = answer.ascq;
  return sense;
}

ScsiOutcome SimScsiTarget::execute(const ScsiCommand& command) {
  std::lock_guard lock(mutex_);
  counters_.commands++;
  Answer answer = dispatch(command);
  ScsiOutcome outcome;
  outcome.delivery = answer.delivery;
  if (answer.delivery != ScsiDelivery::kAnswered) return outcome;
  outcome.status = answer.status;
  if (answer.status == 0x02) {
    std::vector<uint8_t> sense = sense_of(answer);
    std::memcpy(outcome.sense.data(), sense.data(), sense.size());
    outcome.sense_bytes = static_cast<uint8_t>(sense.size());
  }
  if (faults_.garbage_seed != 0) {
    for (uint8_t& byte : answer.data) byte = static_cast<uint8_t>(random_.next());
  }
  size_t bytes = std::min({answer.data.size(), command.from_device.size(),
                           static_cast<size_t>(faults_.response_bytes_max)});
  if (bytes != 0) std::memcpy(command.from_device.data(), answer.data.data(), bytes);
  outcome.received = static_cast<uint32_t>(bytes);
  return outcome;
}

SimScsiTarget::Answer SimScsiTarget::dispatch(const ScsiCommand& command) {
  const uint8_t* cdb = command.cdb.data();
  uint8_t opcode = command.cdb_bytes > 0 ? cdb[0] : 0xff;
  if (opcode == 0x12) {
    return command.cdb_bytes == 6 ? inquiry(cdb) : check(5, 0x24, 0);
  }
  if (attention_) {
    attention_ = false;
    return check(6, 0x29, 0x00);
  }
  if (command.cdb_bytes != 16) return check(5, 0x20, 0);
  if (opcode == 0x9e && (cdb[1] & 0x1f) == 0x10) return read_capacity();
  uint8_t action = cdb[1] & 0x1f;
  Answer fault;
  if (opcode == 0x83) {
    // The parameter list length says how much of the data is the list.
    uint32_t length = static_cast<uint32_t>(cdb[10]) << 24 | static_cast<uint32_t>(cdb[11]) << 16 |
                      static_cast<uint32_t>(cdb[12]) << 8 | cdb[13];
    if (action != 0x1c && length != command.to_device.size()) return check(5, 0x24, 0);
    bool known = (action == 0x00 && options_.xcopy) ||
                 ((action == 0x10 || action == 0x11 || action == 0x1c) && options_.tokens);
    if (!known) return check(5, 0x20, 0);
    if (action == 0x1c) return abort_operation(cdb);
    if (fault_of_copy(&fault)) return fault;
    if (action == 0x00) return extended_copy(cdb, command.to_device);
    if (action == 0x10) return populate_token(cdb, command.to_device);
    return write_using_token(cdb, command.to_device);
  }
  if (opcode == 0x84 && action == 0x03 && options_.xcopy) return operating_parameters();
  if (opcode == 0x84 && action == 0x07 && options_.tokens) return token_information(cdb);
  return check(5, 0x20, 0);
}

// True when a fault answers in place of the command.
bool SimScsiTarget::fault_of_copy(Answer* answer) {
  if (faults_.unit_attention_times > 0) {
    faults_.unit_attention_times--;
    *answer = check(6, 0x2a, 0x09);
    return true;
  }
  if (faults_.busy_times > 0) {
    answer->status = (faults_.busy_times-- & 1) != 0 ? 0x08 : 0x28;
    return true;
  }
  if (faults_.reservation_conflict) {
    answer->status = 0x18;
    return true;
  }
  if (copies_++ < faults_.good_copies) return false;
  switch (faults_.then) {
    case SimScsiFaults::Then::kCopyAborted: *answer = check(0xa, 0x00, 0x00); break;
    case SimScsiFaults::Then::kInvalidOpcode: *answer = check(5, 0x20, 0x00); break;
    case SimScsiFaults::Then::kMediumError: *answer = check(3, 0x11, 0x00); break;
    case SimScsiFaults::Then::kTimedOut: answer->delivery = ScsiDelivery::kTimedOut; break;
    case SimScsiFaults::Then::kGone: answer->delivery = ScsiDelivery::kGone; break;
    case SimScsiFaults::Then::kLost: answer->delivery = ScsiDelivery::kLost; break;
    case SimScsiFaults::Then::kNotPermitted: answer->delivery = ScsiDelivery::kNotPermitted; break;
  }
  return true;
}

SimScsiTarget::Answer SimScsiTarget::inquiry(const uint8_t* cdb) {
  size_t allocation = static_cast<size_t>(cdb[3]) << 8 | cdb[4];
  Answer answer;
  if ((cdb[1] & 1) != 0) {
    answer = page(cdb[2]);
  } else if (cdb[2] != 0) {
    return check(5, 0x24, 0);
  } else {
    answer.data.assign(36, ' ');
    answer.data[0] = 0x00;
    answer.data[1] = 0x00;
    answer.data[2] = 0x06;
    answer.data[3] = 0x02;
    answer.data[4] = 31;
    answer.data[5] = options_.third_party_copy ? 0x08 : 0x00;
    answer.data[6] = 0;
    answer.data[7] = 0x02;
  }
  answer.data.resize(std::min(answer.data.size(), allocation));
  return answer;
}

SimScsiTarget::Answer SimScsiTarget::page(uint8_t code) {
  std::vector<uint8_t> body;
  switch (code) {
    case 0x00:
      body = {0x00, 0x83};
      if (options_.tokens) body.push_back(0x8f);
      if (options_.transfer_lbas_max != 0) body.push_back(0xb0);
      break;
    case 0x83: body = options_.designators; break;
    case 0x8f:
      if (!options_.tokens) return check(5, 0x24, 0);
      body = third_party_page();
      break;
    case 0xb0:
      if (options_.transfer_lbas_max == 0) return check(5, 0x24, 0);
      body.resize(60);
      std::ranges::copy(number(options_.transfer_lbas_max, 4), body.begin() + 4);
      break;
    default: return check(5, 0x24, 0);
  }
  Answer answer;
  answer.data = {0x00, code};
  append(&answer.data, number(body.size(), 2));
  append(&answer.data, body);
  return answer;
}

SimScsiTarget::Answer SimScsiTarget::read_capacity() {
  Answer answer;
  append(&answer.data, number(options_.lba_count - 1, 8));
  append(&answer.data, number(options_.lba_bytes, 4));
  answer.data.resize(32);
  return answer;
}

bool SimScsiTarget::on_disk(uint64_t lba, uint64_t count) const {
  return lba <= options_.lba_count && count <= options_.lba_count - lba;
}

// Writes to the medium, with what that does to tokens.
void SimScsiTarget::store(uint64_t lba, std::span<const uint8_t> bytes) {
  std::ranges::copy(bytes, memory_.begin() + static_cast<ptrdiff_t>(lba * options_.lba_bytes));
  if (!options_.vulnerable_tokens) return;
  uint64_t count = bytes.size() / options_.lba_bytes;
  for (auto& [name, token] : tokens_) {
    for (const Range& source : token.sources) {
      if (lba < source.lba + source.count && source.lba < lba + count) token.invalid = true;
    }
  }
}

}  // namespace cofs
