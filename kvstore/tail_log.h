// TailLog: rows of open blocks on disk, written by a flush, so that a restart finds them.
//
// A watermark says how many rows of a layer's open block are there; it is written in one batch with
// them. The writer removes them when the block is on disk as a whole.
#ifndef TERRACE_KVSTORE_TAIL_LOG_H_
#define TERRACE_KVSTORE_TAIL_LOG_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/store_core.h"

namespace terrace::kvstore {

class TailLog {
 public:
  explicit TailLog(StoreCore& core) : core_(core) {}

  // Replaces what is on disk of the open blocks, and syncs. Requires: all sealed blocks are on
  // disk; rows below the given counts do not change meanwhile.
  absl::Status Write(Segment& segment, absl::Span<const uint32_t> tail_rows, absl::Time deadline);
  // Removes it.
  absl::Status Drop(Segment& segment);
  // Copies it into the open rows. Requires: those of Durable().end_block are reserved in each layer
  // with a tail.
  absl::Status Restore(Segment& segment);

 private:
  absl::Status WriteInTurn(Segment& segment, absl::Span<const uint32_t> tail_rows, bool sync);

  StoreCore& core_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_TAIL_LOG_H_
