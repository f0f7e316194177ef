// The command line: what was asked for, validated.
#ifndef TERRACE_SERVICES_TERRACECTL_ARGS_H_
#define TERRACE_SERVICES_TERRACECTL_ARGS_H_

#include <cstdint>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/terracectl/exit_code.h"

namespace terrace::terracectl {

enum class Command { kTiers, kSequences, kDescribe, kVersion };
enum class OutputFormat { kTable, kJson };

struct Args {
  Command command = Command::kTiers;
  OutputFormat output = OutputFormat::kTable;
  // HOST:PORT, [IPV6]:PORT or unix:PATH.
  std::string endpoint = "127.0.0.1:7400";
  // For each call, connecting included; a list of n pages is n calls.
  absl::Duration timeout = absl::Seconds(5);
  // sequences: only this tenant's; empty for all.
  std::string tenant;
  // sequences: per call, [1, 1000]. The largest is the default: fewest round trips.
  uint32_t page_size = 1000;
  // sequences: stop after so many; 0 for no limit.
  uint64_t limit = 0;
  // describe: not empty.
  std::string handle;
};

// The program ends here: --help was asked for, or the arguments are wrong.
struct EarlyExit {
  ExitCode code = ExitCode::kOk;
  std::string out;
  std::string err;
};

// Reads argv and TERRACE_ENDPOINT. Wrong arguments give kUsage and a text that names them.
std::variant<Args, EarlyExit> ParseArgs(int argc, const char* const* argv);

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_ARGS_H_
