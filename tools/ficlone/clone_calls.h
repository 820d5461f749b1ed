// FICLONE, FICLONERANGE, FIDEDUPERANGE and FIEMAP for files of cofs, which the kernel refuses on
// every FUSE mount: the checks that a kernel with these calls would make, and the sequence that has
// their effect. One source for the preloaded library, the supervisor of `cofs run` and `cofs
// clone`; what differs between them (whose memory, whose descriptors, whose limits) is a
// CloneSystem. Every call is tried as it is first, so this is silent on kernels that serve it.
//
// A clone is carried by copy_file_range, announced before: it alone keeps the kernel's caches
// right. docs/FICLONE.md says what holds and what does not.
//
// Freestanding: no exceptions, no allocation but mmap, nothing of the C++ library, so that it can
// be loaded into any program and called wherever ioctl(2) can. Not for: mounts that are not cofs;
// they keep the error that the kernel gave.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct cofs_map;

namespace cofs {

// What the sequence must know of a file. `device` and `inode` name it.
struct FileFacts {
  uint64_t device;
  uint64_t inode;
  uint64_t bytes;
  uint64_t mount;  // which no other mount ever has; 0: the kernel tells none (before Linux 6.8)
  bool is_regular;
  bool is_directory;
};

// What it must know of the filesystem that a file is on.
struct MountFacts {
  bool is_fuse;
  bool is_read_only;
};

// The world of the caller. Every function returns what the system call of that name does, or a
// negative errno; `fd` is a descriptor of this process. Descriptor numbers in the caller's
// arguments become such by `fetch`, once per number and call.
struct CloneSystem {
  void* context;  // handed to each function
  long (*read_memory)(void* context, uint64_t address, void* bytes, size_t count);  // 0 or -EFAULT
  long (*write_memory)(void* context, uint64_t address, const void* bytes, size_t count);
  long (*fetch)(void* context, int64_t number);  // a descriptor of this process, or -EBADF
  void (*release)(void* context, int fd);        // one that came from fetch
  long (*ioctl)(void* context, int fd, uint32_t request, void* argument);
  long (*stat)(void* context, int fd, FileFacts* facts);
  long (*statfs)(void* context, int fd, MountFacts* facts);
  // Without flags. Offsets advance by what is returned.
  long (*copy_file_range)(void* context, int source, int64_t* source_offset, int target,
                          int64_t* target_offset, size_t length);
  // Writes the range out and waits for that; length 0: to the end.
  long (*sync_range)(void* context, int fd, int64_t offset, int64_t length);
  long (*file_size_limit)(void* context, uint64_t* bytes);  // RLIMIT_FSIZE; UINT64_MAX without one
  void (*raise_file_size_signal)(void* context);            // SIGXFSZ to the caller
};

// Whether a request's number, of which ioctl(2) looks at 32 bits, is one of the four.
bool is_clone_request(uint64_t request);

// Performs one of the four: `fd` is a descriptor of this process, `argument` the caller's third
// one, a number or an address in its memory. Returns 0, a negative errno (EOPNOTSUPP if the file is
// none of ours), or kServedByKernel, if the caller's own system call gives the right answer.
inline constexpr long kServedByKernel = 1;
long clone_ioctl(const CloneSystem& system, int fd, uint32_t request, uint64_t argument);

// True if the descriptor is a file or directory on a mounted cofs. Asks no filesystem but FUSE
// ones, and each mount once as long as it is the one that was asked for last.
bool is_cofs_file(const CloneSystem& system, int fd);

// One page of extents, checked: at most COFS_MAP_EXTENTS, ascending, none empty. Negative errno.
long map_extents(const CloneSystem& system, int fd, uint64_t start, uint64_t length, bool sync,
                 cofs_map* page);

}  // namespace cofs
