/* The io_uring transport of the pinned libfuse: tools/build-libfuse compiles this in place of the library's
 * lib/fuse_uring.c, whose functions (fuse_uring_i.h) it implements for a server that answers from any thread.
 * docs/decisions/0014 tells why.
 *
 * One queue per CPU, one ring and one thread per queue. An entry belongs to the kernel until a request comes in it, to the
 * server until that is answered, and then to its queue's thread, which alone touches the ring: other threads put the
 * entry into a list and wake the thread if it sleeps. So
 *  - nothing of the ring is shared, and the kernel may know that (SINGLE_ISSUER, DEFER_TASKRUN);
 *  - all answers, and all reads and writes of the server's own, that have gathered go to the kernel in one system call,
 *    the same that waits for what comes;
 *  - the kernel hands requests to the queue's thread, not to whichever thread answered before, which may have ended.
 *
 * An end goes in two steps: fuse_uring_stop(), when the library's loop ends, makes handlers stop being called, and answers
 * still go out; cofs_ring_release(), when all are given, ends the threads. Nothing is cancelled in mid-flight.
 *
 * The thread is bound to its queue's CPU, where the kernel wakes it beside whoever asks and waits: the cheapest way for requests
 * that come one at a time. One program that has many in flight would share that CPU with the thread, others idle, so while a queue is
 * crowded and alone its thread is anywhere but there (see place_thread(); 4 KiB reads, 16 in flight, on two CPUs: 148,000 a second
 * instead of 103,000; bound loosely with one in flight: 18,000 instead of 24,000).
 *
 * Invariants. queue->answered and queue->asleep are guarded by queue->lock; all else of a queue belongs to its thread once
 * it runs. While asleep is true the next answer writes to wake_fd, for which a poll is in the ring. */
#define _GNU_SOURCE

#include "fuse_i.h"
#include "fuse_kernel.h"
#include "fuse_uring_i.h"

#include <inttypes.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cofs_ring.h"

/* What an entry of the completion queue is about: the two lowest bits of its data. */
enum { TAG_GUEST = 0, TAG_REQUEST = 1, TAG_WAKE = 2, TAG_MASK = 3 };
/* The files registered with each ring. */
enum { FILE_FUSE, FILE_SPARE, FILES };
enum {
  GUEST_ENTRIES = 256, /* beside those for requests */
  REAP_MAX = 64,
  HEADER_BYTES = 4096, /* of a request, on a page of its own */
  PLACING_REQUESTS = 256, /* of a queue, after which its thread's place is thought over */
  CROWD_MIN = 4,          /* requests that the server has at once, on average: of a crowded queue */
};
_Static_assert(sizeof(struct fuse_uring_req_header) <= HEADER_BYTES, "a header fits its page");

struct ring_queue;

struct ring_entry {
  struct fuse_req req; /* what handlers get */
  struct ring_queue *queue;
  struct ring_entry *next; /* in queue->answered */
  struct fuse_uring_req_header *header;
  char *payload;
  struct iovec memory[2]; /* header and payload, which the kernel reads when it registers them */
  uint64_t commit_id;     /* of the request in it; 0 before the first */
};

struct ring_queue {
  struct fuse_ring_pool *pool;
  unsigned id;
  pthread_t thread;
  struct io_uring ring;
  void *guest_thread;
  void *memory; /* of all entries' headers and payloads */
  int wake_fd;
  pthread_mutex_t lock;
  struct ring_entry *answered; /* by other threads; the last one first */
  bool asleep;
  bool holds_requests; /* handlers are not called any more, and fuse_uring_stop() knows */
  cpu_set_t cpus_allowed; /* before the thread was bound */
  bool is_away;           /* from its CPU */
  unsigned held;          /* requests that the server has */
  unsigned taken_in_round; /* and what the last completions brought */
  /* Since place_thread() thought last: */
  unsigned taken;
  unsigned rounds;
  unsigned held_in_rounds; /* the sum of what the server had in each */
  unsigned taken_by_all;   /* pool->taken then */
  struct ring_entry *entries;
};

enum pool_state { POOL_STARTING, POOL_SERVING, POOL_HOLDING, POOL_ENDING };

struct fuse_ring_pool {
  struct fuse_session *session;
  unsigned queue_count;
  unsigned depth;
  size_t payload_bytes;
  struct ring_queue *queues;
  _Atomic int state; /* enum pool_state */
  _Atomic unsigned taken; /* requests of all queues */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  unsigned ready;     /* guarded by lock: threads that have their ring, or have failed */
  unsigned failed;    /* guarded by lock */
  int failure;        /* guarded by lock: the errno of one of these */
  unsigned holding;   /* guarded by lock: threads that call no handlers any more */
  bool has_destroyer; /* guarded by lock */
  pthread_t destroyer;
};

static const struct cofs_ring_guest *guest;
static __thread struct ring_queue *queue_of_this_thread;

void cofs_ring_set_guest(const struct cofs_ring_guest *the_guest) {
  guest = the_guest;
}

/* --- Memory --- */

static size_t bytes_per_entry(const struct fuse_ring_pool *pool) {
  return HEADER_BYTES + pool->payload_bytes;
}

static int allocate_entries(struct ring_queue *queue) {
  struct fuse_ring_pool *pool = queue->pool;
  queue->entries = calloc(pool->depth, sizeof(*queue->entries));
  if (queue->entries == NULL) return -ENOMEM;
  /* Resident only as far as requests have used it. */
  void *memory = mmap(NULL, pool->depth * bytes_per_entry(pool), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return -errno;
  queue->memory = memory;
  for (unsigned i = 0; i < pool->depth; i++) {
    struct ring_entry *entry = &queue->entries[i];
    char *place = (char *)memory + i * bytes_per_entry(pool);
    entry->queue = queue;
    entry->header = (struct fuse_uring_req_header *)place;
    entry->payload = place + HEADER_BYTES;
    entry->memory[0] = (struct iovec){.iov_base = entry->header, .iov_len = HEADER_BYTES};
    entry->memory[1] = (struct iovec){.iov_base = entry->payload, .iov_len = pool->payload_bytes};
    entry->req.se = pool->session;
    entry->req.flags.is_uring = 1;
    entry->req.ref_cnt = 1; /* one that is never given up: the entry stays */
    list_init_req(&entry->req);
    pthread_mutex_init(&entry->req.lock, NULL);
  }
  return 0;
}

static void free_pool(struct fuse_ring_pool *pool) {
  for (unsigned i = 0; i < pool->queue_count; i++) {
    struct ring_queue *queue = &pool->queues[i];
    for (unsigned e = 0; queue->memory != NULL && e < pool->depth; e++) {
      pthread_mutex_destroy(&queue->entries[e].req.lock);
    }
    if (queue->memory != NULL) munmap(queue->memory, pool->depth * bytes_per_entry(pool));
    free(queue->entries);
    if (queue->wake_fd >= 0) close(queue->wake_fd);
    pthread_mutex_destroy(&queue->lock);
  }
  free(pool->queues);
  pthread_cond_destroy(&pool->changed);
  pthread_mutex_destroy(&pool->lock);
  free(pool);
}

/* --- Into the ring, by its thread alone --- */

static struct io_uring_sqe *free_sqe(struct ring_queue *queue) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&queue->ring);
  while (sqe == NULL) {
    io_uring_submit(&queue->ring); /* makes room: the kernel takes what was queued */
    sqe = io_uring_get_sqe(&queue->ring);
  }
  return sqe;
}

static void put_wake_poll(struct ring_queue *queue) {
  struct io_uring_sqe *sqe = free_sqe(queue);
  io_uring_prep_poll_multishot(sqe, queue->wake_fd, POLLIN);
  io_uring_sqe_set_data64(sqe, TAG_WAKE);
}

/* Gives the entry to the kernel: with the answer to its request, or for the first time. */
static void put_entry(struct ring_entry *entry) {
  struct ring_queue *queue = entry->queue;
  struct io_uring_sqe *sqe = free_sqe(queue);
  const bool is_first = entry->commit_id == 0;
  memset(sqe, 0, 2 * sizeof(*sqe));
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->flags = IOSQE_FIXED_FILE;
  sqe->fd = FILE_FUSE;
  sqe->cmd_op = is_first ? FUSE_IO_URING_CMD_REGISTER : FUSE_IO_URING_CMD_COMMIT_AND_FETCH;
  if (is_first) {
    sqe->addr = (uint64_t)(uintptr_t)entry->memory;
    sqe->len = 2;
  }
  const struct fuse_uring_cmd_req command = {.qid = (uint16_t)queue->id, .commit_id = entry->commit_id};
  memcpy(sqe->cmd, &command, sizeof(command));
  io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)entry | TAG_REQUEST);
}

static void put_answer(struct ring_entry *entry) {
  entry->queue->held--;
  put_entry(entry);
}

/* --- Answers, from any thread --- */

static void wake(struct ring_queue *queue) {
  const uint64_t one = 1;
  while (write(queue->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

/* The request of the entry is answered. It may be used for the next one as soon as this is called. */
static void give_back(struct ring_entry *entry) {
  struct ring_queue *queue = entry->queue;
  if (queue == queue_of_this_thread) {
    put_answer(entry);
    return;
  }
  pthread_mutex_lock(&queue->lock);
  entry->next = queue->answered;
  queue->answered = entry;
  const bool needs_wake = queue->asleep;
  queue->asleep = false;
  pthread_mutex_unlock(&queue->lock);
  if (needs_wake) wake(queue);
}

static struct ring_entry *entry_of(struct fuse_req *req) {
  return (struct ring_entry *)((char *)req - offsetof(struct ring_entry, req));
}

/* Interrupts come by the library's threads, which look for their request in the session's list. */
static void begin_request(struct fuse_req *req) {
  struct fuse_session *session = req->se;
  struct fuse_req *stray = NULL;
  pthread_mutex_lock(&session->lock);
  struct fuse_req *interrupt = session->interrupts.next;
  while (interrupt != &session->interrupts && interrupt->u.i.unique != req->unique) interrupt = interrupt->next;
  if (interrupt != &session->interrupts) {
    req->interrupted = 1; /* it was faster than its request */
  } else {
    interrupt = session->interrupts.next; /* another one's, which may be over: have it sent again, or forgotten */
  }
  if (interrupt != &session->interrupts) {
    interrupt->prev->next = interrupt->next;
    interrupt->next->prev = interrupt->prev;
    list_init_req(interrupt);
    stray = interrupt;
  }
  req->next = &session->list;
  req->prev = session->list.prev;
  req->prev->next = req;
  session->list.prev = req;
  pthread_mutex_unlock(&session->lock);
  if (stray == NULL) return;
  if (stray->u.i.unique == req->unique) {
    list_init_req(stray);
    fuse_free_req(stray);
  } else {
    fuse_reply_err(stray, EAGAIN);
  }
}

static void end_request(struct fuse_req *req) {
  struct fuse_session *session = req->se;
  pthread_mutex_lock(&session->lock);
  req->u.ni.func = NULL;
  req->u.ni.data = NULL;
  req->prev->next = req->next;
  req->next->prev = req->prev;
  list_init_req(req);
  pthread_mutex_unlock(&session->lock);
}

static void answer(struct ring_entry *entry, int error, size_t payload_bytes) {
  struct fuse_out_header *out = (struct fuse_out_header *)entry->header->in_out;
  out->error = error;
  out->unique = entry->req.unique;
  out->len = (uint32_t)(sizeof(*out) + payload_bytes);
  entry->header->ring_ent_in_out.payload_sz = (uint32_t)payload_bytes;
  end_request(&entry->req);
}

int send_reply_uring(fuse_req_t req, int error, const void *arg, size_t argsize) {
  struct ring_entry *entry = entry_of(req);
  if (error <= -1000 || error > 0) {
    fuse_log(FUSE_LOG_ERR, "fuse: bad error value: %i\n", error);
    error = -ERANGE;
  }
  if (argsize > entry->queue->pool->payload_bytes) {
    fuse_log(FUSE_LOG_ERR, "fuse: an answer of %zu bytes does not fit its request\n", argsize);
    error = -EINVAL;
    argsize = 0;
  }
  if (argsize != 0 && arg != entry->payload) memcpy(entry->payload, arg, argsize);
  answer(entry, error, argsize);
  fuse_free_req(req); /* before the entry may be used again */
  give_back(entry);
  return 0;
}

int fuse_reply_data_uring(fuse_req_t req, struct fuse_bufvec *bufv, enum fuse_buf_copy_flags flags) {
  struct ring_entry *entry = entry_of(req);
  struct fuse_bufvec target = FUSE_BUFVEC_INIT(entry->queue->pool->payload_bytes);
  target.buf[0].mem = entry->payload;
  const ssize_t copied = fuse_buf_copy(&target, bufv, flags);
  answer(entry, copied < 0 ? (int)copied : 0, copied < 0 ? 0 : (size_t)copied);
  fuse_free_req(req);
  give_back(entry);
  return 0;
}

/* The caller frees the request afterwards, which for one of a ring is no more than a count. */
int fuse_send_msg_uring(fuse_req_t req, struct iovec *iov, int count) {
  struct ring_entry *entry = entry_of(req);
  int error = ((const struct fuse_out_header *)iov[0].iov_base)->error;
  size_t bytes = 0;
  for (int i = 1; i < count; i++) {
    if (iov[i].iov_len > entry->queue->pool->payload_bytes - bytes) {
      fuse_log(FUSE_LOG_ERR, "fuse: an answer does not fit its request\n");
      error = -EINVAL;
      bytes = 0;
      break;
    }
    memcpy(entry->payload + bytes, iov[i].iov_base, iov[i].iov_len);
    bytes += iov[i].iov_len;
  }
  answer(entry, error, bytes);
  give_back(entry);
  return 0;
}

int fuse_req_get_payload(fuse_req_t req, char **payload, size_t *payload_sz, void **mr) {
  if (!req->flags.is_uring) return -EINVAL;
  struct ring_entry *entry = entry_of(req);
  *payload = entry->payload;
  *payload_sz = entry->queue->pool->payload_bytes;
  if (mr != NULL) *mr = NULL;
  return 0;
}

/* --- Requests --- */

static void call_handler(struct ring_entry *entry) {
  struct fuse_in_header *in = (struct fuse_in_header *)entry->header->in_out;
  fuse_session_process_uring_cqe(entry->queue->pool->session, &entry->req, in, entry->header->op_in, entry->payload,
                                 entry->header->ring_ent_in_out.payload_sz);
}

static void *run_destroyer(void *argument) {
  fuse_set_thread_name("fuse-destroy");
  call_handler(argument);
  return NULL;
}

/* The one handler that answers by returning, so it may block: not here. */
static void destroy_elsewhere(struct ring_entry *entry) {
  struct fuse_ring_pool *pool = entry->queue->pool;
  pthread_mutex_lock(&pool->lock);
  const bool is_first = !pool->has_destroyer;
  if (is_first) pool->has_destroyer = pthread_create(&pool->destroyer, NULL, run_destroyer, entry) == 0;
  const bool started = is_first && pool->has_destroyer;
  pthread_mutex_unlock(&pool->lock);
  if (!started) fuse_reply_err(&entry->req, EIO);
}

/* As fs/fuse_request_reader.cc does with what comes by the device: the library knows no FUSE_SYNCFS, and an fsync of the
 * root directory does the same here. */
static void make_sync_an_fsync(struct ring_entry *entry, struct fuse_in_header *in) {
  in->opcode = FUSE_FSYNCDIR;
  in->nodeid = FUSE_ROOT_ID;
  const struct fuse_fsync_in arguments = {.fh = UINT64_MAX}; /* kSyncfsHandle */
  memcpy(entry->header->op_in, &arguments, sizeof(arguments));
}

static void take_request(struct ring_entry *entry) {
  struct ring_queue *queue = entry->queue;
  struct fuse_req *req = &entry->req;
  struct fuse_in_header *in = (struct fuse_in_header *)entry->header->in_out;
  entry->commit_id = entry->header->ring_ent_in_out.commit_id;
  queue->held++;
  queue->taken_in_round++;
  if (queue->holds_requests) return; /* ends with the connection */
  /* is_uring stays as it is: whoever freed the last request may be looking at it. */
  req->flags.ioctl_64bit = 0;
  req->flags.is_copy_file_range_64 = 0;
  if (in->opcode == FUSE_SYNCFS) make_sync_an_fsync(entry, in);
  req->u.ni.func = NULL;
  req->u.ni.data = NULL;
  req->interrupted = 0;
  req->ch = NULL;
  req->unique = in->unique;
  req->ref_cnt++;
  begin_request(req);
  if (in->opcode == FUSE_DESTROY) {
    destroy_elsewhere(entry);
  } else {
    call_handler(entry);
  }
}

static void fail_session(struct fuse_session *session, int error) {
  fuse_log(FUSE_LOG_ERR, "fuse: io_uring: the kernel refused a command: %s\n", strerror(error));
  session->error = -error;
  fuse_session_exit(session);
}

static void take_completion(struct ring_queue *queue, const struct io_uring_cqe *cqe) {
  struct fuse_session *session = queue->pool->session;
  const uint64_t data = cqe->user_data;
  const int outcome = cqe->res;
  switch (data & TAG_MASK) {
    case TAG_GUEST: guest->completed(queue->guest_thread, (void *)(uintptr_t)data, outcome); return;
    case TAG_WAKE:
      if ((cqe->flags & IORING_CQE_F_MORE) == 0) put_wake_poll(queue);
      return;
    default: break;
  }
  struct ring_entry *entry = (struct ring_entry *)(uintptr_t)(data & ~(uint64_t)TAG_MASK);
  if (outcome == 0) {
    take_request(entry);
  } else if (outcome == -EINTR || outcome == -EAGAIN) {
    put_entry(entry);
  } else if (outcome != -ENOTCONN && outcome != -ECANCELED && !fuse_session_exited(session)) {
    fail_session(session, -outcome); /* else the connection is over, and the entry with it */
  }
}

static unsigned take_completions(struct ring_queue *queue) {
  struct io_uring_cqe copies[REAP_MAX];
  struct io_uring_cqe *cqe = NULL;
  unsigned count = 0;
  unsigned head = 0;
  io_uring_for_each_cqe(&queue->ring, head, cqe) {
    copies[count++] = *cqe;
    if (count == REAP_MAX) break;
  }
  io_uring_cq_advance(&queue->ring, count);
  for (unsigned i = 0; i < count; i++) take_completion(queue, &copies[i]);
  return count;
}

/* --- Threads --- */

static void put_answered(struct ring_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  struct ring_entry *entry = queue->answered;
  queue->answered = NULL;
  queue->asleep = true; /* from now on there is a wake-up for each */
  pthread_mutex_unlock(&queue->lock);
  struct ring_entry *in_order = NULL;
  while (entry != NULL) {
    struct ring_entry *next = entry->next;
    entry->next = in_order;
    in_order = entry;
    entry = next;
  }
  for (; in_order != NULL; in_order = in_order->next) put_answer(in_order);
}

/* To its queue's CPU, or to all others; never to one that the process was kept from. */
static void bind_thread(struct ring_queue *queue, bool away) {
  cpu_set_t cpus = queue->cpus_allowed;
  if (away) {
    CPU_CLR(queue->id, &cpus);
  } else if (CPU_ISSET(queue->id, &cpus)) {
    CPU_ZERO(&cpus);
    CPU_SET(queue->id, &cpus);
  }
  if (sched_setaffinity(0, sizeof(cpus), &cpus) == 0) queue->is_away = away;
}

/* After a round that brought `taken` requests; the server had `held` before. */
static void place_thread(struct ring_queue *queue, unsigned held, unsigned taken) {
  queue->rounds++;
  queue->taken += taken;
  queue->held_in_rounds += held + taken;
  const unsigned by_all = atomic_fetch_add_explicit(&queue->pool->taken, taken, memory_order_relaxed) + taken;
  if (queue->taken < PLACING_REQUESTS) return;
  const bool is_crowded = queue->held_in_rounds >= CROWD_MIN * queue->rounds;
  const bool is_alone = by_all - queue->taken_by_all - queue->taken <= queue->taken / 16;
  const bool has_others = CPU_COUNT(&queue->cpus_allowed) > 1;
  const bool wants_away = is_crowded && is_alone && has_others;
  if (wants_away != queue->is_away) bind_thread(queue, wants_away);
  queue->taken = queue->rounds = queue->held_in_rounds = 0;
  queue->taken_by_all = by_all;
}

static void serve(struct ring_queue *queue) {
  struct fuse_ring_pool *pool = queue->pool;
  for (;;) {
    const int state = atomic_load_explicit(&pool->state, memory_order_acquire);
    if (state >= POOL_HOLDING && !queue->holds_requests) {
      queue->holds_requests = true;
      pthread_mutex_lock(&pool->lock);
      pool->holding++;
      pthread_cond_broadcast(&pool->changed);
      pthread_mutex_unlock(&pool->lock);
    }
    if (state == POOL_ENDING && guest->may_end(queue->guest_thread) != 0) return;
    put_answered(queue);
    guest->before_sleep(queue->guest_thread);
    /* An error is an interrupted call, or one that goes on once completions are taken. */
    if (io_uring_cq_ready(&queue->ring) == 0 || io_uring_sq_ready(&queue->ring) != 0) io_uring_submit_and_wait(&queue->ring, 1);
    pthread_mutex_lock(&queue->lock);
    queue->asleep = false;
    pthread_mutex_unlock(&queue->lock);
    const unsigned held = queue->held;
    queue->taken_in_round = 0;
    while (take_completions(queue) == REAP_MAX) {
    }
    place_thread(queue, held, queue->taken_in_round);
    guest->batch_ended(queue->guest_thread);
  }
}

static int set_up_ring(struct ring_queue *queue) {
  struct fuse_ring_pool *pool = queue->pool;
  const unsigned size = pool->depth + 1 + GUEST_ENTRIES;
  struct io_uring_params params = {0};
  params.flags = IORING_SETUP_SQE128 | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
                 IORING_SETUP_DEFER_TASKRUN;
  params.cq_entries = 2 * size;
  int error = io_uring_queue_init_params(size, &queue->ring, &params);
  if (error != 0) return error;
  int files[FILES] = {[FILE_FUSE] = pool->session->fd, [FILE_SPARE] = -1};
  error = io_uring_register_files(&queue->ring, files, FILES);
  if (error == 0) {
    queue->guest_thread = guest->thread_started(guest->context, queue->id, &queue->ring, FILE_SPARE);
    if (queue->guest_thread == NULL) error = -ENOMEM;
  }
  if (error != 0) io_uring_queue_exit(&queue->ring);
  return error;
}

static int set_up(struct ring_queue *queue) {
  if (sched_getaffinity(0, sizeof(queue->cpus_allowed), &queue->cpus_allowed) != 0) CPU_ZERO(&queue->cpus_allowed);
  bind_thread(queue, false); /* memory near its CPU, too */
  const int error = allocate_entries(queue);
  return error != 0 ? error : set_up_ring(queue);
}

static void *run_queue(void *argument) {
  struct ring_queue *queue = argument;
  struct fuse_ring_pool *pool = queue->pool;
  char name[16];
  snprintf(name, sizeof(name), "fuse-ring-%u", queue->id);
  fuse_set_thread_name(name);
  queue_of_this_thread = queue;
  const int error = set_up(queue);
  pthread_mutex_lock(&pool->lock);
  pool->ready++;
  if (error != 0) {
    pool->failed++;
    pool->failure = -error;
  }
  pthread_cond_broadcast(&pool->changed);
  while (atomic_load(&pool->state) == POOL_STARTING) pthread_cond_wait(&pool->changed, &pool->lock);
  const bool any_failed = pool->failed != 0;
  pthread_mutex_unlock(&pool->lock);
  if (error != 0) return NULL;
  if (!any_failed) {
    put_wake_poll(queue);
    for (unsigned i = 0; i < pool->depth; i++) put_entry(&queue->entries[i]);
    serve(queue);
  }
  guest->thread_ends(queue->guest_thread);
  /* The connection must not be kept by the time that the kernel takes for the ring. */
  io_uring_unregister_files(&queue->ring);
  io_uring_queue_exit(&queue->ring);
  return NULL;
}

static void set_state(struct fuse_ring_pool *pool, enum pool_state state) {
  pthread_mutex_lock(&pool->lock);
  atomic_store_explicit(&pool->state, state, memory_order_release);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->lock);
  for (unsigned i = 0; i < pool->queue_count; i++) wake(&pool->queues[i]);
}

static void end_threads(struct fuse_ring_pool *pool, unsigned started) {
  set_state(pool, POOL_ENDING);
  for (unsigned i = 0; i < started; i++) pthread_join(pool->queues[i].thread, NULL);
  if (pool->has_destroyer) pthread_join(pool->destroyer, NULL);
}

static struct fuse_ring_pool *new_pool(struct fuse_session *session) {
  struct fuse_ring_pool *pool = calloc(1, sizeof(*pool));
  if (pool == NULL) return NULL;
  pool->session = session;
  pool->depth = session->uring.q_depth;
  pool->payload_bytes = session->bufsize - FUSE_BUFFER_HEADER_SIZE;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->changed, NULL);
  /* The kernel has a queue for each CPU that there may ever be, and waits for all of them. */
  const long cpus = sysconf(_SC_NPROCESSORS_CONF);
  pool->queues = calloc((size_t)cpus, sizeof(*pool->queues));
  if (pool->queues == NULL) {
    free_pool(pool);
    return NULL;
  }
  pool->queue_count = (unsigned)cpus;
  bool complete = true;
  for (unsigned i = 0; i < pool->queue_count; i++) {
    struct ring_queue *queue = &pool->queues[i];
    queue->pool = pool;
    queue->id = i;
    pthread_mutex_init(&queue->lock, NULL);
    queue->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    complete = complete && queue->wake_fd >= 0;
  }
  if (complete) return pool;
  free_pool(pool);
  return NULL;
}

/* 0 or an errno, which the library tells. */
int fuse_uring_start(struct fuse_session *session) {
  if (guest == NULL || session->uring.q_depth == 0) return EINVAL;
  struct fuse_ring_pool *pool = new_pool(session);
  if (pool == NULL) return ENOMEM;
  unsigned started = 0;
  int error = 0;
  while (started < pool->queue_count && error == 0) {
    error = pthread_create(&pool->queues[started].thread, NULL, run_queue, &pool->queues[started]);
    if (error == 0) started++;
  }
  pthread_mutex_lock(&pool->lock);
  if (error != 0) pool->failed++;
  while (pool->ready < started) pthread_cond_wait(&pool->changed, &pool->lock);
  if (error == 0) error = pool->failure;
  pthread_mutex_unlock(&pool->lock);
  if (error != 0) {
    end_threads(pool, started);
    free_pool(pool);
    return error;
  }
  session->uring.pool = pool;
  return 0;
}

/* The kernel has the answer to INIT, and takes entries from now on. */
void fuse_uring_wake_ring_threads(struct fuse_session *session) {
  set_state(session->uring.pool, POOL_SERVING);
}

/* By fuse_session_loop_mt() at its end. */
int fuse_uring_stop(struct fuse_session *session) {
  struct fuse_ring_pool *pool = session->uring.pool;
  if (pool == NULL) return 0;
  set_state(pool, POOL_HOLDING);
  pthread_mutex_lock(&pool->lock);
  while (pool->holding < pool->queue_count) pthread_cond_wait(&pool->changed, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
  return 0;
}

void cofs_ring_release(struct fuse_session *session) {
  struct fuse_ring_pool *pool = session->uring.pool;
  if (pool == NULL) return;
  session->uring.pool = NULL;
  end_threads(pool, pool->queue_count);
  free_pool(pool);
}
