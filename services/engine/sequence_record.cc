#include "services/engine/sequence_record.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace terrace::engine {
namespace {

constexpr int kVersion = 1;

nlohmann::json GeometryJson(const Geometry& geometry) {
  return {{"layers", geometry.layers},
          {"query_heads", geometry.query_heads},
          {"kv_heads", geometry.kv_heads},
          {"head_dim", geometry.head_dim},
          {"storage", static_cast<int>(geometry.storage)},
          {"scale", geometry.scale}};
}

Geometry GeometryFrom(const nlohmann::json& json) {
  Geometry geometry;
  geometry.layers = json.value("layers", 0);
  geometry.query_heads = json.value("query_heads", 0);
  geometry.kv_heads = json.value("kv_heads", 0);
  geometry.head_dim = json.value("head_dim", 0);
  geometry.storage = static_cast<attention::Dtype>(json.value("storage", 0));
  geometry.scale = json.value("scale", 0.0F);
  return geometry;
}

bool HasGeometryTypes(const nlohmann::json& json) {
  if (!json.is_object()) return false;
  for (const char* field : {"layers", "query_heads", "kv_heads", "head_dim", "storage"}) {
    if (!json.value(field, nlohmann::json()).is_number_integer()) return false;
  }
  return json.value("scale", nlohmann::json()).is_number();
}

bool HasRecordTypes(const nlohmann::json& json) {
  return json.is_object() && json.contains("version") &&
         json.value("tenant", nlohmann::json()).is_string() &&
         json.value("fingerprint", nlohmann::json()).is_string() &&
         json.value("adapter", nlohmann::json()).is_string() &&
         HasGeometryTypes(json.value("geometry", nlohmann::json())) &&
         json.value("epoch", nlohmann::json()).is_number_unsigned() &&
         json.value("created_us", nlohmann::json()).is_number_integer() &&
         json.value("index_format", nlohmann::json()).is_number_integer();
}

}  // namespace

std::string EncodeRecord(const SequenceRecord& record) {
  return nlohmann::json{{"version", kVersion},
                        {"tenant", record.tenant},
                        {"geometry", GeometryJson(record.spec.geometry)},
                        {"fingerprint", record.spec.model_fingerprint},
                        {"adapter", record.spec.adapter_id},
                        {"index_format", static_cast<int>(record.spec.index_format)},
                        {"epoch", record.writer_epoch},
                        {"created_us", absl::ToUnixMicros(record.created)}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<SequenceRecord> DecodeRecord(absl::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (!HasRecordTypes(json)) return absl::DataLossError("sequence record is not readable");
  if (json["version"] != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "sequence record: got version ", json["version"].dump(), ", expected ", kVersion));
  }
  SequenceRecord record;
  record.tenant = json.value("tenant", "");
  record.spec.geometry = GeometryFrom(json["geometry"]);
  record.spec.model_fingerprint = json.value("fingerprint", "");
  record.spec.adapter_id = json.value("adapter", "");
  record.spec.index_format = static_cast<attention::IndexFormat>(json.value("index_format", 0));
  record.writer_epoch = json.value("epoch", uint64_t{0});
  record.created = absl::FromUnixMicros(json.value("created_us", int64_t{0}));
  if (absl::Status status = record.spec.geometry.Validate(); !status.ok()) {
    return absl::DataLossError(absl::StrCat("sequence record: ", status.message()));
  }
  if (record.spec.index_format != attention::IndexFormat::kExact &&
      record.spec.index_format != attention::IndexFormat::kInt8) {
    return absl::DataLossError(
        absl::StrCat("sequence record: unknown index format ", json["index_format"].dump()));
  }
  return record;
}

}  // namespace terrace::engine
