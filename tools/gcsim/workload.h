// Workload: which page the simulated user overwrites next.
//
// Skews are named in text: "uniform"; "10/90": 10 percent of the data get 90 percent of the writes, each
// page of either part the same; "zipf:0.99": the page of rank k is written in proportion to k^-0.99. Which
// pages are popular has nothing to do with their order.
#pragma once

#include <cstdint>
#include <span>
#include <expected>
#include <string>
#include <vector>

#include "offload/base/executor.h"

namespace cofs {

// splitmix64: the seed tells the whole run.
class SeededRandom final : public Random {
 public:
  explicit SeededRandom(uint64_t seed) : state_(seed) {}
  uint64_t next() override {
    state_ += 0x9e3779b97f4a7c15U;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  void fill_secret(std::span<std::byte> bytes) override {  // nothing is secret here
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(next());
  }
  // Uniform in [0, bound), bound >= 1.
  uint64_t below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }
  double unit() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }  // in [0, 1)

 private:
  uint64_t state_;
};

struct Skew {
  enum class Kind : uint8_t { kUniform, kHotCold, kZipf };
  Kind kind = Kind::kUniform;
  double hot_data = 0;    // kHotCold: shares in (0, 1)
  double hot_writes = 0;
  double exponent = 0;    // kZipf: in (0, 4]
  std::string text;       // as it was given

  // The error says what is wrong with it.
  static std::expected<Skew, std::string> parse(const std::string& text);
};

class Workload {
 public:
  // Of pages [0, pages), at least 2.
  Workload(const Skew& skew, uint32_t pages);
  uint32_t next_page(SeededRandom& random) const;

 private:
  uint32_t page_of_rank(uint64_t rank) const;

  Skew skew_;
  uint32_t pages_;
  uint64_t step_ = 0x9e3779b1;  // of the permutation
  uint32_t hot_pages_ = 0;
  std::vector<double> share_up_to_;  // kZipf: of ranks up to each
};

}  // namespace cofs
