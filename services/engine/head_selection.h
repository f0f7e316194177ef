// The selecting half of a SparQ step for one query and KV head.
#ifndef TERRACE_SERVICES_ENGINE_HEAD_SELECTION_H_
#define TERRACE_SERVICES_ENGINE_HEAD_SELECTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "attention/sparq.h"
#include "kvstore/block_store.h"
#include "services/engine/step_input.h"

namespace terrace::engine {

class HeadSelection {
 public:
  HeadSelection(const StepInput& input, int64_t query, int head);

  // Scores and chooses; sums V when the policy mixes a mean.
  absl::Status Run() ABSL_SHARED_LOCKS_REQUIRED(input_.sequence.gate);

  int head() const { return head_; }
  // Rows that the query sees.
  int64_t visible() const { return visible_; }
  attention::SparqSelection& chosen() { return chosen_; }
  // Softmax mass of each chosen row by its approximate scores, mean over the group.
  const std::vector<float>& masses() const { return masses_; }
  // What a chosen row is worth to whoever places its block: its mass, or all there is for the first
  // block and for the window, which every step needs again.
  float PlacementMass(size_t chosen) const;
  // ΣV of all visible rows; empty when the policy mixes no mean.
  std::vector<double>& value_sum() { return value_sum_; }
  const TierRead& host() const { return host_; }
  const TierRead& disk() const { return disk_; }

 private:
  // Blocks [0, full) as stripes, in order of position.
  void PlanStripes(uint32_t full_blocks) ABSL_SHARED_LOCKS_REQUIRED(input_.sequence.gate);
  absl::Status ReadStripes(const kvstore::Pins& pins);
  absl::Status PinTail() ABSL_SHARED_LOCKS_REQUIRED(input_.sequence.gate);
  void SumValues();
  void WeighRows();

  const StepInput& input_;
  const attention::SparqPolicy& policy_;
  const int64_t query_;
  const int head_;
  const int64_t visible_;
  attention::SparqSelection chosen_;
  std::vector<float> masses_;
  std::vector<kvstore::ReadRequest> requests_;
  std::vector<attention::IndexStrip> strips_;
  // Rows after the last full block.
  kvstore::Pins tail_pins_;
  const std::byte* tail_ = nullptr;
  uint32_t tail_rows_ = 0;
  bool tail_from_disk_ = false;
  std::vector<double> value_sum_;
  TierRead host_;
  TierRead disk_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_HEAD_SELECTION_H_
