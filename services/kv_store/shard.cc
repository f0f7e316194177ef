#include "services/kv_store/shard.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "services/engine/error.h"
#include "services/kv_store/step_stub.h"
#include "services/runtime/call.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/admin.grpc.pb.h"
#include "terrace/v1/kv_store.grpc.pb.h"

namespace terrace::kv_store {
namespace {

// For callers without a deadline of their own: a store that hangs must not hang the worker.
constexpr absl::Duration kCallTimeout = absl::Seconds(30);
constexpr int kKeepaliveMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
// A store that comes back should be found at once.
constexpr int kReconnectMinMs = 100;
constexpr int kReconnectMaxMs = 1'000;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint) {
  grpc::ChannelArguments arguments;
  // Who makes a message keeps it to the limit: here it would end the stream.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
}

// A deadline and a tenant for one call.
class Call {
 public:
  explicit Call(const engine::Caller& caller) {
    context_.set_deadline(
        absl::ToChronoTime(std::min(caller.deadline, absl::Now() + kCallTimeout)));
    context_.AddMetadata(runtime::kTenantKey, caller.tenant);
  }
  grpc::ClientContext* context() { return &context_; }

 private:
  grpc::ClientContext context_;
};

absl::Status ToStatus(const std::string& endpoint, const grpc::Status& status) {
  absl::Status converted = runtime::FromGrpcStatus(status);
  // A store that shuts down cancels calls; this side has not.
  const bool gone = absl::IsUnavailable(converted) || absl::IsCancelled(converted);
  if (gone && !engine::DetailOf(converted).has_value()) {
    return engine::ShardUnavailable(endpoint, converted.message());
  }
  return converted;
}

}  // namespace

struct Shard::Stubs {
  explicit Stubs(const std::string& endpoint)
      : channel(MakeChannel(endpoint)),
        store(v1::KvStoreService::NewStub(channel)),
        admin(v1::AdminService::NewStub(channel)),
        step_stub(*store) {}

  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::KvStoreService::Stub> store;
  std::unique_ptr<v1::AdminService::Stub> admin;
  StepStub step_stub;
};

Shard::Shard(std::string endpoint, uint64_t max_message_bytes)
    : endpoint_(std::move(endpoint)),
      stubs_(std::make_unique<Stubs>(endpoint_)),
      steps_(std::make_unique<StepChannel>(stubs_->step_stub, endpoint_)),
      max_message_bytes_(max_message_bytes) {}

Shard::~Shard() = default;

std::optional<uint16_t> Shard::number() const {
  const absl::MutexLock lock(&mu_);
  return number_;
}

uint64_t Shard::max_message_bytes() const {
  const absl::MutexLock lock(&mu_);
  return max_message_bytes_;
}

absl::Status Shard::Identify(absl::Time deadline) {
  if (number().has_value()) return absl::OkStatus();
  Call call({.tenant = engine::Caller().tenant, .deadline = deadline});
  v1::GetLimitsResponse response;
  const grpc::Status status = stubs_->store->GetLimits(call.context(), {}, &response);
  if (!status.ok()) return ToStatus(endpoint_, status);
  const absl::MutexLock lock(&mu_);
  number_ = static_cast<uint16_t>(response.shard());
  max_message_bytes_ = response.max_message_bytes();
  return absl::OkStatus();
}

absl::Status Shard::OpenSequence(const engine::Caller& caller,
                                 const v1::OpenSequenceRequest& request,
                                 v1::OpenSequenceResponse* response) {
  Call call(caller);
  return ToStatus(endpoint_, stubs_->store->OpenSequence(call.context(), request, response));
}

absl::Status Shard::Append(const engine::Caller& caller, const v1::AppendKvRequest& request,
                           v1::AppendKvResponse* response) {
  Call call(caller);
  const std::unique_ptr<grpc::ClientWriter<v1::AppendKvRequest>> writer =
      stubs_->store->Append(call.context(), response);
  writer->Write(request);
  writer->WritesDone();
  return ToStatus(endpoint_, writer->Finish());
}

absl::Status Shard::Truncate(const engine::Caller& caller, const v1::TruncateRequest& request,
                             v1::TruncateResponse* response) {
  Call call(caller);
  return ToStatus(endpoint_, stubs_->store->Truncate(call.context(), request, response));
}

absl::Status Shard::Flush(const engine::Caller& caller, const v1::FlushRequest& request,
                          v1::FlushResponse* response) {
  Call call(caller);
  return ToStatus(endpoint_, stubs_->store->Flush(call.context(), request, response));
}

absl::Status Shard::Close(const engine::Caller& caller, const v1::CloseRequest& request) {
  Call call(caller);
  v1::CloseResponse response;
  return ToStatus(endpoint_, stubs_->store->Close(call.context(), request, &response));
}

absl::Status Shard::GetSequence(const engine::Caller& caller, const v1::GetSequenceRequest& request,
                                v1::GetSequenceResponse* response) {
  Call call(caller);
  return ToStatus(endpoint_, stubs_->store->GetSequence(call.context(), request, response));
}

absl::Status Shard::ListTiers(v1::ListTiersResponse* response) {
  Call call((engine::Caller()));
  return ToStatus(endpoint_, stubs_->admin->ListTiers(call.context(), {}, response));
}

absl::Status Shard::ListSequences(const v1::ListSequencesRequest& request,
                                  v1::ListSequencesResponse* response) {
  Call call((engine::Caller()));
  return ToStatus(endpoint_, stubs_->admin->ListSequences(call.context(), request, response));
}

absl::Status Shard::Describe(const v1::DescribeSequenceRequest& request,
                             v1::DescribeSequenceResponse* response) {
  Call call((engine::Caller()));
  return ToStatus(endpoint_, stubs_->admin->DescribeSequence(call.context(), request, response));
}

}  // namespace terrace::kv_store
