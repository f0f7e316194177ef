// The command line of terrace-replay.
#ifndef TERRACE_SERVICES_REPLAY_REPLAY_ARGS_H_
#define TERRACE_SERVICES_REPLAY_REPLAY_ARGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvstore/placement_policy.h"
#include "services/replay/replay.h"

namespace terrace::replay {

// Documented in --help: the numbers stay.
enum class ExitCode {
  kOk = 0,
  // The output could not be written.
  kFailed = 1,
  kUsage = 2,
  // The trace cannot be read or is malformed.
  kBadTrace = 3,
};

struct ReplayArgs {
  std::string trace;
  // As asked, in order; not empty.
  std::vector<ReplayPolicy> policies;
  // Each at least 1; not empty.
  std::vector<uint64_t> capacities;
  kvstore::PlacementOptions options;
  bool json = false;
};

struct ParsedArgs {
  ReplayArgs args;
  // Set when the program is to print `message` and end.
  std::optional<ExitCode> exit;
  std::string message;
};

ParsedArgs ParseArgs(int argc, const char* const* argv);

}  // namespace terrace::replay

#endif  // TERRACE_SERVICES_REPLAY_REPLAY_ARGS_H_
