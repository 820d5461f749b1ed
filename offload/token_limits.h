// What a disk says of its token copy (VPD 0x8F, 0xB0), and what follows for copies in 4 KiB blocks.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>

namespace cofs {

// The Third-party Copy page, as sent. Zero: not reported.
struct TokenParameters {
  bool has_commands = false;  // it tells which commands there are; these:
  bool populate = false;
  bool write = false;
  bool information = false;
  bool has_limits = false;
  uint16_t ranges_max = 0;
  uint32_t inactivity_max_s = 0;
  uint64_t token_lbas_max = 0;
  uint64_t optimal_lbas = 0;
  uint32_t copies_total = 0;
};
std::optional<TokenParameters> parse_third_party_page(std::span<const uint8_t> page);

// Logical blocks that one range may have (VPD 0xB0); 0 where it is not reported.
uint32_t parse_transfer_limit(std::span<const uint8_t> page);

struct TokenLimits {
  uint32_t ranges_max = 0;            // of one command
  uint64_t range_blocks_max = 0;      // 4 KiB blocks
  uint64_t operation_blocks_max = 0;  // 4 KiB blocks
  uint32_t inactivity_s = 0;          // to ask for; 0: the disk's default
  uint32_t in_flight_max = 0;
};

// The error is a reason without engine and disk: "has no token copy (VPD 0x8F)".
std::expected<TokenLimits, std::string> derive_token_limits(const TokenParameters& parameters,
                                                            uint32_t transfer_lbas_max,
                                                            uint32_t lba_bytes);

}  // namespace cofs
