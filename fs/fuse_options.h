// MountOptions: what `-o` of a mount may say, parsed strictly: an option that is not known is an
// error.
//
// Besides cofs's own options it takes those that mount(8) hands to a helper: flags of the VFS are
// kept for the kernel, words for fstab readers are dropped. Sizes are bytes with an optional K, M,
// G or T. It does not check options against a volume or a device.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "blockmap/store.h"
#include "fs/filesystem.h"

namespace cofs {

// By which way requests come from the kernel. kForcedRing: also by a library that is not known to serve it.
enum class FuseTransport : uint8_t { kDevice, kRing, kForcedRing };

struct MountOptions {
  static constexpr uint64_t kCommitSecondsMax = 300;
  static constexpr uint64_t kCopyTimeoutSecondsMax = 3600;
  static constexpr uint64_t kMemoryBytesMin = 1ULL << 20;  // of cache= and dirty=
  static constexpr uint64_t kMemoryBytesMax = 1ULL << 40;

  bool read_only = false;
  // Changes nothing: a read-only mount replays the log in memory only. Without read_only: on devices that are
  // write-protected.
  bool no_recovery = false;
  bool remount = false;
  bool writeback = false;  // the kernel's write-back cache
  FuseTransport transport = FuseTransport::kDevice;
  bool busy_poll = true;  // for requests, while it pays (fs/fuse_request_poller.h)
  bool discard = true;
  GcMode gc = GcMode::kAuto;
  std::optional<bool> allow_other;  // unset: yes for root, no for others
  AccessTimes access_times = AccessTimes::kRelative;
  bool directory_access_times = true;
  uint64_t commit_seconds = 5;
  uint64_t cache_bytes = 64ULL << 20;  // of metadata
  uint64_t dirty_bytes = 64ULL << 20;  // of file data not written yet
  std::string copy_engine;            // as in CopyEngineOptions: "" chooses by itself
  uint32_t copy_verify_percent = 1;   // of what a device copied, read back and compared
  uint64_t copy_timeout_seconds = 30; // of one copy command
  CopyMeasuring copy_measuring = CopyMeasuring::kOnce;
  CloneMode clone_mode = CloneMode::kDevice;
  std::vector<std::string> kernel_options;  // for the mount itself, in the order given

  StoreOptions store_options() const;
  FsOptions fs_options() const;
};

// Parses comma-separated options; a backslash takes the next character as it is. Errors: one line
// that names the option.
std::expected<MountOptions, std::string> parse_mount_options(std::string_view text);

// "4096", "64K", "10G", "1.5T" (powers of 1024, a trailing "B" or "iB" allowed); nothing if it is
// not one.
std::optional<uint64_t> parse_size(std::string_view text);

}  // namespace cofs
