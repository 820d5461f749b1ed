#include "tools/statistics_text.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "offload/file_device.h"
#include "tools/command_line.h"

namespace cofs {

namespace {

using Json = nlohmann::ordered_json;

uint64_t bytes_by(const CopyCounters& counters, CopyPath path) {
  return counters.bytes[static_cast<size_t>(path)];
}
uint64_t operations_by(const CopyCounters& counters, CopyPath path) {
  return counters.operations[static_cast<size_t>(path)];
}

Json refused_figures(const CopyCounters& counters) {
  Json refused = Json::object();
  for (const auto& [reason, count] : counters.refused) refused[reason] = count;
  return refused;
}

Json copy_figures(const FileSystem& fs, const Store& store) {
  const CopyCounters& counters = store.copy_counters();
  Json engines = Json::object();
  Json rates = Json::object();
  for (size_t i = 0; i < kRateClasses; i++) {
    const std::string ranges = "ranges of " + size_text(bytes_of_blocks(kRateRangeBlocks[i]));
    engines[ranges] = store.copy_engine_for(kRateRangeBlocks[i]);
    for (const CopyRate& rate : store.copy_rates().engines) {
      rates[rate.engine + ", " + ranges] = rate.bytes_per_second[i];
    }
  }
  return {{"engine", engines},
          {"rate_bytes_per_second", rates},
          {"verified_bytes", store.counters().copy_verified_bytes},
          {"verify_failures", store.counters().copy_verify_failures},
          {"device_bytes", bytes_by(counters, CopyPath::kDevice)},
          {"hostfile_bytes", bytes_by(counters, CopyPath::kHostFile)},
          {"shared_bytes", fs.shared_bytes()},
          {"shares", store.counters().shares},
          {"host_bytes", bytes_by(counters, CopyPath::kHost)},
          {"device_commands", operations_by(counters, CopyPath::kDevice)},
          {"hostfile_calls", operations_by(counters, CopyPath::kHostFile)},
          {"host_operations", operations_by(counters, CopyPath::kHost)},
          {"refused", refused_figures(counters)}};
}

// "classes" add up to device_bytes, "room" to those of them that can be written.
Json space_figures(const SpaceReport& space) {
  const Json classes = {{"live_data_bytes", bytes_of_blocks(space.live_data_blocks)},
                        {"node_bytes", bytes_of_blocks(space.node_blocks)},
                        {"dead_winnable_bytes", bytes_of_blocks(space.winnable_blocks)},
                        {"dead_fixed_bytes", bytes_of_blocks(space.fixed_blocks)},
                        {"waiting_bytes", bytes_of_blocks(space.waiting_blocks)},
                        {"unused_bytes", bytes_of_blocks(space.unused_blocks)},
                        {"outside_bytes", bytes_of_blocks(space.outside_blocks)}};
  const Json room = {{"available_bytes", bytes_of_blocks(space.available_blocks)},
                     {"over_provisioned_bytes", bytes_of_blocks(space.over_provisioned_blocks)},
                     {"promised_bytes", bytes_of_blocks(space.promised_blocks)},
                     {"delete_reserve_bytes", bytes_of_blocks(space.delete_reserve)},
                     {"preallocated_bytes", bytes_of_blocks(space.preallocated_blocks)},
                     {"gc_reserve_bytes", bytes_of_blocks(space.gc_reserve)},
                     {"growth_reserve_bytes", bytes_of_blocks(space.growth_reserve)},
                     {"node_reserve_bytes", bytes_of_blocks(space.node_reserve)},
                     {"log_reserve_bytes", bytes_of_blocks(space.log_reserve)},
                     {"checkpoint_reserve_bytes", bytes_of_blocks(space.checkpoint_reserve)},
                     {"framing_bytes", bytes_of_blocks(space.framing_blocks)}};
  return {{"total_bytes", bytes_of_blocks(space.total_blocks)},
          {"live_bytes", bytes_of_blocks(space.live_data_blocks)},
          {"shared_bytes", bytes_of_blocks(space.shared_blocks)},  // of live_bytes
          {"saved_bytes", bytes_of_blocks(space.extra_references)},  // what copies would take instead
          {"free_bytes", bytes_of_blocks(space.free_blocks)},
          {"available_bytes", bytes_of_blocks(space.available_blocks)},
          {"dead_bytes", bytes_of_blocks(space.dead_blocks)},
          {"winnable_bytes", bytes_of_blocks(space.winnable_blocks)},
          {"node_bytes", bytes_of_blocks(space.node_blocks)},
          {"reserved_bytes", bytes_of_blocks(space.reserved_blocks)},
          {"device_bytes", bytes_of_blocks(space.device_blocks)},
          {"classes", classes},
          {"room_bytes", bytes_of_blocks(space.room_blocks)},
          {"room", room},
          {"segments", space.segment_count},
          {"free_segments", space.free_segments},
          {"waiting_segments", space.waiting_segments},
          {"inodes", space.inode_count}};
}

Json volume_figures(const VolumeInfo& info, const Store& store) {
  return {{"label", info.label},
          {"uuid", info.uuid},
          {"size_bytes", bytes_of_blocks(info.block_count)},
          {"segment_bytes", bytes_of_blocks(info.segment_blocks)},
          {"node_bytes", info.node_bytes},
          {"metadata_copies", info.metadata_copies},
          {"over_provision_percent", info.over_provision_percent},
          {"mount_count", info.mount_count},
          {"was_clean", info.was_clean},
          {"replayed_commits", info.replayed_commits},
          {"replayed_log_bytes", info.replayed_log_bytes},
          {"read_only", store.read_only()},
          {"shut_down", store.shut_down()}};
}

// Whether what is written becomes durable.
Json writing_figures(const Store& store) {
  const StallReport stall = store.stall();
  const std::string_view state = store.shut_down() ? "stopped" : stall.stalled ? "stalled" : "ok";
  Json figures = {{"state", state}, {"stalls", stall.count}};
  if (stall.stalled) figures["stalled_for_seconds"] = stall.seconds;
  if (stall.count != 0) {
    figures["last_stall_seconds"] = stall.since.seconds;  // since 1970, when it began
    figures["last_stall_error"] = describe(stall.error);
  }
  return figures;
}

Json scrub_figures(const ScrubTotals& totals) {
  return {{"runs", totals.runs},
          {"bytes", totals.bytes},
          {"errors", totals.errors},
          {"repaired", totals.repaired},
          {"last_end_seconds", totals.last_end}};
}

Json memory_figures(FileSystem& fs) {
  const BufferPool& buffers = fs.environment().buffers;
  const MemoryReport memory = fs.store().memory();
  return {{"buffer_bytes", buffers.bytes_in_use()},
          {"buffer_bytes_held", buffers.bytes_held()},
          {"node_bytes", memory.node_bytes},
          {"dirty_nodes", memory.dirty_nodes},
          {"frozen_nodes", memory.frozen_nodes},
          {"pending_bytes", memory.pending_bytes},
          {"inodes", fs.inodes_in_memory()}};
}

// By these a program knows what it may ask of the mount.
Json session_figures(const FuseServer& server) {
  const SessionFeatures features = server.features();
  const RequestPoller::Counters polling = server.poller().counters();
  return {{"library", fuse_library()},
          {"protocol", fmt::format("{}.{}", features.protocol_major, features.protocol_minor)},
          {"transport", server.uses_ring() ? "io_uring" : "/dev/fuse"},
          {"kills_privileges", features.kills_privileges},
          {"unnamed_files", features.unnamed_files},
          {"statx", features.statx},
          {"copies_64", features.copies_64},
          {"hears_of_sync", server.hears_of_sync()},
          {"polling_periods", polling.periods},
          {"polled_requests", polling.requests},
          {"gathering_periods", polling.gatherings},
          {"gathered_requests", polling.gathered},
          {"requests", server.requests_seen()}};
}

Json request_figures(const FuseServer& server) {
  Json figures = Json::object();
  for (const auto& [name, count] : server.request_counts().seen()) figures[std::string(name)] = count;
  return figures;
}

}  // namespace

std::string statistics_text(FileSystem& fs, const FuseServer& server) {
  const Store& store = fs.store();
  const StoreCounters& counters = store.counters();
  double amplification = 0;
  if (counters.data_bytes != 0) {
    // What the device wrote for it, whoever moved it.
    const uint64_t written = counters.write_bytes + counters.gc_device_bytes + counters.gc_host_bytes;
    amplification = static_cast<double>(written) / static_cast<double>(counters.data_bytes);
  }
  Json text = {
      {"volume", volume_figures(store.info(), store)},
      {"writing", writing_figures(store)},
      {"space", space_figures(store.space())},
      {"io",
       {{"read_bytes", counters.read_bytes},
        {"writes", counters.writes},
        {"write_bytes", counters.write_bytes},
        {"data_bytes", counters.data_bytes},
        {"log_bytes", counters.log_bytes},
        {"node_bytes", counters.node_bytes},
        {"discarded_bytes", counters.discarded_bytes},
        {"trimmed_bytes", counters.trimmed_bytes},
        {"segments_freed", counters.segments_freed},
        {"flushes", counters.flushes},
        {"durable_writes", counters.durable_writes},
        {"polled_writes", server.options().device->counters().polled},
        {"commits", counters.commits},
        {"checkpoints", counters.checkpoints},
        {"checkpoint_waits", counters.checkpoint_waits},
        {"checksum_failures", counters.checksum_failures}}},
      {"copy", copy_figures(fs, store)},
      {"gc",
       {{"relocated_bytes", counters.gc_relocated_bytes},
        {"device_bytes", counters.gc_device_bytes},
        {"host_bytes", counters.gc_host_bytes},
        {"device_commands", operations_by(store.gc_copy_counters(), CopyPath::kDevice)},
        {"refused", refused_figures(store.gc_copy_counters())},
        {"segments_freed", counters.gc_segments_freed},
        {"victims", counters.gc_victims},
        {"skipped", counters.gc_skipped},
        {"waits", counters.gc_waits},
        {"stalls", counters.gc_stalls},
        {"nodes_cleaned", counters.nodes_cleaned}}},
      {"scrub", scrub_figures(fs.jobs().scrub_totals())},
      {"fuse", session_figures(server)},
      {"requests", request_figures(server)},
      {"memory", memory_figures(fs)},
      {"write_amplification", std::round(amplification * 1000) / 1000}};
  // A label may hold any bytes.
  return text.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace cofs
