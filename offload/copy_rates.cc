#include "offload/copy_rates.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "offload/base/checksum.h"

namespace cofs {
namespace {

constexpr uint64_t kHostAdvantage = 2;

// Static texts: they are keys of the counters.
constexpr std::array<std::string_view, kRateClasses> kHostIsFaster = {
    "the host is over twice as fast at ranges of 4 KiB",
    "the host is over twice as fast at ranges of 64 KiB",
    "the host is over twice as fast at ranges of 1 MiB",
    "the host is over twice as fast at ranges of 8 MiB",
};

}  // namespace

const CopyRate* CopyRates::find(std::string_view engine) const {
  const auto found = std::ranges::find(engines, engine, &CopyRate::engine);
  return found == engines.end() ? nullptr : &*found;
}

size_t rate_class(uint64_t range_blocks) {
  size_t index = 0;
  while (index + 1 < kRateClasses && kRateRangeBlocks[index + 1] <= range_blocks) index++;
  return index;
}

std::string_view better_not(const CopyRates& rates, std::string_view engine, uint64_t range_blocks) {
  const CopyRate* own = rates.find(engine);
  const CopyRate* host = rates.find("host");
  if (own == nullptr || host == nullptr) return {};
  const size_t index = rate_class(range_blocks);
  if (own->bytes_per_second[index] == 0) return "it failed when it was measured";
  if (host->bytes_per_second[index] / kHostAdvantage > own->bytes_per_second[index]) {
    return kHostIsFaster[index];
  }
  return {};
}

uint64_t copy_signature(const DeviceGeometry& geometry) {
  uint64_t signature = mix64(geometry.block_count, geometry.lba_bytes);
  for (const CopyLimits& limits : geometry.copies) {
    const std::span<const char> name(limits.engine);
    signature = mix64(signature, checksum64(std::as_bytes(name), limits.ranges_max));
    signature = mix64(signature, mix64(limits.range_blocks_max, limits.operation_blocks_max));
    signature = mix64(signature, mix64(limits.in_flight_max, limits.regions.size()));
  }
  return signature == 0 ? 1 : signature;
}

}  // namespace cofs
