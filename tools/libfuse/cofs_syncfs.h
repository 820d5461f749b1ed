/* syncfs(2) for servers: libfuse 3.18 has no handler for the request, so tools/build-libfuse adds one. The kernel sends it for
 * fuseblk mounts only (Linux 6.18). Installed beside libfuse's headers. */
#pragma once

#include <fuse_lowlevel.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Called for each such request, of any inode; answers with fuse_reply_err(). To be set before the session is mounted;
 * without one, or after NULL, the kernel hears ENOSYS and asks no more. */
void cofs_set_syncfs(void (*handler)(fuse_req_t request, fuse_ino_t ino));

#ifdef __cplusplus
}
#endif
