// FuseServer: a mounted FileSystem. It sets up the session with the kernel, runs its threads, and
// takes the mount down again; the handlers are in fuse_ops*.cc.
//
// A request is handled in three steps: its FUSE thread copies what the handler was given (names,
// payload, hashes), posts a coroutine to the monitor, and the reply is sent by whichever thread
// leaves the core after the coroutine finished. Every request gets exactly one reply. The server is
// the only writer of the volume, so the kernel may cache names, attributes and data for as long as
// it likes. Not for: opening the device or closing the filesystem; that is the caller's, before and
// after.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "fs/filesystem.h"
#include "fs/fuse_options.h"
#include "fs/fuse_page_invalidator.h"
#include "fs/fuse_request_counts.h"
#include "fs/fuse_request_poller.h"
#include "offload/monitor.h"

struct fuse_session;

namespace cofs {

class FileDevice;
class FuseQueues;
class FuseServer;

struct FuseServerOptions {
  std::string mount_point;    // absolute: the server leaves its working directory
  std::string source;         // what the mount table shows: the target's path
  bool block_device = false;  // mount as fuseblk (root only)
  bool read_only = false;
  bool writeback = false;
  bool keep_cache = true;  // false: opening a file drops what the kernel has of its data
  bool allow_other = false;
  FuseTransport transport = FuseTransport::kDevice;
  bool busy_poll = true;  // by the kernel's device, while it pays
  FileDevice* device = nullptr;  // the filesystem's: its I/O may go along with requests (fuse_queues.h)
  std::vector<std::string> kernel_options;
  // Called right before a fuseblk mount, when the kernel is about to claim the device.
  std::function<void()> release_claim;
  // The statistics as JSON text; called inside the core.
  std::function<std::string(const FuseServer&)> statistics;
};

// What the kernel and the library agreed on when the session began. Small, so that it can be an atomic.
struct alignas(8) SessionFeatures {
  uint16_t protocol_major = 0;
  uint16_t protocol_minor = 0;
  bool kills_privileges : 1 = false;  // requests say when setuid and setgid must go
  bool unnamed_files : 1 = false;     // O_TMPFILE
  bool statx : 1 = false;             // birth time, and the attributes of chattr(1)
  bool opens_directories_alone : 1 = false;  // the kernel, once an OPENDIR was answered ENOSYS (Linux 5.1)
  bool copies_64 : 1 = false;         // one copy request and its reply may be longer than 32 bits can say
};

// For people: "libfuse 3.18.3, pinned", or "libfuse 3.14.0, the system's".
std::string fuse_library();

// Why requests cannot come by io_uring here, in one line; empty if they can.
std::string why_no_ring(FuseTransport wanted);

class FuseServer {
 public:
  static constexpr double kEntrySeconds = 86'400;
  static constexpr double kAttributeSeconds = 86'400;
  static constexpr double kNegativeSeconds = 3'600;
  // Of one read or write: as many pages as Linux allows unless fs.fuse.max_pages_limit was raised (256 since 6.13, and before that for good).
  static constexpr uint32_t kRequestBytesMax = 1U << 20;
  static constexpr uint32_t kBackgroundMax = 64;
  static constexpr uint32_t kBackgroundCongested = 48;
  static constexpr uint32_t kThreadsMax = 32;
  static constexpr uint32_t kReadAheadKib = 1024;

  FuseServer(FileSystem& fs, Monitor& monitor, Journal& journal, FuseServerOptions options);
  // REQUIRES: serve() has returned, or was never called.
  ~FuseServer();
  FuseServer(const FuseServer&) = delete;

  // Mounts. Requests wait in the kernel until serve(). Errors: one line for a person.
  std::expected<void, std::string> mount();

  // Serves on threads of its own until the mount is gone or SIGTERM, SIGINT or SIGHUP arrives,
  // which must be unblocked in the calling thread only. `ready` is called once, on another thread,
  // when the mount can be used. On return the mount is gone and all replies are sent.
  std::expected<void, std::string> serve(std::function<void()> ready);

  // True after a shutdown ioctl: the volume must be left as it is.
  bool stopped() const { return stopped_.load(std::memory_order_acquire); }

  // --- For the handlers ---
  FileSystem& fs() { return fs_; }
  Monitor& monitor() { return monitor_; }
  BufferPool& buffers() { return fs_.environment().buffers; }
  const FuseServerOptions& options() const { return options_; }
  PageInvalidator& invalidator() { return invalidator_; }
  RequestPoller& poller() { return poller_; }
  const RequestPoller& poller() const { return poller_; }
  fuse_session* session() { return session_; }
  void request_started() {
    requests_.fetch_add(1, std::memory_order_relaxed);
    requests_seen_.fetch_add(1, std::memory_order_relaxed);
  }
  // All that went to the core since the mount: what the library answers by itself is not among them.
  // True once a request came by io_uring, which is by whichever transport all of them come.
  bool uses_ring() const { return uses_ring_.load(std::memory_order_relaxed); }
  void came_by_ring() { uses_ring_.store(true, std::memory_order_relaxed); }
  uint64_t requests_seen() const { return requests_seen_.load(std::memory_order_relaxed); }
  void request_finished();
  RequestCounts& request_counts() { return request_counts_; }
  const RequestCounts& request_counts() const { return request_counts_; }
  void session_initialised(const SessionFeatures& features);  // the kernel's INIT is being answered
  // The kernel's word of sync(2) and syncfs(2) arrives: the library knows no such request, what reads them for it does.
  bool hears_of_sync() const { return hears_of_sync_; }
  // Set before any request comes, and then for good.
  SessionFeatures features() const { return features_.load(std::memory_order_relaxed); }
  // Has the kernel ask for an inode's attributes when it needs them next. It holds no lock that a request may
  // hold, so it is allowed before the request that is the reason was answered.
  void forget_attributes(uint64_t ino);
  // A number for an open file that no other one has; never 0.
  uint64_t next_open() { return opens_.fetch_add(1, std::memory_order_relaxed) + 1; }
  void stop() { stopped_.store(true, std::memory_order_release); }
  // Tells the journal of a failure that a program only sees as EIO; the first hundred of them.
  void note_failure(const Error& error);

  // A text that is fetched in pages (cofs_ioctl.h).
  struct TextPage {
    uint64_t snapshot = 0;
    uint32_t total = 0;
    std::string text;
  };
  TextPage keep_text(std::string text, size_t page_bytes);
  // Empty snapshot field: the text is not kept any more.
  TextPage text_page(uint64_t snapshot, size_t offset, size_t page_bytes);

 private:
  enum class Stage : int { kWaiting, kInitialised, kOver };

  std::expected<void, std::string> check_mount_point() const;
  std::vector<std::string> session_arguments() const;
  void wait_for_replies();
  void announce(const std::function<void()>& ready);
  void raise_read_ahead();

  FileSystem& fs_;
  Monitor& monitor_;
  Journal& journal_;
  FuseServerOptions options_;
  PageInvalidator invalidator_;
  RequestPoller poller_;
  fuse_session* session_ = nullptr;
  bool mounted_ = false;
  bool hears_of_sync_ = false;  // set by mount()
  static_assert(std::atomic<SessionFeatures>::is_always_lock_free);
  std::atomic<SessionFeatures> features_{SessionFeatures()};
  std::atomic<Stage> stage_{Stage::kWaiting};
  std::unique_ptr<FuseQueues> queues_;  // with io_uring
  std::atomic<bool> uses_ring_{false};
  std::atomic<bool> lacks_ring_{false};  // though it was asked for
  std::atomic<bool> stopped_{false};
  std::atomic<uint64_t> opens_{0};
  // Requests without a reply yet, and one for the server itself until it waits for the others.
  // Whoever takes it to zero sets drained_.
  std::atomic<uint64_t> requests_{1};
  std::atomic<uint64_t> requests_seen_{0};
  RequestCounts request_counts_;
  std::atomic<uint64_t> failures_noted_{0};
  std::mutex mutex_;
  std::condition_variable idle_;
  bool drained_ = false;        // guarded by mutex_
  std::string kept_text_;       // guarded by mutex_
  uint64_t kept_snapshot_ = 0;  // guarded by mutex_
};

}  // namespace cofs
