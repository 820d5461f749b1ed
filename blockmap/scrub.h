// Scrubber: one run of Store::scrub(). Private to blockmap/scrub*.cc.
//
// Three passes: superblocks (scrub.cc), tree nodes by their keys (scrub.cc), file data by its virtual
// numbers (scrub_data.cc); where data is damaged a walk over the extents tells whose it is. Each pass is a
// cursor: what comes into being behind it is not looked at, what goes away before it is not missed. No lock
// is held across a read; so whatever looks damaged is looked at again, when nothing that was under way at
// the first look is any more, and counts only if it is still part of the volume.
// Memory: one batch of reads, and the damaged blocks up to a bound.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "blockmap/store_impl.h"

namespace cofs {

class Scrubber {
 public:
  Scrubber(Store::Impl& store, ScrubRun& run) : store_(store), run_(run) {}
  Scrubber(const Scrubber&) = delete;

  Task<Result<>> run();

 private:
  struct Damage {  // blocks of file data
    uint64_t virtual_block = 0;
    uint64_t physical_block = 0;
    std::string why;
    bool owned = false;  // a file was found that holds it
  };
  struct DataBatch;  // scrub_data.cc

  // scrub.cc
  void problem(Severity severity, const std::string& line);
  bool ended() const { return run_.cancelled || store_.stopping || store_.shut_down; }
  void begin_batch();
  Task<> end_batch(uint64_t bytes);

  Task<Result<>> scrub_superblocks();
  Task<Result<>> hold_checkpoints();
  Task<std::array<std::string, kSuperblockCopies>> superblock_faults();
  Task<Result<>> scrub_nodes();
  Task<Result<>> check_nodes(std::vector<BTree::PathNode> batch);
  Task<> read_node_copy(NodePointer pointer, int copy, Result<>* result, WaitGroup* group);
  Task<Result<>> judge_node(const BTree::PathNode* node, const Result<>* copies);
  Task<Result<bool>> repair_node(const BTree::PathNode* node);
  Task<Result<>> finish_repairs();

  // scrub_data.cc
  Task<Result<>> scrub_data();
  Task<Result<bool>> collect(DataBatch* batch);
  Task<> read_batch(DataBatch* batch);
  Task<Result<>> look_again(uint64_t virtual_block);
  Task<Result<>> find_owners();
  void see_extent(const Key& key, Bytes value);
  Task<Result<>> report_unowned();

  Store::Impl& store_;
  ScrubRun& run_;
  uint64_t repairs_pending_ = 0;  // nodes made dirty, not durable yet
  std::vector<Damage> damaged_;   // by virtual number
  uint64_t too_many_ = 0;         // damaged blocks beyond those
  uint64_t cursor_ = 0;           // of the data
  uint64_t end_ = 0;
  // Of the batch under way.
  uint64_t batch_started_ns_ = 0;
  uint64_t foreground_ = 0;
  uint64_t next_due_ns_ = 0;      // by the rate that was asked for
};

}  // namespace cofs
