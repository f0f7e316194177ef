// Running softmax of one query head, and its exact merge.
//
// After logits x_1..x_n with values v_1..v_n:
//   max = max_i x_i,  sum = Σ exp(x_i - max),  output = Σ exp(x_i - max) v_i  (not divided by sum)
// so that the attention output is output / sum and the log-sum-exp is max + log(sum), natural
// logarithm. The empty state has max = -infinity, sum = 0, output = 0 and merges as the identity.
//
// For host and device. No dependency but <cmath>.
#ifndef TERRACE_ATTENTION_SOFTMAX_STATE_H_
#define TERRACE_ATTENTION_SOFTMAX_STATE_H_

#include <cmath>

#ifdef __CUDACC__
#define TERRACE_HOST_DEVICE __host__ __device__
#else
#define TERRACE_HOST_DEVICE
#endif

namespace terrace::attention {

struct SoftmaxState {
  float max = -INFINITY;
  float sum = 0.0F;
  // [head_dim], owned by the caller.
  float* output = nullptr;

  TERRACE_HOST_DEVICE bool empty() const { return sum == 0.0F; }
  // -infinity when empty.
  TERRACE_HOST_DEVICE float log_sum_exp() const { return max + logf(sum); }
};

// Brings `into` to the state of both sets of rows. `from` is unchanged. The result does not
// depend on the order of merges but for rounding.
TERRACE_HOST_DEVICE inline void Merge(SoftmaxState& into, const SoftmaxState& from, int head_dim) {
  if (from.empty()) return;
  const float max = from.max > into.max ? from.max : into.max;
  const float keep = into.empty() ? 0.0F : expf(into.max - max);
  const float add = expf(from.max - max);
  for (int c = 0; c < head_dim; ++c) {
    into.output[c] = into.output[c] * keep + from.output[c] * add;
  }
  into.sum = into.sum * keep + from.sum * add;
  into.max = max;
}

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_SOFTMAX_STATE_H_
