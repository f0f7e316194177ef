// Speculative decoding: drafts of a few tokens are appended and mostly cut off again, over and over
// across block edges. What is answered is to the bit what a sequence answers that was given the
// standing rows at once.
//
// A run is its seed. TERRACE_SIM_SEED=N runs that one alone; otherwise known seeds and a fresh one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using engine::StepResult;

constexpr int kBlock = 16;
constexpr int kRounds = 300;
constexpr int64_t kDraftMax = 9;
constexpr int64_t kLengthMax = 200;

const attention::Policy kPolicies[] = {attention::DensePolicy(),
                                       Sparq(8, 24, 4, 1, attention::ValueMean::kMean),
                                       Sparq(16, 12, 2, 0, attention::ValueMean::kResidual)};

class Speculation {
 public:
  explicit Speculation(uint64_t seed) : random_(seed) {
    options_ = DiskOptions(folder_);
    options_.block_tokens = kBlock;
    options_.index_tokens = kBlock << Pick(0, 2);
    if (Pick(0, 1) == 1) options_.store.durability = kvstore::Durability::kAsync;
    engine_ = OpenEngine(options_);
    engine::EmbeddedOptions in_memory = MemoryOptions();
    in_memory.block_tokens = kBlock;
    in_memory.index_tokens = options_.index_tokens;
    judge_ = OpenEngine(in_memory);
    info_ = *engine_->Create({}, spec_);
  }

  void Run() {
    for (int round = 0; round < kRounds && !::testing::Test::HasFailure(); ++round) {
      SCOPED_TRACE(::testing::Message() << "round " << round << ", length " << length_);
      Draft(kPolicies[round % 3]);
      if (length_ > kLengthMax) Cut(Pick(0, kLengthMax));
      if (Pick(0, 9) == 0) Rest();
    }
  }

 private:
  int64_t Pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  // Appends some tokens by one step of each layer, checks it, and keeps a few of them.
  void Draft(const attention::Policy& policy) {
    const int64_t n = Pick(1, kDraftMax);
    const SequenceInfo fresh = Fresh();
    for (int layer = 0; layer < spec_.geometry.layers; ++layer) {
      const KvRows rows = MakeRows(spec_.geometry, random_(), layer, length_, n);
      plain_.Append(layer, rows);
      Step step = ReadStep(info_, random_(), layer, length_, n, policy);
      step.k = MakeTensor(rows.k, n, spec_.geometry.kv_heads, spec_.geometry.head_dim);
      step.v = MakeTensor(rows.v, n, spec_.geometry.kv_heads, spec_.geometry.head_dim);
      const StepResult got = RunOne(*engine_, layer, step, {.strict = true});
      ASSERT_OK(got.status);
      step.handle = fresh.handle;
      step.epoch = fresh.writer_epoch;
      ExpectSameAnswer(RunOne(*judge_, layer, step, {.strict = true}), got);
    }
    ASSERT_OK(judge_->Delete({}, fresh.handle));
    length_ += n;
    // Back to somewhere in the draft, or a little before it, and to block edges more than by
    // chance.
    int64_t to = length_ - Pick(0, n + 3);
    if (Pick(0, 2) == 0) to = (to + kBlock / 2) / kBlock * kBlock + Pick(-1, 1);
    Cut(std::clamp<int64_t>(to, 0, length_));
  }

  // A sequence of the judge with the rows that stand.
  SequenceInfo Fresh() {
    const SequenceInfo fresh = *judge_->Create({}, spec_);
    for (int layer = 0; layer < spec_.geometry.layers && length_ > 0; ++layer) {
      EXPECT_OK(AppendRowsOf(*judge_, fresh, layer, 0, plain_.RowsAt(layer, 0, length_)));
    }
    return fresh;
  }

  void Cut(int64_t length) {
    const absl::StatusOr<SequenceInfo> cut =
        engine_->Truncate({}, info_.handle, info_.writer_epoch, length);
    ASSERT_OK(cut);
    ASSERT_EQ(cut->length, length);
    length_ = length;
    plain_.Truncate(length);
  }

  // What a scheduler does in between.
  void Rest() {
    if (Pick(0, 1) == 0) {
      ASSERT_OK(engine_->Flush({}, info_.handle));
    } else {
      ASSERT_OK(engine_->Park({}, info_.handle));
    }
    if (Pick(0, 1) == 1) return;
    // A branch of the search takes over.
    const absl::StatusOr<SequenceInfo> fork = engine_->Fork({}, info_.handle, Pick(0, length_), "");
    ASSERT_OK(fork);
    ASSERT_OK(engine_->Delete({}, info_.handle));
    info_ = *fork;
    length_ = fork->length;
    plain_.Truncate(length_);
  }

  const TempFolder folder_;
  std::mt19937_64 random_;
  engine::SequenceSpec spec_ = Spec(SmallGeometry(), attention::IndexFormat::kInt8);
  engine::EmbeddedOptions options_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  std::unique_ptr<engine::EmbeddedEngine> judge_;
  SequenceInfo info_;
  PlainCache plain_{spec_.geometry};
  int64_t length_ = 0;
};

TEST(SpeculateTest, DraftsThatAreCutOffLeaveNoTrace) {
  std::vector<uint64_t> seeds = {1, 2, 3, std::random_device{}()};
  if (const char* given = std::getenv("TERRACE_SIM_SEED"); given != nullptr) {
    seeds = {std::strtoull(given, nullptr, 10)};
  }
  for (const uint64_t seed : seeds) {
    SCOPED_TRACE(::testing::Message() << "TERRACE_SIM_SEED=" << seed);
    Speculation(seed).Run();
  }
}

}  // namespace
}  // namespace terrace::testing
