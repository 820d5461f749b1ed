// RequestList and RequestSink: how a device's requests travel between its threads.
#pragma once

#include <span>
#include <utility>

#include "offload/device.h"

namespace cofs {

// Requests linked by IoRequest::next, in order. A request is in one list at most.
struct RequestList {
  IoRequest* head = nullptr;
  IoRequest* tail = nullptr;

  bool empty() const { return head == nullptr; }
  void push(IoRequest& request) {
    request.next = nullptr;
    (head == nullptr ? head : tail->next) = &request;
    tail = &request;
  }
  // Moves all of `other` to the end of this list.
  void append(RequestList& other) {
    if (other.empty()) return;
    (head == nullptr ? head : tail->next) = other.head;
    tail = other.tail;
    other.head = other.tail = nullptr;
  }
  // The first request, taken out; null when there is none.
  IoRequest* pop() {
    IoRequest* request = head;
    if (request != nullptr) head = std::exchange(request->next, nullptr);
    if (head == nullptr) tail = nullptr;
    return request;
  }
};

// Where the threads of a device hand over what is done: the device.
class RequestSink {
 public:
  // The results are set. The requests may be gone when this returns; the caller may run the core in
  // it.
  virtual void finished(std::span<IoRequest* const> requests) = 0;
  // Called before finished() for a transfer that failed; `error_number` is 0 where the target ended
  // early.
  virtual void transfer_failed(const IoRequest& request, int error_number) = 0;

 protected:
  ~RequestSink() = default;
};

}  // namespace cofs
