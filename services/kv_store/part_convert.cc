#include "services/kv_store/part_convert.h"

#include <google/protobuf/util/time_util.h>

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/runtime/convert.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {
namespace {

void SetFloats(const std::vector<float>& values, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

absl::Status GetFloats(absl::string_view field, const std::string& bytes, size_t count,
                       std::vector<float>* values) {
  if (bytes.size() != count * sizeof(float)) {
    return absl::InternalError(absl::StrCat("the store's ", field, ": got ", bytes.size(),
                                            " bytes, expected ", count * sizeof(float)));
  }
  values->resize(count);
  std::memcpy(values->data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::Status ReadSums(const v1::StepSums& sums, size_t heads, size_t slots,
                      engine::StepPart& part) {
  absl::Status status = GetFloats("lse_selected", sums.lse_selected(), heads, &part.lse_selected);
  if (status.ok()) status = GetFloats("lse_all", sums.lse_all(), heads, &part.lse_all);
  if (!status.ok() || sums.mean_sum().empty()) return status;
  if (static_cast<size_t>(sums.mean_rows_size()) != slots) {
    return absl::InternalError("the store's mean_rows do not fit its queries");
  }
  part.mean_rows.assign(sums.mean_rows().begin(), sums.mean_rows().end());
  return GetFloats("mean_sum", sums.mean_sum(), slots * part.geometry.head_dim, &part.mean_sum);
}

absl::Status ReadRows(const v1::SelectedRows& rows, size_t slots, engine::StepPart& part) {
  part.form = engine::PartForm::kRows;
  if (static_cast<size_t>(rows.selections_size()) != slots ||
      rows.rows().size() % part.geometry.row_bytes() != 0) {
    return absl::InternalError("the store's rows do not fit its queries");
  }
  for (const v1::Selection& selection : rows.selections()) {
    part.selections.push_back(runtime::FromProto(selection));
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(rows.rows().data());
  part.rows.assign(bytes, bytes + rows.rows().size());
  return absl::OkStatus();
}

absl::Status ReadPartial(const v1::StoreStepResult& proto, size_t heads, engine::StepPart& part) {
  part.form = engine::PartForm::kPartial;
  for (const v1::Selection& selection : proto.selections()) {
    part.selections.push_back(runtime::FromProto(selection));
  }
  absl::Status status =
      GetFloats("output", proto.partial().output(), heads * part.geometry.head_dim, &part.output);
  if (status.ok()) status = GetFloats("lse", proto.partial().lse(), heads, &part.lse);
  return status;
}

}  // namespace

void ToProto(const engine::StepPart& part, bool return_selection, v1::StoreStepResult* proto) {
  *proto->mutable_status() = runtime::ToRpcStatus(part.status);
  proto->set_appended(part.appended);
  proto->set_layer_length(static_cast<uint64_t>(part.layer_length));
  if (!part.status.ok()) return;
  proto->set_generation(part.generation);
  runtime::ToProto(part.geometry, proto->mutable_geometry());
  proto->set_row_dtype(runtime::ToProto(part.geometry.storage));
  runtime::ToProto(part.account, proto->mutable_account());
  v1::StepSums* sums = proto->mutable_sums();
  SetFloats(part.lse_selected, sums->mutable_lse_selected());
  SetFloats(part.lse_all, sums->mutable_lse_all());
  SetFloats(part.mean_sum, sums->mutable_mean_sum());
  sums->mutable_mean_rows()->Add(part.mean_rows.begin(), part.mean_rows.end());
  if (part.form == engine::PartForm::kRows) {
    v1::SelectedRows* rows = proto->mutable_rows();
    for (const engine::Selection& selection : part.selections) {
      runtime::ToProto(selection, rows->add_selections());
    }
    rows->set_rows(part.rows.data(), part.rows.size());
    return;
  }
  SetFloats(part.output, proto->mutable_partial()->mutable_output());
  SetFloats(part.lse, proto->mutable_partial()->mutable_lse());
  if (!return_selection) return;
  for (const engine::Selection& selection : part.selections) {
    runtime::ToProto(selection, proto->add_selections());
  }
}

absl::StatusOr<engine::StepPart> FromProto(const v1::StoreStepResult& proto) {
  engine::StepPart part;
  part.status = runtime::FromRpcStatus(proto.status());
  part.appended = proto.appended();
  part.layer_length = static_cast<int64_t>(proto.layer_length());
  if (!part.status.ok()) return part;
  part.generation = proto.generation();
  const absl::StatusOr<engine::Geometry> geometry = runtime::FromProto(proto.geometry());
  if (!geometry.ok()) return geometry.status();
  part.geometry = *geometry;
  part.account = runtime::FromProto(proto.account());
  const size_t heads = proto.sums().lse_all().size() / sizeof(float);
  part.queries = static_cast<int64_t>(heads) / geometry->query_heads;
  const size_t slots = static_cast<size_t>(part.queries) * geometry->kv_heads;
  absl::Status status = ReadSums(proto.sums(), heads, slots, part);
  if (status.ok()) {
    status =
        proto.has_rows() ? ReadRows(proto.rows(), slots, part) : ReadPartial(proto, heads, part);
  }
  if (!status.ok()) return status;
  return part;
}

void ToProto(const engine::HeldRows& held, v1::StoreStepItem* proto) {
  proto->set_held_generation(held.generation);
  for (const std::vector<uint32_t>& positions : held.positions) {
    proto->add_held()->mutable_positions()->Add(positions.begin(), positions.end());
  }
}

engine::HeldRows HeldOf(const v1::StoreStepItem& proto) {
  engine::HeldRows held;
  held.generation = proto.held_generation();
  for (const v1::HeldRows& rows : proto.held()) {
    held.positions.emplace_back(rows.positions().begin(), rows.positions().end());
  }
  return held;
}

void ToProto(const engine::ValuesFound& found, v1::LookupBlocksResponse* proto) {
  proto->mutable_size_bytes()->Add(found.sizes.begin(), found.sizes.end());
  proto->set_leading_count(static_cast<uint32_t>(found.leading));
  if (found.lease_expires == absl::InfinitePast()) return;
  *proto->mutable_lease_expires() = google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(
      absl::ToUnixMicros(found.lease_expires));
}

}  // namespace terrace::kv_store
