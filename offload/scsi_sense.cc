#include "offload/scsi_sense.h"

namespace cofs {

namespace {

constexpr uint8_t kFixedCurrent = 0x70, kFixedDeferred = 0x71;
constexpr uint8_t kDescriptorCurrent = 0x72, kDescriptorDeferred = 0x73;

constexpr int kAny = -1;

struct SenseMeaning {
  int key;
  int asc;
  int ascq;
  Code code;
  const char* text;
};

// The first that fits counts: exact codes, then whole ASCs, then keys.
constexpr SenseMeaning kMeanings[] = {
    {kAny, 0x0d, 0x02, Code::kIo, "copy target not reachable, or copy failed midway"},
    {kAny, 0x0d, kAny, Code::kIo, "third-party device failed"},
    {kAny, 0x1a, kAny, Code::kNotSupported, "parameter list length refused"},
    {kAny, 0x20, kAny, Code::kNotSupported, "invalid operation code"},
    {kAny, 0x21, kAny, Code::kIo, "address out of range"},
    {kAny, 0x23, 0x04, Code::kIo, "token unknown"},
    {kAny, 0x23, 0x05, Code::kIo, "token corrupt"},
    {kAny, 0x23, 0x06, Code::kIo, "token revoked"},
    {kAny, 0x23, 0x07, Code::kIo, "token expired"},
    {kAny, 0x23, 0x08, Code::kIo, "token cancelled"},
    {kAny, 0x23, 0x09, Code::kIo, "token deleted"},
    {kAny, 0x23, kAny, Code::kNotSupported, "token operation refused"},
    {kAny, 0x24, kAny, Code::kNotSupported, "invalid field in command"},
    {kAny, 0x26, 0x06, Code::kNotSupported, "too many target descriptors"},
    {kAny, 0x26, 0x07, Code::kNotSupported, "unsupported target descriptor"},
    {kAny, 0x26, 0x08, Code::kNotSupported, "too many segments"},
    {kAny, 0x26, 0x09, Code::kNotSupported, "unsupported segment descriptor"},
    {kAny, 0x26, 0x0c, Code::kNotSupported, "not allowed for this source or target"},
    {kAny, 0x26, 0x0d, Code::kNotSupported, "segment granularity violated"},
    {kAny, 0x26, kAny, Code::kNotSupported, "invalid field in parameter list"},
    {kAny, 0x27, 0x07, Code::kNoSpace, "thin provisioned space is used up"},
    {kAny, 0x27, kAny, Code::kIo, "write protected"},
    {kAny, 0x55, kAny, Code::kIo, "device is out of resources for copies"},
    {0x5, 0x00, 0x16, Code::kIo, "list identifier in use"},
    {0x2, kAny, kAny, Code::kIo, "device not ready"},
    {0x3, kAny, kAny, Code::kIo, "medium error"},
    {0x4, kAny, kAny, Code::kIo, "hardware error"},
    {0x5, kAny, kAny, Code::kNotSupported, "illegal request"},
    {0x6, kAny, kAny, Code::kIo, "unit attention again and again"},
    {0x7, kAny, kAny, Code::kIo, "data protected"},
    {0xa, kAny, kAny, Code::kIo, "device aborted the copy"},
    {0xb, kAny, kAny, Code::kIo, "command aborted"},
};

bool fits(int expected, uint8_t value) {
  return expected == kAny || expected == value;
}

}  // namespace

std::optional<ScsiSense> parse_sense(std::span<const uint8_t> data) {
  if (data.empty()) return std::nullopt;
  const uint8_t format = data[0] & 0x7f;
  ScsiSense sense;
  sense.deferred = format == kFixedDeferred || format == kDescriptorDeferred;
  if (format == kFixedCurrent || format == kFixedDeferred) {
    if (data.size() < 3) return std::nullopt;
    sense.key = data[2] & 0x0f;
    // Byte 7 says how many bytes follow it; a device may end before the codes.
    const size_t valid = data.size() < 8 ? data.size() : 8U + data[7];
    if (valid > 12 && data.size() > 12) sense.asc = data[12];
    if (valid > 13 && data.size() > 13) sense.ascq = data[13];
    return sense;
  }
  if (format == kDescriptorCurrent || format == kDescriptorDeferred) {
    if (data.size() < 4) return std::nullopt;
    sense.key = data[1] & 0x0f;
    sense.asc = data[2];
    sense.ascq = data[3];
    return sense;
  }
  return std::nullopt;
}

Error error_of_sense(const ScsiSense& sense) {
  if (sense.deferred) return Error(Code::kIo, "deferred error of an earlier command");
  for (const SenseMeaning& meaning : kMeanings) {
    if (fits(meaning.key, sense.key) && fits(meaning.asc, sense.asc) &&
        fits(meaning.ascq, sense.ascq)) {
      return Error(meaning.code, meaning.text);
    }
  }
  return Error(Code::kIo, "unknown sense");
}

}  // namespace cofs
