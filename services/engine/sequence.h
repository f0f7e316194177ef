// One sequence over the block store: its ranges of segments and how far each layer goes.
#ifndef TERRACE_SERVICES_ENGINE_SEQUENCE_H_
#define TERRACE_SERVICES_ENGINE_SEQUENCE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvstore/block_store.h"
#include "kvstore/mutex.h"
#include "services/engine/sequence_gate.h"
#include "services/engine/sequence_info.h"
#include "services/engine/sequence_layout.h"
#include "services/engine/sequence_record.h"

namespace terrace::engine {

// ΣV of the first `blocks` blocks of one (layer, KV head), added block by block from the first, so
// that every path to a prefix gives the same bits.
struct PrefixSum {
  uint32_t blocks = 0;
  std::vector<double> sum;
};

// Locks: `gate` shared by whatever reads ranges (steps, appends, forks of it), exclusive for what
// changes them (truncate, delete, resume). `writer` inside it, held by the one append. `sums`
// innermost. Layer lengths are read without a lock: rows below them are complete.
struct Sequence {
  // Constant after construction.
  std::string handle;
  SequenceLayout layout;
  std::string tenant;
  SequenceSpec spec;
  absl::Time created;

  SequenceGate gate ABSL_ACQUIRED_BEFORE(writer);
  SequenceGate writer ABSL_ACQUIRED_BEFORE(sums_mu);
  kvstore::Mutex sums_mu;

  uint64_t epoch ABSL_GUARDED_BY(gate) = 0;
  std::vector<kvstore::SegmentRange> ranges ABSL_GUARDED_BY(gate);
  bool deleted ABSL_GUARDED_BY(gate) = false;
  // [layers]. Grow under `writer`, shrink under the exclusive gate.
  std::vector<std::atomic<int64_t>> layer_length;
  // [layers]. The rows of the open block were flushed before a restart and are not in memory yet;
  // no row of the layer has been written since. Cleared under `writer` or the exclusive gate.
  std::vector<std::atomic<bool>> tail_on_disk;
  std::atomic<int64_t> last_used_us{0};
  // Changes whenever rows that stood may have become others: each truncate, each start.
  std::atomic<uint64_t> generation;

  // [layers * kv_heads].
  std::vector<PrefixSum> prefix_sums ABSL_GUARDED_BY(sums_mu);

  Sequence(std::string handle, SequenceLayout layout, const SequenceRecord& record);

  // Tokens held in every layer.
  int64_t length() const;
  uint32_t block_tokens() const { return layout.block.block_tokens; }
  // Whether rows of a layer below `end` are among those of tail_on_disk.
  bool NeedsTail(int layer, int64_t end) const {
    return tail_on_disk[layer] && end > layer_length[layer] / block_tokens() * block_tokens();
  }
  void Touch() { last_used_us = absl::ToUnixMicros(absl::Now()); }

  // FailedPrecondition unless `got` is empty or the sequence's.
  absl::Status CheckFingerprint(absl::string_view got) const;
  // InvalidArgument beyond the geometry.
  absl::Status CheckLayer(int layer) const;

  // The range that holds a block. Requires: some range does.
  const kvstore::SegmentRange& RangeOf(uint32_t block) const ABSL_SHARED_LOCKS_REQUIRED(gate);
  // The segment being written.
  kvstore::Segment& open_segment() const ABSL_SHARED_LOCKS_REQUIRED(gate) {
    return *ranges.back().segment;
  }
  // The ranges cut back to blocks [0, end_block), without an open end.
  std::vector<kvstore::SegmentRange> CutRanges(uint32_t end_block) const
      ABSL_SHARED_LOCKS_REQUIRED(gate);

  // What a crash would leave of one layer, and of all: never more than the length.
  int64_t DurableLayerLength(const kvstore::BlockStore& store, int layer) const
      ABSL_SHARED_LOCKS_REQUIRED(gate);
  int64_t DurableLength(const kvstore::BlockStore& store) const ABSL_SHARED_LOCKS_REQUIRED(gate);

  kvstore::Manifest MakeManifest() const ABSL_SHARED_LOCKS_REQUIRED(gate);
  SequenceInfo Info(const kvstore::BlockStore& store) const ABSL_SHARED_LOCKS_REQUIRED(gate);
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_H_
