// FileCloner: copies within an image file by having the host filesystem share the blocks
// (FICLONERANGE).
//
// Offered only where a probe at open showed that the host filesystem can: elsewhere the host would
// copy through its page cache, and that is no offload. It changes no data of the image to find out.
#pragma once

#include <expected>
#include <memory>
#include <string>

#include "offload/device_copier.h"
#include "offload/target.h"
#include "offload/worker_threads.h"

namespace cofs {

class FileCloner final : public DeviceCopier {
 public:
  // Clones within a scratch file without a name, made beside the image. The error is the reason for
  // which cloning is not offered, for a person: "hostfile: host filesystem ext4 cannot clone".
  // `target` and `sink` must outlive the cloner.
  static std::expected<std::unique_ptr<FileCloner>, std::string> probe(const OpenedTarget& target,
                                                                       RequestSink& sink);

  const CopyLimits& limits() const override { return limits_; }
  void start(IoRequest& request) override;

 private:
  // The host filesystem locks the file for each clone: one to work, one to be ready.
  static constexpr uint32_t kThreads = 2;

  FileCloner(const OpenedTarget& target, RequestSink& sink);
  void serve(IoRequest& request);

  const OpenedTarget& target_;
  RequestSink& sink_;
  CopyLimits limits_;
  std::unique_ptr<WorkerThreads> workers_;
};

}  // namespace cofs
