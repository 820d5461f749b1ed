// RequestCounts: how many requests of each kind the kernel has sent to this mount.
//
// One counter for each function of libfuse's table that the server has; the names are that table's. What the
// library answers by itself is not among them: INIT, and ENOSYS for what is not in the table, which the kernel
// asks for once per mount. Not for: how long they take. Thread safety: all of it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace cofs {

class RequestCounts {
 public:
  static constexpr size_t kKindsMax = 48;

  void add(size_t kind) { counts_[kind].fetch_add(1, std::memory_order_relaxed); }
  // Of the kinds that came at all, in the table's order.
  std::vector<std::pair<std::string_view, uint64_t>> seen() const;

 private:
  std::array<std::atomic<uint64_t>, kKindsMax> counts_{};
};

}  // namespace cofs
