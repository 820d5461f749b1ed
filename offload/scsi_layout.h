// Big-endian integers as they lie in SCSI commands and data: no alignment, explicit conversion both
// ways; and reading of structures, which checks how much the device really sent.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

#include "offload/base/error.h"

namespace cofs {

template <class Integer>
class BigEndian {
 public:
  BigEndian() = default;
  BigEndian(Integer value) { *this = value; }  // NOLINT: reads as the integer it stores

  BigEndian& operator=(Integer value) {
    for (unsigned i = 0; i < sizeof(Integer); i++) {
      bytes_[sizeof(Integer) - 1 - i] = static_cast<uint8_t>(value >> (8 * i));
    }
    return *this;
  }
  operator Integer() const {  // NOLINT: reads as the integer it stores
    Integer value = 0;
    for (uint8_t byte : bytes_) {
      value = static_cast<Integer>(static_cast<Integer>(value << 8) | byte);
    }
    return value;
  }

 private:
  uint8_t bytes_[sizeof(Integer)];
};

using be16 = BigEndian<uint16_t>;
using be32 = BigEndian<uint32_t>;
using be64 = BigEndian<uint64_t>;

static_assert(sizeof(be16) == 2 && sizeof(be32) == 4 && sizeof(be64) == 8);
static_assert(alignof(be64) == 1);

// The structure that lies at `offset`; nothing where the data ends before it does.
template <class T>
std::optional<T> read_as(std::span<const uint8_t> data, size_t offset = 0) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
  if (offset > data.size() || data.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(static_cast<void*>(&value), data.data() + offset, sizeof(T));
  return value;
}

// Writes a structure at `offset`. REQUIRES: it fits.
template <class T>
void write_as(std::span<uint8_t> data, size_t offset, const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
  COFS_ASSERT(offset <= data.size() && data.size() - offset >= sizeof(T));
  std::memcpy(data.data() + offset, &value, sizeof(T));
}

}  // namespace cofs
