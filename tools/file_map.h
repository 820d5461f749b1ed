// The extents of a file on a mounted volume, read as a whole (COFS_IOC_MAP).
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <vector>

#include "fs/cofs_ioctl.h"

namespace cofs {

struct FileMapTotals {
  uint64_t mapped_bytes = 0;  // all, and of these:
  uint64_t shared_bytes = 0;
  uint64_t inline_bytes = 0;
  uint64_t delayed_bytes = 0;
  uint64_t unwritten_bytes = 0;
};

struct FileExtents {
  uint64_t size_bytes = 0;
  std::vector<cofs_map_extent> extents;  // ascending
  FileMapTotals totals() const;
};

// `sync`: dirty data is given its place first. Errors: one line for a person.
std::expected<FileExtents, std::string> read_file_map(int fd, bool sync);

}  // namespace cofs
