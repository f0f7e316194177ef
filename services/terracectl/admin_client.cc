#include "services/terracectl/admin_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "terrace/v1/admin.grpc.pb.h"

namespace terrace::terracectl {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint) {
  // Standard error is for our own sentences; whoever debugs sets the variable.
  ::setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  // A proxy meant for the web would answer for the daemon.
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const std::string target =
      absl::StartsWith(endpoint, "unix:") ? endpoint : absl::StrCat("dns:///", endpoint);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args);
}

// What the error details say beyond code and message, as ` (REASON key=value; retry after 2s)`.
std::string DetailText(const std::string& serialized) {
  google::rpc::Status details;
  if (serialized.empty() || !details.ParseFromString(serialized)) return "";
  std::vector<std::string> parts;
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      std::string part = info.reason();
      const std::map<std::string, std::string> sorted(info.metadata().begin(),
                                                      info.metadata().end());
      for (const auto& [key, value] : sorted) absl::StrAppend(&part, " ", key, "=", value);
      parts.push_back(part);
    } else if (any.UnpackTo(&retry)) {
      const absl::Duration delay = absl::Seconds(retry.retry_delay().seconds()) +
                                   absl::Nanoseconds(retry.retry_delay().nanos());
      parts.push_back(absl::StrCat("retry after ", absl::FormatDuration(delay)));
    }
  }
  return parts.empty() ? "" : absl::StrCat(" (", absl::StrJoin(parts, "; "), ")");
}

absl::Status FromGrpc(const grpc::Status& status) {
  // gRPC's codes have absl's numbers.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::StrCat(status.error_message(), DetailText(status.error_details())));
}

}  // namespace

struct AdminClient::Wire {
  Wire(const std::string& endpoint, absl::Duration call_timeout)
      : timeout(call_timeout),
        channel(MakeChannel(endpoint)),
        stub(v1::AdminService::NewStub(channel)) {}

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*,
                                                                               const Request&,
                                                                               Response*),
                                const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    Response response;
    const grpc::Status status = (stub.get()->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  const absl::Duration timeout;
  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::AdminService::Stub> stub;
};

AdminClient::AdminClient(const std::string& endpoint, absl::Duration timeout)
    : wire_(std::make_unique<Wire>(endpoint, timeout)) {}

AdminClient::~AdminClient() = default;

absl::StatusOr<v1::ListTiersResponse> AdminClient::ListTiers() {
  return wire_->Call(&v1::AdminService::Stub::ListTiers, v1::ListTiersRequest());
}

absl::StatusOr<v1::ListSequencesResponse> AdminClient::ListSequences(const ListOptions& options) {
  v1::ListSequencesRequest request;
  request.set_tenant(options.tenant);
  v1::ListSequencesResponse all;
  absl::flat_hash_set<std::string> tokens;
  absl::flat_hash_set<std::string> lacks;
  while (true) {
    uint64_t ask = options.page_size;
    if (options.limit > 0) ask = std::min(ask, options.limit - all.sequences_size());
    request.set_page_size(static_cast<uint32_t>(ask));
    auto page = wire_->Call(&v1::AdminService::Stub::ListSequences, request);
    if (!page.ok()) return page.status();
    const auto got = static_cast<uint64_t>(page->sequences_size());
    if (got > ask) {
      return absl::InternalError(
          absl::StrCat("the server sent a page of ", got, " sequences where ", ask, " were asked"));
    }
    for (v1::SequenceSummary& sequence : *page->mutable_sequences()) {
      *all.add_sequences() = std::move(sequence);
    }
    // Every page tells what it lacks: a shard that answers the next one is not asked again for what
    // came before.
    for (google::rpc::Status& lacking : *page->mutable_unreachable()) {
      if (lacks.insert(lacking.message()).second) *all.add_unreachable() = std::move(lacking);
    }
    const std::string& token = page->next_page_token();
    const bool full =
        options.limit > 0 && static_cast<uint64_t>(all.sequences_size()) >= options.limit;
    if (token.empty() || full) {
      all.set_next_page_token(token);
      return all;
    }
    // Without this a confused server keeps the list going for ever.
    if (!tokens.insert(token).second) {
      return absl::InternalError("the server repeated a page token: the list has no end");
    }
    request.set_page_token(token);
  }
}

absl::StatusOr<v1::DescribeSequenceResponse> AdminClient::DescribeSequence(
    const std::string& handle) {
  v1::DescribeSequenceRequest request;
  request.set_handle(handle);
  return wire_->Call(&v1::AdminService::Stub::DescribeSequence, request);
}

bool AdminClient::Connected() const {
  return wire_->channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
}

}  // namespace terrace::terracectl
