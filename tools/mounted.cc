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
  return std::unexpected(ioctl_words(error_number));
}

constexpr int kTextAttempts = 8;

}  // namespace

std::string ioctl_words(int error_number) {
  switch (error_number) {
    case ENOTTY:
    case EOPNOTSUPP:
    case EINVAL: return "not on a mounted cofs volume";
    case ENOTCONN: return "the server of this mount is dead";
    default: return strerror(error_number);
  }
}

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
  return text(COFS_IOC_STATISTICS);
}

std::expected<std::string, std::string> MountedVolume::scrub_problems() {
  return text(COFS_IOC_SCRUB_PROBLEMS);
}

std::expected<std::string, std::string> MountedVolume::text(unsigned long command) {
  auto page = std::make_unique<cofs_text_page>();
  for (int attempt = 0; attempt < kTextAttempts; attempt++) {
    std::string whole;
    uint64_t snapshot = 0;
    while (true) {
      std::memset(page.get(), 0, sizeof(*page));
      page->snapshot = snapshot;
      page->offset = static_cast<uint32_t>(whole.size());
      if (ioctl(fd_.get(), command, page.get()) != 0) {
        if (errno == EAGAIN) break;
        return words_for(errno);
      }
      if (page->length > sizeof(page->text))
        return std::unexpected("the server's answer makes no sense");
      whole.append(page->text, page->length);
      snapshot = page->snapshot;
      if (whole.size() >= page->total || page->length == 0) return whole;
    }
  }
  return std::unexpected("others ask all the time, try again");
}

int MountedVolume::call(unsigned long command, void* argument) {
  return ioctl(fd_.get(), command, argument) == 0 ? 0 : errno;
}

std::expected<int, std::string> MountedVolume::server_pid() {
  cofs_server_info info{};
  if (ioctl(fd_.get(), COFS_IOC_SERVER, &info) != 0) return words_for(errno);
  if (info.version != COFS_IOCTL_VERSION)
    return std::unexpected("the server is of another version");
  return static_cast<int>(info.pid);
}

}  // namespace cofs
