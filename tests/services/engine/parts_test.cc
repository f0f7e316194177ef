// A step cut in two, as between a store and a worker, gives the bits of a whole one (I10).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/engine/step_part.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using attention::ValueMean;
using engine::HeldRows;
using engine::PartForm;
using engine::SequenceInfo;
using engine::StepPart;
using engine::StepResult;

constexpr uint64_t kSeed = 1;

class PartsTest : public ::testing::Test {
 protected:
  PartsTest() {
    EXPECT_OK(AppendSeed(*engine_, info_, kSeed, 0, 200));
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      plain_.Append(layer, MakeRows(geometry_, kSeed, layer, 0, 200));
    }
  }

  StepPart Run(const Step& step, PartForm form, const HeldRows& held = {}) {
    engine::StepOptions options;
    options.return_selection = true;
    return engine_->RunStep({}, 0, step.request(), options, form, held);
  }

  // What a worker does with kRows: rows that arrived, and for held ones its own.
  StepResult Complete(StepPart part, const Step& step, const HeldRows& held) {
    std::vector<std::vector<std::byte>> own;
    own.reserve(100'000);
    std::vector<const std::byte*> rows;
    size_t arrived = 0;
    const bool known = held.generation == part.generation;
    for (size_t slot = 0; slot < part.selections.size(); ++slot) {
      for (const uint32_t position : part.selections[slot].positions) {
        if (known && held.Holds(slot, position)) {
          const int head = static_cast<int>(slot) % geometry_.kv_heads;
          own.push_back(plain_.StoredRow(0, head, position));
          rows.push_back(own.back().data());
        } else {
          rows.push_back(part.rows.data() + arrived);
          arrived += geometry_.row_bytes();
        }
      }
    }
    EXPECT_EQ(arrived, part.rows.size());
    std::vector<float> q(step.q.data.size() / sizeof(float));
    std::memcpy(q.data(), step.q.data.data(), step.q.data.size());
    engine::AttendRowsOf(part, q.data(), rows);
    return engine::Finish(std::move(part), true);
  }

  engine::Geometry geometry_ = SmallGeometry();
  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(MemoryOptions());
  SequenceInfo info_ = *engine_->Create({}, Spec(geometry_));
  PlainCache plain_{geometry_};
};

TEST_F(PartsTest, RowsAndPartialAnswerAlike) {
  for (const ValueMean mean : {ValueMean::kOff, ValueMean::kMean, ValueMean::kResidual}) {
    for (const int64_t n : {1, 4}) {
      for (const int64_t position : {0, 62, 196}) {
        const Step step = ReadStep(info_, kSeed, 0, position, n, Sparq(5, 20, 3, 2, mean));
        const StepResult whole = RunOne(*engine_, 0, step);
        ASSERT_OK(whole.status);
        StepPart rows = Run(step, PartForm::kRows);
        ASSERT_OK(rows.status);
        EXPECT_EQ(rows.form, PartForm::kRows);
        ExpectSameAnswer(whole, Complete(std::move(rows), step, {}));
        ExpectSameAnswer(whole, engine::Finish(Run(step, PartForm::kPartial), true));
      }
    }
  }
}

TEST_F(PartsTest, RowsAreWhatWasAppended) {
  const Step step = ReadStep(info_, kSeed, 0, 199, 1, Sparq(5, 20, 3, 2));
  const StepPart part = Run(step, PartForm::kRows);
  ASSERT_OK(part.status);
  std::vector<std::byte> expected;
  for (int head = 0; head < geometry_.kv_heads; ++head) {
    for (const uint32_t position : part.selections[head].positions) {
      const std::vector<std::byte> row = plain_.StoredRow(0, head, position);
      expected.insert(expected.end(), row.begin(), row.end());
    }
  }
  EXPECT_EQ(part.rows, expected);
}

TEST_F(PartsTest, DenseShipsNoRows) {
  const Step step = ReadStep(info_, kSeed, 0, 199, 1, attention::DensePolicy());
  StepPart part = Run(step, PartForm::kRows);
  ASSERT_OK(part.status);
  EXPECT_EQ(part.form, PartForm::kPartial);
  EXPECT_TRUE(part.rows.empty());
  ExpectSameAnswer(RunOne(*engine_, 0, step), engine::Finish(std::move(part), true));
}

TEST_F(PartsTest, HeldRowsStayAndTheAnswerTheSame) {
  for (const ValueMean mean : {ValueMean::kOff, ValueMean::kResidual}) {
    const Step step = ReadStep(info_, kSeed, 0, 199, 1, Sparq(5, 20, 3, 2, mean));
    const StepResult whole = RunOne(*engine_, 0, step);
    const StepPart first = Run(step, PartForm::kRows);
    ASSERT_OK(first.status);
    HeldRows held;
    held.generation = first.generation;
    size_t kept = 0;
    for (const engine::Selection& selection : first.selections) {
      held.positions.emplace_back();
      // Every other row of the selection, and one that is not in it.
      for (size_t i = 0; i < selection.positions.size(); i += 2) {
        held.positions.back().push_back(selection.positions[i]);
        ++kept;
      }
      held.positions.back().push_back(100'000);
    }
    StepPart second = Run(step, PartForm::kRows, held);
    ASSERT_OK(second.status);
    EXPECT_EQ(second.rows.size(), first.rows.size() - kept * geometry_.row_bytes());
    ExpectSameAnswer(whole, Complete(std::move(second), step, held));

    // Rows of another generation do not count.
    held.generation += 1;
    StepPart third = Run(step, PartForm::kRows, held);
    ASSERT_OK(third.status);
    EXPECT_EQ(third.rows, first.rows);
    ExpectSameAnswer(whole, Complete(std::move(third), step, held));
  }
}

// A store that attends itself has use for none but its own.
TEST_F(PartsTest, HeldRowsMeanNothingToAPartial) {
  for (const attention::Policy& policy : {Sparq(5, 20, 3, 2), attention::Policy()}) {
    const Step step = ReadStep(info_, kSeed, 0, 199, 1, policy);
    HeldRows held;
    held.generation = Run(step, PartForm::kPartial).generation;
    std::vector<uint32_t> all;
    for (uint32_t position = 0; position < 200; ++position) all.push_back(position);
    held.positions.assign(geometry_.kv_heads, all);
    const StepPart without = Run(step, PartForm::kPartial);
    const StepPart with = Run(step, PartForm::kPartial, held);
    ASSERT_OK(with.status);
    EXPECT_EQ(with.output, without.output);
    EXPECT_EQ(with.lse, without.lse);
    EXPECT_EQ(with.account.host.row_bytes, without.account.host.row_bytes);
  }
}

// The bound counts what an answer carries beside its fixed parts: selections and shipped rows.
TEST(AnswerLimitTest, AnAnswerOfTheLimitIsGivenAndAByteMoreIsNot) {
  const uint64_t row_bytes = 2 * 16 * sizeof(float);
  struct Case {
    attention::Policy policy;
    PartForm form;
    bool selection;
    int64_t queries;
    uint64_t bytes;
  };
  for (const Case& c : {
           Case{attention::Policy(), PartForm::kPartial, true, 1, 2 * 100 * 4},
           Case{Sparq(5, 10), PartForm::kPartial, true, 1, 2 * 10 * 4},
           Case{Sparq(5, 10), PartForm::kPartial, true, 3, 3 * 2 * 10 * 4},
           Case{Sparq(5, 10), PartForm::kRows, false, 1, 2 * 10 * row_bytes},
           Case{Sparq(5, 10), PartForm::kRows, true, 1, 2 * 10 * (row_bytes + 4)},
           // The window and the sinks may take more than k.
           Case{Sparq(5, 10, 20, 4), PartForm::kRows, false, 1, 2 * 24 * row_bytes},
           Case{Sparq(5, 1000), PartForm::kRows, false, 1, 2 * 100 * row_bytes},
       }) {
    for (const int64_t more : {-1, 0, 1}) {
      SCOPED_TRACE(::testing::Message() << c.bytes << " + " << more);
      engine::EmbeddedOptions options = MemoryOptions();
      options.limits.max_answer_bytes = static_cast<int64_t>(c.bytes) + more;
      const auto engine = OpenEngine(options);
      const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
      ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 100));
      const Step step = ReadStep(info, kSeed, 0, 100 - c.queries, c.queries, c.policy);
      engine::StepOptions step_options;
      step_options.return_selection = c.selection;
      const StepPart part = engine->RunStep({}, 0, step.request(), step_options, c.form, {});
      if (more < 0) {
        EXPECT_THAT(part.status, StatusIs(absl::StatusCode::kInvalidArgument));
      } else {
        EXPECT_OK(part.status);
      }
    }
  }
}

TEST(AnswerLimit, AStepIsRefusedBeforeItsRowsStand) {
  engine::EmbeddedOptions options = MemoryOptions();
  // Selections of two KV heads of 101 rows.
  options.limits.max_answer_bytes = 2 * 101 * 4 - 1;
  const auto engine = OpenEngine(options);
  const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 100));
  const StepResult refused =
      RunOne(*engine, 0, AppendStep(info, kSeed, 0, 100, 1, attention::DensePolicy()));
  EXPECT_THAT(refused.status, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(refused.appended);
  EXPECT_EQ(engine->Get({}, info.handle)->layer_lengths, (std::vector<int64_t>{100, 100}));
  // A gap is one whatever the answer would take.
  EXPECT_THAT(RunOne(*engine, 0, AppendStep(info, kSeed, 0, 101, 1, Sparq(5, 10))).status,
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_OK(RunOne(*engine, 0, AppendStep(info, kSeed, 0, 100, 1, Sparq(5, 10))).status);
}

TEST_F(PartsTest, TruncateAndResumeOfRowsChangeTheGeneration) {
  const Step step = ReadStep(info_, kSeed, 0, 100, 1, Sparq(5, 20));
  const uint64_t before = Run(step, PartForm::kRows).generation;
  EXPECT_EQ(Run(step, PartForm::kRows).generation, before);
  ASSERT_OK(AppendSeed(*engine_, info_, kSeed, 200, 300));
  EXPECT_EQ(Run(step, PartForm::kRows).generation, before);
  ASSERT_OK(engine_->Truncate({}, info_.handle, info_.writer_epoch, 299));
  EXPECT_NE(Run(step, PartForm::kRows).generation, before);
}

TEST_F(PartsTest, AFailedPartFinishesAsItsStatus) {
  const Step step = ReadStep(info_, kSeed, 0, 200, 1, Sparq(5, 20));
  StepPart part = Run(step, PartForm::kPartial);
  EXPECT_THAT(part.status, StatusIs(absl::StatusCode::kOutOfRange));
  const StepResult result = engine::Finish(std::move(part), true);
  EXPECT_THAT(result.status, StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_TRUE(result.output.empty());
}

TEST_F(PartsTest, AttentionOverNoRowsIsZeroAndWeighsNothing) {
  const std::vector<float> q(2 * 16, 1.0F);
  std::vector<float> output(2 * 16, 9.0F);
  std::vector<float> lse(2, 9.0F);
  engine::AttendGroup(info_.spec.geometry, q.data(), {}, output.data(), lse.data());
  EXPECT_EQ(output, std::vector<float>(2 * 16, 0.0F));
  EXPECT_EQ(lse, std::vector<float>(2, -INFINITY));
}

}  // namespace
}  // namespace terrace::testing
