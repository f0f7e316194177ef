// Exact attention over stored rows on the CPU, fp32 accumulation.
#ifndef TERRACE_ATTENTION_ROW_ATTENTION_H_
#define TERRACE_ATTENTION_ROW_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/head_shape.h"
#include "attention/softmax_state.h"

namespace terrace::attention {

// Working memory, reused from call to call. Not thread-safe.
class RowScratch {
 public:
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> logits;
  std::vector<float> mixed;
};

// Adds `rows` (each K then V in shape.dtype) to the states of one query group.
// q: [group][head_dim]. states: [group], each with its own output [head_dim].
// The result depends on the order of rows only by rounding, and on nothing else: the same rows
// in the same order give the same bits wherever they lie in memory.
void AttendRows(const HeadShape& shape, const float* q, absl::Span<const std::byte* const> rows,
                RowScratch& scratch, absl::Span<SoftmaxState> states);

// Adds `row_count` contiguous rows at positions [first_position, first_position + row_count) to
// the states of `queries` query groups; query i stands at query_position + i and sees rows up
// to its own position. q: [queries][group][head_dim]. states: [queries][group].
// A query's result does not depend on the other queries of the call, to the bit, when the same
// runs of rows are added in the same order.
// Requires: row_count <= 1024.
void AttendBlock(const HeadShape& shape, const float* q, int64_t queries, int64_t query_position,
                 const std::byte* rows, int64_t first_position, int64_t row_count,
                 RowScratch& scratch, absl::Span<SoftmaxState> states);

// Adds Σ V of contiguous rows to sum[head_dim], in order of rows, in double.
void AddValues(const HeadShape& shape, const std::byte* rows, int64_t row_count, double* sum);

// output[c] = alpha * attended[c] + (1 - alpha) * mean_sum[c] / mean_rows. With mean_rows 0 the
// output is `attended`. May work in place.
void MixValueMean(int head_dim, float alpha, const float* mean_sum, uint64_t mean_rows,
                  const float* attended, float* output);

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_ROW_ATTENTION_H_
