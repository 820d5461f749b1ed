#include "tests/testing/sim_scsi_bench.h"

#include <algorithm>

namespace cofs {

void CountingSink::finished(std::span<IoRequest* const> requests) {
  std::lock_guard lock(mutex_);
  finished_ += requests.size();
  changed_.notify_all();
}

void CountingSink::wait_for(size_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return finished_ >= count; });
  finished_ -= count;
}

SimScsiBench::SimScsiBench(const std::vector<SimScsiOptions>& options, uint64_t skipped_blocks) {
  for (uint32_t i = 0; i < options.size(); i++) {
    auto target = std::make_shared<SimScsiTarget>(options[i]);
    const uint64_t skipped = i == 0 ? skipped_blocks : 0;
    const uint64_t blocks = target->memory().size() / kBlockBytes - skipped;
    StackDisk disk;
    disk.kind = DiskKind::kScsi;
    disk.name = std::string("sd") + static_cast<char>('a' + i);
    disk.lba_bytes = options[i].lba_bytes;
    stack.disks.push_back(disk);
    StackRegion region;
    region.blocks = {block_count, blocks};
    region.disk = i;
    region.disk_byte = bytes_of_blocks(skipped);
    stack.regions.push_back(region);
    block_count += blocks;
    targets.push_back(std::move(target));
  }
}

std::span<uint8_t> SimScsiBench::block(uint64_t number) {
  const StackLocation place = stack.locate({number, 1}).value();
  return targets[place.disk]->memory().subspan(place.byte, kBlockBytes);
}

void SimScsiBench::fill(uint64_t seed) {
  SimRandom random(seed);
  for (auto& target : targets) {
    for (uint8_t& byte : target->memory()) byte = static_cast<uint8_t>(random.next());
  }
}

std::vector<std::vector<uint8_t>> SimScsiBench::snapshot() {
  std::vector<std::vector<uint8_t>> all;
  for (auto& target : targets) {
    all.emplace_back(target->memory().begin(), target->memory().end());
  }
  return all;
}

IoRequest SimScsiBench::copy(const std::vector<BlockRange>& sources, uint64_t target) {
  IoRequest request;
  request.op = IoRequest::Op::kCopy;
  request.range = {target, blocks_of(sources)};
  request.sources = sources;
  request.timeout_ns = 2'000'000'000;
  request.good_blocks = 12345;  // to be set in any case
  copier->start(request);
  sink.wait_for(1);
  return request;
}

SimScsiBench::Gather SimScsiBench::random_gather(SimRandom& random) {
  const CopyLimits& limits = copier->limits();
  const StackRegion& region = stack.regions[random.below(stack.regions.size())];
  Gather gather;
  uint64_t total = 0;
  const uint64_t ranges = random.between(1, limits.ranges_max);
  // The target lies in one half, the sources in the other; those are apart from each other, too.
  const uint64_t half = region.blocks.count / 2;
  const bool front = random.chance(0.5);
  const uint64_t source_from = region.blocks.start + (front ? 0 : half);
  const uint64_t target_from = region.blocks.start + (front ? half : 0);
  const uint64_t share = half / ranges;
  for (uint64_t i = 0; i < ranges && share != 0; i++) {
    const uint64_t most = std::min(
        {share, limits.range_blocks_max, limits.operation_blocks_max - total, half - total});
    if (most == 0) break;
    const uint64_t count = random.between(1, most);
    const uint64_t slack = share - count;
    gather.sources.push_back({source_from + i * share + random.below(slack + 1), count});
    total += count;
  }
  for (size_t i = gather.sources.size(); i > 1; i--) {  // in any order
    std::swap(gather.sources[i - 1], gather.sources[random.below(i)]);
  }
  gather.target = target_from + random.below(half - total + 1);
  return gather;
}

std::string SimScsiBench::run_random_copies(uint64_t seed, int copies) {
  SimRandom random(seed);
  fill(seed);
  for (int i = 0; i < copies; i++) {
    const std::string where = ", copy " + std::to_string(i) + " of seed " + std::to_string(seed);
    const Gather gather = random_gather(random);
    std::vector<std::vector<uint8_t>> expected = snapshot();
    uint64_t at = gather.target;
    for (const BlockRange& source : gather.sources) {
      for (uint64_t b = 0; b < source.count; b++, at++) {
        const StackLocation from = stack.locate({source.start + b, 1}).value();
        const StackLocation to = stack.locate({at, 1}).value();
        std::copy_n(expected[from.disk].begin() + static_cast<ptrdiff_t>(from.byte), kBlockBytes,
                    expected[to.disk].begin() + static_cast<ptrdiff_t>(to.byte));
      }
    }
    const IoRequest done = copy(gather.sources, gather.target);
    if (!done.result) return describe(done.result.error()) + where;
    if (done.good_blocks != done.range.count) return "not all blocks are good" + where;
    if (snapshot() != expected) return "wrong bytes" + where;
  }
  return "";
}

uint64_t blocks_of(std::span<const BlockRange> ranges) {
  uint64_t sum = 0;
  for (const BlockRange& range : ranges) sum += range.count;
  return sum;
}

}  // namespace cofs
