#include "services/policy_check/selection_truth.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <utility>

namespace terrace::policy_check {
namespace {

using attention::reference::Answer;
using attention::reference::Problem;

std::vector<double> Rows(const Problem& problem, const std::vector<double>& matrix, int kv_head,
                         const std::vector<uint32_t>& positions) {
  std::vector<double> rows;
  for (const uint32_t position : positions) {
    const size_t row = static_cast<size_t>(kv_head) * problem.tokens + position;
    const auto first = matrix.begin() + static_cast<std::ptrdiff_t>(row * problem.head_dim);
    rows.insert(rows.end(), first, first + problem.head_dim);
  }
  return rows;
}

// Dense attention of one query head over some rows.
Answer Dense(const Problem& problem, const std::vector<double>& q, double scale,
             std::vector<double> k, std::vector<double> v) {
  Problem one;
  one.query_heads = 1;
  one.kv_heads = 1;
  one.tokens = static_cast<int>(k.size() / problem.head_dim);
  one.head_dim = problem.head_dim;
  one.scale = scale;
  one.q = q;
  one.k = std::move(k);
  one.v = std::move(v);
  return Attend(one, attention::DensePolicy());
}

// Mean over the rows that stand in for what was not selected; empty when there are none.
std::vector<double> MeanValue(const Problem& problem, attention::ValueMean mean, int kv_head,
                              const std::vector<uint32_t>& all,
                              const std::vector<uint32_t>& selection) {
  if (mean == attention::ValueMean::kOff) return {};
  std::vector<uint32_t> rows;
  if (mean == attention::ValueMean::kMean) {
    rows = all;
  } else {
    std::set_difference(all.begin(), all.end(), selection.begin(), selection.end(),
                        std::back_inserter(rows));
  }
  if (rows.empty()) return {};
  const std::vector<double> values = Rows(problem, problem.v, kv_head, rows);
  std::vector<double> result(problem.head_dim, 0.0);
  for (size_t i = 0; i < values.size(); ++i) {
    result[i % problem.head_dim] += values[i] / static_cast<double>(rows.size());
  }
  return result;
}

// The softmax mass of `selection` among `all` by approximate scores. Dense attention with the other
// channels at zero and 1/tau for a scale has just these logits; with tau 0 they are all 0.
double Alpha(const Truth& truth, int head, int kv_head, const std::vector<uint32_t>& all,
             const std::vector<uint32_t>& selection) {
  const Problem& problem = truth.problem;
  std::vector<double> q(problem.head_dim, 0.0);
  for (const int32_t c : truth.answer.channels[kv_head]) {
    q[c] = problem.q[static_cast<size_t>(head) * problem.head_dim + c];
  }
  const double tau = truth.answer.tau[head];
  const double scale = tau == 0 ? 1 : 1 / tau;
  double lse[2] = {0, 0};
  for (const bool everything : {false, true}) {
    const std::vector<uint32_t>& rows = everything ? all : selection;
    lse[everything] = Dense(problem, q, scale, Rows(problem, truth.index_k, kv_head, rows),
                            Rows(problem, problem.v, kv_head, rows))
                          .lse[0];
  }
  return std::exp(lse[0] - lse[1]);
}

}  // namespace

Truth TruthOf(const attention::Policy& policy, const Problem& problem,
              const std::vector<double>& index_k) {
  const auto* const sparq = std::get_if<attention::SparqPolicy>(&policy);
  return {policy, problem, index_k,
          sparq == nullptr ? Attend(problem, policy) : AttendSparq(problem, *sparq, index_k)};
}

GroupAnswer AnswerFor(const Truth& truth, int kv_head, const std::vector<uint32_t>& selection) {
  const Problem& problem = truth.problem;
  const auto* const sparq = std::get_if<attention::SparqPolicy>(&truth.policy);
  std::vector<uint32_t> all(problem.tokens);
  std::iota(all.begin(), all.end(), 0U);
  const std::vector<double> mean =
      sparq == nullptr ? std::vector<double>()
                       : MeanValue(problem, sparq->value_mean, kv_head, all, selection);
  GroupAnswer group;
  const int heads = problem.query_heads / problem.kv_heads;
  for (int head = kv_head * heads; head < (kv_head + 1) * heads; ++head) {
    const auto first = problem.q.begin() + static_cast<std::ptrdiff_t>(head) * problem.head_dim;
    const Answer exact = Dense(problem, {first, first + problem.head_dim}, problem.scale,
                               Rows(problem, problem.k, kv_head, selection),
                               Rows(problem, problem.v, kv_head, selection));
    const double alpha = sparq == nullptr ? 1.0 : Alpha(truth, head, kv_head, all, selection);
    group.alpha.push_back(alpha);
    for (int c = 0; c < problem.head_dim; ++c) {
      group.output.push_back(mean.empty() ? exact.output[c]
                                          : alpha * exact.output[c] + (1 - alpha) * mean[c]);
    }
  }
  return group;
}

}  // namespace terrace::policy_check
