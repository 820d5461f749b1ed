// populate: makes very many empty files on an unmounted volume, in this process: ten million in minutes, where the
// way through the kernel and a program for each takes the better part of an hour. For the long form of
// scale_test.py. The volume is opened with the options of a mount's defaults, and closed clean.
//
//   populate TARGET COUNT PER_DIRECTORY
//
// Files are called dD/file-N, as the scripts call theirs. For each million, and in the end, it prints a line:
// how many there are, the CPU time that each of the last million took, tree nodes written for each thousand, and how
// much memory was resident at most, held for buffers, and taken by tree nodes (of which dirty and frozen ones are in
// the last million's maximum).
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "tools/log_journal.h"
#include "tools/volume.h"

namespace cofs {
namespace {

constexpr uint64_t kReportFiles = 1'000'000;

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

uint64_t peak_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss);
}

struct Wanted {
  uint64_t count = 0;
  uint64_t per_directory = 0;
};

Task<Result<>> make_files(FileSystem* fs, Wanted wanted) {
  const Caller caller(0, 0, 022);
  uint64_t directory = 0;
  double since = cpu_seconds();
  uint64_t nodes_before = 0;
  uint64_t held = 0;
  uint64_t in_use = 0;
  uint64_t changed = 0;
  for (uint64_t i = 0; i < wanted.count; i++) {
    if (i % wanted.per_directory == 0) {
      auto made = co_await fs->make_directory(ondisk::kRootInode, fmt::format("d{}", i / wanted.per_directory),
                                              0755, caller);
      COFS_CO_TRY(made);
      directory = made->ino;
    }
    auto made = co_await fs->create(directory, fmt::format("file-{:08}", i), 0644, caller, true, nullptr);
    COFS_CO_TRY(made);
    const MemoryReport memory = fs->store().memory();
    held = std::max(held, fs->environment().buffers.bytes_held());
    in_use = std::max(in_use, fs->environment().buffers.bytes_in_use());
    changed = std::max(changed, memory.dirty_nodes + memory.frozen_nodes);
    if ((i + 1) % kReportFiles != 0 && i + 1 != wanted.count) continue;
    const uint64_t part = (i % kReportFiles) + 1;
    const uint64_t nodes = fs->store().counters().node_bytes / fs->store().info().node_bytes;
    const double now = cpu_seconds();
    fmt::print("{} files: {:.2f} us of CPU each, {:.1f} node images per thousand; at most {} MiB resident, "
               "{} of buffers in use, {} held; {} changed nodes\n",
               i + 1, (now - since) * 1e6 / static_cast<double>(part),
               static_cast<double>(nodes - nodes_before) * 1000 / static_cast<double>(part), peak_kib() >> 10,
               in_use >> 20, held >> 20, changed);
    held = in_use = changed = 0;
    std::fflush(stdout);
    nodes_before = nodes;
    since = now;
  }
  co_return Result<>();
}

int run(const std::string& target, Wanted wanted) {
  bound_heap();
  const auto journal = LogJournal::to_stderr("populate", Severity::kWarning);
  const FsOptions fs_options;
  const auto fail_with = [&target](const Error& error) {
    fmt::print(stderr, "populate: {}: {}\n", target, describe(error));
    return EXIT_FAILURE;
  };
  auto machine = Machine::open(
      target, MachineOptions::for_server(target, TargetMode::kReadWrite, fs_options.dirty_bytes_max), *journal);
  if (!machine) return fail_with(machine.error());
  StoreOptions store_options;
  store_options.gc = GcMode::kAuto;
  auto fs = (*machine)->open_filesystem(store_options, fs_options);
  if (!fs) return fail_with(fs.error());
  const Result<> made = run_blocking((*machine)->monitor(), make_files(fs->get(), wanted));
  const Result<> closed = run_blocking((*machine)->monitor(), (*fs)->close());
  if (!made) return fail_with(made.error());
  if (!closed) return fail_with(closed.error());
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace cofs

int main(int argc, char** argv) {
  cofs::Wanted wanted;
  if (argc == 4) {
    wanted.count = std::strtoull(argv[2], nullptr, 10);
    wanted.per_directory = std::strtoull(argv[3], nullptr, 10);
  }
  if (wanted.count == 0 || wanted.per_directory == 0) {
    fmt::print(stderr, "usage: populate TARGET COUNT PER_DIRECTORY\n");
    return EXIT_FAILURE;
  }
  return cofs::run(argv[1], wanted);
}
