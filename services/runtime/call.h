// What the handlers of all services share: who calls, and running off gRPC's threads.
// Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_RUNTIME_CALL_H_
#define TERRACE_SERVICES_RUNTIME_CALL_H_

#include <grpcpp/server_context.h>

#include <chrono>
#include <cstdint>
#include <utility>

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
  // An empty one is none, as it is where a message names it.
  if (tenant != metadata.end() && !tenant->second.empty()) {
    caller.tenant.assign(tenant->second.data(), tenant->second.size());
  }
  return caller;
}

inline absl::Status QueueFull() {
  return engine::LimitExceeded("too many calls are waiting: the admission queue is full");
}

inline absl::Status BytesFull() {
  return engine::LimitExceeded("too many bytes of requests are in flight");
}

// Answers a unary call with what `handler` returns, from the executor, or says why it is refused.
template <typename Request, typename Handler>
grpc::ServerUnaryReactor* RunUnary(grpc::CallbackServerContext* context, Executor& executor,
                                   const Request& request, Handler handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status refused = executor.refusal();
  const uint64_t bytes = request.ByteSizeLong();
  if (refused.ok() && !executor.bytes().TryTake(bytes)) refused = BytesFull();
  if (!refused.ok()) {
    reactor->Finish(ToGrpcStatus(refused));
    return reactor;
  }
  const auto run = [context, &executor, reactor, bytes, handler = std::move(handler)] {
    const grpc::Status status =
        context->IsCancelled() ? grpc::Status::CANCELLED : ToGrpcStatus(handler());
    executor.bytes().Give(bytes);
    reactor->Finish(status);
  };
  if (!executor.Submit(run)) {
    executor.bytes().Give(bytes);
    reactor->Finish(ToGrpcStatus(QueueFull()));
  }
  return reactor;
}

// Answers a unary call at once, from gRPC's thread: for a handler that never waits.
template <typename Handler>
grpc::ServerUnaryReactor* RunInline(grpc::CallbackServerContext* context, const Executor& executor,
                                    const Handler& handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = executor.refusal();
  if (status.ok()) status = handler();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_CALL_H_
