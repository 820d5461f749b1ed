#include "offload/xcopy_copier.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "offload/scsi_exchange.h"

namespace cofs {

namespace {

// A copy of no blocks from the disk's first block to itself.
Result<> copy_nothing(const ScsiDisk& disk, XcopyListId list_id_use, bool two_cscds) {
  const XcopyList list{.list_id_use = list_id_use,
                       .list_id = static_cast<uint8_t>(list_id_use == XcopyListId::kNone ? 0 : 1),
                       .two_cscds = two_cscds};
  const XcopySegment segment{};
  const std::vector<uint8_t> bytes = encode_xcopy_list(list, disk, {&segment, 1});
  ScsiCommand command = xcopy_command(bytes);
  command.timeout = kScsiQuestionTimeout;
  const auto sent = exchange(*disk.transport, command);
  if (!sent) return fail(sent.error());
  return {};
}

}  // namespace

std::expected<XcopyCopier::Disk, std::string> XcopyCopier::probe_disk(
    const StackDisk& stack_disk, std::shared_ptr<ScsiTransport> transport) {
  auto scsi = identify_scsi_disk(stack_disk, std::move(transport));
  if (!scsi) return std::unexpected(scsi.error());
  Disk disk;
  disk.scsi = *std::move(scsi);
  const auto parameters = read_operating_parameters(*disk.scsi.transport);
  if (!parameters) {
    return std::unexpected(fmt::format("{} refuses RECEIVE COPY OPERATING PARAMETERS: {}",
                                       disk.scsi.name, parameters.error().what));
  }
  const auto limits = derive_xcopy_limits(*parameters, disk.scsi.lba_bytes);
  if (!limits) return std::unexpected(disk.scsi.name + " " + limits.error());
  disk.limits = *limits;

  // Source and target are one disk; naming it once is enough for most.
  auto copied = copy_nothing(disk.scsi, disk.limits.list_id, false);
  if (!copied && disk.limits.two_cscds) {
    disk.two_cscds = true;
    const auto again = copy_nothing(disk.scsi, disk.limits.list_id, true);
    if (again) copied = {};
  }
  if (!copied) {
    return std::unexpected(
        fmt::format("{} refuses EXTENDED COPY: {}", disk.scsi.name, copied.error().what));
  }
  return disk;
}

std::expected<std::unique_ptr<XcopyCopier>, std::string> XcopyCopier::probe(
    const DeviceStack& stack, uint64_t block_count,
    std::vector<std::shared_ptr<ScsiTransport>> disks, RequestSink& sink) {
  COFS_ASSERT(disks.size() == stack.disks.size());
  if (disks.empty()) return std::unexpected("xcopy: the target lies on no disk");
  std::unique_ptr<XcopyCopier> copier(new XcopyCopier(stack, sink));
  for (size_t i = 0; i < disks.size(); i++) {
    auto disk = probe_disk(stack.disks[i], std::move(disks[i]));
    if (!disk) return std::unexpected("xcopy: " + disk.error());
    copier->disks_.push_back(*std::move(disk));
  }
  copier->set_limits(block_count);
  return copier;
}

XcopyCopier::XcopyCopier(const DeviceStack& stack, RequestSink& sink)
    : stack_(stack), sink_(sink) {}

// What all disks can do, and the threads for it.
void XcopyCopier::set_limits(uint64_t block_count) {
  XcopyLimits common = disks_.front().limits;
  for (const Disk& disk : disks_) {
    common.segments_max = std::min(common.segments_max, disk.limits.segments_max);
    common.segment_blocks_max = std::min(common.segment_blocks_max, disk.limits.segment_blocks_max);
    common.command_blocks_max = std::min(common.command_blocks_max, disk.limits.command_blocks_max);
    common.in_flight_max = std::min(common.in_flight_max, disk.limits.in_flight_max);
  }
  limits_.path = CopyPath::kDevice;
  limits_.engine = "xcopy";
  limits_.ranges_max = common.segments_max;
  limits_.range_blocks_max = common.segment_blocks_max;
  limits_.operation_blocks_max = common.command_blocks_max;
  limits_.in_flight_max = common.in_flight_max;
  limits_.regions = stack_.copy_regions(block_count);
  for (uint32_t i = limits_.in_flight_max; i > 0; i--) {
    free_list_ids_.push_back(static_cast<uint8_t>(i));
  }
  workers_ = std::make_unique<WorkerThreads>("cofs-xcopy", limits_.in_flight_max,
                                             [this](IoRequest& request) { serve(request); });
}

XcopyCopier::ListId::ListId(XcopyCopier& copier, const Disk& disk) : copier_(copier), disk_(disk) {
  if (disk_.limits.list_id == XcopyListId::kNone) return;
  std::lock_guard lock(copier_.mutex_);
  COFS_ASSERT(!copier_.free_list_ids_.empty());  // there is one for each thread
  number_ = copier_.free_list_ids_.back();
  copier_.free_list_ids_.pop_back();
}

XcopyCopier::ListId::~ListId() {
  if (number_ == 0) return;
  std::lock_guard lock(copier_.mutex_);
  copier_.free_list_ids_.push_back(number_);
}

XcopyList XcopyCopier::ListId::list() const {
  return {.list_id_use = disk_.limits.list_id, .list_id = number_, .two_cscds = disk_.two_cscds};
}

void XcopyCopier::start(IoRequest& request) {
  workers_->submit(request);
}

void XcopyCopier::serve(IoRequest& request) {
  request.result = copy(request);
  request.good_blocks = request.result ? request.range.count : 0;
  IoRequest* done = &request;
  sink_.finished({&done, 1});
}

Result<> XcopyCopier::copy(const IoRequest& request) {
  const auto target = stack_.locate(request.range);
  if (!target) return fail(Code::kNotSupported, "target is not on one disk", request.range.start);
  const Disk& disk = disks_[target->disk];
  const uint64_t lbas_per_block = disk.scsi.lbas_per_block();
  COFS_ASSERT(request.sources.size() <= disk.limits.segments_max);

  std::vector<XcopySegment> segments;
  segments.reserve(request.sources.size());
  uint64_t target_lba = target->byte / disk.scsi.lba_bytes;
  for (const BlockRange& source : request.sources) {
    const auto place = stack_.locate(source);
    if (!place || place->disk != target->disk) {
      return fail(Code::kNotSupported, "source is not on the target's disk", source.start);
    }
    COFS_ASSERT(source.count <= disk.limits.segment_blocks_max);
    const uint64_t lbas = source.count * lbas_per_block;
    segments.push_back({.source_lba = place->byte / disk.scsi.lba_bytes,
                        .target_lba = target_lba,
                        .lbas = static_cast<uint16_t>(lbas)});
    target_lba += lbas;
  }
  const ListId list_id(*this, disk);
  const std::vector<uint8_t> list = encode_xcopy_list(list_id.list(), disk.scsi, segments);
  ScsiCommand command = xcopy_command(list);
  command.timeout = scsi_timeout(request.timeout_ns);
  const auto sent = exchange(*disk.scsi.transport, command);
  if (!sent) return fail(sent.error().code, sent.error().what, request.range.start);
  return {};
}

}  // namespace cofs
