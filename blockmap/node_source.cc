#include "blockmap/node_source.h"

#include <array>

#include "offload/base/checksum.h"

namespace cofs {

Task<Result<BufferRef>> NodeSource::read_copy(NodePointer pointer, int copy) {
  const uint64_t address = pointer.address[copy];
  if (!geometry_.inside_segment(address, geometry_.node_blocks())) {
    co_return fail(Code::kCorrupt, "tree node: address outside of any segment", address);
  }
  BufferRef buffer = environment_.buffers.allocate(geometry_.node_blocks());
  const std::array<MemoryPiece, 1> memory = {MemoryPiece{buffer->data(), geometry_.node_blocks()}};
  auto read =
      co_await environment_.device.read(BlockRange{address, geometry_.node_blocks()}, memory);
  COFS_CO_TRY(read);
  counters_.read_bytes += geometry_.node_bytes;
  const Bytes image(buffer->data(), geometry_.node_bytes);
  if (checksum64(image, geometry_.volume_key) != pointer.checksum) {
    co_return fail(Code::kChecksum, "tree node: checksum", address);
  }
  co_return buffer;
}

Task<Result<BufferRef>> NodeSource::read_node(NodePointer pointer) {
  auto first = co_await read_copy(pointer, 0);
  if (first || geometry_.metadata_copies < 2) co_return first;
  counters_.checksum_failures++;
  auto second = co_await read_copy(pointer, 1);
  if (second) {
    environment_.journal.write(Severity::kWarning,
                               "a tree node's first copy is bad, its second was used: " +
                                   describe(first.error()));
    co_return second;
  }
  environment_.journal.write(Severity::kError,
                             "both copies of a tree node are bad: " + describe(second.error()));
  co_return second;
}

}  // namespace cofs
