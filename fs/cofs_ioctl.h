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
#define COFS_IOCTL_VERSION 2

/* Who serves this mount. */
#define COFS_IOC_SERVER _IOR(COFS_IOCTL_TYPE, 3, struct cofs_server_info)

/* Stops the filesystem at once: what was done so far is made durable, everything later fails with
 * EIO, and unmounting leaves the volume as a crash would. Root only. XFS_IOC_GOINGDOWN does the
 * same. */
#define COFS_IOC_SHUTDOWN _IO(COFS_IOCTL_TYPE, 4)

/* --- Jobs: 5 … 15 ---
 *
 * A job is work in the server that goes on when the call that started it has returned: a garbage collection
 * or a scrub, one of each kind at a time. It ends with the mount. Root only to start and cancel (EPERM);
 * everybody may ask for the status. */

/* State of a job. */
#define COFS_JOB_NEVER 0u     /* none of this kind since the mount */
#define COFS_JOB_RUNNING 1u
#define COFS_JOB_DONE 2u      /* it came to its end */
#define COFS_JOB_CANCELLED 3u
#define COFS_JOB_FAILED 4u    /* error says why */

/* Moves live data out of partly filled segments, so that these become free, also with gc=off.
 * Errors: EBUSY one is running; EROFS; EINVAL; EIO the filesystem has stopped. */
struct cofs_gc_start {
  __u32 until_free_percent; /* end when so much of the total can be written at once; 0: when nothing gains;
                               at most 100 */
  __u32 reserved0;          /* 0 */
  __u64 number;             /* out: of this collection, from 1 */
  __u64 reserved[2];        /* 0 */
};
#define COFS_IOC_GC_START _IOWR(COFS_IOCTL_TYPE, 5, struct cofs_gc_start)

/* The collection that is running, or else the last one. */
struct cofs_gc_status {
  __u64 number;             /* 0: none since the mount */
  __u32 state;              /* COFS_JOB_… */
  __u32 error;              /* an errno; COFS_JOB_FAILED only */
  __u32 end_reason;         /* COFS_GC_END_…; COFS_JOB_DONE only */
  __u32 until_free_percent; /* as it was started */
  __u64 elapsed_ns;
  __u64 segments_emptied;
  __u64 moved_bytes;        /* that have another place now */
  __u64 device_bytes;       /* copied for it by the device or the host's filesystem */
  __u64 host_bytes;         /* copied for it by reading and writing */
  __u64 won_bytes;          /* of room */
  __u64 ready_bytes;        /* now: what can be written before anything else is collected */
  __u64 total_bytes;        /* of the volume, as statfs says */
  __u64 reserved[4];        /* 0 */
};
#define COFS_IOC_GC_STATUS _IOR(COFS_IOCTL_TYPE, 6, struct cofs_gc_status)
#define COFS_GC_END_NOTHING_GAINS 0u
#define COFS_GC_END_NO_ROOM 1u     /* to move anything to */
#define COFS_GC_END_FREE_ENOUGH 2u
#define COFS_GC_END_LONG_ENOUGH 3u /* twice as many segments were emptied as there are */

/* Ends the job that is running. ESRCH: none is. */
struct cofs_job_cancel {
  __u32 kind;               /* COFS_JOB_KIND_… */
  __u32 reserved0;          /* 0 */
  __u64 reserved[3];        /* 0 */
};
#define COFS_IOC_JOB_CANCEL _IOW(COFS_IOCTL_TYPE, 7, struct cofs_job_cancel)
#define COFS_JOB_KIND_GC 1u
#define COFS_JOB_KIND_SCRUB 2u

/* Reads all file data and all copies of metadata, compares them with their checksums, and writes metadata
 * anew of which a good copy is left (not on a read-only mount). Errors: EBUSY one is running; EIO the
 * filesystem has stopped. */
struct cofs_scrub_start {
  __u64 bytes_per_second;   /* at most; 0: all while nobody else wants anything, else a quarter of the time */
  __u64 number;             /* out: of this scrub, from 1 */
  __u64 reserved[4];        /* 0 */
};
#define COFS_IOC_SCRUB_START _IOWR(COFS_IOCTL_TYPE, 8, struct cofs_scrub_start)

/* The scrub that is running, or else the last one. */
struct cofs_scrub_status {
  __u64 number;             /* 0: none since the mount */
  __u32 state;              /* COFS_JOB_… */
  __u32 error;              /* an errno; COFS_JOB_FAILED only */
  __u64 elapsed_ns;
  __u64 bytes_per_second;   /* as it was started */
  __u64 done_bytes;
  __u64 total_bytes;        /* as reckoned at the start: done may come out a little below or above */
  __u64 data_errors;        /* blocks of file data that are damaged: they have one copy */
  __u64 node_errors;        /* tree nodes with a bad copy */
  __u64 superblock_errors;  /* bad copies */
  __u64 repaired;           /* nodes and superblock copies that were written anew */
  __u64 problem_count;      /* lines of COFS_IOC_SCRUB_PROBLEMS, also those beyond the first 1,000 */
  __u64 reserved[5];        /* 0 */
};
#define COFS_IOC_SCRUB_STATUS _IOR(COFS_IOCTL_TYPE, 9, struct cofs_scrub_status)

/* What the scrub that is running, or else the last one, found: text of one line for each problem, the first
 * 1,000. In pages as the statistics; its snapshot is the scrub's number. EAGAIN: another one was started. */
#define COFS_IOC_SCRUB_PROBLEMS _IOWR(COFS_IOCTL_TYPE, 10, struct cofs_text_page)

/* --- Clones: 16 … 31 ---
 *
 * A clone is carried by copy_file_range(2) and by nothing else: it alone keeps the kernel's caches and
 * sizes right. What is here asks, announces, and works where no byte of a file changes. */

/* What the server does for clones of this file. */
struct cofs_query {
  __u32 version;       /* out: COFS_IOCTL_VERSION */
  __u32 block_bytes;   /* out: clone ranges begin and end at multiples of it, or at the end of the file */
  __u32 clone_mode;    /* out: COFS_CLONE_… that copies into this file, or below this directory, take */
  __u32 features;      /* out: COFS_FEATURE_… */
  __u64 reserved[6];   /* out: 0 */
};
#define COFS_IOC_QUERY _IOR(COFS_IOCTL_TYPE, 16, struct cofs_query)
#define COFS_CLONE_DEVICE 0u /* copies are made by the device, and independent */
#define COFS_CLONE_SHARE 1u  /* copies share blocks */
#define COFS_FEATURE_COPY_64 1u /* one copy_file_range may be longer than 4 GiB */

/* A strict clone follows: copy_file_range calls from this open file (opened for reading), from
 * source_offset on, to `target_ino` of the same filesystem at target_offset, `length` bytes together.
 * They share blocks, or the device copies; where neither can be had they fail with EINVAL, and data never
 * goes through the host. When the first of them arrives the server takes the source as it is then, for all of
 * them; where it cannot keep that state, those after the first fail. The announcement ends when all of the range was
 * cloned, with the open file, or with the next announcement of the same open file and target; length 0 only ends it.
 * Nothing is said of the target here, nor whether there is one: it is looked at when a copy comes, and a range that
 * ends inside a block and inside the target is EINVAL then.
 * Errors: EBADF not open for reading; EISDIR, EINVAL the source is no regular file; EINVAL offsets or length (0 aside)
 * not multiples of the block size, unless the range ends at the source's end of file; EINVAL range beyond that end;
 * EINVAL overlap within one file; EBUSY 64 announcements of this open file are there. */
struct cofs_announce {
  __u64 source_offset;
  __u64 length;
  __u64 target_ino;    /* st_ino */
  __u64 target_offset;
  __u64 reserved[4];   /* 0 */
};
#define COFS_IOC_ANNOUNCE _IOW(COFS_IOCTL_TYPE, 17, struct cofs_announce)

/* A token for one COFS_IOC_DEDUPE: it stands for the right to read this open file (EBADF without it), is used up
 * by that call, and dies with the open file. */
struct cofs_dedupe_token {
  __u8 token[16];      /* out: random */
};
#define COFS_IOC_DEDUPE_TOKEN _IOR(COFS_IOCTL_TYPE, 18, struct cofs_dedupe_token)

/* On the target's open file: compares a range of it with one of the token's file and, where they hold the
 * same bytes, makes them share blocks; both at once, atomically. Holes and preallocated blocks of the target
 * stay such. The caller must have the target open for
 * writing, own it, be allowed to write it, or be privileged: EPERM. Offsets and length follow the rules of
 * FIDEDUPERANGE: multiples of the block size (length: or both ranges end at their files' ends): EINVAL. Errors: EINVAL also
 * for an unknown token or overlap, EISDIR, EROFS. */
struct cofs_dedupe {
  __u8 token[16];
  __u64 source_offset;
  __u64 target_offset;
  __u64 length;         /* at most COFS_DEDUPE_BYTES_MAX: more is cut */
  __u64 bytes_deduped;  /* out */
  __s32 status;         /* out: COFS_DEDUPE_SAME or COFS_DEDUPE_DIFFERS */
  __u32 reserved0;      /* 0 */
  __u64 reserved[2];    /* 0 */
};
#define COFS_IOC_DEDUPE _IOWR(COFS_IOCTL_TYPE, 19, struct cofs_dedupe)
#define COFS_DEDUPE_SAME 0
#define COFS_DEDUPE_DIFFERS 1
#define COFS_DEDUPE_BYTES_MAX (1ull << 30)

/* A page of a file's extents from `start` on: those that touch [start, start + length). Data that is not
 * on the device yet is reported as delayed. Holes are left out. Dirty data may be written first by asking with
 * COFS_MAP_SYNC. The file must be open for reading or writing. */
#define COFS_MAP_EXTENTS 400
struct cofs_map_extent {
  __u64 logical;   /* bytes, in the file */
  __u64 physical;  /* bytes, on the volume's device; 0 where there is no place */
  __u64 length;    /* bytes */
  __u32 flags;     /* COFS_EXTENT_… */
  __u32 reserved;
};
struct cofs_map {
  __u64 start;
  __u64 length;
  __u32 flags;     /* in: COFS_MAP_… */
  __u32 count;     /* out: of extents[] */
  __u32 more;      /* out: 1 if there are extents after these within the range: ask again from their end */
  __u32 reserved;
  __u64 reserved2[2];
  struct cofs_map_extent extents[COFS_MAP_EXTENTS];
};
#define COFS_IOC_MAP _IOWR(COFS_IOCTL_TYPE, 20, struct cofs_map)
#define COFS_MAP_SYNC 1u
#define COFS_EXTENT_LAST 0x1u       /* the last of the file */
#define COFS_EXTENT_DELAYED 0x2u    /* in memory, no place yet */
#define COFS_EXTENT_UNWRITTEN 0x4u  /* preallocated: reads as zeros */
#define COFS_EXTENT_INLINE 0x8u     /* in the inode's record: no place of its own */
#define COFS_EXTENT_SHARED 0x10u    /* others refer to these blocks too */

/* Changes a setting of the mount until it is unmounted. Root only (EPERM). */
struct cofs_tune {
  __u32 setting;       /* COFS_TUNE_… */
  __u32 reserved0;     /* 0 */
  __u64 value;
  __u64 reserved[2];   /* 0 */
};
#define COFS_IOC_TUNE _IOW(COFS_IOCTL_TYPE, 21, struct cofs_tune)
#define COFS_TUNE_CLONE_MODE 1u  /* COFS_CLONE_…; what `user.cofs.clone` of a directory says goes before it */

#endif
