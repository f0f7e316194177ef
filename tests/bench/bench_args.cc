#include "tests/bench/bench_args.h"

#include <CLI/CLI.hpp>
#include <cstdlib>

namespace terrace::bench {

BenchArgs ParseBenchArgs(const char* description, int argc, char** argv) {
  BenchArgs args;
  std::string format = "table";
  CLI::App app(description);
  app.add_option("--dir", args.folder, "Where to put data: a folder on a disk")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  app.add_option("--runs", args.runs, "Interleaved runs, of which the median counts")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--only", args.only, "Only parts whose name contains this");
  app.add_option("-o,--output", format, "table or json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  app.add_flag("--quick", args.quick, "Small data, one run: checks results, measures nothing");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  args.json = format == "json";
  if (args.quick) args.runs = 1;
  return args;
}

}  // namespace terrace::bench
