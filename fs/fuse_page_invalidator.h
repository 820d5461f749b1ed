// Drops pages of files from the kernel's cache, where direct writes would leave old data in it.
//
// The kernel drops the pages of a range before a direct write, and again after it only if the write was
// synchronous. Who reads through the cache while an asynchronous one (io_submit, io_uring) is under way puts
// the old data back, and it would stay. So the server drops the pages before it answers a direct write, if
// the file was open without O_DIRECT, too, or was seen to use the cache in spite of O_DIRECT: by a mapping, or since
// fcntl() took the flag away.
//
// On a thread of its own: the kernel waits for pages that are being read, so for the server's other answers. If the
// server is killed just then, that thread stays in the kernel and keeps the connection: `cofs umount --force` ends it.
// Not for: other changes, whose pages the kernel drops itself.
#pragma once

#include <condition_variable>
#include <coroutine>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "offload/base/executor.h"
#include "offload/base/task.h"

struct fuse_session;

namespace cofs {

class PageInvalidator {
 public:
  explicit PageInvalidator(Executor& executor) : executor_(executor) {}
  ~PageInvalidator();  // stop()
  PageInvalidator(const PageInvalidator&) = delete;

  // Inside the core, for each open file that may fill the cache: without O_DIRECT.
  void opened(uint64_t ino);
  void closed(uint64_t ino);
  // Inside the core, before the request is served, when one of a file that was opened with O_DIRECT turns out to go through
  // the cache: it counts as one without from now on. `open` tells open files apart.
  void filled(uint64_t ino, uint64_t open);
  void closed_direct(uint64_t ino, uint64_t open);
  void forgotten(uint64_t ino);  // by the kernel, with its pages
  // Whether some of its pages may be cached: it was open so, and they were not all dropped since.
  bool may_be_cached(uint64_t ino) const { return files_.contains(ino); }

  // Returns when no page of [offset, offset + length) is cached that was read before the call. Drops all of a file
  // that nobody has open so, once and for all.
  Task<void> drop(fuse_session* session, uint64_t ino, uint64_t offset, uint64_t length);

  // From now on drop() does nothing, and who waits in it goes on: when requests are not served any more, the
  // kernel may wait for pages without end (until the mount is gone). From any thread.
  // True if a request is in the kernel.
  bool give_up();
  // Ends the thread, which uses the session. REQUIRES: the mount is gone.
  void stop();

 private:
  struct Request {
    fuse_session* session = nullptr;
    uint64_t ino = 0;
    uint64_t offset = 0;
    uint64_t length = 0;  // 0: all
    std::coroutine_handle<> waiter;
    Request() = default;
  };
  struct CachedFile {
    uint32_t open = 0;   // so many times now
    uint64_t opens = 0;  // ever
  };
  struct Queued;

  Task<void> notify(Request request);
  void put(const Request& request);
  void work();

  Executor& executor_;
  std::unordered_map<uint64_t, CachedFile> files_;  // by inode
  std::unordered_set<uint64_t> fillers_;            // open files that filled() told of
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> requests_;  // guarded by mutex_; the first is under way
  bool ends_ = false;             // guarded by mutex_
  std::thread thread_;            // from the first request on
};

}  // namespace cofs
