// What every benchmark of this folder takes on its command line.
#ifndef TERRACE_TESTS_BENCH_BENCH_ARGS_H_
#define TERRACE_TESTS_BENCH_BENCH_ARGS_H_

#include <string>

namespace terrace::bench {

struct BenchArgs {
  // Where files are made, in a folder of their own that goes with the process. On a disk: folders
  // for temporary files are often memory.
  std::string folder = ".";
  // Interleaved runs; figures are their medians.
  int runs = 3;
  // Small data and one run: proves that the benchmark works, its figures mean nothing.
  bool quick = false;
  bool json = false;
  // Parts to run, by name; empty for all.
  std::string only;
};

// Ends the process after --help and on wrong usage.
BenchArgs ParseBenchArgs(const char* description, int argc, char** argv);

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_BENCH_ARGS_H_
