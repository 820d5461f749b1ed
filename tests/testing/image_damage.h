// Damage to a volume's image: of the kind that checksums catch, and of the kind whose checksums were
// mended afterwards, as a hostile or very unlucky writer would leave it.
//
// Both return what they did, in words. Not for: faults of a device that is running (SimDevice).
#pragma once

#include <string>

#include "tests/testing/sim_image.h"
#include "tests/testing/sim_random.h"

namespace cofs {

// `count` blocks anywhere among those written: bits, sectors, zeros, swapped blocks, copies of other
// blocks, blocks that are lost.
std::string damage_anywhere(SimImage& image, uint64_t count, SimRandom& random);

// Changes one field or a few bytes inside the superblock, a tree node, or a chunk of the log, and then
// makes all checksums above it right again. "" if the structure it aimed at does not exist.
std::string damage_with_mended_checksums(SimImage& image, SimRandom& random);

}  // namespace cofs
