#include "services/engine/sequence_record.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace terrace::engine {
namespace {

constexpr int kVersion = 1;
constexpr size_t kHashBytes = sizeof(BlockHash::first) + sizeof(BlockHash::second);

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

template <typename Item>
std::string Base64Of(const std::vector<Item>& items) {
  return absl::Base64Escape(
      {reinterpret_cast<const char*>(items.data()), items.size() * sizeof(Item)});
}

template <typename Item>
std::vector<Item> ItemsOf(const std::string& base64) {
  static_assert(std::is_trivially_copyable_v<Item>);
  std::string bytes;
  if (!absl::Base64Unescape(base64, &bytes)) return {};
  std::vector<Item> items(bytes.size() / sizeof(Item));
  if (!items.empty()) std::memcpy(items.data(), bytes.data(), items.size() * sizeof(Item));
  return items;
}

nlohmann::json TokensJson(const TokenRecord& tokens) {
  static_assert(sizeof(BlockHash) == kHashBytes);
  return {{"blocks", Base64Of(tokens.blocks)},
          {"first", tokens.first_position},
          {"ids", Base64Of(tokens.tokens)},
          {"sparse_from", tokens.sparse_from}};
}

TokenRecord TokensFrom(const nlohmann::json& json) {
  if (!json.is_object()) return {};
  for (const char* field : {"blocks", "ids"}) {
    if (!json.value(field, nlohmann::json()).is_string()) return {};
  }
  for (const char* field : {"first", "sparse_from"}) {
    if (!json.value(field, nlohmann::json()).is_number_integer()) return {};
  }
  return {.blocks = ItemsOf<BlockHash>(json["blocks"].get<std::string>()),
          .first_position = json["first"].get<int64_t>(),
          .tokens = ItemsOf<uint32_t>(json["ids"].get<std::string>()),
          .sparse_from = json["sparse_from"].get<int64_t>()};
}

// What a sequence has only in part: absent where it says nothing.
void AddOptional(const SequenceRecord& record, nlohmann::json& json) {
  if (!record.spec.sharing_salt.empty()) {
    json["salt"] = absl::Base64Escape(record.spec.sharing_salt);
  }
  if (record.spec.idle_ttl > absl::ZeroDuration()) {
    json["idle_ttl_us"] = absl::ToInt64Microseconds(record.spec.idle_ttl);
  }
  if (record.spec.retention > absl::ZeroDuration()) {
    json["retention_us"] = absl::ToInt64Microseconds(record.spec.retention);
  }
  if (record.retained_until != absl::InfiniteFuture()) {
    json["retained_until_us"] = absl::ToUnixMicros(record.retained_until);
  }
  if (record.leased) json["leased"] = true;
  if (!record.tokens.empty()) json["tokens"] = TokensJson(record.tokens);
}

int64_t NumberOf(const nlohmann::json& json, const char* field) {
  const nlohmann::json value = json.value(field, nlohmann::json());
  return value.is_number_integer() ? value.get<int64_t>() : 0;
}

// DataLoss for a salt that cannot be read: without it, blocks would be shared with strangers.
absl::Status ReadOptional(const nlohmann::json& json, SequenceRecord& record) {
  if (const auto salt = json.find("salt"); salt != json.end()) {
    if (!salt->is_string() ||
        !absl::Base64Unescape(salt->get<std::string>(), &record.spec.sharing_salt)) {
      return absl::DataLossError("sequence record: its salt is not readable");
    }
  }
  record.spec.idle_ttl = absl::Microseconds(NumberOf(json, "idle_ttl_us"));
  record.spec.retention = absl::Microseconds(NumberOf(json, "retention_us"));
  if (json.contains("retained_until_us")) {
    record.retained_until = absl::FromUnixMicros(NumberOf(json, "retained_until_us"));
  }
  record.leased = json.value("leased", nlohmann::json()) == true;
  record.tokens = TokensFrom(json.value("tokens", nlohmann::json()));
  return absl::OkStatus();
}

}  // namespace

std::string EncodeRecord(const SequenceRecord& record) {
  nlohmann::json json = {{"version", kVersion},
                         {"tenant", record.tenant},
                         {"geometry", GeometryJson(record.spec.geometry)},
                         {"fingerprint", record.spec.model_fingerprint},
                         {"adapter", record.spec.adapter_id},
                         {"index_format", static_cast<int>(record.spec.index_format)},
                         {"epoch", record.writer_epoch},
                         {"created_us", absl::ToUnixMicros(record.created)}};
  AddOptional(record, json);
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
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
  if (absl::Status status = ReadOptional(json, record); !status.ok()) return status;
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
