// ScsiTransport: how one SCSI command reaches a disk and its answer comes back. The production
// transport is SG_IO on the disk's own node, so the kernel's error handling stays in charge: a
// command that exceeds its timeout is aborted before SG_IO returns. It knows no command and judges
// no status.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "offload/device_stack.h"

namespace cofs {

// The data of a command goes one way: one of `to_device` and `from_device` is empty, or both are.
struct ScsiCommand {
  std::array<uint8_t, 16> cdb{};
  uint8_t cdb_bytes = 0;
  std::span<const uint8_t> to_device;
  std::span<uint8_t> from_device;
  std::chrono::milliseconds timeout{0};

  template <class Cdb>
  void set_cdb(const Cdb& bytes) {
    static_assert(sizeof(Cdb) <= 16 && std::is_trivially_copyable_v<Cdb>);
    std::memcpy(cdb.data(), &bytes, sizeof(Cdb));
    cdb_bytes = sizeof(Cdb);
  }
};

// How far a command came.
enum class ScsiDelivery : uint8_t {
  kAnswered,      // the device gave a status
  kTimedOut,      // it did not in time; the kernel has aborted the command
  kNotPermitted,  // the kernel did not let the command through
  kGone,          // the disk is not there any more
  kNotSent,       // the kernel could not send it
  kLost,          // the way to the disk failed: it may be executed, even later, or not
};

struct ScsiOutcome {
  ScsiDelivery delivery = ScsiDelivery::kNotSent;
  uint8_t status = 0;     // kAnswered: the SAM status
  uint32_t received = 0;  // bytes of from_device that were filled
  std::array<uint8_t, 96> sense{};
  uint8_t sense_bytes = 0;
};

class ScsiTransport {
 public:
  virtual ~ScsiTransport() = default;

  // Sends one command and waits for its end. Any thread, several at once.
  virtual ScsiOutcome execute(const ScsiCommand& command) = 0;
  // Lets time pass before a command is tried again; a simulated disk need not wait really.
  virtual void pause(std::chrono::milliseconds time) = 0;
};

// Opens the nodes of the stack's disks, in their order. Where /dev has none, a private node is made
// and removed at once (root only). The error is a reason for a person.
std::expected<std::vector<std::shared_ptr<ScsiTransport>>, std::string> open_scsi_disks(
    const DeviceStack& stack);

}  // namespace cofs
