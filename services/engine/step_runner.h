// Runs the reading half of one step over one sequence: select, gather, attend.
#ifndef TERRACE_SERVICES_ENGINE_STEP_RUNNER_H_
#define TERRACE_SERVICES_ENGINE_STEP_RUNNER_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "services/engine/sequence.h"
#include "services/engine/step.h"
#include "services/engine/step_part.h"
#include "services/engine/work_pool.h"

namespace terrace::engine {

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

// What a step reads. q: [queries, query_heads, head_dim], finite.
struct StepInput {
  int layer = 0;
  int64_t position = 0;
  int64_t queries = 0;
  const float* q = nullptr;
  const attention::Policy* policy = nullptr;
  const HeldRows* held = nullptr;
};

// Valid for one step. The caller holds sequence.gate (shared) for its whole life.
class StepRunner {
 public:
  StepRunner(kvstore::BlockStore& store, WorkPool& pool, Sequence& sequence, const StepInput& input,
             const StepOptions& options);

  // Fills sums, selections, rows or output, and the account of `part`. A dense policy always
  // gives kPartial: it selects nothing to ship.
  // DataLoss, DeadlineExceeded or Unavailable when what the policy must read cannot be read.
  absl::Status Run(PartForm form, StepPart& part);

 private:
  struct HeadWork;

  absl::Status RunDense(StepPart& part);
  absl::Status DenseHead(int head, StepPart& part, TierRead& host, TierRead& disk);
  absl::Status RunSparq(const attention::SparqPolicy& policy, PartForm form, StepPart& part);
  absl::Status SelectHead(const attention::SparqPolicy& policy, int64_t query, int head,
                          HeadWork& work);
  absl::Status PinTail(int head, int64_t visible, HeadWork& work);
  void SumValues(int head, int64_t visible, HeadWork& work);
  absl::Status GatherRows(int64_t query, std::vector<HeadWork>& heads, StepPart& part);
  absl::Status LeaveOut(std::vector<HeadWork>& heads, StepPart& part);
  void AttendHeads(int64_t query, PartForm form, std::vector<HeadWork>& heads, StepPart& part);
  void Account(const std::vector<HeadWork>& heads, StepPart& part);

  const Geometry& geometry() const { return sequence_.spec.geometry; }
  const float* GroupQueries(int64_t query, int head) const;

  kvstore::BlockStore& store_;
  WorkPool& pool_;
  Sequence& sequence_;
  const StepInput& input_;
  const StepOptions& options_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_RUNNER_H_
