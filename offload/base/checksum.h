// xxh3 over bytes: the one place where xxHash enters. Metadata carries 64 bits, data blocks 32.
//
// A data block's checksum is keyed to its virtual block by exclusive or, so that a copy made by the
// device can carry it over to another virtual block without the host seeing the data (rekey), and a
// block found under the wrong virtual number fails.
#pragma once

#include <cstdint>
#include <span>
#include <cstddef>

namespace cofs {

// 64-bit checksum of `bytes`, seeded: other seeds give unrelated values.
uint64_t checksum64(std::span<const std::byte> bytes, uint64_t seed);

// Content hash of one 4 KiB block; `block` has block_bytes bytes.
uint64_t block_hash(const std::byte* block);

// A strong mix of two words (for seeds and keys), not cryptographic.
uint64_t mix64(uint64_t a, uint64_t b);

// The stored checksum of a block whose content hash is `hash`, under virtual block `virtual_block`
// of the volume with `volume_key`.
inline uint32_t key_block_checksum(uint64_t hash, uint64_t virtual_block, uint64_t volume_key) {
  return static_cast<uint32_t>(hash) ^ static_cast<uint32_t>(mix64(virtual_block, volume_key));
}

// The stored checksum for the same content under another virtual block.
inline uint32_t rekey_block_checksum(uint32_t stored, uint64_t from, uint64_t to,
                                     uint64_t volume_key) {
  return stored ^ static_cast<uint32_t>(mix64(from, volume_key)) ^
         static_cast<uint32_t>(mix64(to, volume_key));
}

}  // namespace cofs
