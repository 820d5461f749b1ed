#include "offload/copy_meter.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "offload/base/checksum.h"
#include "offload/copy_engine.h"

namespace cofs {
namespace {

constexpr uint64_t kRangesMax = 256;      // of one gather
constexpr uint64_t kGathersMax = 16;      // at one length
constexpr uint32_t kChunkBlocks = 128;    // of the reads and writes around it

void fill_block(std::byte* block, uint64_t seed, uint64_t index) {
  uint64_t word = mix64(seed, index);
  for (size_t at = 0; at < kBlockBytes; at += sizeof(word)) {
    std::memcpy(block + at, &word, sizeof(word));
    word = word * 6364136223846793005ULL + 1442695040888963407ULL;
  }
}

class Meter {
 public:
  Meter(Device& device, Executor& executor, Clock& clock, BufferPool& buffers, Journal& journal,
        MeterOptions options)
      : device_(device),
        executor_(executor),
        clock_(clock),
        buffers_(buffers),
        journal_(journal),
        options_(std::move(options)),
        half_(options_.scratch.count / 2),
        seed_(clock.monotonic_ns()) {}

  Task<Result<MeterOutcome>> run() {
    const uint64_t block_count = device_.geometry().block_count;
    if (options_.scratch.count < kMeterBlocksMin || options_.scratch.count > block_count ||
        options_.scratch.start > block_count - options_.scratch.count) {
      co_return fail(Code::kInvalid, "scratch run of the copy measurement", options_.scratch.start);
    }
    auto filled = co_await fill();
    COFS_CO_TRY(filled);
    MeterOutcome outcome;
    outcome.rates.signature = copy_signature(device_.geometry());
    std::vector<std::string> engines;
    engines.emplace_back("host");
    for (const CopyLimits& limits : device_.geometry().copies) engines.push_back(limits.engine);
    for (const std::string& engine : engines) {
      if (outcome.scratch_in_doubt) break;  // nothing may be written over it
      auto measured = co_await measure(&engine, &outcome);
      COFS_CO_TRY(measured);
    }
    co_return outcome;
  }

 private:
  uint64_t source_start() const { return options_.scratch.start; }
  uint64_t target_start() const { return options_.scratch.start + half_; }

  Task<Result<>> fill() {
    BufferRef buffer = buffers_.allocate(kChunkBlocks);
    for (uint64_t at = 0; at < half_; at += kChunkBlocks) {
      const uint64_t count = std::min<uint64_t>(kChunkBlocks, half_ - at);
      for (uint32_t i = 0; i < count; i++) fill_block(buffer->block(i), seed_, at + i);
      const MemoryPiece piece{buffer->data(), static_cast<uint32_t>(count)};
      auto written = co_await device_.write(BlockRange{source_start() + at, count}, std::span(&piece, 1));
      COFS_CO_TRY(written);
    }
    auto flushed = co_await device_.flush();
    co_return flushed;
  }

  // As many ranges of this length as fit, with gaps between them so that none joins another, from the
  // end to the start, which no read-ahead follows.
  std::vector<BlockRange> ranges_of(uint64_t length) const {
    const uint64_t slots = half_ / length;
    const uint64_t count = slots < 2 ? 1 : std::min(slots / 2, kRangesMax);
    std::vector<BlockRange> ranges;
    for (uint64_t i = count; i > 0; i--) {
      ranges.push_back(BlockRange{source_start() + (i - 1) * 2 * length, length});
    }
    return ranges;
  }

  Task<Result<>> measure(const std::string* engine, MeterOutcome* outcome) {
    CopyEngineOptions engine_options;
    engine_options.engine = *engine;
    engine_options.allow_host = *engine == "host";
    engine_options.timeout_ns = options_.command_timeout_ns;
    CopyEngine copier(device_, executor_, clock_, buffers_, journal_, engine_options);
    CopyRate rate;
    rate.engine = *engine;
    Result<> result;
    for (size_t i = 0; i < kRateClasses && result; i++) {
      if (i > 0 && kRateRangeBlocks[i] > half_) {
        rate.bytes_per_second[i] = rate.bytes_per_second[i - 1];
        continue;
      }
      result = co_await measure_length(&copier, kRateRangeBlocks[i], &rate.bytes_per_second[i],
                                       &outcome->scratch_in_doubt);
    }
    co_await copier.settle();
    if (result) {
      outcome->rates.engines.push_back(rate);
    } else if (*engine != "host" && result.error().code != Code::kBusy) {
      journal_.write(Severity::kWarning, "copy engine " + *engine +
                                             " is not used: it failed when it was measured: " +
                                             describe(result.error()));
      rate.bytes_per_second.fill(0);
      outcome->rates.engines.push_back(rate);
      result = Result<>();
    }
    co_return result;
  }

  // The rate of one engine at one length: the best of several copies, since others use the machine too.
  // The first copy is compared.
  Task<Result<>> measure_length(CopyEngine* copier, uint64_t length, uint64_t* bytes_per_second,
                                bool* in_doubt) {
    const std::vector<BlockRange> ranges = ranges_of(length);
    uint64_t elapsed_ns = 0;
    double best = 1;
    for (uint64_t n = 0; n < kGathersMax && elapsed_ns < options_.point_ns; n++) {
      if (options_.stop && options_.stop()) co_return fail(Code::kBusy, "stopped");
      const uint64_t begin_ns = clock_.monotonic_ns();
      auto hold = std::make_shared<int>(0);
      const CopyOutcome copied = co_await copier->gather(ranges, target_start(), hold);
      const uint64_t taken_ns = std::max<uint64_t>(clock_.monotonic_ns() - begin_ns, 1);
      if (copied.target_in_doubt) *in_doubt = true;
      if (!copied.result) co_return copied.result;
      elapsed_ns += taken_ns;
      best = std::max(best, static_cast<double>(bytes_of_blocks(copied.good_blocks)) * 1e9 /
                                static_cast<double>(taken_ns));
      if (n == 0) {
        auto compared = co_await compare(&ranges);
        COFS_CO_TRY(compared);
      }
    }
    *bytes_per_second = static_cast<uint64_t>(best);
    co_return Result<>();
  }

  Task<Result<>> compare(const std::vector<BlockRange>* ranges) {
    BufferRef buffer = buffers_.allocate(kChunkBlocks);
    std::vector<std::byte> want(kBlockBytes);
    uint64_t at = 0;
    for (const BlockRange& range : *ranges) {
      for (uint64_t from = 0; from < range.count; from += kChunkBlocks) {
        const uint64_t count = std::min<uint64_t>(kChunkBlocks, range.count - from);
        const MemoryPiece piece{buffer->data(), static_cast<uint32_t>(count)};
        auto read = co_await device_.read(BlockRange{target_start() + at, count}, std::span(&piece, 1));
        COFS_CO_TRY(read);
        for (uint32_t i = 0; i < count; i++) {
          fill_block(want.data(), seed_, range.start - source_start() + from + i);
          if (std::memcmp(buffer->block(i), want.data(), kBlockBytes) != 0) {
            co_return fail(Code::kIo, "it reported a copy done that is wrong", target_start() + at + i);
          }
        }
        at += count;
      }
    }
    co_return Result<>();
  }

  Device& device_;
  Executor& executor_;
  Clock& clock_;
  BufferPool& buffers_;
  Journal& journal_;
  MeterOptions options_;
  uint64_t half_;
  uint64_t seed_;
};

}  // namespace

Task<Result<MeterOutcome>> measure_copies(Device* device, Executor* executor, Clock* clock,
                                          BufferPool* buffers, Journal* journal,
                                          MeterOptions options) {
  Meter meter(*device, *executor, *clock, *buffers, *journal, std::move(options));
  auto outcome = co_await meter.run();
  co_return outcome;
}

}  // namespace cofs
