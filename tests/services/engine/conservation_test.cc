// I8 on what ListTiers says, at every moment of a load that evicts, promotes, reads ahead, parks,
// cuts and deletes.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using kvstore::TierStats;

constexpr uint64_t kSeed = 1;
constexpr int kWorkers = 3;
constexpr int kRounds = 12;

void ExpectConserved(const TierStats& s) {
  EXPECT_EQ(s.admitted_blocks, s.resident_blocks + s.evicted_blocks + s.deleted_blocks);
  EXPECT_EQ(s.admitted_bytes, s.resident_bytes + s.evicted_bytes + s.deleted_bytes);
  EXPECT_LE(s.ahead_useful_blocks + s.ahead_late_blocks + s.ahead_wasted_blocks, s.ahead_blocks);
  EXPECT_LE(s.demoted_blocks, s.evicted_blocks);
  EXPECT_LE(s.used_bytes, s.capacity_bytes);
  EXPECT_LE(s.pinned_bytes, s.capacity_bytes);
}

class ConservationTest : public ::testing::Test {
 protected:
  ConservationTest() {
    options_.block_tokens = 16;
    options_.index_tokens = 64;
    options_.compute_threads = 2;
    options_.store.host_bytes = uint64_t{2} << 20;
    options_.store.durability = kvstore::Durability::kAsync;
    engine_ = OpenEngine(options_);
    geometry_.layers = 4;
    geometry_.head_dim = 64;
  }

  TierStats Host() const { return (*engine_->ListTiers())[0].stats; }
  TierStats Disk() const { return (*engine_->ListTiers())[1].stats; }

  // Steps over all layers, so that what the next ones want is read ahead.
  void Decode(const SequenceInfo& info, int64_t position) {
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      ASSERT_OK(RunOne(*engine_, layer, ReadStep(info, kSeed, layer, position, 1, Sparq(8, 48, 4)),
                       {.strict = true})
                    .status);
    }
  }
  // The life of a sequence and of a fork of it.
  void Live(std::mt19937_64& random) {
    const SequenceInfo info = *engine_->Create({}, Spec(geometry_));
    const auto length = static_cast<int64_t>(100 + random() % 300);
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, length, 64));
    for (int i = 0; i < 4; ++i) Decode(info, length - 1 - i);
    const auto position = static_cast<int64_t>(random() % length);
    const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, info.handle, position, "");
    ASSERT_OK(child);
    ASSERT_OK(AppendSeed(*engine_, *child, kSeed, position, position + 40));
    ASSERT_OK(engine_->Park({}, info.handle));
    Decode(*child, position + 39);
    Decode(info, length - 1);
    ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, position));
    const bool keeps_child = random() % 2 == 0;
    ASSERT_OK(engine_->Delete({}, keeps_child ? info.handle : child->handle));
    // Open blocks of many sequences would fill the memory.
    ASSERT_OK(engine_->Park({}, keeps_child ? child->handle : info.handle));
  }

  TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  engine::Geometry geometry_ = SmallGeometry();
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_F(ConservationTest, HoldsAtEveryMomentOfALoad) {
  std::atomic<int> working = kWorkers;
  std::vector<std::thread> workers;
  for (uint64_t w = 0; w < kWorkers; ++w) {
    workers.emplace_back([&, w] {
      std::mt19937_64 random(w);
      for (int round = 0; round < kRounds; ++round) Live(random);
      --working;
    });
  }
  while (working > 0) {
    ExpectConserved(Host());
    ExpectConserved(Disk());
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_GT(Host().evicted_blocks, 0u);
  EXPECT_GT(Host().deleted_blocks, 0u);
  EXPECT_GT(Host().ahead_blocks, 0u);
  EXPECT_GT(Disk().read_bytes, 0u);
  EXPECT_GT(Disk().deleted_blocks, 0u);
  EXPECT_GT(Disk().resident_blocks, 0u);

  const auto left = engine_->ListSequences("", "", 1000);
  ASSERT_OK(left);
  for (const engine::SequenceSummary& summary : *left) {
    ASSERT_OK(engine_->Delete({}, summary.handle));
  }
  // What is being read ahead or written when its sequence ends goes a little later.
  const auto settled = [](const TierStats& s) {
    return s.resident_blocks == 0 && s.resident_bytes == 0 && s.index_bytes == 0 &&
           s.ahead_blocks == s.ahead_useful_blocks + s.ahead_late_blocks + s.ahead_wasted_blocks;
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!(settled(Host()) && settled(Disk())) && absl::Now() < deadline) {
    std::this_thread::yield();
  }
  ExpectConserved(Host());
  ExpectConserved(Disk());
  EXPECT_TRUE(settled(Host()));
  EXPECT_TRUE(settled(Disk()));
  EXPECT_EQ(Host().used_bytes, 0u);
  EXPECT_EQ(Host().pinned_bytes, 0u);
}

}  // namespace
}  // namespace terrace::testing
