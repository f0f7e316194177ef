// Small memory, full memory, restarts: where the rows are changes nothing in the answers.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
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
using engine::TierReport;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

// 1 KiB a row (K and V) per layer and KV head.
Geometry WideGeometry() {
  Geometry geometry = SmallGeometry();
  geometry.head_dim = 128;
  return geometry;
}

void ExpectConserved(engine::KvEngine& engine) {
  const absl::StatusOr<std::vector<TierReport>> tiers = engine.ListTiers();
  ASSERT_OK(tiers);
  for (const TierReport& tier : *tiers) {
    const kvstore::TierStats& s = tier.stats;
    EXPECT_EQ(s.admitted_blocks, s.resident_blocks + s.evicted_blocks + s.deleted_blocks);
    EXPECT_EQ(s.admitted_bytes, s.resident_bytes + s.evicted_bytes + s.deleted_bytes);
    EXPECT_LE(s.used_bytes, s.capacity_bytes);
    EXPECT_LE(s.pinned_bytes, s.capacity_bytes);
  }
}

class TiersTest : public ::testing::Test {
 protected:
  engine::EmbeddedOptions Small() const {
    engine::EmbeddedOptions options = DiskOptions(folder_);
    options.store.host_bytes = uint64_t{3} << 20;
    options.store.durability = kvstore::Durability::kAsync;
    options.index_tokens = 256;
    return options;
  }

  TempFolder folder_;
};

TEST_F(TiersTest, AnEngineThatEvictsAllTheTimeAnswersAsOneThatNeverDoes) {
  const auto big = OpenEngine(MemoryOptions());
  const auto small = OpenEngine(Small());
  std::vector<SequenceInfo> in_big;
  std::vector<SequenceInfo> in_small;
  // Three sequences of 1.5 MiB of rows each.
  for (uint64_t s = 0; s < 3; ++s) {
    in_big.push_back(*big->Create({}, Spec(WideGeometry(), attention::IndexFormat::kInt8)));
    in_small.push_back(*small->Create({}, Spec(WideGeometry(), attention::IndexFormat::kInt8)));
    ASSERT_OK(AppendSeed(*big, in_big[s], kSeed + s, 0, 380, 40));
    ASSERT_OK(AppendSeed(*small, in_small[s], kSeed + s, 0, 380, 40));
  }
  for (int round = 0; round < 2; ++round) {
    for (size_t s = 0; s < in_big.size(); ++s) {
      ExpectSameBits(*big, in_big[s], *small, in_small[s]);
    }
  }
  EXPECT_GT((*small->ListTiers())[0].stats.evicted_blocks, 0u);
  ExpectConserved(*small);
  ExpectConserved(*big);
  for (const SequenceInfo& info : in_small) ASSERT_OK(small->Delete({}, info.handle));
  ExpectConserved(*small);
  EXPECT_EQ((*small->ListTiers())[0].stats.resident_blocks, 0u);
  EXPECT_EQ((*small->ListTiers())[1].stats.resident_blocks, 0u);
}

TEST_F(TiersTest, AFullMemoryWithoutDiskRefusesMoreAndLosesNothing) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.store.host_bytes = uint64_t{4} << 20;
  const auto engine = OpenEngine(options);
  const SequenceInfo info = *engine->Create({}, Spec(WideGeometry()));
  int64_t length = 0;
  absl::Status full;
  while (full.ok() && length < 100'000) {
    const Step step = AppendStep(info, kSeed, 0, length, 32, Sparq(16, 20));
    const engine::StepResult result = RunOne(*engine, 0, step);
    full = result.status;
    EXPECT_EQ(result.appended, full.ok());
    if (full.ok()) length += 32;
  }
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_TRUE(engine::DetailOf(full).has_value());
  EXPECT_EQ(engine::DetailOf(full)->reason, "NO_ROOM");
  EXPECT_TRUE(engine::DetailOf(full)->retry_delay.has_value());
  ASSERT_GT(length, 64);

  // What stands is as in an engine with room, and answers go on.
  const auto roomy = OpenEngine(MemoryOptions());
  const SequenceInfo same = *roomy->Create({}, Spec(WideGeometry()));
  ASSERT_OK(AppendRowsOf(*roomy, same, 0, 0, MakeRows(WideGeometry(), kSeed, 0, 0, length)));
  for (const int64_t position : {int64_t{0}, length - 1}) {
    const Step ask = ReadStep(info, kSeed, 0, position, 1, Sparq(16, 20));
    const Step ask_roomy = ReadStep(same, kSeed, 0, position, 1, Sparq(16, 20));
    ExpectSameAnswer(RunOne(*roomy, 0, ask_roomy), RunOne(*engine, 0, ask));
  }
  ExpectConserved(*engine);

  // Room comes back with a truncate, and the same rows go on.
  ASSERT_OK(engine->Truncate({}, info.handle, info.writer_epoch, 0));
  EXPECT_OK(AppendSeed(*engine, info, kOtherSeed, 0, 64));
  ASSERT_OK(engine->Delete({}, info.handle));
  const SequenceInfo next = *engine->Create({}, Spec(WideGeometry()));
  EXPECT_OK(AppendSeed(*engine, next, kSeed, 0, 64));
}

// I5: tails and stripes that cannot leave fill the memory; nobody waits for ever.
TEST_F(TiersTest, MemoryThatNothingCanLeaveRefusesWithoutADeadlineToo) {
  engine::EmbeddedOptions options = Small();
  options.store.host_bytes = uint64_t{2} << 20;
  const auto engine = OpenEngine(options);
  absl::Status full;
  std::vector<SequenceInfo> all;
  while (full.ok() && all.size() < 64) {
    all.push_back(*engine->Create({}, Spec(WideGeometry())));
    full = AppendSeed(*engine, all.back(), kSeed, 0, 10);
  }
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_OK(engine->Delete({}, all[0].handle));
  EXPECT_OK(AppendSeed(*engine, all.back(), kSeed, 0, 10));
  ExpectConserved(*engine);
}

TEST_F(TiersTest, AFlushSurvivesARestartToTheBit) {
  const engine::EmbeddedOptions options = DiskOptions(folder_);
  const auto judge = OpenEngine(MemoryOptions());
  for (const int64_t length : {0, 1, 63, 64, 200, 1100}) {
    SCOPED_TRACE(length);
    auto engine = OpenEngine(options);
    const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
    const SequenceInfo same = *judge->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, length));
    ASSERT_OK(AppendSeed(*judge, same, kSeed, 0, length));
    const absl::StatusOr<SequenceInfo> flushed = engine->Flush({}, info.handle);
    ASSERT_OK(flushed);
    EXPECT_EQ(flushed->durable_length, length);
    engine.reset();
    engine = OpenEngine(options);
    const absl::StatusOr<SequenceInfo> back = engine->Get({}, info.handle);
    ASSERT_OK(back);
    EXPECT_EQ(back->length, length);
    EXPECT_EQ(back->durable_length, length);
    EXPECT_EQ(back->writer_epoch, info.writer_epoch);
    EXPECT_EQ(back->spec.model_fingerprint, "model");
    EXPECT_EQ(back->spec.geometry, info.spec.geometry);
    ExpectSameBits(*judge, same, *engine, *back);
    // It goes on as before.
    ASSERT_OK(AppendSeed(*engine, *back, kOtherSeed, length, length + 70));
    ASSERT_OK(AppendSeed(*judge, same, kOtherSeed, length, length + 70));
    ExpectSameBits(*judge, same, *engine, *back);
    ASSERT_OK(engine->Delete({}, info.handle));
  }
}

// I6: nothing that was not durable comes back, nothing that was is lost.
TEST_F(TiersTest, WithoutAFlushTheDurablePrefixIsServed) {
  const engine::EmbeddedOptions options = DiskOptions(folder_);  // durability none
  const auto judge = OpenEngine(MemoryOptions());
  for (const int64_t flushed : {0, 40, 64, 100}) {
    for (const int64_t more : {24, 100}) {
      SCOPED_TRACE(::testing::Message() << flushed << " + " << more);
      auto engine = OpenEngine(options);
      const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
      ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, flushed));
      ASSERT_OK(engine->Flush({}, info.handle));
      ASSERT_OK(AppendSeed(*engine, info, kOtherSeed, flushed, flushed + more));
      const SequenceInfo before = *engine->Get({}, info.handle);
      EXPECT_EQ(before.durable_length, flushed);
      EXPECT_EQ(before.length, flushed + more);
      engine.reset();
      engine = OpenEngine(options);
      const absl::StatusOr<SequenceInfo> back = engine->Get({}, info.handle);
      ASSERT_OK(back);
      EXPECT_EQ(back->length, flushed);
      ASSERT_OK(AppendSeed(*engine, *back, kSeed, flushed, 200));
      const SequenceInfo same = *judge->Create({}, Spec(SmallGeometry()));
      ASSERT_OK(AppendSeed(*judge, same, kSeed, 0, 200));
      ExpectSameBits(*judge, same, *engine, *back);
      ASSERT_OK(judge->Delete({}, same.handle));
      ASSERT_OK(engine->Delete({}, info.handle));
    }
  }
}

TEST_F(TiersTest, LayersThatGotFurtherAreCutBackAtARestart) {
  const engine::EmbeddedOptions options = DiskOptions(folder_);
  const auto judge = OpenEngine(MemoryOptions());
  const Geometry geometry = SmallGeometry();
  for (const int64_t ahead : {1, 24, 100}) {
    SCOPED_TRACE(ahead);
    auto engine = OpenEngine(options);
    const SequenceInfo info = *engine->Create({}, Spec(geometry));
    ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 100));
    ASSERT_OK(AppendRowsOf(*engine, info, 0, 100, MakeRows(geometry, kOtherSeed, 0, 100, ahead)));
    ASSERT_OK(engine->Flush({}, info.handle));
    engine.reset();
    for (int restart = 0; restart < 2; ++restart) {
      engine = OpenEngine(options);
      EXPECT_EQ(engine->Get({}, info.handle)->layer_lengths, (std::vector<int64_t>{100, 100}));
      engine.reset();
    }
    engine = OpenEngine(options);
    const SequenceInfo same = *judge->Create({}, Spec(geometry));
    ASSERT_OK(AppendSeed(*judge, same, kSeed, 0, 100));
    ExpectSameBits(*judge, same, *engine, info);
    ASSERT_OK(AppendSeed(*engine, info, kSeed, 100, 300));
    ASSERT_OK(AppendSeed(*judge, same, kSeed, 100, 300));
    ExpectSameBits(*judge, same, *engine, info);
    ASSERT_OK(engine->Delete({}, info.handle));
  }
}

TEST_F(TiersTest, ForksAndTruncatesSurviveARestart) {
  const engine::EmbeddedOptions options = DiskOptions(folder_);
  const auto judge = OpenEngine(MemoryOptions());
  auto engine = OpenEngine(options);
  const auto build = [&](engine::KvEngine& e) {
    std::vector<SequenceInfo> all = {*e.Create({}, Spec(SmallGeometry()))};
    EXPECT_OK(AppendSeed(e, all[0], kSeed, 0, 300));
    all.push_back(*e.Fork({}, all[0].handle, 150, ""));
    EXPECT_OK(AppendSeed(e, all[1], kOtherSeed, 150, 400));
    EXPECT_OK(e.Truncate({}, all[0].handle, all[0].writer_epoch, 100));
    EXPECT_OK(AppendSeed(e, all[0], kOtherSeed, 100, 170));
    all.push_back(*e.Fork({}, all[1].handle, 256, ""));
    return all;
  };
  const std::vector<SequenceInfo> expected = build(*judge);
  const std::vector<SequenceInfo> got = build(*engine);
  for (const SequenceInfo& info : got) ASSERT_OK(engine->Flush({}, info.handle));
  engine.reset();
  engine = OpenEngine(options);
  for (size_t i = 0; i < got.size(); ++i) ExpectSameBits(*judge, expected[i], *engine, got[i]);
  ASSERT_OK(engine->Delete({}, got[1].handle));
  engine.reset();
  engine = OpenEngine(options);
  EXPECT_EQ(engine->sequence_count(), 2u);
  ExpectSameBits(*judge, expected[0], *engine, got[0]);
  ExpectSameBits(*judge, expected[2], *engine, got[2]);
  ExpectConserved(*engine);
}

TEST_F(TiersTest, ATruncateOfFlushedRowsDoesNotBringThemBack) {
  const engine::EmbeddedOptions options = DiskOptions(folder_);
  auto engine = OpenEngine(options);
  const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 100));
  ASSERT_OK(engine->Flush({}, info.handle));
  ASSERT_OK(engine->Truncate({}, info.handle, info.writer_epoch, 90));
  ASSERT_OK(AppendSeed(*engine, info, kOtherSeed, 90, 110));
  engine.reset();
  engine = OpenEngine(options);
  const int64_t length = engine->Get({}, info.handle)->length;
  EXPECT_LE(length, 90);
  EXPECT_GE(length, 64);
  ASSERT_OK(AppendSeed(*engine, info, kOtherSeed, length, 90));
}

TEST_F(TiersTest, AFullDiskRefusesAFlushAndServesOn) {
  engine::EmbeddedOptions options = DiskOptions(folder_);  // 64 MiB, written on flush
  options.store.host_bytes = uint64_t{128} << 20;
  const auto engine = OpenEngine(options);
  Geometry geometry = WideGeometry();
  geometry.layers = 1;
  const SequenceInfo info = *engine->Create({}, Spec(geometry));
  // 2 KiB of rows a token, and half as much index: 72 MiB.
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 24'000));
  const Step ask = ReadStep(info, kSeed, 0, 23'999, 1, Sparq(16, 20));
  const engine::StepResult before = RunOne(*engine, 0, ask);
  ASSERT_OK(before.status);
  EXPECT_THAT(engine->Flush({}, info.handle), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_LT(engine->Get({}, info.handle)->durable_length, 24'000);
  ExpectSameAnswer(before, RunOne(*engine, 0, ask));
  EXPECT_OK(AppendSeed(*engine, info, kSeed, 24'000, 24'100));
  ExpectConserved(*engine);
  ASSERT_OK(engine->Delete({}, info.handle));
}

TEST_F(TiersTest, AFlushNeedsADisk) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
  EXPECT_EQ(engine->Get({}, info.handle)->durable_length, 0);
  EXPECT_THAT(engine->Flush({}, info.handle), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(TiersTest, AnotherShardsDiskIsRefused) {
  engine::EmbeddedOptions options = DiskOptions(folder_);
  OpenEngine(options).reset();
  options.store.shard = 3;
  EXPECT_THAT(engine::EmbeddedEngine::Open(options),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace terrace::testing
