// What all FUSE handlers share: starting a request's coroutine and sending its reply. The only
// header that includes libfuse.
//
// A handler is a plain function of libfuse's table: it copies its arguments, which die when it
// returns, and calls start() with a coroutine. The coroutine ends with exactly one reply_…(), which
// is sent after the core was left; whatever the reply refers to is moved into it. Errno exists only
// here.
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

// What handlers ask of the library (the third part of its version is known to the preprocessor from 3.17 on).
#if FUSE_VERSION > FUSE_MAKE_VERSION(3, 18) || \
    (FUSE_VERSION == FUSE_MAKE_VERSION(3, 18) && FUSE_HOTFIX_VERSION >= 3)
#define COFS_FUSE_HAS_KILL_FLAG 1  // fuse_file_info.kill_suidgid
#endif
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#define COFS_FUSE_HAS_TMPFILE 1
#endif
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
#define COFS_FUSE_HAS_STATX 1
#define COFS_FUSE_HAS_COPY_64 1
#define COFS_FUSE_HAS_RING 1
#endif
#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <utility>

#include "fs/fuse_queues.h"
#include "fs/fuse_server.h"

namespace cofs {

inline FuseServer& server_of(fuse_req_t request) {
  return *static_cast<FuseServer*>(fuse_req_userdata(request));
}

// Runs `operation(server, request, arguments…)`, a coroutine function, in the core.
template <class Operation, class... Arguments>
void start(fuse_req_t request, Operation operation, Arguments... arguments) {
  FuseServer& server = server_of(request);
  if (server.stopped()) {
    fuse_reply_err(request, EIO);
    return;
  }
  server.request_started();
  const std::coroutine_handle<> started = detach(operation(server, request, std::move(arguments)...));
  if (FuseQueueThread* queue = FuseQueueThread::current(); queue != nullptr) {
    queue->add(started);
  } else {
    server.monitor().post(started);
  }
}

template <class Send>
class ReplyAction final : public Deferred {
 public:
  ReplyAction(FuseServer& server, Send send) : server_(server), send_(std::move(send)) {}
  void run() override {
    FuseServer& server = server_;
    send_();
    delete this;  // what the reply owned goes after it was sent
    server.request_finished();
  }

 private:
  FuseServer& server_;
  Send send_;
};

// Calls `send` once this thread has left the core. A reply that the kernel does not want any more
// (the caller was killed) is no error of ours, so results of fuse_reply_*() are dropped.
template <class Send>
void reply(FuseServer& server, Send send) {
  server.monitor().defer(*new ReplyAction<Send>(server, std::move(send)));
}

// What fuse_file_info.fh says of an open file; the kernel hands it back with each request, and some of these
// requests carry nothing else of the open. 0: a directory.
struct FileHandle {
  uint64_t open = 0;  // FuseServer::next_open()
  bool readable = false;
  bool writable = false;
  bool synchronous = false;  // O_DSYNC or O_SYNC
  bool direct = false;       // O_DIRECT when it was opened

  static FileHandle opened(FuseServer& server, int flags);
  static FileHandle of(uint64_t fh);
  uint64_t fh() const;
  OpenFile open_file(uint64_t ino) const;
};

// The open file that a syncfs of the volume pretends to have as an fsync of the root directory
// (fs/fuse_request_reader.cc, tools/libfuse/ring_queues.c).
inline constexpr uint64_t kSyncfsHandle = UINT64_MAX;

void reply_errno(FuseServer& server, fuse_req_t request, int error_number);
void reply_error(FuseServer& server, fuse_req_t request, const Error& error);
void reply_status(FuseServer& server, fuse_req_t request, const Result<>& result);
void reply_entry(FuseServer& server, fuse_req_t request, const Attributes& attributes);
void reply_attributes(FuseServer& server, fuse_req_t request, const Attributes& attributes);
// The answer to an ioctl that succeeded; the bytes are copied, and may be none.
void reply_bytes(FuseServer& server, fuse_req_t request, const void* bytes, size_t size);

// To be called after a change, before its reply. When a change cleared setuid or setgid the kernel still has the
// mode with them in its cache, and runs the file by it; it must be told to ask. And so must everybody's who changes the
// file from then on, since the reply to one may overtake the word to the kernel of another.
void tell_of_lost_privileges(FuseServer& server, uint64_t ino, Unprivileged kill_privileges);

struct stat stat_of(const Attributes& attributes);
struct fuse_entry_param entry_of(const Attributes& attributes);

Caller caller_of(fuse_req_t request);
// Whether a change of a file by this request costs its setuid and setgid bits. As the kernel says where it leaves
// clearing to the server and says so in the request; otherwise everybody's but root's does.
Unprivileged kills_privileges(fuse_req_t request);
Unprivileged kills_privileges(fuse_req_t request, const fuse_file_info& file);
// With the caller's supplementary groups, which the library must look up in /proc.
Caller caller_with_groups_of(fuse_req_t request);

// The private ioctls that start, watch and end jobs (fuse_ops_jobs.cc). False: it is none of them, or of
// another size than declared; nothing was answered.
bool handle_job_ioctl(fuse_req_t request, unsigned command, const void* in, size_t in_size,
                      size_t out_size);

// Each fills in its part of libfuse's table.
void install_name_operations(fuse_lowlevel_ops& operations);       // fuse_ops_names.cc
void install_directory_operations(fuse_lowlevel_ops& operations);  // fuse_ops_directory.cc
void install_attribute_operations(fuse_lowlevel_ops& operations);  // fuse_ops_attributes.cc
void install_data_operations(fuse_lowlevel_ops& operations);       // fuse_ops_data.cc
void install_ioctl_operations(fuse_lowlevel_ops& operations);      // fuse_ops_ioctl.cc
// fuse_ops_clone.cc: the ioctls 16 … 31 of cofs_ioctl.h. False: it is none of these.
bool on_clone_ioctl(fuse_req_t request, uint64_t ino, unsigned command, FileHandle file, const void* in,
                    size_t in_size, size_t out_size);
void install_session_operations(fuse_lowlevel_ops& operations);    // fuse_ops.cc: init, destroy
// Has every request counted that a handler in the table gets (fuse_request_counts.cc). After the others, once.
void count_requests(fuse_lowlevel_ops& operations);

}  // namespace cofs
