#include "fs/fuse_page_invalidator.h"

#include "fs/fuse_ops.h"

namespace cofs {

struct PageInvalidator::Queued {
  PageInvalidator& invalidator;
  Request request;
  Queued(PageInvalidator& i, const Request& r) : invalidator(i), request(r) {}
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) {
    request.waiter = awaiter;
    invalidator.put(request);
  }
  void await_resume() {}
};

PageInvalidator::~PageInvalidator() { stop(); }

void PageInvalidator::stop() {
  give_up();
  if (thread_.joinable()) thread_.join();
}

bool PageInvalidator::give_up() {
  std::deque<Request> left;
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
    left.swap(requests_);
  }
  changed_.notify_one();
  for (const Request& request : left) executor_.post(request.waiter);
  return !left.empty();
}

void PageInvalidator::opened(uint64_t ino) {
  CachedFile& file = files_[ino];
  file.open++;
  file.opens++;
}

void PageInvalidator::closed(uint64_t ino) {
  const auto found = files_.find(ino);
  if (found != files_.end() && found->second.open > 0) found->second.open--;
}

void PageInvalidator::filled(uint64_t ino, uint64_t open) {
  if (fillers_.insert(open).second) opened(ino);
}

void PageInvalidator::closed_direct(uint64_t ino, uint64_t open) {
  if (fillers_.erase(open) != 0) closed(ino);
}

void PageInvalidator::forgotten(uint64_t ino) {
  const auto found = files_.find(ino);
  // Open: the kernel has met it again since.
  if (found != files_.end() && found->second.open == 0) files_.erase(found);
}

Task<void> PageInvalidator::drop(fuse_session* session, uint64_t ino, uint64_t offset,
                                 uint64_t length) {
  const auto before = files_.find(ino);
  if (before == files_.end()) co_return;
  const CachedFile file = before->second;
  Request request;
  request.session = session;
  request.ino = ino;
  if (file.open != 0) {
    request.offset = offset;
    request.length = length;
  }
  co_await notify(request);
  const auto after = files_.find(ino);
  if (file.open == 0 && after != files_.end() && after->second.opens == file.opens) files_.erase(after);
}

Task<void> PageInvalidator::notify(Request request) { co_await Queued(*this, request); }

void PageInvalidator::put(const Request& request) {
  bool taken = false;
  {
    const std::lock_guard lock(mutex_);
    if (!ends_) {
      requests_.push_back(request);
      if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
      taken = true;
    }
  }
  if (taken) {
    changed_.notify_one();
  } else {
    executor_.post(request.waiter);
  }
}

void PageInvalidator::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ends_ || !requests_.empty(); });
    if (ends_) return;
    const Request request = requests_.front();
    lock.unlock();
    // An error says that the inode, or the mount, is not there any more.
    (void)fuse_lowlevel_notify_inval_inode(request.session, request.ino,
                                           static_cast<off_t>(request.offset),
                                           static_cast<off_t>(request.length));
    lock.lock();
    if (ends_) return;  // its waiter went on without it
    requests_.pop_front();
    lock.unlock();
    executor_.post(request.waiter);  // may run the core, and so put(), on this thread
    lock.lock();
  }
}

}  // namespace cofs
