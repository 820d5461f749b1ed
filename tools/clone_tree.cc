#include "tools/clone_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "tools/ficlone/own_process.h"
#include "tools/file_attributes.h"
#include "tools/file_map.h"

namespace cofs {

namespace {

std::unexpected<std::string> failure(const std::string& path, int error) {
  return std::unexpected(fmt::format("{}: {}", path, strerror(error)));
}
std::unexpected<std::string> failure(const std::string& path, const std::string& reason) {
  return std::unexpected(fmt::format("{}: {}", path, reason));
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}
std::string name_of(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path;
}

std::expected<std::vector<std::string>, int> names_in(int directory) {
  const int own = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (own < 0) return std::unexpected(errno);
  std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(own), closedir);
  if (!stream) {
    close(own);
    return std::unexpected(ENOMEM);
  }
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = readdir(stream.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) return std::unexpected(errno);
  return names;
}

// Whole files of one cofs volume; EOPNOTSUPP where it is none, EXDEV between volumes.
int clone_data(int source, int target) {
  const long result = clone_ioctl(own_process(), target, static_cast<uint32_t>(FICLONE),
                                  static_cast<uint64_t>(source));
  return result < 0 ? static_cast<int>(-result) : 0;
}

}  // namespace

TreeCloner::Outcome TreeCloner::clone(const std::string& source_path,
                                      const std::string& target_path) {
  const std::string source = without_slashes(source_path);
  const std::string target = without_slashes(target_path);
  OwnedFd source_directory(open(directory_of(source).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!source_directory.valid()) return failure(directory_of(source), errno);
  OwnedFd target_directory(open(directory_of(target).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!target_directory.valid()) return failure(directory_of(target), errno);
  const Place from{source_directory.get(), source == "/" ? "." : name_of(source), source};
  const Place to{target_directory.get(), name_of(target), target};

  struct stat info;
  if (fstatat(from.directory, from.name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return failure(source, errno);
  }
  struct stat there;
  if (fstat(to.directory, &there) != 0) return failure(directory_of(target), errno);
  device_ = info.st_dev;
  if (!is_cofs_file(own_process(), to.directory)) {
    return failure(directory_of(target), "not on a mounted cofs volume");
  }
  if (info.st_dev != there.st_dev) {
    return failure(source, fmt::format("is on another filesystem than {}; cp copies between them",
                                       directory_of(target)));
  }
  if (S_ISDIR(info.st_mode) && !options_.is_recursive) {
    return failure(source, "is a directory (-r clones trees)");
  }
  return clone_entry(from, to);
}

TreeCloner::Outcome TreeCloner::clone_entry(const Place& source, const Place& target) {
  struct stat info;
  if (fstatat(source.directory, source.name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return failure(source.path, errno);
  }
  if (info.st_dev != device_) {
    return failure(source.path, "another filesystem is mounted there; cp copies between them");
  }
  if (S_ISDIR(info.st_mode)) return clone_directory(source, target, info);
  const std::pair<uint64_t, uint64_t> identity{info.st_dev, info.st_ino};
  if (info.st_nlink > 1) {
    auto earlier = links_.find(identity);
    if (earlier != links_.end()) return link_again(target, earlier->second);
  }
  Outcome outcome = S_ISREG(info.st_mode)   ? clone_file(source, target, info)
                    : S_ISLNK(info.st_mode) ? clone_link(source, target, info)
                                            : clone_special(source, target, info);
  if (!outcome) return outcome;
  if (!S_ISREG(info.st_mode)) totals_.others++;
  if (info.st_nlink > 1) links_[identity] = target.path;
  return outcome;
}

TreeCloner::Outcome TreeCloner::put(const Place& target, const Make& make) {
  bool is_made = false;
  const auto attempt = [&](const Place& place) {
    is_made = false;
    const int error = make(place, is_made);
    if (error != 0 && is_made) unlinkat(place.directory, place.name.c_str(), 0);
    return error;
  };
  int error = attempt(target);
  if (error == 0) return {};
  if (error != EEXIST || is_made) return failure(target.path, error);
  if (!options_.replaces) return failure(target.path, "is there already (--force replaces it)");
  static uint64_t count = 0;
  const Place other{target.directory, fmt::format(".cofs-clone.{}.{}", getpid(), count++),
                    target.path};
  error = attempt(other);
  if (error != 0) return failure(target.path, error);
  if (renameat(other.directory, other.name.c_str(), target.directory, target.name.c_str()) != 0) {
    error = errno;
    unlinkat(other.directory, other.name.c_str(), 0);
    return failure(target.path, error);
  }
  return {};
}

TreeCloner::Outcome TreeCloner::clone_file(const Place& source, const Place& target,
                                           const struct stat& info) {
  OwnedFd from(openat(source.directory, source.name.c_str(),
                      O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!from.valid()) return failure(source.path, errno);
  struct stat opened;
  if (fstat(from.get(), &opened) != 0) return failure(source.path, errno);
  if (opened.st_ino != info.st_ino || opened.st_dev != info.st_dev) {
    return failure(source.path, "was exchanged meanwhile");
  }
  OwnedFd to;
  bool data_failed = false;
  Outcome outcome = put(target, [&](const Place& place, bool& is_made) {
    to = OwnedFd(openat(place.directory, place.name.c_str(),
                        O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!to.valid()) return errno;
    is_made = true;
    const int error = clone_data(from.get(), to.get());
    data_failed = error != 0;
    return data_failed ? error : copy_attributes(from.get(), opened, to.get());
  });
  if (!outcome) {
    if (!data_failed) return outcome;
    return failure(source.path, fmt::format("cannot be cloned ({}); cp copies it",
                                            outcome.error().substr(target.path.size() + 2)));
  }
  std::expected<FileExtents, std::string> map = read_file_map(to.get(), false);
  if (!map) return failure(target.path, map.error());
  const FileMapTotals mapped = map->totals();
  CloneTotals file;
  file.files = 1;
  file.size_bytes = map->size_bytes;
  file.shared_bytes = mapped.shared_bytes;
  file.inline_bytes = mapped.inline_bytes;
  file.copied_bytes = mapped.mapped_bytes -
                      std::min(mapped.mapped_bytes,
                               mapped.shared_bytes + mapped.inline_bytes + mapped.unwritten_bytes);
  totals_.files++;
  totals_.size_bytes += file.size_bytes;
  totals_.shared_bytes += file.shared_bytes;
  totals_.inline_bytes += file.inline_bytes;
  totals_.copied_bytes += file.copied_bytes;
  report_(target.path, file);
  return {};
}

TreeCloner::Outcome TreeCloner::clone_link(const Place& source, const Place& target,
                                           const struct stat& info) {
  std::string text(static_cast<size_t>(info.st_size) + 1, '\0');
  const ssize_t got = readlinkat(source.directory, source.name.c_str(), text.data(), text.size());
  if (got < 0) return failure(source.path, errno);
  if (static_cast<size_t>(got) == text.size())
    return failure(source.path, "was exchanged meanwhile");
  text.resize(static_cast<size_t>(got));
  return put(target, [&](const Place& place, bool& is_made) {
    if (symlinkat(text.c_str(), place.directory, place.name.c_str()) != 0) return errno;
    is_made = true;
    return copy_attributes_of_name(source.directory, source.name, info, place.directory,
                                   place.name);
  });
}

TreeCloner::Outcome TreeCloner::clone_special(const Place& source, const Place& target,
                                              const struct stat& info) {
  return put(target, [&](const Place& place, bool& is_made) {
    if (mknodat(place.directory, place.name.c_str(), info.st_mode, info.st_rdev) != 0) return errno;
    is_made = true;
    return copy_attributes_of_name(source.directory, source.name, info, place.directory,
                                   place.name);
  });
}

TreeCloner::Outcome TreeCloner::link_again(const Place& target, const std::string& earlier) {
  Outcome outcome = put(target, [&](const Place& place, bool&) {
    return linkat(AT_FDCWD, earlier.c_str(), place.directory, place.name.c_str(), 0) == 0 ? 0
                                                                                          : errno;
  });
  if (outcome) totals_.files++;
  return outcome;
}

TreeCloner::Outcome TreeCloner::clone_directory(const Place& source, const Place& target,
                                                const struct stat& info) {
  OwnedFd from(openat(source.directory, source.name.c_str(),
                      O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!from.valid()) return failure(source.path, errno);
  if (mkdirat(target.directory, target.name.c_str(), 0700) != 0) {
    if (errno != EEXIST) return failure(target.path, errno);
    if (!options_.replaces)
      return failure(target.path, "is there already (--force puts files into it)");
  }
  OwnedFd to(openat(target.directory, target.name.c_str(),
                    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!to.valid()) return failure(target.path, errno);
  if (totals_.directories == 0) {
    struct stat made;
    if (fstat(to.get(), &made) != 0) return failure(target.path, errno);
    target_root_ = {made.st_dev, made.st_ino};
  }
  totals_.directories++;
  Outcome outcome = clone_children(source, target, from.get(), to.get());
  if (!outcome) return outcome;
  // Last: its times change with its entries, and its mode may forbid to make some.
  const int error = copy_attributes(from.get(), info, to.get());
  if (error != 0) return failure(target.path, error);
  return {};
}

TreeCloner::Outcome TreeCloner::clone_children(const Place& source, const Place& target,
                                               int source_fd, int target_fd) {
  std::expected<std::vector<std::string>, int> names = names_in(source_fd);
  if (!names) return failure(source.path, names.error());
  for (const std::string& name : *names) {
    struct stat info;
    if (fstatat(source_fd, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return failure(source.path + "/" + name, errno);
    }
    if (target_root_ == std::pair<uint64_t, uint64_t>(info.st_dev, info.st_ino)) {
      return failure(source.path + "/" + name, "the copy cannot be inside of what is cloned");
    }
    Outcome outcome = clone_entry({source_fd, name, source.path + "/" + name},
                                  {target_fd, name, target.path + "/" + name});
    if (!outcome) return outcome;
  }
  return {};
}

}  // namespace cofs
