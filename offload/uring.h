// Ring: an io_uring for reads and writes; CommandRing: one for commands that a driver passes to its
// device. Each is owned by one thread. The only place where liburing enters.
//
// All calls, creation and destruction included, are made by the thread that waits on the ring: then
// completions are reaped in that thread's own time and wake nobody else (SINGLE_ISSUER,
// DEFER_TASKRUN; on kernels before 6.1 the ring goes without them and is only slower). A ring that threads use
// in turns is made for that, and goes without, too. Commands get
// along with these flags: seen with NVMe on 6.1 and 6.12, and with /dev/null on 6.18.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <chrono>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

struct io_uring;

namespace cofs {

struct RingCompletion {
  void* tag = nullptr;
  int32_t outcome = 0;  // bytes, or a negative errno
};

class Ring {
 public:
  // Room for `entries` operations in flight. `held_fd`, unless it is -1, is a descriptor whose open file
  // the kernel keeps open until the ring's last operation has ended, also when the process is killed
  // before: what holds the lock on the target. The error is an errno.
  static std::expected<std::unique_ptr<Ring>, int> create(uint32_t entries, int held_fd);
  // The same for threads that use it one after the other, each until all that it started has completed.
  static std::expected<std::unique_ptr<Ring>, int> create_in_turns(uint32_t entries, int held_fd);
  // A ring of somebody else, who creates, submits and reaps it; all calls are made by its thread. `file` is the index of
  // a registered file that may be set, for held_fd. It must outlive this. The error is an errno.
  static std::expected<std::unique_ptr<Ring>, int> borrow(io_uring& ring, int held_fd, uint32_t file);
  ~Ring();
  Ring(const Ring&) = delete;

  // Registers memory, so that I/O wholly within it spares the kernel to look up its pages. All of
  // it is pinned, and so resident, from now on. 0, or an errno: I/O then goes on unregistered.
  int register_memory(std::span<std::byte> memory);

  // Each takes one entry, and is started by the next submit(). False when no entry is free: submit
  // first. `vectors` and what they point to stay untouched until the completion; `offset` is in
  // bytes, `flags` those of pwritev2(2).
  bool read(int fd, std::span<const iovec> vectors, uint64_t offset, void* tag);
  bool write(int fd, std::span<const iovec> vectors, uint64_t offset, int flags, void* tag);

  // An entry that completes once `fd` has something to be read.
  bool watch(int fd, void* tag);

  // Starts what was queued, and waits for one completion if `wait`. 0 or an errno; EINTR, EAGAIN
  // and EBUSY mean: reap what is there and call again.
  int submit(bool wait);
  // The same, and waits for one completion, but not longer than this; then it is ETIME.
  int submit_for(std::chrono::nanoseconds patience);

  // Starts what was queued, and looks for a completion, yielding the CPU all the while, until there is one, or until then.
  void poll(std::chrono::steady_clock::time_point until);

  // Takes completions into `completions`, as many as are there; returns how many.
  uint32_t reap(std::span<RingCompletion> completions);

  // For reports: "single_issuer+defer_taskrun", "plain".
  const char* flavour() const { return flavour_; }

 private:
  // Of a registered piece of memory: the kernel takes at most 1 GiB in one.
  static constexpr uint64_t kRegisteredBytesMax = uint64_t{1} << 30;

  Ring();
  static std::expected<std::unique_ptr<Ring>, int> create(uint32_t entries, int held_fd, bool in_turns);
  // The index of the registered piece that holds all of `vector`, or -1.
  int registered_index(const iovec& vector) const;

  std::unique_ptr<io_uring> own_;  // null: borrowed
  io_uring* ring_ = nullptr;
  bool ready_ = false;
  std::vector<iovec> registered_;
  const char* flavour_ = "";
};

struct CommandCompletion {
  void* tag = nullptr;
  int32_t outcome =
      0;  // what the driver makes of it: 0, a status of the device, or a negative errno
  uint64_t value = 0;  // what the device returned besides
};

// A ring with entries of twice the size: a command lies in the entry itself.
class CommandRing {
 public:
  // What a command may take of an entry.
  static constexpr size_t kPayloadBytesMax = 80;

  // As Ring::create; EINVAL on kernels before 5.19, which have no commands.
  static std::expected<std::unique_ptr<CommandRing>, int> create(uint32_t entries, int held_fd);
  ~CommandRing();
  CommandRing(const CommandRing&) = delete;

  // As Ring::read: false when no entry is free. `operation` and `payload` are the driver's (for
  // NVMe: linux/nvme_ioctl.h); the payload is copied, what it points to stays untouched until the
  // completion.
  bool command(int fd, uint32_t operation, std::span<const std::byte> payload, void* tag);
  // Reads an eventfd, which makes it the ring's wake-up.
  bool read_event(int fd, uint64_t& count, void* tag);

  // As Ring's.
  int submit(bool wait);
  uint32_t reap(std::span<CommandCompletion> completions);

 private:
  CommandRing();

  std::unique_ptr<io_uring> ring_;
  bool ready_ = false;
};

}  // namespace cofs
