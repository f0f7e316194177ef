#include "tests/e2e/reply.h"

#include <grpcpp/support/status.h>

#include "google/rpc/error_details.pb.h"

namespace terrace::testing {

Reply ReplyOf(const google::rpc::Status& status) {
  Reply reply = {.code = static_cast<absl::StatusCode>(status.code()),
                 .message = status.message(),
                 .reason = {},
                 .metadata = {},
                 .retry_delay = std::nullopt};
  for (const google::protobuf::Any& any : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      EXPECT_EQ(info.domain(), "terrace");
      reply.reason = info.reason();
      reply.metadata = {info.metadata().begin(), info.metadata().end()};
    } else if (any.UnpackTo(&retry)) {
      reply.retry_delay = absl::Seconds(retry.retry_delay().seconds()) +
                          absl::Nanoseconds(retry.retry_delay().nanos());
    }
  }
  return reply;
}

Reply ReplyOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    EXPECT_EQ(details.code(), status.error_code());
    EXPECT_EQ(details.message(), status.error_message());
    return ReplyOf(details);
  }
  return {.code = static_cast<absl::StatusCode>(status.error_code()),
          .message = status.error_message(),
          .reason = {},
          .metadata = {},
          .retry_delay = std::nullopt};
}

std::ostream& operator<<(std::ostream& out, const Reply& reply) {
  out << absl::StatusCodeToString(reply.code) << ": " << reply.message;
  if (!reply.reason.empty()) out << " [" << reply.reason << "]";
  for (const auto& [key, value] : reply.metadata) out << " " << key << "=" << value;
  if (reply.retry_delay.has_value()) {
    out << " retry after " << absl::FormatDuration(*reply.retry_delay);
  }
  return out;
}

}  // namespace terrace::testing
