#include "attention/sparq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attention/aligned_floats.h"
#include "attention/top_rows.h"

// The order matters: every target sees what follows foreach_target.h anew.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/sparq.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

float Largest(const float* values, size_t count) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  float largest = -std::numeric_limits<float>::infinity();
  size_t i = 0;
  if (count >= lanes) {
    auto even = hn::LoadU(d, values);
    auto odd = even;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
      even = hn::Max(even, hn::LoadU(d, values + i));
      odd = hn::Max(odd, hn::LoadU(d, values + i + lanes));
    }
    largest = hn::GetLane(hn::MaxOfLanes(d, hn::Max(even, odd)));
  }
  for (; i < count; ++i) largest = std::max(largest, values[i]);
  return largest;
}

// weights[i] = exp(logits[i] - max), unless weights is null; their sum.
// Positions are summed in fixed pieces, so that the sum depends on the values alone, and each
// piece in fp32 is short enough to lose nothing that matters.
double Exponentials(const float* logits, size_t count, float max, float* weights) {
  constexpr size_t kPiece = 1024;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto shift = hn::Set(d, max);
  double total = 0;
  for (size_t begin = 0; begin < count; begin += kPiece) {
    const size_t end = std::min(count, begin + kPiece);
    auto sum = hn::Zero(d);
    size_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, logits + i), shift));
      sum = hn::Add(sum, weight);
      if (weights != nullptr) hn::StoreU(weight, d, weights + i);
    }
    if (i < end) {
      // Masked loads may touch what is masked; the rest goes through a vector of its own.
      HWY_ALIGN float rest[hn::MaxLanes(d)];
      std::fill_n(rest, lanes, -std::numeric_limits<float>::infinity());
      std::copy(logits + i, logits + end, rest);
      const auto weight = hn::Exp(d, hn::Sub(hn::Load(d, rest), shift));
      sum = hn::Add(sum, weight);
      hn::Store(weight, d, rest);
      if (weights != nullptr) std::copy_n(rest, end - i, weights + i);
    }
    total += hn::GetLane(hn::SumOfLanes(d, sum));
  }
  return total;
}

template <class D>
HWY_INLINE void GroupVector(D d, GroupScore rule, const float* in, size_t stride,
                            const float* factors, int group, float* out) {
  auto score = hn::Mul(hn::LoadU(d, in), hn::Set(d, factors[0]));
  for (int h = 1; h < group; ++h) {
    const auto value = hn::LoadU(d, in + h * stride);
    const auto factor = hn::Set(d, factors[h]);
    score = rule == GroupScore::kMaxProb ? hn::Max(score, hn::Mul(value, factor))
                                         : hn::MulAdd(value, factor, score);
  }
  // Infinite logits make NaN; rank them last rather than let them upset the selection.
  const auto lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  hn::StoreU(hn::IfThenElse(hn::Gt(score, lowest), score, lowest), d, out);
}

// score[t] = sum or maximum over h of factors[h] * values[h][t]. values: [group][stride].
void GroupScores(GroupScore rule, const float* values, size_t stride, size_t tokens,
                 const float* factors, int group, float* score) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const size_t lanes = hn::Lanes(d);
  size_t t = 0;
  for (; t + lanes <= tokens; t += lanes) {
    GroupVector(d, rule, values + t, stride, factors, group, score + t);
  }
  for (; t < tokens; ++t) {
    GroupVector(one, rule, values + t, stride, factors, group, score + t);
  }
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {
namespace {

HWY_EXPORT(Largest);
HWY_EXPORT(Exponentials);
HWY_EXPORT(GroupScores);

// The r channels with the largest Σ_h |q_h[c]|, ascending.
void ChooseChannels(const HeadShape& shape, int r, const float* q, std::vector<int32_t>& channels) {
  std::vector<double> magnitude(shape.head_dim, 0.0);
  for (int h = 0; h < shape.group; ++h) {
    for (int c = 0; c < shape.head_dim; ++c) {
      magnitude[c] += std::abs(static_cast<double>(q[h * shape.head_dim + c]));
    }
  }
  channels.resize(shape.head_dim);
  std::iota(channels.begin(), channels.end(), 0);
  if (r < shape.head_dim) {
    std::nth_element(channels.begin(), channels.begin() + r, channels.end(),
                     [&](int32_t a, int32_t b) {
                       return magnitude[a] != magnitude[b] ? magnitude[a] > magnitude[b] : a < b;
                     });
  }
  channels.resize(r);
  std::sort(channels.begin(), channels.end());
}

// The chosen channels of q with scale and temperature multiplied in: [group][channels]; zeros
// for a head whose chosen channels are all zero. Sets selection.tau.
void FoldQueries(const HeadShape& shape, const float* q, SparqSelection& selection,
                 std::vector<float>& weights) {
  weights.clear();
  selection.tau.clear();
  for (int h = 0; h < shape.group; ++h) {
    const float* const head = q + static_cast<size_t>(h) * shape.head_dim;
    double covered = 0;
    double all = 0;
    for (const int32_t c : selection.channels) covered += std::abs(static_cast<double>(head[c]));
    for (int c = 0; c < shape.head_dim; ++c) all += std::abs(static_cast<double>(head[c]));
    const double fraction = covered == 0 ? 0 : covered / all;
    const double factor = covered == 0 ? 0 : shape.scale / std::sqrt(fraction);
    selection.tau.push_back(static_cast<float>(std::sqrt(shape.head_dim * fraction)));
    for (const int32_t c : selection.channels) {
      weights.push_back(static_cast<float>(factor * head[c]));
    }
  }
}

// Scores every position for the group; sets selection.lse_all. logits: [group][stride].
const float* ScoreGroup(GroupScore rule, int group, const float* logits, size_t stride,
                        size_t tokens, SparqScratch& scratch, SparqSelection& selection) {
  const bool of_logits = rule == GroupScore::kSumLogit;
  float* const weights = of_logits ? nullptr : AlignedFloats(scratch.weights, group * stride);
  selection.lse_all.clear();
  std::vector<float> factors;
  for (int h = 0; h < group; ++h) {
    const float* const head = logits + h * stride;
    const float max = HWY_DYNAMIC_DISPATCH(Largest)(head, tokens);
    const double sum = HWY_DYNAMIC_DISPATCH(Exponentials)(
        head, tokens, max, of_logits ? nullptr : weights + h * stride);
    selection.lse_all.push_back(static_cast<float>(max + std::log(sum)));
    factors.push_back(of_logits ? 1.0F : static_cast<float>(1 / sum));
  }
  float* const score = AlignedFloats(scratch.group_score, tokens);
  HWY_DYNAMIC_DISPATCH(GroupScores)
  (rule, of_logits ? logits : weights, stride, tokens, factors.data(), group, score);
  return score;
}

// Sinks, window, and between them the largest scores up to k rows in all.
void ChoosePositions(const SparqPolicy& policy, const float* score, size_t tokens,
                     std::vector<uint32_t>& order, std::vector<uint32_t>& positions) {
  const size_t window = std::min<size_t>(policy.window, tokens);
  const size_t sinks = std::min<size_t>(policy.sinks, tokens - window);
  const size_t between = tokens - window - sinks;
  const size_t forced = sinks + window;
  const auto budget = static_cast<size_t>(policy.k);
  const size_t chosen = std::min(between, budget > forced ? budget - forced : 0);
  positions.resize(forced + chosen);
  auto out = positions.begin();
  std::iota(out, out + sinks, 0U);
  out += sinks;
  if (chosen == between) {
    std::iota(out, out + chosen, static_cast<uint32_t>(sinks));
  } else {
    const auto top = TopRows(score, sinks, sinks + between, chosen, order);
    std::copy(top.begin(), top.end(), out);
  }
  out += chosen;
  std::iota(out, positions.end(), static_cast<uint32_t>(tokens - window));
}

}  // namespace

void SelectSparq(const HeadShape& shape, const SparqPolicy& policy, const float* q,
                 const ScoreView& view, SparqScratch& scratch, SparqSelection& selection) {
  const auto tokens = static_cast<size_t>(view.tokens());
  const size_t stride = WholeLines(tokens);
  ChooseChannels(shape, policy.r, q, selection.channels);
  FoldQueries(shape, q, selection, scratch.queries);
  float* const logits = AlignedFloats(scratch.logits, shape.group * stride);
  ScanLogits(view, selection.channels, shape.group, scratch.queries.data(), stride, scratch.scan,
             logits);
  const float* const score =
      ScoreGroup(policy.group_score, shape.group, logits, stride, tokens, scratch, selection);
  ChoosePositions(policy, score, tokens, scratch.order, selection.positions);
  selection.selected_logits.clear();
  for (int h = 0; h < shape.group; ++h) {
    for (const uint32_t position : selection.positions) {
      selection.selected_logits.push_back(logits[h * stride + position]);
    }
  }
}

float LogSumExp(absl::Span<const float> logits) {
  if (logits.empty()) return -std::numeric_limits<float>::infinity();
  const float max = HWY_DYNAMIC_DISPATCH(Largest)(logits.data(), logits.size());
  // Of nothing but -infinity: no weight at all.
  if (std::isinf(max)) return max;
  const double sum = HWY_DYNAMIC_DISPATCH(Exponentials)(logits.data(), logits.size(), max, nullptr);
  return static_cast<float>(max + std::log(sum));
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
