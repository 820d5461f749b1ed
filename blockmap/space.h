// What may still be written: exact promises of space, made before an operation starts.
//
// Every operation states its worst case as a Cost and gets a Reservation, or kNoSpace. Three nested
// reserves keep the volume usable when full: user operations leave all three, operations that free
// space leave those of garbage collection and of checkpoints, garbage collection leaves that of
// checkpoints, checkpoints may use all.
#pragma once

#include <cstdint>
#include <utility>

namespace cofs {

enum class SpaceClass : uint8_t { kUser, kDelete, kGc, kCheckpoint };

struct Cost {
  uint64_t data_blocks = 0;    // blocks of file data that will be placed
  uint64_t record_bytes = 0;   // tree records that will be added (keys and values); not those replaced
  Cost() = default;
  Cost(uint64_t blocks, uint64_t bytes) : data_blocks(blocks), record_bytes(bytes) {}
};

class SpaceLedger;

// A promise of so many blocks; gives back what it still holds when destroyed.
class Reservation {
 public:
  Reservation() = default;
  Reservation(SpaceLedger* ledger, uint64_t blocks) : ledger_(ledger), blocks_(blocks) {}
  Reservation(Reservation&& other) noexcept
      : ledger_(std::exchange(other.ledger_, nullptr)), blocks_(std::exchange(other.blocks_, 0)) {}
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { release(); }

  uint64_t blocks() const { return blocks_; }
  // Moves all of `other` into this one.
  void merge(Reservation&& other);
  // Splits off up to `blocks`.
  Reservation take(uint64_t blocks);
  // Gives back up to `blocks` (all by default).
  void release(uint64_t blocks = UINT64_MAX);

 private:
  SpaceLedger* ledger_ = nullptr;
  uint64_t blocks_ = 0;
};

// Blocks that a cost takes from the ledger: data with its chunk headers, and metadata at twice its
// size (half-full nodes), twice (copies), twice again (cleaning keeps node segments half full).
uint64_t blocks_of_cost(const Cost& cost);
// How many blocks of data, in one long run, can be had for so many blocks: as much is reserved for their
// chunks' headers, their checksums and the records that hold these.
uint64_t data_within(uint64_t blocks);
// And how many are kept for so many blocks of data: no less than data_within() wants for them.
uint64_t blocks_for_data(uint64_t data_blocks);

}  // namespace cofs
