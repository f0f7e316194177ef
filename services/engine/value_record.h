// What a value leaves in its manifest besides its blocks.
#ifndef TERRACE_SERVICES_ENGINE_VALUE_RECORD_H_
#define TERRACE_SERVICES_ENGINE_VALUE_RECORD_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/block_key.h"
#include "services/engine/value.h"

namespace terrace::engine {

struct ValueRecord {
  std::string tenant;
  std::string key;
  uint64_t size = 0;
  ValueDigest digest;
  int64_t expires_us = StoredValue::kNever;
};

// 'v' and the segment in 16 hex digits: later values have greater names, and no sequence has one.
std::string ValueManifestName(kvstore::SegmentId segment);
bool IsValueManifest(absl::string_view name);

std::string EncodeValueRecord(const ValueRecord& record);
// DataLoss when the text is not a record; FailedPrecondition for one of a newer version.
absl::StatusOr<ValueRecord> DecodeValueRecord(absl::string_view text);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_VALUE_RECORD_H_
