/* The private ioctls of a mounted cofs: for any file or directory of it, opened for reading.
 *
 * They query and announce; none of them changes a file's data (the kernel's caches would not learn
 * of it). This header is plain C, for programs of others. Fields marked 0 must be zero.
 */
#ifndef COFS_IOCTL_H
#define COFS_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define COFS_IOCTL_TYPE 0xCF

/* Makes everything done so far durable, as fsync(2) of every file and directory would. */
#define COFS_IOC_SYNC _IO(COFS_IOCTL_TYPE, 1)

/* A page of a text that the server keeps while it is being fetched. Ask first with offset and
 * snapshot 0; then with the snapshot that came back and offset advanced by length, until total
 * bytes are there. EAGAIN: the text was replaced by another reader's; begin again. */
#define COFS_TEXT_PAGE_BYTES 16000
struct cofs_text_page {
  __u64 snapshot;
  __u32 offset;
  __u32 length;   /* out: bytes in text */
  __u32 total;    /* out: bytes of the whole text */
  __u32 reserved; /* 0 */
  char text[COFS_TEXT_PAGE_BYTES];
};

/* Statistics as JSON text. */
#define COFS_IOC_STATISTICS _IOWR(COFS_IOCTL_TYPE, 2, struct cofs_text_page)

struct cofs_server_info {
  __u32 version; /* out: of this interface, COFS_IOCTL_VERSION */
  __u32 pid;     /* out: of the server, in its own pid namespace */
  __u64 reserved[6];
};
#define COFS_IOCTL_VERSION 1

/* Who serves this mount. */
#define COFS_IOC_SERVER _IOR(COFS_IOCTL_TYPE, 3, struct cofs_server_info)

/* Stops the filesystem at once: what was done so far is made durable, everything later fails with
 * EIO, and unmounting leaves the volume as a crash would. Root only. XFS_IOC_GOINGDOWN does the
 * same. */
#define COFS_IOC_SHUTDOWN _IO(COFS_IOCTL_TYPE, 4)

#endif
