// Speculative decoding rolls back hundreds of times a second: what that leaves behind must not grow
// with the number of rollbacks, whatever is flushed, parked or shared in between.
//
// A run is its seed: a fresh one, or TERRACE_SIM_SEED=N.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr int kBlock = 16;
constexpr int kDrafts = 1000;
constexpr int64_t kDraftMax = 3 * kBlock;
// Where a run settles: it grows up to there, then drafts are cut off as a whole.
constexpr int64_t kLengthMax = 20 * kBlock;

struct Case {
  const char* name;
  bool has_disk;
  kvstore::Durability durability;
  // Of how many drafts one is flushed before it is cut; 0 for none. The same for a fork that lives
  // on for a while and for a park.
  int flush_every;
  int fork_every;
  int park_every;
};

class RollbackTest : public ::testing::TestWithParam<Case> {
 protected:
  void Open() {
    engine_.reset();
    options_ = GetParam().has_disk ? DiskOptions(folder_) : MemoryOptions();
    options_.block_tokens = kBlock;
    options_.index_tokens = 4 * kBlock;
    options_.store.durability = GetParam().durability;
    engine_ = OpenEngine(options_);
  }

  void Run(uint64_t seed) {
    random_.seed(seed);
    Open();
    info_ = *engine_->Create({}, Spec(geometry_));
    for (int draft = 0; draft < kDrafts && !HasFatalFailure(); ++draft) {
      SCOPED_TRACE(::testing::Message() << "draft " << draft << ", length " << length_);
      Draft(draft);
    }
    ExpectBounded();
    ExpectRows(0, length_);
    if (!GetParam().has_disk) return;
    ASSERT_OK(engine_->Flush({}, info_.handle));
    Open();
    ASSERT_EQ(engine_->Get({}, info_.handle)->length, length_);
    ExpectRows(0, length_);
    ExpectBounded();
  }

 private:
  int64_t Pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool IsTurn(int draft, int every) const { return every != 0 && draft % every == every - 1; }

  void Append(int64_t n) {
    const uint64_t seed = random_();
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      const KvRows rows = MakeRows(geometry_, seed, layer, length_, n);
      ASSERT_OK(AppendRowsOf(*engine_, info_, layer, length_, rows));
      plain_.Append(layer, rows);
    }
    length_ += n;
  }

  // Rows that are cut over at least one block's end, and then the right ones.
  void Draft(int draft) {
    const Case& run = GetParam();
    ASSERT_NO_FATAL_FAILURE(Append(Pick(kBlock, kDraftMax)));
    if (IsTurn(draft, run.flush_every)) {
      ASSERT_OK(engine_->Flush({}, info_.handle));
    }
    if (IsTurn(draft, run.park_every)) {
      ASSERT_OK(engine_->Park({}, info_.handle));
    }
    std::string fork;
    if (IsTurn(draft, run.fork_every)) fork = engine_->Fork({}, info_.handle, length_, "")->handle;
    // At first a little further than before.
    const int64_t to = std::min(length_ - kBlock + Pick(-2, 3), kLengthMax - kBlock + Pick(0, 15));
    const auto cut =
        engine_->Truncate({}, info_.handle, info_.writer_epoch, std::max<int64_t>(to, 0));
    ASSERT_OK(cut);
    length_ = cut->length;
    plain_.Truncate(length_);
    ASSERT_NO_FATAL_FAILURE(Append(1));
    if (!fork.empty()) {
      ASSERT_OK(engine_->Delete({}, fork));
    }
    ExpectRows(std::max<int64_t>(0, length_ - 2 * kBlock), length_);
  }

  void ExpectRows(int64_t first, int64_t end) {
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      for (auto position = static_cast<uint32_t>(first); position < end; ++position) {
        const auto row = engine_->ReadRows({}, info_.handle, layer, 1, {&position, 1});
        ASSERT_OK(row);
        ASSERT_EQ(*row, plain_.StoredRow(layer, 1, position)) << layer << ", " << position;
      }
    }
  }

  void ExpectBounded() {
    const auto description = engine_->Describe(info_.handle);
    ASSERT_OK(description);
    // Those that forks shared: one at each block at most.
    EXPECT_LE(description->segments.size(),
              GetParam().fork_every == 0 ? 1 : kLengthMax / kBlock + kDraftMax / kBlock);
    if (GetParam().fork_every != 0) return;
    const std::unique_ptr<engine::EmbeddedEngine> judge = Judge();
    const kvstore::TierStats most = judge->ListTiers()->at(0).stats;
    const kvstore::TierStats got = engine_->ListTiers()->at(0).stats;
    EXPECT_LE(got.index_bytes, most.index_bytes);
    EXPECT_LE(got.resident_blocks, most.resident_blocks);
  }
  // An engine that was given the rows that stand, and a draft, at once.
  std::unique_ptr<engine::EmbeddedEngine> Judge() {
    engine::EmbeddedOptions options = MemoryOptions();
    options.block_tokens = options_.block_tokens;
    options.index_tokens = options_.index_tokens;
    std::unique_ptr<engine::EmbeddedEngine> judge = OpenEngine(options);
    const SequenceInfo info = *judge->Create({}, Spec(geometry_));
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      EXPECT_OK(AppendRowsOf(*judge, info, layer, 0, plain_.RowsAt(layer, 0, length_)));
      EXPECT_OK(AppendRowsOf(*judge, info, layer, length_,
                             MakeRows(geometry_, 1, layer, length_, kDraftMax)));
    }
    return judge;
  }

  const TempFolder folder_;
  const engine::Geometry geometry_ = SmallGeometry();
  std::mt19937_64 random_;
  engine::EmbeddedOptions options_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  SequenceInfo info_;
  PlainCache plain_{geometry_};
  int64_t length_ = 0;
};

TEST_P(RollbackTest, LeavesNothingBehindThatGrows) {
  const char* given = std::getenv("TERRACE_SIM_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "TERRACE_SIM_SEED=" << seed);
  Run(seed);
}

INSTANTIATE_TEST_SUITE_P(
    Stores, RollbackTest,
    ::testing::Values(Case{"in_memory", false, kvstore::Durability::kNone, 0, 0, 0},
                      Case{"flushed", true, kvstore::Durability::kNone, 7, 0, 0},
                      Case{"written_behind", true, kvstore::Durability::kAsync, 0, 0, 0},
                      Case{"written_behind_and_flushed", true, kvstore::Durability::kAsync, 5, 0,
                           0},
                      Case{"parked", true, kvstore::Durability::kAsync, 11, 0, 13},
                      Case{"forked", true, kvstore::Durability::kAsync, 11, 3, 0},
                      Case{"forked_in_memory", false, kvstore::Durability::kNone, 0, 3, 0}),
    [](const ::testing::TestParamInfo<Case>& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace terrace::testing
