#include "offload/scsi_transport.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string_view>
#include <thread>

#include "offload/device_node.h"

namespace cofs {

namespace {

// The kernel's codes for how a command fared outside the device; no header for users has them.
constexpr unsigned kHostOk = 0x00, kHostNoConnect = 0x01, kHostTimedOut = 0x03,
                   kHostBadTarget = 0x04;
constexpr unsigned kDriverStatusMask = 0x0f, kDriverTimeout = 0x06;

class SgIoTransport final : public ScsiTransport {
 public:
  explicit SgIoTransport(OwnedFd fd) : fd_(std::move(fd)) {}

  ScsiOutcome execute(const ScsiCommand& command) override;
  void pause(std::chrono::milliseconds time) override { std::this_thread::sleep_for(time); }

 private:
  OwnedFd fd_;
};

ScsiDelivery delivery_of_errno(int error_number) {
  switch (error_number) {
    case EPERM:
    case EACCES: return ScsiDelivery::kNotPermitted;
    case ENODEV:
    case ENXIO: return ScsiDelivery::kGone;
    default: return ScsiDelivery::kNotSent;
  }
}

ScsiDelivery delivery_of(const sg_io_hdr_t& header) {
  if (header.host_status == kHostTimedOut ||
      (header.driver_status & kDriverStatusMask) == kDriverTimeout) {
    return ScsiDelivery::kTimedOut;
  }
  switch (header.host_status) {
    case kHostOk: return ScsiDelivery::kAnswered;
    case kHostNoConnect:
    case kHostBadTarget: return ScsiDelivery::kGone;
    default: return ScsiDelivery::kLost;
  }
}

ScsiOutcome SgIoTransport::execute(const ScsiCommand& command) {
  ScsiOutcome outcome;
  std::array<uint8_t, 16> cdb = command.cdb;  // the interface wants it writable
  sg_io_hdr_t header{};
  header.interface_id = 'S';
  header.cmdp = cdb.data();
  header.cmd_len = command.cdb_bytes;
  header.sbp = outcome.sense.data();
  header.mx_sb_len = static_cast<uint8_t>(outcome.sense.size());
  header.timeout = static_cast<unsigned>(command.timeout.count());
  header.dxfer_direction = SG_DXFER_NONE;
  if (!command.to_device.empty()) {
    header.dxfer_direction = SG_DXFER_TO_DEV;
    header.dxfer_len = static_cast<unsigned>(command.to_device.size());
    header.dxferp = const_cast<uint8_t*>(command.to_device.data());  // only read
  } else if (!command.from_device.empty()) {
    header.dxfer_direction = SG_DXFER_FROM_DEV;
    header.dxfer_len = static_cast<unsigned>(command.from_device.size());
    header.dxferp = command.from_device.data();
  }
  if (ioctl(fd_.get(), SG_IO, &header) != 0) {
    outcome.delivery = delivery_of_errno(errno);
    return outcome;
  }
  outcome.delivery = delivery_of(header);
  outcome.status = header.status;
  outcome.sense_bytes = std::min(header.sb_len_wr, header.mx_sb_len);
  if (header.dxfer_direction == SG_DXFER_FROM_DEV) {
    const unsigned left = header.resid < 0 ? 0 : static_cast<unsigned>(header.resid);
    outcome.received = header.dxfer_len - std::min(left, header.dxfer_len);
  }
  return outcome;
}

// The node's name as the kernel proposes it to udev; empty where sysfs does not tell.
std::string device_name(dev_t number) {
  std::ifstream uevent(fmt::format("/sys/dev/block/{}:{}/uevent", major(number), minor(number)));
  constexpr std::string_view kKey = "DEVNAME=";
  std::string line;
  while (std::getline(uevent, line)) {
    if (line.starts_with(kKey)) return line.substr(kKey.size());
  }
  return "";
}

// Without write access: the capability is needed and suffices, and closing a node that was open for
// writing makes udev look at the disk again.
constexpr int kOpenFlags = O_RDONLY | O_NONBLOCK;

std::expected<OwnedFd, std::string> open_disk(const StackDisk& disk) {
  auto fd = open_device_node({S_IFBLK, disk.number, device_name(disk.number)}, kOpenFlags);
  if (fd) return *std::move(fd);
  return std::unexpected(fmt::format("scsi: cannot open {} ({}:{}): {}", disk.name,
                                     major(disk.number), minor(disk.number),
                                     std::strerror(fd.error())));
}

}  // namespace

std::expected<std::vector<std::shared_ptr<ScsiTransport>>, std::string> open_scsi_disks(
    const DeviceStack& stack) {
  std::vector<std::shared_ptr<ScsiTransport>> transports;
  for (const StackDisk& disk : stack.disks) {
    auto fd = open_disk(disk);
    if (!fd) return std::unexpected(fd.error());
    transports.push_back(std::make_shared<SgIoTransport>(*std::move(fd)));
  }
  return transports;
}

}  // namespace cofs
