// TailLog: rows of open blocks on disk, written by a flush, so that a restart finds them.
//
// A watermark says how many rows of a layer's open block are there; it is written in one batch with
// them. A cut lowers it and leaves the rows: what lies beyond it counts for nothing. The writer
// removes them when the block is on disk as a whole. Rows of a block that was on disk as a whole
// and was unsealed are where they were, until a flush writes them or the block is sealed again.
#ifndef TERRACE_KVSTORE_TAIL_LOG_H_
#define TERRACE_KVSTORE_TAIL_LOG_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/disk_batch.h"
#include "kvstore/extent_reader.h"
#include "kvstore/store_core.h"

namespace terrace::kvstore {

class TailLog {
 public:
  TailLog(StoreCore& core, ExtentReader& reader) : core_(core), reader_(reader) {}

  enum class Purpose {
    // Synced, and refused beyond the disk budget.
    kFlush,
    // Synced with the manifest that comes next, which gives up as much as this takes.
    kBranch,
  };
  // Replaces what is on disk of the open blocks. Requires: all sealed blocks are on disk; rows
  // below the given counts do not change meanwhile.
  absl::Status Write(Segment& segment, absl::Span<const uint32_t> tail_rows, Purpose purpose,
                     absl::Time deadline);
  // Adds to a batch that what is on disk of a layer's open block goes.
  static void Delete(const Segment& segment, uint16_t layer, DiskBatch& batch);
  // Forgets what lies at or beyond row `rows` of block `block`.
  absl::Status Cut(Segment& segment, uint32_t block, uint32_t rows, absl::Time deadline);
  // Copies that of one layer into the open rows. Requires: those of Durable().end_block are
  // reserved.
  absl::Status Restore(Segment& segment, uint16_t layer, absl::Time deadline);

 private:
  absl::Status WriteInTurn(Segment& segment, absl::Span<const uint32_t> tail_rows, Purpose purpose);

  StoreCore& core_;
  ExtentReader& reader_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_TAIL_LOG_H_
