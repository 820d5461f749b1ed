// XcopyCopier: copies within SCSI disks by EXTENDED COPY(LID1), one command per operation, one
// segment per source range.
//
// A command blocks the thread that sends it; each operation in flight has a thread of its own. A
// command that fails says nothing about what it has copied, so all of it counts as not copied;
// repeating it is harmless. Like a write, a copy is durable after the next flush.
#pragma once

#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "offload/device_copier.h"
#include "offload/device_stack.h"
#include "offload/scsi_disk.h"
#include "offload/scsi_transport.h"
#include "offload/worker_threads.h"
#include "offload/xcopy_limits.h"
#include "offload/xcopy_list.h"

namespace cofs {

class XcopyCopier final : public DeviceCopier {
 public:
  // The error is the reason for a person, one line, beginning with "xcopy: " ("xcopy: sda has no
  // third-party copy (3PC is 0)"). `disks[i]` talks to stack.disks[i]; owned from now on. Each disk
  // is sent one copy of no blocks, which shows what only a copy command can: that the disk knows
  // itself by the name it gave. Nothing is written. `sink` must outlive the copier.
  static std::expected<std::unique_ptr<XcopyCopier>, std::string> probe(
      const DeviceStack& stack, uint64_t block_count,
      std::vector<std::shared_ptr<ScsiTransport>> disks, RequestSink& sink);

  const CopyLimits& limits() const override { return limits_; }
  void start(IoRequest& request) override;

 private:
  struct Disk {
    ScsiDisk scsi;
    XcopyLimits limits;
    bool two_cscds = false;
  };
  // A list identifier that no other command in flight has. One byte is enough for all of them.
  class ListId {
   public:
    ListId(XcopyCopier& copier, const Disk& disk);
    ~ListId();
    ListId(const ListId&) = delete;
    XcopyList list() const;

   private:
    XcopyCopier& copier_;
    const Disk& disk_;
    uint8_t number_ = 0;
  };

  XcopyCopier(const DeviceStack& stack, RequestSink& sink);
  static std::expected<Disk, std::string> probe_disk(const StackDisk& stack_disk,
                                                     std::shared_ptr<ScsiTransport> transport);
  void set_limits(uint64_t block_count);
  void serve(IoRequest& request);
  Result<> copy(const IoRequest& request);

  DeviceStack stack_;
  RequestSink& sink_;
  std::vector<Disk> disks_;  // as stack_.disks
  CopyLimits limits_;
  std::mutex mutex_;
  std::vector<uint8_t> free_list_ids_;  // guarded by mutex_
  std::unique_ptr<WorkerThreads> workers_;
};

}  // namespace cofs
