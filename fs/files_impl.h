// What the parts of Files share: state, limits, and the steps that more than one operation takes.
// Private to fs/files.cc and fs/file_*.cc.
//
// Conventions: functions that take an Inode& need it pinned and locked by the caller as their comment
// says; "applying" means that the caller holds a Transaction, so no flush or commit is half done.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "fs/files.h"
#include "fs/recent_edges.h"

namespace cofs {

inline constexpr uint64_t kFileBytesMax = INT64_MAX;
inline constexpr uint64_t kFileBlocksMax = 1ULL << 51;  // kFileBytesMax, rounded up, in blocks
inline constexpr uint32_t kReadBytesMax = 1U << 20;
inline constexpr uint32_t kReadsInFlightMax = 16;       // device reads of one read request
inline constexpr uint64_t kFlushBlocksMax = 1024;       // of data in one flush transaction
// So many dirty blocks of a file start a flush, if they are in long stretches: what is written here and there
// waits, so that it reaches the device in file order and as few extents.
inline constexpr uint64_t kEagerFlushBlocks = 1024;
inline constexpr uint64_t kEagerFlushStretch = 16;  // blocks, on average
inline constexpr uint64_t kCommitLeaveBlocks = 32;      // so few are left to collect_data()
inline constexpr uint64_t kDirtyFragmentsMin = 16;      // always allowed, however small the store
inline constexpr uint64_t kDirtyBlocksMin = 32;
inline constexpr uint64_t kStepExtentsMin = 8;          // bounds of step_extents()
inline constexpr uint64_t kStepExtentsMax = 512;
// And so many blocks: 256 MiB, whose places are as many records at worst, all erased in one go.
inline constexpr uint64_t kStepBlocksMax = 65'536;
inline constexpr uint64_t kShareExtentsMax = 16'384;    // shared in one transaction
inline constexpr uint64_t kCopyBatchBlocks = 16'384;    // copied between two transactions
inline constexpr size_t kCopyBatchesUnderWay = 2;
inline constexpr uint64_t kCopyBatchExtents = 16'384;   // gathered for one transaction
inline constexpr uint64_t kCopyBatchPieces = 512;       // of data and of holes in turn, mapped by it
inline constexpr uint32_t kCompareBlocks = 256;         // of two files, read and compared at once
inline constexpr uint64_t kHostCopyBytesMax = 8ULL << 20;  // of one copy_range without the engine
inline constexpr uint64_t kDrainPollNs = 200'000;
inline constexpr uint64_t kWatchNs = 20'000'000;        // between looks whether the store failed
inline constexpr uint64_t kOutsideBlocks = 16;          // more than this is copied or hashed outside

static_assert(kFileBlocksMax == (kFileBytesMax >> kBlockShift) + 1);

// Tree records that one run of data adds at worst: its extent, the second half of an extent and of a
// vmap record that it cuts in two, its vmap records' heads, a vref.
inline constexpr uint64_t kRunRecordBytes = 6 * (24 + 24);
inline constexpr uint64_t kMapRecordBytes = 4 * (24 + 24);  // one map_extent without data

// Records that one shared extent adds at worst: its own, and a count of references that is cut in three.
inline constexpr uint64_t kShareRecordBytes = 4 * (24 + 24);

inline Cost data_cost(uint64_t blocks, uint64_t runs) {
  const uint64_t checksums = blocks * 4 + blocks / ondisk::kVmapBlocksMax * 48;
  return Cost(blocks, checksums + runs * kRunRecordBytes);
}

struct Files::Impl {
  Impl(Store& s, InodeTable& i, Environment& e, const FsOptions& o, DataSink& d)
      : store(s), inodes(i), environment(e), options(o), sink(d), progress(e.executor) {}

  // A run that a transaction placed, until its device write is reported.
  struct Flight {
    InodeRef inode;
    uint32_t blocks = 0;
    Reservation reservation;  // given back then: pessimistic for a moment, never optimistic
  };

  // Around any change of inode.data: keeps the totals and the table informed.
  class DataChange {
   public:
    DataChange(Impl& impl, Inode& inode)
        : impl_(impl), inode_(inode), blocks_(inode.data.dirty_blocks()),
          fragments_(inode.data.dirty_fragments()) {}
    DataChange(const DataChange&) = delete;
    ~DataChange();

   private:
    Impl& impl_;
    Inode& inode_;
    uint64_t blocks_;
    uint64_t fragments_;
  };

  // While it lives the file's data stays in block form.
  class BlockHold {
   public:
    explicit BlockHold(Inode& inode) : inode_(inode) { inode_.data.block_holds++; }
    BlockHold(const BlockHold&) = delete;
    ~BlockHold() { inode_.data.block_holds--; }

   private:
    Inode& inode_;
  };

  // One block that an operation completes with zeros, ready to become dirty.
  struct EdgeBlock {
    uint64_t file_block = 0;
    BufferRef buffer;
  };

  // --- files.cc: space, inline data, flushing ---
  // The regular file `ino`. Errors: kIsDirectory, kInvalid, those of InodeTable::get.
  Task<Result<InodeRef>> get_file(uint64_t ino);
  // Under the lock: may this file's data be changed? Errors: kStale, kNotPermitted.
  static Result<> check_changeable(const Inode& inode, bool only_appends);
  bool is_inline(const Inode& inode) const { return (inode.flags & ondisk::kInodeInline) != 0; }
  // Reserved blocks that so much dirty data of a file should hold.
  static uint64_t wanted_blocks(const Inode& inode, uint64_t dirty, uint64_t runs, uint64_t size);
  // Gives back what inode.data.reservation holds beyond that.
  void trim_reservation(Inode& inode);
  // Applying: inline data becomes a dirty block. `space` covers it. The caller trims.
  void make_blocks(Inode& inode, Reservation space);
  // Applying: a small file's only block moves into the inode record, if that is possible.
  bool move_inline(Inode& inode);
  // Exclusive lock: see to it that the data is in block form; with a BlockHold it stays so.
  Task<Result<>> to_block_form(Inode& inode);
  // Applying: adds prepared blocks; `space` covers them. The caller has a DataChange (two, nested, would
  // count the blocks twice) and trims the reservation at the end.
  void add_edges(Inode& inode, std::vector<EdgeBlock>* edges, Reservation space);
  void mark_data_changed(Inode& inode) {
    if (inode.changed_by) clear_privileges(inode, inode.changed_by.gid() != inode.gid);
    mark_changed(inode, environment.clock.wall(), true);
  }

  uint64_t dirty_blocks_max() const;
  uint64_t dirty_fragments_max() const;
  uint64_t step_extents() const;  // so many extents are replaced or unmapped in one transaction
  // Applying, after the mapping of these blocks changed: the rest of the change. `end`: where the new bytes end.
  void replace_blocks(Inode& inode, BlockRange blocks, uint64_t end);
  bool past_half() const;
  bool over_limit() const;
  // Waits, without locks, until there is room in memory for more dirty data.
  Task<Result<>> throttle();
  // Until a write was reported, a flush ended, or the store failed.
  Task<> wait_for_progress();
  Task<> watch_store();
  // To be called when a file got more dirty data: may start a background flush.
  void flush_if_due(InodeRef inode);
  void start_flush();
  Task<> background_flush();
  std::vector<InodeRef> inodes_with_dirty_data();
  // One pass over the dirty data of these files.
  // Of those with at least `dirty_min` dirty blocks, until they have fewer.
  Task<Result<>> flush_inodes(std::vector<InodeRef> list, uint64_t dirty_min);
  struct Taken {
    uint64_t blocks = 0;
    uint64_t fragments = 0;
    uint64_t end = 0;  // the first file block not looked at
    std::vector<uint64_t> tokens;
  };
  // Between two steps of long work: whoever else can run goes first.
  auto let_others_in() { return outside(environment.executor, [] {}); }
  // Applying: gives dirty runs from `from` on to the transaction.
  Taken take_into(Transaction& transaction, const InodeRef& inode, uint64_t from,
                  uint64_t blocks_max, uint64_t fragments_max);
  void take_back(const std::vector<uint64_t>& tokens);
  // Shared or exclusive lock: waits until no block of the range is in flight or dirty.
  Task<Result<>> settle_range(InodeRef inode, uint64_t first, uint64_t count);

  // --- file_read.cc ---
  // Shared or exclusive lock: file blocks [first, +count) as they are now, into memory. *any_data
  // (may be null): false if all of it is holes or unwritten.
  Task<Result<>> read_file_blocks(Inode& inode, uint64_t first, uint32_t count, std::byte* target,
                                  bool* any_data);
  // Shared or exclusive lock; the range lies below the size and is at most kReadBytesMax long.
  Task<Result<ReadData>> read_locked(Inode& inode, uint64_t offset, uint32_t length);
  void note_access(Inode& inode);

  // --- file_write.cc (exclusive lock) ---
  // Before a write changes anything: whether it may. Drops security.capability for the unprivileged.
  Task<Result<>> admit_write(Inode& inode, const WriteData& data, Unprivileged kill_privileges);
  Task<Result<>> write_locked(Inode& inode, WriteData& data);
  Task<Result<>> complete_edges(Inode& inode, WriteData& data);
  // Whether it begins in the block in which one ended a moment ago, or right behind that.
  bool goes_on_from_another(const Inode& inode, const WriteData& data) const;
  Task<bool> read_edges_ahead(Inode& inode, uint64_t file_block, std::byte* target);
  // A block that was written in part a moment ago, without reading it. False: it is to be read.
  Task<Result<bool>> recall_block(Inode& inode, uint64_t file_block, std::byte* target);
  uint64_t write_deficit(const Inode& inode, const WriteData& data, uint64_t held) const;
  Task<Result<Reservation>> take_preallocated(Inode& inode, const WriteData& data, uint64_t deficit);
  Task<Result<std::vector<BlockRange>>> find_preallocated(Inode& inode, uint64_t first, uint64_t count);
  void note_edges(const Inode& inode, const WriteData& data);
  void insert(Inode& inode, WriteData& data, Reservation space);
  Task<> move_to_offset(WriteData& data, uint64_t offset);

  // --- file_write_direct.cc ---
  struct StagedWrite;
  class DirectWrite;
  Task<Result<>> stage_write(const WriteData& data, StagedWrite* staged);
  Task<Result<bool>> map_staged(Inode& inode, const WriteData& data, StagedWrite* staged);

  // --- file_size.cc (exclusive lock) ---
  Task<Result<>> grow(Inode& inode, uint64_t size);
  Task<Result<>> shrink(Inode& inode, uint64_t size);
  // Applying: adds to the transaction the removal (or, with flags kExtentUnwritten, preallocation) of
  // the mapping from `first` on, as far as step_extents() extents and kStepBlocksMax blocks reach; returns where
  // that ends.
  Task<Result<uint64_t>> add_unmap_step(Transaction& transaction, Inode& inode, uint64_t first,
                                        uint64_t end, uint32_t flags);
  Task<Result<>> truncate_steps(Inode& inode, uint64_t first);
  // Every operation that may grow a file does this first: a truncation that failed half-way must not
  // let old data reappear.
  Task<Result<>> finish_truncation(Inode& inode);
  // Prepares block `file_block` with bytes [from, to) zero, unless it holds no data anyway.
  Task<Result<>> prepare_zeroed(Inode& inode, uint64_t file_block, uint32_t from, uint32_t to,
                                std::vector<EdgeBlock>* edges);

  // --- file_allocate.cc (exclusive lock) ---
  struct Holes {
    std::vector<BlockRange> ranges;
    uint64_t end = 0;  // looked at so far
    uint64_t shared_blocks = 0;  // between them, blocks that others may refer to
    uint64_t blocks() const;
  };
  Task<Result<Holes>> find_holes(Inode& inode, uint64_t first, uint64_t end);
  Task<Result<Reservation>> reserve_holes(Inode& inode, uint64_t first, uint64_t end, bool shared_too);
  Task<Result<>> fill_holes(Inode& inode, uint64_t first, uint64_t end, uint64_t new_size,
                            Reservation space);
  Task<Result<>> preallocate(Inode& inode, uint64_t offset, uint64_t length, uint64_t new_size);
  Task<Result<>> punch(Inode& inode, uint64_t offset, uint64_t length);
  Task<Result<>> zero_range(Inode& inode, uint64_t offset, uint64_t length, uint64_t new_size);
  Task<Result<>> clear_range(Inode& inode, uint64_t offset, uint64_t length, uint32_t flags);

  // --- file_copy.cc (exclusive lock on the target, shared or exclusive on the source) ---
  struct CopyJob {
    CopyJob(InodeRef s, InodeRef t, CopyRequest r, uint64_t n, CopyPolicy p)
        : source(std::move(s)), target(std::move(t)), source_offset(r.source_offset),
          target_offset(r.target_offset), length(n), policy(p), request(std::move(r)) {}
    InodeRef source;
    InodeRef target;
    uint64_t source_offset;
    uint64_t target_offset;
    uint64_t length;  // of what was asked, what there is
    CopyPolicy policy;
    CopyRequest request;
    uint64_t done = 0;  // bytes published

    uint64_t source_at() const { return source_offset + done; }
    uint64_t target_at() const { return target_offset + done; }
    uint64_t left() const { return length - done; }
    bool same_file() const { return source.get() == target.get(); }
    bool strict() const {
      return policy == CopyPolicy::kStrictShare || policy == CopyPolicy::kStrictDevice;
    }
    // Between two steps.
    Result<> check_wanted() const {
      if (request.is_abandoned()) return fail(Code::kInterrupted, "copy", target->ino);
      return {};
    }
  };
  struct CopyBatch;
  // Each advances the job by what it copied and published.
  Task<Result<>> copy_by_host(CopyJob& job, uint64_t length);
  Task<Result<>> copy_blocks(CopyJob& job, uint64_t first, uint64_t count);
  Task<Result<>> move_blocks(CopyJob& job, uint64_t first, uint64_t end);
  Task<Result<>> plan_batch(CopyJob& job, uint64_t first, uint64_t count, CopyBatch* batch);
  Task<> copy_batch(CopyBatch* batch);
  Task<Result<>> publish_batch(CopyJob& job, CopyBatch& batch);
  Task<Result<>> copy_into_preallocated(CopyJob& job, CopyBatch& batch, Result<> refusal);
  void publish_copy(CopyJob& job, uint64_t blocks);
  Task<Result<>> run_copy(CopyJob& job);

  // --- file_share.cc (locks as for copies) ---
  Task<Result<>> share_blocks(CopyJob& job, uint64_t first, uint64_t count);
  // How many blocks of the range one transaction shares, and the extents among them.
  struct ShareStep {
    uint64_t blocks = 0;
    uint64_t extents = 0;
    uint64_t nodes = 0;  // that it may make dirty, at worst
  };
  Task<Result<ShareStep>> plan_share(ShareRange range, uint64_t nodes_max);
  Task<Result<Transaction>> begin_share(ShareRange* range);
  Task<Result<>> share_quietly(ShareRange range);
  struct Comparison {  // of some blocks of two files
    bool same = true;               // the same bytes
    std::vector<BlockRange> gains;  // blocks of b's file that could be those of a's
  };
  Task<Result<Comparison>> compare_blocks(Inode& a, uint64_t a_block, Inode& b, uint64_t b_block,
                                          uint32_t count);
  Task<Result<std::vector<uint64_t>>> blocks_named(Inode& inode, uint64_t first, uint32_t count);

  // --- file_map.cc (shared or exclusive lock) ---
  Task<Result<>> map_stored(const Mapping& mapping, uint64_t limit, FileMap* map);
  Task<Result<bool>> anything_after(Inode& inode, uint64_t block);

  Store& store;
  InodeTable& inodes;
  Environment& environment;
  const FsOptions& options;
  DataSink& sink;

  std::unordered_map<uint64_t, Flight> flights;  // by token
  uint64_t next_token = 1;
  uint64_t dirty_blocks = 0;     // over all files
  uint64_t dirty_fragments = 0;
  uint64_t in_flight_blocks = 0;
  Event progress;                // something was written, or a flush ended
  uint64_t progress_waiters = 0;
  bool watching = false;

  std::vector<InodeRef> due;     // files with much dirty data, for the background flush
  bool flush_running = false;
  bool stopping = false;
  Result<> flush_result;         // of the last background flush

  // Space for inode records that grew by inline data: until the commit that writes them is applied,
  // which is known when the next one collects.
  Reservation inline_space;
  Reservation inline_space_collected;

  std::unordered_set<uint64_t> unfinished_truncations;  // inode numbers; a kLoggedOp record exists
  RecentEdges recent_edges;
  uint64_t edge_bytes = 0;
  uint64_t shared_blocks = 0;    // by copies and dedupes
};

}  // namespace cofs
