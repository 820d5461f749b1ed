#include "offload/uring.h"

#include <liburing.h>
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "offload/base/error.h"

namespace cofs {

namespace {

// 0 or an errno. A killed process does not wait for its operations in flight, but the ring lives on
// until they have ended, and with it the files that are registered with it.
int hold(io_uring& ring, int fd) {
  return fd < 0 ? 0 : -io_uring_register_files(&ring, &fd, 1);
}

// Sets `ring` up with `flags` and the best of the flags that only make it faster, of those that any thread may use if
// `in_turns`; the name of these. The error is an errno.
std::expected<const char*, int> set_up(io_uring& ring, uint32_t entries, uint32_t flags, int held_fd, bool in_turns) {
  struct Flavour {
    uint32_t flags;
    const char* name;
  };
  constexpr Flavour kFlavours[] = {
      {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, "single_issuer+defer_taskrun"},
      {IORING_SETUP_COOP_TASKRUN, "coop_taskrun"},
      {0, "plain"},
  };
  int error = 0;
  for (const Flavour& flavour : kFlavours) {
    if (in_turns && (flavour.flags & IORING_SETUP_SINGLE_ISSUER) != 0) continue;
    io_uring_params params{};
    params.flags = flags | flavour.flags;
    error = -io_uring_queue_init_params(entries, &ring, &params);
    if (error == 0) {
      error = hold(ring, held_fd);
      if (error == 0) return flavour.name;
      io_uring_queue_exit(&ring);
      break;
    }
    if (error != EINVAL) break;  // not a matter of flags
  }
  return std::unexpected(error);
}

// REQUIRES: no operation is in flight. The held file is given up here and now, not by the kernel some
// time after the ring was closed.
void tear_down(io_uring& ring) {
  io_uring_unregister_files(&ring);
  io_uring_queue_exit(&ring);
}

int submit_to(io_uring& ring, bool wait) {
  int outcome = wait ? io_uring_submit_and_wait(&ring, 1) : io_uring_submit_and_get_events(&ring);
  return outcome < 0 ? -outcome : 0;
}

}  // namespace

Ring::Ring() = default;

Ring::~Ring() {
  if (ready_ && own_) tear_down(*own_);
}

std::expected<std::unique_ptr<Ring>, int> Ring::create(uint32_t entries, int held_fd) {
  return create(entries, held_fd, false);
}

std::expected<std::unique_ptr<Ring>, int> Ring::create_in_turns(uint32_t entries, int held_fd) {
  return create(entries, held_fd, true);
}

std::expected<std::unique_ptr<Ring>, int> Ring::create(uint32_t entries, int held_fd, bool in_turns) {
  std::unique_ptr<Ring> ring(new Ring);
  ring->own_ = std::make_unique<io_uring>();
  ring->ring_ = ring->own_.get();
  auto flavour = set_up(*ring->ring_, entries, 0, held_fd, in_turns);
  if (!flavour) return std::unexpected(flavour.error());
  ring->ready_ = true;
  ring->flavour_ = *flavour;
  return ring;
}

std::expected<std::unique_ptr<Ring>, int> Ring::borrow(io_uring& borrowed, int held_fd, uint32_t file) {
  const int outcome = held_fd < 0 ? 1 : io_uring_register_files_update(&borrowed, file, &held_fd, 1);
  if (outcome < 0) return std::unexpected(-outcome);
  std::unique_ptr<Ring> ring(new Ring);
  ring->ring_ = &borrowed;
  ring->flavour_ = "borrowed";
  return ring;
}

int Ring::register_memory(std::span<std::byte> memory) {
  std::vector<iovec> pieces;
  for (uint64_t at = 0; at < memory.size(); at += kRegisteredBytesMax) {
    pieces.push_back({memory.data() + at, std::min(memory.size() - at, kRegisteredBytesMax)});
  }
  if (pieces.empty()) return 0;
  int error =
      -io_uring_register_buffers(ring_, pieces.data(), static_cast<unsigned>(pieces.size()));
  if (error == 0) registered_ = std::move(pieces);
  return error;
}

int Ring::registered_index(const iovec& vector) const {
  const auto* begin = static_cast<const std::byte*>(vector.iov_base);
  for (size_t i = 0; i < registered_.size(); i++) {
    const auto* base = static_cast<const std::byte*>(registered_[i].iov_base);
    if (begin >= base && begin + vector.iov_len <= base + registered_[i].iov_len) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

bool Ring::read(int fd, std::span<const iovec> vectors, uint64_t offset, void* tag) {
  io_uring_sqe* entry = io_uring_get_sqe(ring_);
  if (entry == nullptr) return false;
  const iovec& first = vectors.front();
  int index = vectors.size() == 1 ? registered_index(first) : -1;
  if (index >= 0) {
    io_uring_prep_read_fixed(entry, fd, first.iov_base, static_cast<unsigned>(first.iov_len),
                             offset, index);
  } else {
    io_uring_prep_readv(entry, fd, vectors.data(), static_cast<unsigned>(vectors.size()), offset);
  }
  io_uring_sqe_set_data(entry, tag);
  return true;
}

bool Ring::write(int fd, std::span<const iovec> vectors, uint64_t offset, int flags, void* tag) {
  io_uring_sqe* entry = io_uring_get_sqe(ring_);
  if (entry == nullptr) return false;
  const iovec& first = vectors.front();
  int index = vectors.size() == 1 ? registered_index(first) : -1;
  if (index >= 0) {
    io_uring_prep_write_fixed(entry, fd, first.iov_base, static_cast<unsigned>(first.iov_len),
                              offset, index);
  } else {
    io_uring_prep_writev(entry, fd, vectors.data(), static_cast<unsigned>(vectors.size()), offset);
  }
  entry->rw_flags = flags;
  io_uring_sqe_set_data(entry, tag);
  return true;
}

bool Ring::watch(int fd, void* tag) {
  io_uring_sqe* entry = io_uring_get_sqe(ring_);
  if (entry == nullptr) return false;
  io_uring_prep_poll_add(entry, fd, POLLIN);
  io_uring_sqe_set_data(entry, tag);
  return true;
}

int Ring::submit_for(std::chrono::nanoseconds patience) {
  __kernel_timespec time{};
  time.tv_nsec = patience.count();
  io_uring_cqe* first = nullptr;
  const int outcome = io_uring_submit_and_wait_timeout(ring_, &first, 1, &time, nullptr);
  return outcome < 0 ? -outcome : 0;
}

void Ring::poll(std::chrono::steady_clock::time_point until) {
  submit_to(*ring_, false);  // what the kernel does not take now stays queued for the next time
  while (io_uring_cq_ready(ring_) == 0) {
    if (std::chrono::steady_clock::now() >= until) return;
    sched_yield();
    io_uring_get_events(ring_);
  }
}

int Ring::submit(bool wait) {
  return submit_to(*ring_, wait);
}

uint32_t Ring::reap(std::span<RingCompletion> completions) {
  uint32_t count = 0;
  unsigned head = 0;
  io_uring_cqe* entry = nullptr;
  io_uring_for_each_cqe(ring_, head, entry) {
    if (count == completions.size()) break;
    completions[count].tag = io_uring_cqe_get_data(entry);
    completions[count].outcome = entry->res;
    count++;
  }
  io_uring_cq_advance(ring_, count);
  return count;
}

CommandRing::CommandRing() : ring_(std::make_unique<io_uring>()) {}

CommandRing::~CommandRing() {
  if (ready_) tear_down(*ring_);
}

std::expected<std::unique_ptr<CommandRing>, int> CommandRing::create(uint32_t entries,
                                                                     int held_fd) {
  std::unique_ptr<CommandRing> ring(new CommandRing);
  auto flavour = set_up(*ring->ring_, entries, IORING_SETUP_SQE128 | IORING_SETUP_CQE32, held_fd, false);
  if (!flavour) return std::unexpected(flavour.error());
  ring->ready_ = true;
  return ring;
}

bool CommandRing::command(int fd, uint32_t operation, std::span<const std::byte> payload,
                          void* tag) {
  constexpr size_t kEntryBytes = 2 * sizeof(io_uring_sqe);
  static_assert(offsetof(io_uring_sqe, cmd) + kPayloadBytesMax == kEntryBytes);
  COFS_ASSERT(payload.size() <= kPayloadBytesMax);
  io_uring_sqe* entry = io_uring_get_sqe(ring_.get());
  if (entry == nullptr) return false;
  auto* bytes = reinterpret_cast<std::byte*>(entry);
  std::fill_n(bytes, kEntryBytes, std::byte{0});
  entry->opcode = IORING_OP_URING_CMD;
  entry->fd = fd;
  entry->cmd_op = operation;
  std::ranges::copy(payload, bytes + offsetof(io_uring_sqe, cmd));
  io_uring_sqe_set_data(entry, tag);
  return true;
}

bool CommandRing::read_event(int fd, uint64_t& count, void* tag) {
  io_uring_sqe* entry = io_uring_get_sqe(ring_.get());
  if (entry == nullptr) return false;
  io_uring_prep_read(entry, fd, &count, sizeof(count), 0);
  io_uring_sqe_set_data(entry, tag);
  return true;
}

int CommandRing::submit(bool wait) {
  return submit_to(*ring_, wait);
}

uint32_t CommandRing::reap(std::span<CommandCompletion> completions) {
  uint32_t count = 0;
  unsigned head = 0;
  io_uring_cqe* entry = nullptr;
  io_uring_for_each_cqe(ring_.get(), head, entry) {
    if (count == completions.size()) break;
    completions[count].tag = io_uring_cqe_get_data(entry);
    completions[count].outcome = entry->res;
    completions[count].value = entry->big_cqe[0];
    count++;
  }
  io_uring_cq_advance(ring_.get(), count);
  return count;
}

}  // namespace cofs
