/* The request of syncfs(2), see cofs_syncfs.h. tools/build-libfuse has lib/fuse_lowlevel.c include this before its two
 * tables of requests, and adds these functions there: one for /dev/fuse, one for the queues of ring_queues.c. */
#include "cofs_syncfs.h"

static void (*syncfs_handler)(fuse_req_t request, fuse_ino_t ino);

void cofs_set_syncfs(void (*handler)(fuse_req_t request, fuse_ino_t ino)) {
  syncfs_handler = handler;
}

static void syncfs_by_device(fuse_req_t request, const fuse_ino_t ino, const void *arguments) {
  (void)arguments;
  if (syncfs_handler != NULL) {
    syncfs_handler(request, ino);
  } else {
    fuse_reply_err(request, ENOSYS);
  }
}

static void syncfs_by_ring(fuse_req_t request, const fuse_ino_t ino, const void *arguments, const void *payload) {
  (void)payload;
  syncfs_by_device(request, ino, arguments);
}
