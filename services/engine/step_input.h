// What the reading half of a step works on, after its append.
#ifndef TERRACE_SERVICES_ENGINE_STEP_INPUT_H_
#define TERRACE_SERVICES_ENGINE_STEP_INPUT_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/policy.h"
#include "kvstore/block_store.h"
#include "services/engine/sequence.h"
#include "services/engine/step.h"
#include "services/engine/work_pool.h"

namespace terrace::engine {

class Prefetcher;
class StepRecorder;

// Rows that the asker holds already.
struct HeldRows {
  // Generation of the sequence that they were read in.
  uint64_t generation = 0;
  // Ascending, per query and KV head, query-major; empty for none.
  std::vector<std::vector<uint32_t>> positions;

  // Whether the row of `slot` is held.
  bool Holds(size_t slot, uint32_t position) const {
    return slot < positions.size() &&
           std::binary_search(positions[slot].begin(), positions[slot].end(), position);
  }
};

// Query i stands at position + i and sees rows [0, position + i]. The caller holds sequence.gate
// (shared) while a step runs on it.
struct StepInput {
  kvstore::BlockStore& store;
  WorkPool& pool;
  Sequence& sequence;
  int layer = 0;
  int64_t position = 0;
  int64_t queries = 0;
  // [queries, query_heads, head_dim], finite.
  const float* q = nullptr;
  const attention::Policy& policy;
  const HeldRows& held;
  const StepOptions& options;
  // Null for none.
  StepRecorder* recorder = nullptr;
  Prefetcher* prefetcher = nullptr;

  const Geometry& geometry() const { return sequence.spec.geometry; }
  const kvstore::BlockLayout& block() const { return sequence.layout.block; }
  // [group][head_dim] of one query and KV head.
  const float* GroupQueries(int64_t query, int head) const {
    const int64_t first = query * geometry().query_heads + int64_t{head} * geometry().group();
    return q + first * geometry().head_dim;
  }
  // A request for granules `cells` of a block of rows.
  kvstore::ReadRequest RowsOf(int head, uint32_t block_index, uint64_t cells) const
      ABSL_SHARED_LOCKS_REQUIRED(sequence.gate) {
    return {.segment = sequence.RangeOf(block_index).segment.get(),
            .layer = static_cast<uint16_t>(layer),
            .head = static_cast<uint16_t>(head),
            .index = block_index,
            .cells = cells};
  }
  // Why something of one KV head could not be read.
  absl::Status Unreadable(absl::string_view what, int head, const absl::Status& why) const;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_INPUT_H_
