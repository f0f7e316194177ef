// The life of a daemon: serve, be found healthy, drain on SIGTERM.
#ifndef TERRACE_SERVICES_RUNTIME_SERVER_H_
#define TERRACE_SERVICES_RUNTIME_SERVER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"
#include "services/runtime/flags.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace terrace::runtime {

// Blocks SIGTERM and SIGINT for this thread and those it starts, so that only Serve sees them, and
// sets up logging. Call it first in main.
void InitProcess(const std::string& log_level);

// What a daemon does around serving.
struct Around {
  // Makes it ready for calls. Until it has returned, they are refused as RECOVERING, and the
  // process may end at any point of it.
  std::function<absl::Status()> start;
  // Ends what calls wait for. Null for nothing.
  std::function<void()> cancel;
  // What an orderly end owes when no calls run any more, until the deadline. Null for nothing.
  std::function<void(absl::Time deadline)> finish;
};

struct Daemon {
  std::string name;
  std::vector<grpc::Service*> services;
  Executor& executor;
  Drain& drain;
  Around around;
};

// Listens, starts the daemon, and serves until SIGTERM or SIGINT; then drains: readiness turns
// false, new calls are refused, streams say goodbye, running calls get flags.drain_timeout. Those
// that run longer are cancelled, and `cancel` is called. `finish` gets what is left of that time,
// but at least five seconds. A signal that comes before `start` has returned ends the process at
// once, with exit code 0: an interrupted start must be one that the next start survives. Health
// (gRPC v1) answers for "", "liveness" and "readiness"; reflection is on. InvalidArgument or
// Unavailable when the address cannot be served; the error of `start`.
absl::Status Serve(const ServerFlags& flags, const Daemon& daemon);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_SERVER_H_
