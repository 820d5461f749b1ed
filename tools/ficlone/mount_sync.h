// sync(2) for cofs mounts: the kernel sends FUSE servers no SYNCFS unless they are block devices of
// fuseblk, so what programs do to make everything durable is told to each server by its own ioctl.
#pragma once

namespace cofs {

struct CloneSystem;

// Commits every cofs mount that /proc/self/mountinfo names and that answers, kSyncedMountsMax at
// most. Async-signal-safe, allocates nothing. Failures are not reported, as sync(2) reports none.
inline constexpr int kSyncedMountsMax = 64;
void sync_all_mounts(const CloneSystem& system);

// Commits the mount that `fd` is on. Returns 0, also if it is no cofs mount, or a negative errno.
long sync_mount_of(const CloneSystem& system, int fd);

}  // namespace cofs
