#include "services/policy_check/judge.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/services/policy_check/vector_case.h"
#include "tests/status_matchers.h"

namespace terrace::policy_check {
namespace {

using attention::SparqPolicy;
using attention::ValueMean;
using attention::reference::Answer;
using ::terrace::testing::Expect;
using ::terrace::testing::IsOk;
using ::terrace::testing::RandomCase;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr SparqPolicy kPolicy = {.r = 5, .k = 12, .window = 3, .sinks = 2};

StoredCase Stored(const VectorCase& vector, const StoreFormat& format = {}) {
  absl::StatusOr<StoredCase> stored = Store(vector.problem, format);
  EXPECT_OK(stored);
  return *std::move(stored);
}

// Problems of an answer to the case, with fp32 rows and an exact index.
std::vector<std::string> Problems(const VectorCase& vector, const Answer& answer) {
  return Judge(vector, Stored(vector)).Check(answer, /*tells_tau=*/true).problems;
}

TEST(Judge, AcceptsTheReferenceInEveryFormat) {
  uint64_t seed = 100;
  for (const ValueMean mean : {ValueMean::kOff, ValueMean::kMean, ValueMean::kResidual}) {
    SparqPolicy policy = kPolicy;
    policy.value_mean = mean;
    const VectorCase vector = RandomCase({}, policy, ++seed);
    for (const auto storage :
         {attention::Dtype::kFloat32, attention::Dtype::kBFloat16, attention::Dtype::kFloat16}) {
      for (const auto index : {attention::IndexFormat::kExact, attention::IndexFormat::kInt8}) {
        const Judge judge(vector, Stored(vector, {.storage = storage, .index = index}));
        EXPECT_THAT(judge.CheckFile(), IsEmpty());
        const Verdict verdict = judge.Check(judge.stored(), true);
        EXPECT_THAT(verdict.problems, IsEmpty()) << "seed " << seed;
        EXPECT_EQ(verdict.errors.stored_output, 0.0);
      }
    }
  }
}

TEST(Judge, NoticesEveryWrongValue) {
  const VectorCase vector = RandomCase({}, kPolicy, 1);
  const Answer right = Attend(vector.problem, vector.policy);
  ASSERT_THAT(Problems(vector, right), IsEmpty());

  Answer wrong = right;
  wrong.output[17] *= 1.001;
  EXPECT_THAT(Problems(vector, wrong),
              Contains(AllOf(HasSubstr("against the file: output: relative error"),
                             HasSubstr("allowed 1e-05; first off at head 1, element 1: got"))));
  wrong = right;
  wrong.output[5] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("head 0, element 5: got nan")));
  wrong = right;
  wrong.alpha[2] += 1.1e-5;
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("alpha of head 2: got")));
  wrong.alpha[2] = right.alpha[2] + 0.9e-5;
  EXPECT_THAT(Problems(vector, wrong), IsEmpty());
  wrong = right;
  wrong.tau[3] *= 1 + 1.1e-5;
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("tau of head 3: got")));
  wrong.tau[3] = right.tau[3] * (1 + 0.9e-5);
  EXPECT_THAT(Problems(vector, wrong), IsEmpty());
  wrong = right;
  ++wrong.channels[1].back();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("channels of KV head 1: got [")));
}

TEST(Judge, NoticesMissingAndSuperfluousValues) {
  const VectorCase vector = RandomCase({}, kPolicy, 2);
  const Answer right = Attend(vector.problem, vector.policy);
  Answer wrong = right;
  wrong.alpha.pop_back();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("alpha: got 3 values, expected 4")));
  wrong = right;
  wrong.output.push_back(0);
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("output: got 65 values, expected 64")));
  wrong = right;
  wrong.selection.pop_back();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("selection: got 1 values, expected 2")));
  wrong = right;
  wrong.channels.clear();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("channels: got 0 values, expected 2")));
  wrong = right;
  wrong.tau.clear();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("tau: got 0 values, expected 4")));
  const Judge judge(vector, Stored(vector));
  EXPECT_THAT(judge.Check(wrong, /*tells_tau=*/false).problems, IsEmpty());
}

TEST(Judge, NoticesWhatIsNoSelection) {
  const VectorCase vector = RandomCase({}, kPolicy, 3);
  const Answer right = Attend(vector.problem, vector.policy);
  for (const std::vector<uint32_t>& rows :
       {std::vector<uint32_t>{}, {0, 1, 1}, {3, 2}, {0, 90}, {0, 1, 87, 88, 89}}) {
    Answer wrong = right;
    wrong.selection[1] = rows;
    EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("selection of KV head 1: got")));
  }
}

TEST(Judge, AllowsNoTauForAZeroHead) {
  VectorCase vector = RandomCase({}, kPolicy, 4);
  std::fill_n(vector.problem.q.begin() + 16, 16, 0.0);
  Expect(vector);
  Answer answer = Attend(vector.problem, vector.policy);
  ASSERT_EQ(answer.tau[1], 0.0);
  EXPECT_THAT(Problems(vector, answer), IsEmpty());
  answer.tau[1] = 1e-30;
  EXPECT_THAT(Problems(vector, answer),
              Contains(HasSubstr("tau of head 1: got 1e-30, expected 0")));
}

// The row that the policy chose last of its own, and the best that it left out.
struct Border {
  uint32_t last = 0;
  uint32_t next = 0;
};

Border BorderOf(const Answer& answer, int head) {
  const std::vector<double>& score = answer.score[head];
  const std::vector<uint32_t>& rows = answer.selection[head];
  Border border;
  double least = INFINITY;
  double most = -INFINITY;
  for (uint32_t row = kPolicy.sinks; row < score.size() - kPolicy.window; ++row) {
    const bool chosen = std::binary_search(rows.begin(), rows.end(), row);
    if (chosen && score[row] < least) {
      least = score[row];
      border.last = row;
    }
    if (!chosen && score[row] > most) {
      most = score[row];
      border.next = row;
    }
  }
  return border;
}

void Exchange(std::vector<uint32_t>& rows, uint32_t out, uint32_t in) {
  std::replace(rows.begin(), rows.end(), out, in);
  std::sort(rows.begin(), rows.end());
}

// A case whose best row left out of KV head 0 has the key of the last one in, but for `shift` in
// one channel, which brings their scores as close as is wished; values stay different.
VectorCase NearTie(double shift, Border& border, ValueMean mean) {
  SparqPolicy policy = kPolicy;
  policy.value_mean = mean;
  VectorCase vector = RandomCase({}, policy, 5);
  const Answer answer = Attend(vector.problem, vector.policy);
  border = BorderOf(answer, 0);
  const auto row = [&vector](uint32_t position) {
    return vector.problem.k.begin() + static_cast<std::ptrdiff_t>(position) * 16;
  };
  std::copy_n(row(border.last), 16, row(border.next));
  row(border.next)[answer.channels[0][0]] += shift;
  Expect(vector);
  const Answer tied = Attend(vector.problem, vector.policy);
  if (!std::binary_search(tied.selection[0].begin(), tied.selection[0].end(), border.last)) {
    std::swap(border.last, border.next);
  }
  return vector;
}

// What exact attention over the exchanged rows gives.
Answer Exchanged(const VectorCase& vector, const Border& border) {
  const Truth truth = TruthOf(vector.policy, vector.problem, vector.problem.k);
  Answer answer = truth.answer;
  Exchange(answer.selection[0], border.last, border.next);
  const GroupAnswer group = AnswerFor(truth, 0, answer.selection[0]);
  std::copy(group.alpha.begin(), group.alpha.end(), answer.alpha.begin());
  std::copy(group.output.begin(), group.output.end(), answer.output.begin());
  return answer;
}

TEST(Judge, AllowsAnotherRowWithinTheBandOnly) {
  for (const auto& [shift, allowed] : {std::pair{1e-7, true}, std::pair{1e-2, false}}) {
    Border border;
    const VectorCase vector = NearTie(shift, border, ValueMean::kResidual);
    const Verdict verdict =
        Judge(vector, Stored(vector)).Check(Exchanged(vector, border), /*tells_tau=*/true);
    if (allowed) {
      EXPECT_THAT(verdict.problems, IsEmpty());
      EXPECT_EQ(verdict.errors.moved_rows, 1);
    } else {
      EXPECT_THAT(
          verdict.problems,
          Contains(AllOf(
              HasSubstr("selection of KV head 0: got position "),
              HasSubstr(
                  " is expected; 1 of 2 rows may not differ (band 1e-05 around the k-th score "))));
    }
  }
}

TEST(Judge, HoldsAlphaAndOutputAgainstTheRowsReallyChosen) {
  for (const ValueMean mean : {ValueMean::kOff, ValueMean::kMean, ValueMean::kResidual}) {
    Border border;
    const VectorCase vector = NearTie(1e-7, border, mean);
    const Answer right = Exchanged(vector, border);
    EXPECT_THAT(Problems(vector, right), IsEmpty());
    Answer wrong = right;
    // The output of the expected rows does not go with other rows.
    wrong.output = vector.expect.output;
    EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("output: relative error")));
    wrong = right;
    wrong.alpha[0] += 1e-4;
    EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("alpha of head 0")));
  }
}

TEST(Judge, GivesTheReferenceAnswerForTheReferenceSelection) {
  for (const ValueMean mean : {ValueMean::kOff, ValueMean::kMean, ValueMean::kResidual}) {
    SparqPolicy policy = kPolicy;
    policy.value_mean = mean;
    VectorCase vector = RandomCase({}, policy, 6);
    std::fill_n(vector.problem.q.begin() + 16, 16, 0.0);
    const Truth truth = TruthOf(vector.policy, vector.problem, vector.problem.k);
    for (int head = 0; head < 2; ++head) {
      const GroupAnswer group = AnswerFor(truth, head, truth.answer.selection[head]);
      for (int i = 0; i < 2; ++i) {
        EXPECT_NEAR(group.alpha[i], truth.answer.alpha[head * 2 + i], 1e-12);
        for (int c = 0; c < 16; ++c) {
          EXPECT_NEAR(group.output[i * 16 + c], truth.answer.output[(head * 2 + i) * 16 + c],
                      1e-12);
        }
      }
    }
  }
}

TEST(Judge, NeverSparesSinksAndWindow) {
  // Equal keys: every score ties, and only position and force decide.
  VectorCase vector = RandomCase({}, kPolicy, 7);
  std::fill(vector.problem.k.begin(), vector.problem.k.end(), 1.0);
  Expect(vector);
  const Answer answer = Attend(vector.problem, vector.policy);
  const Border border = BorderOf(answer, 0);
  for (const uint32_t forced : {0U, 1U, 87U, 88U, 89U}) {
    Answer wrong = answer;
    Exchange(wrong.selection[0], forced, border.next);
    EXPECT_THAT(Problems(vector, wrong),
                Contains(AllOf(
                    HasSubstr(" where " + std::to_string(forced) + " (sink or window) is expected"),
                    HasSubstr("1 of 2 rows may not differ"))));
  }
  Answer tied = answer;
  Exchange(tied.selection[0], border.last, border.next);
  EXPECT_THAT(Problems(vector, tied), Not(Contains(HasSubstr("selection"))));
}

TEST(Judge, DenseSelectsEveryRow) {
  const VectorCase vector = RandomCase({.tokens = 20}, attention::DensePolicy(), 8);
  const Answer right = Attend(vector.problem, vector.policy);
  EXPECT_THAT(Problems(vector, right), IsEmpty());
  Answer wrong = right;
  wrong.selection[1].pop_back();
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("got 19 rows, expected 20")));
  wrong = right;
  wrong.channels = {{0}, {0}};
  EXPECT_THAT(Problems(vector, wrong), Contains(HasSubstr("channels: got 2 values, expected 0")));
}

TEST(Judge, AFileMayNotLeaveRowsOutOfDense) {
  VectorCase vector = RandomCase({.tokens = 20}, attention::DensePolicy(), 12);
  vector.expect.selection[1].pop_back();
  const Judge judge(vector, Stored(vector));
  EXPECT_THAT(judge.CheckFile(), Contains(HasSubstr("got 19 rows, expected 20")));
  Answer answer = judge.given();
  answer.selection[1].erase(answer.selection[1].begin());
  EXPECT_THAT(judge.Check(answer, true).problems,
              Contains(HasSubstr("got position 19 where 0 is expected")));
}

TEST(Judge, AWrongFileFailsEvenWhereTheBackendIsRight) {
  const VectorCase right = RandomCase({}, kPolicy, 9);
  const auto check = [&right](const VectorCase& vector) {
    // The answer is what bf16 rows give; the band and the tolerances against the file are wide.
    const Judge judge(vector, Stored(right, {.storage = attention::Dtype::kBFloat16}));
    return judge.CheckFile();
  };
  EXPECT_THAT(check(right), IsEmpty());
  VectorCase wrong = right;
  wrong.expect.output[3] += 1e-4;
  EXPECT_THAT(check(wrong), Contains(HasSubstr("the file itself against the reference: output")));
  wrong = right;
  wrong.expect.alpha[3] += 1e-4;
  EXPECT_THAT(check(wrong), Contains(HasSubstr("alpha of head 3")));
  wrong = right;
  wrong.expect.tau[3] += 1e-4;
  EXPECT_THAT(check(wrong), Contains(HasSubstr("tau of head 3")));
  wrong = right;
  const Border border = BorderOf(Attend(right.problem, right.policy), 1);
  Exchange(wrong.expect.selection[1], border.last, border.next);
  EXPECT_THAT(check(wrong), Contains(HasSubstr("selection of KV head 1")));
  wrong = right;
  wrong.expect.channels[0].back() = wrong.expect.channels[0].back() == 15 ? 14 : 15;
  EXPECT_THAT(check(wrong), Contains(HasSubstr("channels of KV head 0")));
  wrong = right;
  wrong.expect.alpha.clear();
  wrong.expect.tau.clear();
  wrong.expect.channels.clear();
  EXPECT_THAT(check(wrong), IsEmpty()) << "what a file leaves open is not wrong";
}

// Rows 40 and 41 of KV head 0 are the best candidates of k = window + 1, 41 by a little more than
// the wide band; bf16 rounds the difference to the other side.
struct RoundedOver {
  VectorCase vector;
  StoredCase stored;
};

RoundedOver MakeRoundedOver() {
  VectorCase vector =
      RandomCase({.query_heads = 1, .kv_heads = 1}, SparqPolicy{.r = 1, .k = 2}, 10);
  std::fill(vector.problem.q.begin(), vector.problem.q.end(), 0.0);
  vector.problem.q[0] = 16;
  for (size_t t = 0; t < 90; ++t) vector.problem.k[t * 16] = 0;
  // The logit is 4 k: 1.0039 is just above the middle between the bf16 neighbours 1 and 1.0078,
  // and 1.0117 just below the middle of 1.0078 and 1.0156: both become 1.0078, and 40 wins the tie.
  vector.problem.k[40 * 16] = 1.00391;
  vector.problem.k[41 * 16] = 1.01171;
  Expect(vector);
  EXPECT_EQ(vector.expect.selection[0], (std::vector<uint32_t>{41, 89}));
  StoredCase stored = Stored(vector, {.storage = attention::Dtype::kBFloat16});
  return {std::move(vector), std::move(stored)};
}

TEST(Judge, BeyondTheBandOnlyRoundingMayMoveARow) {
  const RoundedOver moved = MakeRoundedOver();
  const Judge judge(moved.vector, moved.stored);
  const Answer& stored = judge.stored();
  ASSERT_EQ(stored.selection[0], (std::vector<uint32_t>{40, 89}));
  const std::vector<double>& score = judge.given().score[0];
  ASSERT_GT(score[41] - score[40], 0.011 * score[41]) << "beyond the band";
  const Verdict verdict = judge.Check(stored, true);
  EXPECT_THAT(verdict.problems, IsEmpty());
  EXPECT_EQ(verdict.errors.moved_rows, 1);
  Answer wrong = stored;
  wrong.selection[0] = {50, 89};
  EXPECT_THAT(judge.Check(wrong, true).problems,
              Contains(AllOf(HasSubstr("against the file: selection of KV head 0"),
                             HasSubstr("got position 50 (score"))));
}

TEST(Judge, RoundingIsNoExcuseForAKernel) {
  const VectorCase vector = RandomCase({}, kPolicy, 11);
  const Judge judge(vector, Stored(vector, {.storage = attention::Dtype::kBFloat16}));
  Answer wrong = judge.stored();
  // Well within what bf16 rows may differ from the file.
  for (double& value : wrong.output) value *= 1.0005;
  EXPECT_THAT(judge.Check(wrong, true).problems,
              ElementsAre(HasSubstr("against the reference on stored rows: output")));
  wrong = judge.stored();
  wrong.alpha[0] += 1e-4;
  EXPECT_THAT(judge.Check(wrong, true).problems,
              ElementsAre(HasSubstr("against the reference on stored rows: alpha of head 0")));
}

}  // namespace
}  // namespace terrace::policy_check
