#include "services/engine/value_record.h"

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace terrace::engine {
namespace {

constexpr int kVersion = 1;

bool HasTypes(const nlohmann::json& json) {
  if (!json.is_object()) return false;
  for (const char* field : {"version", "size", "low", "high"}) {
    if (!json.value(field, nlohmann::json()).is_number_unsigned()) return false;
  }
  return json.value("tenant", nlohmann::json()).is_string() &&
         json.value("key", nlohmann::json()).is_string() &&
         json.value("expires_us", nlohmann::json()).is_number_integer();
}

}  // namespace

std::string ValueManifestName(kvstore::SegmentId segment) {
  return absl::StrCat("v", absl::Hex(static_cast<uint64_t>(segment), absl::kZeroPad16));
}

bool IsValueManifest(absl::string_view name) { return absl::StartsWith(name, "v"); }

std::string EncodeValueRecord(const ValueRecord& record) {
  // Tenants and keys are any bytes, which JSON does not hold.
  const nlohmann::json json = {{"version", kVersion},
                               {"tenant", absl::Base64Escape(record.tenant)},
                               {"key", absl::Base64Escape(record.key)},
                               {"size", record.size},
                               {"low", record.digest.low},
                               {"high", record.digest.high},
                               {"expires_us", record.expires_us}};
  return json.dump();
}

absl::StatusOr<ValueRecord> DecodeValueRecord(absl::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (!HasTypes(json)) return absl::DataLossError("value record is not readable");
  if (json["version"] != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "value record: got version ", json["version"].dump(), ", expected ", kVersion));
  }
  ValueRecord record = {
      .tenant = {},
      .key = {},
      .size = json["size"].get<uint64_t>(),
      .digest = {.low = json["low"].get<uint64_t>(), .high = json["high"].get<uint64_t>()},
      .expires_us = json["expires_us"].get<int64_t>()};
  if (!absl::Base64Unescape(json["tenant"].get<std::string>(), &record.tenant) ||
      !absl::Base64Unescape(json["key"].get<std::string>(), &record.key) || record.size == 0 ||
      record.key.empty() || record.key.size() > kValueKeyBytesMax) {
    return absl::DataLossError("value record: its tenant, key or size is not one");
  }
  return record;
}

}  // namespace terrace::engine
