// The commands of token copy with their parameter lists, and what RECEIVE ROD TOKEN INFORMATION
// says.
//
// IMMED is never set: a command then ends when the copy has, and one that takes too long is aborted
// by the kernel like any other. A disk may still say "in progress" afterwards; callers look.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "offload/scsi_sense.h"
#include "offload/scsi_transport.h"
#include "offload/token_format.h"

namespace cofs {

// A run of logical blocks of a disk, at most 2^32 - 1 of them.
struct LbaRange {
  uint64_t lba = 0;
  uint64_t lbas = 0;
};

std::vector<uint8_t> encode_populate_list(uint32_t inactivity_s, std::span<const LbaRange> ranges);
// `offset`: logical blocks of the token's data to skip.
std::vector<uint8_t> encode_write_list(const RodToken& token, uint64_t offset,
                                       std::span<const LbaRange> ranges);

// `list` and `data` must live as long as the command.
ScsiCommand populate_command(uint32_t list_id, std::span<const uint8_t> list);
ScsiCommand write_command(uint32_t list_id, std::span<const uint8_t> list);
ScsiCommand information_command(uint32_t list_id, std::span<uint8_t> data);
ScsiCommand abort_command(uint32_t list_id);

enum class TokenProgress : uint8_t {
  kDone,
  kDoneWithErrors,
  kDoneShort,  // without errors, but less than asked
  kRunning,
  kTerminated,
  kUnknown,
};

struct TokenInformation {
  uint8_t action = 0;  // the service action that it is about
  TokenProgress progress = TokenProgress::kUnknown;
  uint32_t update_delay_ms = 0;
  uint64_t lbas = 0;  // transferred, from the front
  std::optional<ScsiSense> sense;
  std::optional<RodToken> token;
};
// Enough for all that one answer can have.
inline constexpr size_t kTokenInformationBytesMax = 1024;

// Nothing where the answer ends within its header.
std::optional<TokenInformation> parse_token_information(std::span<const uint8_t> data,
                                                        uint32_t lba_bytes);

}  // namespace cofs
