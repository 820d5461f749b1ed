#include "offload/device_mapper.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/dm-ioctl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "offload/device_node.h"

namespace cofs {

namespace {

constexpr size_t kReplyBytes = size_t{16} << 10;     // enough for some 200 lines
constexpr size_t kReplyBytesMax = size_t{16} << 20;  // more than a stack may have pieces
constexpr unsigned kMiscMajor = 10;

constexpr std::pair<std::string_view, std::string_view> kEffects[] = {
    {"crypt", "transforms its data"},
    {"integrity", "puts checksums between its data"},
    {"verity", "checks its data"},
    {"striped", "spreads its data"},
    {"raid", "spreads its data"},
    {"mirror", "keeps its data twice"},
    {"multipath", "chooses between paths"},
    {"thin", "places its data itself"},
    {"cache", "places its data itself"},
    {"writecache", "places its data itself"},
    {"vdo", "places its data itself"},
    {"snapshot", "places its data itself"},
    {"snapshot-origin", "saves what is overwritten"},
};

// The number that the kernel gave to the control device, as /proc/misc has it.
std::optional<unsigned> control_minor() {
  std::ifstream misc("/proc/misc");
  unsigned minor_number = 0;
  std::string name;
  while (misc >> minor_number >> name) {
    if (name == "device-mapper") return minor_number;
  }
  return std::nullopt;
}

std::expected<OwnedFd, std::string> open_control() {
  const std::optional<unsigned> minor_number = control_minor();
  if (!minor_number) return std::unexpected("the kernel has no device mapper");
  auto fd = open_device_node({S_IFCHR, makedev(kMiscMajor, *minor_number), "mapper/control"}, O_RDWR);
  if (fd) return std::move(*fd);
  return std::unexpected(
      fmt::format("cannot open the device mapper's control: {}", std::strerror(fd.error())));
}

// The kernel's own form of a device number; the C library's has more bits.
uint64_t kernel_number(dev_t device) {
  uint64_t minor_number = minor(device);
  return (minor_number & 0xff) | (uint64_t{major(device)} << 8) | ((minor_number & ~0xffUL) << 12);
}

dm_ioctl status_request(dev_t device, size_t reply_bytes) {
  dm_ioctl request{};
  request.version[0] = DM_VERSION_MAJOR;  // with 0.0 behind it: any kernel of this major version
  request.data_size = static_cast<uint32_t>(reply_bytes);
  request.data_start = sizeof(request);
  request.dev = kernel_number(device);
  request.flags = DM_STATUS_TABLE_FLAG | DM_NOFLUSH_FLAG;
  return request;
}

// Ends at the first zero byte; nothing where there is none.
std::optional<std::string> terminated_text(std::span<const std::byte> bytes) {
  auto end = std::ranges::find(bytes, std::byte{0});
  if (end == bytes.end()) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(bytes.data()),
                     static_cast<size_t>(end - bytes.begin()));
}

}  // namespace

std::string_view effect_of_dm_type(std::string_view type) {
  auto known = std::ranges::find(kEffects, type, [](const auto& entry) { return entry.first; });
  return known == std::end(kEffects) ? "is no linear mapping" : known->second;
}

std::expected<DmTable, std::string> parse_dm_table(std::span<const std::byte> lines,
                                                   uint32_t target_count) {
  constexpr const char* kBad = "the device mapper's answer is malformed";
  DmTable table;
  size_t at = 0;
  for (uint32_t i = 0; i < target_count; i++) {
    if (at > lines.size() || lines.size() - at < sizeof(dm_target_spec)) {
      return std::unexpected(kBad);
    }
    dm_target_spec spec;
    std::memcpy(&spec, lines.data() + at, sizeof(spec));
    auto type = terminated_text(std::as_bytes(std::span(spec.target_type)));
    auto parameters = terminated_text(lines.subspan(at + sizeof(spec)));
    if (!type || !parameters) return std::unexpected(kBad);
    table.push_back(
        DmTarget{spec.sector_start, spec.length, std::move(*type), std::move(*parameters)});
    // In an answer `next` counts from the first line, not from this one as in a request.
    if (spec.next <= at) {
      if (i + 1 < target_count) return std::unexpected(kBad);
      break;
    }
    at = spec.next;
  }
  return table;
}

std::expected<DmTable, std::string> DeviceMapper::table_of(dev_t device) {
  if (!control_.valid()) {
    auto opened = open_control();
    COFS_TRY(opened);
    control_ = std::move(*opened);
  }
  for (size_t bytes = kReplyBytes; bytes <= kReplyBytesMax; bytes *= 2) {
    std::vector<std::byte> buffer(bytes);
    dm_ioctl reply = status_request(device, bytes);
    std::memcpy(buffer.data(), &reply, sizeof(reply));
    while (ioctl(control_.get(), DM_TABLE_STATUS, buffer.data()) != 0) {
      if (errno == EINTR) continue;
      return std::unexpected(fmt::format("cannot read its table: {}", std::strerror(errno)));
    }
    std::memcpy(&reply, buffer.data(), sizeof(reply));
    if ((reply.flags & DM_BUFFER_FULL_FLAG) != 0) continue;
    if ((reply.flags & DM_ACTIVE_PRESENT_FLAG) == 0) return std::unexpected("it has no table");
    size_t end = std::min<size_t>(reply.data_size, bytes);
    if (reply.data_start < sizeof(reply) || reply.data_start > end) {
      return std::unexpected("the device mapper's answer is malformed");
    }
    std::span<const std::byte> answer(buffer);
    return parse_dm_table(answer.subspan(reply.data_start, end - reply.data_start),
                          reply.target_count);
  }
  return std::unexpected("its table is too long");
}

}  // namespace cofs
