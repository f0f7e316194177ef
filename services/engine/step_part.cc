#include "services/engine/step_part.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/row_attention.h"
#include "attention/softmax_state.h"

namespace terrace::engine {

void AttendGroup(const Geometry& geometry, const float* q, absl::Span<const std::byte* const> rows,
                 float* output, float* lse) {
  thread_local attention::RowScratch scratch;
  const int dim = geometry.head_dim;
  std::vector<attention::SoftmaxState> states(geometry.group());
  std::fill_n(output, states.size() * dim, 0.0F);
  for (size_t h = 0; h < states.size(); ++h) states[h].output = output + h * dim;
  attention::AttendRows(geometry.head_shape(), q, rows, scratch, absl::MakeSpan(states));
  for (size_t h = 0; h < states.size(); ++h) {
    lse[h] = states[h].log_sum_exp();
    if (states[h].empty()) continue;
    for (int c = 0; c < dim; ++c) states[h].output[c] /= states[h].sum;
  }
}

void AttendRowsOf(StepPart& part, const float* q, absl::Span<const std::byte* const> rows) {
  const Geometry& geometry = part.geometry;
  const size_t group_floats = static_cast<size_t>(geometry.group()) * geometry.head_dim;
  const size_t groups = part.selections.size();
  part.output.resize(groups * group_floats);
  part.lse.resize(groups * geometry.group());
  size_t next = 0;
  for (size_t g = 0; g < groups; ++g) {
    const size_t count = part.selections[g].positions.size();
    AttendGroup(geometry, q + g * group_floats, rows.subspan(next, count),
                part.output.data() + g * group_floats, part.lse.data() + g * geometry.group());
    next += count;
  }
  part.rows.clear();
  part.form = PartForm::kPartial;
}

namespace {

// Outputs are sums of values under weights of at most 1, so that only logits, or values near the
// end of the range, overflow.
absl::Status CheckFinite(const StepPart& part) {
  const Geometry& geometry = part.geometry;
  const size_t dim = geometry.head_dim;
  for (size_t h = 0; h < part.lse_all.size(); ++h) {
    const float* output = part.output.data() + h * dim;
    const bool finite = std::isfinite(part.lse_all[h]) && !std::isnan(part.lse_selected[h]) &&
                        std::all_of(output, output + dim, [](float x) { return std::isfinite(x); });
    if (finite) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("q: got query ", h / geometry.query_heads, ", head ", h % geometry.query_heads,
                     " out of range: its attention over the keys and values that stand is not "
                     "finite in fp32, expected smaller magnitudes"));
  }
  return absl::OkStatus();
}

}  // namespace

StepResult Finish(StepPart part, bool return_selection) {
  StepResult result;
  result.status = std::move(part.status);
  result.appended = part.appended;
  result.layer_length = part.layer_length;
  result.queries = part.queries;
  result.account = std::move(part.account);
  if (!result.status.ok()) return result;

  const Geometry& geometry = part.geometry;
  const size_t dim = geometry.head_dim;
  const size_t group = geometry.group();
  result.account.alpha.resize(part.lse_all.size());
  for (size_t h = 0; h < part.lse_all.size(); ++h) {
    result.account.alpha[h] = std::min(1.0F, std::exp(part.lse_selected[h] - part.lse_all[h]));
  }
  if (!part.mean_sum.empty()) {
    for (size_t h = 0; h < part.lse_all.size(); ++h) {
      float* output = part.output.data() + h * dim;
      attention::MixValueMean(geometry.head_dim, result.account.alpha[h],
                              part.mean_sum.data() + h / group * dim, part.mean_rows[h / group],
                              output, output);
    }
  }
  result.status = CheckFinite(part);
  if (!result.status.ok()) {
    result.account.alpha.clear();
    return result;
  }
  result.output = std::move(part.output);
  if (return_selection) result.selections = std::move(part.selections);
  return result;
}

}  // namespace terrace::engine
