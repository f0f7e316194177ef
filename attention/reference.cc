#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace terrace::attention::reference {
namespace {

int Group(const Problem& problem) { return problem.query_heads / problem.kv_heads; }

double Scale(const Problem& problem) {
  return problem.scale != 0 ? problem.scale : 1 / std::sqrt(problem.head_dim);
}

const double* Query(const Problem& problem, int head) {
  return problem.q.data() + static_cast<size_t>(head) * problem.head_dim;
}

// The row of one token in `matrix`, which is k, v or what an index decodes to.
const double* Row(const Problem& problem, const std::vector<double>& matrix, int kv_head,
                  size_t token) {
  const size_t row = static_cast<size_t>(kv_head) * problem.tokens + token;
  return matrix.data() + row * problem.head_dim;
}

// The `count` largest in ascending order of index; ties keep the lower index.
std::vector<int32_t> Largest(const std::vector<double>& values, int count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

double LogSumExp(const std::vector<double>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

// Exact attention of one query head over `rows`, into answer.output and answer.lse.
void AttendSelection(const Problem& problem, int head, int kv_head,
                     const std::vector<uint32_t>& rows, Answer& answer) {
  const double* const q = Query(problem, head);
  std::vector<double> logits;
  for (const uint32_t row : rows) {
    const double* const k = Row(problem, problem.k, kv_head, row);
    logits.push_back(Scale(problem) * std::inner_product(q, q + problem.head_dim, k, 0.0));
  }
  answer.lse[head] = LogSumExp(logits);
  double* const output = answer.output.data() + static_cast<size_t>(head) * problem.head_dim;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double weight = std::exp(logits[i] - answer.lse[head]);
    const double* const v = Row(problem, problem.v, kv_head, rows[i]);
    for (int c = 0; c < problem.head_dim; ++c) output[c] += weight * v[c];
  }
}

std::vector<int32_t> Channels(const Problem& problem, int r, int kv_head) {
  std::vector<double> magnitude(problem.head_dim, 0.0);
  for (int h = kv_head * Group(problem); h < (kv_head + 1) * Group(problem); ++h) {
    for (int c = 0; c < problem.head_dim; ++c) magnitude[c] += std::abs(Query(problem, h)[c]);
  }
  return Largest(magnitude, r);
}

// Approximate logits of one query head, and its tau.
std::vector<double> ApproximateLogits(const Problem& problem, int head, int kv_head,
                                      const std::vector<int32_t>& channels,
                                      const std::vector<double>& index_k, double& tau) {
  const double* const q = Query(problem, head);
  double covered = 0;
  double all = 0;
  for (const int32_t c : channels) covered += std::abs(q[c]);
  for (int c = 0; c < problem.head_dim; ++c) all += std::abs(q[c]);
  std::vector<double> logits(problem.tokens, 0.0);
  tau = covered == 0 ? 0 : std::sqrt(problem.head_dim * covered / all);
  if (covered == 0) return logits;
  const double factor = Scale(problem) / std::sqrt(covered / all);
  for (int t = 0; t < problem.tokens; ++t) {
    const double* const k = Row(problem, index_k, kv_head, t);
    for (const int32_t c : channels) logits[t] += factor * q[c] * k[c];
  }
  return logits;
}

// score += what one query head contributes.
void AddToGroup(GroupScore group_score, const std::vector<double>& logits, double lse,
                std::vector<double>& score) {
  for (size_t t = 0; t < score.size(); ++t) {
    const double probability = std::exp(logits[t] - lse);
    switch (group_score) {
      case GroupScore::kSumProb:
        score[t] += probability;
        break;
      case GroupScore::kSumLogit:
        score[t] += logits[t];
        break;
      case GroupScore::kMaxProb:
        score[t] = std::max(score[t], probability);
        break;
    }
  }
}

std::vector<uint32_t> Select(const SparqPolicy& policy, const std::vector<double>& score) {
  const auto tokens = static_cast<int64_t>(score.size());
  std::vector<double> raised = score;
  int64_t forced = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    if (t >= policy.sinks && t < tokens - policy.window) continue;
    raised[t] = std::numeric_limits<double>::infinity();
    ++forced;
  }
  const int64_t rows = std::min(tokens, std::max<int64_t>(policy.k, forced));
  const std::vector<int32_t> largest = Largest(raised, static_cast<int>(rows));
  return {largest.begin(), largest.end()};
}

// Mixes the mean value into the output of one head.
void MixMean(const Problem& problem, ValueMean value_mean, int head, int kv_head,
             const std::vector<uint32_t>& selection, Answer& answer) {
  if (value_mean == ValueMean::kOff) return;
  std::vector<bool> left_out(problem.tokens, true);
  if (value_mean == ValueMean::kResidual) {
    for (const uint32_t row : selection) left_out[row] = false;
  }
  std::vector<double> sum(problem.head_dim, 0.0);
  int rows = 0;
  for (int t = 0; t < problem.tokens; ++t) {
    if (!left_out[t]) continue;
    ++rows;
    for (int c = 0; c < problem.head_dim; ++c) sum[c] += Row(problem, problem.v, kv_head, t)[c];
  }
  if (rows == 0) return;
  double* const output = answer.output.data() + static_cast<size_t>(head) * problem.head_dim;
  const double alpha = answer.alpha[head];
  for (int c = 0; c < problem.head_dim; ++c) {
    output[c] = alpha * output[c] + (1 - alpha) * sum[c] / rows;
  }
}

Answer EmptyAnswer(const Problem& problem) {
  Answer answer;
  answer.alpha.assign(problem.query_heads, 1.0);
  answer.lse.assign(problem.query_heads, 0.0);
  answer.output.assign(static_cast<size_t>(problem.query_heads) * problem.head_dim, 0.0);
  return answer;
}

Answer AttendDense(const Problem& problem) {
  Answer answer = EmptyAnswer(problem);
  std::vector<uint32_t> all(problem.tokens);
  std::iota(all.begin(), all.end(), 0U);
  answer.selection.assign(problem.kv_heads, all);
  for (int h = 0; h < problem.query_heads; ++h) {
    AttendSelection(problem, h, h / Group(problem), all, answer);
  }
  return answer;
}

}  // namespace

Answer Attend(const Problem& problem, const Policy& policy) {
  const auto* const sparq = std::get_if<SparqPolicy>(&policy);
  return sparq == nullptr ? AttendDense(problem) : AttendSparq(problem, *sparq, problem.k);
}

Answer AttendSparq(const Problem& problem, const SparqPolicy& policy,
                   const std::vector<double>& index_k) {
  Answer answer = EmptyAnswer(problem);
  answer.tau.assign(problem.query_heads, 0.0);
  const int group = Group(problem);
  for (int kv_head = 0; kv_head < problem.kv_heads; ++kv_head) {
    answer.channels.push_back(Channels(problem, policy.r, kv_head));
    std::vector<double> score(problem.tokens, 0.0);
    std::vector<std::vector<double>> logits(group);
    std::vector<double> lse(group);
    for (int i = 0; i < group; ++i) {
      const int head = kv_head * group + i;
      logits[i] = ApproximateLogits(problem, head, kv_head, answer.channels.back(), index_k,
                                    answer.tau[head]);
      lse[i] = LogSumExp(logits[i]);
      AddToGroup(policy.group_score, logits[i], lse[i], score);
    }
    answer.selection.push_back(Select(policy, score));
    answer.score.push_back(std::move(score));
    const std::vector<uint32_t>& selection = answer.selection.back();
    for (int i = 0; i < group; ++i) {
      const int head = kv_head * group + i;
      answer.alpha[head] = 0;
      for (const uint32_t row : selection) answer.alpha[head] += std::exp(logits[i][row] - lse[i]);
      AttendSelection(problem, head, kv_head, selection, answer);
      MixMean(problem, policy.value_mean, head, kv_head, selection, answer);
    }
  }
  return answer;
}

}  // namespace terrace::attention::reference
