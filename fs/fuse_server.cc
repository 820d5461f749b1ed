#include "fs/fuse_server.h"

#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>

#include "fs/fuse_connection.h"
#include "fs/fuse_mounts.h"
#include "fs/fuse_ops.h"
#include "fs/fuse_queues.h"
#include "fs/fuse_request_gatherer.h"
#include "fs/fuse_request_reader.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace cofs {

namespace {

using Outcome = std::expected<void, std::string>;

constexpr uint64_t kFailuresNotedMax = 100;

// libfuse prints to stderr by itself and tells its caller nothing. This keeps its last words for
// our error line. (Its hook has no user pointer, hence the one static object.)
class LibraryMessages {
 public:
  static LibraryMessages& instance() {
    static LibraryMessages messages;
    return messages;
  }
  std::string take_last() {
    std::lock_guard lock(mutex_);
    return std::exchange(last_, {});
  }
  // From now on messages go to `journal`; null: they are kept only.
  void set_journal(Journal* journal) {
    std::lock_guard lock(mutex_);
    journal_ = journal;
  }

 private:
  LibraryMessages() { fuse_set_log_func(&LibraryMessages::receive); }
  static void receive(fuse_log_level level, const char* format, va_list arguments) {
    char line[512];
    vsnprintf(line, sizeof(line), format, arguments);
    instance().add(level, line);
  }
  void add(fuse_log_level level, std::string line) {
    while (line.ends_with('\n')) line.pop_back();
    std::lock_guard lock(mutex_);
    last_ = line.starts_with("fuse: ") ? line.substr(6) : line;
    if (journal_ != nullptr && level <= FUSE_LOG_WARNING) {
      journal_->write(Severity::kWarning, "libfuse: " + last_);
    }
  }

  std::mutex mutex_;
  std::string last_;
  Journal* journal_ = nullptr;
};

const fuse_lowlevel_ops& operation_table() {
  static const fuse_lowlevel_ops operations = [] {
    fuse_lowlevel_ops table{};
    install_session_operations(table);
    install_name_operations(table);
    install_directory_operations(table);
    install_attribute_operations(table);
    install_data_operations(table);
    install_ioctl_operations(table);
    count_requests(table);
    return table;
  }();
  return operations;
}

std::string escape_option(std::string_view value) {
  std::string escaped;
  for (char c : value) {
    if (c == ',' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

Outcome failed(std::string what) {
  return std::unexpected(std::move(what));
}

}  // namespace

std::string fuse_library() {
#ifdef COFS_LIBFUSE_PINNED
  constexpr const char* kOrigin = "pinned";
#else
  constexpr const char* kOrigin = "the system's";
#endif
  return std::string("libfuse ") + fuse_pkgversion() + ", " + kOrigin;
}

std::string why_no_ring(FuseTransport wanted) {
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
  constexpr bool kLibraryHasIt = true;
#else
  constexpr bool kLibraryHasIt = false;
#endif
  if (!kLibraryHasIt) return fuse_library() + ": has no io_uring; build with -DCOFS_LIBFUSE=pinned";
  if (!FuseQueues::are_ours() && wanted != FuseTransport::kForcedRing) {
    return fuse_library() + ": is not known to answer by io_uring without hanging; build with -DCOFS_LIBFUSE=pinned, or "
                            "try io_uring=force";
  }
  const char* const switch_path = "/sys/module/fuse/parameters/enable_uring";
  if (access(switch_path, F_OK) != 0) return "this kernel's FUSE has no io_uring (Linux 6.14 or later has)";
  std::ifstream setting(switch_path);
  std::string value;
  if (!(setting >> value)) return std::string("cannot read ") + switch_path;
  if (value != "Y") return std::string("the kernel's FUSE may not use io_uring; allow it with: echo Y > ") + switch_path;
  return {};
}

FuseServer::FuseServer(FileSystem& fs, Monitor& monitor, Journal& journal,
                       FuseServerOptions options)
    : fs_(fs), monitor_(monitor), journal_(journal), options_(std::move(options)),
      invalidator_(monitor),
      poller_(options_.busy_poll && options_.transport == FuseTransport::kDevice,
              options_.device == nullptr ? RequestPoller::MakeGatherer()
                                         : [this] { return make_request_gatherer(monitor_, *options_.device); }) {}

FuseServer::~FuseServer() {
  if (session_ != nullptr) {
    if (mounted_) fuse_session_unmount(session_);
    invalidator_.stop();
    fuse_session_destroy(session_);
  }
  LibraryMessages::instance().set_journal(nullptr);
}

Outcome FuseServer::check_mount_point() const {
  const std::string& path = options_.mount_point;
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOTCONN) return failed("a server died here; clear it with: cofs umount " + path);
    return failed(strerror(errno));
  }
  if (!S_ISDIR(status.st_mode)) return failed("not a directory");
  std::optional<MountEntry> present = mount_at(path);
  if (present && present->is_cofs()) return failed(present->source + " is already mounted here");
  if (access("/dev/fuse", R_OK | W_OK) != 0) {
    std::string reason = strerror(errno);
    if (errno == ENOENT || errno == ENODEV) reason += "; is the fuse module loaded?";
    return failed("/dev/fuse: " + reason);
  }
  return {};
}

std::vector<std::string> FuseServer::session_arguments() const {
  std::vector<std::string> options = {"fsname=" + escape_option(options_.source), "subtype=cofs",
                                      "default_permissions"};
  if (options_.allow_other) options.emplace_back("allow_other");
  if (options_.transport != FuseTransport::kDevice) {
    options.emplace_back("io_uring");
    options.emplace_back("io_uring_q_depth=" + std::to_string(FuseQueues::depth()));
  }
  if (options_.block_device) {
    options.emplace_back("blkdev");
    options.emplace_back("blksize=4096");
  }
  options.emplace_back(options_.read_only ? "ro" : "rw");
  // As mount(8) would for root; libfuse's own default is nodev,nosuid.
  if (geteuid() == 0) {
    options.emplace_back("dev");
    options.emplace_back("suid");
  }
  for (const std::string& option : options_.kernel_options)
    options.push_back(escape_option(option));

  std::vector<std::string> arguments = {"cofs"};
  for (std::string& option : options) {
    arguments.emplace_back("-o");
    arguments.push_back(std::move(option));
  }
  return arguments;
}

Outcome FuseServer::mount() {
  Outcome usable = check_mount_point();
  if (!usable) return usable;
  LibraryMessages& messages = LibraryMessages::instance();
  messages.take_last();
  if (options_.transport != FuseTransport::kDevice) {
    std::string reason = why_no_ring(options_.transport);
    if (!reason.empty()) return failed("io_uring: " + reason);
    queues_ = std::make_unique<FuseQueues>(*this);
  }

  std::vector<std::string> arguments = session_arguments();
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  fuse_args args = FUSE_ARGS_INIT(static_cast<int>(arguments.size()), pointers.data());
  const fuse_lowlevel_ops& operations = operation_table();
  session_ = fuse_session_new(&args, &operations, sizeof(operations), this);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) return failed("cannot set up the FUSE session: " + messages.take_last());

  if (options_.block_device && options_.release_claim) options_.release_claim();
  if (fuse_session_mount(session_, options_.mount_point.c_str()) != 0) {
    std::string reason = messages.take_last();
    return failed(reason.empty() ? "the kernel refused the mount" : reason);
  }
  mounted_ = true;
  const int error = install_request_reader(session_);
  hears_of_sync_ = error == 0 && (options_.transport == FuseTransport::kDevice || FuseQueues::are_ours());
  messages.take_last();
  if (error != 0) {
    journal_.write(Severity::kInfo, std::string("the library reads requests by itself: writes are copied once more, requests "
                                                "are not polled for, and sync(2) does not reach this mount (cofs sync does): ") +
                                        strerror(error));
  }
  messages.set_journal(&journal_);
  return {};
}

Outcome FuseServer::serve(std::function<void()> ready) {
  // The server lies in the path of memory reclaim: it must not wait for its own write-back.
  prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  if (chdir("/") != 0) return failed(std::string("/: ") + strerror(errno));
  umask(0);
  if (fuse_set_signal_handlers(session_) != 0) return failed("cannot set signal handlers");

  const LoopConfig config = loop_config();
  std::thread announcer([this, &ready] { announce(ready); });
  int status = fuse_session_loop_mt(session_, config.get());
  const bool may_hang = invalidator_.give_up();
  wait_for_replies();
  if (queues_) queues_->release();  // they hold the connection
  // Ends requests that nobody serves any more, and with them what waits for their pages. Not for users, who may not:
  // then the library's unmount has to do.
  if (may_hang) umount2(options_.mount_point.c_str(), MNT_FORCE | UMOUNT_NOFOLLOW);
  fuse_session_unmount(session_);
  mounted_ = false;
  stage_.store(Stage::kOver);
  stage_.notify_all();
  announcer.join();
  fuse_remove_signal_handlers(session_);
  if (lacks_ring_) return failed("io_uring: libfuse could not set it up (" + LibraryMessages::instance().take_last() + ")");
  // Positive: a signal. Negative: the device of the connection failed.
  if (status < 0) return failed(std::string("the FUSE connection failed: ") + strerror(-status));
  return {};
}

void FuseServer::request_finished() {
  if (requests_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    std::lock_guard lock(mutex_);
    drained_ = true;
    idle_.notify_all();  // under the lock: nothing is touched after it
  }
}

void FuseServer::wait_for_replies() {
  request_finished();
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return drained_; });
}

void FuseServer::session_initialised(const SessionFeatures& features) {
  features_.store(features, std::memory_order_relaxed);
  Stage expected = Stage::kWaiting;
  stage_.compare_exchange_strong(expected, Stage::kInitialised);
  stage_.notify_all();
}

void FuseServer::forget_attributes(uint64_t ino) {
  // Fails if the kernel does not know the inode any more.
  fuse_lowlevel_notify_inval_inode(session_, ino, -1, 0);
}

// Waits until the mount answers. statfs() of the own mount blocks until the kernel got the answer
// to INIT; this thread serves no requests, so that cannot lock up, and it fails when the session
// ends instead.
void FuseServer::announce(const std::function<void()>& ready) {
  stage_.wait(Stage::kWaiting);
  if (stage_.load() != Stage::kInitialised) return;
  struct statfs figures {};
  if (statfs(options_.mount_point.c_str(), &figures) != 0) return;
  if (options_.transport != FuseTransport::kDevice && !uses_ring()) {
    lacks_ring_ = true;
    fuse_session_exit(session_);
    return;
  }
  raise_read_ahead();
  ready();
}

// Best effort: sequential reads are about twice as fast with it, and nothing depends on it.
void FuseServer::raise_read_ahead() {
  std::optional<MountEntry> entry = mount_at(options_.mount_point);
  if (!entry || !entry->is_cofs()) return;
  if (!cofs::raise_read_ahead(*entry)) journal_.write(Severity::kInfo, "read-ahead stays at the kernel's default");
}

void FuseServer::note_failure(const Error& error) {
  bool serious = error.code == Code::kIo || error.code == Code::kChecksum ||
                 error.code == Code::kCorrupt || error.code == Code::kShutdown;
  if (!serious || failures_noted_.load(std::memory_order_relaxed) >= kFailuresNotedMax) return;
  uint64_t before = failures_noted_.fetch_add(1, std::memory_order_relaxed);
  if (before >= kFailuresNotedMax) return;
  journal_.write(Severity::kError, "a request failed: " + describe(error));
  if (before + 1 == kFailuresNotedMax) {
    journal_.write(Severity::kError, "further failed requests are not reported here");
  }
}

FuseServer::TextPage FuseServer::keep_text(std::string text, size_t page_bytes) {
  uint64_t snapshot = 0;
  {
    std::lock_guard lock(mutex_);
    kept_text_ = std::move(text);
    snapshot = ++kept_snapshot_;
  }
  return text_page(snapshot, 0, page_bytes);
}

FuseServer::TextPage FuseServer::text_page(uint64_t snapshot, size_t offset, size_t page_bytes) {
  std::lock_guard lock(mutex_);
  TextPage page;
  if (snapshot != kept_snapshot_ || offset > kept_text_.size()) return page;
  page.snapshot = snapshot;
  page.total = static_cast<uint32_t>(kept_text_.size());
  page.text = kept_text_.substr(offset, page_bytes);
  return page;
}

}  // namespace cofs
