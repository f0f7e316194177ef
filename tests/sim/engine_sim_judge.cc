// What an EngineSim takes for a right answer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "tests/sim/engine_sim.h"

namespace terrace::testing {
namespace {

// In fp32 the last row chosen may be another than in fp64, if their scores are as good as equal.
void ExpectNearTie(const std::vector<uint32_t>& got, const std::vector<uint32_t>& expected,
                   const std::vector<double>& score) {
  ASSERT_EQ(got.size(), expected.size());
  std::vector<uint32_t> differing;
  std::set_symmetric_difference(got.begin(), got.end(), expected.begin(), expected.end(),
                                std::back_inserter(differing));
  double low = INFINITY;
  double high = -INFINITY;
  for (const uint32_t row : differing) {
    low = std::min(low, score[row]);
    high = std::max(high, score[row]);
  }
  ASSERT_LE(high - low, 1e-5 * std::max(std::abs(high), std::abs(low)));
}

}  // namespace

attention::Policy EngineSim::AnyPolicy() {
  if (Pick(0, 2) == 0) return attention::DensePolicy();
  const auto mean = static_cast<attention::ValueMean>(Pick(1, 3));
  auto policy = std::get<attention::SparqPolicy>(
      Sparq(static_cast<int>(Pick(1, 16)), static_cast<int>(Pick(1, 60)),
            static_cast<int>(Pick(1, 20)), static_cast<int>(Pick(0, 4)), mean));
  policy.group_score = static_cast<attention::GroupScore>(Pick(1, 3));
  return policy;
}

void EngineSim::Judge(const Sequence& s, int layer, const testing::Step& step,
                      const engine::StepResult& got, int64_t n) {
  SCOPED_TRACE(::testing::Message() << "position " << step.position << " + " << n << " of "
                                    << s.length() << ", " << attention::PolicyName(step.policy));
  const size_t width = static_cast<size_t>(geometry_.query_heads) * geometry_.head_dim;
  ASSERT_EQ(got.output.size(), n * width);
  const auto* q = reinterpret_cast<const float*>(step.q.data.data());
  for (int64_t i = 0; i < n; ++i) {
    const attention::reference::Answer expected =
        s.plain.Attend(layer, step.position + i + 1, q + i * width, step.policy);
    bool same_rows = true;
    for (int head = 0; head < geometry_.kv_heads; ++head) {
      const auto& rows = got.selections[i * geometry_.kv_heads + head].positions;
      if (rows == expected.selection[head]) continue;
      same_rows = false;
      ExpectNearTie(rows, expected.selection[head], expected.score.at(head));
    }
    if (!same_rows) continue;
    ASSERT_LT(RelativeError(expected.output, got.output.data() + i * width), 2e-5) << "I1";
  }
}

}  // namespace terrace::testing
