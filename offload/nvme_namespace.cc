#include "offload/nvme_namespace.h"

#include <endian.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <libnvme.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <vector>

#include "offload/device_node.h"

namespace cofs {

namespace {

namespace files = std::filesystem;
template <class T>
using OrReason = std::expected<T, std::string>;

constexpr const char* kGenericDirectory = "/sys/class/nvme-generic";

// What tells a namespace from others. Devices leave out what they like; then it is zero.
struct Identity {
  uint32_t id = 0;
  uint64_t lbas = 0;
  std::array<uint8_t, NVME_NIDT_EUI64_LEN> eui64{};
  std::array<uint8_t, NVME_NIDT_NGUID_LEN> nguid{};
  std::array<uint8_t, NVME_NIDT_UUID_LEN> uuid{};
  std::string serial;  // of the controller

  bool operator==(const Identity&) const = default;
};

struct Answers {
  Identity identity;
  NvmeIdentify identify;
};

// Why the kernel refuses passthrough, and what would permit it.
std::string explain_refusal() {
  utsname name{};
  int major_version = 0;
  int minor_version = 0;
  if (uname(&name) == 0) sscanf(name.release, "%d.%d", &major_version, &minor_version);
  if (major_version < 6 || (major_version == 6 && minor_version < 2)) {
    return fmt::format("nvme: Copy needs CAP_SYS_ADMIN on this kernel ({}.{}); run as root",
                       major_version, minor_version);
  }
  return fmt::format("nvme: this kernel ({}.{}) refuses NVMe commands to this user; run as root",
                     major_version, minor_version);
}

bool is_refusal(int error_number) {
  return error_number == EACCES || error_number == EPERM;
}

OrReason<OwnedFd> open_node(const DeviceNode& node, int flags) {
  std::expected<OwnedFd, int> fd = open_device_node(node, flags);
  if (fd) return std::move(*fd);
  std::string path = "/dev/" + node.name;
  if (access(path.c_str(), F_OK) != 0) {
    return std::unexpected(fmt::format("nvme: {} is missing and cannot be made ({}); as root: {}",
                                       path, std::strerror(fd.error()), mknod_command(node)));
  }
  if (is_refusal(fd.error())) {
    return std::unexpected(fmt::format(
        "nvme: no permission to open {} for {}; run as root or give this user access to it", path,
        (flags & O_ACCMODE) == O_RDWR ? "writing" : "reading"));
  }
  return std::unexpected(fmt::format("nvme: cannot open {}: {}", path, std::strerror(fd.error())));
}

// What sysfs has as "MAJOR:MINOR".
std::optional<dev_t> device_number(const files::path& attribute) {
  std::ifstream file(attribute);
  unsigned major_number = 0;
  unsigned minor_number = 0;
  char colon = 0;
  if (!(file >> major_number >> colon >> minor_number) || colon != ':') return std::nullopt;
  return makedev(major_number, minor_number);
}

// The entries of a directory of sysfs; none if it is missing.
std::vector<files::path> entries_of(const char* directory) {
  std::vector<files::path> entries;
  std::error_code error;
  for (files::directory_iterator entry(directory, error); !error && entry != files::end(entry);
       entry.increment(error)) {
    entries.push_back(entry->path());
  }
  return entries;
}

// The controller or subsystem that a device in sysfs belongs to; empty where there is none.
files::path owner_of(const files::path& device) {
  std::error_code error;
  files::path owner = files::canonical(device / "device", error);
  return error ? files::path() : owner;
}

// The character devices under `owner`. The one that is named as the block device comes first: most
// likely it is the one, and then an error is told of it and not of another.
std::vector<DeviceNode> character_devices_of(const files::path& owner,
                                             const std::string& block_name) {
  std::string twin = block_name;
  if (twin.starts_with("nvme")) twin.replace(0, 4, "ng");
  std::vector<DeviceNode> nodes;
  for (const files::path& entry : entries_of(kGenericDirectory)) {
    std::optional<dev_t> number = device_number(entry / "dev");
    if (!number || owner_of(entry) != owner) continue;
    DeviceNode node{S_IFCHR, *number, entry.filename()};
    nodes.insert(node.name == twin ? nodes.begin() : nodes.end(), node);
  }
  return nodes;
}

bool is_zoned(const files::path& block_device) {
  std::ifstream file(block_device / "queue/zoned");
  std::string model;
  return (file >> model) && model != "none";
}

// Of the identification descriptors, a list within one page: the UUID, which is only there. Old
// controllers have no list, and ordinary users may not read it: none then, for either device.
void read_uuid(int fd, uint32_t id, Identity& identity) {
  std::array<uint8_t, NVME_IDENTIFY_DATA_SIZE> page{};
  if (nvme_identify_ns_descs(fd, id, reinterpret_cast<nvme_ns_id_desc*>(page.data())) != 0) return;
  constexpr size_t kHead = sizeof(nvme_ns_id_desc);
  for (size_t at = 0; at + kHead <= page.size();) {
    uint8_t type = page[at];
    uint8_t length = page[at + 1];
    if (length == 0 || at + kHead + length > page.size()) return;
    if (type == NVME_NIDT_UUID && length == identity.uuid.size()) {
      std::copy_n(page.begin() + static_cast<std::ptrdiff_t>(at + kHead), length,
                  identity.uuid.begin());
    }
    at += kHead + length;
  }
}

// The text for the outcome of an Identify: an errno for -1, otherwise the status of the device.
std::string failed_identify(const std::string& name, int outcome) {
  if (outcome > 0) return fmt::format("nvme: {} fails Identify with status {:#x}", name, outcome);
  if (is_refusal(errno)) return explain_refusal();
  return fmt::format("nvme: {} cannot be asked to identify itself: {}", name, std::strerror(errno));
}

OrReason<Answers> ask(const DeviceNode& node, int fd) {
  Answers answers;
  if (nvme_get_nsid(fd, &answers.identity.id) != 0) {
    return std::unexpected(
        fmt::format("nvme: {} has no namespace ID: {}", node.name, std::strerror(errno)));
  }
  auto controller = std::make_unique<nvme_id_ctrl>();
  auto space = std::make_unique<nvme_id_ns>();
  int outcome = nvme_identify_ctrl(fd, controller.get());
  if (outcome == 0) outcome = nvme_identify_ns(fd, answers.identity.id, space.get());
  if (outcome != 0) return std::unexpected(failed_identify(node.name, outcome));

  Identity& identity = answers.identity;
  identity.lbas = le64toh(space->nsze);
  std::ranges::copy(space->eui64, identity.eui64.begin());
  std::ranges::copy(space->nguid, identity.nguid.begin());
  identity.serial.assign(controller->sn, sizeof(controller->sn));
  read_uuid(fd, identity.id, identity);

  NvmeIdentify& identify = answers.identify;
  identify.oncs = le16toh(controller->oncs);
  identify.ocfs = le16toh(controller->ocfs);
  identify.mssrl = le16toh(space->mssrl);
  identify.mcl = le32toh(space->mcl);
  identify.msrc = space->msrc;
  identify.nlbaf = space->nlbaf;
  identify.flbas = space->flbas;
  identify.dps = space->dps;
  static_assert(std::tuple_size_v<decltype(identify.formats)> ==
                std::extent_v<decltype(space->lbaf)>);
  for (size_t i = 0; i < identify.formats.size(); i++) {
    identify.formats[i] = {le16toh(space->lbaf[i].ms), space->lbaf[i].ds};
  }
  return answers;
}

struct Opened {
  OwnedFd fd;
  NvmeIdentify identify;
};

// An empty reason means that it is another namespace's.
OrReason<Opened> open_if_same(const DeviceNode& node, const Identity& wanted) {
  OrReason<OwnedFd> fd = open_node(node, O_RDWR);
  if (!fd) return std::unexpected(fd.error());
  uint32_t id = 0;
  if (nvme_get_nsid(fd->get(), &id) != 0 || id != wanted.id) return std::unexpected("");
  OrReason<Answers> answers = ask(node, fd->get());
  if (!answers) return std::unexpected(answers.error());
  if (answers->identity != wanted) return std::unexpected("");
  return Opened{std::move(*fd), answers->identify};
}

}  // namespace

std::expected<NvmeNamespace, std::string> NvmeNamespace::open(const StackDisk& disk) {
  files::path block_device =
      fmt::format("/sys/dev/block/{}:{}", major(disk.number), minor(disk.number));
  files::path owner = owner_of(block_device);
  if (owner.empty()) {
    return std::unexpected(fmt::format("nvme: {} has no controller in /sys", disk.name));
  }
  if (is_zoned(block_device)) {
    return std::unexpected(fmt::format("nvme: {} is a zoned namespace", disk.name));
  }
  DeviceNode block_node{S_IFBLK, disk.number, disk.name};
  OrReason<OwnedFd> block_fd = open_node(block_node, O_RDONLY | O_NONBLOCK);
  if (!block_fd) return std::unexpected(block_fd.error());
  OrReason<Answers> wanted = ask(block_node, block_fd->get());
  if (!wanted) return std::unexpected(wanted.error());

  std::string reason;
  for (const DeviceNode& node : character_devices_of(owner, disk.name)) {
    OrReason<Opened> opened = open_if_same(node, wanted->identity);
    if (opened) {
      NvmeNamespace found;
      found.fd_ = std::move(opened->fd);
      found.id_ = wanted->identity.id;
      found.identify_ = opened->identify;
      return found;
    }
    if (reason.empty()) reason = opened.error();
  }
  if (reason.empty()) reason = fmt::format("nvme: {} has no character device", disk.name);
  return std::unexpected(reason);
}

}  // namespace cofs
