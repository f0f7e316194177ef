// SparQ selection (arXiv 2312.04985, Algorithm 1 with group-shared choices) on the CPU.
//
// For the query heads h of one KV head, over visible tokens t:
//   channels   the r largest of Σ_h |q_h[c]|; ties keep the lower channel
//   frac_h     Σ_{c in channels} |q_h[c]| / Σ_c |q_h[c]|
//   logit_h[t] scale / sqrt(frac_h) * Σ_{c in channels} q_h[c] K[t][c]; 0 when frac_h's numerator
//   is 0
//              (scale = 1/sqrt(d) gives the paper's temperature tau_h = sqrt(d * frac_h))
//   score[t]   over the group: sum of softmax_t, maximum of softmax_t, or sum of logits
//   rows       sinks, window, then the largest scores up to k; ties keep the lower position
//   alpha_h    Σ_{t in rows} softmax_t(logit_h)
#ifndef TERRACE_ATTENTION_SPARQ_H_
#define TERRACE_ATTENTION_SPARQ_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/head_shape.h"
#include "attention/policy.h"
#include "attention/score_index.h"
#include "attention/score_scan.h"

namespace terrace::attention {

// What one query group chose. Vectors keep their capacity when reused.
struct SparqSelection {
  // Ascending.
  std::vector<int32_t> channels;
  // Ascending.
  std::vector<uint32_t> positions;
  // [group]. Temperature 1/(scale-free factor): sqrt(d * frac_h); 0 when frac_h's numerator is 0.
  std::vector<float> tau;
  // [group]. Log-sum-exp of the approximate logits of all visible rows.
  std::vector<float> lse_all;
  // [group][positions.size()]. Approximate logits of the selected rows, so that the caller can
  // leave rows out (missed) and still know their mass.
  std::vector<float> selected_logits;
};

// Working memory of a selection, reused from call to call. Not thread-safe.
class SparqScratch {
 public:
  std::vector<float> queries;  // [group][r], scale and temperature multiplied in
  ScanScratch scan;
  std::vector<float> logits;       // [group][tokens], rows padded to cache lines
  std::vector<float> weights;      // same; exp(logit - maximum of the head)
  std::vector<float> group_score;  // [tokens]
  std::vector<uint32_t> order;
};

// Selects rows for one query group. q: [group][head_dim]. view.tokens() >= 1; the last token is
// the current one.
// Requires: ValidatePolicy(policy, shape.head_dim) is OK and the layout agrees with the shape.
void SelectSparq(const HeadShape& shape, const SparqPolicy& policy, const float* q,
                 const ScoreView& view, SparqScratch& scratch, SparqSelection& selection);

// Log-sum-exp, natural, of `logits`; -infinity when empty.
float LogSumExp(absl::Span<const float> logits);

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_SPARQ_H_
