// The inside of Store, shared by the files that implement it: transaction.cc (collecting and applying), prefetch.cc,
// mapper.cc (extents, vmap), share.cc (references), data_writer.cc (placing data, chunks), stage_data.cc (data before it is mapped), log_writer.cc (the log
// chain), stall.cc (writes that fail), commit.cc, checkpoint.cc, recovery.cc, discard.cc, space.cc, space_report.cc,
// read.cc, copy.cc, verify.cc, scrub*.cc, store.cc, and garbage collection: gc_victims.cc (which segment), gc_summary.cc (what it holds),
// gc_relocate.cc (moving it), gc_publish.cc (its new places), gc_pacing.cc (when), gc_request.cc (because somebody
// asked).
//
// Everything that changes runs under apply_lock. See docs/CRASH.md for the order of writes.
#pragma once

#include <array>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "blockmap/chunk.h"
#include "blockmap/gc_victims.h"
#include "blockmap/node_source.h"
#include "blockmap/records.h"
#include "blockmap/reserves.h"
#include "blockmap/segment_table.h"
#include "blockmap/store.h"
#include "blockmap/volume.h"
#include "offload/base/checksum.h"

namespace cofs {

// Counts promised blocks (blockmap/space.h).
class SpaceLedger {
 public:
  uint64_t outstanding = 0;
};

// A segment that a stream is filling.
struct OpenSegment {
  bool open = false;
  uint64_t segment = 0;
  uint32_t generation = 0;
  uint32_t next_block = 0;      // where the next chunk goes; 1 until the first was written
  bool header_written = false;  // the segment header goes out with the first chunk
  bool entries_complete = true; // false after a remount: no footer then
  uint32_t chunks = 0;          // since it was opened
  std::vector<ondisk::SummaryEntry> entries;

  void add_chunk(std::span<const ondisk::SummaryEntry> of_chunk) {
    chunks++;
    entries.insert(entries.end(), of_chunk.begin(), of_chunk.end());
  }
};

// Told about the device write of one DataRun, which may be split over chunks.
struct RunTicket {
  DataSink* sink = nullptr;
  uint64_t token = 0;
  uint32_t parts = 0;
  uint64_t first_virtual = 0;
  Result<> result;
};

// For who waits for a write no longer than until the device has taken or refused it: what is refused stays pending
// (stall.cc), and the store is stalled, or stops, before the answer is given.
struct WriteAnswer {
  WaitGroup* group = nullptr;
  Result<> result;
};

// A chunk whose payload is known; written as one request.
struct ChunkWrite {
  ondisk::Stream stream = ondisk::Stream::kData;
  uint64_t segment = 0;
  uint32_t generation = 0;
  uint32_t block = 0;  // from the start of the segment, of the chunk's header
  bool with_segment_header = false;
  bool with_payload = true;  // false: the payload is written by others (device copy)
  uint32_t header_blocks = 1;
  uint32_t payload_blocks = 0;
  std::vector<ondisk::SummaryEntry> entries;
  std::vector<MemoryPiece> pieces;
  std::vector<BufferRef> buffers;
  std::vector<RunTicket*> tickets;  // one part of each
  WriteAnswer* answer = nullptr;    // may be null

  uint32_t payload_start() const { return block + header_blocks; }
};

struct LogChunk {  // encoded, ready to go out
  BlockRange range;
  std::vector<MemoryPiece> pieces;
  std::vector<BufferRef> buffers;
  std::vector<RunTicket*> tickets;
};

// A physically contiguous part of a read, with the checksums to compare.
struct ReadPiece {
  BlockRange physical;
  uint64_t virtual_block = 0;
  bool keyed = true;  // false: the checksums are freed of their virtual block (rekeyed to 0)
  std::byte* target = nullptr;
  std::vector<uint32_t> checksums;
  Result<> result;
};

// --- Garbage collection ---

struct GcRange {  // blocks of a victim that may live
  uint64_t virtual_block = 0;
  uint64_t physical_block = 0;
  uint64_t count = 0;
};

struct GcVictim {
  GcCandidate segment;
  std::vector<GcRange> ranges;  // by virtual number
  size_t next = 0;              // ranges before this are done with …
  uint64_t next_done = 0;       // … and so many blocks of this one
  int doubts = 0;               // copies that went to a place in doubt
};

struct GcSkip {  // a segment that could not be emptied
  uint32_t generation = 0;
  uint32_t failures = 0;
  uint64_t until_ns = 0;
};

enum class GcStep : uint8_t {
  kNothing,  // no segment gains enough
  kNoRoom,   // a checkpoint may make some
  kMoved,    // a unit of work is done
  kFreed,    // … and with it the victim is empty
  kSkipped,  // the victim is given up
};

// --- Stalls (stall.cc) ---

struct StallState {
  explicit StallState(Executor& executor) : retry(executor) {}
  bool allowed = false;      // the store is open: a write that is refused waits for the device
  uint64_t writes = 0;       // that wait; 0: not stalled
  uint64_t asked = 0;        // how often somebody wanted them tried again
  uint64_t attempts = 0;     // second and later ones, of all writes, as they began …
  uint64_t last_failed = 0;  // … and the newest of them that failed
  uint64_t count = 0;        // stalls since the store was opened
  Error error;               // of the last stall, as the following
  WallTime since;
  uint64_t since_ns = 0;
  Event retry;
  bool clocked = false;      // retry_by_the_clock() runs
  TimerRequest timer;
  bool asleep = false;
};

struct GcUnit;  // gc_relocate.cc: one bounded piece of work

// Changed with `lock` held, but for the counters of pacing.
struct GcState {
  explicit GcState(Executor& executor) : lock(executor) {}
  Mutex lock;
  std::optional<GcVictim> victim;
  std::map<uint64_t, GcSkip> skips;  // by segment
  CopyCounters copies;               // apart from the users' copies
  uint64_t won_blocks = 0;           // by all victims that were emptied, as it was reckoned
  // Pacing. What is owed and what is paid only grow, but that the most recent debt may be forgotten.
  uint64_t owed_256 = 0;  // blocks to be won for what was written, in 256ths
  uint64_t paid_256 = 0;  // blocks won
  std::multimap<uint64_t, TimerRequest*> payers;  // who waits for paid_256 to come so far
  bool working = false;    // gc_work_off() runs
  bool releasing = false;  // a commit of gc_release_soon() runs
  uint64_t moves_per_won_256 = 256;  // of the last victim
  uint64_t dropped_blocks = 0;  // that died since the store was opened
  std::array<uint64_t, 3> nothing_at{};  // by urgency: 1 + dropped_blocks when nothing gained
  uint64_t foreground = 0;      // requests of users
  TimerRequest timer;
  bool asleep = false;
};

// co_await it in long work: everything else that can run goes first, and what was collected of replies
// and I/O goes out.
inline auto let_others_run(Executor& executor) { return outside(executor, [] {}); }

// Of tree records that a piece shared by two files adds: an extent and a vref.
inline constexpr uint64_t kSharedPieceBytes = 2 * (sizeof(ondisk::Key) + sizeof(ondisk::Extent));
static_assert(sizeof(ondisk::Extent) == sizeof(ondisk::Vref));
// Pieces of mappings that one record shares or removes: so many cost a recovery what a block of log does.
inline constexpr uint64_t kPiecesPerLogBlock = 64;

struct PhysicalSource;  // copy.cc: blocks to be copied

// Somebody who resolves virtual blocks to places and then reads there: no segment that is freed from
// now on is written again before this ends.
class ReaderTicket {
 public:
  explicit ReaderTicket(Store::Impl* store);
  ~ReaderTicket() { end(); }
  ReaderTicket(const ReaderTicket&) = delete;
  void begin();  // again, for places that are resolved from now on. REQUIRES: ended
  void end();

 private:
  Store::Impl* store_;
  uint64_t ordinal_ = 0;  // 0: ended
};

struct Transaction::State {
  enum class Kind : uint8_t { kPut, kErase, kMapExtent, kShareExtents, kWriteData, kMapStaged };
  struct Op {
    Kind kind{};
    Key key;
    std::vector<std::byte> value;
    uint64_t ino = 0;
    uint64_t file_block = 0;
    uint64_t count = 0;
    uint64_t virtual_block = 0;
    uint32_t flags = 0;
    ShareRange share;
    DataRun run;
    StagedRun staged;
  };
  Store* store = nullptr;
  Mutex::Guard guard;
  Reservation reservation;
  std::vector<Op> ops;
  uint64_t data_blocks = 0;
  bool applied = false;
};

// What a checkpoint took along at its freeze.
struct FrozenState {
  std::unique_ptr<FrozenTree> tree;
  VolumeState volume;
};

struct Store::Impl {
  Impl(Environment env, StoreOptions opts, const Geometry& geom, const VolumeState& state);
  ~Impl();

  Environment env;
  StoreOptions options;
  Geometry geometry;
  VolumeState volume;  // of the newest durable superblock
  StoreCounters counters;
  NodeSource nodes;
  BTree tree;
  SegmentTable segments;
  GcVictims gc_victims;
  CopyEngine copier;
  CommitClient* client = nullptr;
  Store* store = nullptr;
  VolumeInfo volume_info;

  Mutex apply_lock;
  bool shut_down = false;
  bool half_applied = false;  // a transaction failed in its middle: the tree in memory is no truth
  bool replaying = false;

  // Counters that checkpoints keep.
  uint64_t next_virtual = 0;
  uint64_t next_inode = 0;
  uint64_t inode_count = 0;
  uint64_t live_data_blocks = 0;
  uint64_t live_node_blocks = 0;
  uint64_t shared_blocks = 0;
  uint64_t extra_references = 0;
  uint64_t unwritten_blocks = 0;
  uint64_t epoch = 0;

  // --- log ---
  std::vector<std::byte> pending_records;  // applied, not yet in a chunk
  std::array<OpenSegment, ondisk::kStreamCount> streams;
  struct LogSuccessor {
    uint64_t segment = 0;
    uint32_t generation = 0;
    bool ready = false;
  };
  LogSuccessor log_next;   // where the log goes on
  LogSuccessor log_after;  // and then
  uint64_t log_sequence = 1;
  uint64_t log_previous = 0;
  std::vector<uint64_t> log_chain;   // pinned segments of the log since the last durable checkpoint
  uint64_t log_blocks = 0;           // written since the last freeze
  uint64_t pieces_logged = 0;        // since then: short records that take long to be repeated
  uint64_t unflushed_data_blocks = 0;

  // --- commits ---
  uint64_t commit_number = 0;        // of the last composed commit
  uint64_t durable_commit = 0;
  uint64_t commit_requests = 0;
  uint64_t commits_served = 0;       // requests up to this are durable
  bool committing = false;
  uint64_t commits_begun = 0;        // by commit()
  uint64_t failed_commit = 0;        // the newest of these that failed, and why
  Error commit_error;
  Event commit_done;
  Handoff commit_starter;            // who began the one under way
  // --- checkpoints ---
  uint64_t checkpoint_requests = 0;
  uint64_t checkpoints_served = 0;
  bool checkpointing = false;
  uint64_t checkpoints_begun = 0;
  uint64_t failed_checkpoint = 0;    // as for commits
  Error checkpoint_error;
  Event checkpoint_done;
  Handoff checkpoint_starter;
  uint64_t checkpoint_sequence = 0;  // of the last frozen one
  uint64_t last_checkpoint_ns = 0;
  uint64_t frozen_nodes = 0;         // in memory for the checkpoint under way
  int superblock_slot = 0;           // next to write
  bool close_requested = false;      // the next checkpoint marks the volume clean
  uint64_t clean_cursor = 0;         // of the search for sparse node segments

  // --- device writes under way ---
  std::set<uint64_t> writes_in_flight;  // ordinals
  uint64_t write_ordinal = 0;           // also counts what is written otherwise, when it is done: copies, superblocks
  uint64_t flushed_ordinal = 0;         // writes up to this were followed by a flush
  uint64_t copies_running = 0;
  uint64_t effects_ended = 0;           // writes and copies
  bool durable_writes_fail = false;     // where plain ones do not
  std::set<uint64_t> discard_queue;     // freed segments, set aside
  uint64_t discard_workers = 0;         // that empty it
  uint64_t discards_running = 0;        // requests under way, theirs and those of trims
  uint64_t discard_waiters = 0;         // who need room: nothing new begins
  Event write_done;
  ChunkWrite* open_chunk = nullptr;     // being filled by the transaction that is applied now
  std::unique_ptr<ChunkWrite> open_chunk_owner;
  std::unique_ptr<ChunkWrite> log_payload;  // payload that goes into the next log chunk
  // Of chunks that copies fill, to be written with the next commit, before which nobody needs them and their segments are not used again:
  // an image's filesystem has each clone wait for the writes that are under way.
  std::vector<std::unique_ptr<ChunkWrite>> due_headers;
  StallState stall;

  // --- space ---
  SpaceLedger ledger;
  uint64_t metadata_debt_bytes = 0;  // of records added since the last freeze
  Reserves reserves;

  // --- readers ---
  // Of a file's extents, by its number: who reads several of them and finds that it grew meanwhile begins
  // anew, since an extent that was to come next may be part of one that was seen, or cut off from it.
  std::array<uint64_t, 64> extent_changes{};
  uint64_t& extent_changes_of(uint64_t ino) { return extent_changes[ino % extent_changes.size()]; }
  std::set<uint64_t> readers;     // ordinals of those under way
  uint64_t reader_ordinal = 0;    // of the last one that began
  Event reader_done;

  // --- background ---
  bool stopping = false;
  bool background_running = false;
  uint64_t tasks_running = 0;
  uint64_t pins_releasing = 0;
  Event task_done;
  TimerRequest background_timer;
  bool background_asleep = false;

  // store.cc
  Result<> check_writable() const;
  Result<> check_readable() const;
  void fail_store(const Error& error, const char* what);
  Task<> background();
  void kick_background();
  Task<> wait_for_tasks();

  // prefetch.cc
  Task<Result<>> prefetch(const Transaction::State& state);
  Task<Result<>> prefetch_unmap(uint64_t ino, uint64_t file_block, uint64_t count, bool neighbours);
  Task<Result<>> prefetch_neighbours(bool wanted, Key from, Key to);
  Task<Result<>> prefetch_drop(BlockRange virtual_blocks, bool neighbours);
  Task<Result<>> prefetch_free(BlockRange virtual_blocks, bool neighbours);
  Task<Result<>> prefetch_share(ShareRange range);
  Task<Result<>> prefetch_references(BlockRange virtual_blocks);

  // transaction.cc
  Task<Result<>> apply(Transaction::State& state, bool into_log);

  // mapper.cc: each changes the tree and nothing else but counters; the log record is the caller's.
  Hold current_hold() const;
  Task<Result<>> apply_put(Key key, Bytes value);
  Task<Result<>> apply_erase(Key key);
  Task<Result<>> apply_map_extent(uint64_t ino, uint64_t file_block, uint64_t count,
                                  uint64_t virtual_block, uint32_t flags);
  Task<Result<>> apply_insert_vmap(uint64_t virtual_block, uint64_t physical_block,
                                   uint32_t generation, const std::vector<uint32_t>* checksums);
  Task<Result<>> insert_extents(uint64_t ino, uint64_t file_block, uint64_t count,
                                uint64_t virtual_block, uint32_t flags);
  Task<Result<>> free_virtual(uint64_t virtual_block, uint64_t count);
  Task<Result<>> apply_record(const Record& record);

  // share.cc
  Task<Result<>> apply_share_extents(ShareRange range);
  Task<Result<>> add_references(uint64_t virtual_block, uint64_t count);
  Task<Result<>> drop_virtual(uint64_t virtual_block, uint64_t count, bool maybe_shared);

  // gc_publish.cc
  Task<Result<uint64_t>> apply_move_vmap(VmapMove move);  // compare and set; the blocks moved
  Task<Result<uint64_t>> gc_publish(const std::vector<VmapMove>* moves);

  // gc_summary.cc: what the chunks of a sealed segment hold, as they say.
  Task<Result<std::vector<ondisk::SummaryEntry>>> read_summary(uint64_t segment,
                                                               uint32_t generation);

  // gc_relocate.cc
  GcState gc;
  bool gc_on() const { return options.gc != GcMode::kOff && !options.read_only; }
  Task<Result<GcStep>> gc_step(GcUrgency urgency);
  Task<Result<GcStep>> gc_work(GcUrgency urgency);
  Task<Result<bool>> gc_take_victim(GcUrgency urgency);
  bool gc_may_take(uint64_t segment, const SegmentState& state) const;
  Task<Result<>> gc_collect(GcUnit* unit);
  bool gc_has_room(const GcUnit& unit) const;
  Task<Result<>> gc_stage(GcUnit* unit);
  Task<Result<GcStep>> gc_copy(GcUnit* unit);
  Task<Result<GcStep>> gc_finish_victim();
  void gc_skip(const std::string& why);
  Task<> wait_for_pins();

  // gc_pacing.cc
  int64_t room(SpaceClass space_class) const;  // available(), below 0 where promises are not covered
  uint64_t data_segments() const;
  uint64_t gc_winnable_blocks() const;
  int64_t gc_stream_room() const;
  uint64_t volume_blocks() const;
  int64_t gc_room() const;
  uint64_t gc_owed_per_block_256() const;
  Task<Result<>> keep_bounds();
  void gc_wake_payers();
  void gc_forgive();
  void gc_start_work();
  Task<> gc_work_off();
  bool gc_release_due() const;
  void gc_release_soon();
  Task<Result<>> gc_release_held();
  Task<Result<bool>> gc_make_room(uint64_t blocks, SpaceClass space_class);
  Task<> gc_background();
  void kick_gc();
  Task<> stop_gc();  // once nothing new may begin: until nothing is under way

  // data_writer.cc
  Task<Result<>> open_stream(ondisk::Stream stream);
  Task<Result<>> seal_stream(ondisk::Stream stream);
  uint32_t stream_room(const OpenSegment& stream, uint64_t more_entries) const;
  Task<Result<>> place_run(const DataRun* run_to_place, bool into_log);
  Task<Result<>> place_piece(const DataRun& run, uint32_t from, uint32_t count, uint64_t physical,
                             uint32_t generation);
  void close_open_chunk();
  void start_chunk(std::unique_ptr<ChunkWrite> chunk);
  Task<> write_chunk(std::unique_ptr<ChunkWrite> chunk, uint64_t ordinal);
  Task<> write_footer(uint64_t segment, BufferRef buffer, uint32_t blocks, uint64_t ordinal);
  void finish_tickets(const std::vector<RunTicket*>& tickets, const Result<>& result);
  Task<> wait_for_writes(uint64_t up_to);
  uint64_t begin_write();
  void end_write(uint64_t ordinal);
  Task<Result<std::unique_ptr<ChunkWrite>>> place_chunk(uint64_t blocks_wanted);
  Task<Result<std::unique_ptr<ChunkWrite>>> stage_chunk(uint64_t blocks_wanted);
  void start_due_headers();
  std::unique_ptr<ChunkWrite> begin_staged_chunk(ondisk::Stream stream);
  void take_place(const ChunkWrite& chunk);
  void finish_staged_chunk(const ChunkWrite& chunk);

  // stage_data.cc
  Task<Result<std::vector<StagedRun>>> place_staged(const StagedData* data, std::vector<WriteAnswer>* answers,
                                                    WaitGroup* group);

  // log_writer.cc
  Task<Result<>> prepare_log();     // an open log segment and a next one
  Task<Result<>> reserve_successor(LogSuccessor* successor);
  Task<Result<>> advance_log();     // moves on to the next segment
  bool log_payload_fits(uint64_t payload_blocks, uint64_t record_bytes) const;
  Task<Result<>> compose_log(std::vector<LogChunk>* chunks, bool* any);

  // commit.cc
  Task<> commit_for_all();
  Task<Result<>> run_commit(FrozenState* freeze);
  Task<Result<>> collect_and_apply();
  void give_back(const Transaction::State& data, const Error& error);
  void drop_log_payload(const Error& error);
  Task<> write_log_chunk(LogChunk* chunk, uint64_t ordinal);
  Task<Result<>> write_durably(const LogChunk* chunk, bool* needs_flush);

  // stall.cc
  // *answer, where there is one, is given once, and null then.
  Task<Result<>> write_retrying(BlockRange range, const std::vector<MemoryPiece>* memory,
                                WriteAnswer** answer = nullptr);
  Task<Result<>> write_persistently(BlockRange range, const std::vector<MemoryPiece>* memory,
                                    Error first, WriteAnswer** answer);
  void begin_stall(const Error& error);
  void end_stall();
  void wake_stalled();
  void retry_stalled();
  void end_waiting_writes();
  Task<> retry_by_the_clock();
  Result<> check_stall() const;
  Result<> check_attempts(uint64_t attempts) const;
  Task<Result<>> settle_writes(uint64_t up_to);

  // discard.cc
  void release_segments();
  uint64_t discard_segments_max() const;  // in one request
  Task<> discard_queued();
  Task<Result<>> discard_run(uint64_t first, uint64_t count);
  Task<> wait_for_discards();  // until all freed segments can be used
  Task<Result<uint64_t>> trim_run(uint64_t from, uint64_t end, BlockRange within);

  // checkpoint.cc
  Task<> checkpoint_for_all();
  Task<Result<>> run_checkpoint();
  Task<Result<>> clean_node_segments();
  Task<Result<>> move_nodes_out(uint64_t segment, uint32_t generation);
  Task<Result<>> assign_nodes(uint64_t sequence);
  Task<Result<size_t>> assign_chunk(const std::vector<DirtyNode>* dirty, size_t from,
                                    uint64_t sequence);
  Task<Result<>> freeze_tree(FrozenState* frozen);
  Task<Result<>> drop_node_image(NodePointer pointer);
  Task<Result<>> release_log_chain();
  Task<Result<>> write_frozen(FrozenState& frozen);
  Task<Result<>> write_superblock(VolumeState state);
  VolumeState current_state() const;

  // recovery.cc
  std::set<uint64_t> replayed_open_segments;  // opened according to the log that is replayed
  Task<Result<>> recover();
  Task<Result<>> replay_commit(const std::vector<std::byte>* records);
  Task<Result<>> verify_commit(const std::vector<std::byte>* records, bool* intact);
  Task<Result<>> seal_leftovers();
  Task<Result<>> resume_streams();
  Task<Result<>> resume_successor(uint64_t segment, uint32_t generation,
                                  LogSuccessor* successor);
  Task<Result<>> check_counters();
  Task<Result<>> begin_mount();

  // read.cc
  Task<> wait_for_readers();  // of those that keep freed segments from use
  Task<Result<>> read_pieces(std::vector<ReadPiece>* pieces);  // the first error

  // copy.cc
  struct ChunkCopy;
  CopyRates copy_rates;             // what the next superblock keeps
  uint64_t copy_verify_credit = 0;  // hundredths of a block
  Task<Result<std::vector<ChunkCopy>>> stage_copy(const PhysicalSource* source, uint64_t from,
                                                  Reservation* reservation, bool may_use_host);
  Task<> copy_chunk(ChunkCopy* copy, WaitGroup* group);
  void add_staged_runs(const ChunkCopy& copy, std::vector<StagedRun>* runs) const;
  Task<bool> verify_copy(const std::vector<BlockRange>* sources, uint64_t target, uint64_t count,
                         const uint32_t* rekeyed);
  Task<CopyOutcome> recopy_by_host(const ChunkCopy* copy, uint64_t target);
  void start_measuring();
  Task<> measure();
  Task<Result<CopyRates>> measure_in_free_segment();

  // space.cc
  uint64_t usable_blocks() const;
  uint64_t metadata_debt() const;
  uint64_t available(SpaceClass space_class) const;
  uint64_t user_blocks_taken() const;
  uint64_t log_headroom() const;
  uint64_t node_segments_due() const;
  uint64_t node_headroom() const;
  uint64_t checkpoint_reserve(uint64_t dirty_nodes) const;
  uint64_t gc_reserve() const;
  uint64_t delete_reserve() const;
  uint64_t preallocated() const;  // what is kept for unwritten blocks
  uint64_t spare_blocks() const;
  uint64_t log_limit() const;          // a checkpoint is due; at twice as much writers wait for it
  uint64_t dirty_nodes_limit() const;  // writers wait for a checkpoint; half: it is due
  bool log_over_limit(uint64_t factor) const;
  bool over_changed_nodes() const {
    return frozen_nodes != 0 && frozen_nodes + tree.dirty_nodes() >= reserves.changed_nodes_max;
  }
  // Of each segment the header, the footer and the headers of its chunks are no room for data.
  uint64_t segment_overhead() const {
    return geometry.segment_blocks - reserves.segment_data_blocks;
  }
};

}  // namespace cofs
