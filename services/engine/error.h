// Errors that a client branches on: a canonical code, a reason, and what it needs to go on.
// Reasons and details travel as a payload of absl::Status, so that layers without protobuf can
// make them and the services can turn them into google.rpc.ErrorInfo and RetryInfo.
#ifndef TERRACE_SERVICES_ENGINE_ERROR_H_
#define TERRACE_SERVICES_ENGINE_ERROR_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace terrace::engine {

struct ErrorDetail {
  // UPPER_SNAKE_CASE, from the list in attention.proto.
  std::string reason;
  std::map<std::string, std::string> metadata;
  // How long the client should wait before it retries.
  std::optional<absl::Duration> retry_delay;
};

// `status` with the detail attached; an older detail is replaced.
absl::Status WithDetail(absl::Status status, const ErrorDetail& detail);
std::optional<ErrorDetail> DetailOf(const absl::Status& status);

// The same text for a sequence that is unknown and for another tenant's (I11).
absl::Status SequenceNotFound(absl::string_view handle);
absl::Status PositionGap(int layer, int64_t got, int64_t expected);
absl::Status PositionConflict(int layer, int64_t position);
absl::Status EpochStale(uint64_t got, uint64_t expected);
absl::Status FingerprintMismatch(absl::string_view got, absl::string_view expected);
// DeadlineExceeded: nothing was changed.
absl::Status NotBegun(absl::string_view verb);
// ResourceExhausted, to be retried after a moment.
absl::Status NoRoom(absl::string_view what);
// Unavailable: memory or disk does not do what it should at the moment.
absl::Status TierUnavailable(absl::string_view what);
absl::Status LimitExceeded(absl::string_view what);
// The same for a key that is unknown and for another tenant's (I11).
absl::Status ValueNotFound();
absl::Status ValueConflict();
absl::Status Draining();
// Unavailable: the process serves, but does not have its sequences back yet.
absl::Status Recovering();
// Unavailable: the store that holds the data does not answer.
absl::Status ShardUnavailable(absl::string_view endpoint, absl::string_view why);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_ERROR_H_
