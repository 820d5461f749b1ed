// SimDevice: a device that lives in memory and behaves as badly as real ones are allowed to, and, where
// asked, worse. All of its choices come from the seed.
//
// Model. `durable` is what survives a power cut for certain; `volatile` is what reads see; in between
// lie the completed effects (writes, discards, copies) that no flush has made durable. A completed
// flush makes durable all that completed before the flush was submitted; a durable write, itself. At a power cut each effect
// that is not durable, in flight ones included, is kept, dropped, or torn at 512 bytes, overlapping
// ones in any order.
// It aborts the test on what no correct caller does: writes in flight that overlap, memory changed
// while the device owns it, a copy beyond the advertised limits, a write to blocks declared immutable,
// or to blocks that a timed-out copy may still write.
// Operations of the counted kinds are numbered from 1 in order of submission; power_off_at() and
// fail_at() name them by that number.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "offload/device.h"
#include "tests/testing/sim_clock.h"
#include "tests/testing/sim_image.h"
#include "tests/testing/sim_random.h"
#include "tests/testing/sim_world.h"

namespace cofs {

enum class SimFault : uint8_t {
  kNone,
  kError,       // any operation: fails with kIo once; a write may have landed in part
  kPhantom,     // write, discard: reported done, nothing happened
  kMisdirected, // write: reported done, landed elsewhere
  kLying,       // flush, durable write: reported done, nothing was made durable
  kPartial,     // copy: kIo after some good prefix; beyond it, some blocks landed and some not
  kTimeout,     // copy: kTimedOut; lands later, or at a crash, or never
  kSlow,        // copy: done, but only after three quarters of its timeout
  kSilentWrong, // copy: reported done, with wrong bytes in some blocks
};

// Probabilities per operation (bit_rot: per write, of one of its blocks). All 0: a perfect device.
struct SimFaults {
  double read_error = 0;
  double write_error = 0;
  double flush_error = 0;
  double discard_error = 0;
  double copy_error = 0;
  double copy_partial = 0;
  double copy_timeout = 0;
  double copy_slow = 0;
  double copy_silent_wrong = 0;
  double phantom_write = 0;
  double misdirected_write = 0;
  double lying_flush = 0;
  double bit_rot = 0;
};

// Latency of an operation: min + exponential(mean) + blocks * block.
struct SimLatency {
  uint64_t min_ns = 10'000;
  uint64_t mean_ns = 60'000;
  uint64_t flush_mean_ns = 300'000;
  uint64_t block_ns = 500;
};

enum SimCounted : uint8_t {
  kCountReads = 1,
  kCountWrites = 2,
  kCountFlushes = 4,
  kCountDiscards = 8,
  kCountCopies = 16,
  kCountChanges = kCountWrites | kCountFlushes | kCountDiscards | kCountCopies,
  kCountAll = kCountChanges | kCountReads,
};

struct SimDeviceOptions {
  uint64_t seed = 0;  // besides the world's
  std::string name = "sim";
  bool is_block_device = false;
  bool can_discard = true;
  uint32_t discard_granularity_blocks = 1;
  std::vector<CopyLimits> copies;
  std::vector<std::string> copy_refusals;
  SimLatency latency;
  SimFaults faults;
  uint8_t counted = kCountChanges;
  bool guard_late_copies = true;  // abort on writes where a timed-out copy may still land
  // The fault atlas: blocks that faults may damage (their bytes, not the success of an operation).
  // Empty: all. A damaging fault that would reach another block does not happen.
  std::function<bool(uint64_t block)> may_damage;
  // Called with each discard that is submitted, before it can take effect.
  std::function<void(BlockRange range)> on_discard;
};

struct SimDeviceCounters {
  std::array<uint64_t, 5> operations{};  // by IoRequest::Op, as submitted
  uint64_t blocks_read = 0;              // of operations that succeeded, as are the following
  uint64_t blocks_written = 0;
  uint64_t blocks_discarded = 0;
  uint64_t blocks_copied = 0;            // the good prefix of a partial copy included
  uint64_t writes_refused = 0;           // by refuse_writes()
  uint64_t in_flight_max = 0;            // the most operations ever in flight at once
  uint64_t operations_of(IoRequest::Op op) const { return operations[static_cast<size_t>(op)]; }
  uint64_t flushes() const { return operations_of(IoRequest::Op::kFlush); }
};

// What becomes of the effects that are not durable when the power goes.
enum class CrashMode : uint8_t {
  kDropAll,        // all lost
  kKeepAll,        // all kept, those in flight included, in order
  kKeepCompleted,  // the completed ones kept, those in flight lost
  kRandom,         // by the seed: independently kept, dropped or torn; a prefix; all but one; only one
};

class SimDevice final : public Device {
 public:
  // `world` outlives the device. REQUIRES, at destruction: no request is in flight (run the world
  // until the store has unwound), unless the world was dropped.
  SimDevice(SimWorld& world, SimImage image, SimDeviceOptions options);
  ~SimDevice() override;

  const DeviceGeometry& geometry() const override { return geometry_; }
  void submit(IoRequest& request) override;

  // --- Crashes.
  // Cuts the power when operation `n` (from 1) has just been submitted: it and all others in flight may
  // have taken effect in part. From then on every request, those in flight too, fails with kIo and
  // changes nothing. 0: never.
  void power_off_at(uint64_t n) { power_off_at_ = n; }
  void power_off_now();
  bool powered_off() const { return powered_off_; }
  // An image the device may come up with, had the power gone when it went (or now, if it is on).
  // Cheap; any number may be made.
  SimImage crash_image(uint64_t seed, CrashMode mode) const;
  // How many effects are at stake in a crash: 0 means that all modes give the same image.
  size_t unsettled_count() const;

  // --- Looking at it.
  const SimImage& image() const { return volatile_; }          // what reads see
  const SimImage& durable_image() const { return durable_; }
  uint64_t operation_count() const { return operation_count_; }  // counted operations submitted
  const SimDeviceCounters& counters() const { return counters_; }
  // Blocks whose bytes a fault made wrong and no good write has replaced since.
  const std::set<uint64_t>& damaged() const { return damaged_; }
  size_t in_flight() const;  // requests not yet answered

  // --- Faults on demand.
  // Nothing where the fault does not apply to the kind of operation that `n` turns out to be.
  void fail_at(uint64_t n, SimFault fault) { targeted_[n] = fault; }
  void set_faults(const SimFaults& faults) { options_.faults = faults; }
  void set_on_discard(std::function<void(BlockRange range)> hook) {
    options_.on_discard = std::move(hook);
  }
  // The next read to be submitted takes so long, and sees what is there in the end.
  void delay_next_read(uint64_t duration_ns) { next_read_ns_ = duration_ns; }
  // `count` writes from counted operation `n` on take so long.
  void delay_writes_at(uint64_t n, uint64_t count, uint64_t duration_ns) {
    slow_writes_ = {n, count};
    slow_write_ns_ = duration_ns;
  }
  // Writes fail with kIo, as by SimFault::kError, from `from_ns` until before `until_ns` of the clock; in place of
  // what was asked before.
  void refuse_writes(uint64_t from_ns, uint64_t until_ns) {
    refused_from_ns_ = from_ns;
    refused_until_ns_ = until_ns;
  }
  // The same from counted operation `n` on, for so long.
  void refuse_writes_at(uint64_t n, uint64_t duration_ns) {
    refused_at_ = n;
    refused_for_ns_ = duration_ns;
  }
  // Reads of the block fail with kIo until a write succeeds; with `writes_too`, for ever.
  void mark_bad(uint64_t block, bool writes_too = false) { bad_blocks_[block] = writes_too; }
  // Damages the stored block: what reads see now is damaged, and stays so through a flush or a crash.
  void corrupt(uint64_t block, SimDamage kind, uint64_t seed);

  // --- Rules on demand: writes, discards and copies into an immutable range abort.
  void declare_immutable(BlockRange range) { immutable_.push_back(range); }
  void allow_changes(BlockRange range);

 private:
  using Op = IoRequest::Op;

  // A change of blocks: pages[i] for block start + i; a null page is a discarded block.
  struct Effect {
    uint64_t start = 0;
    std::vector<SimPageRef> pages;
    std::vector<bool> present;  // empty: all; else blocks this effect really changes
    uint64_t sequence = 0;      // in order of completion

    bool changes(size_t i) const { return present.empty() || present[i]; }
  };
  using EffectRef = std::shared_ptr<const Effect>;

  // A request from submission until its effect is done with (for a timed-out copy: after the reply).
  struct Flight {
    uint64_t id = 0;
    IoRequest* request = nullptr;  // null once replied
    Op op = Op::kRead;
    BlockRange range;
    SimFault fault = SimFault::kNone;
    bool valid = true;             // the range lies on the device
    uint64_t flush_mark = 0;       // kFlush: effects below this sequence become durable
    std::vector<SimPageRef> pages; // kWrite: the data; kCopy: what has been read so far
    std::vector<uint64_t> source_blocks;   // kCopy
    std::vector<uint8_t> source_moment;    // kCopy: 0 submission, 1 in between, 2 completion
    std::vector<SimClock::EventId> events;
  };

  // sim_device.cc
  void check_request(const IoRequest& request) const;
  void check_no_conflict(const IoRequest& request) const;
  void schedule(Flight& flight, uint64_t timeout_ns);
  void complete(uint64_t id);
  void reply(Flight& flight, Result<> result, uint64_t good_blocks);
  void finish_read(Flight& flight);
  void finish_write(Flight& flight);
  void finish_flush(Flight& flight);
  void finish_discard(Flight& flight);
  bool touches_bad(BlockRange range, bool writing) const;
  bool may_damage(BlockRange range) const;
  void apply(Effect effect);
  void settle(const Effect& effect);
  void settle_last();
  uint64_t latency_ns(Op op, uint64_t blocks);

  // sim_device_copy.cc
  void start_copy(Flight& flight, const IoRequest& request);
  void check_copy(const IoRequest& request) const;
  void read_sources(Flight& flight, uint8_t moment_max);
  void read_sources_midway(uint64_t id);
  uint64_t copy_good_blocks(const Flight& flight);
  void finish_copy(Flight& flight);
  void garble_copy(const Flight& flight, Effect* effect);
  void time_out(uint64_t id);
  void land_late(uint64_t id);

  // sim_device_fault.cc
  SimFault draw_fault(const IoRequest& request, bool counted);
  bool is_refused(const IoRequest& request, bool counted);
  std::optional<BlockRange> misdirect_target(BlockRange range) const;
  static void tear_over(const SimImage& below, Effect* effect, SimRandom& random);
  void tear(Effect* effect, SimRandom& random) const;
  std::vector<EffectRef> in_flight_effects() const;

  SimWorld& world_;
  SimDeviceOptions options_;
  DeviceGeometry geometry_;
  SimRandom random_;
  SimImage durable_;
  SimImage volatile_;
  std::deque<EffectRef> pending_;          // completed, not durable, by sequence
  std::map<uint64_t, Flight> flights_;     // by id
  uint64_t next_id_ = 1;
  uint64_t next_sequence_ = 1;
  uint64_t operation_count_ = 0;
  uint64_t power_off_at_ = 0;
  bool powered_off_ = false;
  std::vector<EffectRef> frozen_in_flight_;  // at the power cut
  std::map<uint64_t, SimFault> targeted_;
  uint64_t next_read_ns_ = 0;
  BlockRange slow_writes_;  // numbers of operations
  uint64_t slow_write_ns_ = 0;
  uint64_t refused_from_ns_ = 0;
  uint64_t refused_until_ns_ = 0;
  uint64_t refused_at_ = 0;
  uint64_t refused_for_ns_ = 0;
  std::map<uint64_t, bool> bad_blocks_;
  std::set<uint64_t> damaged_;
  std::vector<BlockRange> immutable_;
  std::vector<BlockRange> late_ranges_;    // targets of timed-out copies, for ever
  SimDeviceCounters counters_;
};

}  // namespace cofs
