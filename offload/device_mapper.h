// DeviceMapper: the tables of device-mapper devices, as the kernel has them now.
//
// It reads them by the ioctls of /dev/mapper/control, which need CAP_SYS_ADMIN, and changes
// nothing; where no udev made that node, it makes one for itself. What the kernel answers is
// checked for its form only: whether a table covers its device is for the reader of the table. Not
// for making or changing mappings.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "offload/target.h"

namespace cofs {

// One line of a table, as `dmsetup table` shows it. Sectors are of 512 bytes.
struct DmTarget {
  uint64_t first_sector = 0;
  uint64_t sectors = 0;
  std::string type;        // "linear", "crypt", …
  std::string parameters;  // of linear: "8:16 2048"
};

using DmTable = std::vector<DmTarget>;

// Where tables come from. The error is the reason for which there is none, for a person.
class DmTableReader {
 public:
  virtual ~DmTableReader() = default;
  virtual std::expected<DmTable, std::string> table_of(dev_t device) = 0;
};

class DeviceMapper final : public DmTableReader {
 public:
  // The live table; never the one that is loaded but not resumed.
  std::expected<DmTable, std::string> table_of(dev_t device) override;

 private:
  OwnedFd control_;  // opened at the first use
};

// What a type other than "linear" does, for a person: "transforms its data" of "crypt".
std::string_view effect_of_dm_type(std::string_view type);

// Takes apart the kernel's answer to DM_TABLE_STATUS: the bytes from its data_start on, which hold
// `target_count` lines.
std::expected<DmTable, std::string> parse_dm_table(std::span<const std::byte> lines,
                                                   uint32_t target_count);

}  // namespace cofs
