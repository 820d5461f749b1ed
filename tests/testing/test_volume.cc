#include "tests/testing/test_volume.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "offload/base/checksum.h"
#include "tests/testing/tree_walk.h"

namespace cofs {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kHangNs = 3600 * kSecondNs;  // of virtual time in one call

char current_case[4096];

extern "C" void print_current_case(int signal_number) {
  static constexpr char kHead[] = "\n*** the program failed in this case: ";
  (void)!write(2, kHead, sizeof kHead - 1);
  (void)!write(2, current_case, strnlen(current_case, sizeof current_case));
  (void)!write(2, "\n", 1);
  std::signal(signal_number, SIG_DFL);
  raise(signal_number);
}

}  // namespace

void set_current_case(const std::string& text) {
  static const bool installed = [] {
    for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGTERM}) {
      std::signal(number, print_current_case);
    }
    return true;
  }();
  (void)installed;
  const size_t n = std::min(text.size(), sizeof current_case - 1);
  std::memcpy(current_case, text.data(), n);
  current_case[n] = '\0';
}

VolumeOptions VolumeOptions::tiny(uint64_t seed) {
  SimRandom random(mix64(seed, 0x71));
  VolumeOptions options;
  options.format.segment_blocks = 16U << random.below(3);
  options.device_blocks = 1024 + options.format.segment_blocks * random.between(24, 64);
  options.format.node_bytes = 4096;
  options.format.metadata_copies = 1 + static_cast<uint32_t>(random.below(2));
  options.format.log_limit_blocks = random.between(16, 128);
  options.store.cache_bytes = 4096 * random.between(4, 64);
  options.store.dirty_nodes_max = random.below(2) == 0 ? 0 : random.between(16, 64);
  options.store.background = false;
  options.store.discard = random.below(4) != 0;
  options.fs.dirty_bytes_max = kBlockBytes * random.between(16, 512);
  options.fs.direct_bytes_min = 1;
  options.fs.inodes_cached_max = random.between(1, 64);
  options.fs.free_delay_ns = seed % 2 == 0 ? 0 : 10'000'000;
  options.device.seed = random.next();
  if (random.below(2) == 0) {
    CopyLimits limits;
    limits.engine = "sim";
    limits.ranges_max = static_cast<uint32_t>(random.between(1, 8));
    limits.range_blocks_max = random.between(1, 64);
    limits.operation_blocks_max = limits.range_blocks_max * limits.ranges_max;
    limits.in_flight_max = static_cast<uint32_t>(random.between(1, 4));
    options.device.copies.push_back(limits);
    const uint64_t verify = random.below(3);
    options.store.copy_verify_percent = verify == 0 ? 0 : verify == 1 ? 1 : 100;
    options.store.copy.timeout_ns = 100'000'000;
    if (random.below(8) == 0) options.store.copy_measuring = CopyMeasuring::kOnce;
  }
  options.fs.clone_mode = random.below(2) == 0 ? CloneMode::kShare : CloneMode::kDevice;
  const uint64_t gc = random.below(4);
  options.store.gc = gc == 0 ? GcMode::kAggressive : gc == 1 ? GcMode::kAuto : GcMode::kOff;
  return options;
}

std::string VolumeOptions::describe() const {
  return fmt::format(
      "device {} blocks, segments {}, node copies {}, log limit {}, cache {} bytes, dirty nodes {}, "
      "dirty data {} bytes, inodes {}, freed after {} ns, background {}, copies {}, clone {}, gc {}",
      device_blocks, format.segment_blocks, format.metadata_copies, format.log_limit_blocks,
      store.cache_bytes, store.dirty_nodes_max, fs.dirty_bytes_max, fs.inodes_cached_max, fs.free_delay_ns,
      store.background, device.copies.size(),
      fs.clone_mode == CloneMode::kShare ? "share" : "device", static_cast<int>(store.gc));
}

TestVolume::TestVolume(uint64_t seed, SimImage image, const VolumeOptions& options)
    : world(seed,
            [&] {
              SimWorldOptions world_options;
              world_options.shuffle = options.shuffle;
              return world_options;
            }()),
      device(world, std::move(image), options.device),
      options_(options) {}

TestVolume::~TestVolume() {
  observer = nullptr;
  if (fs_ != nullptr) abandon();
  settle();
}

Environment TestVolume::environment() {
  return Environment{device, world.executor, world.clock, world.random, world.journal,
                     world.buffers};
}

SimImage TestVolume::formatted(uint64_t seed, const VolumeOptions& options) {
  TestVolume volume(seed, SimImage(options.device_blocks, SimImage::Fill::kPoison, seed), options);
  auto done = volume.run(FileSystem::format(volume.environment(), options.format, 0, 0));
  if (!done) {
    std::fprintf(stderr, "format failed (seed %llu, %s): %s\n",
                 static_cast<unsigned long long>(seed), options.describe().c_str(),
                 describe(done.error()).c_str());
    assertion_failed("format works", __FILE__, __LINE__);
  }
  volume.settle();
  return volume.device.image();
}

Result<> TestVolume::open() {
  COFS_ASSERT(fs_ == nullptr);
  auto store = run(Store::open(environment(), options_.store));
  if (!store) return fail(store.error());
  auto fs = run(FileSystem::open(std::move(*store), environment(), options_.fs));
  if (!fs) return fail(fs.error());
  fs_ = std::move(*fs);
  files = OpenFiles();
  return {};
}

Result<> TestVolume::close() {
  auto done = run(fs_->close());
  fs_.reset();
  return done;
}

void TestVolume::abandon() {
  run(fs_->abandon());
  fs_.reset();
}

OperationResult TestVolume::perform(const Operation& operation) {
  if (operation.kind == OperationKind::kPass) {
    pass(operation.length);
    return OperationResult();
  }
  return run(cofs::perform(*fs_, files, operation));
}

Result<ModelState> TestVolume::tree() { return run(read_tree(*fs_)); }

std::string TestVolume::verify(bool read_data) {
  VerifyOptions verify_options;
  verify_options.read_data = read_data;
  auto report = run(fs_->verify(verify_options));
  if (!report) return "verify: " + cofs::describe(report.error());
  std::string text;
  for (const VerifyProblem& problem : report->problems) text += problem.what + "\n";
  if (text.empty() && report->problem_count != 0) text = "problems that are not named\n";
  return text;
}

void TestVolume::settle() {
  if (options_.store.background && fs_ != nullptr) {
    pass(kSecondNs);
    return;
  }
  uint64_t steps = 0;
  while (step()) {
    if (++steps > options_.steps_max) hang("never becomes idle");
  }
}

void TestVolume::pass(uint64_t duration_ns) {
  const uint64_t deadline_ns = world.clock.monotonic_ns() + duration_ns;
  uint64_t steps = 0;
  while (true) {
    const std::optional<uint64_t> due = world.clock.next_due();
    const bool event_possible = due && *due <= deadline_ns;
    if (world.executor.idle() && !event_possible) break;
    if (++steps > options_.steps_max) hang("too many steps in the time given");
    step();
  }
  world.clock.pass_until(std::max(deadline_ns, world.clock.monotonic_ns()));
}

bool TestVolume::step() {
  const bool moved = world.step();
  if (!observer) return moved;
  const uint64_t operations = device.operation_count();
  const size_t in_flight = device.in_flight();
  if (operations != seen_operations_ || in_flight != seen_in_flight_) {
    seen_operations_ = operations;
    seen_in_flight_ = in_flight;
    observer();
  }
  return moved;
}

void TestVolume::drive(const bool& done) {
  const uint64_t limit_ns = world.clock.monotonic_ns() + kHangNs;
  uint64_t steps = 0;
  while (!done) {
    if (!step()) hang("deadlock");
    if (++steps > options_.steps_max) hang("too many steps");
    if (world.clock.monotonic_ns() > limit_ns) hang("an hour of virtual time went by");
  }
}

void TestVolume::hang(const char* what) {
  std::fprintf(stderr, "test volume (seed %llu): %s; %s\n",
               static_cast<unsigned long long>(world.seed), what, options_.describe().c_str());
  if (fs_ != nullptr) {
    const SpaceReport space = fs_->store().space();
    const StoreCounters& counters = fs_->store().counters();
    std::fprintf(stderr, "%s\n",
                 fmt::format("  commits {}, checkpoints {}, log bytes {}, node bytes {}; available {}, "
                             "free {}, live data {}, nodes {}, reserved {}, dead {}, free segments {}",
                             counters.commits, counters.checkpoints, counters.log_bytes,
                             counters.node_bytes, space.available_blocks, space.free_blocks,
                             space.live_data_blocks, space.node_blocks, space.reserved_blocks,
                             space.dead_blocks, space.free_segments)
                     .c_str());
  }
  for (const SimJournal::Line& line : world.journal.lines()) {
    std::fprintf(stderr, "  journal: %s\n", line.text.c_str());
  }
  assertion_failed(what, __FILE__, __LINE__);
}

}  // namespace cofs
