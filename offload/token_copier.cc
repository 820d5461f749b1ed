#include "offload/token_copier.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include "offload/base/units.h"
#include "offload/scsi_exchange.h"

namespace cofs {

namespace {

using std::chrono::milliseconds;

// A disk that moves less with each command than this many make up is not worth the commands.
constexpr int kWritesMax = 64;
constexpr milliseconds kUpdateDelayMin{1};
constexpr milliseconds kUpdateDelayMax{1000};
// After COPY OPERATION ABORT, until an operation that still runs counts as out of control.
constexpr milliseconds kAbortWait{5000};

// What remains of the ranges after the first `lbas`.
std::vector<LbaRange> ranges_after(std::span<const LbaRange> ranges, uint64_t lbas) {
  std::vector<LbaRange> rest;
  for (LbaRange range : ranges) {
    const uint64_t skipped = std::min(lbas, range.lbas);
    lbas -= skipped;
    range.lba += skipped;
    range.lbas -= skipped;
    if (range.lbas != 0) rest.push_back(range);
  }
  return rest;
}

std::vector<LbaRange> pieces_of(LbaRange range, uint64_t piece_lbas) {
  std::vector<LbaRange> pieces;
  while (range.lbas != 0) {
    const uint64_t lbas = std::min(range.lbas, piece_lbas);
    pieces.push_back({.lba = range.lba, .lbas = lbas});
    range.lba += lbas;
    range.lbas -= lbas;
  }
  return pieces;
}

uint64_t sum_of(std::span<const LbaRange> ranges) {
  uint64_t sum = 0;
  for (const LbaRange& range : ranges) sum += range.lbas;
  return sum;
}

Error error_of(const TokenInformation& information) {
  if (information.progress == TokenProgress::kTerminated) {
    return Error(Code::kIo, "device terminated the copy");
  }
  if (information.progress == TokenProgress::kUnknown) {
    return Error(Code::kIo, "unknown copy status");
  }
  if (information.sense) return error_of_sense(*information.sense);
  return Error(Code::kIo, "copy done with errors");
}

}  // namespace

std::expected<TokenCopier::Disk, std::string> TokenCopier::probe_disk(
    const StackDisk& stack_disk, std::shared_ptr<ScsiTransport> transport) {
  auto scsi = identify_scsi_disk(stack_disk, std::move(transport));
  if (!scsi) return std::unexpected(scsi.error());
  Disk disk;
  disk.scsi = *std::move(scsi);
  const auto page = read_vital_page(*disk.scsi.transport, kPageThirdPartyCopy);
  if (!page) {
    return std::unexpected(fmt::format("{} has no third-party copy page (VPD 0x8F): {}",
                                       disk.scsi.name, page.error().what));
  }
  const auto parameters = parse_third_party_page(*page);
  if (!parameters) {
    return std::unexpected(disk.scsi.name + " sends a wrong third-party copy page (VPD 0x8F)");
  }
  // Not every disk has this page; one that has not sets no limit by it.
  const auto block_limits = read_vital_page(*disk.scsi.transport, kPageBlockLimits);
  const uint32_t transfer_lbas_max = block_limits ? parse_transfer_limit(*block_limits) : 0;
  const auto limits = derive_token_limits(*parameters, transfer_lbas_max, disk.scsi.lba_bytes);
  if (!limits) return std::unexpected(disk.scsi.name + " " + limits.error());
  disk.limits = *limits;
  return disk;
}

std::expected<std::unique_ptr<TokenCopier>, std::string> TokenCopier::probe(
    const DeviceStack& stack, uint64_t block_count,
    std::vector<std::shared_ptr<ScsiTransport>> disks, RequestSink& sink) {
  COFS_ASSERT(disks.size() == stack.disks.size());
  if (disks.empty()) return std::unexpected("token: the target lies on no disk");
  std::unique_ptr<TokenCopier> copier(new TokenCopier(stack, sink));
  for (size_t i = 0; i < disks.size(); i++) {
    auto disk = probe_disk(stack.disks[i], std::move(disks[i]));
    if (!disk) return std::unexpected("token: " + disk.error());
    copier->disks_.push_back(*std::move(disk));
  }
  copier->set_limits(block_count);
  return copier;
}

TokenCopier::TokenCopier(const DeviceStack& stack, RequestSink& sink)
    : stack_(stack), sink_(sink), next_list_id_(std::random_device{}()) {}

// What all disks can do, and the threads for it.
void TokenCopier::set_limits(uint64_t block_count) {
  TokenLimits common = disks_.front().limits;
  for (const Disk& disk : disks_) {
    common.ranges_max = std::min(common.ranges_max, disk.limits.ranges_max);
    common.range_blocks_max = std::min(common.range_blocks_max, disk.limits.range_blocks_max);
    common.operation_blocks_max =
        std::min(common.operation_blocks_max, disk.limits.operation_blocks_max);
    common.in_flight_max = std::min(common.in_flight_max, disk.limits.in_flight_max);
  }
  limits_.path = CopyPath::kDevice;
  limits_.engine = "token";
  limits_.ranges_max = common.ranges_max;
  limits_.range_blocks_max = common.range_blocks_max;
  limits_.operation_blocks_max = common.operation_blocks_max;
  limits_.in_flight_max = common.in_flight_max;
  limits_.regions = stack_.copy_regions(block_count);
  workers_ = std::make_unique<WorkerThreads>("cofs-token", limits_.in_flight_max,
                                             [this](IoRequest& request) { serve(request); });
}

void TokenCopier::start(IoRequest& request) {
  workers_->submit(request);
}

void TokenCopier::serve(IoRequest& request) {
  request.good_blocks = 0;
  request.result = copy(request);
  if (!request.result) request.result.error().where = request.range.start + request.good_blocks;
  IoRequest* done = &request;
  sink_.finished({&done, 1});
}

Result<> TokenCopier::copy(IoRequest& request) {
  const auto target = stack_.locate(request.range);
  if (!target) return fail(Code::kNotSupported, "target is not on one disk");
  const Disk& disk = disks_[target->disk];
  const uint64_t lbas_per_block = disk.scsi.lbas_per_block();
  COFS_ASSERT(request.sources.size() <= disk.limits.ranges_max);
  COFS_ASSERT(request.range.count <= disk.limits.operation_blocks_max);
  std::vector<LbaRange> sources;
  sources.reserve(request.sources.size());
  for (const BlockRange& source : request.sources) {
    const auto place = stack_.locate(source);
    if (!place || place->disk != target->disk) {
      return fail(Code::kNotSupported, "source is not on the target's disk");
    }
    sources.push_back(
        {.lba = place->byte / disk.scsi.lba_bytes, .lbas = source.count * lbas_per_block});
  }

  const uint64_t target_lba = target->byte / disk.scsi.lba_bytes;
  const uint64_t total = request.range.count * lbas_per_block;
  const milliseconds timeout = scsi_timeout(request.timeout_ns);
  uint64_t done = 0;  // LBAs of whole blocks
  int writes = 0;
  while (done < total) {
    const auto token = populate(disk, ranges_after(sources, done), timeout);
    COFS_TRY(token);
    const uint64_t covered = token->lbas / lbas_per_block * lbas_per_block;
    if (covered == 0) return fail(Code::kIo, "token covers less than a block");
    for (uint64_t offset = 0; offset < covered;) {
      if (writes++ == kWritesMax) return fail(Code::kIo, "device copies too little at a time");
      const LbaRange run{.lba = target_lba + done, .lbas = covered - offset};
      const Written written = write(disk, *token, offset, run, timeout);
      const uint64_t whole = written.lbas / lbas_per_block * lbas_per_block;
      offset += whole;
      done += whole;
      request.good_blocks = done / lbas_per_block;
      COFS_TRY(written.result);
      if (whole == 0) return fail(Code::kIo, "device copied less than a block");
    }
  }
  return {};
}

Result<TokenCopier::Token> TokenCopier::populate(const Disk& disk,
                                                 std::span<const LbaRange> sources,
                                                 milliseconds timeout) {
  const uint32_t list_id = next_list_id_.fetch_add(1, std::memory_order_relaxed);
  const std::vector<uint8_t> list = encode_populate_list(disk.limits.inactivity_s, sources);
  ScsiCommand command = populate_command(list_id, list);
  command.timeout = timeout;
  const auto sent = exchange(*disk.scsi.transport, command);
  const auto information =
      sent ? wait_until_done(disk, kPopulateToken, list_id, timeout) : fail(sent.error());
  if (!information) {
    // One that is out of control only reads: nothing is in doubt.
    const Error& error = information.error();
    return fail(error.code == Code::kTimedOut ? Code::kIo : error.code, error.what);
  }
  if (information->progress != TokenProgress::kDone &&
      information->progress != TokenProgress::kDoneShort) {
    return fail(error_of(*information));
  }
  if (!information->token) return fail(Code::kIo, "device gave no token");
  return Token{.bytes = *information->token, .lbas = std::min(information->lbas, sum_of(sources))};
}

TokenCopier::Written TokenCopier::write(const Disk& disk, const Token& token, uint64_t offset,
                                        LbaRange target, milliseconds timeout) {
  const uint32_t list_id = next_list_id_.fetch_add(1, std::memory_order_relaxed);
  const uint64_t piece_lbas = disk.limits.range_blocks_max * disk.scsi.lbas_per_block();
  const std::vector<LbaRange> pieces = pieces_of(target, piece_lbas);
  const std::vector<uint8_t> list = encode_write_list(token.bytes, offset, pieces);
  ScsiCommand command = write_command(list_id, list);
  command.timeout = timeout;
  const auto sent = exchange(*disk.scsi.transport, command);
  if (!sent) return after_failure(disk, list_id, target, sent.error());
  const auto information = wait_until_done(disk, kWriteUsingToken, list_id, timeout);
  if (!information) return {.lbas = 0, .result = fail(information.error())};
  Written written;
  written.lbas = std::min(information->lbas, target.lbas);
  if (information->progress != TokenProgress::kDone &&
      information->progress != TokenProgress::kDoneShort) {
    // The count of an operation that was terminated, or ended nobody knows how, is not believed.
    if (information->progress != TokenProgress::kDoneWithErrors) written.lbas = 0;
    written.result = fail(error_of(*information));
  }
  return written;
}

// The disk may know how far a failed command came. It may also go on with one that the kernel has
// aborted.
TokenCopier::Written TokenCopier::after_failure(const Disk& disk, uint32_t list_id, LbaRange target,
                                                const Error& error) {
  auto information = ask(disk, kWriteUsingToken, list_id);
  if (information && information->progress == TokenProgress::kRunning) {
    information = wait_until_done(disk, kWriteUsingToken, list_id, milliseconds{0});
    if (!information) return {.lbas = 0, .result = fail(information.error())};
  }
  const bool counted = information && (information->progress == TokenProgress::kDoneWithErrors ||
                                       information->progress == TokenProgress::kDoneShort);
  return {.lbas = counted ? std::min(information->lbas, target.lbas) : 0, .result = fail(error)};
}

Result<TokenInformation> TokenCopier::ask(const Disk& disk, uint8_t action, uint32_t list_id) {
  std::array<uint8_t, kTokenInformationBytesMax> data{};
  ScsiCommand question = information_command(list_id, data);
  question.timeout = kScsiQuestionTimeout;
  const auto received = exchange(*disk.scsi.transport, question);
  if (!received) return fail(Code::kIo, received.error().what);
  auto information = parse_token_information(std::span(data).first(*received), disk.scsi.lba_bytes);
  if (!information || information->action != action) {
    return fail(Code::kIo, "no usable information about the copy");
  }
  return *std::move(information);
}

// Asks until the operation has ended, in whatever way. Errors: kTimedOut (it may still go on), kIo.
Result<TokenInformation> TokenCopier::wait_until_done(const Disk& disk, uint8_t action,
                                                      uint32_t list_id, milliseconds timeout) {
  bool running = false;
  bool aborted = false;
  milliseconds waited{0};
  while (true) {
    const auto information = ask(disk, action, list_id);
    if (!information) {
      if (running) return fail(Code::kTimedOut, "copy went on, then could not be asked about");
      return fail(information.error());
    }
    if (information->progress != TokenProgress::kRunning) {
      if (aborted) return fail(Code::kIo, "aborted after its timeout");
      return *information;
    }
    running = true;
    if (waited >= timeout) {
      if (aborted) return fail(Code::kTimedOut, "copy goes on after it was aborted");
      ScsiCommand abort = abort_command(list_id);
      abort.timeout = kScsiQuestionTimeout;
      // Whether it took effect shows in what is asked next.
      (void)exchange(*disk.scsi.transport, abort);
      aborted = true;
      waited = milliseconds{0};
      timeout = kAbortWait;
    }
    const milliseconds pause =
        std::clamp(milliseconds{information->update_delay_ms}, kUpdateDelayMin, kUpdateDelayMax);
    disk.scsi.transport->pause(pause);
    waited += pause;
  }
}

}  // namespace cofs
