#include "tools/mounted.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "fs/cofs_ioctl.h"

namespace cofs {

namespace {

std::unexpected<std::string> words_for(int error_number) {
  std::string words = strerror(error_number);
  if (error_number == ENOTTY || error_number == EOPNOTSUPP || error_number == EINVAL) {
    words = "not on a mounted cofs volume";
  } else if (error_number == ENOTCONN) {
    words = "the server of this mount is dead";
  }
  return std::unexpected(words);
}

constexpr int kTextAttempts = 8;

}  // namespace

std::expected<MountedVolume, std::string> MountedVolume::open(const std::string& path) {
  OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return words_for(errno);
  return MountedVolume(std::move(fd));
}

std::expected<void, std::string> MountedVolume::sync() {
  // First what the kernel still holds (mapped pages, its write-back cache), then the server.
  if (syncfs(fd_.get()) != 0) return words_for(errno);
  if (ioctl(fd_.get(), COFS_IOC_SYNC) != 0) return words_for(errno);
  return {};
}

std::expected<std::string, std::string> MountedVolume::statistics() {
  auto page = std::make_unique<cofs_text_page>();
  for (int attempt = 0; attempt < kTextAttempts; attempt++) {
    std::string text;
    uint64_t snapshot = 0;
    while (true) {
      std::memset(page.get(), 0, sizeof(*page));
      page->snapshot = snapshot;
      page->offset = static_cast<uint32_t>(text.size());
      if (ioctl(fd_.get(), COFS_IOC_STATISTICS, page.get()) != 0) {
        if (errno == EAGAIN) break;
        return words_for(errno);
      }
      if (page->length > sizeof(page->text))
        return std::unexpected("the server's answer makes no sense");
      text.append(page->text, page->length);
      snapshot = page->snapshot;
      if (text.size() >= page->total || page->length == 0) return text;
    }
  }
  return std::unexpected("others ask for statistics all the time, try again");
}

std::expected<int, std::string> MountedVolume::server_pid() {
  cofs_server_info info{};
  if (ioctl(fd_.get(), COFS_IOC_SERVER, &info) != 0) return words_for(errno);
  if (info.version != COFS_IOCTL_VERSION)
    return std::unexpected("the server is of another version");
  return static_cast<int>(info.pid);
}

}  // namespace cofs
