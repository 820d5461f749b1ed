// FuseQueues: the threads by which requests come with `-o io_uring`, one per CPU, and what they do at once: all requests
// that came together are one entry into the core, and what reads and writes they need go to the kernel by the same ring,
// in the same system call as the answers that are ready. docs/decisions/0014.
//
// The threads and their rings are the library's (tools/libfuse/ring_queues.c). Whatever runs in them must not wait for the
// core or for the device: nobody else would take their completions. With a library that has no such queues of ours
// (io_uring=force) this does nothing, and requests come one by one.
#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>
#include <vector>

#include "offload/lent_ring.h"

struct io_uring;

namespace cofs {

class FileDevice;
class FuseServer;
class Monitor;

class FuseQueueThread {
 public:
  // Null in any other thread.
  static FuseQueueThread* current() { return current_thread; }

  FuseQueueThread(Monitor& monitor, FileDevice& device, std::unique_ptr<LentRing> ring);
  ~FuseQueueThread();
  FuseQueueThread(const FuseQueueThread&) = delete;

  Ring& ring() { return ring_->ring(); }
  // A request's coroutine: enters the core with the others of its batch.
  void add(std::coroutine_handle<> request) { batch_.push_back(request); }
  void completed(void* tag, int32_t outcome) { ring_->completed(tag, outcome); }
  void end_batch();
  void before_sleep() { ring_->poll(); }
  // From now on nothing of this thread's goes to the ring; true when nothing is in it.
  bool may_end();

 private:
  static thread_local FuseQueueThread* current_thread;

  Monitor& monitor_;
  FileDevice& device_;
  std::unique_ptr<LentRing> ring_;
  std::vector<std::coroutine_handle<>> batch_;
};

class FuseQueues {
 public:
  // To be made before the session is mounted, at most one in a process.
  explicit FuseQueues(FuseServer& server);
  ~FuseQueues();
  FuseQueues(const FuseQueues&) = delete;

  // True if the library's are the ones of tools/libfuse, which are known to serve.
  static bool are_ours();
  // Requests that a queue takes at once; more wait in the kernel. Each has memory for the largest request.
  static uint32_t depth();
  // Ends the threads. REQUIRES: all requests were answered; the library's loop is over, the mount is not.
  void release();

 private:
  struct Guest;

  FuseServer& server_;
  std::unique_ptr<Guest> guest_;
};

}  // namespace cofs
