#include "tools/run/preload.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

namespace cofs {

namespace {

constexpr const char* kLibraryName = "libcofs-ficlone.so";
constexpr const char* kSeparators = " :";  // of LD_PRELOAD: no path in it can have these

// Beside this program, as it is built, or where it is installed. Empty if it is in neither place.
std::string find_library() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string beside = (program.parent_path() / kLibraryName).string();
  const std::string installed = fmt::format("{}/{}", COFS_LIBRARY_DIRECTORY, kLibraryName);
  for (const std::string& path : {beside, installed}) {
    if (access(path.c_str(), R_OK) == 0) return path;
  }
  return {};
}

bool is_our_library(std::string_view path) {
  return path.substr(path.rfind('/') + 1) == kLibraryName;
}

// LD_PRELOAD without the library; false if it was not in it.
bool take_out(std::string_view list, std::string& rest) {
  bool was_there = false;
  while (!list.empty()) {
    const size_t end = list.find_first_of(kSeparators);
    const std::string_view path = list.substr(0, end);
    if (is_our_library(path)) {
      was_there = true;
    } else if (!path.empty()) {
      rest += (rest.empty() ? "" : ":") + std::string(path);
    }
    list.remove_prefix(end == std::string_view::npos ? list.size() : end + 1);
  }
  return was_there;
}

}  // namespace

std::string add_preload(bool as_xfs) {
  const std::string library = find_library();
  if (library.empty()) {
    return fmt::format("{} is neither beside this program nor in {}", kLibraryName,
                       COFS_LIBRARY_DIRECTORY);
  }
  if (library.find_first_of(kSeparators) != std::string::npos) {
    return fmt::format("{}: the loader takes no library in a path with spaces or colons", library);
  }
  if (as_xfs) setenv("COFS_FICLONE_AS_XFS", "1", 1);
  const char* variable = getenv("LD_PRELOAD");
  std::string others;
  take_out(variable != nullptr ? variable : "", others);
  setenv("LD_PRELOAD", (others.empty() ? library : library + ":" + others).c_str(), 1);
  return {};
}

void leave_preload() {
  const char* variable = getenv("LD_PRELOAD");
  std::string others;
  if (variable == nullptr || !take_out(variable, others)) return;
  if (others.empty()) {
    unsetenv("LD_PRELOAD");
  } else {
    setenv("LD_PRELOAD", others.c_str(), 1);
  }
  unsetenv("COFS_FICLONE_AS_XFS");
  // The words of this command as they were given.
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  std::string word;
  while (std::getline(file, word, '\0')) words.push_back(word);
  std::vector<char*> pointers;
  for (std::string& each : words) pointers.push_back(each.data());
  pointers.push_back(nullptr);
  if (pointers.size() > 1) execv("/proc/self/exe", pointers.data());
}

}  // namespace cofs
