// Device: what the store needs of storage, as awaitable requests in units of 4 KiB blocks.
//
// A request is a plain object in the awaiting coroutine's frame; submit() hands it over and the device
// posts its waiter when it is done. Many requests may be in flight; the device orders none of them.
// Durability: data is durable after a flush that was submitted after the write (or copy) completed, or when a write that
// asked for it succeeds (what NVMe and SCSI call FUA), which says nothing of other writes.
// Errors: kIo, kTimedOut (the request may still take effect), kInvalid for a range off the device.
#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "offload/base/buffer.h"
#include "offload/base/error.h"
#include "offload/base/executor.h"
#include "offload/base/units.h"

namespace cofs {

// A piece of block-aligned memory, a whole number of blocks.
struct MemoryPiece {
  std::byte* data = nullptr;
  uint32_t blocks = 0;
};

// The ways data can be copied without the host reading it. Each is one column of the counters.
enum class CopyPath : uint8_t {
  kDevice,    // a device command (NVMe Copy, SCSI EXTENDED COPY, token copy)
  kHostFile,  // the host filesystem clones or copies within the image file
  kHost,      // read and write by the host: always possible, never a Device operation
};
inline constexpr int kCopyPathCount = 3;
std::string_view name_of(CopyPath path);

// Blocks that one disk holds in one piece. A device may be put together of several (offload/device_stack.h).
struct CopyRegion {
  BlockRange blocks;
  uint32_t disk = 0;
};

// Limits of one copy operation of a device; a planner splits to fit. All blocks of an operation, sources
// and target, lie on one disk; each source range and the target run lie within one region each.
struct CopyLimits {
  CopyPath path = CopyPath::kDevice;
  std::string engine;               // "hostfile", "nvme", "xcopy", "token": its name in options and reports
  uint32_t ranges_max = 0;          // source ranges in one operation, at least 1
  uint64_t range_blocks_max = 0;    // blocks of one range, at least 1
  uint64_t operation_blocks_max = 0;  // blocks of one operation, at least 1
  uint32_t in_flight_max = 1;       // operations worth having in flight at once
  std::vector<CopyRegion> regions;  // ascending; what is in none cannot be copied. Empty: all is one
  bool automatic = true;            // false: used only where it is asked for by its name
};

struct DeviceGeometry {
  std::string name;                     // what the user named: a path
  uint64_t block_count = 0;             // whole 4 KiB blocks
  uint32_t lba_bytes = 512;             // the device's own unit
  bool is_block_device = false;
  bool can_discard = false;
  uint32_t discard_granularity_blocks = 1;
  std::vector<CopyLimits> copies;       // what it offers, best first; empty: none
  std::vector<std::string> copy_refusals;  // why an engine is not offered: "hostfile: ext4 cannot clone"
};

struct IoRequest {
  enum class Op : uint8_t { kRead, kWrite, kFlush, kDiscard, kCopy };

  Op op = Op::kRead;
  bool durable = false;                          // kWrite: is to be durable when it succeeds
  uint32_t copy_index = 0;                       // kCopy: which of geometry().copies
  BlockRange range;                              // on the device; kCopy: the target run
  std::span<const MemoryPiece> memory;           // kRead, kWrite: sums to range.count
  std::span<const BlockRange> sources;           // kCopy: in target order, sums to range.count
  uint64_t timeout_ns = 0;                       // kCopy: after which the driver gives up; 0: its default

  Result<> result;                               // set before the waiter runs
  uint64_t good_blocks = 0;                      // kCopy: known-good prefix of the target, also on error
  std::coroutine_handle<> waiter;
  // For the device, while it owns the request.
  IoRequest* next = nullptr;
  bool in_batch = false;                         // it came together with others
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceGeometry& geometry() const = 0;

  // Takes the request until its waiter is posted. The request, and what it points to, stay untouched
  // until then. Called inside the core; the production devices only collect it there.
  virtual void submit(IoRequest& request) = 0;

  // Awaitables over submit(); each resumes with the request's result.
  class [[nodiscard]] Io {
   public:
    Io(Device& device, IoRequest request) : device_(device), request_(std::move(request)) {}
    bool await_ready() { return false; }
    void await_suspend(std::coroutine_handle<> awaiter) {
      request_.waiter = awaiter;
      device_.submit(request_);
    }
    Result<> await_resume() { return request_.result; }

   private:
    Device& device_;
    IoRequest request_;
  };
  // The single-piece forms; `piece` and the spans must live until the awaitable resumed.
  Io read(BlockRange range, std::span<const MemoryPiece> memory);
  Io write(BlockRange range, std::span<const MemoryPiece> memory, bool durable = false);
  Io flush();
  Io discard(BlockRange range);
};

}  // namespace cofs
