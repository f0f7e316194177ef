#include "services/runtime/status_convert.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/rpc/error_details.pb.h"
#include "services/engine/error.h"

namespace terrace::runtime {
namespace {

// Of a message as gRPC writes it in the trailers, where the details repeat it: together they stay
// far below the 8 KiB of metadata that a client takes by default.
constexpr size_t kEncodedBytesMax = 1000;
constexpr char kCutMark[] = "...";
constexpr char kDomain[] = "terrace";

// gRPC percent-encodes all but printable ASCII.
size_t EncodedBytes(char byte) { return byte < ' ' || byte > '~' || byte == '%' ? 3 : 1; }

bool ContinuesCharacter(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// At most kEncodedBytesMax bytes once encoded. Ends at the end of a UTF-8 character: protobuf
// refuses to read half a one, and with it the whole message.
std::string CutMessage(absl::string_view message) {
  constexpr size_t kRoom = kEncodedBytesMax - (sizeof(kCutMark) - 1);
  size_t encoded = 0;
  size_t fits_with_mark = 0;
  for (size_t i = 0; i < message.size(); ++i) {
    if (encoded <= kRoom && !ContinuesCharacter(message[i])) fits_with_mark = i;
    encoded += EncodedBytes(message[i]);
    if (encoded > kEncodedBytesMax) {
      return absl::StrCat(message.substr(0, fits_with_mark), kCutMark);
    }
  }
  return std::string(message);
}

// What a client branches on where nobody nearer to the cause has said more.
std::optional<engine::ErrorDetail> DetailFor(const absl::Status& status) {
  std::optional<engine::ErrorDetail> detail = engine::DetailOf(status);
  if (detail.has_value()) return detail;
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return engine::DetailOf(engine::NoRoom(status.message()));
    case absl::StatusCode::kUnavailable:
      return engine::DetailOf(engine::TierUnavailable(status.message()));
    case absl::StatusCode::kDataLoss:
      return engine::ErrorDetail{.reason = "DATA_LOSS", .metadata = {}, .retry_delay = {}};
    case absl::StatusCode::kUnimplemented:
      return engine::ErrorDetail{.reason = "UNSUPPORTED", .metadata = {}, .retry_delay = {}};
    default:
      return std::nullopt;
  }
}

absl::Status Make(int code, const std::string& message) {
  return {static_cast<absl::StatusCode>(code), message};
}

}  // namespace

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(status.code()));
  rpc.set_message(CutMessage(status.message()));
  const std::optional<engine::ErrorDetail> detail = DetailFor(status);
  if (!detail.has_value()) return rpc;
  google::rpc::ErrorInfo info;
  info.set_reason(detail->reason);
  info.set_domain(kDomain);
  info.mutable_metadata()->insert(detail->metadata.begin(), detail->metadata.end());
  rpc.add_details()->PackFrom(info);
  if (detail->retry_delay.has_value()) {
    google::rpc::RetryInfo retry;
    const int64_t nanos = absl::ToInt64Nanoseconds(*detail->retry_delay);
    retry.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
    rpc.add_details()->PackFrom(retry);
  }
  return rpc;
}

absl::Status FromRpcStatus(const google::rpc::Status& rpc) {
  absl::Status status = Make(rpc.code(), rpc.message());
  engine::ErrorDetail detail;
  for (const google::protobuf::Any& any : rpc.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info) && info.domain() == kDomain) {
      detail.reason = info.reason();
      detail.metadata = {info.metadata().begin(), info.metadata().end()};
    } else if (any.UnpackTo(&retry)) {
      detail.retry_delay = absl::Seconds(retry.retry_delay().seconds()) +
                           absl::Nanoseconds(retry.retry_delay().nanos());
    }
  }
  if (status.ok() || detail.reason.empty()) return status;
  return engine::WithDetail(status, detail);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return {static_cast<grpc::StatusCode>(rpc.code()), rpc.message(), rpc.SerializeAsString()};
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status rpc;
  if (!status.error_details().empty() && rpc.ParseFromString(status.error_details()) &&
      rpc.code() == static_cast<int>(status.error_code())) {
    return FromRpcStatus(rpc);
  }
  return Make(status.error_code(), status.error_message());
}

}  // namespace terrace::runtime
