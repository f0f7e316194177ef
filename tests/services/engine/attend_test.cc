// What a step answers, judged by the reference; and that it does not depend on how it was asked.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Geometry;
using engine::SequenceInfo;
using engine::StepResult;

constexpr uint64_t kSeed = 1;

struct Case {
  const char* name;
  int head_dim;
  int group;
  int kv_heads;
  int layers;
  attention::Dtype storage;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class AttendTest : public ::testing::TestWithParam<Case> {
 protected:
  AttendTest() {
    const Case& c = GetParam();
    geometry_ = {.layers = c.layers,
                 .query_heads = c.kv_heads * c.group,
                 .kv_heads = c.kv_heads,
                 .head_dim = c.head_dim,
                 .storage = c.storage,
                 .scale = 0};
    info_ = *engine_->Create({}, Spec(geometry_));
  }

  void Grow(PlainCache& plain, int64_t end) {
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      plain.Append(
          layer, MakeRows(geometry_, kSeed, layer, plain.length(layer), end - plain.length(layer)));
    }
  }

  // The last of `length` rows of each layer asks; output, alpha and rows as the reference's.
  void ExpectAsReference(const PlainCache& plain, int64_t length, const attention::Policy& policy) {
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      SCOPED_TRACE(::testing::Message() << "length " << length << ", layer " << layer << ", "
                                        << attention::PolicyName(policy));
      const StepResult result =
          RunOne(*engine_, layer, ReadStep(info_, kSeed, layer, length - 1, 1, policy));
      ASSERT_OK(result.status);
      const std::vector<float> q = MakeQueries(geometry_, kSeed, layer, length - 1, 1);
      const attention::reference::Answer expected = plain.Attend(layer, length, q.data(), policy);
      ASSERT_EQ(result.output.size(), expected.output.size());
      EXPECT_LT(RelativeError(expected.output, result.output.data()), 1e-5);
      for (int h = 0; h < geometry_.query_heads; ++h) {
        EXPECT_NEAR(result.account.alpha[h], expected.alpha[h], 2e-5);
        EXPECT_GE(result.account.alpha[h], 0.0F);
        EXPECT_LE(result.account.alpha[h], 1.0F);
      }
      for (int head = 0; head < geometry_.kv_heads; ++head) {
        EXPECT_EQ(result.selections[head].positions, expected.selection[head]);
      }
    }
  }

  Geometry geometry_;
  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(MemoryOptions());
  SequenceInfo info_;
};

TEST_P(AttendTest, AgreesWithTheReferenceAtBlockAndStripeEdges) {
  PlainCache plain(geometry_);
  const int r = std::max(2, geometry_.head_dim / 4);
  int64_t before = 0;
  for (const int64_t length : {1, 63, 64, 65, 128, 1023, 1024, 1025}) {
    ASSERT_OK(AppendSeed(*engine_, info_, kSeed, before, length, 100));
    Grow(plain, length);
    ExpectAsReference(plain, length, attention::DensePolicy());
    ExpectAsReference(plain, length, Sparq(r, 40, 10, 4));
    before = length;
  }
  ExpectAsReference(plain, before, Sparq(r, 40, 1, 0, attention::ValueMean::kMean));
  ExpectAsReference(plain, before, Sparq(r, 40, 10, 4, attention::ValueMean::kResidual));
  // Earlier queries see what they saw, sealed blocks or not.
  for (const int64_t length : {1, 64, 100, 1000}) {
    ExpectAsReference(plain, length, Sparq(r, 40, 1, 0, attention::ValueMean::kResidual));
    ExpectAsReference(plain, length, attention::DensePolicy());
  }
}

// I10.
TEST_P(AttendTest, WithRoomForAllRowsSparqIsDense) {
  for (const int64_t length : {1, 64, 130}) {
    ASSERT_OK(AppendSeed(*engine_, info_, kSeed, 0, length));
    for (const int64_t k : {length, length + 1, length + 100'000}) {
      const attention::Policy all =
          Sparq(1, static_cast<int>(k), 1, 0, attention::ValueMean::kMean);
      const StepResult sparse = RunOne(*engine_, 0, ReadStep(info_, kSeed, 0, length - 1, 1, all));
      const StepResult dense =
          RunOne(*engine_, 0, ReadStep(info_, kSeed, 0, length - 1, 1, attention::DensePolicy()));
      ASSERT_OK(sparse.status);
      ASSERT_OK(dense.status);
      const std::vector<double> expected(dense.output.begin(), dense.output.end());
      EXPECT_LT(RelativeError(expected, sparse.output.data()), 1e-5) << length << " rows, k " << k;
      for (const float alpha : sparse.account.alpha) EXPECT_NEAR(alpha, 1.0F, 1e-5);
    }
  }
}

// Steps of several queries are what speculative decoding verifies with.
TEST_P(AttendTest, ManyQueriesAnswerAsSingleStepsToTheBit) {
  const int r = std::max(2, geometry_.head_dim / 4);
  for (const attention::Policy& policy :
       {attention::Policy(attention::DensePolicy()), Sparq(r, 20, 4, 1),
        Sparq(r, 20, 4, 1, attention::ValueMean::kResidual)}) {
    const SequenceInfo single = *engine_->Create({}, Spec(geometry_));
    const SequenceInfo many = *engine_->Create({}, Spec(geometry_));
    int64_t position = 0;
    // Within the tail, up to an edge, over it, over several blocks.
    for (const int64_t n : {1, 5, 58, 3, 200, 1}) {
      SCOPED_TRACE(::testing::Message()
                   << position << " + " << n << ", " << attention::PolicyName(policy));
      const StepResult together =
          RunOne(*engine_, 0, AppendStep(many, kSeed, 0, position, n, policy));
      ASSERT_OK(together.status);
      EXPECT_TRUE(together.appended);
      EXPECT_EQ(together.layer_length, position + n);
      ASSERT_EQ(together.queries, n);
      const size_t width = together.output.size() / n;
      for (int64_t i = 0; i < n; ++i) {
        const StepResult alone =
            RunOne(*engine_, 0, AppendStep(single, kSeed, 0, position + i, 1, policy));
        ASSERT_OK(alone.status);
        const std::vector<float> part(together.output.begin() + i * width,
                                      together.output.begin() + (i + 1) * width);
        ASSERT_EQ(alone.output, part) << "query " << i;
        for (int h = 0; h < geometry_.query_heads; ++h) {
          ASSERT_EQ(alone.account.alpha[h], together.account.alpha[i * geometry_.query_heads + h]);
        }
        for (int head = 0; head < geometry_.kv_heads; ++head) {
          ASSERT_EQ(alone.selections[head].positions,
                    together.selections[i * geometry_.kv_heads + head].positions);
        }
      }
      position += n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Geometries, AttendTest,
    ::testing::Values(Case{"tiny_d8", 8, 1, 1, 3, attention::Dtype::kFloat32},
                      Case{"d64_group4", 64, 4, 2, 2, attention::Dtype::kFloat32},
                      Case{"d128_group8", 128, 8, 1, 1, attention::Dtype::kFloat32},
                      Case{"d64_bf16", 64, 2, 2, 1, attention::Dtype::kBFloat16},
                      Case{"d24_fp16", 24, 3, 2, 1, attention::Dtype::kFloat16}),
    [](const ::testing::TestParamInfo<Case>& each) { return std::string(each.param.name); });

TEST(AttendLayoutTest, BlockAndStripeSizesDoNotChangeTheAnswer) {
  const Geometry geometry = SmallGeometry();
  PlainCache plain(geometry);
  plain.Append(0, MakeRows(geometry, kSeed, 0, 0, 300));
  const std::vector<float> q = MakeQueries(geometry, kSeed, 0, 299, 1);
  for (const auto& [block, stripe] : std::vector<std::pair<int, int>>{
           {16, 16}, {16, 1024}, {64, 64}, {128, 1024}, {1024, 1024}, {1024, 65536}}) {
    engine::EmbeddedOptions options = MemoryOptions();
    options.block_tokens = block;
    options.index_tokens = stripe;
    options.store.host_bytes = uint64_t{64} << 20;
    const auto engine = OpenEngine(options);
    const SequenceInfo info = *engine->Create({}, Spec(geometry));
    EXPECT_EQ(info.block_tokens, block);
    ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 300, 7));
    const attention::Policy policy = Sparq(6, 30, 8, 2, attention::ValueMean::kResidual);
    const StepResult result = RunOne(*engine, 0, ReadStep(info, kSeed, 0, 299, 1, policy));
    ASSERT_OK(result.status);
    const attention::reference::Answer expected = plain.Attend(0, 300, q.data(), policy);
    EXPECT_LT(RelativeError(expected.output, result.output.data()), 1e-5) << block << " " << stripe;
  }
}

TEST(AttendLayoutTest, AStripeThatFitsNoExtentIsMadeShorter) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.store.host_bytes = uint64_t{8} << 20;
  options.index_tokens = 4096;
  Geometry geometry = SmallGeometry();
  geometry.head_dim = 512;
  geometry.layers = 1;
  const auto engine = OpenEngine(options);
  const absl::StatusOr<SequenceInfo> info = engine->Create({}, Spec(geometry));
  ASSERT_OK(info);
  ASSERT_OK(AppendSeed(*engine, *info, kSeed, 0, 130));
  EXPECT_OK(RunOne(*engine, 0, ReadStep(*info, kSeed, 0, 129, 1, Sparq(16, 20))).status);
}

// I9.
TEST(AttendBatchTest, ItemsSucceedOrFailAlone) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo a = *engine->Create({}, Spec(SmallGeometry()));
  const SequenceInfo b = *engine->Create({}, Spec(SmallGeometry()));
  const Step good = AppendStep(a, kSeed, 0, 0, 2, attention::DensePolicy());
  const Step gap = AppendStep(b, kSeed, 0, 5, 1, attention::DensePolicy());
  Step unknown = good;
  unknown.handle = "s0000-00000000000000000000000000000000";
  const std::vector<engine::StepRequest> requests = {gap.request(), good.request(),
                                                     unknown.request()};
  const std::vector<StepResult> results = engine->Attend({}, 0, requests, {});
  ASSERT_EQ(results.size(), 3u);
  EXPECT_THAT(results[0].status, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_FALSE(results[0].appended);
  EXPECT_OK(results[1].status);
  EXPECT_TRUE(results[1].appended);
  EXPECT_THAT(results[2].status, StatusIs(absl::StatusCode::kNotFound));
}

// Sequences of two geometries and any length, with one to five queries each, some of which append.
TEST(AttendBatchTest, ARaggedBatchAnswersAsItsItemsAlone) {
  const auto engine = OpenEngine(MemoryOptions());
  Geometry other = SmallGeometry();
  other.query_heads = 3;
  other.kv_heads = 1;
  other.head_dim = 32;
  std::vector<Step> batch;
  std::vector<Step> alone;
  for (const int64_t length : {1, 5, 63, 64, 65, 127, 200}) {
    for (const Geometry& geometry : {SmallGeometry(), other}) {
      const auto count = static_cast<int64_t>(batch.size());
      const int64_t n = 1 + count % std::min<int64_t>(5, length);
      const attention::Policy policy = count % 3 == 0
                                           ? attention::Policy(attention::DensePolicy())
                                           : Sparq(8, 20, 2, 1, attention::ValueMean::kResidual);
      for (std::vector<Step>* steps : {&batch, &alone}) {
        const SequenceInfo info = *engine->Create({}, Spec(geometry));
        const bool appends = count % 2 == 0;
        ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, length));
        steps->push_back(appends ? AppendStep(info, kSeed, 1, length, n, policy)
                                 : ReadStep(info, kSeed, 1, length - n, n, policy));
      }
    }
  }
  std::vector<engine::StepRequest> requests;
  for (const Step& step : batch) requests.push_back(step.request());
  const std::vector<StepResult> results =
      engine->Attend({}, 1, requests, {.return_selection = true});
  ASSERT_EQ(results.size(), alone.size());
  for (size_t i = 0; i < results.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "item " << i);
    ASSERT_OK(results[i].status);
    ExpectSameAnswer(RunOne(*engine, 1, alone[i]), results[i]);
  }
}

TEST(AttendDeadlineTest, AStepThatIsLateBeforeItBeganChangesNothing) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
  const Step step = AppendStep(info, kSeed, 0, 0, 2, attention::DensePolicy());
  const StepResult result = RunOne(*engine, 0, step, {.deadline = absl::Now() - absl::Seconds(1)});
  EXPECT_THAT(result.status, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(result.appended);
  EXPECT_EQ(engine->Get({}, info.handle)->layer_lengths[0], 0);
  EXPECT_OK(RunOne(*engine, 0, step).status);
}

}  // namespace
}  // namespace terrace::testing
