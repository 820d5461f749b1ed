// Reading a whole tree through the FileSystem interface, as a program would, into a ModelState.
//
// read_tree() wants everything to succeed; compare_damaged() is for volumes that were damaged: there an
// error is an answer, a wrong byte is not.
#pragma once

#include <cstdint>
#include <string>

#include "fs/filesystem.h"
#include "tests/testing/model_fs.h"

namespace cofs {

// The tree as it is, with all modification times known. Small files are read whole, large ones by
// their data ranges (SEEK_DATA, SEEK_HOLE). Errors: those of the filesystem; kCorrupt where its answers
// contradict each other.
Task<Result<ModelState>> read_tree(FileSystem& fs);

struct DamageReport {
  std::string wrong;       // the first answer that is neither right nor an error; "" if none
  uint64_t answers = 0;
  uint64_t errors = 0;
  DamageReport() = default;
};
// Asks everything about every object of the model. `any_answer`: wrong answers are ignored too (for
// damage that checksums cannot tell), so only asking matters.
Task<DamageReport> compare_damaged(FileSystem& fs, const ModelState& model, bool any_answer);

}  // namespace cofs
