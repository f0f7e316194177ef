// Comparison: what the store does beside the least that it would take, and what we want of it.
#ifndef TERRACE_TESTS_BENCH_COMPARISON_H_
#define TERRACE_TESTS_BENCH_COMPARISON_H_

#include <optional>
#include <string>

#include "tests/bench/sheet.h"

namespace terrace::bench {

struct Comparison {
  std::string load;
  std::string size;
  std::string unit;
  double ours = 0;
  // Of the same bytes or work without a store, measured in turn with ours.
  std::optional<double> baseline;
  // Ours over the baseline shall be at least this.
  std::optional<double> ratio_min;
  // Ours shall be at most this.
  std::optional<double> ours_max;

  bool meets_target() const {
    if (ratio_min.has_value() && ours / *baseline < *ratio_min) return false;
    return !ours_max.has_value() || ours <= *ours_max;
  }

  SheetRow Row() const {
    SheetRow row = {{"load", load},        {"size", size},     {"unit", unit},  {"ours", ours},
                    {"baseline", nullptr}, {"ratio", nullptr}, {"target", "-"}, {"verdict", "-"}};
    if (baseline.has_value()) {
      row["baseline"] = *baseline;
      row["ratio"] = ours / *baseline;
    }
    if (ratio_min.has_value()) row["target"] = "ratio >= " + FormatFigure(*ratio_min);
    if (ours_max.has_value()) row["target"] = "<= " + FormatFigure(*ours_max) + " " + unit;
    if (row["target"] != "-") row["verdict"] = meets_target() ? "met" : "MISSED";
    return row;
  }
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_COMPARISON_H_
