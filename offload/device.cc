#include "offload/device.h"

namespace cofs {

std::string_view name_of(CopyPath path) {
  switch (path) {
    case CopyPath::kDevice: return "device";
    case CopyPath::kHostFile: return "hostfile";
    case CopyPath::kHost: return "host";
  }
  return "unknown";
}

Device::Io Device::read(BlockRange range, std::span<const MemoryPiece> memory) {
  IoRequest request;
  request.op = IoRequest::Op::kRead;
  request.range = range;
  request.memory = memory;
  return Io(*this, request);
}

Device::Io Device::write(BlockRange range, std::span<const MemoryPiece> memory, bool durable) {
  IoRequest request;
  request.op = IoRequest::Op::kWrite;
  request.durable = durable;
  request.range = range;
  request.memory = memory;
  return Io(*this, request);
}

Device::Io Device::flush() {
  IoRequest request;
  request.op = IoRequest::Op::kFlush;
  return Io(*this, request);
}

Device::Io Device::discard(BlockRange range) {
  IoRequest request;
  request.op = IoRequest::Op::kDiscard;
  request.range = range;
  return Io(*this, request);
}

}  // namespace cofs
