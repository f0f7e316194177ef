// The command line of terrace-generate.
#ifndef TERRACE_SERVICES_FRONTEND_GENERATE_ARGS_H_
#define TERRACE_SERVICES_FRONTEND_GENERATE_ARGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/policy.h"
#include "services/frontend/sequence_spec.h"

namespace terrace::frontend {

// Documented in --help.
enum class ExitCode : int {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kUnavailable = 3,
  kBadInput = 4,
  kRefused = 5,
  kDeadline = 6,
  kInterrupted = 130,
};

struct GenerateArgs {
  std::string model;
  std::string address;
  std::string tenant;
  std::string prompt_file;
  // Empty: score nothing.
  std::string score_file;
  int64_t tokens = 64;
  int64_t prefill_chunk = 256;
  int threads = 2;
  std::vector<attention::Policy> policies;
  // "auto": the checkpoint's own type.
  std::string storage = "auto";
  std::string index = "int8";
  std::string mode = "auto";
  absl::Duration reconnect = absl::ZeroDuration();
  absl::Duration step_deadline = absl::InfiniteDuration();
  bool json = false;
  bool keep_sequence = false;

  IndexFormat index_format() const;
  RemoteMode remote_mode() const;
  // Nothing for "auto".
  std::optional<attention::Dtype> storage_dtype() const;
};

struct ParsedArgs {
  // Set when the program is to end at once, with `message` for the user.
  std::optional<ExitCode> exit;
  std::string message;
  GenerateArgs args;
};

ParsedArgs ParseArgs(int argc, const char* const* argv);

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_GENERATE_ARGS_H_
