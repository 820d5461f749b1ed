// Error values: every fallible function of cofs returns Result<T> = std::expected<T, Error>.
//
// A Code is ours and says what happened; its errno class is what a program sees, and is applied in
// two places only: the FUSE reply and the tools' mains. Bad bytes from a device are a Code, never an
// assertion. No exception crosses a function of ours.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

namespace cofs {

enum class Code : uint16_t {
  // Requests that cannot be served as asked.
  kInvalid,          // EINVAL
  kNoEntry,          // ENOENT
  kExists,           // EEXIST
  kNotDirectory,     // ENOTDIR
  kIsDirectory,      // EISDIR
  kNotEmpty,         // ENOTEMPTY
  kNameTooLong,      // ENAMETOOLONG
  kNotPermitted,     // EPERM
  kAccess,           // EACCES
  kReadOnly,         // EROFS
  kFileTooBig,       // EFBIG
  kTooManyLinks,     // EMLINK
  kNotSupported,     // EOPNOTSUPP
  kNoAttribute,      // ENODATA
  kRange,            // ERANGE
  kTooBig,           // E2BIG
  kStale,            // ESTALE
  kNoSuchOffset,     // ENXIO (lseek SEEK_DATA / SEEK_HOLE past the end)
  kCrossDevice,      // EXDEV
  kBusy,             // EBUSY
  kBadHandle,        // EBADF: the open file does not allow it
  kInterrupted,      // EINTR: whoever asked is gone
  // Resources.
  kNoSpace,          // ENOSPC
  kNoMemory,         // ENOMEM
  // The device or what it returned.
  kIo,               // EIO: the device failed the request
  kChecksum,         // EIO: the device answered, with bytes that are not those written
  kCorrupt,          // EUCLEAN: a structure on the device breaks a rule of docs/ONDISK.md
  kShutdown,         // EIO: the filesystem stopped writing after an earlier failure
  kTimedOut,         // ETIMEDOUT: the device did not answer; the request may still take effect
  kNotCofs,          // EINVAL: no superblock of ours
  kUnknownFeature,   // EOPNOTSUPP: an incompatible feature bit this build does not know
};

struct Error {
  Code code = Code::kInvalid;
  const char* what = "";  // a static string: which step failed
  uint64_t where = 0;     // block, inode or offset that the step was about; 0 when there is none

  Error() = default;
  Error(Code c, const char* w, uint64_t at = 0) : code(c), what(w), where(at) {}
};

template <class T = void>
using Result = std::expected<T, Error>;

// The errno class of a code, positive.
int errno_of(Code code);

// The code's name in words ("no space left"), and one line for a person: name, step and place.
std::string_view name_of(Code code);
std::string describe(const Error& error);

inline std::unexpected<Error> fail(Code code, const char* what, uint64_t where = 0) {
  return std::unexpected<Error>(Error(code, what, where));
}
inline std::unexpected<Error> fail(const Error& error) { return std::unexpected<Error>(error); }

// A bug of ours stops the program, also in release builds.
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);

}  // namespace cofs

#define COFS_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::cofs::assertion_failed(#expression, __FILE__, __LINE__))

// `COFS_CO_TRY(x)`: in a coroutine, co_return the error of a Result<> expression. The expression must
// not contain co_await (g++ 12): `auto r = co_await f(); COFS_CO_TRY(r);`.
#define COFS_CO_TRY(result)                                        \
  do {                                                             \
    if (!(result)) co_return std::unexpected(std::move((result).error())); \
  } while (0)
#define COFS_TRY(result)                                        \
  do {                                                          \
    if (!(result)) return std::unexpected((result).error());   \
  } while (0)
