// SimScsiTarget: a disk in memory that serves the commands of the SCSI copy engines.
//
// It takes commands and parameter lists apart by the byte tables of the standards, on its own:
// nothing here is shared with the code that encodes them, so that a wrong offset on one side cannot
// be cancelled by the same on the other. It is as strict as the standards allow and enforces every
// limit it reports. Beyond that it fails where it is told to. Time passes only in pause(). Any
// thread may call it.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "offload/scsi_transport.h"
#include "tests/testing/sim_random.h"

namespace cofs {

struct SimScsiOptions {
  uint32_t lba_bytes = 512;
  uint64_t lba_count = 0;
  bool unit_attention_first = true;  // the first command but INQUIRY gets UNIT ATTENTION
  bool descriptor_sense = false;     // sense data in descriptor format

  // INQUIRY and its pages. Empty: one designator, an NAA of 16 bytes, as LIO has it.
  bool third_party_copy = true;
  std::vector<uint8_t> designators;
  uint32_t transfer_lbas_max = 0;  // page 0xB0; 0: not reported

  // EXTENDED COPY(LID1), as LIO reports it.
  bool xcopy = true;
  bool no_list_id = true;  // SNLID
  uint16_t cscds_max = 2;
  uint16_t cscds_min = 1;  // a target that wants source and target apart: 2
  uint16_t segments_max = 1;
  uint32_t list_bytes_max = 1024;
  uint32_t segment_bytes_max = 256U << 20;
  uint32_t held_data_max = 0;
  uint16_t copies_total = 1;
  uint8_t copies_max = 1;
  uint8_t granularity_log2 = 9;
  std::vector<uint8_t> descriptor_types = {0x02, 0xe4};

  // POPULATE TOKEN and WRITE USING TOKEN.
  bool tokens = false;
  bool limits_descriptor = true;    // page 0x8F has the Block Device ROD Limits
  bool commands_descriptor = true;  // page 0x8F has the Supported Commands
  uint16_t ranges_max = 8;
  uint32_t inactivity_max_s = 60;
  uint32_t inactivity_default_s = 30;
  uint64_t token_lbas_max = 0;  // 0: not reported, and no limit
  uint64_t optimal_lbas = 0;
  bool vulnerable_tokens = false;  // a write to its source ends a token, else it keeps the old data
  uint64_t populate_lbas_max = UINT64_MAX;  // a token covers no more, silently
  uint64_t write_lbas_max = UINT64_MAX;     // one write transfers no more, silently
  uint8_t short_write_status = 3;  // of a write that transferred less: 3 by SBC, 4 in the field
  // So many answers about a token, or a write, say "in progress", even if IMMED was 0.
  uint32_t polls_until_token = 0;
  uint32_t polls_until_written = 0;
  uint32_t update_delay_ms = 20;  // which such an answer asks for until the next
};

struct SimScsiFaults {
  uint32_t busy_times = 0;  // BUSY and TASK SET FULL in turn
  uint32_t unit_attention_times = 0;
  bool reservation_conflict = false;
  uint32_t good_copies = UINT32_MAX;  // copy commands until `then` happens to all that follow
  enum class Then : uint8_t {
    kCopyAborted,    // COPY ABORTED, nothing said about what was done
    kInvalidOpcode,  // the target forgot the command
    kMediumError,
    kTimedOut,  // the kernel aborts it
    kGone,
    kLost,
    kNotPermitted,
  } then = Then::kCopyAborted;
  int fail_segment = -1;        // this segment of each command fails, those before it are copied
  bool copies_nothing = false;  // reports success
  uint64_t fail_write_after_lbas = UINT64_MAX;  // WRITE USING TOKEN: done with errors from there on
  uint32_t response_bytes_max = UINT32_MAX;     // data is cut to this, the status is GOOD
  uint64_t garbage_seed = 0;                    // not 0: data of all responses is random
  bool write_answer_lost =
      false;  // WRITE USING TOKEN begins, but the kernel gets no answer in time
  bool abort_does_nothing = false;  // COPY OPERATION ABORT is GOOD, the operation goes on
  bool forgets_tokens = false;      // every token is unknown when used
};

class SimScsiTarget final : public ScsiTransport {
 public:
  explicit SimScsiTarget(SimScsiOptions options);

  ScsiOutcome execute(const ScsiCommand& command) override;
  void pause(std::chrono::milliseconds time) override;

  void set_faults(const SimScsiFaults& faults);
  std::span<uint8_t> memory() { return memory_; }

  // Since construction.
  struct Counters {
    uint64_t commands = 0;
    uint64_t xcopies = 0;  // EXTENDED COPY that succeeded and had at least one block
    uint64_t segments = 0;
    uint64_t populates = 0;
    uint64_t token_writes = 0;
    uint64_t polls = 0;
    uint64_t aborts = 0;  // COPY OPERATION ABORT
    uint64_t paused_ms = 0;
  };
  Counters counters();

 private:
  struct Answer {
    uint8_t status = 0;
    uint8_t key = 0, asc = 0, ascq = 0;
    std::vector<uint8_t> data;
    ScsiDelivery delivery = ScsiDelivery::kAnswered;
  };
  struct Range {
    uint64_t lba = 0;
    uint64_t count = 0;
  };
  struct Token {
    std::vector<uint8_t> data;  // as it was when the token was made
    std::vector<Range> sources;
    uint64_t expires_ms = 0;
    uint64_t inactivity_ms = 0;
    bool invalid = false;
  };
  // What RECEIVE ROD TOKEN INFORMATION tells about one list identifier.
  struct Operation {
    uint8_t action = 0;
    uint8_t status = 0;  // once it is done
    uint32_t polls_left = 0;
    uint64_t transferred = 0;
    uint8_t key = 0, asc = 0, ascq = 0;
    std::vector<uint8_t> token;
    std::vector<std::pair<uint64_t, std::vector<uint8_t>>> pending;  // to be written: LBA, bytes
  };

  static Answer check(uint8_t key, uint8_t asc, uint8_t ascq);
  Answer dispatch(const ScsiCommand& command);
  bool fault_of_copy(Answer* answer);
  Answer inquiry(const uint8_t* cdb);
  Answer page(uint8_t code);
  Answer read_capacity();
  std::vector<uint8_t> sense_of(const Answer& answer) const;
  bool on_disk(uint64_t lba, uint64_t count) const;
  void store(uint64_t lba, std::span<const uint8_t> bytes);

  // sim_scsi_xcopy.cc
  Answer operating_parameters();
  Answer extended_copy(const uint8_t* cdb, std::span<const uint8_t> list);
  Answer check_cscd(std::span<const uint8_t> cscd) const;
  Answer check_segment(std::span<const uint8_t> segment, size_t cscds) const;
  Answer copy_segment(std::span<const uint8_t> segment);

  // sim_scsi_token.cc
  std::vector<uint8_t> third_party_page() const;
  Answer populate_token(const uint8_t* cdb, std::span<const uint8_t> list);
  Answer write_using_token(const uint8_t* cdb, std::span<const uint8_t> list);
  Answer begin(const uint8_t* cdb, Operation operation, bool immediate);
  void finish(Operation& operation);
  Answer token_information(const uint8_t* cdb);
  Answer abort_operation(const uint8_t* cdb);
  bool parse_ranges(std::span<const uint8_t> bytes, std::vector<Range>* ranges,
                    Answer* answer) const;

  std::mutex mutex_;
  SimScsiOptions options_;
  SimScsiFaults faults_;
  std::vector<uint8_t> memory_;
  SimRandom random_{1};
  Counters counters_;
  uint64_t now_ms_ = 0;
  uint32_t copies_ = 0;
  bool attention_ = false;
  std::map<std::vector<uint8_t>, Token> tokens_;
  std::map<uint32_t, Operation> operations_;
};

}  // namespace cofs
