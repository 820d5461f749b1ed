// Transfer: one read or write request on its way to a file descriptor, in as many system calls or
// ring entries as it takes: short counts go on where they stopped, interrupted calls are tried
// again.
//
// Used in turn by whoever does the I/O; it keeps its vectors' memory from one request to the next.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "offload/device.h"
#include "offload/uring.h"

namespace cofs {

class Transfer {
 public:
  // REQUIRES: a kRead or kWrite whose memory is block-aligned and sums to its range.
  void begin(IoRequest& request);

  IoRequest& request() const { return *request_; }

  // What is still to be done, as one entry of `ring`, whose tag is this. False when no entry is free.
  bool queue(Ring& ring, int fd);
  // Takes the outcome of one call or entry: bytes, or a negative errno. True when the request is finished,
  // with its result set: also at the end of a file that became too short (kIo, never zeros).
  bool advance(int64_t outcome);
  // The errno behind a failed result, 0 for an early end.
  int error_number() const { return error_number_; }

  // Does all of it here, blocking.
  void run(int fd);

 private:
  static constexpr uint32_t kRetriesMax = 1000;  // of one request, for calls that never got through

  // The arguments of the next call; at most IOV_MAX vectors.
  std::span<const iovec> vectors() const;
  bool is_write() const { return request_->op == IoRequest::Op::kWrite; }
  int flags() const { return request_->durable ? RWF_DSYNC : 0; }  // of pwritev2(2)
  void consume(uint64_t bytes);

  IoRequest* request_ = nullptr;
  std::vector<iovec> vectors_;
  size_t first_ = 0;
  uint64_t offset_ = 0;
  uint64_t left_ = 0;
  uint32_t retries_ = 0;
  int error_number_ = 0;
};

// The code of a failed I/O call. What is no more than an odd errno is kIo to the store.
Code io_code_of_errno(int error_number);

}  // namespace cofs
