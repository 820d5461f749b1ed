// SimScsiBench: a copier of SCSI disks over simulated targets, with a model of what it must have
// done. The stack is made by hand; requests run one after the other or many at once.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offload/device_copier.h"
#include "offload/device_stack.h"
#include "tests/testing/sim_random.h"
#include "tests/testing/sim_scsi_target.h"

namespace cofs {

// Counts what is finished, and waits for it.
class CountingSink final : public RequestSink {
 public:
  void finished(std::span<IoRequest* const> requests) override;
  void transfer_failed(const IoRequest&, int) override {}
  void wait_for(size_t count);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t finished_ = 0;  // guarded by mutex_; not yet waited for
};

class SimScsiBench {
 public:
  // One disk per options, in one piece each, one after the other; the target begins
  // `skipped_blocks` into the first disk, as a partition does.
  SimScsiBench(const std::vector<SimScsiOptions>& options, uint64_t skipped_blocks);

  template <class Copier>
  std::expected<void, std::string> probe() {
    std::vector<std::shared_ptr<ScsiTransport>> transports(targets.begin(), targets.end());
    auto made = Copier::probe(stack, block_count, std::move(transports), sink);
    if (!made) return std::unexpected(made.error());
    copier = *std::move(made);
    return {};
  }

  // Copies, and leaves result and good_blocks in the returned request (its spans dangle).
  IoRequest copy(const std::vector<BlockRange>& sources, uint64_t target);
  // The bytes of a block of the whole.
  std::span<uint8_t> block(uint64_t number);
  // Fills all blocks with contents of their own.
  void fill(uint64_t seed);
  // A copy of everything, to compare with later.
  std::vector<std::vector<uint8_t>> snapshot();

  // Copies random gathers that keep to the copier's limits, does the same by hand, and compares all
  // of the disks each time. The first difference for a person, empty if there is none.
  std::string run_random_copies(uint64_t seed, int copies);

  DeviceStack stack;
  uint64_t block_count = 0;
  std::vector<std::shared_ptr<SimScsiTarget>> targets;
  CountingSink sink;
  std::unique_ptr<DeviceCopier> copier;  // gone before the sink

 private:
  struct Gather {
    std::vector<BlockRange> sources;
    uint64_t target = 0;
  };
  Gather random_gather(SimRandom& random);
};

uint64_t blocks_of(std::span<const BlockRange> ranges);

}  // namespace cofs
