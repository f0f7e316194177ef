// What an append accepts, what a repeat of one does (I7), and what is refused without a trace.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "services/engine/error.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Geometry;
using engine::SequenceInfo;
using engine::StepResult;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

std::string DetailValue(const absl::Status& status, const std::string& key) {
  const std::optional<engine::ErrorDetail> detail = engine::DetailOf(status);
  if (!detail.has_value()) return "no detail";
  const auto found = detail->metadata.find(key);
  return found == detail->metadata.end() ? "no " + key : found->second;
}

std::string ReasonOf(const absl::Status& status) {
  const std::optional<engine::ErrorDetail> detail = engine::DetailOf(status);
  return detail.has_value() ? detail->reason : "no detail";
}

class AppendTest : public ::testing::Test {
 protected:
  absl::Status Repeat(engine::KvEngine& engine, uint64_t seed, int64_t position, int64_t n) {
    return AppendRowsOf(engine, info_, 0, position,
                        MakeRows(info_.spec.geometry, seed, 0, position, n))
        .status();
  }
  // Repeats of the same bytes are OK and of others are not, at `positions`, without effect.
  void ExpectIdempotent(engine::KvEngine& engine, const std::vector<int64_t>& positions) {
    const int64_t length = engine.Get({}, info_.handle)->length;
    for (const int64_t position : positions) {
      EXPECT_OK(Repeat(engine, kSeed, position, 1)) << position;
      const absl::Status other = Repeat(engine, kOtherSeed, position, 1);
      EXPECT_THAT(other, StatusIs(absl::StatusCode::kAlreadyExists)) << position;
      EXPECT_EQ(ReasonOf(other), "POSITION_CONFLICT");
      EXPECT_EQ(DetailValue(other, "position"), std::to_string(position));
    }
    EXPECT_OK(Repeat(engine, kSeed, 0, length));
    EXPECT_EQ(engine.Get({}, info_.handle)->length, length);
  }

  TempFolder folder_;
  SequenceInfo info_;
};

TEST_F(AppendTest, ARepeatIsComparedInTheTailAndInSealedBlocks) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 200));
  ExpectIdempotent(*engine, {0, 63, 64, 127, 191, 192, 199});
}

TEST_F(AppendTest, ARepeatMayGoBeyondWhatStands) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  const SequenceInfo fresh = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 50));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 20, 140));
  ASSERT_OK(AppendSeed(*engine, fresh, kSeed, 0, 140));
  ExpectSameBits(*engine, fresh, *engine, info_);
}

TEST_F(AppendTest, AConflictInTheMiddleAppendsNothing) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 50));
  KvRows rows = MakeRows(SmallGeometry(), kSeed, 0, 40, 30);
  rows.v[9 * 32] += 1.0F;  // position 49
  const absl::Status status = AppendRowsOf(*engine, info_, 0, 40, rows).status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(DetailValue(status, "position"), "49");
  EXPECT_EQ(engine->Get({}, info_.handle)->layer_lengths[0], 50);
}

// A repeated step gives the bits of the first, though blocks sealed or left memory since.
TEST_F(AppendTest, ARepeatedStepAnswersAlikeWhereverItsRowsAre) {
  engine::EmbeddedOptions options = DiskOptions(folder_);
  options.store.host_bytes = uint64_t{2} << 20;
  options.store.durability = kvstore::Durability::kAsync;
  auto engine = OpenEngine(options);
  Geometry geometry = SmallGeometry();
  geometry.head_dim = 64;
  info_ = *engine->Create({}, Spec(geometry, attention::IndexFormat::kInt8));
  const attention::Policy policy = Sparq(16, 24, 4, 1, attention::ValueMean::kResidual);
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 60));
  std::vector<Step> steps;
  std::vector<StepResult> first;
  for (int64_t position = 60; position < 70; ++position) {
    steps.push_back(AppendStep(info_, kSeed, 0, position, 1, policy));
    first.push_back(RunOne(*engine, 0, steps.back()));
    ASSERT_OK(first.back().status);
  }
  // 3,000 tokens are 3 MB of rows: what was there is on disk alone afterwards.
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 60, 3000, 50));
  EXPECT_GT((*engine->ListTiers())[0].stats.evicted_blocks, 0u);
  for (size_t i = 0; i < steps.size(); ++i)
    ExpectSameAnswer(first[i], RunOne(*engine, 0, steps[i]));
  ExpectIdempotent(*engine, {0, 64, 1000, 2999});

  ASSERT_OK(engine->Flush({}, info_.handle));
  engine.reset();
  engine = OpenEngine(options);
  for (size_t i = 0; i < steps.size(); ++i)
    ExpectSameAnswer(first[i], RunOne(*engine, 0, steps[i]));
  ExpectIdempotent(*engine, {0, 64, 1000, 2943, 2944, 2999});
}

TEST_F(AppendTest, AGapNamesTheExpectedPosition) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 70));
  for (const int64_t position : {int64_t{71}, int64_t{4000}}) {
    const absl::Status status = Repeat(*engine, kSeed, position, 1);
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_EQ(ReasonOf(status), "POSITION_GAP");
    EXPECT_EQ(DetailValue(status, "expected_position"), "70");
  }
  EXPECT_OK(Repeat(*engine, kSeed, 70, 1));
}

TEST_F(AppendTest, PositionsBeyondAllBoundsAreRefused) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.limits.max_sequence_tokens = 100;
  const auto engine = OpenEngine(options);
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 99));
  for (const int64_t position : {std::numeric_limits<int64_t>::max(), int64_t{100}}) {
    const absl::Status gap = Repeat(*engine, kSeed, position, 1);
    EXPECT_THAT(gap, StatusIs(absl::StatusCode::kFailedPrecondition)) << position;
    EXPECT_EQ(DetailValue(gap, "expected_position"), "99");
    const Step read = ReadStep(info_, kSeed, 0, position, 1, attention::DensePolicy());
    EXPECT_THAT(RunOne(*engine, 0, read).status, StatusIs(absl::StatusCode::kOutOfRange));
  }
  EXPECT_THAT(Repeat(*engine, kSeed, -1, 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(RunOne(*engine, 0, ReadStep(info_, kSeed, 0, -1, 1, Sparq(4, 4))).status,
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_OK(Repeat(*engine, kSeed, 99, 1));
  const absl::Status status = Repeat(*engine, kSeed, 99, 2);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(ReasonOf(status), "LIMIT_EXCEEDED");
  EXPECT_FALSE(engine::DetailOf(status)->retry_delay.has_value());
}

TEST_F(AppendTest, AReaderSeesNothingBeyondTheLength) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  const attention::Policy dense = attention::DensePolicy();
  EXPECT_THAT(RunOne(*engine, 0, ReadStep(info_, kSeed, 0, 0, 1, dense)).status,
              StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 64));
  EXPECT_OK(RunOne(*engine, 0, ReadStep(info_, kSeed, 0, 63, 1, dense)).status);
  EXPECT_THAT(RunOne(*engine, 0, ReadStep(info_, kSeed, 0, 63, 2, dense)).status,
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(RunOne(*engine, 0, ReadStep(info_, kSeed, 0, 64, 1, dense)).status,
              StatusIs(absl::StatusCode::kOutOfRange));
}

TEST_F(AppendTest, AResumeFencesTheWriterBefore) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 10));
  const absl::StatusOr<SequenceInfo> resumed = engine->Resume({}, info_.handle, "model");
  ASSERT_OK(resumed);
  EXPECT_GT(resumed->writer_epoch, info_.writer_epoch);
  const absl::Status fenced = Repeat(*engine, kSeed, 10, 1);
  EXPECT_THAT(fenced, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(ReasonOf(fenced), "EPOCH_STALE");
  EXPECT_EQ(DetailValue(fenced, "expected_epoch"), std::to_string(resumed->writer_epoch));
  const StepResult step =
      RunOne(*engine, 0, AppendStep(info_, kSeed, 0, 10, 1, attention::DensePolicy()));
  EXPECT_EQ(ReasonOf(step.status), "EPOCH_STALE");
  EXPECT_FALSE(step.appended);
  EXPECT_THAT(engine->Truncate({}, info_.handle, info_.writer_epoch, 5),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  // Readers need no epoch.
  EXPECT_OK(RunOne(*engine, 0, ReadStep(info_, kSeed, 0, 9, 1, attention::DensePolicy())).status);
  EXPECT_OK(AppendSeed(*engine, *resumed, kSeed, 10, 11));
  EXPECT_EQ(ReasonOf(engine->Resume({}, info_.handle, "other").status()), "FINGERPRINT_MISMATCH");
}

// One thing wrong at a time; each refusal names the field and changes nothing.
TEST_F(AppendTest, MalformedStepsAreRefusedByName) {
  const auto engine = OpenEngine(MemoryOptions());
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info_, kSeed, 0, 10));
  const Step good = AppendStep(info_, kSeed, 0, 10, 2, Sparq(4, 4));
  const auto set = [](HostTensor& tensor, float value) {
    std::memcpy(&tensor.data[4], &value, sizeof(value));
  };
  struct Case {
    const char* field;
    std::function<void(Step&)> spoil;
  };
  const std::vector<Case> cases = {
      {"q", [&](Step& s) { set(s.q, NAN); }},
      {"k", [&](Step& s) { set(s.k, INFINITY); }},
      {"v", [&](Step& s) { set(s.v, -INFINITY); }},
      {"q",
       [](Step& s) {
         s.q.shape = {2, 4, 8};
       }},
      {"q",
       [](Step& s) {
         s.q.shape = {2, 64};
       }},
      {"q",
       [](Step& s) {
         s.q.shape = {0, 4, 16};
       }},
      {"q", [](Step& s) { s.q = HostTensor(); }},
      {"q", [](Step& s) { s.q.dtype = attention::Dtype::kFloat16; }},
      {"q", [](Step& s) { s.q.data.pop_back(); }},
      {"k", [](Step& s) { s.k.shape[1] = 4; }},
      {"k", [](Step& s) { s.k.shape[0] = 1; }},
      {"k", [](Step& s) { s.k = HostTensor(); }},
      {"v", [](Step& s) { s.v = HostTensor(); }},
      {"v", [](Step& s) { s.v.data.resize(s.v.data.size() * 2); }},
      {"k: got 70000", [&](Step& s) { set(s.k, 70000.0F); }},  // beyond the int8 index
      {"sparq r", [](Step& s) { s.policy = Sparq(0, 4); }},
      {"sparq r", [](Step& s) { s.policy = Sparq(17, 4); }},
      {"sparq k", [](Step& s) { s.policy = Sparq(4, 0); }},
      {"sparq window", [](Step& s) { s.policy = Sparq(4, 4, 0); }},
      {"sparq sinks", [](Step& s) { s.policy = Sparq(4, 4, 1, -1); }},
  };
  const SequenceInfo int8 =
      *engine->Create({}, Spec(SmallGeometry(), attention::IndexFormat::kInt8));
  ASSERT_OK(AppendSeed(*engine, int8, kSeed, 0, 10));
  for (const Case& c : cases) {
    Step step = good;
    step.handle = int8.handle;
    c.spoil(step);
    const StepResult result = RunOne(*engine, 0, step);
    EXPECT_THAT(result.status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.field)));
    EXPECT_FALSE(result.appended);
    EXPECT_EQ(engine->Get({}, int8.handle)->layer_lengths[0], 10) << c.field;
  }
  for (const int layer : {-1, 2, std::numeric_limits<int>::max()}) {
    EXPECT_THAT(RunOne(*engine, layer, good).status,
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
  }
  EXPECT_OK(RunOne(*engine, 0, good).status);
}

TEST_F(AppendTest, QueriesAndTokenIdsAreBounded) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.limits.max_step_tokens = 8;
  const auto engine = OpenEngine(options);
  info_ = *engine->Create({}, Spec(SmallGeometry()));
  EXPECT_OK(RunOne(*engine, 0, AppendStep(info_, kSeed, 0, 0, 8, Sparq(4, 4))).status);
  EXPECT_THAT(RunOne(*engine, 0, AppendStep(info_, kSeed, 0, 8, 9, Sparq(4, 4))).status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q")));
  EXPECT_EQ(engine->Get({}, info_.handle)->layer_lengths[0], 8);
  const Step step = AppendStep(info_, kSeed, 0, 8, 2, Sparq(4, 4));
  engine::StepRequest request = step.request();
  const std::vector<uint32_t> ids = {1, 2, 3};
  request.token_ids = ids;
  EXPECT_THAT(engine->Attend({}, 0, {&request, 1}, {})[0].status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token_ids")));
  request.token_ids = absl::MakeConstSpan(ids).first(2);
  request.fingerprint = "another model";
  EXPECT_EQ(ReasonOf(engine->Attend({}, 0, {&request, 1}, {})[0].status), "FINGERPRINT_MISMATCH");
  request.fingerprint = "model";
  EXPECT_OK(engine->Attend({}, 0, {&request, 1}, {})[0].status);
}

}  // namespace
}  // namespace terrace::testing
