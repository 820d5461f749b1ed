// Handlers of the private ioctls that start, watch and end jobs (cofs_ioctl.h, "Jobs").
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "fs/cofs_ioctl.h"
#include "fs/fuse_ops.h"

namespace cofs {

namespace {

// The states go to the caller as they are.
static_assert(static_cast<uint32_t>(JobState::kNever) == COFS_JOB_NEVER &&
              static_cast<uint32_t>(JobState::kRunning) == COFS_JOB_RUNNING &&
              static_cast<uint32_t>(JobState::kDone) == COFS_JOB_DONE &&
              static_cast<uint32_t>(JobState::kCancelled) == COFS_JOB_CANCELLED &&
              static_cast<uint32_t>(JobState::kFailed) == COFS_JOB_FAILED);

uint32_t error_of(const JobFigures& figures) {
  return figures.state == JobState::kFailed ? static_cast<uint32_t>(errno_of(figures.error.code))
                                            : 0;
}

// What the kernel handed over, if it is a whole structure.
template <class Structure>
std::optional<Structure> argument(const void* in, size_t in_size) {
  Structure structure;
  if (in_size != sizeof(structure)) return {};
  std::memcpy(&structure, in, sizeof(structure));
  return structure;
}

template <class Words>
bool all_zero(const Words& words) {
  return std::all_of(std::begin(words), std::end(words), [](auto word) { return word == 0; });
}

bool is_root(fuse_req_t request) { return fuse_req_ctx(request)->uid == 0; }

uint32_t end_reason_of(const GcJobFigures& figures) {
  switch (figures.report.end) {
    case GcEnd::kNothingGains: return COFS_GC_END_NOTHING_GAINS;
    case GcEnd::kNoRoom: return COFS_GC_END_NO_ROOM;
    case GcEnd::kAsRequested: break;
  }
  return figures.free_enough ? COFS_GC_END_FREE_ENOUGH : COFS_GC_END_LONG_ENOUGH;
}

Task<void> start_gc(FuseServer& server, fuse_req_t request, cofs_gc_start arguments) {
  co_await server.fs().free_removed();
  auto number = server.fs().jobs().start_gc(arguments.until_free_percent);
  if (!number) {
    reply_error(server, request, number.error());
    co_return;
  }
  arguments.number = *number;
  reply_bytes(server, request, &arguments, sizeof(arguments));
}

Task<void> gc_status(FuseServer& server, fuse_req_t request) {
  const GcJobFigures figures = server.fs().jobs().gc();
  const SpaceReport space = server.fs().store().space();
  cofs_gc_status status{};
  status.number = figures.number;
  status.state = static_cast<uint32_t>(figures.state);
  status.error = error_of(figures);
  status.end_reason = figures.state == JobState::kDone ? end_reason_of(figures) : 0;
  status.until_free_percent = figures.until_free_percent;
  status.elapsed_ns = figures.elapsed_ns;
  status.segments_emptied = figures.report.victims;
  status.moved_bytes = bytes_of_blocks(figures.report.moved_blocks);
  status.device_bytes = bytes_of_blocks(figures.report.device_blocks);
  status.host_bytes = bytes_of_blocks(figures.report.host_blocks);
  status.won_bytes = bytes_of_blocks(figures.report.won_blocks);
  status.ready_bytes = bytes_of_blocks(space.ready_blocks());
  status.total_bytes = bytes_of_blocks(space.total_blocks);
  reply_bytes(server, request, &status, sizeof(status));
  co_return;
}

Task<void> start_scrub(FuseServer& server, fuse_req_t request, cofs_scrub_start arguments) {
  auto number = server.fs().jobs().start_scrub(arguments.bytes_per_second);
  if (!number) {
    reply_error(server, request, number.error());
    co_return;
  }
  arguments.number = *number;
  reply_bytes(server, request, &arguments, sizeof(arguments));
}

Task<void> scrub_status(FuseServer& server, fuse_req_t request) {
  const JobFigures job = server.fs().jobs().scrub();
  const ScrubRun& run = server.fs().jobs().scrub_run();
  cofs_scrub_status status{};
  status.number = job.number;
  status.state = static_cast<uint32_t>(job.state);
  status.error = error_of(job);
  status.elapsed_ns = job.elapsed_ns;
  status.bytes_per_second = run.bytes_per_second;
  status.done_bytes = run.figures.done_bytes;
  status.total_bytes = run.figures.total_bytes;
  status.data_errors = run.figures.data_errors;
  status.node_errors = run.figures.node_errors;
  status.superblock_errors = run.figures.superblock_errors;
  status.repaired = run.figures.repaired;
  status.problem_count = run.figures.problem_count;
  reply_bytes(server, request, &status, sizeof(status));
  co_return;
}

// The text only grows while a scrub runs, so pages of it fit together.
Task<void> scrub_problems(FuseServer& server, fuse_req_t request, uint64_t snapshot,
                          uint32_t offset) {
  const uint64_t number = server.fs().jobs().scrub().number;
  if (offset != 0 && snapshot != number) {
    reply_errno(server, request, EAGAIN);
    co_return;
  }
  std::string text;
  for (const std::string& line : server.fs().jobs().scrub_run().figures.problems) {
    text += line + "\n";
  }
  auto page = std::make_unique<cofs_text_page>();
  std::memset(page.get(), 0, sizeof(*page));
  page->snapshot = number;
  page->offset = offset;
  page->total = static_cast<uint32_t>(text.size());
  if (offset < text.size()) {
    page->length =
        static_cast<uint32_t>(std::min<size_t>(text.size() - offset, COFS_TEXT_PAGE_BYTES));
    std::memcpy(page->text, text.data() + offset, page->length);
  }
  reply_bytes(server, request, page.get(), sizeof(*page));
}

Task<void> cancel_job(FuseServer& server, fuse_req_t request, uint32_t kind) {
  const bool ran =
      server.fs().jobs().cancel(kind == COFS_JOB_KIND_GC ? JobKind::kGc : JobKind::kScrub);
  if (ran) {
    reply_bytes(server, request, nullptr, 0);
  } else {
    reply_errno(server, request, ESRCH);
  }
  co_return;
}

bool on_gc_start(fuse_req_t request, const void* in, size_t in_size, size_t out_size) {
  const auto arguments = argument<cofs_gc_start>(in, in_size);
  if (!arguments || out_size < sizeof(*arguments)) return false;
  if (!is_root(request)) {
    fuse_reply_err(request, EPERM);
  } else if (arguments->reserved0 != 0 || !all_zero(arguments->reserved)) {
    fuse_reply_err(request, EINVAL);
  } else {
    start(request, start_gc, *arguments);
  }
  return true;
}

bool on_scrub_start(fuse_req_t request, const void* in, size_t in_size, size_t out_size) {
  const auto arguments = argument<cofs_scrub_start>(in, in_size);
  if (!arguments || out_size < sizeof(*arguments)) return false;
  if (!is_root(request)) {
    fuse_reply_err(request, EPERM);
  } else if (!all_zero(arguments->reserved)) {
    fuse_reply_err(request, EINVAL);
  } else {
    start(request, start_scrub, *arguments);
  }
  return true;
}

bool on_scrub_problems(fuse_req_t request, const void* in, size_t in_size, size_t out_size) {
  const auto asked = argument<cofs_text_page>(in, in_size);
  if (!asked || out_size < sizeof(*asked)) return false;
  start(request, scrub_problems, uint64_t{asked->snapshot}, uint32_t{asked->offset});
  return true;
}

bool on_cancel(fuse_req_t request, const void* in, size_t in_size) {
  const auto arguments = argument<cofs_job_cancel>(in, in_size);
  if (!arguments) return false;
  const bool known = arguments->kind == COFS_JOB_KIND_GC || arguments->kind == COFS_JOB_KIND_SCRUB;
  if (!is_root(request)) {
    fuse_reply_err(request, EPERM);
  } else if (!known || arguments->reserved0 != 0 || !all_zero(arguments->reserved)) {
    fuse_reply_err(request, EINVAL);
  } else {
    start(request, cancel_job, uint32_t{arguments->kind});
  }
  return true;
}

}  // namespace

bool handle_job_ioctl(fuse_req_t request, unsigned command, const void* in, size_t in_size,
                      size_t out_size) {
  switch (command) {
    case COFS_IOC_GC_START: return on_gc_start(request, in, in_size, out_size);
    case COFS_IOC_JOB_CANCEL: return on_cancel(request, in, in_size);
    case COFS_IOC_GC_STATUS:
      if (out_size < sizeof(cofs_gc_status)) return false;
      start(request, gc_status);
      return true;
    case COFS_IOC_SCRUB_START: return on_scrub_start(request, in, in_size, out_size);
    case COFS_IOC_SCRUB_STATUS:
      if (out_size < sizeof(cofs_scrub_status)) return false;
      start(request, scrub_status);
      return true;
    case COFS_IOC_SCRUB_PROBLEMS: return on_scrub_problems(request, in, in_size, out_size);
    default: return false;
  }
}

}  // namespace cofs
