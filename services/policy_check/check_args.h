// The command line of terrace-policy-check.
#ifndef TERRACE_SERVICES_POLICY_CHECK_CHECK_ARGS_H_
#define TERRACE_SERVICES_POLICY_CHECK_CHECK_ARGS_H_

#include <optional>
#include <string>
#include <vector>

#include "services/policy_check/stored_case.h"

namespace terrace::policy_check {

enum class ExitCode {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kBadFile = 3,
  kBackend = 4,
  kInterrupted = 130,
};

struct CheckArgs {
  std::vector<std::string> files;
  // "reference", "cpu" or "service".
  std::string backend = "reference";
  // As written: "fp32", "bf16", "fp16"; "exact", "int8". format has their meaning.
  std::string storage = "fp32";
  std::string index = "exact";
  StoreFormat format;
  // Names of the cases to run; empty means all.
  std::vector<std::string> cases;
};

struct ParsedArgs {
  CheckArgs args;
  // Set when the program is to print `message` and end.
  std::optional<ExitCode> exit;
  std::string message;
};

ParsedArgs ParseArgs(int argc, const char* const* argv);

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_CHECK_ARGS_H_
