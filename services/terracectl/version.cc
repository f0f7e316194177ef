#include "services/terracectl/version.h"

#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/str_format.h"

namespace terrace::terracectl {

std::string VersionText(OutputFormat format) {
  const std::string protobuf = google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION);
  if (format == OutputFormat::kJson) {
    return absl::StrFormat(
        "{\n \"terracectl\": \"%s\",\n \"grpc\": \"%s\",\n \"protobuf\": \"%s\"\n}\n",
        TERRACE_VERSION, grpc::Version(), protobuf);
  }
  return absl::StrFormat("terracectl %s (gRPC %s, protobuf %s)\n", TERRACE_VERSION, grpc::Version(),
                         protobuf);
}

}  // namespace terrace::terracectl
