// TokenCopier: copies within SCSI disks by POPULATE TOKEN and WRITE USING TOKEN (ODX): the disk
// gives a token for the source ranges, and writes what it stands for to the target.
//
// A disk may do less than asked, with the token or with the write: the rest is asked for again, and
// what was written counts. Tokens expire and are revoked; that is an error like any other, after
// which the caller takes another way. Each operation in flight has a thread of its own. Like a
// write, a copy is durable after the next flush.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "offload/device_copier.h"
#include "offload/device_stack.h"
#include "offload/scsi_disk.h"
#include "offload/scsi_transport.h"
#include "offload/token_limits.h"
#include "offload/token_list.h"
#include "offload/worker_threads.h"

namespace cofs {

class TokenCopier final : public DeviceCopier {
 public:
  // The error is the reason for a person, one line, beginning with "token: " ("token: sda has no
  // token copy (VPD 0x8F)"). `disks[i]` talks to stack.disks[i]; owned from now on. Only asks,
  // writes nothing. `sink` must outlive the copier.
  static std::expected<std::unique_ptr<TokenCopier>, std::string> probe(
      const DeviceStack& stack, uint64_t block_count,
      std::vector<std::shared_ptr<ScsiTransport>> disks, RequestSink& sink);

  const CopyLimits& limits() const override { return limits_; }
  void start(IoRequest& request) override;

 private:
  struct Disk {
    ScsiDisk scsi;
    TokenLimits limits;
  };
  struct Token {
    RodToken bytes{};
    uint64_t lbas = 0;  // that it stands for, from the front of what was asked
  };
  struct Written {
    uint64_t lbas = 0;  // from the front
    Result<> result;
  };

  TokenCopier(const DeviceStack& stack, RequestSink& sink);
  static std::expected<Disk, std::string> probe_disk(const StackDisk& stack_disk,
                                                     std::shared_ptr<ScsiTransport> transport);
  void set_limits(uint64_t block_count);
  void serve(IoRequest& request);
  Result<> copy(IoRequest& request);
  Result<Token> populate(const Disk& disk, std::span<const LbaRange> sources,
                         std::chrono::milliseconds timeout);
  Written write(const Disk& disk, const Token& token, uint64_t offset, LbaRange target,
                std::chrono::milliseconds timeout);
  Written after_failure(const Disk& disk, uint32_t list_id, LbaRange target, const Error& error);
  Result<TokenInformation> ask(const Disk& disk, uint8_t action, uint32_t list_id);
  Result<TokenInformation> wait_until_done(const Disk& disk, uint8_t action, uint32_t list_id,
                                           std::chrono::milliseconds timeout);

  DeviceStack stack_;
  RequestSink& sink_;
  std::vector<Disk> disks_;  // as stack_.disks
  CopyLimits limits_;
  // Other programs may copy on the same disk; identifiers from a random start keep out of their
  // way.
  std::atomic<uint32_t> next_list_id_;
  std::unique_ptr<WorkerThreads> workers_;
};

}  // namespace cofs
