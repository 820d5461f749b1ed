#include "offload/transfer.h"

#include <limits.h>

#include <algorithm>
#include <cerrno>

namespace cofs {

Code io_code_of_errno(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT: return Code::kNoSpace;  // a sparse image on a full host filesystem
    case ENOMEM: return Code::kNoMemory;
    case ETIMEDOUT: return Code::kTimedOut;
    case EOPNOTSUPP: return Code::kNotSupported;
    case EROFS: return Code::kReadOnly;
    default: return Code::kIo;
  }
}

void Transfer::begin(IoRequest& request) {
  request_ = &request;
  vectors_.clear();
  first_ = 0;
  offset_ = bytes_of_blocks(request.range.start);
  left_ = bytes_of_blocks(request.range.count);
  retries_ = 0;
  error_number_ = 0;
  uint64_t blocks = 0;
  for (const MemoryPiece& piece : request.memory) {
    COFS_ASSERT(reinterpret_cast<uintptr_t>(piece.data) % kBlockBytes == 0);
    blocks += piece.blocks;
    uint64_t bytes = bytes_of_blocks(piece.blocks);
    iovec* last = vectors_.empty() ? nullptr : &vectors_.back();
    if (last != nullptr && static_cast<std::byte*>(last->iov_base) + last->iov_len == piece.data) {
      last->iov_len += bytes;
    } else {
      vectors_.push_back({piece.data, bytes});
    }
  }
  COFS_ASSERT(blocks == request.range.count);
}

std::span<const iovec> Transfer::vectors() const {
  return {vectors_.data() + first_, std::min<size_t>(vectors_.size() - first_, IOV_MAX)};
}

void Transfer::consume(uint64_t bytes) {
  COFS_ASSERT(bytes <= left_);
  offset_ += bytes;
  left_ -= bytes;
  while (bytes > 0) {
    iovec& vector = vectors_[first_];
    uint64_t taken = std::min<uint64_t>(bytes, vector.iov_len);
    vector.iov_base = static_cast<std::byte*>(vector.iov_base) + taken;
    vector.iov_len -= taken;
    bytes -= taken;
    if (vector.iov_len == 0) first_++;
  }
}

bool Transfer::advance(int64_t outcome) {
  if (outcome > 0) {
    consume(static_cast<uint64_t>(outcome));
    if (left_ != 0) return false;
    request_->result = {};
    return true;
  }
  uint64_t block = offset_ >> kBlockShift;
  if (outcome == 0) {
    request_->result =
        fail(Code::kIo, is_write() ? "device took no more data" : "device ended early", block);
    return true;
  }
  int error_number = static_cast<int>(-outcome);
  bool again = error_number == EINTR || error_number == EAGAIN;
  if (again && ++retries_ <= kRetriesMax) return false;
  error_number_ = error_number;
  request_->result = fail(io_code_of_errno(error_number),
                          is_write() ? "device write failed" : "device read failed", block);
  return true;
}

bool Transfer::queue(Ring& ring, int fd) {
  return is_write() ? ring.write(fd, vectors(), offset_, flags(), this) : ring.read(fd, vectors(), offset_, this);
}

void Transfer::run(int fd) {
  int64_t outcome = 0;
  do {
    std::span<const iovec> parts = vectors();
    auto count = static_cast<int>(parts.size());
    auto offset = static_cast<off_t>(offset_);
    outcome = is_write() ? pwritev2(fd, parts.data(), count, offset, flags())
                         : preadv(fd, parts.data(), count, offset);
    if (outcome < 0) outcome = -errno;
  } while (!advance(outcome));
}

}  // namespace cofs
