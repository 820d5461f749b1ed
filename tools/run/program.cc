#include "tools/run/program.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "offload/target.h"

namespace cofs {

namespace {

constexpr int kInterpretersMax = 5;       // as in the kernel
constexpr size_t kScriptHeadBytes = 256;  // of a #! line, as in the kernel
constexpr size_t kProgramHeadersMax = 512;
constexpr size_t kNoteBytesMax = 4096;

#if defined(__x86_64__)
constexpr uint16_t kOwnMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t kOwnMachine = EM_AARCH64;
#else
#error "name the ELF machine of this architecture"
#endif

bool is_runnable_file(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0;
}

std::expected<std::string, int> search(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    if (access(name.c_str(), F_OK) != 0) return std::unexpected(errno);
    if (!is_runnable_file(name)) return std::unexpected(EACCES);
    return name;
  }
  const char* variable = getenv("PATH");
  std::string_view rest = variable != nullptr ? variable : "/bin:/usr/bin";
  bool is_refused = false;
  while (true) {
    const size_t colon = rest.find(':');
    const std::string_view directory = rest.substr(0, colon);
    const std::string path = (directory.empty() ? "." : std::string(directory)) + "/" + name;
    if (is_runnable_file(path)) return path;
    if (access(path.c_str(), F_OK) == 0) is_refused = true;
    if (colon == std::string_view::npos) break;
    rest.remove_prefix(colon + 1);
  }
  return std::unexpected(is_refused ? EACCES : ENOENT);
}

// Go's linker leaves a note of its name in every program.
bool has_go_note(int fd, const Elf64_Phdr& header) {
  std::vector<char> bytes(std::min<size_t>(header.p_filesz, kNoteBytesMax));
  const ssize_t got = pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(header.p_offset));
  if (got < 0) return false;
  size_t at = 0;
  while (at + sizeof(Elf64_Nhdr) + 4 <= static_cast<size_t>(got)) {
    Elf64_Nhdr note;
    std::memcpy(&note, bytes.data() + at, sizeof(note));
    if (note.n_namesz == 4 && std::memcmp(bytes.data() + at + sizeof(note), "Go\0", 4) == 0)
      return true;
    const uint64_t step = sizeof(note) + ((uint64_t{note.n_namesz} + 3) & ~3ull) +
                          ((uint64_t{note.n_descsz} + 3) & ~3ull);
    if (step > bytes.size()) return false;
    at += step;
  }
  return false;
}

ProgramKind kind_of_elf(int fd, const Elf64_Ehdr& header) {
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kOwnMachine ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    return ProgramKind::kForeign;
  }
  bool is_dynamic = false;
  for (size_t i = 0; i < std::min<size_t>(header.e_phnum, kProgramHeadersMax); i++) {
    Elf64_Phdr part;
    const off_t place = static_cast<off_t>(header.e_phoff + i * sizeof(part));
    if (pread(fd, &part, sizeof(part), place) != sizeof(part)) break;
    if (part.p_type == PT_INTERP) is_dynamic = true;
    if (part.p_type == PT_NOTE && has_go_note(fd, part)) return ProgramKind::kGo;
  }
  return is_dynamic ? ProgramKind::kDynamic : ProgramKind::kStatic;
}

// The interpreter that a #! line names; empty if there is none.
std::string interpreter_in(std::string_view head) {
  if (!head.starts_with("#!")) return {};
  head = head.substr(2, head.find('\n') - 2);
  const size_t begin = head.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  head.remove_prefix(begin);
  return std::string(head.substr(0, head.find_first_of(" \t")));
}

bool has_file_capabilities(const std::string& path) {
  char value[64];
  return getxattr(path.c_str(), "security.capability", value, sizeof(value)) > 0;
}

}  // namespace

std::expected<Program, int> find_program(const std::string& name) {
  std::expected<std::string, int> path = search(name);
  if (!path) return std::unexpected(path.error());
  Program program;
  program.path = *path;
  std::string file = *path;
  for (int depth = 0; depth < kInterpretersMax; depth++) {
    OwnedFd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
    // A program may be run without being readable: then nothing is known of it, as of a static one.
    if (!fd.valid()) {
      program.kind = ProgramKind::kStatic;
      return program;
    }
    struct stat info;
    if (fstat(fd.get(), &info) != 0) return std::unexpected(errno);
    // The kernel takes these bits from the program itself, not from a script.
    char head[kScriptHeadBytes] = {};
    const ssize_t got = pread(fd.get(), head, sizeof(head), 0);
    if (got < 0) return std::unexpected(errno);
    if (got >= static_cast<ssize_t>(sizeof(Elf64_Ehdr)) &&
        std::memcmp(head, ELFMAG, SELFMAG) == 0) {
      Elf64_Ehdr header;
      std::memcpy(&header, head, sizeof(header));
      program.kind = kind_of_elf(fd.get(), header);
      program.is_set_id = (info.st_mode & (S_ISUID | S_ISGID)) != 0 || has_file_capabilities(file);
      return program;
    }
    file = interpreter_in(std::string_view(head, static_cast<size_t>(got)));
    if (file.empty()) return program;  // execvp(3) gives it to the shell
  }
  return std::unexpected(ELOOP);
}

}  // namespace cofs
