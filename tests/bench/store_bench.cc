// What the store costs over the least that its work would take: each load beside a baseline of the
// same bytes without a store, run in turn with it. README.md beside this has the figures.
#include <array>
#include <iostream>
#include <utility>

#include "absl/strings/match.h"
#include "tests/bench/bench_args.h"
#include "tests/bench/sheet.h"
#include "tests/bench/store_loads.h"
#include "tests/bench/trial.h"

int main(int argc, char** argv) {
  using namespace terrace::bench;
  const BenchArgs args = ParseBenchArgs(
      "Measures the engine and its store against bare copies and reads of the same bytes. Parts: "
      "bulk, decode, gather, disk, long.",
      argc, argv);
  constexpr std::array<std::pair<const char*, void (*)(const BenchArgs&, Sheet&)>, 5> kLoads = {{
      {"bulk", MeasureBulkAppend},
      {"decode", MeasureDecodeAppend},
      {"gather", MeasureGather},
      {"disk", MeasureDisk},
      {"long", MeasureLongSequence},
  }};
  Sheet sheet;
  const Stopwatch watch;
  for (const auto& [name, measure] : kLoads) {
    if (!absl::StrContains(name, args.only)) continue;
    std::cerr << "measuring: " << name << std::endl;
    measure(args, sheet);
  }
  std::cerr << "took " << static_cast<int>(watch.seconds()) << " s" << std::endl;
  sheet.Print(args);
}
