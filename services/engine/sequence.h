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
#include "services/engine/live_quota.h"
#include "services/engine/sequence_gate.h"
#include "services/engine/sequence_info.h"
#include "services/engine/sequence_layout.h"
#include "services/engine/sequence_record.h"
#include "services/engine/token_chain.h"

namespace terrace::engine {

// ΣV of the first `blocks` blocks of one (layer, KV head), added block by block from the first, so
// that every path to a prefix gives the same bits.
struct PrefixSum {
  uint32_t blocks = 0;
  std::vector<double> sum;
};

// Locks: `gate` shared by whatever reads ranges (steps, appends, forks of it), exclusive for what
// changes them (truncate, delete, resume, park). `writer` inside it, held by one append. `sums` and
// `tokens` innermost. Layer lengths are read without a lock: rows below them are complete.
//
// Shared by the engine, which decides how long it lives, and by calls that run on it.
struct Sequence : public std::enable_shared_from_this<Sequence> {
  // Constant after construction.
  std::string handle;
  SequenceLayout layout;
  std::string tenant;
  SequenceSpec spec;
  absl::Time created;

  SequenceGate gate ABSL_ACQUIRED_BEFORE(writer);
  SequenceGate writer ABSL_ACQUIRED_BEFORE(sums_mu, tokens_mu);
  kvstore::Mutex sums_mu;
  mutable kvstore::Mutex tokens_mu;

  uint64_t epoch ABSL_GUARDED_BY(gate) = 0;
  std::vector<kvstore::SegmentRange> ranges ABSL_GUARDED_BY(gate);
  // Nobody can name it any more.
  bool closed ABSL_GUARDED_BY(gate) = false;
  // Its place among its tenant's, until it is closed.
  LiveQuota::Claim live ABSL_GUARDED_BY(gate);
  // When a closed sequence goes that is kept because its full blocks serve prefixes; it has no open
  // segment. INT64_MAX for all others. Set under the exclusive gate.
  std::atomic<int64_t> retained_until_us;
  // Retained because a look-up was promised so: it goes when its time comes, not before.
  const bool leased;
  // [layers]. Grow under `writer`, shrink under the exclusive gate.
  std::vector<std::atomic<int64_t>> layer_length;
  // [layers]. The rows of the open block were flushed before a restart or a park and are not in
  // memory yet; no row of the layer has been written since. Cleared under `writer` or the exclusive
  // gate.
  std::vector<std::atomic<bool>> tail_on_disk;
  // As the store knows its manifest. Set under the exclusive gate, cleared under either.
  std::atomic<bool> parked{false};
  std::atomic<int64_t> last_used_us{0};
  // Changes whenever rows that stood may have become others: each truncate, each start.
  std::atomic<uint64_t> generation;

  // [layers * kv_heads].
  std::vector<PrefixSum> prefix_sums ABSL_GUARDED_BY(sums_mu);

  TokenChain tokens ABSL_GUARDED_BY(tokens_mu);
  // Tokens that the manifest knows of, and from where on it says that rows are sparse. Move under
  // `writer` or the exclusive gate.
  std::atomic<int64_t> recorded_tokens{0};
  std::atomic<int64_t> recorded_sparse_from{INT64_MAX};

  // `digest` is for PrefixHasher.
  Sequence(std::string handle, SequenceLayout layout, const SequenceRecord& record,
           PrefixDigest digest);

  // Tokens held in every layer.
  int64_t length() const;
  uint32_t block_tokens() const { return layout.block.block_tokens; }
  // Whether rows of a layer below `end` are among those of tail_on_disk.
  bool NeedsTail(int layer, int64_t end) const {
    return tail_on_disk[layer] && end > layer_length[layer] / block_tokens() * block_tokens();
  }
  void Touch(absl::Time now) { last_used_us = absl::ToUnixMicros(now); }
  bool retained() const { return retained_until_us != INT64_MAX; }

  // FailedPrecondition unless `got` is empty or the sequence's.
  absl::Status CheckFingerprint(absl::string_view got) const;
  // InvalidArgument beyond the geometry.
  absl::Status CheckLayer(int layer) const;

  // Whether more tokens are known of the first `length` than the manifest knows, or other
  // provenance.
  bool KnowsMoreThanRecorded(int64_t length) const;
  // Those in blocks that have a hash.
  int64_t HashedTokens() const;
  // Takes over what `parent` knows of the first `length` tokens, all of them complete.
  void InheritTokens(const Sequence& parent, int64_t length);
  // Forgets tokens from `length` on. The hashes of blocks that are not whole any more.
  std::vector<BlockHash> CutTokens(int64_t length);
  // Whether the first blocks, `blocks` of them, are those that end in this hash.
  bool Holds(uint32_t blocks, const BlockHash& last) const;

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

  // What the manifest says, of the first `tokens_end` tokens, of which a crash leaves `durable`.
  SequenceRecord Record(int64_t tokens_end, int64_t durable) const ABSL_SHARED_LOCKS_REQUIRED(gate);
  SequenceInfo Info(const kvstore::BlockStore& store) const ABSL_SHARED_LOCKS_REQUIRED(gate);
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_H_
