// Little-endian integers as they lie on the device: no alignment, explicit conversion both ways.
#pragma once

#include <cstdint>
#include <cstring>

namespace cofs {

template <class Integer>
class LittleEndian {
 public:
  LittleEndian() = default;
  LittleEndian(Integer value) { *this = value; }  // NOLINT: reads as the integer it stores

  LittleEndian& operator=(Integer value) {
    for (unsigned i = 0; i < sizeof(Integer); i++) {
      bytes_[i] = static_cast<uint8_t>(value >> (8 * i));
    }
    return *this;
  }
  operator Integer() const {  // NOLINT: reads as the integer it stores
    Integer value = 0;
    for (unsigned i = 0; i < sizeof(Integer); i++) {
      value = static_cast<Integer>(value | (static_cast<Integer>(bytes_[i]) << (8 * i)));
    }
    return value;
  }

 private:
  uint8_t bytes_[sizeof(Integer)];
};

using le16 = LittleEndian<uint16_t>;
using le32 = LittleEndian<uint32_t>;
using le64 = LittleEndian<uint64_t>;

static_assert(sizeof(le16) == 2 && sizeof(le32) == 4 && sizeof(le64) == 8);
static_assert(alignof(le64) == 1);

}  // namespace cofs
