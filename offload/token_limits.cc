#include "offload/token_limits.h"

#include <algorithm>

#include "offload/base/units.h"
#include "offload/token_format.h"

namespace cofs {

namespace {

// Four commands make an operation, so it should move much; and no disk should need its timeout for
// it.
constexpr uint64_t kOperationBlocksMax = blocks_of_bytes(uint64_t{64} << 20);
constexpr uint32_t kRangesMax = 256;  // 4 KiB of them
// A disk that does not say how many ranges it takes.
constexpr uint32_t kRangesDefault = 1;
// A token is used at once and never again: the disk need not remember it for long.
constexpr uint32_t kInactivitySeconds = 15;
constexpr uint32_t kInFlightMin = 2;
constexpr uint32_t kInFlightMax = 8;
constexpr uint32_t kInFlightDefault = 4;

void parse_commands(std::span<const uint8_t> body, TokenParameters* parameters) {
  if (body.empty()) return;
  parameters->has_commands = true;
  std::span<const uint8_t> rest = body.subspan(1);
  rest = rest.first(std::min<size_t>(rest.size(), body[0]));
  while (rest.size() >= 2) {
    const uint8_t opcode = rest[0];
    const size_t count = std::min<size_t>(rest[1], rest.size() - 2);
    for (uint8_t action : rest.subspan(2, count)) {
      parameters->populate |= opcode == kTokenCopyOut && action == kPopulateToken;
      parameters->write |= opcode == kTokenCopyOut && action == kWriteUsingToken;
      parameters->information |= opcode == kTokenCopyIn && action == kTokenInformation;
    }
    rest = rest.subspan(2 + count);
  }
}

}  // namespace

std::optional<TokenParameters> parse_third_party_page(std::span<const uint8_t> page) {
  const auto header = read_as<ThirdPartyPageHeader>(page);
  if (!header || header->page != kPageThirdPartyCopy) return std::nullopt;
  std::span<const uint8_t> rest = page.subspan(sizeof(ThirdPartyPageHeader));
  rest = rest.first(std::min<size_t>(rest.size(), header->length));
  TokenParameters parameters;
  while (const auto entry = read_as<ThirdPartyDescriptorHeader>(rest)) {
    const size_t length = sizeof(*entry) + entry->length;
    if (length > rest.size()) break;  // cut off: what it says cannot be told from what is missing
    const std::span<const uint8_t> descriptor = rest.first(length);
    if (entry->type == kDescriptorRodLimits) {
      if (const auto limits = read_as<RodLimitsDescriptor>(descriptor)) {
        parameters.has_limits = true;
        parameters.ranges_max = limits->ranges_max;
        parameters.inactivity_max_s = limits->inactivity_max_s;
        parameters.token_lbas_max = limits->token_lbas_max;
        parameters.optimal_lbas = limits->optimal_lbas;
      }
    } else if (entry->type == kDescriptorCommands) {
      parse_commands(descriptor.subspan(sizeof(*entry)), &parameters);
    } else if (entry->type == kDescriptorGeneral) {
      if (const auto general = read_as<GeneralCopyDescriptor>(descriptor)) {
        parameters.copies_total = general->copies_total;
      }
    }
    rest = rest.subspan(length);
  }
  return parameters;
}

uint32_t parse_transfer_limit(std::span<const uint8_t> page) {
  const auto limits = read_as<BlockLimitsPage>(page);
  if (!limits || limits->page != kPageBlockLimits) return 0;
  constexpr size_t kEnd = sizeof(BlockLimitsPage) - sizeof(ThirdPartyPageHeader);
  return limits->length >= kEnd ? uint32_t{limits->transfer_lbas_max} : 0;
}

std::expected<TokenLimits, std::string> derive_token_limits(const TokenParameters& parameters,
                                                            uint32_t transfer_lbas_max,
                                                            uint32_t lba_bytes) {
  const bool commands = parameters.populate && parameters.write && parameters.information;
  // The limits are mandatory where there is token copy, so they are a sign of it by themselves.
  if (parameters.has_commands ? !commands : !parameters.has_limits) {
    return std::unexpected("has no token copy (VPD 0x8F)");
  }
  const uint64_t lbas_per_block = kBlockBytes / lba_bytes;
  uint64_t operation_lbas = kOperationBlocksMax * lbas_per_block;
  uint64_t range_lbas = operation_lbas;
  if (parameters.token_lbas_max != 0) {
    operation_lbas = std::min(operation_lbas, parameters.token_lbas_max);
  }
  if (parameters.optimal_lbas != 0) {
    // Beyond it the disk is slow. Less than a block is no advice to follow.
    operation_lbas = std::min(operation_lbas, std::max(parameters.optimal_lbas, lbas_per_block));
  }
  if (transfer_lbas_max != 0) range_lbas = std::min<uint64_t>(range_lbas, transfer_lbas_max);
  range_lbas = std::min(range_lbas, operation_lbas);
  if (range_lbas < lbas_per_block) return std::unexpected("has a token limit below one block");

  TokenLimits limits;
  limits.ranges_max = parameters.ranges_max != 0
                          ? std::min<uint32_t>(parameters.ranges_max, kRangesMax)
                          : kRangesDefault;
  limits.range_blocks_max = range_lbas / lbas_per_block;
  // The target run, too, must fit in so many ranges.
  limits.operation_blocks_max =
      std::min(operation_lbas / lbas_per_block, limits.ranges_max * limits.range_blocks_max);
  limits.inactivity_s = std::min(parameters.inactivity_max_s, kInactivitySeconds);
  limits.in_flight_max = parameters.copies_total != 0
                             ? std::clamp(parameters.copies_total, kInFlightMin, kInFlightMax)
                             : kInFlightDefault;
  return limits;
}

}  // namespace cofs
