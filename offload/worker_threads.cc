#include "offload/worker_threads.h"

#include <pthread.h>

#include "offload/monitor.h"

namespace cofs {

WorkerThreads::WorkerThreads(const std::string& name, uint32_t threads,
                             std::function<void(IoRequest&)> serve)
    : serve_(std::move(serve)) {
  for (uint32_t i = 0; i < threads; i++) {
    threads_.emplace_back([this, name] {
      pthread_setname_np(pthread_self(), name.c_str());
      Monitor::mark_service_thread();
      run();
    });
  }
}

WorkerThreads::~WorkerThreads() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerThreads::submit(IoRequest& request) {
  {
    std::lock_guard lock(mutex_);
    queue_.push(request);
  }
  changed_.notify_one();
}

void WorkerThreads::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    IoRequest* request = queue_.pop();
    if (request == nullptr) {
      if (stop_) return;
      changed_.wait(lock);
      continue;
    }
    lock.unlock();
    serve_(*request);
    lock.lock();
  }
}

}  // namespace cofs
