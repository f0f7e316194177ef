// A command that failed: what the user reads, and what the shell gets. Pure functions.
#ifndef TERRACE_SERVICES_TERRACECTL_FAILURE_H_
#define TERRACE_SERVICES_TERRACECTL_FAILURE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/terracectl/exit_code.h"

namespace terrace::terracectl {

struct Failure {
  // Not OK.
  absl::Status status;
  std::string endpoint;
  absl::Duration timeout;
  // Whether a connection stood when the call failed.
  bool connected = false;
};

// NOT_FOUND is kNotFound, UNAVAILABLE is kUnavailable, DEADLINE_EXCEEDED is kDeadline when
// connected and kUnavailable when there was never a connection, all others are kFailed.
ExitCode ExitCodeOf(const Failure& failure);

// "terracectl: ENDPOINT: CODE: message", and where something can be done about it a second line,
// "hint: …". Ends in a newline.
std::string DescribeFailure(const Failure& failure);

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_FAILURE_H_
