// What a sequence leaves in its manifest besides its ranges.
#ifndef TERRACE_SERVICES_ENGINE_SEQUENCE_RECORD_H_
#define TERRACE_SERVICES_ENGINE_SEQUENCE_RECORD_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/engine/sequence_info.h"
#include "services/engine/token_chain.h"

namespace terrace::engine {

struct SequenceRecord {
  std::string tenant;
  SequenceSpec spec;
  uint64_t writer_epoch = 0;
  absl::Time created;
  // Of a sequence that is closed and serves prefixes: until when. InfiniteFuture for all others.
  absl::Time retained_until = absl::InfiniteFuture();
  // It is retained because a look-up was promised so.
  bool leased = false;
  TokenRecord tokens = {};
};

std::string EncodeRecord(const SequenceRecord& record);
// DataLoss when the text is not a record; FailedPrecondition for one of a newer version.
absl::StatusOr<SequenceRecord> DecodeRecord(absl::string_view text);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_RECORD_H_
