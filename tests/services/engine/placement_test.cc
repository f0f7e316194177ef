// What steps leave behind: recorded selections, and rows read ahead.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "services/engine/step_trace.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr int64_t kTokens = 700;

class PlacementTest : public ::testing::Test {
 protected:
  // Memory for a part of the rows only.
  engine::EmbeddedOptions Small() const {
    engine::EmbeddedOptions options = DiskOptions(folder_);
    options.store.host_bytes = uint64_t{6} << 20;
    options.store.durability = kvstore::Durability::kAsync;
    options.index_tokens = 256;
    return options;
  }
  static engine::Geometry Deep() {
    engine::Geometry geometry = SmallGeometry();
    geometry.layers = 4;
    geometry.head_dim = 128;
    return geometry;
  }

  TempFolder folder_;
};

TEST_F(PlacementTest, RecordsWhatEachSparseStepSelected) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.record_steps = folder_.path() + "/steps";
  std::vector<engine::StepResult> results;
  {
    const auto engine = OpenEngine(options);
    const auto info = engine->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(info);
    ASSERT_OK(AppendSeed(*engine, *info, kSeed, 0, kTokens));
    for (const int layer : {0, 1}) {
      RunOne(*engine, layer, ReadStep(*info, kSeed, layer, 500, 1, attention::DensePolicy()));
      results.push_back(
          RunOne(*engine, layer, ReadStep(*info, kSeed, layer, 600, 1, Sparq(8, 40, 4, 2))));
      ASSERT_OK(results.back().status);
    }
    EXPECT_EQ(engine->recorder()->steps(), 2u);
    ASSERT_OK(engine->recorder()->Close());
    RunOne(*engine, 0, ReadStep(*info, kSeed, 0, 600, 1, Sparq(8, 40)));
  }
  auto reader = engine::StepTraceReader::Open(options.record_steps);
  ASSERT_OK(reader);
  EXPECT_EQ(reader->block_tokens(), 64u);
  engine::TracedStep step;
  for (uint16_t layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE(reader->Next(step).value_or(false));
    EXPECT_EQ(step.position, 600u);
    EXPECT_EQ(step.layer, layer);
    ASSERT_EQ(step.heads.size(), 2u);
    for (int head = 0; head < 2; ++head) {
      EXPECT_EQ(step.heads[head].rows, results[layer].selections[head].positions);
      const std::vector<float>& masses = step.heads[head].masses;
      const float* alpha = results[layer].account.alpha.data() + head * size_t{2};
      EXPECT_NEAR(std::accumulate(masses.begin(), masses.end(), 0.0F), (alpha[0] + alpha[1]) / 2,
                  1e-3);
    }
  }
  EXPECT_FALSE(reader->Next(step).value_or(true)) << "dense steps and later ones are left out";
}

TEST_F(PlacementTest, RefusesARecordingThatCannotBe) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.record_steps = folder_.path() + "/none/steps";
  EXPECT_TRUE(absl::IsUnavailable(engine::EmbeddedEngine::Open(options).status()));
  options.record_bytes = engine::kMinStepTraceBytes - 1;
  EXPECT_TRUE(absl::IsInvalidArgument(engine::EmbeddedEngine::Open(options).status()));
}

TEST_F(PlacementTest, ReadsAheadWhatTheNextLayersSelectedLast) {
  const auto whole = OpenEngine(MemoryOptions());
  auto small = OpenEngine(Small());
  const auto expected = whole->Create({}, Spec(Deep()));
  const auto info = small->Create({}, Spec(Deep()));
  ASSERT_OK(expected);
  ASSERT_OK(info);
  ASSERT_OK(AppendSeed(*whole, *expected, kSeed, 0, kTokens));
  ASSERT_OK(AppendSeed(*small, *info, kSeed, 0, kTokens, 100));
  ASSERT_OK(small->Flush({}, info->handle));
  // Until something was read ahead: the thread may be late now and then.
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  uint64_t ahead = 0;
  for (int64_t position = 500; ahead == 0 && absl::Now() < deadline; ++position) {
    for (int layer = 0; layer < Deep().layers; ++layer) {
      const int64_t at = 500 + position % 200;
      ExpectSameAnswer(
          RunOne(*whole, layer, ReadStep(*expected, kSeed, layer, at, 1, Sparq(16, 64, 8))),
          RunOne(*small, layer, ReadStep(*info, kSeed, layer, at, 1, Sparq(16, 64, 8))));
    }
    ahead = (*small->ListTiers())[0].stats.ahead_blocks;
  }
  EXPECT_GT(ahead, 0u);
  // Of a sequence that ends nothing stays or comes, and all that was read ahead is accounted for.
  ASSERT_OK(small->Delete({}, info->handle));
  kvstore::TierStats stats;
  do {
    stats = (*small->ListTiers())[0].stats;
  } while (stats.used_bytes > 0 && absl::Now() < deadline);
  EXPECT_EQ(stats.used_bytes, 0u);
  EXPECT_EQ(stats.ahead_useful_blocks + stats.ahead_late_blocks + stats.ahead_wasted_blocks,
            stats.ahead_blocks);
}

TEST_F(PlacementTest, ReadsNothingAheadWhenTurnedOff) {
  engine::EmbeddedOptions options = Small();
  options.prefetch = false;
  const auto engine = OpenEngine(options);
  const auto info = engine->Create({}, Spec(Deep()));
  ASSERT_OK(info);
  ASSERT_OK(AppendSeed(*engine, *info, kSeed, 0, kTokens, 100));
  ASSERT_OK(engine->Flush({}, info->handle));
  for (int i = 0; i < 20; ++i) {
    for (int layer = 0; layer < Deep().layers; ++layer) {
      EXPECT_OK(
          RunOne(*engine, layer, ReadStep(*info, kSeed, layer, 500 + i, 1, Sparq(16, 64))).status);
    }
  }
  EXPECT_EQ((*engine->ListTiers())[0].stats.ahead_blocks, 0u);
}

}  // namespace
}  // namespace terrace::testing
