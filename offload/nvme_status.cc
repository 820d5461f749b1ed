#include "offload/nvme_status.h"

#include <algorithm>
#include <cerrno>

namespace cofs {

namespace {

// Status code type in bits 10:8, status code below; above are flags (more, do not retry).
constexpr uint32_t kStatusMask = 0x7ff;
constexpr uint32_t kTypeMask = 0x700;
constexpr uint32_t kTypeMedia = 0x200;
constexpr uint32_t kTypePath = 0x300;  // made by the driver where no answer came

// Whether ranges may have been copied, so that DW0 counts.
enum class Progress : uint8_t { kNone, kByRange };

struct Meaning {
  uint32_t status;
  Code code;
  Progress progress;
  const char* what;
};

// Names as in the specification.
constexpr Meaning kMeanings[] = {
    {0x001, Code::kNotSupported, Progress::kNone, "Invalid Command Opcode"},
    {0x002, Code::kNotSupported, Progress::kNone, "Invalid Field in Command"},
    {0x004, Code::kIo, Progress::kNone, "Data Transfer Error"},
    {0x006, Code::kIo, Progress::kByRange, "Internal Error"},
    {0x007, Code::kIo, Progress::kNone, "Command Abort Requested"},
    {0x008, Code::kIo, Progress::kNone, "Command Aborted due to SQ Deletion"},
    {0x00b, Code::kIo, Progress::kNone, "Invalid Namespace or Format"},
    {0x00f, Code::kIo, Progress::kNone, "Data SGL Length Invalid"},
    {0x020, Code::kIo, Progress::kByRange, "Namespace is Write Protected"},
    {0x080, Code::kIo, Progress::kByRange, "LBA Out of Range"},
    {0x081, Code::kNoSpace, Progress::kByRange, "Capacity Exceeded"},
    {0x082, Code::kIo, Progress::kByRange, "Namespace Not Ready"},
    {0x10a, Code::kNotSupported, Progress::kNone, "Invalid Format"},
    {0x181, Code::kNotSupported, Progress::kNone, "Invalid Protection Information"},
    {0x182, Code::kIo, Progress::kByRange, "Attempted Write to Read Only Range"},
    {0x183, Code::kNotSupported, Progress::kByRange, "Command Size Limit Exceeded"},
    {0x185, Code::kNotSupported, Progress::kNone, "Incompatible Namespace or Format"},
    {0x186, Code::kNotSupported, Progress::kNone, "Fast Copy Not Possible"},
    {0x187, Code::kIo, Progress::kByRange, "Overlapping I/O Range"},
    {0x189, Code::kIo, Progress::kByRange, "Insufficient Resources"},
    {0x280, Code::kIo, Progress::kByRange, "Write Fault"},
    {0x281, Code::kIo, Progress::kByRange, "Unrecovered Read Error"},
};

Meaning meaning_of_status(uint32_t status) {
  const auto* found = std::ranges::find(kMeanings, status, &Meaning::status);
  if (found != std::end(kMeanings)) return *found;
  if ((status & kTypeMask) == kTypeMedia) {
    return {status, Code::kIo, Progress::kByRange, "media error"};
  }
  // The controller did not answer; over a fabric it may still be at it.
  if ((status & kTypeMask) == kTypePath) {
    return {status, Code::kTimedOut, Progress::kNone, "the driver gave the command up"};
  }
  return {status, Code::kIo, Progress::kByRange, "unknown status"};
}

Error meaning_of_error(int32_t negative_errno) {
  switch (negative_errno) {
    // The driver's word for what it cancelled with a reset after a timeout.
    case -EINTR:
    case -ETIMEDOUT: return {Code::kTimedOut, "the driver gave the command up"};
    case -EACCES:
    case -EPERM:
      return {Code::kNotSupported, "the kernel permits Copy only with CAP_SYS_ADMIN here"};
    case -EINVAL:
    case -ENOTTY:
    case -EOPNOTSUPP: return {Code::kNotSupported, "the kernel does not pass Copy on"};
    case -ENODEV:
    case -ENXIO: return {Code::kIo, "the device is gone"};
    case -EAGAIN:
    case -ENOMEM: return {Code::kIo, "the kernel is short of resources"};
    default: return {Code::kIo, "the kernel failed the command"};
  }
}

uint64_t blocks_before(std::span<const BlockRange> sources, size_t count) {
  uint64_t blocks = 0;
  for (const BlockRange& source : sources.first(count)) blocks += source.count;
  return blocks;
}

}  // namespace

NvmeOutcome outcome_of(int32_t outcome, uint32_t dw0, std::span<const BlockRange> sources) {
  if (outcome == 0) return {{}, blocks_before(sources, sources.size())};
  if (outcome < 0) return {fail(meaning_of_error(outcome)), 0};
  Meaning meaning = meaning_of_status(static_cast<uint32_t>(outcome) & kStatusMask);
  NvmeOutcome made{fail(meaning.code, meaning.what), 0};
  if (meaning.progress == Progress::kByRange && dw0 < sources.size()) {
    made.good_blocks = blocks_before(sources, dw0);
  }
  return made;
}

}  // namespace cofs
