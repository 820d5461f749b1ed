#include "fs/fuse_options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace cofs {

namespace {

using Outcome = std::expected<void, std::string>;

// More than a program takes from one removal to the next, less than a person sees.
constexpr uint64_t kFreeDelayNs = 10'000'000;

// Handed to the kernel as they are; libfuse knows all of them.
constexpr std::array kVfsFlags = {"suid", "nosuid", "dev",   "nodev",  "exec",
                                  "noexec", "sync", "async", "dirsync"};
// Words that mean something to mount(8), systemd or other filesystems' defaults, and nothing here.
constexpr std::array kIgnored = {"defaults",   "auto",
                                 "noauto",     "nofail",
                                 "_netdev",    "user",
                                 "nouser",     "users",
                                 "nousers",    "owner",
                                 "group",      "atime",
                                 "iversion",   "noiversion",
                                 "lazytime",   "nolazytime",
                                 "silent",     "loud",
                                 "mand",       "nomand",
                                 "default_permissions"};
constexpr std::array kIgnoredPrefixes = {"x-", "X-", "comment=", "user=", "uhelper=", "helper="};
constexpr std::array<std::string_view, 6> kCopyEngines = {"auto",  "nvme",     "xcopy",
                                                           "token", "hostfile", "host"};
constexpr std::array kContexts = {"context=", "fscontext=", "defcontext=", "rootcontext="};

template <class List>
bool contains(const List& list, std::string_view word) {
  return std::ranges::find(list, word) != list.end();
}
template <class List>
bool begins_with_any(const List& list, std::string_view word) {
  return std::ranges::any_of(list, [&](const char* prefix) { return word.starts_with(prefix); });
}

std::vector<std::string> split_options(std::string_view text) {
  std::vector<std::string> words(1);
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      words.back() += text[++i];
    } else if (text[i] == ',') {
      words.emplace_back();
    } else {
      words.back() += text[i];
    }
  }
  std::erase_if(words, [](const std::string& word) { return word.empty(); });
  return words;
}

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

Outcome wrong(std::string_view option, std::string_view reason) {
  return std::unexpected("option " + std::string(option) + ": " + std::string(reason));
}

Outcome set_memory(std::string_view option, std::string_view value, uint64_t& bytes) {
  std::optional<uint64_t> size = parse_size(value);
  if (!size) return wrong(option, "expected a size such as 64M");
  if (*size < MountOptions::kMemoryBytesMin || *size > MountOptions::kMemoryBytesMax) {
    return wrong(option, "must be between 1M and 1T");
  }
  bytes = *size;
  return {};
}

Outcome set_value(std::string_view option, MountOptions& options) {
  size_t equals = option.find('=');
  std::string_view name = option.substr(0, equals);
  std::string_view value = option.substr(equals + 1);
  if (name == "commit") {
    std::optional<uint64_t> seconds = parse_number(value);
    if (!seconds || *seconds == 0 || *seconds > MountOptions::kCommitSecondsMax) {
      return wrong(option, "expected 1 to 300 seconds");
    }
    options.commit_seconds = *seconds;
  } else if (name == "cache") {
    return set_memory(option, value, options.cache_bytes);
  } else if (name == "dirty") {
    return set_memory(option, value, options.dirty_bytes);
  } else if (name == "gc") {
    if (value == "auto") {
      options.gc = GcMode::kAuto;
    } else if (value == "off") {
      options.gc = GcMode::kOff;
    } else if (value == "aggressive") {
      options.gc = GcMode::kAggressive;
    } else {
      return wrong(option, "expected auto, off or aggressive");
    }
  } else if (name == "copy_engine") {
    if (!contains(kCopyEngines, value)) {
      return wrong(option, "expected auto, nvme, xcopy, token, hostfile or host");
    }
    options.copy_engine = value == "auto" ? "" : value;
  } else if (name == "copy_verify") {
    std::optional<uint64_t> percent = parse_number(value);
    if (!percent || *percent > 100) return wrong(option, "expected 0 to 100 percent");
    options.copy_verify_percent = static_cast<uint32_t>(*percent);
  } else if (name == "copy_timeout") {
    std::optional<uint64_t> seconds = parse_number(value);
    if (!seconds || *seconds == 0 || *seconds > MountOptions::kCopyTimeoutSecondsMax) {
      return wrong(option, "expected 1 to 3600 seconds");
    }
    options.copy_timeout_seconds = *seconds;
  } else if (name == "copy_measure") {
    if (value == "auto") {
      options.copy_measuring = CopyMeasuring::kOnce;
    } else if (value == "always") {
      options.copy_measuring = CopyMeasuring::kAlways;
    } else if (value == "never") {
      options.copy_measuring = CopyMeasuring::kNever;
    } else {
      return wrong(option, "expected auto, always or never");
    }
  } else if (name == "clone") {
    if (value == "share") {
      options.clone_mode = CloneMode::kShare;
    } else if (value == "device") {
      options.clone_mode = CloneMode::kDevice;
    } else {
      return wrong(option, "expected device or share");
    }
  } else if (name == "io_uring") {
    if (value != "force") return wrong(option, "expected force, or no value");
    options.transport = FuseTransport::kForcedRing;
  } else {
    return std::unexpected("unknown mount option: " + std::string(option));
  }
  return {};
}

Outcome set_word(std::string_view option, MountOptions& options) {
  if (option == "ro") {
    options.read_only = true;
  } else if (option == "rw") {
    options.read_only = false;
  } else if (option == "norecovery") {
    options.no_recovery = true;
  } else if (option == "remount") {
    options.remount = true;
  } else if (option == "noatime") {
    options.access_times = AccessTimes::kNone;
  } else if (option == "relatime" || option == "nostrictatime") {
    options.access_times = AccessTimes::kRelative;
  } else if (option == "strictatime" || option == "norelatime") {
    options.access_times = AccessTimes::kStrict;
  } else if (option == "nodiratime") {
    options.directory_access_times = false;
  } else if (option == "diratime") {
    options.directory_access_times = true;
  } else if (option == "writeback") {
    options.writeback = true;
  } else if (option == "nowriteback") {
    options.writeback = false;
  } else if (option == "io_uring") {
    options.transport = FuseTransport::kRing;
  } else if (option == "noio_uring") {
    options.transport = FuseTransport::kDevice;
  } else if (option == "busy_poll") {
    options.busy_poll = true;
  } else if (option == "nobusy_poll") {
    options.busy_poll = false;
  } else if (option == "discard") {
    options.discard = true;
  } else if (option == "nodiscard") {
    options.discard = false;
  } else if (option == "allow_other") {
    options.allow_other = true;
  } else if (option == "noallow_other") {
    options.allow_other = false;
  } else {
    return std::unexpected("unknown mount option: " + std::string(option));
  }
  return {};
}

}  // namespace

std::expected<MountOptions, std::string> parse_mount_options(std::string_view text) {
  MountOptions options;
  for (const std::string& option : split_options(text)) {
    if (contains(kVfsFlags, option) || begins_with_any(kContexts, option)) {
      options.kernel_options.push_back(option);
      continue;
    }
    if (contains(kIgnored, option) || begins_with_any(kIgnoredPrefixes, option)) continue;
    bool has_value = option.find('=') != std::string::npos;
    Outcome outcome = has_value ? set_value(option, options) : set_word(option, options);
    if (!outcome) return std::unexpected(outcome.error());
  }
  if (options.access_times == AccessTimes::kNone) options.kernel_options.emplace_back("noatime");
  return options;
}

std::optional<uint64_t> parse_size(std::string_view text) {
  if (text.ends_with("iB")) {
    text.remove_suffix(2);
  } else if (text.ends_with("B")) {
    text.remove_suffix(1);
  }
  if (text.empty()) return {};
  constexpr std::string_view kUnits = "KMGTP";
  char last = text.back();
  if (last >= 'a' && last <= 'z') last = static_cast<char>(last - 'a' + 'A');
  int shift = 0;
  if (size_t unit = kUnits.find(last); unit != std::string_view::npos) {
    shift = 10 * (static_cast<int>(unit) + 1);
    text.remove_suffix(1);
  }
  if (std::optional<uint64_t> whole = parse_number(text)) {
    if (*whole > (UINT64_MAX >> shift)) return {};
    return *whole << shift;
  }
  double value = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (shift == 0 || text.empty() || error != std::errc() || end != text.data() + text.size())
    return {};
  value = std::ldexp(value, shift);
  if (!(value >= 0) || value >= std::ldexp(1.0, 63)) return {};
  return static_cast<uint64_t>(value);
}

StoreOptions MountOptions::store_options() const {
  StoreOptions store;
  store.read_only = read_only;
  store.cache_bytes = cache_bytes;
  store.commit_interval_ns = commit_seconds * 1'000'000'000;
  store.discard = discard;
  store.gc = gc;
  store.copy.engine = copy_engine;
  store.copy.timeout_ns = copy_timeout_seconds * 1'000'000'000;
  store.copy_verify_percent = copy_verify_percent;
  store.copy_measuring = copy_measuring;
  return store;
}

FsOptions MountOptions::fs_options() const {
  FsOptions fs;
  fs.access_times = access_times;
  fs.directory_access_times = directory_access_times;
  fs.dirty_bytes_max = dirty_bytes;
  fs.free_delay_ns = kFreeDelayNs;
  fs.read_only = read_only;
  fs.clone_mode = clone_mode;
  return fs;
}

}  // namespace cofs
