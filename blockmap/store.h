// Store: a crash-safe map of typed records and file blocks on one device. The filesystem core sits on
// top of it; it knows nothing of names, permissions or requests.
//
// Changes are made by transactions, one at a time, each atomic; a commit makes everything done so far
// durable with one device flush; a checkpoint writes the tree so that the log before it is not needed.
// After a crash the store is exactly as it was at some commit boundary, never older than the last
// commit that was reported done. While the device fails writes they are kept and tried again, and who waits for them
// is told kIo (stall.cc); a failed flush stops all further changes (kShutdown).
//
// Lock order for callers: inode locks (ascending), then the apply lock (inside Transaction). Commits
// take the apply lock and never an inode lock, so waiting for space or a commit under inode locks is
// safe. Thread safety: inside the core only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "blockmap/btree.h"
#include "blockmap/key.h"
#include "blockmap/share_range.h"
#include "blockmap/space.h"
#include "offload/base/sync.h"
#include "offload/copy_engine.h"
#include "offload/device.h"

namespace cofs {

struct Environment {
  Device& device;
  Executor& executor;
  Clock& clock;
  Random& random;
  Journal& journal;
  BufferPool& buffers;
};

struct FormatOptions {
  std::string label;             // up to 63 bytes
  uint32_t segment_blocks = 0;   // power of two, 16 … 16384; 0: chosen from the size
  uint32_t node_bytes = ondisk::kNodeBytesDefault;
  uint32_t metadata_copies = 2;  // 1 or 2
  uint64_t log_limit_blocks = 0; // 0: chosen from the size, 256 MiB at most
  // Of what could hold data, not for users to fill: 0 … 50. What is dead may lie there, so that garbage
  // collection finds emptier segments on a full volume.
  uint32_t over_provision_percent = 0;
  FormatOptions() = default;
};

enum class CopyMeasuring : uint8_t {
  kNever,
  kOnce,    // when the volume has no rates of this device yet
  kAlways,  // at each mount
};

enum class GcMode : uint8_t {
  kOff,         // nothing is moved: a segment is used again once all of it is dead
  kAuto,        // when room gets scarce, and before that when the device is idle
  kAggressive,  // whenever something can be won, as fast as possible; for tests
};

enum class GcEnd : uint8_t {
  kNothingGains,  // no segment gains any more
  kNoRoom,        // there is no room to move anything to
  kAsRequested,   // GcRequest's bounds
};
// What a call of Store::collect_garbage() did, so far.
struct GcReport {
  uint64_t victims = 0;         // segments emptied
  uint64_t moved_blocks = 0;
  uint64_t device_blocks = 0;   // copied for it by the device or the host's filesystem …
  uint64_t host_blocks = 0;     // … and by reading and writing
  uint64_t won_blocks = 0;      // room that is free now and was not before
  GcEnd end = GcEnd::kNothingGains;
};
// How much it is to do.
struct GcRequest {
  uint64_t victims_max = UINT64_MAX;
  bool urgent = true;  // as when a writer waits for room; else: as when writers pay for it
  std::function<bool(const GcReport&)> proceed;  // asked before each unit of work; may be empty
  GcRequest() = default;
};

struct StoreOptions {
  bool read_only = false;       // nothing is written; an unclean log is replayed in memory
  uint64_t cache_bytes = 64ULL << 20;
  uint64_t dirty_nodes_max = 0; // of the tree, at least 16; 0: chosen from the size
  uint64_t commit_interval_ns = 5'000'000'000;
  uint64_t checkpoint_interval_ns = 30'000'000'000;
  bool discard = true;
  GcMode gc = GcMode::kOff;
  bool background = true;       // run the periodic commit and checkpoint; tests may drive them
  CopyEngineOptions copy;
  uint32_t copy_verify_percent = 1;  // of the blocks that a device copied, read back and compared
  CopyMeasuring copy_measuring = CopyMeasuring::kNever;  // in the background, in a free segment
  StoreOptions() = default;
};

// A piece of a file's mapping, clipped to what was asked. virtual_block 0: unwritten (reads as zeros).
struct Mapping {
  uint64_t file_block = 0;
  uint64_t count = 0;
  uint64_t virtual_block = 0;
  uint32_t flags = 0;  // ondisk::kExtent…
  uint64_t end() const { return file_block + count; }
};

// Where a run of virtual blocks lies.
struct BlockPlace {
  uint64_t virtual_block = 0;
  uint64_t physical_block = 0;
  uint64_t count = 0;
  bool shared = false;  // it has more than one reference
};

// Data that lies in new places, copied or written, and is not yet part of any file.
struct StagedRun {
  uint64_t virtual_block = 0;
  uint64_t physical_block = 0;
  uint32_t count = 0;  // at most kVmapBlocksMax
  uint32_t generation = 0;
  std::vector<uint32_t> checksums;
  std::shared_ptr<void> pin;  // keeps the place from reuse until it is mapped or given up

  // Takes its first `blocks` blocks away from it. REQUIRES: it has more.
  StagedRun split_front(uint32_t blocks);
};

// Data to be staged: the blocks of a buffer from its first on, which must not change, and block_hash() of each.
struct StagedData {
  BufferRef buffer;
  std::span<const uint64_t> hashes;
};

// Told when data given to Transaction::write_data has reached the device (not yet flushed). An error
// here means that the store has shut down, or that the commit which collected it ended before it was placed.
class DataSink {
 public:
  virtual ~DataSink() = default;
  // `first_virtual`: where it was placed, the number of the run's first block; the others follow it.
  virtual void data_written(uint64_t token, const Result<>& result, uint64_t first_virtual) = 0;
};

// File data to be placed by a transaction. The buffer's blocks must not change any more.
struct DataRun {
  uint64_t ino = 0;
  uint64_t file_block = 0;
  uint32_t count = 0;
  BufferRef buffer;
  uint32_t buffer_block = 0;           // where the run starts in the buffer
  std::vector<uint64_t> hashes;        // block_hash() of each block
  DataSink* sink = nullptr;            // may be null
  uint64_t token = 0;                  // handed to the sink
};

// Reading everything while the volume is in use: what is asked, and what has come of it so far. Owned by the
// caller, who may look at it at any time.
struct ScrubFigures {
  uint64_t total_bytes = 0;       // there was to read when it began: data, all copies of nodes and superblocks
  uint64_t done_bytes = 0;
  uint64_t data_errors = 0;       // blocks of file data that are damaged
  uint64_t node_errors = 0;       // tree nodes with a copy that is bad
  uint64_t superblock_errors = 0; // copies that are bad or older than they must be
  uint64_t repaired = 0;          // of the nodes and superblock copies: written anew, and durable
  std::vector<std::string> problems;  // one line each, the first 1,000; also in the journal
  uint64_t problem_count = 0;

  uint64_t errors() const { return data_errors + node_errors + superblock_errors; }
};
struct ScrubRun {
  // 0: as fast as the device goes while nobody else wants anything, and a quarter of the time otherwise.
  uint64_t bytes_per_second = 0;
  ScrubFigures figures;
  bool cancelled = false;  // by cancel_scrub()
  TimerRequest timer;      // of its pauses
  bool asleep = false;
  ScrubRun() = default;
};

class Store;

// Changes that take effect together. Holds the apply lock from Store::begin() until it is destroyed;
// nothing is changed before apply(), and all of it, or nothing, then. In-memory state that belongs to
// the change is updated by the caller after apply() succeeded, before the transaction goes.
class Transaction {
 public:
  Transaction(Store* store, Mutex::Guard guard, Reservation reservation);
  Transaction(Transaction&&) noexcept;
  ~Transaction();

  // Putting and erasing kInode records also keeps the volume's count of inodes.
  void put(const Key& key, Bytes value);
  void erase(const Key& key);
  // Replaces the mapping of [file_block, +count): virtual_block 0 without flags leaves a hole,
  // 0 with kExtentUnwritten preallocates. What the range named before loses a reference.
  void map_extent(uint64_t ino, uint64_t file_block, uint64_t count, uint64_t virtual_block,
                  uint32_t flags);
  // Replaces the target range's mapping: it names the blocks that the source range names, which must all
  // have been written; where that has a hole or unwritten blocks the target gets a hole. apply() says
  // kTooManyLinks, with nothing changed, where a block has as many references as can be counted.
  // REQUIRES: range.valid().
  void share_extents(const ShareRange& range);
  // Places data and maps it. Writing starts when the transaction is applied.
  void write_data(DataRun run);
  // Maps data that Store::copy_blocks() or stage_data() staged.
  void map_staged(uint64_t ino, uint64_t file_block, StagedRun run);

  // Errors: those of reading metadata, with nothing changed; kShutdown, kReadOnly.
  Task<Result<>> apply();

  bool empty() const;
  uint64_t data_blocks() const;  // given to write_data so far
  // So many tree nodes it may make dirty; beyond Store::likely_nodes_max() of a moment ago only with room
  // reserved for them.
  uint64_t nodes_max() const;

 private:
  friend class Store;
  struct State;
  std::unique_ptr<State> state_;
};

// What holds changes that are not in the tree yet (dirty inodes and data): asked at each commit.
class CommitClient {
 public:
  virtual ~CommitClient() = default;
  // Called first, without locks: moves dirty data to the store in transactions of a bounded size.
  // Must not take inode locks (their holders may wait for this commit).
  virtual Task<Result<>> flush_dirty_data() = 0;
  // Then, with the apply lock held and without waiting: adds all file data that is still only in
  // memory. It is applied and its writing started; it counts as clean once the sink was told.
  virtual void collect_data(Transaction& transaction) = 0;
  // Nothing of that was applied, the sinks were told so; this commit ends here.
  virtual void collecting_failed() {}
  // Between the two: at most so many bytes of inode values will be added (0: none). UINT64_MAX: unknown.
  virtual uint64_t inode_bytes_bound() const { return UINT64_MAX; }
  // Then, still under the same lock: adds the records of all dirty inodes, which are clean after it.
  virtual void collect_inodes(Transaction& transaction) = 0;
  // Whenever a transaction is applied: the number of blocks mapped in `ino` changed by `delta`. Under
  // the apply lock; must not wait.
  virtual void mapped_blocks_changed(uint64_t ino, int64_t delta) = 0;
  // Before users' changes are refused for want of room, without locks of the store (the caller may hold inodes'): frees
  // what can be freed. False: there is nothing.
  virtual Task<bool> free_space() { co_return false; }
};

struct SpaceReport {  // blocks of 4 KiB unless said otherwise
  uint64_t total_blocks = 0;     // what users could fill on an empty volume
  uint64_t available_blocks = 0; // what a user can write now, exactly
  uint64_t free_blocks = 0;      // the room without its framing: available and all that is kept back
  uint64_t dead_blocks = 0;      // in segments in use, neither live nor still to be written
  uint64_t reserved_blocks = 0;  // promised to operations under way
  uint64_t shared_blocks = 0;    // of live_data_blocks: with more than one reference …
  uint64_t extra_references = 0; // … and the references to them beyond the first
  uint64_t free_segments = 0;
  uint64_t waiting_segments = 0; // of them: held until commits, checkpoints, readers or discards are done
  uint64_t segment_count = 0;
  uint64_t inode_count = 0;

  // Each block of the device is of one class; they add up to device_blocks.
  uint64_t device_blocks = 0;
  uint64_t outside_blocks = 0;   // superblocks, and what is no segment
  uint64_t live_data_blocks = 0;
  uint64_t node_blocks = 0;      // tree nodes in use, all copies
  uint64_t winnable_blocks = 0;  // dead, and garbage collection can make them free
  uint64_t fixed_blocks = 0;     // dead, and it can't: the log, framing, segments that do not gain
  uint64_t waiting_blocks = 0;   // free, in waiting segments
  uint64_t unused_blocks = 0;    // free, and what is left of the open data segment

  // winnable + waiting + unused are the room; each block of it is for one purpose, the urgent ones first.
  uint64_t room_blocks = 0;
  uint64_t framing_blocks = 0;   // headers, footers and checksums of what will be written; available comes last
  uint64_t checkpoint_reserve = 0;
  uint64_t log_reserve = 0;
  uint64_t node_reserve = 0;     // nodes replaced, until cleaning wins them back
  uint64_t growth_reserve = 0;   // of the tree, since the last checkpoint
  uint64_t gc_reserve = 0;
  uint64_t delete_reserve = 0;
  uint64_t preallocated_blocks = 0;  // kept for unwritten blocks of files
  uint64_t promised_blocks = 0;
  uint64_t over_provisioned_blocks = 0;
  // What users can write before any garbage is collected. What is over-provisioned is won last of all.
  uint64_t ready_blocks() const {
    const uint64_t room = available_blocks + over_provisioned_blocks;
    return std::min(available_blocks, room > winnable_blocks ? room - winnable_blocks : 0);
  }
};

struct StoreCounters {
  uint64_t read_bytes = 0;       // by the host, from the device
  uint64_t writes = 0;           // calls to the device, of write_bytes together
  uint64_t write_bytes = 0;      // by the host, to the device
  uint64_t data_bytes = 0;       // of file data among them
  uint64_t flushes = 0;
  uint64_t durable_writes = 0;   // of the writes: those that needed no flush after them
  uint64_t commits = 0;
  uint64_t checkpoints = 0;
  uint64_t log_bytes = 0;
  uint64_t node_bytes = 0;
  uint64_t discarded_bytes = 0;  // all, and …
  uint64_t trimmed_bytes = 0;    // … by trim() among them
  uint64_t checksum_failures = 0;
  uint64_t shares = 0;           // transactions that shared extents
  uint64_t copy_verified_bytes = 0;   // of what a device copied
  uint64_t copy_verify_failures = 0;  // gathers that a device reported done and that were wrong
  uint64_t segments_freed = 0;
  uint64_t nodes_cleaned = 0;    // moved out of sparse node segments
  uint64_t gc_victims = 0;          // segments that garbage collection chose …
  uint64_t gc_segments_freed = 0;   // … and emptied
  uint64_t gc_skipped = 0;          // segments that could not be emptied, each time
  uint64_t gc_waits = 0;            // writers that waited for their share of it
  uint64_t gc_stalls = 0;           // reservations that found no room at first
  uint64_t checkpoint_waits = 0;    // requests that waited for a checkpoint: too many dirty nodes, or log
  uint64_t gc_relocated_bytes = 0;  // that have a new place
  uint64_t gc_device_bytes = 0;     // copied for it: by the device or the host's filesystem
  uint64_t gc_host_bytes = 0;       // … and by reading and writing
};

struct MemoryReport {
  uint64_t node_bytes = 0;       // tree nodes in memory
  uint64_t dirty_nodes = 0;
  uint64_t frozen_nodes = 0;     // in memory for the checkpoint under way
  uint64_t pending_bytes = 0;    // log records
};

// Whether the device fails writes (or did).
struct StallReport {
  bool stalled = false;
  uint64_t seconds = 0;  // for how long it has been so
  uint64_t count = 0;    // of times since the store was opened
  WallTime since;        // the last one began, and what the device said then
  Error error;
};

struct VolumeInfo {
  std::string label;
  std::string uuid;  // 8-4-4-4-12
  uint64_t block_count = 0;
  uint32_t segment_blocks = 0;
  uint32_t node_bytes = 0;
  uint32_t metadata_copies = 0;
  uint32_t over_provision_percent = 0;
  uint64_t mount_count = 0;
  bool was_clean = false;           // at open
  uint64_t replayed_commits = 0;    // at open
  uint64_t replayed_log_bytes = 0;
};

struct VerifyOptions {
  bool read_data = false;           // also read every data block and check its checksum
  bool mend_counters = false;       // put counters right, where nothing else is wrong (not read-only)
  std::function<void(uint64_t done, uint64_t total)> progress;  // blocks or records, now and then
  VerifyOptions() = default;
};
struct VerifyProblem {
  std::string what;                 // one line: which rule is broken, where
  bool repairable = false;          // bad counters, an unreadable copy whose twin is good, orphans
};
struct VerifyReport {
  std::vector<VerifyProblem> problems;  // the first 1,000
  uint64_t problem_count = 0;
  uint64_t counters_mended = 0;
  uint64_t nodes = 0;
  uint64_t records = 0;
  uint64_t inodes = 0;
  uint64_t data_blocks = 0;
  uint64_t data_blocks_read = 0;
};

class Store {
 public:
  // Writes an empty volume. The device's contents are lost.
  static Task<Result<>> format(Environment environment, FormatOptions options);

  // The rates that the newest superblock of a volume keeps; its log is not looked at. Errors: kNotCofs,
  // kUnknownFeature, kCorrupt, kIo.
  static Task<Result<CopyRates>> stored_copy_rates(Environment environment);

  // Whether its last use ended without a close: opening it will replay the log. Errors as above.
  static Task<Result<bool>> needs_recovery(Environment environment);

  // Opens a volume: replays the log after a crash, then writes a checkpoint (unless read_only).
  // Errors: kNotCofs, kUnknownFeature, kCorrupt, kIo with the step that failed.
  static Task<Result<std::unique_ptr<Store>>> open(Environment environment, StoreOptions options);
  ~Store();

  // Commits, checkpoints, marks the volume clean and stops background work. The store can then only
  // be destroyed. After a failure: stops without marking it clean.
  // What the device refuses now is not waited for.
  Task<Result<>> close();
  // Stops background work without writing anything, as a crash would; for tests and errors.
  Task<> abandon();

  // Who is asked at commits. Set once, before the first transaction.
  void set_client(CommitClient* client);

  // --- Reading ---
  Task<Result<std::optional<std::vector<std::byte>>>> get(Key key);
  Task<Result<std::optional<TreeEntry>>> first_at_or_after(Key from, Key to);
  Task<Result<>> scan(Key from, Key to, uint64_t limit,
                      std::function<bool(const Key&, Bytes)> visit);
  // The mapped pieces of [file_block, +count) in order, at most `limit`; holes are left out.
  Task<Result<std::vector<Mapping>>> map_range(uint64_t ino, uint64_t file_block, uint64_t count,
                                               uint64_t limit);
  // Reads virtual blocks into contiguous memory and verifies them. `target` is block-aligned and
  // belongs to a buffer. Errors: kChecksum, kIo, kCorrupt (not mapped).
  Task<Result<>> read_blocks(BlockRange virtual_blocks, std::byte* target);

  // Checksums of mapped virtual blocks, freed of their numbers: equal for equal contents.
  Task<Result<std::vector<uint32_t>>> content_checksums(BlockRange virtual_blocks);
  // Where mapped virtual blocks lie, in order, at most `limit` runs. Errors: kCorrupt (not mapped).
  Task<Result<std::vector<BlockPlace>>> locate(BlockRange virtual_blocks, uint64_t limit);

  // --- Changing ---
  uint64_t allocate_inode();  // a number never handed out before
  // For a writer that is going to reserve so much, before it takes locks: where room gets scarce it waits
  // for its share of garbage collection, a twentieth of a second at most.
  Task<> pace(uint64_t data_blocks);
  // Whether reserve() can promise this at once.
  bool has_room(const Cost& cost, SpaceClass space_class) const;
  // Promises space for `cost`; waits for commits that free space before it gives up with kNoSpace. `kept`: of the
  // unwritten blocks for which space is kept, so many will be given up for it (a file's own).
  Task<Result<Reservation>> reserve(Cost cost, SpaceClass space_class, uint64_t kept = 0);
  // Reserves and takes the apply lock. Errors: kNoSpace, kReadOnly, kShutdown.
  Task<Result<Transaction>> begin(Cost cost, SpaceClass space_class);
  // The same for callers that hold their reservation already.
  Task<Result<Transaction>> begin(Reservation reservation);
  // And that got it some time ago, when there was room for more dirty nodes: waits until there is again.
  Task<Result<Transaction>> begin_within_bounds(Reservation reservation);
  // Has the copy engine copy mapped blocks to new space. The sources must stay mapped meanwhile (inode
  // lock). On success the runs together hold all of the sources, in order; on an error a prefix, and
  // *error says why. `reservation` covers the target blocks. Without `may_use_host` the data does not go
  // through memory (a sample that is read back apart): what no device path can copy is an error.
  Task<std::vector<StagedRun>> copy_blocks(const std::vector<BlockRange>* virtual_sources,
                                           Reservation* reservation, Result<>* error,
                                           bool may_use_host = true);
  // Writes data to new space and waits for the device, which need not have made it durable. `reservation` covers it
  // and the headers of its chunks; what the data takes is given back. Errors: kIo: the device refused some of it, and the
  // store is stalled, unless it is being closed; those of reading metadata; kReadOnly, kShutdown.
  Task<Result<std::vector<StagedRun>>> stage_data(const StagedData* data, Reservation* reservation);

  // --- Durability ---
  // Everything done before the call is durable after it. Errors: kIo while the device fails writes (they have been
  // tried again since the call, and nothing is lost), or where metadata can't be read; kShutdown.
  Task<Result<>> commit();
  Task<Result<>> checkpoint();  // commits, and writes the tree; errors as of commit()
  // Gives the volume another label, durable on return. Errors: kInvalid (more than 63 bytes, or one of them is 0),
  // kReadOnly, those of a checkpoint (the label may be kept by a later one).
  Task<Result<>> set_label(std::string label);
  // Moves live data out of segments until nothing gains, or there is no room to do so, or `request`
  // says; also where options.gc is off. Others who collect, or wait for that, get in between units. What
  // became free can be used after the next checkpoint. Errors: kReadOnly, kShutdown, those of metadata.
  Task<Result<GcReport>> collect_garbage(GcRequest request);
  // Discards what is free of a range of physical blocks, where at least `blocks_min` blocks of it lie
  // together; returns how many. Leaves out what is freed meanwhile, or promised to others: they go on.
  // Errors: kReadOnly, kNotSupported (the device can't), kInvalid (the range begins behind the end), kIo.
  Task<Result<uint64_t>> trim(BlockRange range, uint64_t blocks_min);
  bool shut_down() const;       // after a failure: nothing can change any more
  Result<> check_stall() const; // kIo, with the device's error, while it fails writes: they are pending
  StallReport stall() const;
  // To be called before the end: what is pending is tried once more, and from then on a write that the device
  // refuses stops the store.
  void stop_waiting();
  bool read_only() const;

  // --- Reports ---
  SpaceReport space() const;
  const StoreCounters& counters() const;
  MemoryReport memory() const;
  const CopyCounters& copy_counters() const;  // of copy_blocks()
  const CopyCounters& gc_copy_counters() const;
  const CopyRates& copy_rates() const;
  // By name: what the next copy of ranges of this length is made by.
  std::string_view copy_engine_for(uint64_t range_blocks) const;
  VolumeInfo info() const;
  // The most blocks of data, up to `most`, with which what is placed next ends where a segment does; `most`
  // where that would be less than half of it. So large files lie in few pieces.
  uint64_t blocks_in_whole_segments(uint64_t most) const;
  // So many tree nodes may be dirty on a full volume, too. What waits in memory to make others dirty at
  // the next commit keeps to shares of it (reserves.cc).
  uint64_t dirty_nodes_floor() const;
  // And so many as it is now: the floor where room is short, more where there is enough.
  uint64_t dirty_nodes_limit() const;
  // So many nodes a transaction may count on making dirty, at worst, if it begins about now
  // (Transaction::nodes_max says how many it really may), and what it must reserve for them, beside its records.
  uint64_t likely_nodes_max() const;
  Cost cost_of_nodes(uint64_t nodes) const;
  // Cross-checks everything against everything (docs/CRASH.md lists the invariants). No transaction
  // may run meanwhile.
  Task<Result<VerifyReport>> verify(VerifyOptions options);
  // Reads every block of file data and every copy of all tree nodes and superblocks, and compares them with
  // their checksums, while the store is in use. A node or superblock of which a good image is left is
  // written anew; damaged data is reported, with the files that hold it. Ends early when it is cancelled.
  // `run` outlives the call. Errors: kShutdown, kIo and the like where it cannot go on; damage is none.
  Task<Result<>> scrub(ScrubRun* run);
  void cancel_scrub(ScrubRun& run);
  Environment& environment();

  struct Impl;

 private:
  friend class Transaction;
  explicit Store(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cofs
