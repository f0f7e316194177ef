#include "services/runtime/sequence_verbs.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/runtime/convert.h"
#include "services/runtime/version.h"

namespace terrace::runtime {
namespace {

int64_t Signed(uint64_t value) {
  return value > INT64_MAX ? INT64_MAX : static_cast<int64_t>(value);
}

template <typename Response>
absl::Status Answer(const absl::StatusOr<engine::SequenceInfo>& info, Response* response) {
  if (!info.ok()) return info.status();
  ToProto(*info, response->mutable_sequence());
  return absl::OkStatus();
}

}  // namespace

absl::Status OpenSequence(engine::KvEngine& engine, const engine::Caller& caller,
                          const v1::OpenSequenceRequest& request,
                          v1::OpenSequenceResponse* response) {
  switch (request.source_case()) {
    case v1::OpenSequenceRequest::kNewSequence: {
      const absl::StatusOr<engine::SequenceSpec> spec = FromProto(request.new_sequence());
      if (!spec.ok()) return spec.status();
      return Answer(engine.Create(caller, *spec), response);
    }
    case v1::OpenSequenceRequest::kPrefix: {
      const absl::StatusOr<engine::PrefixQuery> query = FromProto(request.prefix());
      if (!query.ok()) return query.status();
      return Answer(engine.OpenOnPrefix(caller, *query, request.prefix().lease()), response);
    }
    case v1::OpenSequenceRequest::kFork:
      return Answer(engine.Fork(caller, request.fork().handle(), Signed(request.fork().position()),
                                request.expected_fingerprint()),
                    response);
    case v1::OpenSequenceRequest::kResume:
      return Answer(engine.Resume(caller, request.resume(), request.expected_fingerprint()),
                    response);
    default:
      return absl::InvalidArgumentError(
          "source: got none, expected new_sequence, fork, resume or prefix");
  }
}

absl::Status LookupPrefix(engine::KvEngine& engine, const engine::Caller& caller,
                          const v1::LookupPrefixRequest& request,
                          v1::LookupPrefixResponse* response) {
  const absl::StatusOr<engine::PrefixQuery> query = FromProto(request.prefix());
  if (!query.ok()) return query.status();
  const absl::StatusOr<engine::PrefixFound> found =
      engine.LookupPrefix(caller, *query, FromProto(request.lease()));
  if (!found.ok()) return found.status();
  ToProto(*found, response);
  return absl::OkStatus();
}

absl::Status Truncate(engine::KvEngine& engine, const engine::Caller& caller,
                      const v1::TruncateRequest& request, v1::TruncateResponse* response) {
  return Answer(
      engine.Truncate(caller, request.handle(), request.writer_epoch(), Signed(request.length())),
      response);
}

absl::Status Flush(engine::KvEngine& engine, const engine::Caller& caller,
                   const v1::FlushRequest& request, v1::FlushResponse* response) {
  return Answer(engine.Flush(caller, request.handle()), response);
}

absl::Status Park(engine::KvEngine& engine, const engine::Caller& caller,
                  const v1::ParkRequest& request, v1::ParkResponse* response) {
  const absl::StatusOr<engine::ParkReport> parked = engine.Park(caller, request.handle());
  if (!parked.ok()) return parked.status();
  ToProto(*parked, response);
  return absl::OkStatus();
}

absl::Status Close(engine::KvEngine& engine, const engine::Caller& caller,
                   const v1::CloseRequest& request) {
  return engine.Delete(caller, request.handle());
}

absl::Status GetSequence(engine::KvEngine& engine, const engine::Caller& caller,
                         const v1::GetSequenceRequest& request, v1::GetSequenceResponse* response) {
  return Answer(engine.Get(caller, request.handle()), response);
}

void GetLimits(const engine::KvEngine& engine, uint64_t max_message_bytes, uint32_t shard,
               v1::GetLimitsResponse* response) {
  const engine::Limits limits = engine.limits();
  response->set_max_message_bytes(max_message_bytes);
  response->set_max_batch(static_cast<uint32_t>(limits.max_batch));
  response->set_max_step_tokens(static_cast<uint32_t>(limits.max_step_tokens));
  response->set_max_sequence_tokens(static_cast<uint64_t>(limits.max_sequence_tokens));
  response->set_max_sequences(static_cast<uint64_t>(limits.max_sequences));
  response->set_default_value_mean(static_cast<v1::ValueMean>(kDefaultValueMean));
  response->set_shard(shard);
  response->set_version(kVersion);
}

absl::Status BulkAppend::Add(const v1::AppendKvRequest& request) {
  if (!request.handle().empty()) {
    if (!handle_.empty() && handle_ != request.handle()) {
      return absl::InvalidArgumentError(
          absl::StrCat("handle: got ", request.handle(), ", expected the stream's ", handle_));
    }
    handle_ = request.handle();
  }
  if (request.writer_epoch() != 0) writer_epoch_ = request.writer_epoch();
  if (handle_.empty()) {
    return absl::InvalidArgumentError("handle: got none, expected one in the first message");
  }
  for (const v1::LayerChunk& chunk : request.chunks()) {
    const absl::StatusOr<engine::TensorView> k = FromProto("k", chunk.k());
    if (!k.ok()) return k.status();
    const absl::StatusOr<engine::TensorView> v = FromProto("v", chunk.v());
    if (!v.ok()) return v.status();
    const absl::StatusOr<int64_t> length = engine_.Append(
        caller_,
        {.handle = handle_,
         .writer_epoch = writer_epoch_,
         .layer = static_cast<int>(chunk.layer()),
         .position = Signed(chunk.position()),
         .k = *k,
         .v = *v,
         .token_position = Signed(request.token_position()),
         .token_ids = {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())}});
    if (!length.ok()) return length.status();
    layer_length_ = *length;
  }
  return absl::OkStatus();
}

absl::Status BulkAppend::End(v1::AppendKvResponse* response) {
  if (handle_.empty()) {
    return absl::InvalidArgumentError("got an empty stream, expected at least one message");
  }
  const absl::StatusOr<engine::SequenceInfo> info = engine_.Get(caller_, handle_);
  if (!info.ok()) return info.status();
  response->set_length(static_cast<uint64_t>(info->length));
  response->set_durable_length(static_cast<uint64_t>(info->durable_length));
  response->set_layer_length(static_cast<uint64_t>(layer_length_));
  return absl::OkStatus();
}

}  // namespace terrace::runtime
