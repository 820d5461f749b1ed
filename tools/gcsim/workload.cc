#include "tools/gcsim/workload.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string_view>

namespace cofs {
namespace {

// The whole text as a number in (0, limit]; 0 if it is none.
double parse_number(std::string_view text, double limit) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return 0;
  return value > 0 && value <= limit ? value : 0;
}

constexpr std::string_view kZipfPrefix = "zipf:";

}  // namespace

std::expected<Skew, std::string> Skew::parse(const std::string& text) {
  Skew skew;
  skew.text = text;
  if (text == "uniform") return skew;
  const std::string_view view = text;
  if (view.starts_with(kZipfPrefix)) {
    skew.kind = Kind::kZipf;
    skew.exponent = parse_number(view.substr(kZipfPrefix.size()), 4);
    if (skew.exponent == 0) return std::unexpected(text + ": zipf:EXPONENT wants one in (0, 4]");
    return skew;
  }
  const size_t slash = view.find('/');
  if (slash == std::string_view::npos) {
    return std::unexpected(text + ": a skew is uniform, DATA/WRITES in percent, or zipf:EXPONENT");
  }
  skew.kind = Kind::kHotCold;
  skew.hot_data = parse_number(view.substr(0, slash), 99) / 100;
  skew.hot_writes = parse_number(view.substr(slash + 1), 99.999) / 100;
  if (skew.hot_data == 0 || skew.hot_writes == 0) {
    return std::unexpected(text + ": DATA/WRITES are percentages above 0 and below 100");
  }
  return skew;
}

Workload::Workload(const Skew& skew, uint32_t pages) : skew_(skew), pages_(pages) {
  while (std::gcd(step_, uint64_t{pages}) != 1) step_++;
  if (skew.kind == Skew::Kind::kHotCold) {
    hot_pages_ = std::clamp(static_cast<uint32_t>(skew.hot_data * pages), 1U, pages - 1);
  }
  if (skew.kind != Skew::Kind::kZipf) return;
  share_up_to_.resize(pages);
  double sum = 0;
  for (uint32_t rank = 0; rank < pages; rank++) {
    sum += std::pow(rank + 1.0, -skew.exponent);
    share_up_to_[rank] = sum;
  }
  for (double& share : share_up_to_) share /= sum;
}

// A permutation without a table: multiplication by a number that has no factor in common.
uint32_t Workload::page_of_rank(uint64_t rank) const {
  return static_cast<uint32_t>(rank * step_ % pages_);
}

uint32_t Workload::next_page(SeededRandom& random) const {
  switch (skew_.kind) {
    case Skew::Kind::kUniform: return static_cast<uint32_t>(random.below(pages_));
    case Skew::Kind::kHotCold: {
      const bool hot = random.unit() < skew_.hot_writes;
      return page_of_rank(hot ? random.below(hot_pages_)
                              : hot_pages_ + random.below(pages_ - hot_pages_));
    }
    case Skew::Kind::kZipf: break;
  }
  const auto found =
      std::upper_bound(share_up_to_.begin(), share_up_to_.end(), random.unit());
  const auto rank = static_cast<uint64_t>(found - share_up_to_.begin());
  return page_of_rank(std::min<uint64_t>(rank, pages_ - 1));
}

}  // namespace cofs
