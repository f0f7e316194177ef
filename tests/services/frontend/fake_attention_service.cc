#include "tests/services/frontend/fake_attention_service.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "google/rpc/error_details.pb.h"

namespace terrace::frontend::testing {
namespace {

attention::Dtype StorageOf(const v1::Geometry& geometry) {
  switch (geometry.storage_dtype()) {
    case v1::DTYPE_BFLOAT16:
      return attention::Dtype::kBFloat16;
    case v1::DTYPE_FLOAT16:
      return attention::Dtype::kFloat16;
    default:
      return attention::Dtype::kFloat32;
  }
}

std::vector<float> Floats(const v1::Tensor& tensor) {
  std::vector<float> values(tensor.data().size() / sizeof(float));
  std::memcpy(values.data(), tensor.data().data(), values.size() * sizeof(float));
  return values;
}

bool HasShape(const v1::Tensor& tensor, const std::vector<uint32_t>& shape) {
  size_t bytes = sizeof(float);
  for (const uint32_t extent : shape) bytes *= extent;
  return tensor.dtype() == v1::DTYPE_FLOAT32 && tensor.data().size() == bytes &&
         std::vector<uint32_t>(tensor.shape().begin(), tensor.shape().end()) == shape;
}

google::rpc::Status Busy() {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(1'000'000);
  google::rpc::Status status;
  status.set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
  status.set_message("busy");
  status.add_details()->PackFrom(retry);
  return status;
}

}  // namespace

int64_t FakeAttentionService::Sequence::kv_width() const {
  return static_cast<int64_t>(spec.geometry().kv_heads()) * spec.geometry().head_dim();
}

int64_t FakeAttentionService::Sequence::layer_length(size_t layer) const {
  return static_cast<int64_t>(layers[layer].keys.size()) / kv_width();
}

int64_t FakeAttentionService::Sequence::length() const {
  int64_t shortest = layer_length(0);
  for (size_t layer = 1; layer < layers.size(); ++layer) {
    shortest = std::min(shortest, layer_length(layer));
  }
  return shortest;
}

void FakeAttentionService::Sequence::Cut(int64_t length) {
  for (LayerRows& rows : layers) {
    const size_t size = std::min(rows.keys.size(), static_cast<size_t>(length * kv_width()));
    rows.keys.resize(size);
    rows.values.resize(size);
  }
}

void FakeAttentionService::Plan(const FaultPlan& plan) {
  const std::lock_guard lock(mu_);
  plan_ = plan;
}

void FakeAttentionService::SetLimits(const v1::GetLimitsResponse& limits) {
  const std::lock_guard lock(mu_);
  limits_ = limits;
}

std::vector<std::string> FakeAttentionService::complaints() const {
  const std::lock_guard lock(mu_);
  return complaints_;
}

std::vector<int64_t> FakeAttentionService::step_tokens() const {
  const std::lock_guard lock(mu_);
  return step_tokens_;
}

int64_t FakeAttentionService::steps() const {
  const std::lock_guard lock(mu_);
  return steps_;
}

std::vector<std::string> FakeAttentionService::open_handles() const {
  const std::lock_guard lock(mu_);
  std::vector<std::string> handles;
  for (const auto& [handle, sequence] : sequences_) handles.push_back(handle);
  return handles;
}

v1::AttendRequest FakeAttentionService::last_request() const {
  const std::lock_guard lock(mu_);
  return last_request_;
}

v1::SequenceSpec FakeAttentionService::last_spec() const {
  const std::lock_guard lock(mu_);
  return last_spec_;
}

std::string FakeAttentionService::last_tenant() const {
  const std::lock_guard lock(mu_);
  return last_tenant_;
}

grpc::Status FakeAttentionService::Arrive(grpc::ServerContext* context) {
  const auto tenant = context->client_metadata().find("terrace-tenant");
  last_tenant_ = tenant == context->client_metadata().end()
                     ? ""
                     : std::string(tenant->second.data(), tenant->second.size());
  if (plan_.busy_calls > 0) {
    --plan_.busy_calls;
    const google::rpc::Status busy = Busy();
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, busy.message(), busy.SerializeAsString()};
  }
  if (plan_.cancelled_calls > 0) {
    --plan_.cancelled_calls;
    return {grpc::StatusCode::CANCELLED, "shutting down"};
  }
  if (plan_.step >= 0 && steps_ > plan_.step && plan_.unanswered_calls > 0) {
    --plan_.unanswered_calls;
    return {grpc::StatusCode::UNAVAILABLE, "starting"};
  }
  return grpc::Status::OK;
}

FakeAttentionService::Sequence* FakeAttentionService::Find(const std::string& handle) {
  const auto found = sequences_.find(handle);
  return found == sequences_.end() ? nullptr : &found->second;
}

void FakeAttentionService::Describe(const std::string& handle, const Sequence& sequence,
                                    v1::SequenceInfo* info) const {
  info->set_handle(handle);
  info->set_length(static_cast<uint64_t>(sequence.length()));
  info->set_writer_epoch(sequence.epoch);
  *info->mutable_spec() = sequence.spec;
}

grpc::Status FakeAttentionService::OpenSequence(grpc::ServerContext* context,
                                                const v1::OpenSequenceRequest* request,
                                                v1::OpenSequenceResponse* response) {
  const std::lock_guard lock(mu_);
  if (grpc::Status status = Arrive(context); !status.ok()) return status;
  const uint64_t epoch = ++last_epoch_;
  std::string handle = "sequence-" + std::to_string(epoch);
  Sequence sequence;
  if (request->has_new_sequence()) {
    sequence.spec = last_spec_ = request->new_sequence();
    sequence.layers.resize(sequence.spec.geometry().layers());
  } else {
    const std::string& parent = request->has_fork() ? request->fork().handle() : request->resume();
    const Sequence* found = Find(parent);
    if (found == nullptr) return {grpc::StatusCode::NOT_FOUND, "unknown sequence"};
    Check(request->expected_fingerprint() == found->spec.model_fingerprint(), "fingerprint");
    sequence = *found;
    if (!request->has_fork()) handle = parent;
    if (request->has_fork()) {
      const int64_t position = static_cast<int64_t>(request->fork().position());
      if (position > sequence.length()) {
        return {grpc::StatusCode::OUT_OF_RANGE, "fork beyond the length"};
      }
      sequence.Cut(position);
    }
  }
  sequence.epoch = epoch;
  Describe(handle, sequence, response->mutable_sequence());
  sequences_[handle] = std::move(sequence);
  return grpc::Status::OK;
}

grpc::Status FakeAttentionService::Truncate(grpc::ServerContext* context,
                                            const v1::TruncateRequest* request,
                                            v1::TruncateResponse* response) {
  const std::lock_guard lock(mu_);
  if (grpc::Status status = Arrive(context); !status.ok()) return status;
  Sequence* sequence = Find(request->handle());
  if (sequence == nullptr) return {grpc::StatusCode::NOT_FOUND, "unknown sequence"};
  if (request->writer_epoch() != sequence->epoch) {
    return {grpc::StatusCode::FAILED_PRECONDITION, "stale epoch"};
  }
  if (static_cast<int64_t>(request->length()) > sequence->length()) {
    return {grpc::StatusCode::OUT_OF_RANGE, "beyond the length"};
  }
  sequence->Cut(static_cast<int64_t>(request->length()));
  Describe(request->handle(), *sequence, response->mutable_sequence());
  return grpc::Status::OK;
}

grpc::Status FakeAttentionService::Close(grpc::ServerContext* context,
                                         const v1::CloseRequest* request, v1::CloseResponse*) {
  const std::lock_guard lock(mu_);
  if (grpc::Status status = Arrive(context); !status.ok()) return status;
  if (sequences_.erase(request->handle()) == 0) {
    return {grpc::StatusCode::NOT_FOUND, "unknown sequence"};
  }
  return grpc::Status::OK;
}

grpc::Status FakeAttentionService::GetLimits(grpc::ServerContext* context,
                                             const v1::GetLimitsRequest*,
                                             v1::GetLimitsResponse* response) {
  const std::lock_guard lock(mu_);
  *response = limits_;
  return Arrive(context);
}

void FakeAttentionService::Check(bool good, const std::string& complaint) {
  if (!good) complaints_.push_back("step " + std::to_string(steps_) + ": " + complaint);
}

void FakeAttentionService::CheckItem(const v1::AttendRequest& request, const v1::StepItem& item,
                                     const Sequence& sequence) {
  const v1::Geometry& geometry = sequence.spec.geometry();
  const auto tokens = static_cast<uint32_t>(item.token_ids_size());
  Check(tokens > 0 && tokens <= limits_.max_step_tokens(), "token ids");
  Check(item.writer_epoch() == sequence.epoch, "epoch");
  Check(static_cast<int64_t>(item.position()) == sequence.layer_length(request.layer()),
        "position " + std::to_string(item.position()) + ", expected " +
            std::to_string(sequence.layer_length(request.layer())));
  Check(HasShape(item.q(), {tokens, geometry.query_heads(), geometry.head_dim()}), "q");
  Check(HasShape(item.k(), {tokens, geometry.kv_heads(), geometry.head_dim()}), "k");
  Check(HasShape(item.v(), {tokens, geometry.kv_heads(), geometry.head_dim()}), "v");
  Check(item.model_fingerprint() == sequence.spec.model_fingerprint(), "fingerprint");
  Check(request.request_id() != 0, "request id");
  Check(item.policy().kind_case() != v1::Policy::KIND_NOT_SET, "policy");
}

void FakeAttentionService::AttendItem(const v1::AttendRequest& request, Sequence& sequence,
                                      v1::StepResult& result) {
  const v1::StepItem& item = request.items(0);
  const v1::Geometry& geometry = sequence.spec.geometry();
  LayerRows& rows = sequence.layers[request.layer()];
  AppendRounded(StorageOf(geometry), Floats(item.k()), rows.keys);
  AppendRounded(StorageOf(geometry), Floats(item.v()), rows.values);
  const auto tokens = static_cast<int64_t>(item.token_ids_size());
  const auto position = static_cast<int64_t>(item.position());
  // SparQ stands for the last k rows; only single steps run under it.
  const int64_t first = item.policy().has_sparq()
                            ? std::max<int64_t>(0, position + 1 - item.policy().sparq().k())
                            : 0;
  LayerRows seen = rows;
  seen.keys.erase(seen.keys.begin(), seen.keys.begin() + first * sequence.kv_width());
  seen.values.erase(seen.values.begin(), seen.values.begin() + first * sequence.kv_width());
  const std::vector<float> q = Floats(item.q());
  std::vector<float> out(q.size());
  AttendRows(seen, static_cast<int>(geometry.query_heads()), static_cast<int>(geometry.kv_heads()),
             static_cast<int>(geometry.head_dim()), position - first, tokens, q.data(), out.data());
  result.set_appended(true);
  result.set_layer_length(static_cast<uint64_t>(position + tokens));
  v1::Tensor& output = *result.mutable_output();
  output.set_dtype(v1::DTYPE_FLOAT32);
  output.mutable_shape()->CopyFrom(item.q().shape());
  output.set_data(out.data(), out.size() * sizeof(float));
  v1::TierRead& read = *result.mutable_account()->add_reads();
  read.set_tier(v1::TIER_HOST);
  uint64_t row_count = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    row_count += static_cast<uint64_t>(position + t + 1 - first) * geometry.kv_heads();
    for (uint32_t head = 0; head < geometry.query_heads(); ++head) {
      result.mutable_account()->add_alpha(item.policy().has_sparq() ? 0.75F : 1.0F);
    }
  }
  read.set_rows(row_count);
  read.set_row_bytes(row_count * 2 * geometry.head_dim() *
                     attention::DtypeBytes(StorageOf(geometry)));
  read.set_physical_bytes(read.row_bytes());
}

void FakeAttentionService::Answer(const v1::AttendRequest& request, v1::AttendResponse& response) {
  response.set_request_id(request.request_id());
  Check(request.items_size() == 1, "items");
  v1::StepResult& result = *response.add_results();
  Sequence* sequence = Find(request.items(0).handle());
  if (sequence == nullptr) {
    result.mutable_status()->set_code(grpc::StatusCode::NOT_FOUND);
    result.mutable_status()->set_message("unknown sequence");
    return;
  }
  const size_t complaints = complaints_.size();
  CheckItem(request, request.items(0), *sequence);
  if (complaints_.size() != complaints) {
    result.mutable_status()->set_code(grpc::StatusCode::INVALID_ARGUMENT);
    result.mutable_status()->set_message(complaints_.back());
    return;
  }
  AttendItem(request, *sequence, result);
}

void FakeAttentionService::Crash() {
  if (plan_.forget) sequences_.clear();
  for (auto& [handle, sequence] : sequences_) sequence.Cut(plan_.tokens_kept);
}

grpc::Status FakeAttentionService::AttendStream(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::AttendResponse, v1::AttendRequest>* stream) {
  v1::AttendRequest request;
  while (stream->Read(&request)) {
    std::unique_lock lock(mu_);
    last_request_ = request;
    if (request.layer() == 0) step_tokens_.push_back(request.items(0).token_ids_size());
    v1::AttendResponse response;
    const int64_t since = steps_++ - plan_.step;
    const Fault fault = plan_.fault;
    const bool faulty = plan_.step >= 0 && since == 0;
    const bool busy = plan_.step >= 0 && since >= 0 && since < plan_.busy_steps;
    if (faulty && (fault == Fault::kLost || fault == Fault::kDrain)) {
      Crash();
      if (fault == Fault::kLost) return {grpc::StatusCode::UNAVAILABLE, "killed"};
      response.mutable_status()->set_code(grpc::StatusCode::UNAVAILABLE);
      response.mutable_status()->set_message("draining");
      stream->Write(response);
      return grpc::Status::OK;
    }
    if (faulty && fault == Fault::kHang) {
      lock.unlock();
      // Ends when the client cancels: the next read fails.
      continue;
    }
    if (faulty && fault == Fault::kCallError) {
      response.set_request_id(request.request_id());
      response.mutable_status()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
      response.mutable_status()->set_message("queue full");
    } else if (busy && (fault == Fault::kBusyCall || fault == Fault::kBusyItem)) {
      response.set_request_id(request.request_id());
      *(fault == Fault::kBusyCall ? response.mutable_status()
                                  : response.add_results()->mutable_status()) = Busy();
    } else {
      Answer(request, response);
    }
    if (faulty && fault == Fault::kItemError) {
      response.mutable_results(0)->mutable_status()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
      response.mutable_results(0)->mutable_status()->set_message("no room for 512 bytes");
    }
    if (faulty && fault == Fault::kWrongId) response.set_request_id(request.request_id() + 7);
    if (faulty && fault == Fault::kShortOutput) {
      response.mutable_results(0)->mutable_output()->mutable_data()->resize(4);
    }
    lock.unlock();
    stream->Write(response);
  }
  static_cast<void>(context);
  return grpc::Status::OK;
}

FakeServer::FakeServer(const std::string& socket_path) : address_("unix:" + socket_path) {
  v1::GetLimitsResponse limits;
  limits.set_max_message_bytes(64 << 20);
  limits.set_max_step_tokens(1024);
  limits.set_max_sequence_tokens(1 << 20);
  limits.set_version("fake");
  service_.SetLimits(limits);
  Start();
}

FakeServer::~FakeServer() { Stop(); }

void FakeServer::Start() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(64 << 20);
  server_ = builder.BuildAndStart();
}

void FakeServer::Stop() {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

}  // namespace terrace::frontend::testing
