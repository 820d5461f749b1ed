#include "fs/fuse_mounts.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>

namespace cofs {

namespace {

// Blanks, tabs, newlines and backslashes are written as three octal digits.
std::string unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); i++) {
    auto is_octal = [&](size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && is_octal(i + 1) && is_octal(i + 2) &&
        is_octal(i + 3)) {
      int code = (text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0');
      plain += static_cast<char>(code);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

std::string real_path(const std::string& path) {
  std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
  return real ? std::string(real.get()) : std::string();
}

}  // namespace

std::vector<MountEntry> read_mounts() {
  std::vector<MountEntry> mounts;
  std::ifstream file("/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string id, parent, word;
    MountEntry entry;
    fields >> id >> parent >> entry.device >> entry.root >> entry.mount_point >> entry.options;
    while (fields >> word && word != "-") {
    }
    fields >> entry.type >> entry.source;
    if (!fields) continue;
    entry.mount_point = unescape(entry.mount_point);
    entry.source = unescape(entry.source);
    mounts.push_back(std::move(entry));
  }
  return mounts;
}

std::optional<MountEntry> mount_at(const std::string& path) {
  std::vector<MountEntry> mounts = read_mounts();
  auto last = std::find_if(mounts.rbegin(), mounts.rend(),
                           [&](const MountEntry& entry) { return entry.mount_point == path; });
  if (last == mounts.rend()) return {};
  return *last;
}

std::string resolve_mount_point(const std::string& path) {
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.ends_with('/')) trimmed.pop_back();
  if (std::string whole = real_path(trimmed); !whole.empty()) return whole;
  if (errno != ENOTCONN && errno != EIO && errno != EACCES) return {};
  size_t slash = trimmed.rfind('/');
  std::string name = slash == std::string::npos ? trimmed : trimmed.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") return {};
  std::string parent = slash == std::string::npos ? "."
                       : slash == 0               ? "/"
                                                  : trimmed.substr(0, slash);
  std::string directory = real_path(parent);
  if (directory.empty()) return {};
  return directory == "/" ? "/" + name : directory + "/" + name;
}

}  // namespace cofs
