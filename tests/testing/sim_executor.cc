#include "tests/testing/sim_executor.h"

#include <utility>

namespace cofs {

void SimExecutor::post(std::coroutine_handle<> handle) {
  COFS_ASSERT(handle);
  queue_.push_back(Item{handle, nullptr});
}

void SimExecutor::outside(OutsideJob& job) {
  if (shuffle_ && random_.below(2) == 0) {
    queue_.push_back(Item{nullptr, &job});
    return;
  }
  job.run();
  post(job.waiter);
}

bool SimExecutor::run_one() {
  if (queue_.empty()) return false;
  if (shuffle_ && queue_.size() > 1) {
    std::swap(queue_.front(), queue_[random_.below(queue_.size())]);
  }
  const Item item = queue_.front();
  queue_.pop_front();
  steps_++;
  if (item.job != nullptr) {
    item.job->run();
    post(item.job->waiter);
  } else {
    item.handle.resume();
  }
  return true;
}

std::vector<std::coroutine_handle<>> SimExecutor::abandon() {
  std::vector<std::coroutine_handle<>> handles;
  for (const Item& item : queue_) {
    handles.push_back(item.job != nullptr ? item.job->waiter : item.handle);
  }
  queue_.clear();
  return handles;
}

}  // namespace cofs
