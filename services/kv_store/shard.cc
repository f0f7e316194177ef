#include "services/kv_store/shard.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <optional>
#include <set>
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
constexpr int kReconnectFirstMs = 100;
constexpr int kReconnectMaxMs = 1'000;
// gRPC 1.51 gives up on a connection that is not made within its "minimum backoff".
constexpr int kConnectTimeoutMs = 1'000;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint) {
  grpc::ChannelArguments arguments;
  // Who makes a message keeps it to the limit: here it would end the stream.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectFirstMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
}

// Calls in flight, to be cancelled together.
class LiveCalls {
 public:
  void Add(grpc::ClientContext* context) {
    const absl::MutexLock lock(&mu_);
    contexts_.insert(context);
    // A call that is cancelled before it starts ends when it starts.
    if (cancelled_) context->TryCancel();
  }
  void Remove(grpc::ClientContext* context) {
    const absl::MutexLock lock(&mu_);
    contexts_.erase(context);
  }
  void Cancel() {
    const absl::MutexLock lock(&mu_);
    cancelled_ = true;
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
  }

 private:
  absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::set<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mu_);
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
  LiveCalls calls;
};

// A deadline and a tenant for one call.
class Shard::Call {
 public:
  Call(Shard& shard, const engine::Caller& caller) : shard_(shard) {
    context_.set_deadline(
        absl::ToChronoTime(std::min(caller.deadline, absl::Now() + kCallTimeout)));
    context_.AddMetadata(runtime::kTenantKey, caller.tenant);
    shard_.stubs_->calls.Add(&context_);
  }
  // On behalf of nobody.
  Call(Shard& shard, absl::Time deadline)
      : Call(shard, {.tenant = engine::Caller().tenant, .deadline = deadline}) {}
  ~Call() { shard_.stubs_->calls.Remove(&context_); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext* context() { return &context_; }
  // What the caller gets for how the call ended.
  absl::Status End(const grpc::Status& status) {
    absl::Status ended = ToStatus(shard_.endpoint_, status);
    // What comes back at this address may be another store.
    if (absl::IsUnavailable(ended)) shard_.Lose(ended);
    return ended;
  }

 private:
  Shard& shard_;
  grpc::ClientContext context_;
};

Shard::Shard(std::string endpoint, uint64_t max_message_bytes)
    : endpoint_(std::move(endpoint)),
      stubs_(std::make_unique<Stubs>(endpoint_)),
      steps_(stubs_->step_stub, endpoint_, {}),
      number_(engine::ShardUnavailable(endpoint_, "it has not said yet who it is")),
      max_message_bytes_(max_message_bytes) {}

Shard::~Shard() = default;

void Shard::Cancel() {
  stubs_->calls.Cancel();
  steps_.Cancel();
}

absl::StatusOr<uint16_t> Shard::number() {
  const uint64_t breaks = steps_.breaks();
  const absl::MutexLock lock(&mu_);
  if (number_.ok() && breaks != breaks_) {
    number_ = engine::ShardUnavailable(endpoint_, "the stream of steps broke");
  }
  return number_;
}

bool Shard::Was(uint16_t number) const {
  const absl::MutexLock lock(&mu_);
  return numbers_.count(number) > 0;
}

uint64_t Shard::max_message_bytes() const {
  const absl::MutexLock lock(&mu_);
  return max_message_bytes_;
}

void Shard::Lose(const absl::Status& why) {
  const std::optional<engine::ErrorDetail> detail = engine::DetailOf(why);
  const bool named = detail.has_value() && detail->reason == "SHARD_UNAVAILABLE";
  const absl::MutexLock lock(&mu_);
  number_ = named ? why : engine::ShardUnavailable(endpoint_, why.message());
}

absl::Status Shard::Identify(absl::Time deadline) {
  if (number().ok()) return absl::OkStatus();
  // The answer holds for as long as the stream does.
  const uint64_t breaks = steps_.Open();
  Call call(*this, deadline);
  v1::GetLimitsResponse response;
  const absl::Status status = call.End(stubs_->store->GetLimits(call.context(), {}, &response));
  if (!status.ok()) {
    Lose(status);
    return number().status();
  }
  const absl::MutexLock lock(&mu_);
  number_ = static_cast<uint16_t>(response.shard());
  breaks_ = breaks;
  numbers_.insert(*number_);
  max_message_bytes_ = response.max_message_bytes();
  return absl::OkStatus();
}

absl::Status Shard::OpenSequence(const engine::Caller& caller,
                                 const v1::OpenSequenceRequest& request,
                                 v1::OpenSequenceResponse* response) {
  Call call(*this, caller);
  return call.End(stubs_->store->OpenSequence(call.context(), request, response));
}

absl::Status Shard::Append(const engine::Caller& caller, const v1::AppendKvRequest& request,
                           v1::AppendKvResponse* response) {
  Call call(*this, caller);
  const std::unique_ptr<grpc::ClientWriter<v1::AppendKvRequest>> writer =
      stubs_->store->Append(call.context(), response);
  writer->Write(request);
  writer->WritesDone();
  return call.End(writer->Finish());
}

absl::Status Shard::Truncate(const engine::Caller& caller, const v1::TruncateRequest& request,
                             v1::TruncateResponse* response) {
  Call call(*this, caller);
  return call.End(stubs_->store->Truncate(call.context(), request, response));
}

absl::Status Shard::Flush(const engine::Caller& caller, const v1::FlushRequest& request,
                          v1::FlushResponse* response) {
  Call call(*this, caller);
  return call.End(stubs_->store->Flush(call.context(), request, response));
}

absl::Status Shard::Close(const engine::Caller& caller, const v1::CloseRequest& request) {
  Call call(*this, caller);
  v1::CloseResponse response;
  return call.End(stubs_->store->Close(call.context(), request, &response));
}

absl::Status Shard::GetSequence(const engine::Caller& caller, const v1::GetSequenceRequest& request,
                                v1::GetSequenceResponse* response) {
  Call call(*this, caller);
  return call.End(stubs_->store->GetSequence(call.context(), request, response));
}

absl::Status Shard::ListTiers(absl::Time deadline, v1::ListTiersResponse* response) {
  Call call(*this, deadline);
  return call.End(stubs_->admin->ListTiers(call.context(), {}, response));
}

absl::Status Shard::ListSequences(absl::Time deadline, const v1::ListSequencesRequest& request,
                                  v1::ListSequencesResponse* response) {
  Call call(*this, deadline);
  return call.End(stubs_->admin->ListSequences(call.context(), request, response));
}

absl::Status Shard::Describe(const v1::DescribeSequenceRequest& request,
                             v1::DescribeSequenceResponse* response) {
  Call call(*this, absl::InfiniteFuture());
  return call.End(stubs_->admin->DescribeSequence(call.context(), request, response));
}

}  // namespace terrace::kv_store
