// LogJournal: the production Journal, through spdlog: to stderr or to the system log. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "offload/base/executor.h"

namespace spdlog {
class logger;
}

namespace cofs {

class LogJournal final : public Journal {
 public:
  // Lines below `least` are dropped.
  static std::unique_ptr<LogJournal> to_stderr(const std::string& prefix, Severity least);
  // `subject` says which volume the lines are about.
  static std::unique_ptr<LogJournal> to_system_log(const std::string& subject);
  ~LogJournal() override;

  void write(Severity severity, std::string_view line) override;

 private:
  LogJournal(std::shared_ptr<spdlog::logger> logger, std::string prefix);

  std::shared_ptr<spdlog::logger> logger_;
  std::string prefix_;
};

}  // namespace cofs
