// gcsim: write amplification of garbage collection over utilisation and skew, by simulation.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <thread>

#include "offload/base/units.h"
#include "tools/gcsim/report.h"

namespace {

using namespace cofs;

struct Arguments {
  uint64_t volume_bytes = 0;
  uint64_t segment_bytes = 1 << 20;
  uint64_t page_bytes = kBlockBytes;
  std::vector<double> utilisations = {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95};
  std::vector<std::string> skews = {"uniform", "10/90"};
  std::vector<std::string> policies = {"cofs"};
  double warm_up = 4;
  double measure = 2;
  uint64_t seeds = 1;
  uint64_t first_seed = 1;
  unsigned jobs = std::max(1U, std::thread::hardware_concurrency());
  bool json = false;
  bool csv = false;
  std::string plot;
};

std::string policies_help() {
  std::string text = "how victims are chosen:";
  for (int i = 0; i < kSimPolicyCount; i++) {
    const auto policy = static_cast<SimPolicy>(i);
    text += fmt::format("\n  {}: {}", name_of(policy), explain(policy));
  }
  return text;
}

void declare(CLI::App& app, Arguments& arguments) {
  const CLI::AsSizeValue size(false);  // 1K is 1024
  app.add_option("--volume", arguments.volume_bytes,
                 "size of all data segments (1200 segments), as 1T or 300M")
      ->transform(size);
  app.add_option("--segment", arguments.segment_bytes, "size of a segment (1M)")->transform(size);
  app.add_option("--page", arguments.page_bytes,
                 "what is written and dies together (4K); a multiple of 4K. Larger ones let large volumes "
                 "fit in memory: 8 bytes for each page")
      ->transform(size);
  app.add_option("--utilisation", arguments.utilisations, "what lives, of all segments, in (0, 1)")
      ->delimiter(',');
  app.add_option("--skew", arguments.skews,
                 "uniform; DATA/WRITES (10/90: a tenth of the data gets nine tenths of the writes); "
                 "zipf:EXPONENT")
      ->delimiter(',');
  app.add_option("--policy", arguments.policies, policies_help())->delimiter(',');
  app.add_option("--warm-up", arguments.warm_up, "times the live data that is overwritten first (4)");
  app.add_option("--measure", arguments.measure, "times the live data that is measured then (2)");
  app.add_option("--seeds", arguments.seeds, "runs of each cell, whose mean is shown (1)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--first-seed", arguments.first_seed, "seed of the first run (1)");
  app.add_option("--jobs", arguments.jobs, "simulations at once (one per processor)")
      ->check(CLI::Range(1, 1024));
  auto* json = app.add_flag("--json", arguments.json, "results as JSON");
  app.add_flag("--csv", arguments.csv, "results as CSV")->excludes(json);
  app.add_option("--plot", arguments.plot,
                 "draw gc-write-amplification.svg and .png in this directory, with gnuplot");
}

std::expected<SimPolicy, std::string> parse_policy(const std::string& text) {
  for (int i = 0; i < kSimPolicyCount; i++) {
    if (text == name_of(static_cast<SimPolicy>(i))) return static_cast<SimPolicy>(i);
  }
  return std::unexpected(text + ": no such policy (see --help)");
}

// All cells, without results.
std::expected<SimReport, std::string> plan(const Arguments& arguments) {
  if (arguments.page_bytes == 0 || arguments.page_bytes % kBlockBytes != 0 ||
      arguments.page_bytes > arguments.segment_bytes || arguments.segment_bytes > 1U << 30 ||
      arguments.segment_bytes % arguments.page_bytes != 0) {
    return std::unexpected("segments are whole pages of a multiple of 4K, at most 1G");
  }
  SimReport report;
  report.segment_bytes = arguments.segment_bytes;
  report.page_bytes = arguments.page_bytes;
  report.segments =
      arguments.volume_bytes == 0 ? 1200 : arguments.volume_bytes / arguments.segment_bytes;
  report.warm_up = arguments.warm_up;
  report.measure = arguments.measure;
  report.seeds = arguments.seeds;
  report.utilisations = arguments.utilisations;
  for (const std::string& skew_text : arguments.skews) {
    for (const std::string& policy_text : arguments.policies) {
      const auto skew = Skew::parse(skew_text);
      if (!skew) return std::unexpected(skew.error());
      const auto policy = parse_policy(policy_text);
      if (!policy) return std::unexpected(policy.error());
      for (const double utilisation : arguments.utilisations) {
        SimCell cell;
        cell.options.segments = report.segments;
        cell.options.segment_blocks = static_cast<uint32_t>(arguments.segment_bytes / kBlockBytes);
        cell.options.page_blocks = static_cast<uint32_t>(arguments.page_bytes / kBlockBytes);
        cell.options.utilisation = utilisation;
        cell.options.skew = *skew;
        cell.options.policy = *policy;
        cell.options.warm_up = arguments.warm_up;
        cell.options.measure = arguments.measure;
        cell.options.seed = arguments.first_seed;
        if (const std::string wrong = check(cell.options); !wrong.empty()) {
          return std::unexpected(wrong);
        }
        cell.results.resize(arguments.seeds);
        report.cells.push_back(std::move(cell));
      }
    }
  }
  return report;
}

// Runs all simulations; each is of one thread.
std::expected<void, std::string> run_all(SimReport& report, unsigned jobs) {
  const size_t runs = report.cells.size() * report.seeds;
  const bool terminal = isatty(STDERR_FILENO) != 0;
  std::atomic<size_t> next = 0;
  std::mutex lock;
  size_t done = 0;
  std::string failure;
  const auto work = [&] {
    for (size_t run = next++; run < runs; run = next++) {
      SimCell& cell = report.cells[run / report.seeds];
      SimOptions options = cell.options;
      options.seed += run % report.seeds;
      const auto result = simulate(options);
      const std::lock_guard guard(lock);
      if (result) {
        cell.results[run % report.seeds] = *result;
      } else {
        failure = fmt::format("{} {} at {:g}: {}", options.skew.text, name_of(options.policy),
                              options.utilisation, result.error());
        next = runs;
      }
      done++;
      if (terminal) fmt::print(stderr, "\r{} of {} simulations", done, runs);
    }
  };
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < std::min<size_t>(jobs, runs); i++) threads.emplace_back(work);
  }
  if (terminal) fmt::print(stderr, "\r{:30}\r", "");
  if (!failure.empty()) return std::unexpected(failure);
  return {};
}

int fail_with(const std::string& reason) {
  fmt::print(stderr, "gcsim: {}\n", reason);
  return 1;
}

}  // namespace

int main(int count, char** values) {
  Arguments arguments;
  CLI::App app(
      "Simulates garbage collection of cofs under random overwrites and shows its write amplification\n"
      "(blocks written by users and by moving, over blocks written by users).");
  app.name("gcsim");
  declare(app, arguments);
  try {
    app.parse(count, values);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail_with(std::string(error.what()) + " (see gcsim --help)");
  }
  std::signal(SIGPIPE, SIG_IGN);  // of gnuplot: its status tells
  auto report = plan(arguments);
  if (!report) return fail_with(report.error());
  if (const auto done = run_all(*report, arguments.jobs); !done) return fail_with(done.error());
  const std::string text = arguments.json  ? report->json()
                           : arguments.csv ? report->csv()
                                           : report->table();
  if (std::fputs(text.c_str(), stdout) == EOF || std::fflush(stdout) == EOF) {
    return fail_with("the results could not be written");
  }
  if (arguments.plot.empty()) return 0;
  if (const auto drawn = report->plot(arguments.plot); !drawn) return fail_with(drawn.error());
  return 0;
}
