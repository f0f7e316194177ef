// absl::Status to and from what gRPC carries: codes one to one, details as google.rpc.ErrorInfo and
// RetryInfo in google.rpc.Status.
#ifndef TERRACE_SERVICES_RUNTIME_STATUS_CONVERT_H_
#define TERRACE_SERVICES_RUNTIME_STATUS_CONVERT_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"

namespace terrace::runtime {

// A message too long for gRPC's trailers, of about a thousand bytes, is cut and ends in "...".
google::rpc::Status ToRpcStatus(const absl::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);

// As ToRpcStatus and FromRpcStatus.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_STATUS_CONVERT_H_
