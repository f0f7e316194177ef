// Bytes that rotted on disk: never in an answer (I1).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
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

// Flips a bit of every copy of `bytes` in the files of a closed database; how many there were.
int FlipOnDisk(const std::string& folder, const std::vector<std::byte>& bytes) {
  int flipped = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string extension = entry.path().extension();
    if (extension != ".blob" && extension != ".sst") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const std::string needle(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (size_t at = all.find(needle); at != std::string::npos; at = all.find(needle, at + 1)) {
      file.clear();
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(all[at] ^ 1));
      ++flipped;
    }
  }
  return flipped;
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
  EXPECT_THAT(RunOne(*engine_, 0, Dense()).status, StatusIs(absl::StatusCode::kDataLoss));
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

TEST_F(DamageTest, ADamagedTailIsALoss) {
  engine_ = OpenEngine(options_);
  ASSERT_OK(AppendSeed(*engine_, info_, kSeed, kLength, kLength + 20));
  ASSERT_OK(engine_->Flush({}, info_.handle));
  engine_.reset();
  OpenEngine(options_).reset();
  plain_.Append(0, MakeRows(OneHead(), kSeed, 0, kLength, 20));
  DamageRow(kLength + 7);
  const Step step = ReadStep(info_, kSeed, 0, kLength + 19, 1, Sparq(64, 20));
  EXPECT_THAT(RunOne(*engine_, 0, step).status, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(AppendSeed(*engine_, info_, kSeed, kLength + 20, kLength + 21),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(engine_->Delete({}, info_.handle));
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
