// The writing half of a step: rows into the tail of a sequence, blocks sealed as they fill.
#ifndef TERRACE_SERVICES_ENGINE_APPENDER_H_
#define TERRACE_SERVICES_ENGINE_APPENDER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/block_store.h"
#include "services/engine/sequence.h"
#include "services/engine/step.h"
#include "services/engine/work_pool.h"

namespace terrace::engine {

// K and V of consecutive positions of one layer, [rows, kv_heads, head_dim] each.
struct AppendRows {
  int layer = 0;
  int64_t position = 0;
  int64_t rows = 0;
  FiniteTensor k;
  FiniteTensor v;
};

class Appender {
 public:
  // The caller holds sequence.gate (shared) and sequence.writer.
  Appender(kvstore::BlockStore& store, WorkPool& pool, Sequence& sequence)
      : store_(store), pool_(pool), sequence_(sequence) {}

  // Appends rows that are new and compares those that stand already (I7).
  //  * InvalidArgument: a value that the storage dtype or the index format cannot hold.
  //  * FailedPrecondition: a gap.  AlreadyExists: other bytes stand; nothing was changed.
  //  * ResourceExhausted, DeadlineExceeded: blocks that filled before it stand, and the layer's
  //    length says so; a repeat goes on from there.
  absl::Status Append(const AppendRows& rows, absl::Time deadline);

 private:
  absl::Status CheckRange(const AppendRows& rows) const;
  // Rows [first, first + count) of KV head `head` in storage dtype.
  void Encode(const AppendRows& rows, int64_t first, int64_t count, int head, std::byte* out) const;
  // Compares rows [0, count) with what stands.
  absl::Status Compare(const AppendRows& rows, int64_t count, absl::Time deadline);
  // Writes rows from `first` on, as many as find room at once, and seals the blocks that they fill.
  // How many; at least one.
  absl::StatusOr<int64_t> Write(const AppendRows& rows, int64_t first, absl::Time deadline);
  // Makes room for blocks of the open segment from `block` on, and for the pieces of those below
  // `full_end`; where it ends. Waits for the first only.
  absl::StatusOr<uint32_t> Reserve(int layer, uint32_t block, uint32_t end, uint32_t full_end,
                                   absl::Time deadline);
  // Open rows of blocks [block, end), by block, then by head.
  std::vector<std::byte*> OpenRows(int layer, uint32_t block, uint32_t end);
  // Copies those of rows [first, first + count) that stand in `block` to its open rows.
  void Fill(const AppendRows& rows, int64_t first, int64_t count, int head, uint32_t block,
            std::byte* open) const;
  // Fills blocks [block, end) up with rows from `first` on, encodes and publishes them.
  absl::Status FillAndSeal(const AppendRows& rows, int64_t first, uint32_t block, uint32_t end);

  kvstore::BlockStore& store_;
  WorkPool& pool_;
  Sequence& sequence_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_APPENDER_H_
