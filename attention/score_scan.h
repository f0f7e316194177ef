// Approximate logits of one query group from a score index.
#ifndef TERRACE_ATTENTION_SCORE_SCAN_H_
#define TERRACE_ATTENTION_SCORE_SCAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/score_index.h"

namespace terrace::attention {

// Working memory of a scan, reused from call to call. Not thread-safe.
class ScanScratch {
 public:
  std::vector<float> factors;
  std::vector<float> offsets;
  std::vector<float> tail;
};

// logits[h * stride + t] = Σ_i weights[h][i] * key[t][channels[i]] for t in [0, view.tokens()).
// weights: [group][channels.size()]. stride >= view.tokens().
// A logit adds its channels in their order and depends on nothing else: not on how the view is
// cut into strips, nor on the other tokens and query heads.
void ScanLogits(const ScoreView& view, absl::Span<const int32_t> channels, int group,
                const float* weights, size_t stride, ScanScratch& scratch, float* logits);

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_SCORE_SCAN_H_
