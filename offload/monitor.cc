#include "offload/monitor.h"

#include <pthread.h>

namespace cofs {

namespace {
thread_local bool is_service_thread = false;
}

thread_local Monitor::Visit* Monitor::current_visit = nullptr;

Monitor::Monitor() : helper_([this] { help(); }) {}

Monitor::~Monitor() {
  {
    std::unique_lock lock(mutex_);
    all_out_.wait(lock, [this] { return visitors_ == 0 && !help_wanted_; });
    COFS_ASSERT(arrivals_.empty() && ready_.empty());
    stop_ = true;
    helper_called_.notify_all();
  }
  helper_.join();
}

void Monitor::mark_service_thread(bool serves) {
  is_service_thread = serves;
}

Monitor::Visit* Monitor::visit_of_this_thread() const {
  Visit* visit = current_visit;
  while (visit != nullptr && visit->monitor != this) visit = visit->outer;
  return visit;
}

bool Monitor::inside() const {
  const Visit* visit = visit_of_this_thread();
  return visit != nullptr && visit->inside;
}

bool Monitor::acting_alone() const {
  const Visit* visit = visit_of_this_thread();
  return visit != nullptr && !visit->inside && !visit->left_work && visit->deferred == nullptr &&
         visit->jobs == nullptr && !is_service_thread;
}

void Monitor::post(std::coroutine_handle<> handle) {
  post_batch({&handle, 1});
}

void Monitor::post_batch(std::span<const std::coroutine_handle<>> handles) {
  if (handles.empty()) return;
  const Visit* visit = visit_of_this_thread();
  if (visit != nullptr && visit->inside) {
    ready_.insert(ready_.end(), handles.begin(), handles.end());
    return;
  }
  {
    std::lock_guard lock(mutex_);
    arrivals_.insert(arrivals_.end(), handles.begin(), handles.end());
    // A thread that is acting tries to enter again when it is done: no recursion.
    if (visit != nullptr || occupied_) return;
    occupied_ = true;
    visitors_++;
  }
  stay(kEntriesPerStayMax);
}

void Monitor::outside(OutsideJob& job) {
  COFS_ASSERT(inside());
  jobs_.push(job);
}

void Monitor::defer(Deferred& action) {
  COFS_ASSERT(inside());
  deferred_.push(action);
}

void Monitor::stay(uint32_t entries_max) {
  Visit visit;
  visit.monitor = this;
  visit.outer = current_visit;
  visit.entries_max = entries_max;
  current_visit = &visit;
  do {
    drain(visit);
    act(visit);
  } while (come_back(visit));
  // The monitor may be gone.
  current_visit = visit.outer;
}

bool Monitor::come_back(Visit& visit) {
  std::lock_guard lock(mutex_);
  // If somebody else is inside, what is queued is theirs to run (invariant 2).
  bool needed = !occupied_ && !(arrivals_.empty() && ready_.empty());
  if (needed && ++visit.entries < visit.entries_max) {
    occupied_ = true;
    return true;
  }
  if (needed) {
    help_wanted_ = true;
    helper_called_.notify_one();
  }
  if (--visitors_ == 0)
    all_out_.notify_all();  // under the lock, so that the destructor waits for it
  return false;
}

void Monitor::help() {
  pthread_setname_np(pthread_self(), "cofs-helper");
  std::unique_lock lock(mutex_);
  while (true) {
    helper_called_.wait(lock, [this] { return help_wanted_ || stop_; });
    if (stop_) return;
    help_wanted_ = false;
    if (!occupied_ && !(arrivals_.empty() && ready_.empty())) {
      occupied_ = true;
      visitors_++;
      lock.unlock();
      stay(UINT32_MAX);
      lock.lock();
    } else if (visitors_ == 0) {
      all_out_.notify_all();  // others did the work
    }
  }
}

void Monitor::drain(Visit& visit) {
  visit.inside = true;
  entry_++;
  uint32_t steps = 0;
  while (true) {
    {
      std::lock_guard lock(mutex_);
      ready_.insert(ready_.end(), arrivals_.begin(), arrivals_.end());
      arrivals_.clear();
      if (ready_.empty() || steps >= kStepsPerEntryMax) {
        visit.inside = false;
        visit.left_work = !ready_.empty();
        visit.deferred = deferred_.take();
        visit.jobs = jobs_.take();
        occupied_ = false;
        return;
      }
    }
    for (; !ready_.empty() && steps < kStepsPerEntryMax; steps++) {
      std::coroutine_handle<> handle = ready_.front();
      ready_.pop_front();
      handle.resume();
    }
  }
}

void Monitor::act(Visit& visit) {
  while (visit.deferred != nullptr) {
    Deferred* action = visit.deferred;
    visit.deferred = action->next;  // run() may free it
    action->run();
  }
  OutsideJob* jobs = std::exchange(visit.jobs, nullptr);
  if (jobs == nullptr) return;
  for (OutsideJob* job = jobs; job != nullptr; job = job->next) job->run();
  // A waiter may run, and free its job, as soon as the lock is released: not before.
  std::lock_guard lock(mutex_);
  for (OutsideJob* job = jobs; job != nullptr; job = job->next) arrivals_.push_back(job->waiter);
}

namespace monitor_detail {

void Completion::run() {
  std::lock_guard lock(mutex_);
  done_ = true;
  condition_.notify_all();  // under the lock: the waiter destroys this object once it sees done_
}

void Completion::wait() {
  std::unique_lock lock(mutex_);
  condition_.wait(lock, [this] { return done_; });
}

}  // namespace monitor_detail

}  // namespace cofs
