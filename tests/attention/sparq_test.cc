#include "attention/sparq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string>

#include "attention/reference.h"
#include "tests/attention/kv_head.h"
#include "tests/attention/simd_targets.h"

namespace terrace::attention {
namespace {

using ::terrace::attention::reference::Answer;
using ::terrace::testing::ForEachSimdTarget;
using ::terrace::testing::KvHead;
using ::terrace::testing::RandomKvHead;
using ::terrace::testing::ScoreIndex;

IndexLayout Layout(const HeadShape& shape, IndexFormat format, int block_tokens = 64) {
  IndexLayout layout;
  layout.format = format;
  layout.dtype = shape.dtype;
  layout.head_dim = shape.head_dim;
  layout.block_tokens = block_tokens;
  return layout;
}

SparqSelection Select(const KvHead& head, const SparqPolicy& policy, const ScoreView& view) {
  SparqScratch scratch;
  SparqSelection selection;
  SelectSparq(head.shape, policy, head.q.data(), view, scratch, selection);
  return selection;
}

// Equal but for positions whose score lies within 1e-5 relative of the k-th.
void ExpectSameRows(const std::vector<uint32_t>& got, const std::vector<uint32_t>& expected,
                    const std::vector<double>& score, const SparqPolicy& policy) {
  ASSERT_EQ(got.size(), expected.size());
  EXPECT_TRUE(std::is_sorted(got.begin(), got.end()));
  EXPECT_EQ(std::set<uint32_t>(got.begin(), got.end()).size(), got.size());
  const auto tokens = static_cast<int64_t>(score.size());
  double kth = INFINITY;
  for (const uint32_t row : expected) {
    const bool forced = row < static_cast<uint32_t>(policy.sinks) || row >= tokens - policy.window;
    if (!forced) kth = std::min(kth, score[row]);
  }
  std::vector<uint32_t> differing;
  std::set_symmetric_difference(got.begin(), got.end(), expected.begin(), expected.end(),
                                std::back_inserter(differing));
  for (const uint32_t row : differing) {
    EXPECT_NEAR(score[row], kth, std::abs(kth) * 1e-5) << "row " << row;
  }
}

void ExpectAgrees(const KvHead& head, const SparqPolicy& policy, const ScoreIndex& index,
                  const SparqSelection& got) {
  const Answer expected = AttendSparq(ToProblem(head), policy, index.DecodedKeys());
  EXPECT_EQ(got.channels, expected.channels[0]);
  ExpectSameRows(got.positions, expected.selection[0], expected.score[0], policy);
  ASSERT_EQ(got.tau.size(), static_cast<size_t>(head.shape.group));
  ASSERT_EQ(got.lse_all.size(), static_cast<size_t>(head.shape.group));
  ASSERT_EQ(got.selected_logits.size(), head.shape.group * got.positions.size());
  for (int h = 0; h < head.shape.group; ++h) {
    EXPECT_NEAR(got.tau[h], expected.tau[h], 1e-5);
    const auto logits = absl::MakeConstSpan(got.selected_logits)
                            .subspan(h * got.positions.size(), got.positions.size());
    const double alpha = std::exp(LogSumExp(logits) - got.lse_all[h]);
    EXPECT_NEAR(alpha, expected.alpha[h], 2e-5) << "head " << h;
  }
}

struct Format {
  const char* name;
  IndexFormat format;
  Dtype dtype;
};

constexpr Format kFormats[] = {{"exact_fp32", IndexFormat::kExact, Dtype::kFloat32},
                               {"exact_bf16", IndexFormat::kExact, Dtype::kBFloat16},
                               {"exact_fp16", IndexFormat::kExact, Dtype::kFloat16},
                               {"int8_fp32", IndexFormat::kInt8, Dtype::kFloat32},
                               {"int8_bf16", IndexFormat::kInt8, Dtype::kBFloat16}};

class SparqFormat : public ::testing::TestWithParam<Format> {
 protected:
  void ExpectAgreesOn(int head_dim, int group, int tokens, const SparqPolicy& policy,
                      uint64_t seed) {
    SCOPED_TRACE(::testing::Message() << "d " << head_dim << " group " << group << " tokens "
                                      << tokens << " " << PolicyName(policy) << " seed " << seed);
    const KvHead head = RandomKvHead(head_dim, group, tokens, GetParam().dtype, seed);
    const ScoreIndex index(head, Layout(head.shape, GetParam().format));
    ExpectAgrees(head, policy, index, Select(head, policy, index.View()));
  }
};

constexpr GroupScore kGroupScores[] = {GroupScore::kSumProb, GroupScore::kSumLogit,
                                       GroupScore::kMaxProb};

TEST_P(SparqFormat, AgreesWithTheReferenceAtEveryLength) {
  uint64_t seed = 1000;
  for (const int tokens : {1, 63, 64, 65, 1023, 1024, 1025, 3000}) {
    for (const GroupScore rule : kGroupScores) {
      const SparqPolicy policy{.r = 16, .k = 40, .window = 8, .sinks = 4, .group_score = rule};
      ExpectAgreesOn(64, 4, tokens, policy, ++seed);
    }
  }
}

TEST_P(SparqFormat, AgreesWithTheReferenceAtEveryShape) {
  uint64_t seed = 2000;
  for (const int head_dim : {8, 16, 64, 128}) {
    for (const int group : {1, 2, 3, 4, 8, 13}) {
      for (const int r : {1, 3, head_dim / 4, head_dim}) {
        const SparqPolicy policy{.r = r, .k = 48, .window = 5};
        ExpectAgreesOn(head_dim, group, 700, policy, ++seed);
      }
    }
  }
}

TEST_P(SparqFormat, AgreesWithTheReferenceOnEveryInstructionSet) {
  ForEachSimdTarget([this] {
    ExpectAgreesOn(64, 4, 1100, {.r = 16, .k = 64, .window = 16, .sinks = 2}, 31);
    ExpectAgreesOn(24, 7, 333, {.r = 7, .k = 20, .group_score = GroupScore::kMaxProb}, 32);
  });
}

TEST_P(SparqFormat, BudgetWindowAndSinksAtTheirEdges) {
  constexpr int kTokens = 200;
  uint64_t seed = 3000;
  for (const int k : {1, 2, 10, kTokens - 1, kTokens, kTokens + 1, 1 << 30}) {
    for (const int window : {1, 9, kTokens - 1, kTokens, 1 << 30}) {
      for (const int sinks : {0, 3, kTokens, 1 << 30}) {
        ExpectAgreesOn(16, 2, kTokens, {.r = 5, .k = k, .window = window, .sinks = sinks}, ++seed);
      }
    }
  }
}

TEST_P(SparqFormat, TheSameBitsHoweverStripesAreCut) {
  ForEachSimdTarget([this] {
    for (const int block_tokens : {8, 64, 256}) {
      const KvHead head = RandomKvHead(32, 4, 2100, GetParam().dtype, 77);
      ScoreIndex index(head, Layout(head.shape, GetParam().format, block_tokens));
      const SparqPolicy policy{.r = 9, .k = 100, .window = 10};
      const SparqSelection whole = Select(head, policy, index.View());
      for (const int blocks : {1, 3, 5}) {
        const SparqSelection cut = Select(head, policy, index.SplitView(blocks));
        EXPECT_EQ(cut.positions, whole.positions);
        EXPECT_EQ(std::memcmp(cut.selected_logits.data(), whole.selected_logits.data(),
                              whole.selected_logits.size() * sizeof(float)),
                  0);
        EXPECT_EQ(std::memcmp(cut.lse_all.data(), whole.lse_all.data(),
                              whole.lse_all.size() * sizeof(float)),
                  0);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Formats, SparqFormat, ::testing::ValuesIn(kFormats),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Sparq, ScratchAndSelectionAreReusable) {
  SparqScratch scratch;
  SparqSelection reused;
  for (const int tokens : {3000, 10, 700}) {
    const KvHead head = RandomKvHead(64, 2, tokens, Dtype::kBFloat16, tokens);
    const ScoreIndex index(head, Layout(head.shape, IndexFormat::kInt8));
    const SparqPolicy policy{.r = 16, .k = 50, .window = 4};
    SelectSparq(head.shape, policy, head.q.data(), index.View(), scratch, reused);
    const SparqSelection fresh = Select(head, policy, index.View());
    EXPECT_EQ(reused.positions, fresh.positions);
    EXPECT_EQ(reused.selected_logits, fresh.selected_logits);
    EXPECT_EQ(reused.lse_all, fresh.lse_all);
    EXPECT_EQ(reused.tau, fresh.tau);
    EXPECT_EQ(reused.channels, fresh.channels);
  }
}

TEST(Sparq, SealingTheTailDoesNotChangeAnExactLogit) {
  const KvHead head = RandomKvHead(64, 4, 64, Dtype::kBFloat16, 12);
  const ScoreIndex sealed(head, Layout(head.shape, IndexFormat::kExact));
  const ScoreIndex open(head, Layout(head.shape, IndexFormat::kExact, 128));
  const SparqPolicy policy{.r = 16, .k = 64};
  ASSERT_EQ(open.View().tail_rows, 64);
  EXPECT_EQ(Select(head, policy, sealed.View()).selected_logits,
            Select(head, policy, open.View()).selected_logits);
}

TEST(Sparq, EqualChannelsAndRowsKeepTheLower) {
  KvHead head = RandomKvHead(16, 1, 100, Dtype::kFloat32, 1);
  std::fill(head.q.begin(), head.q.end(), -0.5F);
  std::fill(head.k.begin(), head.k.end(), 0.25F);
  std::vector<float> row(32, 0.25F);
  for (int t = 0; t < 100; ++t) {
    std::memcpy(head.rows.data() + t * head.shape.row_bytes(), row.data(), head.shape.row_bytes());
  }
  for (const IndexFormat format : {IndexFormat::kExact, IndexFormat::kInt8}) {
    const ScoreIndex index(head, Layout(head.shape, format));
    const SparqSelection got = Select(head, {.r = 3, .k = 5, .window = 2}, index.View());
    EXPECT_EQ(got.channels, (std::vector<int32_t>{0, 1, 2}));
    EXPECT_EQ(got.positions, (std::vector<uint32_t>{0, 1, 2, 98, 99}));
  }
}

TEST(Sparq, AHeadWhoseChannelsAreZeroHasLogitsZero) {
  KvHead head = RandomKvHead(16, 2, 150, Dtype::kFloat32, 2);
  std::fill(head.q.begin() + 16, head.q.end(), 0.0F);
  const ScoreIndex index(head, Layout(head.shape, IndexFormat::kInt8));
  const SparqPolicy policy{.r = 4, .k = 10};
  const SparqSelection got = Select(head, policy, index.View());
  ExpectAgrees(head, policy, index, got);
  EXPECT_EQ(got.tau[1], 0.0F);
  EXPECT_FLOAT_EQ(got.lse_all[1], std::log(150.0F));
  for (size_t i = got.positions.size(); i < got.selected_logits.size(); ++i) {
    EXPECT_EQ(got.selected_logits[i], 0.0F);
  }
}

TEST(Sparq, LogitsThatOverflowStillGiveAValidSelection) {
  KvHead head = RandomKvHead(16, 2, 300, Dtype::kFloat32, 2);
  for (float& value : head.q) value *= 1e30F;
  for (int t = 0; t < 300; t += 3) {
    const float huge = t % 2 == 0 ? 3e38F : -3e38F;
    std::memcpy(head.rows.data() + t * head.shape.row_bytes(), &huge, sizeof(huge));
  }
  const ScoreIndex index(head, Layout(head.shape, IndexFormat::kExact));
  for (const GroupScore rule : kGroupScores) {
    const SparqSelection got =
        Select(head, {.r = 16, .k = 40, .window = 3, .group_score = rule}, index.View());
    EXPECT_EQ(std::set<uint32_t>(got.positions.begin(), got.positions.end()).size(), 40U);
    EXPECT_TRUE(std::is_sorted(got.positions.begin(), got.positions.end()));
    EXPECT_EQ(got.positions.back(), 299U);
  }
}

TEST(Sparq, LogSumExpOfNothingIsMinusInfinity) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(LogSumExp({}), -kInfinity);
  EXPECT_EQ(LogSumExp({-kInfinity, -kInfinity}), -kInfinity);
}

TEST(Sparq, LogSumExpAgreesWithDoubleAtEveryLength) {
  ForEachSimdTarget([] {
    for (const int count : {1, 2, 15, 16, 17, 33, 1024, 1025, 70000}) {
      std::vector<float> logits(count);
      double sum = 0;
      for (int i = 0; i < count; ++i) {
        logits[i] = 100.0F + static_cast<float>(i * 7919 % 1000) / 100;
        sum += std::exp(static_cast<double>(logits[i]) - 100);
      }
      EXPECT_NEAR(LogSumExp(logits), 100 + std::log(sum), 2e-5) << count;
    }
  });
}

}  // namespace
}  // namespace terrace::attention
