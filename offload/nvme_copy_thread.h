// NvmeCopyThread: a permanent thread that owns a CommandRing and keeps many Copy commands in
// flight. Others hand it requests; it wakes only if it sleeps.
//
// Invariant: a request handed over is in exactly one of incoming_, waiting_, or a command. The
// thread sleeps only with the wake-up armed and incoming_ empty, both seen under the mutex that
// submit() takes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "offload/device_stack.h"
#include "offload/nvme_command.h"
#include "offload/request_list.h"
#include "offload/target.h"
#include "offload/uring.h"

namespace cofs {

class NvmeCopyThread {
 public:
  // Starts the thread and waits until it has its ring. The error is an errno: the ring cannot be
  // had. `destinations` are those of the stack's disks; their descriptors must outlive the thread.
  // `held_fd`: see Ring::create.
  static std::expected<std::unique_ptr<NvmeCopyThread>, int> start(
      const DeviceStack& stack, std::vector<NvmeDestination> destinations,
      uint32_t commands_in_flight, int held_fd, RequestSink& sink);
  // Waits until all that was submitted is finished.
  ~NvmeCopyThread();
  NvmeCopyThread(const NvmeCopyThread&) = delete;

  // Takes over a kCopy that NvmeCommand can encode. From any thread; what is beyond
  // commands_in_flight waits.
  void submit(IoRequest& request);

 private:
  NvmeCopyThread(const DeviceStack& stack, std::vector<NvmeDestination> destinations,
                 uint32_t commands_in_flight, int held_fd, RequestSink& sink);
  int wait_until_started();
  void run();
  int set_up();
  // Takes what others handed over; false when the thread shall end.
  bool take_incoming(bool& may_sleep);
  void fill_ring();
  bool enqueue(NvmeCommand& command);
  void reap();
  void wake();

  const DeviceStack stack_;
  const std::vector<NvmeDestination> destinations_;
  const uint32_t commands_in_flight_;
  const int held_fd_;
  RequestSink& sink_;
  OwnedFd wake_fd_;
  std::unique_ptr<CommandRing> ring_;

  std::mutex mutex_;
  std::condition_variable started_changed_;
  bool started_ = false;  // guarded by mutex_
  int start_error_ = 0;   // guarded by mutex_
  RequestList incoming_;  // guarded by mutex_
  bool asleep_ = false;   // guarded by mutex_: needs a wake-up to see incoming_
  bool stop_ = false;     // guarded by mutex_

  // Of the thread alone.
  struct FreeMemory {
    void operator()(NvmeSourceRange* memory) const;
  };
  std::unique_ptr<NvmeSourceRange[], FreeMemory> lists_;  // each command's, in pages of its own
  std::vector<std::unique_ptr<NvmeCommand>> commands_;
  std::vector<NvmeCommand*> idle_;
  std::vector<NvmeCommand*> to_queue_;  // begun, and to be sent
  RequestList waiting_;                 // for an idle command
  std::vector<CommandCompletion> completions_;
  std::vector<IoRequest*> finished_;
  bool wake_armed_ = false;
  uint64_t wake_count_ = 0;  // what the read of wake_fd_ brings

  std::thread thread_;
};

}  // namespace cofs
