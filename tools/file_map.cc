#include "tools/file_map.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "tools/ficlone/own_process.h"

namespace cofs {

FileMapTotals FileExtents::totals() const {
  FileMapTotals totals;
  for (const cofs_map_extent& extent : extents) {
    totals.mapped_bytes += extent.length;
    if ((extent.flags & COFS_EXTENT_SHARED) != 0) totals.shared_bytes += extent.length;
    if ((extent.flags & COFS_EXTENT_INLINE) != 0) totals.inline_bytes += extent.length;
    if ((extent.flags & COFS_EXTENT_DELAYED) != 0) totals.delayed_bytes += extent.length;
    if ((extent.flags & COFS_EXTENT_UNWRITTEN) != 0) totals.unwritten_bytes += extent.length;
  }
  return totals;
}

std::expected<FileExtents, std::string> read_file_map(int fd, bool sync) {
  const CloneSystem& system = own_process();
  struct stat info;
  if (fstat(fd, &info) != 0) return std::unexpected(strerror(errno));
  if (!is_cofs_file(system, fd)) return std::unexpected("not on a mounted cofs volume");
  if (!S_ISREG(info.st_mode)) return std::unexpected("not a regular file");
  FileExtents map;
  map.size_bytes = static_cast<uint64_t>(info.st_size);
  auto page = std::make_unique<cofs_map>();
  uint64_t start = 0;
  if (sync && system.sync_range(system.context, fd, 0, 0) < 0) {
    return std::unexpected("cannot write its dirty data");
  }
  do {
    const long result =
        map_extents(system, fd, start, static_cast<uint64_t>(INT64_MAX) - start, sync, page.get());
    if (result < 0) return std::unexpected(strerror(static_cast<int>(-result)));
    map.extents.insert(map.extents.end(), page->extents, page->extents + page->count);
    sync = false;
    if (page->count > 0) start = map.extents.back().logical + map.extents.back().length;
  } while (page->more != 0);
  return map;
}

}  // namespace cofs
