// WorkerThreads: permanent threads that serve requests which block the caller (flush, discard,
// clone), one at a time each, first come, first served.
//
// They live from construction to destruction, which waits until all that was submitted is served.
// Serving may run the core and send replies.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "offload/request_list.h"

namespace cofs {

class WorkerThreads {
 public:
  // `serve` does one request and hands it to its sink; any worker calls it. `name` has at most 15
  // bytes.
  WorkerThreads(const std::string& name, uint32_t threads, std::function<void(IoRequest&)> serve);
  ~WorkerThreads();
  WorkerThreads(const WorkerThreads&) = delete;

  // From any thread.
  void submit(IoRequest& request);

 private:
  void run();

  std::function<void(IoRequest&)> serve_;
  std::mutex mutex_;
  std::condition_variable changed_;
  RequestList queue_;  // guarded by mutex_
  bool stop_ = false;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace cofs
