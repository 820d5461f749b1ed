#include "offload/base/error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace cofs {
namespace {

struct CodeInfo {
  int errno_class;
  std::string_view name;
};

CodeInfo info_of(Code code) {
  switch (code) {
    case Code::kInvalid: return {EINVAL, "invalid argument"};
    case Code::kNoEntry: return {ENOENT, "no such entry"};
    case Code::kExists: return {EEXIST, "already exists"};
    case Code::kNotDirectory: return {ENOTDIR, "not a directory"};
    case Code::kIsDirectory: return {EISDIR, "is a directory"};
    case Code::kNotEmpty: return {ENOTEMPTY, "directory not empty"};
    case Code::kNameTooLong: return {ENAMETOOLONG, "name too long"};
    case Code::kNotPermitted: return {EPERM, "not permitted"};
    case Code::kAccess: return {EACCES, "access denied"};
    case Code::kReadOnly: return {EROFS, "read-only filesystem"};
    case Code::kFileTooBig: return {EFBIG, "file too big"};
    case Code::kTooManyLinks: return {EMLINK, "too many links"};
    case Code::kNotSupported: return {EOPNOTSUPP, "not supported"};
    case Code::kNoAttribute: return {ENODATA, "no such attribute"};
    case Code::kRange: return {ERANGE, "out of range"};
    case Code::kTooBig: return {E2BIG, "value too big"};
    case Code::kStale: return {ESTALE, "stale handle"};
    case Code::kNoSuchOffset: return {ENXIO, "no such offset"};
    case Code::kCrossDevice: return {EXDEV, "different filesystems"};
    case Code::kBusy: return {EBUSY, "busy"};
    case Code::kInterrupted: return {EINTR, "interrupted"};
    case Code::kBadHandle: return {EBADF, "open file does not allow it"};
    case Code::kNoSpace: return {ENOSPC, "no space left"};
    case Code::kNoMemory: return {ENOMEM, "out of memory"};
    case Code::kIo: return {EIO, "device error"};
    case Code::kChecksum: return {EIO, "checksum mismatch"};
    case Code::kCorrupt: return {EUCLEAN, "corrupt structure"};
    case Code::kShutdown: return {EIO, "filesystem is shut down"};
    case Code::kTimedOut: return {ETIMEDOUT, "device timed out"};
    case Code::kNotCofs: return {EINVAL, "not a cofs filesystem"};
    case Code::kUnknownFeature: return {EOPNOTSUPP, "unknown feature"};
  }
  return {EIO, "unknown error"};
}

}  // namespace

int errno_of(Code code) { return info_of(code).errno_class; }

std::string_view name_of(Code code) { return info_of(code).name; }

std::string describe(const Error& error) {
  std::string line(name_of(error.code));
  if (*error.what != '\0') {
    line += ": ";
    line += error.what;
  }
  if (error.where != 0) {
    line += " (at ";
    line += std::to_string(error.where);
    line += ')';
  }
  return line;
}

void assertion_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "cofs: assertion failed: %s (%s:%d)\n", expression, file, line);
  std::abort();
}

}  // namespace cofs
