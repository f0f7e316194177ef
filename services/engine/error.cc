#include "services/engine/error.h"

#include <nlohmann/json.hpp>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace terrace::engine {
namespace {

constexpr absl::string_view kPayloadUrl = "terrace/error-detail";
constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

absl::Status WithDetail(absl::Status status, const ErrorDetail& detail) {
  nlohmann::json json = {{"reason", detail.reason}, {"metadata", detail.metadata}};
  if (detail.retry_delay.has_value()) {
    json["retry_ms"] = absl::ToInt64Milliseconds(*detail.retry_delay);
  }
  // Names may be any bytes; what is no UTF-8 is replaced rather than thrown at.
  status.SetPayload(
      kPayloadUrl, absl::Cord(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  return status;
}

std::optional<ErrorDetail> DetailOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return std::nullopt;
  const nlohmann::json json = nlohmann::json::parse(std::string(*payload), nullptr, false);
  if (!json.is_object()) return std::nullopt;
  ErrorDetail detail;
  detail.reason = json.value("reason", "");
  detail.metadata = json.value("metadata", std::map<std::string, std::string>());
  if (json.contains("retry_ms")) detail.retry_delay = absl::Milliseconds(json.value("retry_ms", 0));
  return detail;
}

absl::Status SequenceNotFound(absl::string_view handle) {
  return absl::NotFoundError(absl::StrCat("no sequence with handle ", handle));
}

absl::Status PositionGap(int layer, int64_t got, int64_t expected) {
  return WithDetail(
      absl::FailedPreconditionError(absl::StrCat("layer ", layer, ": position ", got,
                                                 " leaves a gap, expected position ", expected)),
      {.reason = "POSITION_GAP",
       .metadata = {{"expected_position", absl::StrCat(expected)}, {"layer", absl::StrCat(layer)}},
       .retry_delay = std::nullopt});
}

absl::Status PositionConflict(int layer, int64_t position) {
  return WithDetail(
      absl::AlreadyExistsError(absl::StrCat("layer ", layer, ": position ", position,
                                            " already holds other bytes than these")),
      {.reason = "POSITION_CONFLICT",
       .metadata = {{"position", absl::StrCat(position)}, {"layer", absl::StrCat(layer)}},
       .retry_delay = std::nullopt});
}

absl::Status EpochStale(uint64_t got, uint64_t expected) {
  return WithDetail(
      absl::FailedPreconditionError(absl::StrCat("writer epoch ", got, " is fenced, expected ",
                                                 expected, ": open the sequence again to write")),
      {.reason = "EPOCH_STALE",
       .metadata = {{"expected_epoch", absl::StrCat(expected)}},
       .retry_delay = std::nullopt});
}

absl::Status FingerprintMismatch(absl::string_view got, absl::string_view expected) {
  return WithDetail(
      absl::FailedPreconditionError(absl::StrCat(
          "model fingerprint \"", got, "\" differs from the sequence's \"", expected, "\"")),
      {.reason = "FINGERPRINT_MISMATCH",
       .metadata = {{"expected_fingerprint", std::string(expected)}},
       .retry_delay = std::nullopt});
}

absl::Status NotBegun(absl::string_view verb) {
  return absl::DeadlineExceededError(absl::StrCat(verb, ": its deadline passed before it began"));
}

absl::Status NoRoom(absl::string_view what) {
  return WithDetail(absl::ResourceExhaustedError(what),
                    {.reason = "NO_ROOM", .metadata = {}, .retry_delay = kRetryDelay});
}

absl::Status TierUnavailable(absl::string_view what) {
  return WithDetail(
      absl::UnavailableError(what),
      {.reason = "TIER_UNAVAILABLE", .metadata = {}, .retry_delay = absl::Seconds(1)});
}

absl::Status LimitExceeded(absl::string_view what) {
  return WithDetail(absl::ResourceExhaustedError(what),
                    {.reason = "LIMIT_EXCEEDED", .metadata = {}, .retry_delay = kRetryDelay});
}

absl::Status ValueNotFound() { return absl::NotFoundError("no value under this key"); }

absl::Status ValueConflict() {
  return WithDetail(absl::AlreadyExistsError("other bytes are under this key already"),
                    {.reason = "VALUE_CONFLICT", .metadata = {}, .retry_delay = std::nullopt});
}

absl::Status Draining() {
  return WithDetail(absl::UnavailableError("draining: this process is about to stop"),
                    {.reason = "DRAINING", .metadata = {}, .retry_delay = absl::Seconds(1)});
}

absl::Status Recovering() {
  return WithDetail(
      absl::UnavailableError("recovering: this process is bringing back what it held"),
      {.reason = "RECOVERING", .metadata = {}, .retry_delay = absl::Seconds(1)});
}

absl::Status ShardUnavailable(absl::string_view endpoint, absl::string_view why) {
  return WithDetail(
      absl::UnavailableError(absl::StrCat("kv-store at ", endpoint, " does not answer: ", why)),
      {.reason = "SHARD_UNAVAILABLE",
       .metadata = {{"endpoint", std::string(endpoint)}},
       .retry_delay = absl::Seconds(1)});
}

}  // namespace terrace::engine
