// SimRandom: the seeded source of every choice a simulation makes. One seed, one run.
#pragma once

#include <cmath>
#include <cstdint>

#include "offload/base/error.h"
#include "offload/base/executor.h"

namespace cofs {

class SimRandom final : public Random {
 public:
  explicit SimRandom(uint64_t seed) : state_(seed) {}

  // splitmix64: full period, every seed is a good one.
  uint64_t next() override {
    state_ += 0x9e3779b97f4a7c15U;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

  void fill_secret(std::span<std::byte> bytes) override {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(next());
  }

  // Uniform in [0, bound), bound >= 1.
  uint64_t below(uint64_t bound) {
    COFS_ASSERT(bound != 0);
    return next() % bound;
  }
  // Uniform in [low, high], both included.
  uint64_t between(uint64_t low, uint64_t high) {
    COFS_ASSERT(low <= high);
    return high - low == UINT64_MAX ? next() : low + below(high - low + 1);
  }
  // Uniform in (0, 1].
  double unit() { return static_cast<double>((next() >> 11) + 1) * 0x1.0p-53; }
  // True with the given probability; draws nothing when that is 0, so that switching a fault off
  // leaves the rest of a run as it was.
  bool chance(double probability) { return probability > 0 && unit() <= probability; }
  // Exponential with this mean.
  uint64_t exponential(uint64_t mean) {
    return static_cast<uint64_t>(-std::log(unit()) * static_cast<double>(mean));
  }

 private:
  uint64_t state_;
};

}  // namespace cofs
