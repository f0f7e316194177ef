#include "services/kv_store/shard.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/kv_store/step_stub.h"
#include "services/runtime/call.h"
#include "services/runtime/message_limit.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/admin.grpc.pb.h"
#include "terrace/v1/kv_store.grpc.pb.h"

namespace terrace::kv_store {
namespace {

// Time that a store gets to say who it is.
constexpr absl::Duration kIdentifyTimeout = absl::Seconds(2);
constexpr int kKeepaliveMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
// A store that comes back should be found at once.
constexpr int kReconnectFirstMs = 100;
constexpr int kReconnectMaxMs = 1'000;
// gRPC 1.51 gives up on a connection that is not made within its "minimum backoff".
constexpr int kConnectTimeoutMs = 1'000;
// A pod that comes back has another address, and half a minute, gRPC's default, is long to miss it.
constexpr int kResolveMinMs = 1'000;

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
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, kResolveMinMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
}

// Calls in flight, to be cancelled together.
class LiveCalls {
 public:
  void Add(grpc::ClientContext* context) {
    const kvstore::MutexLock lock(mu_);
    contexts_.insert(context);
    // A call that is cancelled before it starts ends when it starts.
    if (cancelled_) context->TryCancel();
  }
  void Remove(grpc::ClientContext* context) {
    const kvstore::MutexLock lock(mu_);
    contexts_.erase(context);
  }
  void Cancel() {
    const kvstore::MutexLock lock(mu_);
    cancelled_ = true;
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
  }

 private:
  kvstore::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::set<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mu_);
};

// On behalf of nobody.
engine::Caller Until(absl::Time deadline) {
  engine::Caller caller;
  caller.deadline = deadline;
  return caller;
}

// Whether a call found nobody: an error that a store answers brings details. A store that shuts
// down cancels calls.
bool Unanswered(const grpc::Status& status) {
  const bool gone = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                    status.error_code() == grpc::StatusCode::CANCELLED;
  return gone && status.error_details().empty();
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
    context_.set_deadline(absl::ToChronoTime(caller.deadline));
    context_.AddMetadata(runtime::kTenantKey, caller.tenant);
    shard_.stubs_->calls.Add(&context_);
  }
  ~Call() { shard_.stubs_->calls.Remove(&context_); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext* context() { return &context_; }
  // What the caller gets for how the call ended.
  absl::Status End(const grpc::Status& status) {
    // Our own deadline brings no details, and says that the store is silent.
    const bool silent = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED &&
                        status.error_details().empty();
    if (!silent) shard_.slots_.Answered();
    if (!Unanswered(status)) return runtime::FromGrpcStatus(status);
    absl::Status gone = engine::ShardUnavailable(shard_.endpoint_, status.error_message());
    // What comes back at this address may be another store.
    shard_.Lose(gone);
    return gone;
  }

 private:
  Shard& shard_;
  grpc::ClientContext context_;
};

Shard::Shard(std::string endpoint, uint64_t max_message_bytes, int calls_max)
    : endpoint_(std::move(endpoint)),
      slots_(calls_max),
      stubs_(std::make_unique<Stubs>(endpoint_)),
      steps_(stubs_->step_stub, endpoint_, {}),
      number_(engine::ShardUnavailable(endpoint_, "it has not said yet who it is")),
      max_message_bytes_(max_message_bytes) {}

Shard::~Shard() {
  Cancel();
  std::thread asker;
  {
    const kvstore::MutexLock lock(mu_);
    asker.swap(asker_);
  }
  if (asker.joinable()) asker.join();
}

void Shard::Cancel() {
  stubs_->calls.Cancel();
  steps_.Cancel();
}

absl::StatusOr<uint16_t> Shard::number() {
  const uint64_t breaks = steps_.breaks();
  const kvstore::MutexLock lock(mu_);
  if (number_.ok() && breaks != breaks_) {
    number_ = engine::ShardUnavailable(endpoint_, "the stream of steps broke");
  }
  return number_;
}

bool Shard::Was(uint16_t number) const {
  const kvstore::MutexLock lock(mu_);
  return numbers_.count(number) > 0;
}

uint64_t Shard::max_message_bytes() const {
  const kvstore::MutexLock lock(mu_);
  return max_message_bytes_;
}

absl::Status Shard::Named(const absl::Status& status) const {
  if (status.ok()) return status;
  const std::optional<engine::ErrorDetail> detail = engine::DetailOf(status);
  const bool named = detail.has_value() && detail->reason == "SHARD_UNAVAILABLE";
  return named ? status : engine::ShardUnavailable(endpoint_, status.message());
}

void Shard::Lose(const absl::Status& why) {
  const kvstore::MutexLock lock(mu_);
  number_ = Named(why);
}

absl::StatusOr<CallSlots::Slot> Shard::Admit(absl::Time deadline) {
  CallSlots::Slot slot = slots_.Take(deadline);
  if (slot == nullptr) {
    return engine::LimitExceeded(absl::StrCat("too many calls wait for the kv-store at ", endpoint_,
                                              ": ", slots_.max(), " at most"));
  }
  return slot;
}

void Shard::Identify(std::function<void()> done) {
  if (number().ok()) {
    done();
    return;
  }
  const kvstore::MutexLock lock(mu_);
  await_number_.push_back(std::move(done));
  if (asking_) return;
  asking_ = true;
  // It needs the lock no more.
  if (asker_.joinable()) asker_.join();
  asker_ = std::thread([this] { AskNumber(); });
}

void Shard::AskNumber() {
  // The answer holds for as long as the stream does.
  const uint64_t breaks = steps_.Open();
  v1::GetLimitsResponse response;
  absl::Status status;
  {
    Call call(*this, Until(absl::Now() + kIdentifyTimeout));
    status = call.End(stubs_->store->GetLimits(call.context(), {}, &response));
  }
  if (!status.ok()) Lose(status);
  std::vector<std::function<void()>> told;
  {
    const kvstore::MutexLock lock(mu_);
    if (status.ok()) {
      number_ = static_cast<uint16_t>(response.shard());
      breaks_ = breaks;
      numbers_.insert(*number_);
      max_message_bytes_ = response.max_message_bytes();
    }
    asking_ = false;
    told.swap(await_number_);
  }
  for (const std::function<void()>& done : told) done();
}

template <typename Verb>
absl::Status Shard::Run(const engine::Caller& caller, Verb verb) {
  // A store that hangs must not hang the worker.
  const engine::Caller bounded = {.tenant = caller.tenant, .deadline = caller.wait_end()};
  const absl::StatusOr<CallSlots::Slot> slot = Admit(bounded.deadline);
  if (!slot.ok()) return slot.status();
  Call call(*this, bounded);
  return call.End(verb(call.context()));
}

absl::Status Shard::Fits(absl::string_view what, uint64_t bytes) const {
  const uint64_t bytes_max = max_message_bytes();
  if (bytes <= bytes_max + runtime::kHopBytes) return absl::OkStatus();
  return runtime::MessageTooLarge(what, bytes, bytes_max);
}

absl::Status Shard::OpenSequence(const engine::Caller& caller,
                                 const v1::OpenSequenceRequest& request,
                                 v1::OpenSequenceResponse* response) {
  absl::Status fits = Fits("open", request.ByteSizeLong());
  if (!fits.ok()) return fits;
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->OpenSequence(context, request, response);
  });
}

absl::Status Shard::LookupPrefix(const engine::Caller& caller,
                                 const v1::LookupPrefixRequest& request,
                                 v1::LookupPrefixResponse* response) {
  absl::Status fits = Fits("look-up", request.ByteSizeLong());
  if (!fits.ok()) return fits;
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->LookupPrefix(context, request, response);
  });
}

absl::Status Shard::Append(const engine::Caller& caller, const v1::AppendKvRequest& request,
                           v1::AppendKvResponse* response) {
  absl::Status fits = Fits("append", request.ByteSizeLong());
  if (!fits.ok()) return fits;
  return Run(caller, [&](grpc::ClientContext* context) {
    const std::unique_ptr<grpc::ClientWriter<v1::AppendKvRequest>> writer =
        stubs_->store->Append(context, response);
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  });
}

absl::Status Shard::Truncate(const engine::Caller& caller, const v1::TruncateRequest& request,
                             v1::TruncateResponse* response) {
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->Truncate(context, request, response);
  });
}

absl::Status Shard::Flush(const engine::Caller& caller, const v1::FlushRequest& request,
                          v1::FlushResponse* response) {
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->Flush(context, request, response);
  });
}

absl::Status Shard::Park(const engine::Caller& caller, const v1::ParkRequest& request,
                         v1::ParkResponse* response) {
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->Park(context, request, response);
  });
}

absl::Status Shard::Close(const engine::Caller& caller, const v1::CloseRequest& request) {
  v1::CloseResponse response;
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->Close(context, request, &response);
  });
}

absl::Status Shard::GetSequence(const engine::Caller& caller, const v1::GetSequenceRequest& request,
                                v1::GetSequenceResponse* response) {
  return Run(caller, [&](grpc::ClientContext* context) {
    return stubs_->store->GetSequence(context, request, response);
  });
}

absl::Status Shard::ListTiers(absl::Time deadline, v1::ListTiersResponse* response) {
  return Run(Until(deadline), [&](grpc::ClientContext* context) {
    return stubs_->admin->ListTiers(context, {}, response);
  });
}

absl::Status Shard::ListSequences(absl::Time deadline, const v1::ListSequencesRequest& request,
                                  v1::ListSequencesResponse* response) {
  return Run(Until(deadline), [&](grpc::ClientContext* context) {
    return stubs_->admin->ListSequences(context, request, response);
  });
}

absl::Status Shard::Describe(absl::Time deadline, const v1::DescribeSequenceRequest& request,
                             v1::DescribeSequenceResponse* response) {
  return Run(Until(deadline), [&](grpc::ClientContext* context) {
    return stubs_->admin->DescribeSequence(context, request, response);
  });
}

}  // namespace terrace::kv_store
