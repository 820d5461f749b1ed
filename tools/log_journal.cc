#include "tools/log_journal.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <syslog.h>

#include <utility>

namespace cofs {

namespace {

spdlog::level::level_enum level_of(Severity severity) {
  switch (severity) {
    case Severity::kInfo: return spdlog::level::info;
    case Severity::kWarning: return spdlog::level::warn;
    case Severity::kError: return spdlog::level::err;
  }
  return spdlog::level::err;
}

}  // namespace

LogJournal::LogJournal(std::shared_ptr<spdlog::logger> logger, std::string prefix)
    : logger_(std::move(logger)), prefix_(std::move(prefix)) {}

LogJournal::~LogJournal() = default;

std::unique_ptr<LogJournal> LogJournal::to_stderr(const std::string& prefix, Severity least) {
  auto logger =
      std::make_shared<spdlog::logger>("cofs", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%v");
  logger->set_level(level_of(least));
  logger->flush_on(spdlog::level::info);
  return std::unique_ptr<LogJournal>(new LogJournal(std::move(logger), prefix));
}

std::unique_ptr<LogJournal> LogJournal::to_system_log(const std::string& subject) {
  auto sink = std::make_shared<spdlog::sinks::syslog_sink_mt>("cofs", LOG_PID, LOG_DAEMON, false);
  auto logger = std::make_shared<spdlog::logger>("cofs", std::move(sink));
  return std::unique_ptr<LogJournal>(new LogJournal(std::move(logger), subject));
}

void LogJournal::write(Severity severity, std::string_view line) {
  logger_->log(level_of(severity), "{}: {}", prefix_, line);
}

}  // namespace cofs
