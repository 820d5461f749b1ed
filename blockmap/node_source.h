// NodeSource: reads tree nodes from the device, from whichever copy matches its checksum.
#pragma once

#include "blockmap/btree.h"
#include "blockmap/store.h"
#include "blockmap/volume.h"

namespace cofs {

class NodeSource final : public NodeReader {
 public:
  NodeSource(Environment& environment, const Geometry& geometry, StoreCounters& counters)
      : environment_(environment), geometry_(geometry), counters_(counters) {}

  Task<Result<BufferRef>> read_node(NodePointer pointer) override;
  // Reads one copy only; for verify().
  Task<Result<BufferRef>> read_copy(NodePointer pointer, int copy);

 private:
  Environment& environment_;
  const Geometry& geometry_;
  StoreCounters& counters_;
};

}  // namespace cofs
