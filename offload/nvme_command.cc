#include "offload/nvme_command.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <optional>

#include "offload/nvme_status.h"

namespace cofs {

namespace {

constexpr uint64_t kNsPerMs = 1'000'000;

// Rounded up; the driver takes what is above 2^31 for no limit.
uint32_t timeout_ms_of(uint64_t timeout_ns) {
  uint64_t ms = timeout_ns / kNsPerMs + (timeout_ns % kNsPerMs != 0 ? 1 : 0);
  return static_cast<uint32_t>(std::min<uint64_t>(ms, INT32_MAX));
}

StackLocation locate(const DeviceStack& stack, BlockRange range) {
  std::optional<StackLocation> location = stack.locate(range);
  COFS_ASSERT(location.has_value());
  return *location;
}

}  // namespace

NvmeCommand::NvmeCommand(const DeviceStack& stack, std::span<const NvmeDestination> destinations,
                         std::span<NvmeSourceRange> list)
    : stack_(stack), destinations_(destinations), list_(list) {
  COFS_ASSERT(list_.size() >= kNvmeCopyRangesMax && destinations_.size() == stack_.disks.size());
}

void NvmeCommand::begin(IoRequest& request) {
  COFS_ASSERT(request.op == IoRequest::Op::kCopy && !request.sources.empty() &&
              request.sources.size() <= kNvmeCopyRangesMax);
  request_ = &request;
  retries_ = 0;
  StackLocation target = locate(stack_, request.range);
  uint32_t lba_bytes = stack_.disks[target.disk].lba_bytes;
  int lba_shift = std::countr_zero(lba_bytes);
  uint64_t blocks = 0;
  for (size_t i = 0; i < request.sources.size(); i++) {
    const BlockRange& source = request.sources[i];
    StackLocation location = locate(stack_, source);
    uint64_t lbas = bytes_of_blocks(source.count) >> lba_shift;
    COFS_ASSERT(location.disk == target.disk && lbas <= kNvmeCopyRangeLbasMax);
    list_[i] = encode_source_range({location.byte >> lba_shift, static_cast<uint32_t>(lbas)});
    blocks += source.count;
  }
  COFS_ASSERT(blocks == request.range.count);
  destination_ = destinations_[target.disk];
  command_ = encode_copy(destination_.namespace_id, target.byte >> lba_shift,
                         list_.first(request.sources.size()), timeout_ms_of(request.timeout_ns));
}

bool NvmeCommand::finish(const CommandCompletion& completion) {
  if (completion.outcome == -EAGAIN && ++retries_ <= kRetriesMax) return false;
  NvmeOutcome outcome =
      outcome_of(completion.outcome, static_cast<uint32_t>(completion.value), request_->sources);
  request_->good_blocks = outcome.good_blocks;
  request_->result = outcome.result;
  if (!request_->result) request_->result.error().where = request_->range.start;
  return true;
}

}  // namespace cofs
