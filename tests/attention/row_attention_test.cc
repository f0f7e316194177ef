#include "attention/row_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "attention/reference.h"
#include "tests/attention/kv_head.h"
#include "tests/attention/simd_targets.h"

namespace terrace::attention {
namespace {

using ::terrace::testing::ForEachSimdTarget;
using ::terrace::testing::KvHead;
using ::terrace::testing::RandomKvHead;
using ::terrace::testing::RandomQueries;

// States with their outputs, for `queries` query groups.
class States {
 public:
  States(const HeadShape& shape, int64_t queries)
      : head_dim_(shape.head_dim),
        output_(queries * shape.group * shape.head_dim, 0.0F),
        states_(queries * shape.group) {
    for (size_t i = 0; i < states_.size(); ++i) states_[i].output = &output_[i * head_dim_];
  }
  States(const States&) = delete;
  States& operator=(const States&) = delete;

  absl::Span<SoftmaxState> span() { return absl::MakeSpan(states_); }
  const SoftmaxState& state(size_t i) const { return states_[i]; }
  size_t size() const { return states_.size(); }

  // Divided by the sum.
  std::vector<double> Output(size_t i) const {
    std::vector<double> out(head_dim_);
    for (int c = 0; c < head_dim_; ++c) out[c] = states_[i].output[c] / states_[i].sum;
    return out;
  }

 private:
  int head_dim_;
  std::vector<float> output_;
  std::vector<SoftmaxState> states_;
};

void ExpectSameBits(const SoftmaxState& a, const SoftmaxState& b, int head_dim) {
  EXPECT_EQ(std::memcmp(&a.max, &b.max, sizeof(a.max)), 0);
  EXPECT_EQ(std::memcmp(&a.sum, &b.sum, sizeof(a.sum)), 0);
  EXPECT_EQ(std::memcmp(a.output, b.output, head_dim * sizeof(float)), 0);
}

double RelativeError(const std::vector<double>& got, const double* expected) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

// State i of `states` against dense attention of its query over the first `visible` rows.
void ExpectDense(const KvHead& head, const std::vector<float>& q, int64_t query, int visible,
                 const States& states) {
  KvHead seen = head;
  seen.tokens = visible;
  const int64_t width = static_cast<int64_t>(head.shape.group) * head.shape.head_dim;
  seen.q.assign(q.begin() + query * width, q.begin() + (query + 1) * width);
  reference::Problem problem = ToProblem(seen);
  problem.k.resize(static_cast<size_t>(visible) * head.shape.head_dim);
  problem.v.resize(problem.k.size());
  const reference::Answer expected = Attend(problem, DensePolicy{});
  for (int h = 0; h < head.shape.group; ++h) {
    const size_t i = query * head.shape.group + h;
    EXPECT_LT(RelativeError(states.Output(i), &expected.output[h * head.shape.head_dim]), 1e-5);
    EXPECT_NEAR(states.state(i).log_sum_exp(), expected.lse[h], 1e-5);
  }
}

std::vector<const std::byte*> Pointers(const KvHead& head, const std::vector<uint32_t>& rows) {
  std::vector<const std::byte*> pointers;
  for (const uint32_t row : rows) {
    pointers.push_back(head.rows.data() + row * head.shape.row_bytes());
  }
  return pointers;
}

std::vector<uint32_t> FirstRows(int count) {
  std::vector<uint32_t> rows(count);
  for (int i = 0; i < count; ++i) rows[i] = i;
  return rows;
}

void ExpectGatheredAgrees(int head_dim, int group, int tokens, Dtype dtype) {
  SCOPED_TRACE(::testing::Message() << "d " << head_dim << " group " << group << " rows " << tokens
                                    << " " << DtypeName(dtype) << " seed " << head_dim + tokens);
  const KvHead head = RandomKvHead(head_dim, group, tokens, dtype, head_dim + tokens);
  States states(head.shape, 1);
  RowScratch scratch;
  AttendRows(head.shape, head.q.data(), Pointers(head, FirstRows(tokens)), scratch, states.span());
  ExpectDense(head, head.q, 0, tokens, states);
}

TEST(AttendRows, AgreesWithTheReferenceAtEveryShape) {
  for (const int head_dim : {8, 16, 24, 64, 80, 128, 256, 512}) {
    for (const int group : {1, 2, 3, 4, 5, 8, 17}) {
      for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
        ExpectGatheredAgrees(head_dim, group, 70, dtype);
      }
    }
  }
}

TEST(AttendRows, AgreesWithTheReferenceAtEveryCountAndInstructionSet) {
  ForEachSimdTarget([] {
    for (const int tokens : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000}) {
      ExpectGatheredAgrees(40, 4, tokens, Dtype::kFloat32);
    }
  });
}

TEST(AttendRows, NoRowsLeaveTheStatesAlone) {
  const KvHead head = RandomKvHead(16, 2, 10, Dtype::kFloat32, 3);
  RowScratch scratch;
  States empty(head.shape, 1);
  AttendRows(head.shape, head.q.data(), {}, scratch, empty.span());
  EXPECT_TRUE(empty.state(0).empty());
  States some(head.shape, 1);
  States same(head.shape, 1);
  for (States* states : {&some, &same}) {
    AttendRows(head.shape, head.q.data(), Pointers(head, FirstRows(10)), scratch, states->span());
  }
  AttendRows(head.shape, head.q.data(), {}, scratch, some.span());
  for (int h = 0; h < 2; ++h) ExpectSameBits(some.state(h), same.state(h), 16);
}

TEST(AttendRows, WhereRowsLieDoesNotMatterToTheBit) {
  const KvHead head = RandomKvHead(64, 4, 300, Dtype::kBFloat16, 8);
  const std::vector<uint32_t> chosen = {3, 299, 7, 7, 120, 64, 63};
  const size_t row_bytes = head.shape.row_bytes();
  // A copy at odd addresses, in reverse.
  std::vector<std::byte> copy(1 + chosen.size() * row_bytes);
  std::vector<const std::byte*> moved(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    std::byte* const to = copy.data() + 1 + (chosen.size() - 1 - i) * row_bytes;
    std::memcpy(to, head.rows.data() + chosen[i] * row_bytes, row_bytes);
    moved[i] = to;
  }
  RowScratch scratch;
  States here(head.shape, 1);
  States there(head.shape, 1);
  AttendRows(head.shape, head.q.data(), Pointers(head, chosen), scratch, here.span());
  AttendRows(head.shape, head.q.data(), moved, scratch, there.span());
  for (int h = 0; h < 4; ++h) ExpectSameBits(here.state(h), there.state(h), 64);
}

TEST(AttendRows, TheOrderOfRowsMattersByRoundingOnly) {
  const KvHead head = RandomKvHead(64, 2, 500, Dtype::kFloat32, 8);
  std::vector<uint32_t> rows = FirstRows(500);
  std::shuffle(rows.begin(), rows.end(), std::mt19937_64(4));
  RowScratch scratch;
  States states(head.shape, 1);
  AttendRows(head.shape, head.q.data(), Pointers(head, rows), scratch, states.span());
  ExpectDense(head, head.q, 0, 500, states);
}

TEST(AttendRows, ContiguousRowsGiveTheBitsOfAttendBlock) {
  const KvHead head = RandomKvHead(128, 4, 200, Dtype::kBFloat16, 8);
  RowScratch scratch;
  States gathered(head.shape, 1);
  States block(head.shape, 1);
  AttendRows(head.shape, head.q.data(), Pointers(head, FirstRows(200)), scratch, gathered.span());
  AttendBlock(head.shape, head.q.data(), 1, 199, head.rows.data(), 0, 200, scratch, block.span());
  for (int h = 0; h < 4; ++h) ExpectSameBits(gathered.state(h), block.state(h), 128);
}

// Adds rows [0, rows) run by run, as a store hands them out.
void AttendRuns(const KvHead& head, const float* q, int64_t queries, int64_t position, int64_t rows,
                int64_t run, States& states) {
  RowScratch scratch;
  for (int64_t first = 0; first < rows; first += run) {
    AttendBlock(head.shape, q, queries, position, head.rows.data() + first * head.shape.row_bytes(),
                first, std::min(run, rows - first), scratch, states.span());
  }
}

TEST(AttendBlock, EveryQuerySeesUpToItsOwnPosition) {
  ForEachSimdTarget([] {
    const KvHead head = RandomKvHead(24, 3, 260, Dtype::kFloat32, 21);
    for (const int64_t position : {0, 1, 62, 63, 64, 130}) {
      constexpr int64_t kQueries = 100;
      SCOPED_TRACE(::testing::Message() << "position " << position << " seed 21");
      const std::vector<float> q = RandomQueries(head.shape, kQueries, 22);
      States states(head.shape, kQueries);
      AttendRuns(head, q.data(), kQueries, position, position + kQueries, 1024, states);
      for (const int64_t i : {0, 1, 2, 31, 32, 63, 64, 98, 99}) {
        ExpectDense(head, q, i, static_cast<int>(position + i + 1), states);
      }
    }
  });
}

TEST(AttendBlock, ManyQueriesEqualSingleOnesToTheBit) {
  ForEachSimdTarget([] {
    for (const int group : {1, 3, 4}) {
      constexpr int64_t kQueries = 37;
      constexpr int64_t kPosition = 90;
      const KvHead head = RandomKvHead(40, group, kPosition + kQueries, Dtype::kBFloat16, 23);
      const std::vector<float> q = RandomQueries(head.shape, kQueries, 24);
      for (const int64_t run : {64, 128, 1024}) {
        States together(head.shape, kQueries);
        AttendRuns(head, q.data(), kQueries, kPosition, kPosition + kQueries, run, together);
        for (int64_t i = 0; i < kQueries; ++i) {
          States alone(head.shape, 1);
          // A single step does not even have the later rows.
          AttendRuns(head, &q[i * group * 40], 1, kPosition + i, kPosition + i + 1, run, alone);
          for (int h = 0; h < group; ++h) {
            ExpectSameBits(together.state(i * group + h), alone.state(h), 40);
          }
        }
      }
    }
  });
}

TEST(AttendBlock, RunsOfWholeTilesGiveTheBitsOfOneRun) {
  const KvHead head = RandomKvHead(64, 4, 1000, Dtype::kFloat16, 25);
  States one(head.shape, 1);
  States many(head.shape, 1);
  AttendRuns(head, head.q.data(), 1, 999, 1000, 1024, one);
  AttendRuns(head, head.q.data(), 1, 999, 1000, 64, many);
  for (int h = 0; h < 4; ++h) ExpectSameBits(one.state(h), many.state(h), 64);
  ExpectDense(head, head.q, 0, 1000, one);
}

TEST(AttendBlock, RowsWhollyInTheFutureAreNotRead) {
  const KvHead head = RandomKvHead(16, 2, 1, Dtype::kFloat32, 26);
  const std::vector<float> q = RandomQueries(head.shape, 3, 27);
  RowScratch scratch;
  States states(head.shape, 3);
  AttendBlock(head.shape, q.data(), 3, 10, nullptr, 13, 1024, scratch, states.span());
  for (size_t i = 0; i < states.size(); ++i) EXPECT_TRUE(states.state(i).empty());
  AttendBlock(head.shape, q.data(), 3, 10, head.rows.data(), 12, 1, scratch, states.span());
  for (size_t i = 0; i < states.size(); ++i) EXPECT_EQ(states.state(i).empty(), i < 4) << i;
}

TEST(AttendBlock, NoRowsAndNoQueriesDoNothing) {
  const KvHead head = RandomKvHead(16, 2, 4, Dtype::kFloat32, 26);
  RowScratch scratch;
  States states(head.shape, 1);
  AttendBlock(head.shape, head.q.data(), 1, 3, head.rows.data(), 0, 0, scratch, states.span());
  EXPECT_TRUE(states.state(0).empty());
  AttendBlock(head.shape, head.q.data(), 0, 4, head.rows.data(), 0, 4, scratch, {});
}

TEST(AttendBlock, LogitsFarApartStayFinite) {
  KvHead head = RandomKvHead(16, 1, 300, Dtype::kFloat32, 28);
  head.shape.scale = 60.0F;
  States states(head.shape, 1);
  AttendRuns(head, head.q.data(), 1, 299, 300, 64, states);
  for (int c = 0; c < 16; ++c) EXPECT_TRUE(std::isfinite(states.state(0).output[c])) << c;
  EXPECT_GE(states.state(0).sum, 1.0F);
}

TEST(AddValues, SumsInOrderInDouble) {
  ForEachSimdTarget([] {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      const KvHead head = RandomKvHead(24, 1, 77, dtype, 29);
      std::vector<double> sum(24, 1.0);
      AddValues(head.shape, head.rows.data(), 77, sum.data());
      for (int c = 0; c < 24; ++c) {
        double expected = 1.0;
        for (int t = 0; t < 77; ++t) expected += head.v[t * 24 + c];
        EXPECT_EQ(sum[c], expected);
      }
    }
  });
}

TEST(MixValueMean, WeighsAttendedAgainstTheMean) {
  const std::vector<float> attended = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<float> sum = {10, 10, 10, 10, 10, 10, 10, 10};
  std::vector<float> output = attended;
  MixValueMean(8, 0.75F, sum.data(), 5, output.data(), output.data());
  for (int c = 0; c < 8; ++c) EXPECT_FLOAT_EQ(output[c], 0.75F * attended[c] + 0.25F * 2);
}

TEST(MixValueMean, WithoutRowsTheOutputIsWhatWasAttended) {
  const std::vector<float> attended = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> output(8);
  MixValueMean(8, 0.5F, nullptr, 0, attended.data(), output.data());
  EXPECT_EQ(output, attended);
}

}  // namespace
}  // namespace terrace::attention
