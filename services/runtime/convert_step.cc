// Tensors, geometry, policies and steps.
#include <string>

#include "absl/strings/str_cat.h"
#include "services/runtime/convert.h"
#include "services/runtime/status_convert.h"

namespace terrace::runtime {
namespace {

absl::Status Unsupported(absl::string_view field, absl::string_view got,
                         absl::string_view expected) {
  return absl::UnimplementedError(
      absl::StrCat(field, ": got ", got, ", supported is only ", expected));
}

// Protobuf's 32-bit counts become our ints without wrapping.
int Narrow(uint32_t value) { return value > INT32_MAX ? INT32_MAX : static_cast<int>(value); }

absl::Span<const std::byte> AsBytes(const std::string& data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

absl::Status CheckSupported(const v1::Geometry& proto) {
  if (proto.value_head_dim() != 0 && proto.value_head_dim() != proto.head_dim()) {
    return Unsupported("geometry.value_head_dim", absl::StrCat(proto.value_head_dim()),
                       absl::StrCat("head_dim ", proto.head_dim()));
  }
  if (proto.logit_softcap() != 0.0F) {
    return Unsupported("geometry.logit_softcap", absl::StrCat(proto.logit_softcap()), "0 (none)");
  }
  for (const uint32_t window : proto.sliding_window()) {
    if (window != 0) {
      return Unsupported("geometry.sliding_window", absl::StrCat(window), "0 (none)");
    }
  }
  if (proto.kv_head_first() != 0) {
    return Unsupported("geometry.kv_head_first", absl::StrCat(proto.kv_head_first()), "0");
  }
  if (proto.kv_head_count() != 0 && proto.kv_head_count() != proto.kv_heads()) {
    return Unsupported("geometry.kv_head_count", absl::StrCat(proto.kv_head_count()),
                       absl::StrCat("kv_heads ", proto.kv_heads()));
  }
  return absl::OkStatus();
}

absl::StatusOr<attention::SparqPolicy> FromProto(const v1::SparqPolicy& proto) {
  attention::SparqPolicy policy;
  policy.r = Narrow(proto.r());
  policy.k = Narrow(proto.k());
  policy.window = proto.window() == 0 ? 1 : Narrow(proto.window());
  policy.sinks = Narrow(proto.sinks());
  switch (proto.group_score()) {
    case v1::GROUP_SCORE_UNSPECIFIED:
    case v1::GROUP_SCORE_SUM_PROB:
      policy.group_score = attention::GroupScore::kSumProb;
      break;
    case v1::GROUP_SCORE_SUM_LOGIT:
      policy.group_score = attention::GroupScore::kSumLogit;
      break;
    case v1::GROUP_SCORE_MAX_PROB:
      policy.group_score = attention::GroupScore::kMaxProb;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("policy.sparq.group_score: got ", proto.group_score(), ", expected 0 to 3"));
  }
  switch (proto.value_mean()) {
    case v1::VALUE_MEAN_UNSPECIFIED:
      policy.value_mean = kDefaultValueMean;
      break;
    case v1::VALUE_MEAN_OFF:
      policy.value_mean = attention::ValueMean::kOff;
      break;
    case v1::VALUE_MEAN_MEAN:
      policy.value_mean = attention::ValueMean::kMean;
      break;
    case v1::VALUE_MEAN_RESIDUAL:
      policy.value_mean = attention::ValueMean::kResidual;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("policy.sparq.value_mean: got ", proto.value_mean(), ", expected 0 to 3"));
  }
  return policy;
}

void ToProto(const engine::TierRead& read, v1::Tier tier, v1::StepAccount* account) {
  v1::TierRead* proto = account->add_reads();
  proto->set_tier(tier);
  proto->set_rows(read.rows);
  proto->set_row_bytes(read.row_bytes);
  proto->set_index_bytes(read.index_bytes);
  proto->set_sum_bytes(read.sum_bytes);
  proto->set_physical_bytes(read.physical_bytes);
}

uint64_t Micros(absl::Duration duration) {
  return static_cast<uint64_t>(absl::ToInt64Microseconds(duration));
}

}  // namespace

absl::StatusOr<attention::Dtype> FromProto(absl::string_view field, v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return attention::Dtype::kFloat32;
    case v1::DTYPE_BFLOAT16:
      return attention::Dtype::kBFloat16;
    case v1::DTYPE_FLOAT16:
      return attention::Dtype::kFloat16;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": got ", static_cast<int>(dtype),
                       ", expected DTYPE_FLOAT32, DTYPE_BFLOAT16 or DTYPE_FLOAT16"));
  }
}

v1::Dtype ToProto(attention::Dtype dtype) { return static_cast<v1::Dtype>(dtype); }

absl::StatusOr<engine::TensorView> FromProto(absl::string_view field, const v1::Tensor& tensor) {
  if (tensor.shape().empty() && tensor.data().empty() && tensor.dtype() == 0) {
    return engine::TensorView();
  }
  const absl::StatusOr<attention::Dtype> dtype =
      FromProto(absl::StrCat(field, ".dtype"), tensor.dtype());
  if (!dtype.ok()) return dtype.status();
  return engine::TensorView{
      .dtype = *dtype,
      .shape = {tensor.shape().data(), static_cast<size_t>(tensor.shape_size())},
      .data = AsBytes(tensor.data())};
}

void ToProto(const engine::TensorView& view, v1::Tensor* tensor) {
  if (view.absent()) return;
  tensor->set_dtype(ToProto(view.dtype));
  tensor->mutable_shape()->Add(view.shape.begin(), view.shape.end());
  tensor->set_data(view.data.data(), view.data.size());
}

absl::StatusOr<engine::Geometry> FromProto(const v1::Geometry& proto) {
  if (absl::Status status = CheckSupported(proto); !status.ok()) return status;
  const absl::StatusOr<attention::Dtype> storage =
      FromProto("geometry.storage_dtype", proto.storage_dtype());
  if (!storage.ok()) return storage.status();
  const engine::Geometry geometry = {.layers = Narrow(proto.layers()),
                                     .query_heads = Narrow(proto.query_heads()),
                                     .kv_heads = Narrow(proto.kv_heads()),
                                     .head_dim = Narrow(proto.head_dim()),
                                     .storage = *storage,
                                     .scale = proto.softmax_scale()};
  if (absl::Status status = geometry.Validate(); !status.ok()) return status;
  return geometry;
}

void ToProto(const engine::Geometry& geometry, v1::Geometry* proto) {
  proto->set_layers(geometry.layers);
  proto->set_query_heads(geometry.query_heads);
  proto->set_kv_heads(geometry.kv_heads);
  proto->set_head_dim(geometry.head_dim);
  proto->set_storage_dtype(ToProto(geometry.storage));
  proto->set_softmax_scale(geometry.scale);
}

absl::StatusOr<engine::SequenceSpec> FromProto(const v1::SequenceSpec& proto) {
  engine::SequenceSpec spec;
  const absl::StatusOr<engine::Geometry> geometry = FromProto(proto.geometry());
  if (!geometry.ok()) return geometry.status();
  spec.geometry = *geometry;
  spec.model_fingerprint = proto.model_fingerprint();
  spec.adapter_id = proto.adapter_id();
  if (spec.model_fingerprint.empty()) {
    return absl::InvalidArgumentError("model_fingerprint: got an empty string, expected a name");
  }
  spec.sharing_salt = proto.sharing_salt();
  spec.idle_ttl = FromProto(proto.idle_ttl());
  spec.retention = FromProto(proto.retention());
  switch (proto.index_format()) {
    case v1::INDEX_FORMAT_UNSPECIFIED:
    case v1::INDEX_FORMAT_INT8:
      spec.index_format = attention::IndexFormat::kInt8;
      return spec;
    case v1::INDEX_FORMAT_EXACT:
      spec.index_format = attention::IndexFormat::kExact;
      return spec;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("index_format: got ", static_cast<int>(proto.index_format()),
                       ", expected INDEX_FORMAT_EXACT or INDEX_FORMAT_INT8"));
  }
}

void ToProto(const engine::SequenceSpec& spec, v1::SequenceSpec* proto) {
  ToProto(spec.geometry, proto->mutable_geometry());
  proto->set_model_fingerprint(spec.model_fingerprint);
  proto->set_adapter_id(spec.adapter_id);
  proto->set_index_format(static_cast<v1::IndexFormat>(spec.index_format));
  proto->set_sharing_salt(spec.sharing_salt);
  if (spec.idle_ttl != absl::ZeroDuration()) ToProto(spec.idle_ttl, proto->mutable_idle_ttl());
  if (spec.retention != absl::ZeroDuration()) ToProto(spec.retention, proto->mutable_retention());
}

absl::StatusOr<attention::Policy> FromProto(const v1::Policy& policy) {
  if (policy.kind_case() == v1::Policy::KIND_NOT_SET) {
    // A kind that this version does not know reads as none.
    const bool none = policy.GetReflection()->GetUnknownFields(policy).empty();
    if (none) return attention::Policy(attention::DensePolicy());
    return Unsupported("policy", "a kind that this version does not know", "dense and sparq");
  }
  if (policy.has_dense()) return attention::Policy(attention::DensePolicy());
  absl::StatusOr<attention::SparqPolicy> sparq = FromProto(policy.sparq());
  if (!sparq.ok()) return sparq.status();
  return attention::Policy(*sparq);
}

void ToProto(const attention::Policy& policy, v1::Policy* proto) {
  const auto* sparq = std::get_if<attention::SparqPolicy>(&policy);
  if (sparq == nullptr) {
    proto->mutable_dense();
    return;
  }
  v1::SparqPolicy* out = proto->mutable_sparq();
  out->set_r(sparq->r);
  out->set_k(sparq->k);
  out->set_window(sparq->window);
  out->set_sinks(sparq->sinks);
  out->set_group_score(static_cast<v1::GroupScore>(sparq->group_score));
  out->set_value_mean(static_cast<v1::ValueMean>(sparq->value_mean));
}

absl::StatusOr<engine::StepRequest> FromProto(const v1::StepItem& item) {
  engine::StepRequest request;
  request.handle = item.handle();
  request.writer_epoch = item.writer_epoch();
  if (item.position() > INT64_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("position: got ", item.position()));
  }
  request.position = static_cast<int64_t>(item.position());
  request.token_ids = {item.token_ids().data(), static_cast<size_t>(item.token_ids_size())};
  request.fingerprint = item.model_fingerprint();
  for (const auto& [field, tensor, view] :
       {std::tuple{"q", &item.q(), &request.q}, std::tuple{"k", &item.k(), &request.k},
        std::tuple{"v", &item.v(), &request.v}}) {
    const absl::StatusOr<engine::TensorView> converted = FromProto(field, *tensor);
    if (!converted.ok()) return converted.status();
    *view = *converted;
  }
  absl::StatusOr<attention::Policy> policy = FromProto(item.policy());
  if (!policy.ok()) return policy.status();
  request.policy = *policy;
  return request;
}

void ToProto(const engine::StepRequest& request, v1::StepItem* item) {
  item->set_handle(std::string(request.handle));
  item->set_writer_epoch(request.writer_epoch);
  item->set_position(static_cast<uint64_t>(request.position));
  item->mutable_token_ids()->Add(request.token_ids.begin(), request.token_ids.end());
  item->set_model_fingerprint(std::string(request.fingerprint));
  if (!request.q.absent()) ToProto(request.q, item->mutable_q());
  if (!request.k.absent()) ToProto(request.k, item->mutable_k());
  if (!request.v.absent()) ToProto(request.v, item->mutable_v());
  ToProto(request.policy, item->mutable_policy());
}

absl::StatusOr<engine::StepOptions> OptionsOf(const v1::AttendRequest& request,
                                              absl::Time arrival) {
  if (!v1::RemoteMode_IsValid(request.mode())) {
    return absl::InvalidArgumentError(absl::StrCat("mode: got ", static_cast<int>(request.mode()),
                                                   ", expected a mode of this version"));
  }
  engine::StepOptions options;
  if (request.has_step_deadline()) options.deadline = arrival + FromProto(request.step_deadline());
  if (request.has_row_deadline())
    options.row_deadline = arrival + FromProto(request.row_deadline());
  options.strict = request.strict();
  options.return_selection = request.return_selection();
  options.mode = FromProto(request.mode());
  return options;
}

v1::RemoteMode ToProto(engine::RemoteMode mode) { return static_cast<v1::RemoteMode>(mode); }

engine::RemoteMode FromProto(v1::RemoteMode mode) {
  switch (mode) {
    case v1::REMOTE_MODE_ROWS:
      return engine::RemoteMode::kRows;
    case v1::REMOTE_MODE_PARTIAL:
      return engine::RemoteMode::kPartial;
    default:
      return engine::RemoteMode::kAuto;
  }
}

void ToProto(const engine::StepAccount& account, v1::StepAccount* proto) {
  ToProto(account.host, v1::TIER_HOST, proto);
  ToProto(account.disk, v1::TIER_DISK, proto);
  proto->mutable_alpha()->Add(account.alpha.begin(), account.alpha.end());
  proto->set_missed_mass(account.missed_mass);
  proto->set_missed_rows(account.missed_rows);
  v1::StageTimes* stages = proto->mutable_stages();
  stages->set_queue_us(Micros(account.stages.queue));
  stages->set_append_us(Micros(account.stages.append));
  stages->set_select_us(Micros(account.stages.select));
  stages->set_gather_us(Micros(account.stages.gather));
  stages->set_attend_us(Micros(account.stages.attend));
  stages->set_network_us(Micros(account.stages.network));
  stages->set_total_us(Micros(account.stages.total));
  proto->set_wire_bytes(account.wire_bytes);
  if (account.wire_bytes != 0) proto->set_mode(ToProto(account.mode));
}

engine::StepAccount FromProto(const v1::StepAccount& proto) {
  engine::StepAccount account;
  for (const v1::TierRead& read : proto.reads()) {
    engine::TierRead& tier = read.tier() == v1::TIER_DISK ? account.disk : account.host;
    tier += {.rows = read.rows(),
             .row_bytes = read.row_bytes(),
             .index_bytes = read.index_bytes(),
             .sum_bytes = read.sum_bytes(),
             .physical_bytes = read.physical_bytes()};
  }
  account.alpha.assign(proto.alpha().begin(), proto.alpha().end());
  account.missed_mass = proto.missed_mass();
  account.missed_rows = proto.missed_rows();
  account.stages.queue = absl::Microseconds(proto.stages().queue_us());
  account.stages.append = absl::Microseconds(proto.stages().append_us());
  account.stages.select = absl::Microseconds(proto.stages().select_us());
  account.stages.gather = absl::Microseconds(proto.stages().gather_us());
  account.stages.attend = absl::Microseconds(proto.stages().attend_us());
  account.stages.network = absl::Microseconds(proto.stages().network_us());
  account.stages.total = absl::Microseconds(proto.stages().total_us());
  account.mode = FromProto(proto.mode());
  account.wire_bytes = proto.wire_bytes();
  return account;
}

void ToProto(const engine::Selection& selection, v1::Selection* proto) {
  proto->mutable_positions()->Add(selection.positions.begin(), selection.positions.end());
  proto->mutable_channels()->Add(selection.channels.begin(), selection.channels.end());
}

engine::Selection FromProto(const v1::Selection& proto) {
  return {.positions = {proto.positions().begin(), proto.positions().end()},
          .channels = {proto.channels().begin(), proto.channels().end()}};
}

void ToProto(const engine::StepResult& result, v1::StepResult* proto) {
  *proto->mutable_status() = ToRpcStatus(result.status);
  proto->set_appended(result.appended);
  proto->set_layer_length(static_cast<uint64_t>(result.layer_length));
  ToProto(result.account, proto->mutable_account());
  for (const engine::Selection& selection : result.selections) {
    ToProto(selection, proto->add_selections());
  }
  if (!result.status.ok()) return;
  v1::Tensor* output = proto->mutable_output();
  output->set_dtype(v1::DTYPE_FLOAT32);
  const auto heads = result.account.alpha.size() / static_cast<size_t>(result.queries);
  output->add_shape(static_cast<uint32_t>(result.queries));
  output->add_shape(static_cast<uint32_t>(heads));
  output->add_shape(static_cast<uint32_t>(result.output.size() / result.account.alpha.size()));
  output->set_data(result.output.data(), result.output.size() * sizeof(float));
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

void ToProto(absl::Duration duration, google::protobuf::Duration* proto) {
  proto->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

}  // namespace terrace::runtime
