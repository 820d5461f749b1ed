#include "tools/gcsim/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

namespace cofs {
namespace {

std::string size_of(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); unit++) value /= 1024;
  return fmt::format("{:.4g} {}", value, kUnits[unit]);
}

std::string title_of(const SimCell& cell) {
  return fmt::format("{} {}", cell.options.skew.text, name_of(cell.options.policy));
}

// A line of the table is all cells of one title.
std::vector<std::pair<std::string, std::vector<const SimCell*>>> lines_of(const SimReport& report) {
  std::vector<std::pair<std::string, std::vector<const SimCell*>>> lines;
  for (const SimCell& cell : report.cells) {
    const std::string title = title_of(cell);
    if (lines.empty() || lines.back().first != title) lines.push_back({title, {}});
    lines.back().second.push_back(&cell);
  }
  return lines;
}

// With the data of each curve in front of the commands.
std::string gnuplot_script(const SimReport& report, const std::string& directory) {
  std::string script = "$analytic << EOD\n";
  const auto [low, high] =
      std::minmax_element(report.utilisations.begin(), report.utilisations.end());
  for (int i = 0; i <= 200; i++) {
    const double u = *low + (*high - *low) * i / 200;
    script += fmt::format("{:.5f} {:.5f}\n", u, analytic_greedy(u));
  }
  script += "EOD\n";
  std::string curves = "$analytic with lines lw 2 lc rgb '#888888' title 'uniform: analytic, greedy'";
  int number = 0;
  for (const auto& [title, cells] : lines_of(report)) {
    script += fmt::format("$curve{} << EOD\n", ++number);
    for (const SimCell* cell : cells) {
      script += fmt::format("{:.5f} {:.5f}\n", cell->options.utilisation, cell->mean());
    }
    script += "EOD\n";
    curves += fmt::format(", \\\n  $curve{} with linespoints lw 1.5 pt {} title '{}'", number,
                          number + 3, title);
  }
  script += fmt::format(
      "set title 'Write amplification of data, {} segments of {}'\n"
      "set xlabel 'utilisation: what lives, of all data segments'\n"
      "set ylabel 'blocks written / blocks written by users'\n"
      "set logscale y 2\nset grid\nset key top left\nset yrange [1:]\n",
      report.segments, size_of(report.segment_bytes));
  for (const auto& [terminal, ending] : {std::pair("svg size 900,600 dynamic background 'white'", "svg"),
                                         std::pair("pngcairo size 900,600", "png")}) {
    script += fmt::format("set terminal {}\nset output '{}/gc-write-amplification.{}'\nplot {}\n",
                          terminal, directory, ending, curves);
  }
  return script + "unset output\n";
}

}  // namespace

double SimCell::mean() const {
  double sum = 0;
  for (const SimResult& result : results) sum += result.write_amplification();
  return sum / static_cast<double>(results.size());
}

double SimCell::spread() const {
  const auto [low, high] = std::minmax_element(
      results.begin(), results.end(), [](const SimResult& a, const SimResult& b) {
        return a.write_amplification() < b.write_amplification();
      });
  return high->write_amplification() - low->write_amplification();
}

std::string SimReport::table() const {
  std::string text = fmt::format(
      "{} segments of {} ({}), pages of {}; {:g} times the live data to warm up, {:g} measured, {} "
      "seed{}.\nData segments only: no log, no tree nodes, no chunk headers or footers.\n\n",
      segments, size_of(segment_bytes), size_of(segments * segment_bytes), size_of(page_bytes),
      warm_up, measure, seeds, seeds == 1 ? "" : "s");
  size_t width = 24;
  for (const SimCell& cell : cells) width = std::max(width, title_of(cell).size());
  text += fmt::format("{:<{}}", "write amplification at", width);
  for (const double u : utilisations) text += fmt::format(" {:>7.3g}", u);
  text += fmt::format("\n{:<{}}", "uniform analytic, greedy", width);
  for (const double u : utilisations) text += fmt::format(" {:>7.2f}", analytic_greedy(u));
  for (const auto& [title, line] : lines_of(*this)) {
    text += fmt::format("\n{:<{}}", title, width);
    for (const SimCell* cell : line) text += fmt::format(" {:>7.2f}", cell->mean());
  }
  return text + "\n";
}

std::string SimReport::csv() const {
  std::string text =
      "skew,policy,utilisation,write_amplification,spread,analytic_uniform_greedy,segments,"
      "segment_bytes,page_bytes\n";
  for (const SimCell& cell : cells) {
    text += fmt::format("{},{},{:g},{:.4f},{:.4f},{:.4f},{},{},{}\n", cell.options.skew.text,
                        name_of(cell.options.policy), cell.options.utilisation, cell.mean(),
                        cell.spread(), analytic_greedy(cell.options.utilisation), segments,
                        segment_bytes, page_bytes);
  }
  return text;
}

std::string SimReport::json() const {
  nlohmann::json out;
  out["segments"] = segments;
  out["segment_bytes"] = segment_bytes;
  out["page_bytes"] = page_bytes;
  out["warm_up"] = warm_up;
  out["measure"] = measure;
  out["seeds"] = seeds;
  out["cells"] = nlohmann::json::array();
  for (const SimCell& cell : cells) {
    nlohmann::json one;
    one["skew"] = cell.options.skew.text;
    one["policy"] = name_of(cell.options.policy);
    one["utilisation"] = cell.options.utilisation;
    one["write_amplification"] = cell.mean();
    one["spread"] = cell.spread();
    one["analytic_uniform_greedy"] = analytic_greedy(cell.options.utilisation);
    for (const SimResult& result : cell.results) {
      one["results"].push_back({{"user_pages", result.user_pages},
                                {"moved_pages", result.moved_pages},
                                {"victims", result.victims},
                                {"full_searches", result.full_searches}});
    }
    out["cells"].push_back(std::move(one));
  }
  return out.dump(2) + "\n";
}

std::expected<void, std::string> SimReport::plot(const std::string& directory) const {
  if (directory.find('\'') != std::string::npos) {
    return std::unexpected(directory + ": a name with a quote can not be given to gnuplot");
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return std::unexpected(directory + ": " + error.message());
  FILE* gnuplot = popen("gnuplot", "w");
  if (gnuplot == nullptr) return std::unexpected("gnuplot can not be started");
  const std::string script = gnuplot_script(*this, directory);
  const bool written = std::fwrite(script.data(), 1, script.size(), gnuplot) == script.size();
  const int status = pclose(gnuplot);
  if (!written || status != 0) {
    return std::unexpected("gnuplot failed; if it is not there: tools/install --bench");
  }
  return {};
}

}  // namespace cofs
