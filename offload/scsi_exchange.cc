#include "offload/scsi_exchange.h"

#include <algorithm>
#include <optional>

#include "offload/scsi_sense.h"

namespace cofs {

namespace {

enum class SamStatus : uint8_t {
  kGood = 0x00,
  kCheckCondition = 0x02,
  kConditionMet = 0x04,
  kBusy = 0x08,
  kReservationConflict = 0x18,
  kTaskSetFull = 0x28,
  kAcaActive = 0x30,
  kTaskAborted = 0x40,
};

constexpr int kAttentionsMax = 3;
// 10 + 20 + … + 640 ms: a queue that stays full for longer has other trouble.
constexpr int kPausesMax = 7;
constexpr std::chrono::milliseconds kFirstPause{10};

std::optional<Error> error_of_delivery(ScsiDelivery delivery) {
  switch (delivery) {
    case ScsiDelivery::kAnswered: return std::nullopt;
    case ScsiDelivery::kTimedOut: return Error(Code::kIo, "aborted after its timeout");
    case ScsiDelivery::kNotPermitted:
      return Error(Code::kNotSupported, "the kernel wants CAP_SYS_RAWIO for this; run as root");
    case ScsiDelivery::kGone: return Error(Code::kIo, "disk is gone");
    case ScsiDelivery::kNotSent: return Error(Code::kIo, "command could not be sent");
    case ScsiDelivery::kLost: break;
  }
  return Error(Code::kTimedOut, "connection lost, the command may still take effect");
}

// Of a status that is neither good, nor one to try again after.
Error error_of_status(SamStatus status) {
  switch (status) {
    case SamStatus::kBusy: return Error(Code::kIo, "device busy");
    case SamStatus::kTaskSetFull: return Error(Code::kIo, "device queue full");
    case SamStatus::kReservationConflict: return Error(Code::kIo, "reserved by another host");
    case SamStatus::kAcaActive:
    case SamStatus::kTaskAborted: return Error(Code::kIo, "command aborted");
    default: return Error(Code::kIo, "unknown status");
  }
}

}  // namespace

Result<uint32_t> exchange(ScsiTransport& disk, const ScsiCommand& command) {
  int attentions = 0;
  int pauses = 0;
  while (true) {
    const ScsiOutcome outcome = disk.execute(command);
    if (const auto error = error_of_delivery(outcome.delivery)) return fail(*error);
    const uint32_t received =
        std::min(outcome.received, static_cast<uint32_t>(command.from_device.size()));
    const auto status = static_cast<SamStatus>(outcome.status);
    switch (status) {
      case SamStatus::kGood:
      case SamStatus::kConditionMet: return received;
      case SamStatus::kCheckCondition: {
        const size_t bytes = std::min<size_t>(outcome.sense_bytes, outcome.sense.size());
        const auto sense = parse_sense(std::span(outcome.sense).first(bytes));
        if (!sense) return fail(Code::kIo, "failed without sense data");
        if (sense->key == kSenseRecovered && !sense->deferred) return received;
        if (sense->key != kSenseUnitAttention || ++attentions > kAttentionsMax) {
          return fail(error_of_sense(*sense));
        }
        continue;
      }
      case SamStatus::kBusy:
      case SamStatus::kTaskSetFull:
        if (pauses == kPausesMax) return fail(error_of_status(status));
        disk.pause(kFirstPause * (1 << pauses++));
        continue;
      default: return fail(error_of_status(status));
    }
  }
}

std::chrono::milliseconds scsi_timeout(uint64_t timeout_ns) {
  constexpr uint64_t kNsPerMs = 1'000'000;
  constexpr uint64_t kDefaultMs = 60'000;
  constexpr uint64_t kMaxMs =
      3'600'000;  // beyond an hour nobody waits; and SG_IO counts in 32 bits
  if (timeout_ns == 0) return std::chrono::milliseconds(kDefaultMs);
  const uint64_t ms = timeout_ns / kNsPerMs + (timeout_ns % kNsPerMs != 0 ? 1 : 0);
  return std::chrono::milliseconds(std::min(ms, kMaxMs));
}

}  // namespace cofs
