// Report: the results of many simulations as a table, as CSV, as JSON, and as a plot.
//
// A cell is one policy under one skew at one utilisation, averaged over seeds. The plot is drawn by gnuplot
// beside the analytic curve of the emptiest segment first under uniform overwrites.
#pragma once

#include <expected>
#include <string>
#include <vector>

#include "tools/gcsim/simulation.h"

namespace cofs {

struct SimCell {
  SimOptions options;               // of its first seed
  std::vector<SimResult> results;   // one per seed
  double mean() const;              // write amplification
  double spread() const;            // between the largest and the smallest of the seeds
};

struct SimReport {
  uint64_t segments = 0;
  uint64_t segment_bytes = 0;
  uint64_t page_bytes = 0;
  double warm_up = 0;
  double measure = 0;
  uint64_t seeds = 0;
  std::vector<double> utilisations;
  std::vector<SimCell> cells;       // all of one skew and policy one after the other

  std::string table() const;
  std::string csv() const;
  std::string json() const;
  // Writes gc-write-amplification.svg and .png into the directory. The error says what to do.
  std::expected<void, std::string> plot(const std::string& directory) const;
};

}  // namespace cofs
