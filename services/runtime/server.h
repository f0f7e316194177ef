// The life of a daemon: serve, be found healthy, drain on SIGTERM.
#ifndef TERRACE_SERVICES_RUNTIME_SERVER_H_
#define TERRACE_SERVICES_RUNTIME_SERVER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "services/runtime/drain.h"
#include "services/runtime/flags.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace terrace::runtime {

// Blocks SIGTERM and SIGINT for this thread and those it starts, so that only Serve sees them, and
// sets up logging. Call it first in main.
void InitProcess(const std::string& log_level);

// Serves until SIGTERM or SIGINT, then drains: readiness turns false, streams say goodbye, running
// calls get flags.drain_timeout. Those that run longer are cancelled; `cancel` is called then, if
// there is one, to end what they wait for. Health (gRPC v1) answers for "", "liveness" and
// "readiness"; reflection is on. InvalidArgument or Unavailable when the address cannot be served.
absl::Status Serve(const ServerFlags& flags, absl::string_view name,
                   const std::vector<grpc::Service*>& services, Drain& drain,
                   const std::function<void()>& cancel = nullptr);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_SERVER_H_
