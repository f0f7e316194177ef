// What the handlers of all services share: who calls, and running off gRPC's threads.
// Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_RUNTIME_CALL_H_
#define TERRACE_SERVICES_RUNTIME_CALL_H_

#include <grpcpp/server_context.h>

#include <chrono>
#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/engine/error.h"
#include "services/engine/kv_engine.h"
#include "services/runtime/executor.h"
#include "services/runtime/status_convert.h"

namespace terrace::runtime {

inline constexpr char kTenantKey[] = "terrace-tenant";

inline absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  // gRPC says "no deadline" with the far end of its clock.
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

inline engine::Caller CallerOf(const grpc::CallbackServerContext& context) {
  engine::Caller caller;
  caller.deadline = DeadlineOf(context);
  const auto& metadata = context.client_metadata();
  const auto tenant = metadata.find(kTenantKey);
  if (tenant != metadata.end()) {
    caller.tenant.assign(tenant->second.data(), tenant->second.size());
  }
  return caller;
}

inline absl::Status QueueFull() {
  return engine::LimitExceeded("too many calls are waiting: the admission queue is full");
}

// Answers a unary call with what `handler` returns, from the executor.
inline grpc::ServerUnaryReactor* RunUnary(grpc::CallbackServerContext* context, Executor& executor,
                                          std::function<absl::Status()> handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool admitted = executor.Submit([context, reactor, handler = std::move(handler)] {
    if (context->IsCancelled()) {
      reactor->Finish(grpc::Status::CANCELLED);
    } else {
      reactor->Finish(ToGrpcStatus(handler()));
    }
  });
  if (!admitted) reactor->Finish(ToGrpcStatus(QueueFull()));
  return reactor;
}

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_CALL_H_
