#include "attention/softmax_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace terrace::attention {
namespace {

constexpr int kDim = 8;

// A state that owns its output.
struct OwnedState {
  std::vector<float> output = std::vector<float>(kDim, 0.0F);
  SoftmaxState state;

  OwnedState() { state.output = output.data(); }
  OwnedState(const OwnedState& other) : output(other.output), state(other.state) {
    state.output = output.data();
  }
  OwnedState& operator=(const OwnedState&) = delete;
};

struct Rows {
  std::vector<float> logits;
  std::vector<float> values;  // [logits.size()][kDim]
};

Rows RandomRows(std::mt19937_64& random, int count, float spread) {
  std::normal_distribution<float> normal;
  Rows rows;
  for (int i = 0; i < count; ++i) {
    rows.logits.push_back(spread * normal(random));
    for (int c = 0; c < kDim; ++c) rows.values.push_back(normal(random));
  }
  return rows;
}

OwnedState OneShot(const Rows& rows, size_t begin, size_t end) {
  OwnedState result;
  if (begin == end) return result;
  const double max = *std::max_element(rows.logits.begin() + begin, rows.logits.begin() + end);
  double sum = 0;
  std::vector<double> output(kDim);
  for (size_t i = begin; i < end; ++i) {
    const double weight = std::exp(rows.logits[i] - max);
    sum += weight;
    for (int c = 0; c < kDim; ++c) output[c] += weight * rows.values[i * kDim + c];
  }
  result.state.max = static_cast<float>(max);
  result.state.sum = static_cast<float>(sum);
  std::copy(output.begin(), output.end(), result.output.begin());
  return result;
}

void ExpectNear(const OwnedState& a, const OwnedState& b) {
  EXPECT_NEAR(a.state.log_sum_exp(), b.state.log_sum_exp(), 1e-5);
  for (int c = 0; c < kDim; ++c) {
    EXPECT_NEAR(a.output[c] / a.state.sum, b.output[c] / b.state.sum, 1e-5) << c;
  }
}

TEST(SoftmaxState, EmptyIsTheIdentityOnBothSidesToTheBit) {
  std::mt19937_64 random(1);
  const OwnedState some = OneShot(RandomRows(random, 5, 1), 0, 5);
  OwnedState left = some;
  Merge(left.state, OwnedState().state, kDim);
  OwnedState right;
  Merge(right.state, some.state, kDim);
  for (const OwnedState* merged : {&left, &right}) {
    EXPECT_EQ(merged->state.max, some.state.max);
    EXPECT_EQ(merged->state.sum, some.state.sum);
    EXPECT_EQ(std::memcmp(merged->output.data(), some.output.data(), kDim * sizeof(float)), 0);
  }
}

TEST(SoftmaxState, TwoEmptyStatesMergeToAnEmptyOne) {
  OwnedState a;
  Merge(a.state, OwnedState().state, kDim);
  EXPECT_TRUE(a.state.empty());
  EXPECT_EQ(a.state.log_sum_exp(), -INFINITY);
  EXPECT_EQ(a.output, std::vector<float>(kDim, 0.0F));
}

TEST(SoftmaxState, MergeEqualsOneShotAndIsAssociative) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const float spread = seed % 2 == 0 ? 1.0F : 40.0F;
    const Rows rows = RandomRows(random, 30, spread);
    const size_t first = random() % 31;
    const size_t second = first + random() % (31 - first);
    const OwnedState a = OneShot(rows, 0, first);
    const OwnedState b = OneShot(rows, first, second);
    const OwnedState c = OneShot(rows, second, 30);
    OwnedState left = a;
    Merge(left.state, b.state, kDim);
    Merge(left.state, c.state, kDim);
    OwnedState tail = b;
    Merge(tail.state, c.state, kDim);
    OwnedState right = a;
    Merge(right.state, tail.state, kDim);
    ExpectNear(left, right);
    ExpectNear(left, OneShot(rows, 0, 30));
  }
}

TEST(SoftmaxState, LogitsFarApartNeitherOverflowNorVanish) {
  OwnedState low;
  low.state = {-1000.0F, 1.0F, low.output.data()};
  low.output.assign(kDim, 1.0F);
  OwnedState high;
  high.state = {1000.0F, 1.0F, high.output.data()};
  high.output.assign(kDim, 2.0F);
  Merge(low.state, high.state, kDim);
  EXPECT_EQ(low.state.max, 1000.0F);
  EXPECT_EQ(low.state.sum, 1.0F);
  EXPECT_EQ(low.output, std::vector<float>(kDim, 2.0F));
}

}  // namespace
}  // namespace terrace::attention
