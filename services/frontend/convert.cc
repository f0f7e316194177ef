#include "services/frontend/convert.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"

namespace terrace::frontend {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors travel little endian");

v1::Dtype ToProto(attention::Dtype dtype) {
  switch (dtype) {
    case attention::Dtype::kFloat32:
      return v1::DTYPE_FLOAT32;
    case attention::Dtype::kBFloat16:
      return v1::DTYPE_BFLOAT16;
    case attention::Dtype::kFloat16:
      return v1::DTYPE_FLOAT16;
  }
  return v1::DTYPE_UNSPECIFIED;
}

v1::GroupScore ToProto(attention::GroupScore score) {
  switch (score) {
    case attention::GroupScore::kSumProb:
      return v1::GROUP_SCORE_SUM_PROB;
    case attention::GroupScore::kSumLogit:
      return v1::GROUP_SCORE_SUM_LOGIT;
    case attention::GroupScore::kMaxProb:
      return v1::GROUP_SCORE_MAX_PROB;
  }
  return v1::GROUP_SCORE_UNSPECIFIED;
}

v1::ValueMean ToProto(attention::ValueMean mean) {
  switch (mean) {
    case attention::ValueMean::kOff:
      return v1::VALUE_MEAN_OFF;
    case attention::ValueMean::kMean:
      return v1::VALUE_MEAN_MEAN;
    case attention::ValueMean::kResidual:
      return v1::VALUE_MEAN_RESIDUAL;
  }
  return v1::VALUE_MEAN_UNSPECIFIED;
}

TierTotals FromProto(const v1::TierRead& read) {
  TierTotals totals;
  totals.rows = read.rows();
  totals.row_bytes = read.row_bytes();
  totals.index_bytes = read.index_bytes();
  totals.sum_bytes = read.sum_bytes();
  totals.physical_bytes = read.physical_bytes();
  return totals;
}

}  // namespace

v1::SequenceSpec ToProto(const SequenceSpec& spec) {
  v1::SequenceSpec proto;
  v1::Geometry& geometry = *proto.mutable_geometry();
  geometry.set_layers(static_cast<uint32_t>(spec.layers));
  geometry.set_query_heads(static_cast<uint32_t>(spec.query_heads));
  geometry.set_kv_heads(static_cast<uint32_t>(spec.kv_heads));
  geometry.set_head_dim(static_cast<uint32_t>(spec.head_dim));
  geometry.set_storage_dtype(ToProto(spec.storage));
  proto.set_model_fingerprint(spec.fingerprint);
  proto.set_index_format(spec.index == IndexFormat::kExact ? v1::INDEX_FORMAT_EXACT
                                                           : v1::INDEX_FORMAT_INT8);
  return proto;
}

v1::Policy ToProto(const attention::Policy& policy) {
  v1::Policy proto;
  const auto* sparq = std::get_if<attention::SparqPolicy>(&policy);
  if (sparq == nullptr) {
    proto.mutable_dense();
    return proto;
  }
  v1::SparqPolicy& out = *proto.mutable_sparq();
  out.set_r(static_cast<uint32_t>(sparq->r));
  out.set_k(static_cast<uint32_t>(sparq->k));
  out.set_window(static_cast<uint32_t>(sparq->window));
  out.set_sinks(static_cast<uint32_t>(sparq->sinks));
  out.set_group_score(ToProto(sparq->group_score));
  out.set_value_mean(ToProto(sparq->value_mean));
  return proto;
}

v1::RemoteMode ToProto(RemoteMode mode) {
  switch (mode) {
    case RemoteMode::kAuto:
      return v1::REMOTE_MODE_AUTO;
    case RemoteMode::kRows:
      return v1::REMOTE_MODE_ROWS;
    case RemoteMode::kPartial:
      return v1::REMOTE_MODE_PARTIAL;
  }
  return v1::REMOTE_MODE_UNSPECIFIED;
}

void SetTensor(absl::Span<const float> values, std::initializer_list<int64_t> shape,
               v1::Tensor& tensor) {
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  tensor.clear_shape();
  for (const int64_t extent : shape) tensor.add_shape(static_cast<uint32_t>(extent));
  tensor.set_data(values.data(), values.size() * sizeof(float));
}

absl::Status GetTensor(const v1::Tensor& tensor, std::initializer_list<int64_t> shape,
                       absl::Span<float> values) {
  const bool same_shape =
      std::equal(tensor.shape().begin(), tensor.shape().end(), shape.begin(), shape.end(),
                 [](uint32_t got, int64_t expected) { return got == expected; });
  const size_t bytes = values.size() * sizeof(float);
  if (tensor.dtype() != v1::DTYPE_FLOAT32 || !same_shape || tensor.data().size() != bytes) {
    return absl::InternalError(absl::StrCat(
        "the service answered with a tensor ", v1::Dtype_Name(tensor.dtype()), " [",
        absl::StrJoin(tensor.shape(), ", "), "] of ", tensor.data().size(),
        " bytes, DTYPE_FLOAT32 [", absl::StrJoin(shape, ", "), "] of ", bytes, " expected"));
  }
  std::memcpy(values.data(), tensor.data().data(), bytes);
  return absl::OkStatus();
}

bool LostTokens(const google::rpc::Status& status) {
  for (const google::protobuf::Any& any : status.details()) {
    google::rpc::ErrorInfo info;
    if (any.UnpackTo(&info) && info.reason() == "POSITION_GAP") return true;
  }
  return false;
}

std::optional<absl::Duration> RetryDelay(const google::rpc::Status& status) {
  if (status.code() != static_cast<int>(absl::StatusCode::kResourceExhausted)) return std::nullopt;
  for (const google::protobuf::Any& any : status.details()) {
    google::rpc::RetryInfo retry;
    if (!any.UnpackTo(&retry)) continue;
    return absl::Seconds(retry.retry_delay().seconds()) +
           absl::Nanoseconds(retry.retry_delay().nanos());
  }
  return std::nullopt;
}

absl::Status FromProto(const google::rpc::Status& status) {
  if (status.code() == 0) return absl::OkStatus();
  const bool known = status.code() > 0 && status.code() <= 16;
  return absl::Status(
      known ? static_cast<absl::StatusCode>(status.code()) : absl::StatusCode::kUnknown,
      status.message());
}

SequenceState FromProto(const v1::SequenceInfo& info) {
  return {info.handle(), info.writer_epoch(), static_cast<int64_t>(info.length())};
}

ReadAccount FromProto(const v1::StepAccount& account) {
  ReadAccount sums;
  sums.answers = 1;
  for (const v1::TierRead& read : account.reads()) {
    if (read.tier() == v1::TIER_GPU) sums.gpu.Add(FromProto(read));
    if (read.tier() == v1::TIER_HOST) sums.host.Add(FromProto(read));
    if (read.tier() == v1::TIER_DISK) sums.disk.Add(FromProto(read));
  }
  for (const float alpha : account.alpha()) {
    sums.alpha_sum += alpha;
    sums.alpha_min = std::min(sums.alpha_min, alpha);
  }
  sums.alpha_count = static_cast<uint64_t>(account.alpha_size());
  sums.missed_mass_sum = account.missed_mass();
  sums.missed_mass_max = account.missed_mass();
  sums.missed_rows = account.missed_rows();
  sums.rows_mode_answers = account.mode() == v1::REMOTE_MODE_ROWS ? 1 : 0;
  sums.partial_mode_answers = account.mode() == v1::REMOTE_MODE_PARTIAL ? 1 : 0;
  sums.wire_bytes = account.wire_bytes();
  sums.service_us = account.stages().total_us();
  return sums;
}

}  // namespace terrace::frontend
