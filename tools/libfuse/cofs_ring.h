/* What the ring queues that tools/build-libfuse builds into libfuse offer beside libfuse's own interface: the server
 * can have reads and writes of its own in the rings that its requests come by. Installed beside libfuse's headers; where
 * it is not there, the library's transport by io_uring is not ours. See ring_queues.c. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

struct fuse_session;
struct io_uring;

/* What a server does in the queues' threads. `context` and the structure outlive the session. Tags of its own entries
 * must have their two lowest bits clear, which pointers have. */
struct cofs_ring_guest {
  void *context;
  /* In a queue's new thread, before its first request. The registered file `spare_file` of the ring is empty, the guest
   * may set it. Returns what the others below get as `thread`; NULL: the queue cannot be used. */
  void *(*thread_started)(void *context, unsigned queue, struct io_uring *ring, unsigned spare_file);
  /* An entry that the guest put into the ring has ended. */
  void (*completed)(void *thread, void *tag, int outcome);
  /* All that was there was handed over, requests to their handlers, completions to completed(). Entries that are put
   * into the ring, and answers that are given, until this returns go to the kernel together. */
  void (*batch_ended)(void *thread);
  /* Before the thread sleeps until there is something in the ring; it may submit the ring, but takes nothing out. */
  void (*before_sleep)(void *thread);
  /* From now on no requests come, and thread_ends() is called as soon as this returns other than 0 (it is asked after each
   * batch): nothing of the guest's is in the ring, and nothing will be. */
  int (*may_end)(void *thread);
  void (*thread_ends)(void *thread);
};

/* To be called before the session is mounted, once per process. */
void cofs_ring_set_guest(const struct cofs_ring_guest *guest);

/* To be called between fuse_session_loop_mt(), after which handlers are not called any more, and fuse_session_unmount():
 * ends the queues. Requests that were not answered are not answered any more. */
void cofs_ring_release(struct fuse_session *session);

#ifdef __cplusplus
}
#endif
