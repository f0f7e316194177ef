// Trials: variants of one measurement, run in turn so that what else the machine does falls on all
// of them alike.
#ifndef TERRACE_TESTS_BENCH_TRIAL_H_
#define TERRACE_TESTS_BENCH_TRIAL_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <vector>

namespace terrace::bench {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Requires: not empty.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Medians of what the variants return, in their order: the first run of each, the second of each,
// and so on.
inline std::vector<double> Interleave(int runs,
                                      const std::vector<std::function<double()>>& variants) {
  std::vector<std::vector<double>> results(variants.size());
  for (int run = 0; run < runs; ++run) {
    for (size_t i = 0; i < variants.size(); ++i) results[i].push_back(variants[i]());
  }
  std::vector<double> medians;
  for (const std::vector<double>& values : results) medians.push_back(Median(values));
  return medians;
}

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_TRIAL_H_
