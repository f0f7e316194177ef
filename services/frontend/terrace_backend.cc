#include "services/frontend/terrace_backend.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/rpc/status.pb.h"
#include "services/frontend/attend_stream.h"
#include "services/frontend/convert.h"
#include "terrace/v1/attention.grpc.pb.h"

namespace terrace::frontend {
namespace {

// Room in a message for everything but q, k, v or the output: handle, shapes, account.
constexpr int64_t kEnvelopeBytes = int64_t{64} * 1024;

absl::Status CheckAddress(const std::string& address) {
  const bool is_path = absl::StartsWith(address, "unix:") && address.size() > 5;
  const size_t colon = address.rfind(':');
  const bool is_port = colon != std::string::npos && colon > 0 && colon + 1 < address.size() &&
                       address.find_first_not_of("0123456789", colon + 1) == std::string::npos;
  if (is_path || is_port) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("address \"", address, "\": host:port or unix:path expected"));
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  // The service's limits decide about sizes; they are known only after the first call.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // A service that restarts is found again within a second, not within gRPC's two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
  // Notices a peer that hangs or lost its network while a step without a deadline waits.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// Of a unary call that failed.
std::optional<absl::Duration> RetryDelay(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  return frontend::RetryDelay(details);
}

// Of a step, its call's or its item's.
std::optional<absl::Duration> RetryDelay(const v1::AttendResponse& response) {
  std::optional<absl::Duration> delay = frontend::RetryDelay(response.status());
  if (!delay.has_value() && response.results_size() == 1) {
    delay = frontend::RetryDelay(response.results(0).status());
  }
  return delay;
}

}  // namespace

struct TerraceBackend::Connection {
  // Whether a call that the service had no room for is to be made again: after the delay that it
  // asked for, which has passed then.
  bool AwaitRoom(std::optional<absl::Duration> delay, absl::Time give_up) const;
  // Runs one unary call of the stub. `what` names it in the error.
  template <typename Request, typename Response>
  absl::Status Call(absl::string_view what,
                    grpc::Status (v1::AttentionService::Stub::*method)(grpc::ClientContext*,
                                                                       const Request&, Response*),
                    const Request& request, Response& response);
  absl::StatusOr<SequenceState> OpenSequence(absl::string_view what,
                                             const v1::OpenSequenceRequest& request);
  absl::Status ReadLimits();
  // The parts of a step that depend on nothing but the bound sequence.
  void BuildRequest(int layer, int64_t position, absl::Span<const uint32_t> token_ids);
  absl::Status ReadResult(int64_t position, int64_t tokens, absl::Span<float> out);

  TerraceOptions options;
  SequenceSpec spec;
  ServiceLimits limits;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::AttentionService::Stub> stub;
  // Null until a step needs it and after it has failed.
  std::unique_ptr<AttendStream> stream;
  uint64_t last_request_id = 0;
  SequenceState bound;
  v1::Policy policy;
  // Kept between steps: their buffers are reused.
  v1::AttendRequest request;
  v1::AttendResponse response;
  ReadAccount account;
};

template <typename Request, typename Response>
absl::Status TerraceBackend::Connection::Call(absl::string_view what,
                                              grpc::Status (v1::AttentionService::Stub::*method)(
                                                  grpc::ClientContext*, const Request&, Response*),
                                              const Request& message, Response& answer) {
  const absl::Time deadline = absl::Now() + options.call_deadline;
  grpc::Status status;
  do {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    if (!options.tenant.empty()) context.AddMetadata("terrace-tenant", options.tenant);
    status = (stub.get()->*method)(&context, message, &answer);
  } while (AwaitRoom(RetryDelay(status), deadline));
  if (status.ok()) return absl::OkStatus();
  auto code = static_cast<absl::StatusCode>(status.error_code());
  absl::string_view hint;
  if (code == absl::StatusCode::kUnavailable) hint = "no attention service answers: ";
  if (code == absl::StatusCode::kCancelled) {
    // A server that shuts down cancels its calls; this side has not.
    code = absl::StatusCode::kUnavailable;
    hint = "the service cancelled the call: ";
  }
  return absl::Status(
      code, absl::StrCat(what, " at ", options.address, ": ", hint, status.error_message()));
}

bool TerraceBackend::Connection::AwaitRoom(std::optional<absl::Duration> delay,
                                           absl::Time give_up) const {
  if (!delay.has_value() || absl::Now() + *delay >= give_up) return false;
  if (options.interrupted && options.interrupted()) return false;
  absl::SleepFor(*delay);
  return true;
}

absl::StatusOr<SequenceState> TerraceBackend::Connection::OpenSequence(
    absl::string_view what, const v1::OpenSequenceRequest& message) {
  v1::OpenSequenceResponse answer;
  absl::Status status = Call(what, &v1::AttentionService::Stub::OpenSequence, message, answer);
  if (!status.ok()) return status;
  return FromProto(answer.sequence());
}

absl::Status TerraceBackend::Connection::ReadLimits() {
  v1::GetLimitsResponse answer;
  absl::Status status =
      Call("GetLimits", &v1::AttentionService::Stub::GetLimits, v1::GetLimitsRequest(), answer);
  if (!status.ok()) return status;
  limits.message_bytes_max =
      static_cast<int64_t>(std::min<uint64_t>(answer.max_message_bytes(), uint64_t{1} << 31));
  limits.step_tokens_max = answer.max_step_tokens();
  limits.sequence_tokens_max = static_cast<int64_t>(answer.max_sequence_tokens());
  limits.version = answer.version();
  return absl::OkStatus();
}

TerraceBackend::TerraceBackend(std::unique_ptr<Connection> connection)
    : connection_(std::move(connection)) {}
TerraceBackend::~TerraceBackend() = default;

absl::StatusOr<std::unique_ptr<TerraceBackend>> TerraceBackend::Connect(TerraceOptions options,
                                                                        SequenceSpec spec) {
  if (absl::Status status = CheckAddress(options.address); !status.ok()) return status;
  auto connection = std::make_unique<Connection>();
  connection->options = std::move(options);
  connection->spec = std::move(spec);
  connection->channel = MakeChannel(connection->options.address);
  connection->stub = v1::AttentionService::NewStub(connection->channel);
  if (absl::Status status = connection->ReadLimits(); !status.ok()) return status;
  return std::unique_ptr<TerraceBackend>(new TerraceBackend(std::move(connection)));
}

const SequenceSpec& TerraceBackend::spec() const { return connection_->spec; }
const ServiceLimits& TerraceBackend::limits() const { return connection_->limits; }
const std::string& TerraceBackend::address() const { return connection_->options.address; }

absl::StatusOr<int64_t> TerraceBackend::StepTokens(int64_t wanted) const {
  const SequenceSpec& spec = connection_->spec;
  const ServiceLimits& limits = connection_->limits;
  // A request carries q, k and v; the response, with one output per query head, is smaller.
  const int64_t token_bytes = static_cast<int64_t>(spec.query_heads + 2 * spec.kv_heads) *
                                  spec.head_dim * static_cast<int64_t>(sizeof(float)) +
                              static_cast<int64_t>(sizeof(uint64_t));
  const int64_t fitting =
      std::min(limits.step_tokens_max, (limits.message_bytes_max - kEnvelopeBytes) / token_bytes);
  if (fitting < 1) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the service at ", address(), " takes messages of ", limits.message_bytes_max,
        " bytes and steps of ", limits.step_tokens_max, " tokens; one token of this model needs ",
        token_bytes + kEnvelopeBytes, " bytes"));
  }
  return std::min(wanted, fitting);
}

absl::StatusOr<SequenceState> TerraceBackend::Open() {
  v1::OpenSequenceRequest request;
  *request.mutable_new_sequence() = ToProto(connection_->spec);
  return connection_->OpenSequence("OpenSequence", request);
}

absl::StatusOr<SequenceState> TerraceBackend::Fork(const std::string& handle, int64_t position) {
  v1::OpenSequenceRequest request;
  request.mutable_fork()->set_handle(handle);
  request.mutable_fork()->set_position(static_cast<uint64_t>(position));
  request.set_expected_fingerprint(connection_->spec.fingerprint);
  return connection_->OpenSequence(
      absl::StrCat("fork of sequence ", handle, " at token ", position), request);
}

absl::StatusOr<SequenceState> TerraceBackend::Resume(const std::string& handle) {
  v1::OpenSequenceRequest request;
  request.set_resume(handle);
  request.set_expected_fingerprint(connection_->spec.fingerprint);
  return connection_->OpenSequence(absl::StrCat("resume of sequence ", handle), request);
}

absl::Status TerraceBackend::Truncate(SequenceState& sequence, int64_t length) {
  v1::TruncateRequest request;
  request.set_handle(sequence.handle);
  request.set_writer_epoch(sequence.epoch);
  request.set_length(static_cast<uint64_t>(length));
  v1::TruncateResponse response;
  absl::Status status =
      connection_->Call(absl::StrCat("cut of sequence ", sequence.handle, " to ", length),
                        &v1::AttentionService::Stub::Truncate, request, response);
  if (status.ok()) sequence.length = length;
  return status;
}

absl::Status TerraceBackend::Close(const std::string& handle) {
  v1::CloseRequest request;
  request.set_handle(handle);
  v1::CloseResponse response;
  return connection_->Call(absl::StrCat("close of sequence ", handle),
                           &v1::AttentionService::Stub::Close, request, response);
}

void TerraceBackend::Bind(const SequenceState& sequence, const attention::Policy& policy) {
  connection_->bound = sequence;
  connection_->policy = ToProto(policy);
}

ReadAccount TerraceBackend::TakeAccount() {
  return std::exchange(connection_->account, ReadAccount());
}

void TerraceBackend::Connection::BuildRequest(int layer, int64_t position,
                                              absl::Span<const uint32_t> token_ids) {
  request.set_request_id(++last_request_id);
  request.set_layer(static_cast<uint32_t>(layer));
  request.set_mode(ToProto(options.mode));
  if (options.step_deadline != absl::InfiniteDuration()) {
    absl::Duration rest;
    const int64_t seconds = absl::IDivDuration(options.step_deadline, absl::Seconds(1), &rest);
    request.mutable_step_deadline()->set_seconds(seconds);
    request.mutable_step_deadline()->set_nanos(
        static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  }
  if (request.items_size() == 0) request.add_items();
  v1::StepItem& item = *request.mutable_items(0);
  item.set_handle(bound.handle);
  item.set_writer_epoch(bound.epoch);
  item.set_position(static_cast<uint64_t>(position));
  item.mutable_token_ids()->Assign(token_ids.begin(), token_ids.end());
  item.set_model_fingerprint(spec.fingerprint);
  *item.mutable_policy() = policy;
}

absl::Status TerraceBackend::Connection::ReadResult(int64_t position, int64_t tokens,
                                                    absl::Span<float> out) {
  if (absl::Status status = FromProto(response.status()); !status.ok()) return status;
  if (response.results_size() != 1) {
    return absl::InternalError(
        absl::StrCat("the service answered ", response.results_size(), " items, 1 expected"));
  }
  const v1::StepResult& result = response.results(0);
  if (LostTokens(result.status())) {
    // This client writes where the service said it stands: it restarted, and its worker went on.
    return absl::UnavailableError(
        absl::StrCat("the service lost tokens: ", result.status().message()));
  }
  if (absl::Status status = FromProto(result.status()); !status.ok()) return status;
  if (static_cast<int64_t>(result.layer_length()) != position + tokens) {
    return absl::InternalError(absl::StrCat("the service has ", result.layer_length(),
                                            " tokens in the layer, ", position + tokens,
                                            " expected"));
  }
  absl::Status status = GetTensor(result.output(), {tokens, spec.query_heads, spec.head_dim}, out);
  if (status.ok()) account.Add(FromProto(result.account()));
  return status;
}

absl::Status TerraceBackend::Attend(int layer, int64_t position,
                                    absl::Span<const uint32_t> token_ids, absl::Span<const float> q,
                                    absl::Span<const float> k, absl::Span<const float> v,
                                    absl::Span<float> out) {
  Connection& c = *connection_;
  const int64_t tokens = static_cast<int64_t>(token_ids.size());
  c.BuildRequest(layer, position, token_ids);
  v1::StepItem& item = *c.request.mutable_items(0);
  SetTensor(q, {tokens, c.spec.query_heads, c.spec.head_dim}, *item.mutable_q());
  SetTensor(k, {tokens, c.spec.kv_heads, c.spec.head_dim}, *item.mutable_k());
  SetTensor(v, {tokens, c.spec.kv_heads, c.spec.head_dim}, *item.mutable_v());
  if (c.stream == nullptr) {
    c.stream = std::make_unique<AttendStream>(c.channel, c.options.tenant);
  }
  const absl::Time give_up = absl::Now() + std::min(c.options.room_wait, c.options.step_deadline);
  absl::Status status;
  do {
    status =
        c.stream->Exchange(c.request, c.response, c.options.step_deadline + c.options.answer_grace);
  } while (status.ok() && c.AwaitRoom(RetryDelay(c.response), give_up));
  if (!status.ok()) {
    c.stream.reset();
  } else {
    status = c.ReadResult(position, tokens, out);
  }
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("step of sequence ", c.bound.handle, " at ",
                                                  c.options.address, ", layer ", layer,
                                                  ", position ", position, ": ", status.message()));
}

}  // namespace terrace::frontend
