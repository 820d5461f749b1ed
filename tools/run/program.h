// What a command is that someone wants to run: which file, and whether a preloaded library reaches
// it.
#pragma once

#include <expected>
#include <string>

namespace cofs {

enum class ProgramKind {
  kDynamic,  // loads libraries: a preloaded one works
  kStatic,   // makes its system calls itself
  kGo,       // makes its system calls itself, also where it loads libraries
  kForeign,  // of another architecture or word size
};

struct Program {
  std::string path;
  ProgramKind kind = ProgramKind::kDynamic;
  bool is_set_id = false;  // gains an identity: the loader then ignores LD_PRELOAD
};

// Finds `name` as execvp(3) does and looks at it; of a script, at its interpreter. Errors: the
// errno of what failed.
std::expected<Program, int> find_program(const std::string& name);

}  // namespace cofs
