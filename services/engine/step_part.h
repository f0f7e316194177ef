// A step that is not finished yet: what a store answers and a worker completes. Embedded and
// remote engines run the same functions on it, which is why their bits agree (I10).
//
//   kRows     rows of the selection; Attend turns it into kPartial
//   kPartial  attention over those rows, before the value mean; Finish turns it into a result
#ifndef TERRACE_SERVICES_ENGINE_STEP_PART_H_
#define TERRACE_SERVICES_ENGINE_STEP_PART_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "services/engine/step.h"

namespace terrace::engine {

enum class PartForm { kRows, kPartial };

struct StepPart {
  absl::Status status;
  bool appended = false;
  int64_t layer_length = 0;
  int64_t queries = 0;
  // Of the sequence when the step ran; rows held from another generation may be stale.
  uint64_t generation = 0;
  Geometry geometry;
  PartForm form = PartForm::kPartial;

  // [n, query_heads], natural log: approximate scores of the rows attended to, and of all rows.
  // Both 0 for dense.
  std::vector<float> lse_selected;
  std::vector<float> lse_all;
  // [n, kv_heads, head_dim]: ΣV that the value mean is taken from; empty when none is mixed.
  std::vector<float> mean_sum;
  // [n, kv_heads].
  std::vector<uint64_t> mean_rows;
  // [n * kv_heads], query-major. Always there in kRows; in kPartial when asked for.
  std::vector<Selection> selections;

  // kRows: rows that the asker did not hold, in the order of selections and positions.
  std::vector<std::byte> rows;

  // kPartial: [n, query_heads, head_dim] normalised, and [n, query_heads] exact log-sum-exp.
  std::vector<float> output;
  std::vector<float> lse;

  StepAccount account;
};

// Exact attention of one query group over rows, normalised. q: [group][head_dim];
// output: [group][head_dim]; lse: [group]. No rows give zeros and -infinity.
void AttendGroup(const Geometry& geometry, const float* q, absl::Span<const std::byte* const> rows,
                 float* output, float* lse);

// kRows to kPartial. q: [n, query_heads, head_dim]; rows: one pointer per selected position, in
// the order of selections and positions. Drops part.rows.
void AttendRowsOf(StepPart& part, const float* q, absl::Span<const std::byte* const> rows);

// Mixes the value mean in and derives alpha. Selections stay when `return_selection`.
// InvalidArgument, naming q, when finite inputs were so large that what came of them is not.
// Requires: part.form is kPartial.
StepResult Finish(StepPart part, bool return_selection);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_PART_H_
