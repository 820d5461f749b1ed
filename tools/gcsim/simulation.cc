#include "tools/gcsim/simulation.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "blockmap/gc_victims.h"
#include "blockmap/segment_table.h"

namespace cofs {
namespace {

constexpr uint64_t kSegmentsKept = 4;  // usable ones, at all times: the reserve of collection
constexpr uint32_t kNowhere = UINT32_MAX;
constexpr int kSampleSize = 30;

// The tree is never written, so nothing can be read.
class NoNodes final : public NodeReader {
 public:
  Task<Result<BufferRef>> read_node(NodePointer) override {
    co_return fail(Code::kCorrupt, "the simulated tree has no images");
  }
};

Geometry geometry_of(const SimOptions& options) {
  Geometry geometry;
  geometry.segment_blocks = options.segment_blocks;
  geometry.segment_count = options.segments + 1;  // one is never used: that of the middle superblock
  geometry.first_segment_block = options.segment_blocks;
  geometry.block_count = (geometry.segment_count + 1) * options.segment_blocks;
  geometry.node_bytes = ondisk::kNodeBytesDefault;
  return geometry;
}

bool one_log(SimPolicy policy) {
  return policy == SimPolicy::kOneLog || policy == SimPolicy::kGreedyOneLog ||
         policy == SimPolicy::kFifoOneLog;
}

class Volume {
 public:
  explicit Volume(const SimOptions& options)
      : options_(options),
        geometry_(geometry_of(options)),
        pages_per_segment_(static_cast<uint32_t>(options.pages_per_segment())),
        live_pages_(static_cast<uint32_t>(options.live_pages())),
        random_(options.seed),
        buffers_(0),
        tree_(nodes_, buffers_, TreeOptions(), NodePointer(), 0),
        table_(geometry_, tree_),
        victims_(geometry_, table_, random_),
        page_in_slot_(geometry_.segment_count * pages_per_segment_, kNowhere),
        slot_of_page_(live_pages_, kNowhere) {
    table_.set_counts(options.segments, 0);
    table_.set_observer([this](uint64_t segment, const SegmentState& state) {
      victims_.note(segment, state);
    });
    if (by_birth()) {
      page_born_.resize(live_pages_);
      newest_in_.resize(geometry_.segment_count);
    }
  }

  Task<Result<SimResult>> run() {
    const Workload workload(options_.skew, live_pages_);
    for (uint32_t page = 0; page < live_pages_; page++) {
      auto written = co_await write(page);
      COFS_CO_TRY(written);
    }
    const auto warm_up = static_cast<uint64_t>(options_.warm_up * live_pages_);
    const auto measure = static_cast<uint64_t>(options_.measure * live_pages_);
    for (uint64_t n = 0; n < warm_up + measure; n++) {
      if (n == warm_up) result_ = SimResult();
      auto written = co_await write(workload.next_page(random_));
      COFS_CO_TRY(written);
    }
    result_.full_searches = victims_.full_searches();
    co_return result_;
  }

 private:
  struct Stream {  // the live pages of an open segment are counted here until it is sealed
    bool open = false;
    uint64_t segment = 0;
    uint32_t filled = 0;
    uint32_t live = 0;
  };

  bool by_birth() const {
    return options_.policy == SimPolicy::kCostBenefitBorn ||
           options_.policy == SimPolicy::kCofsBorn;
  }

  Task<Result<>> write(uint32_t page) {
    while (table_.usable_count() < kSegmentsKept) {
      release();
      if (table_.usable_count() >= kSegmentsKept) break;
      auto collected = co_await collect();
      COFS_CO_TRY(collected);
    }
    const uint32_t old_slot = slot_of_page_[page];
    if (old_slot != kNowhere && !drop_from_open(old_slot)) {
      auto dropped = co_await table_.add_live(old_slot / pages_per_segment_,
                                              -int64_t{options_.page_blocks}, Hold());
      COFS_CO_TRY(dropped);
    }
    if (by_birth()) page_born_[page] = next_virtual_;
    next_virtual_ += options_.page_blocks;
    result_.user_pages++;
    if (place(page, ondisk::Stream::kData)) co_return Result<>();
    auto turned = co_await turn_over(ondisk::Stream::kData);
    COFS_CO_TRY(turned);
    place(page, ondisk::Stream::kData);
    co_return Result<>();
  }

  // False: it lies in a sealed segment.
  bool drop_from_open(uint32_t slot) {
    const uint64_t segment = slot / pages_per_segment_;
    for (Stream& stream : streams_) {
      if (!stream.open || stream.segment != segment) continue;
      stream.live--;
      return true;
    }
    return false;
  }

  // False: the stream has no room.
  bool place(uint32_t page, ondisk::Stream kind) {
    Stream& stream = streams_[static_cast<size_t>(kind)];
    if (!stream.open || stream.filled == pages_per_segment_) return false;
    const auto slot = static_cast<uint32_t>(stream.segment * pages_per_segment_ + stream.filled);
    page_in_slot_[slot] = page;
    slot_of_page_[page] = slot;
    stream.live++;
    stream.filled++;
    if (by_birth()) {
      newest_in_[stream.segment] = std::max(newest_in_[stream.segment], page_born_[page]);
    }
    return true;
  }

  // Seals the stream's full segment and opens another.
  Task<Result<>> turn_over(ondisk::Stream kind) {
    Stream& stream = streams_[static_cast<size_t>(kind)];
    if (stream.open) {
      stream.open = false;
      const int64_t blocks = int64_t{stream.live} * options_.page_blocks;
      auto counted = co_await table_.add_live(stream.segment, blocks, Hold());
      COFS_CO_TRY(counted);
      auto sealed = co_await table_.seal(stream.segment, next_virtual_, Hold());
      COFS_CO_TRY(sealed);
    }
    auto opened = co_await table_.open_free(kind, next_virtual_);
    COFS_CO_TRY(opened);
    stream = Stream();
    stream.open = true;
    stream.segment = *opened;
    if (by_birth()) newest_in_[*opened] = 0;
    co_return Result<>();
  }

  // All that was freed may be used at once.
  void release() {
    if (table_.held_count() == 0) return;
    for (uint64_t segment : table_.release_held(HoldProgress())) table_.add_usable(segment);
  }

  // Empties one victim.
  Task<Result<>> collect() {
    auto chosen = co_await choose();
    COFS_CO_TRY(chosen);
    if (!chosen->has_value()) {
      co_return fail(Code::kNoSpace, "no segment gains any more: the utilisation is too high");
    }
    const GcCandidate& victim = **chosen;
    const bool moved_before =
        victim.stream == ondisk::Stream::kGcWarm || victim.stream == ondisk::Stream::kGcCold;
    const ondisk::Stream target = one_log(options_.policy) ? ondisk::Stream::kData
                                  : moved_before           ? ondisk::Stream::kGcCold
                                                           : ondisk::Stream::kGcWarm;
    const auto first = static_cast<uint32_t>(victim.segment * pages_per_segment_);
    uint32_t moved = 0;
    for (uint32_t slot = first; slot < first + pages_per_segment_; slot++) {
      const uint32_t page = page_in_slot_[slot];
      if (slot_of_page_[page] != slot) continue;
      if (!place(page, target)) {
        auto turned = co_await turn_over(target);
        COFS_CO_TRY(turned);
        place(page, target);
      }
      moved++;
    }
    result_.victims++;
    result_.moved_pages += moved;
    auto emptied =
        co_await table_.add_live(victim.segment, -int64_t{moved} * options_.page_blocks, Hold());
    COFS_CO_TRY(emptied);
    release();
    co_return Result<>();
  }

  Task<Result<std::optional<GcCandidate>>> choose() {
    const bool own_choice = options_.policy != SimPolicy::kCofs &&
                            options_.policy != SimPolicy::kOneLog &&
                            options_.policy != SimPolicy::kUrgent;
    if (own_choice) {
      auto compared = co_await choose_otherwise();
      co_return compared;
    }
    const GcVictims::MayTake anything = [](uint64_t, const SegmentState&) { return true; };
    if (options_.policy != SimPolicy::kUrgent) {
      auto paced = co_await victims_.choose(GcUrgency::kPaced, next_virtual_, &anything);
      COFS_CO_TRY(paced);
      if (paced->has_value()) co_return paced;
    }
    auto urgent = co_await victims_.choose(GcUrgency::kUrgent, next_virtual_, &anything);
    co_return urgent;
  }

  double score_otherwise(uint64_t segment, const SegmentState& state) const {
    const double u = static_cast<double>(state.live_blocks) / options_.segment_blocks;
    const uint64_t birth = by_birth() ? newest_in_[segment] : state.age;
    const auto age = static_cast<double>(next_virtual_ - birth + 1);
    switch (options_.policy) {
      case SimPolicy::kFifoOneLog: return age;
      case SimPolicy::kCostBenefit:
      case SimPolicy::kCostBenefitBorn: return (1 - u) * age / (1 + u);
      case SimPolicy::kCofsBorn: {
        GcCandidate candidate;
        candidate.live_blocks = state.live_blocks;
        candidate.age = birth;
        return gc_score(candidate, options_.segment_blocks, next_virtual_, GcUrgency::kPaced);
      }
      default: return 1 - u;
    }
  }

  // The policies that cofs does not have, for comparison.
  Task<Result<std::optional<GcCandidate>>> choose_otherwise() {
    std::optional<GcCandidate> best;
    double best_score = 0;
    const auto look = [&](uint64_t segment, const SegmentState& state) {
      if (state.state != ondisk::SegmentState::kSealed) return false;
      // One that is full wins nothing.
      if (state.live_blocks == options_.segment_blocks) return false;
      const double score = score_otherwise(segment, state);
      if (best && score <= best_score) return true;
      best_score = score;
      best.emplace();
      best->segment = segment;
      best->stream = state.stream;
      best->live_blocks = state.live_blocks;
      return true;
    };
    if (by_birth() || options_.policy == SimPolicy::kCostBenefit) {
      for (int found = 0, draws = 0; found < kSampleSize && draws < 8 * kSampleSize; draws++) {
        const uint64_t segment = random_.below(geometry_.segment_count);
        if (segment == geometry_.reserved_segment()) continue;
        auto state = co_await table_.load(segment);
        COFS_CO_TRY(state);
        if (look(segment, **state)) found++;
      }
      if (best) co_return best;
    }
    uint64_t cursor = 0;
    auto visited = co_await table_.visit_some(
        cursor, UINT64_MAX, [&](uint64_t segment, const SegmentState& state) { look(segment, state); });
    COFS_CO_TRY(visited);
    co_return best;
  }

  const SimOptions options_;
  const Geometry geometry_;
  const uint32_t pages_per_segment_;
  const uint32_t live_pages_;
  SeededRandom random_;
  NoNodes nodes_;
  BufferPool buffers_;
  BTree tree_;
  SegmentTable table_;
  GcVictims victims_;
  std::array<Stream, ondisk::kStreamCount> streams_;
  std::vector<uint32_t> page_in_slot_;
  std::vector<uint32_t> slot_of_page_;
  std::vector<uint64_t> page_born_;   // policies by birth only
  std::vector<uint64_t> newest_in_;
  uint64_t next_virtual_ = 1;
  SimResult result_;
};

Task<void> keep_result(Volume* volume, std::optional<Result<SimResult>>* result) {
  auto done = co_await volume->run();
  result->emplace(std::move(done));
}

}  // namespace

std::string_view name_of(SimPolicy policy) {
  switch (policy) {
    case SimPolicy::kCofs: return "cofs";
    case SimPolicy::kUrgent: return "urgent";
    case SimPolicy::kOneLog: return "one-log";
    case SimPolicy::kGreedy: return "greedy";
    case SimPolicy::kGreedyOneLog: return "greedy-one-log";
    case SimPolicy::kFifoOneLog: return "fifo-one-log";
    case SimPolicy::kCostBenefit: return "cost-benefit";
    case SimPolicy::kCostBenefitBorn: return "cost-benefit-born";
    case SimPolicy::kCofsBorn: break;
  }
  return "cofs-born";
}

std::string_view explain(SimPolicy policy) {
  switch (policy) {
    case SimPolicy::kCofs: return "what the store does";
    case SimPolicy::kUrgent: return "what the store does while somebody waits for room";
    case SimPolicy::kOneLog: return "the store's victims, survivors written among new data";
    case SimPolicy::kGreedy: return "the emptiest of all, survivors apart";
    case SimPolicy::kGreedyOneLog: return "the emptiest of all, survivors among new data";
    case SimPolicy::kFifoOneLog: return "the one sealed first, survivors among new data";
    case SimPolicy::kCostBenefit: return "of 30, (1-u) age/(1+u), age since it was sealed";
    case SimPolicy::kCostBenefitBorn: return "of 30, (1-u) age/(1+u), age of its newest block";
    case SimPolicy::kCofsBorn: break;
  }
  return "of 30, the store's score with the age of the newest block";
}

std::string check(const SimOptions& options) {
  if (options.page_blocks == 0 || options.segment_blocks % options.page_blocks != 0) {
    return "pages do not fill segments";
  }
  if (options.segment_blocks < 16 || options.pages_per_segment() < 8) {
    return "a segment needs at least 16 blocks and 8 pages";
  }
  if (options.segments < 32) return "a volume needs at least 32 segments";
  if (options.segments > (UINT32_MAX - 1) / options.pages_per_segment() - 1) {
    return fmt::format("{} segments of {} pages are too many: at most 2^32 pages (larger pages?)",
                       options.segments, options.pages_per_segment());
  }
  if (!(options.utilisation > 0 && options.utilisation < 1)) return "utilisation is in (0, 1)";
  if (options.live_pages() < 100) return "too little data: nothing to measure";
  const uint64_t spare = kSegmentsKept + ondisk::kStreamCount;
  if (options.live_pages() > (options.segments - spare) * options.pages_per_segment()) {
    return fmt::format("utilisation {:.3f} leaves less than {} segments free", options.utilisation,
                       spare);
  }
  if (!(options.warm_up >= 0 && options.warm_up <= 1000)) return "warm-up is in [0, 1000]";
  if (!(options.measure > 0 && options.measure <= 1000)) return "measure is in (0, 1000]";
  return "";
}

std::expected<SimResult, std::string> simulate(const SimOptions& options) {
  COFS_ASSERT(check(options).empty());
  Volume volume(options);
  std::optional<Result<SimResult>> result;
  detach(keep_result(&volume, &result)).resume();
  COFS_ASSERT(result.has_value());  // nothing here ever waits
  if (!*result) return std::unexpected(describe(result->error()));
  return **result;
}

double analytic_greedy(double utilisation) {
  const double t = 1 / utilisation;  // 1 + r
  // Lambert's W of -t e^-t on its principal branch, by Halley's method.
  const double x = -t * std::exp(-t);
  double w = -0.5;
  for (int i = 0; i < 100; i++) {
    const double e = std::exp(w);
    const double f = w * e - x;
    w -= f / (e * (w + 1) - (w + 2) * f / (2 * w + 2));
  }
  return t / (t + w);
}

}  // namespace cofs
