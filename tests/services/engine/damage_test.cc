// Bytes that rotted on disk: never in an answer (I1).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kvstore/disk_tier.h"
#include "tests/services/engine/disk_damage.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Geometry;
using engine::SequenceInfo;
using engine::StepResult;

constexpr uint64_t kSeed = 1;
constexpr int64_t kLength = 256;

// One row is 512 bytes, so that a granule is 16 of them.
Geometry OneHead() {
  return {.layers = 1,
          .query_heads = 2,
          .kv_heads = 1,
          .head_dim = 64,
          .storage = attention::Dtype::kFloat32,
          .scale = 0};
}

class DamageTest : public ::testing::Test {
 protected:
  DamageTest() {
    auto engine = OpenEngine(options_);
    info_ = *engine->Create({}, Spec(OneHead()));
    plain_.Append(0, MakeRows(OneHead(), kSeed, 0, 0, kLength));
    EXPECT_OK(AppendSeed(*engine, info_, kSeed, 0, kLength));
    EXPECT_OK(engine->Flush({}, info_.handle));
    // All channels: the approximate scores are the exact ones.
    sparse_ = ReadStep(info_, kSeed, 0, kLength - 1, 1, Sparq(64, 20));
    healthy_ = RunOne(*engine, 0, sparse_);
    EXPECT_OK(healthy_.status);
    engine.reset();
    // Opening once more brings what only the log held into files.
    OpenEngine(options_).reset();
  }

  void Damage(const std::vector<std::byte>& bytes) {
    ASSERT_GE(FlipOnDisk(options_.store.disk_path, bytes), 1);
    engine_ = OpenEngine(options_);
  }
  void DamageRow(uint32_t position) { Damage(plain_.StoredRow(0, 0, position)); }

  Step Dense() const { return ReadStep(info_, kSeed, 0, kLength - 1, 1, attention::DensePolicy()); }

  // Softmax weights of one query head over all rows.
  std::vector<double> Weights(int query_head) const {
    const std::vector<float> q = MakeQueries(OneHead(), kSeed, 0, kLength - 1, 1);
    const double lse =
        plain_.Attend(0, kLength, q.data(), attention::DensePolicy()).lse[query_head];
    std::vector<double> weights;
    for (int64_t t = 0; t < kLength; ++t) {
      const std::vector<std::byte> row = plain_.StoredRow(0, 0, t);
      double logit = 0;
      for (int c = 0; c < 64; ++c) {
        float k = 0;
        std::memcpy(&k, &row[c * sizeof(k)], sizeof(k));
        logit += static_cast<double>(q[query_head * 64 + c]) * k / 8;
      }
      weights.push_back(std::exp(logit - lse));
    }
    return weights;
  }

  TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  SequenceInfo info_;
  PlainCache plain_{OneHead()};
  Step sparse_;
  StepResult healthy_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_F(DamageTest, ADamagedRowIsALossWhenStrict) {
  DamageRow(healthy_.selections[0].positions[3]);
  EXPECT_THAT(RunOne(*engine_, 0, sparse_, {.strict = true}).status,
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(RunOne(*engine_, 0, Dense(), {.strict = true}).status,
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_GT((*engine_->ListTiers())[1].stats.corrupt_granules, 0u);
}

TEST_F(DamageTest, OtherwiseItIsLeftOutAndItsMassReported) {
  const uint32_t victim = healthy_.selections[0].positions[3];
  DamageRow(victim);
  const StepResult result = RunOne(*engine_, 0, sparse_);
  ASSERT_OK(result.status);
  std::vector<uint32_t> kept;
  std::vector<uint32_t> missed;
  for (const uint32_t position : healthy_.selections[0].positions) {
    (position / 16 == victim / 16 ? missed : kept).push_back(position);
  }
  EXPECT_EQ(result.selections[0].positions, kept);
  EXPECT_EQ(result.account.missed_rows, missed.size());
  double worst = 0;
  for (int h = 0; h < 2; ++h) {
    const std::vector<double> weights = Weights(h);
    double lost = 0;
    double held = 0;
    for (const uint32_t position : missed) lost += weights[position];
    for (const uint32_t position : kept) held += weights[position];
    worst = std::max(worst, lost);
    EXPECT_NEAR(result.account.alpha[h], held, 1e-5);
    std::vector<double> expected(64, 0.0);
    for (const uint32_t position : kept) {
      const std::vector<std::byte> row = plain_.StoredRow(0, 0, position);
      for (int c = 0; c < 64; ++c) {
        float v = 0;
        std::memcpy(&v, &row[(64 + c) * sizeof(v)], sizeof(v));
        expected[c] += weights[position] / held * v;
      }
    }
    EXPECT_LT(RelativeError(expected, result.output.data() + h * 64), 1e-5);
  }
  EXPECT_NEAR(result.account.missed_mass, worst, 1e-5);
  EXPECT_GT(result.account.missed_mass, 0.0F);
}

// Without approximate scores nobody knows what the lost rows weigh.
TEST_F(DamageTest, DenseLeavesItOutAndVouchesForNothing) {
  DamageRow(100);
  Step step = Dense();
  // The first query does not see the granule of rows [96, 112), the second sees all of it.
  step.position = 95;
  step.q = MakeTensor(MakeQueries(OneHead(), kSeed, 0, 95, 17), 17, 2, 64);
  const StepResult result = RunOne(*engine_, 0, step);
  ASSERT_OK(result.status);
  EXPECT_EQ(result.account.missed_mass, 1.0F);
  EXPECT_EQ(result.account.missed_rows, uint64_t{16 * 17 / 2});
  EXPECT_EQ(result.account.disk.rows, 96u);
  for (int query = 0; query < 17; ++query) {
    EXPECT_EQ(result.selections[query].positions.size(), 96u);
    EXPECT_EQ(result.selections[query].positions.back(), 95u);
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(result.account.alpha[query * 2 + h], query == 0 ? 1.0F : 0.0F);
    }
    // What it would be if the rows had never been.
    PlainCache kept(OneHead());
    kept.Append(0, MakeRows(OneHead(), kSeed, 0, 0, 96));
    const std::vector<float> q = MakeQueries(OneHead(), kSeed, 0, 95 + query, 1);
    const auto expected = kept.Attend(0, 96, q.data(), attention::DensePolicy());
    EXPECT_LT(RelativeError(expected.output, result.output.data() + query * 128), 1e-5);
  }
}

TEST_F(DamageTest, ADenseQueryWithoutARowIsALoss) {
  DamageRow(0);
  EXPECT_THAT(RunOne(*engine_, 0, ReadStep(info_, kSeed, 0, 15, 1, attention::Policy())).status,
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(RunOne(*engine_, 0, ReadStep(info_, kSeed, 0, 16, 1, attention::Policy())).status);
}

TEST_F(DamageTest, WhenNoSelectedRowIsLeftTheStepIsALoss) {
  DamageRow(kLength - 1);
  const Step last = ReadStep(info_, kSeed, 0, kLength - 1, 1, Sparq(64, 1));
  EXPECT_THAT(RunOne(*engine_, 0, last).status, StatusIs(absl::StatusCode::kDataLoss));
  // A query that does not see it is served.
  const Step before = ReadStep(info_, kSeed, 0, 200, 1, Sparq(64, 1));
  EXPECT_OK(RunOne(*engine_, 0, before).status);
}

TEST_F(DamageTest, ADamagedIndexIsALossForSparseStepsAndNoneForDense) {
  // Channel 0 of block 1 as its piece holds it: one key element of each of 64 rows.
  std::vector<std::byte> channel;
  for (int64_t t = 64; t < 128; ++t) {
    const std::vector<std::byte> row = plain_.StoredRow(0, 0, t);
    channel.insert(channel.end(), row.begin(), row.begin() + sizeof(float));
  }
  Damage(channel);
  EXPECT_THAT(RunOne(*engine_, 0, sparse_).status, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(RunOne(*engine_, 0, Dense()).status);
  // Digests are in the same piece: a repeat can be neither confirmed nor denied.
  const KvRows rows = MakeRows(OneHead(), kSeed, 0, 64, 1);
  EXPECT_THAT(AppendRowsOf(*engine_, info_, 0, 64, rows), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(AppendSeed(*engine_, info_, kSeed, 0, 64));
}

// Rows [kLength, kLength + 20) of layer 0 lie in a tail that rotted.
class DamagedTailTest : public DamageTest {
 protected:
  DamagedTailTest() {
    engine_ = OpenEngine(options_);
    EXPECT_OK(AppendSeed(*engine_, info_, kSeed, kLength, kLength + 20));
    EXPECT_OK(engine_->Flush({}, info_.handle));
    engine_.reset();
    OpenEngine(options_).reset();
    plain_.Append(0, MakeRows(OneHead(), kSeed, 0, kLength, 20));
    DamageRow(kLength + 7);
  }

  absl::Status Ask(int64_t position, const attention::Policy& policy) {
    return RunOne(*engine_, 0, ReadStep(info_, kSeed, 0, position, 1, policy)).status;
  }
  auto IsLossOfTheTail() const {
    return StatusIs(absl::StatusCode::kDataLoss,
                    ::testing::HasSubstr("layer 0, positions [256, 276)"));
  }
  // The rows of the seed stand, whole, and go on.
  void ExpectUsable(const SequenceInfo& info, int64_t length) {
    ASSERT_EQ(engine_->Get({}, info.handle)->length, length);
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, length, kLength + 30));
    ASSERT_OK(engine_->Flush({}, info.handle));
    engine_ = nullptr;
    engine_ = OpenEngine(options_);
    for (const uint32_t position : {uint32_t{0}, uint32_t{255}, uint32_t{256}, uint32_t{285}}) {
      const auto row = engine_->ReadRows({}, info.handle, 0, 0, {&position, 1});
      ASSERT_OK(row);
      const KvRows expected = MakeRows(OneHead(), kSeed, 0, position, 1);
      EXPECT_EQ(std::memcmp(row->data(), expected.k.data(), expected.k.size() * sizeof(float)), 0);
    }
  }
};

TEST_F(DamagedTailTest, OnlyItsRowsAreLost) {
  for (const attention::Policy& policy : {Sparq(64, 20), attention::Policy()}) {
    EXPECT_OK(Ask(0, policy));
    EXPECT_OK(Ask(kLength - 1, policy));
    EXPECT_THAT(Ask(kLength, policy), IsLossOfTheTail());
    EXPECT_THAT(Ask(kLength + 19, policy), IsLossOfTheTail());
  }
  ExpectSameAnswer(healthy_, RunOne(*engine_, 0, sparse_));
  const uint32_t below = kLength - 1;
  const uint32_t inside = kLength;
  EXPECT_OK(engine_->ReadRows({}, info_.handle, 0, 0, {&below, 1}));
  EXPECT_THAT(engine_->ReadRows({}, info_.handle, 0, 0, {&inside, 1}), IsLossOfTheTail());
  // Repeats below are compared; what is new would have to follow rows that are lost.
  EXPECT_OK(AppendSeed(*engine_, info_, kSeed, kLength - 10, kLength));
  EXPECT_THAT(AppendSeed(*engine_, info_, kSeed, kLength + 20, kLength + 21), IsLossOfTheTail());
  EXPECT_EQ(engine_->Get({}, info_.handle)->length, kLength + 20);
  EXPECT_OK(engine_->Resume({}, info_.handle, ""));
}

TEST_F(DamagedTailTest, ACutAtTheLastSealedBlockMakesItUsableAgain) {
  ASSERT_OK(engine_->Truncate({}, info_.handle, info_.writer_epoch, kLength));
  ExpectUsable(info_, kLength);
}

TEST_F(DamagedTailTest, SoDoesACutBelowIt) {
  ASSERT_OK(engine_->Truncate({}, info_.handle, info_.writer_epoch, 100));
  ExpectUsable(info_, 100);
}

TEST_F(DamagedTailTest, ACutInsideItKeepsTheLoss) {
  ASSERT_OK(engine_->Truncate({}, info_.handle, info_.writer_epoch, kLength + 3));
  EXPECT_THAT(Ask(kLength + 2, Sparq(64, 20)), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(Ask(kLength - 1, Sparq(64, 20)));
  ASSERT_OK(engine_->Truncate({}, info_.handle, info_.writer_epoch, kLength));
  ExpectUsable(info_, kLength);
}

TEST_F(DamagedTailTest, AForkBelowItIsUsable) {
  EXPECT_THAT(engine_->Fork({}, info_.handle, kLength + 1, ""), IsLossOfTheTail());
  for (const int64_t position : {kLength, int64_t{200}}) {
    const auto child = engine_->Fork({}, info_.handle, position, "");
    ASSERT_OK(child);
    ExpectUsable(*child, position);
  }
}

TEST_F(DamagedTailTest, ADeleteRemovesIt) {
  EXPECT_OK(engine_->Delete({}, info_.handle));
  EXPECT_EQ(engine_->sequence_count(), 0u);
}

// A restart cuts layers back, and needs no rows of them for that.
TEST_F(DamageTest, ADamagedTailOfOneLayerLeavesTheOthersAlone) {
  Geometry geometry = OneHead();
  geometry.layers = 2;
  for (const int64_t ahead : {0, 60}) {
    SCOPED_TRACE(ahead);
    engine_ = OpenEngine(options_);
    const SequenceInfo info = *engine_->Create({}, Spec(geometry));
    ASSERT_OK(AppendSeed(*engine_, info, kSeed + ahead, 0, 100));
    if (ahead > 0) {
      const KvRows more = MakeRows(geometry, kSeed + ahead, 0, 100, ahead);
      ASSERT_OK(AppendRowsOf(*engine_, info, 0, 100, more));
    }
    ASSERT_OK(engine_->Flush({}, info.handle));
    engine_.reset();
    // The log into files, as an engine's start would, but without its cut.
    ASSERT_OK(kvstore::BlockStore::Open(options_.store));
    PlainCache plain(geometry);
    plain.Append(1, MakeRows(geometry, kSeed + ahead, 1, 0, 100));
    Damage(plain.StoredRow(1, 0, 70));
    const SequenceInfo back = *engine_->Get({}, info.handle);
    EXPECT_EQ(back.layer_lengths, (std::vector<int64_t>{100, 100}));
    const auto ask = [&](int layer, int64_t position) {
      const Step step = ReadStep(info, kSeed, layer, position, 1, Sparq(64, 20));
      return RunOne(*engine_, layer, step).status;
    };
    EXPECT_OK(ask(0, 99));
    EXPECT_OK(ask(1, 63));
    EXPECT_THAT(ask(1, 64), StatusIs(absl::StatusCode::kDataLoss,
                                     ::testing::HasSubstr("layer 1, positions [64, 100)")));
    ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, 64));
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 64, 120));
    EXPECT_OK(ask(0, 119));
    EXPECT_OK(ask(1, 119));
    ASSERT_OK(engine_->Delete({}, info.handle));
    engine_.reset();
  }
}

// How much of it is on disk is not known, so it is neither served nor touched.
TEST_F(DamageTest, ADamagedWatermarkIsALossOfItsSequencesAndOfNoOther) {
  engine_ = OpenEngine(options_);
  const SequenceInfo other = *engine_->Create({}, Spec(OneHead()));
  ASSERT_OK(AppendSeed(*engine_, other, kSeed + 1, 0, 100));
  ASSERT_OK(engine_->Flush({}, other.handle));
  const SequenceInfo child = *engine_->Fork({}, info_.handle, 128, "");
  const kvstore::SegmentId segment{engine_->Describe(info_.handle)->segments[0].segment};
  engine_.reset();
  {
    const auto disk = kvstore::DiskTier::Open({.path = options_.store.disk_path,
                                               .bytes = options_.store.disk_bytes,
                                               .shard = options_.store.shard,
                                               .fault = {}});
    ASSERT_OK(disk);
    kvstore::DiskBatch batch;
    batch.PutAsIs(kvstore::RecordKey(kvstore::RecordKind::kWatermark, segment).view(), "rotten");
    ASSERT_OK((*disk)->Write(batch, /*sync=*/true, kvstore::DiskTier::Growth::kFrees));
  }
  engine_ = OpenEngine(options_);
  const auto is_loss =
      StatusIs(absl::StatusCode::kDataLoss, ::testing::HasSubstr("is not known any more"));
  for (int start = 0; start < 2; ++start) {
    EXPECT_EQ(engine_->damaged().size(), 2u);
    EXPECT_THAT(engine_->Get({}, info_.handle), is_loss);
    EXPECT_THAT(engine_->Get({}, child.handle), is_loss);
    EXPECT_EQ(engine_->Get({}, other.handle)->length, 100);
    engine_.reset();
    engine_ = OpenEngine(options_);
  }
  ASSERT_OK(engine_->Delete({}, info_.handle));
  engine_.reset();
  engine_ = OpenEngine(options_);
  EXPECT_THAT(engine_->Get({}, child.handle), is_loss);
  ASSERT_OK(engine_->Delete({}, child.handle));
  engine_.reset();
  engine_ = OpenEngine(options_);
  EXPECT_TRUE(engine_->damaged().empty());
  EXPECT_EQ(engine_->Get({}, other.handle)->length, 100);
}

TEST_F(DamageTest, DamageToOneSequenceLeavesOthersAlone) {
  engine_ = OpenEngine(options_);
  const SequenceInfo other = *engine_->Create({}, Spec(OneHead()));
  ASSERT_OK(AppendSeed(*engine_, other, kSeed + 1, 0, kLength));
  ASSERT_OK(engine_->Flush({}, other.handle));
  engine_.reset();
  OpenEngine(options_).reset();
  DamageRow(healthy_.selections[0].positions[3]);
  const StepResult result = RunOne(
      *engine_, 0, ReadStep(other, kSeed, 0, kLength - 1, 1, Sparq(64, 20)), {.strict = true});
  EXPECT_OK(result.status);
}

}  // namespace
}  // namespace terrace::testing
