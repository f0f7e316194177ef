// A sequence that was parked is not in memory, answers as before, and reads for it no more than it
// must.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/services/engine/prefix_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::ParkReport;
using engine::SequenceInfo;
using engine::SequenceSummary;
using kvstore::TierStats;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

class ParkTest : public ::testing::Test {
 protected:
  ParkTest() { Reopen(); }

  void Reopen() {
    engine_.reset();
    options_.sweep_interval = absl::ZeroDuration();
    options_.clock = [this] { return now_; };
    engine_ = OpenEngine(options_);
  }
  SequenceInfo CreateWith(int64_t length, engine::KvEngine& engine) {
    const SequenceInfo info =
        *engine.Create({}, Spec(SmallGeometry(), attention::IndexFormat::kInt8));
    EXPECT_OK(AppendSeed(engine, info, kSeed, 0, length));
    return info;
  }
  SequenceInfo CreateWith(int64_t length) { return CreateWith(length, *engine_); }
  ParkReport Park(const SequenceInfo& info) {
    const absl::StatusOr<ParkReport> report = engine_->Park({}, info.handle);
    EXPECT_OK(report);
    return report.value_or(ParkReport());
  }
  TierStats Host() const { return (*engine_->ListTiers())[0].stats; }
  TierStats Disk() const { return (*engine_->ListTiers())[1].stats; }
  SequenceSummary Summary(const SequenceInfo& info) const {
    return engine_->Describe(info.handle)->summary;
  }

  const TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  const std::unique_ptr<engine::EmbeddedEngine> judge_ = OpenEngine(MemoryOptions());
};

TEST_F(ParkTest, GivesAllItsMemoryBackAndAnswersToTheBit) {
  for (const int64_t length : {0, 1, 63, 64, 65, 200, 1023, 1024, 1100}) {
    SCOPED_TRACE(length);
    const SequenceInfo info = CreateWith(length);
    const SequenceInfo same = CreateWith(length, *judge_);
    const uint64_t used = Host().used_bytes;
    const ParkReport report = Park(info);
    EXPECT_EQ(report.info.length, length);
    EXPECT_EQ(report.info.durable_length, length);
    EXPECT_EQ(report.freed_row_bytes + report.freed_index_bytes, used);
    EXPECT_EQ(report.kept_bytes, 0u);
    EXPECT_EQ(Host().used_bytes, 0u);
    EXPECT_EQ(Host().resident_blocks, 0u);
    EXPECT_EQ(Host().index_bytes, 0u);
    EXPECT_EQ(Host().pinned_bytes, 0u);
    ExpectSameBits(*judge_, same, *engine_, info);
    ASSERT_OK(AppendSeed(*engine_, info, kOtherSeed, length, length + 70));
    ASSERT_OK(AppendSeed(*judge_, same, kOtherSeed, length, length + 70));
    Park(info);
    ExpectSameBits(*judge_, same, *engine_, info);
    ASSERT_OK(engine_->Delete({}, info.handle));
    // What is being read ahead of it keeps its open rows until it has been read.
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (Host().used_bytes != 0 && absl::Now() < end) std::this_thread::yield();
    ASSERT_EQ(Host().used_bytes, 0u);
  }
}

// The index and the sums come as such, rows only where they are selected.
TEST_F(ParkTest, AResumedStepReadsIndexTailAndSelectedRowsOnly) {
  options_.prefetch = false;
  Reopen();
  constexpr int64_t kLength = 2000;
  const SequenceInfo info = CreateWith(kLength);
  Park(info);
  const engine::Geometry& geometry = info.spec.geometry;
  const engine::SequenceLayout layout =
      engine::SequenceLayout::Make(info.spec, options_.block_tokens, options_.index_tokens);
  constexpr uint64_t kChecksum = 4;
  const uint64_t before = Disk().read_bytes;
  const engine::StepResult result = RunOne(
      *engine_, 0,
      ReadStep(info, kSeed, 0, kLength - 1, 1, Sparq(8, 40, 4, 1, attention::ValueMean::kResidual)),
      {.strict = true});
  ASSERT_OK(result.status);
  const uint64_t read = Disk().read_bytes - before;

  const uint64_t blocks = kLength / layout.block.block_tokens;
  uint64_t expected = geometry.kv_heads * blocks * (layout.block.piece_bytes() + kChecksum);
  for (const engine::Selection& selection : result.selections) {
    std::set<uint32_t> granules;
    for (const uint32_t position : selection.positions) {
      if (position < blocks * layout.block.block_tokens) {
        granules.insert(position / layout.block.granule_tokens);
      }
    }
    expected += granules.size() * (layout.block.granule_bytes() + kChecksum);
  }
  const uint64_t tails =
      uint64_t{layout.block.heads} * (kLength % layout.block.block_tokens) * layout.block.row_bytes;
  EXPECT_EQ(result.account.disk.physical_bytes, expected);
  EXPECT_EQ(read, expected + tails);
  // Its sums again, and other rows of the same blocks: nothing of the index is read twice.
  const engine::StepResult next = RunOne(
      *engine_, 0,
      ReadStep(info, kSeed, 0, kLength - 1, 1, Sparq(8, 40, 4, 1, attention::ValueMean::kMean)));
  ASSERT_OK(next.status);
  EXPECT_EQ(Disk().read_bytes - before, read + next.account.disk.physical_bytes);
  EXPECT_EQ(next.account.disk.index_bytes, 0u);
}

TEST_F(ParkTest, LeavesAloneWhatAForkInUseShares) {
  const SequenceInfo parent = CreateWith(300);
  const SequenceInfo same = CreateWith(300, *judge_);
  const SequenceInfo child = *engine_->Fork({}, parent.handle, 256, "");
  ASSERT_OK(AppendSeed(*engine_, child, kSeed, 256, 300));
  const uint64_t used = Host().used_bytes;
  const ParkReport report = Park(parent);
  EXPECT_GT(report.freed_row_bytes, 0u);
  EXPECT_GT(report.kept_bytes, 0u);
  EXPECT_EQ(Host().used_bytes, used - report.freed_row_bytes - report.freed_index_bytes);
  EXPECT_GT(Summary(parent).host_bytes, 0u);
  const uint64_t read = Disk().read_bytes;
  ExpectSameBits(*judge_, same, *engine_, child);
  EXPECT_EQ(Disk().read_bytes, read) << "the fork's rows were not in memory";
  // The last that shares them takes them along.
  Park(child);
  EXPECT_EQ(Host().used_bytes, 0u);
  ExpectSameBits(*judge_, same, *engine_, parent);
  ExpectSameBits(*judge_, same, *engine_, child);
  // Whoever is in use again keeps what it shares.
  EXPECT_GT(Park(child).kept_bytes, 0u);
  EXPECT_GT(Host().used_bytes, 0u);
}

TEST_F(ParkTest, LeavesAloneWhatAnotherOneOnThePrefixShares) {
  const Ids ids = TextIds(1, 200);
  const SequenceInfo first = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendIds(*engine_, first, kSeed, 0, ids));
  const SequenceInfo second = *engine_->OpenOnPrefix({}, QueryOf(ids), "");
  ASSERT_EQ(second.length, 192);
  Park(first);
  const uint64_t read = Disk().read_bytes;
  ASSERT_OK(AppendIds(*engine_, second, kSeed, 192, ids));
  ASSERT_OK(
      RunOne(*engine_, 1, ReadStep(second, kSeed, 1, 199, 1, attention::DensePolicy())).status);
  EXPECT_EQ(Disk().read_bytes, read);
  // A parked sequence serves prefixes as any other.
  Park(second);
  EXPECT_EQ(FoundTokens(*engine_, ids), 192);
  EXPECT_EQ(Host().used_bytes, 0u);
  const SequenceInfo third = *engine_->OpenOnPrefix({}, QueryOf(ids), "");
  ASSERT_OK(AppendIds(*engine_, third, kSeed, 192, ids));
  ExpectSameBits(*engine_, first, *engine_, third);
}

TEST_F(ParkTest, IsShownUntilSomebodyReadsOrWritesRows) {
  const SequenceInfo info = CreateWith(100);
  EXPECT_FALSE(Summary(info).parked);
  Park(info);
  EXPECT_TRUE(Summary(info).parked);
  EXPECT_EQ(Summary(info).host_bytes, 0u);
  EXPECT_TRUE((*engine_->ListSequences("", "", 1))[0].parked);
  // What needs no rows leaves it where it is.
  const uint64_t written = Disk().written_bytes;
  ASSERT_OK(engine_->Get({}, info.handle));
  ASSERT_OK(engine_->Flush({}, info.handle));
  const absl::StatusOr<SequenceInfo> resumed = engine_->Resume({}, info.handle, "");
  ASSERT_OK(resumed);
  const ParkReport again = Park(info);
  EXPECT_EQ(again.freed_row_bytes + again.freed_index_bytes + again.kept_bytes, 0u);
  EXPECT_TRUE(Summary(info).parked);
  EXPECT_EQ(Host().used_bytes, 0u);
  EXPECT_EQ(Disk().written_bytes, written);

  const auto is_used = [&](const char* how) {
    SCOPED_TRACE(how);
    EXPECT_FALSE(Summary(info).parked);
    Park(info);
    EXPECT_TRUE(Summary(info).parked);
    EXPECT_EQ(Host().used_bytes, 0u);
  };
  ASSERT_OK(RunOne(*engine_, 0, ReadStep(info, kSeed, 0, 3, 1, Sparq(4, 8))).status);
  is_used("step");
  const uint32_t position = 3;
  ASSERT_OK(engine_->ReadRows({}, info.handle, 0, 0, {&position, 1}));
  is_used("read");
  ASSERT_OK(AppendSeed(*engine_, *resumed, kSeed, 100, 101));
  is_used("append");
  ASSERT_OK(engine_->Truncate({}, info.handle, resumed->writer_epoch, 99));
  is_used("truncate in the open block");
  ASSERT_OK(engine_->Truncate({}, info.handle, resumed->writer_epoch, 40));
  is_used("truncate that cuts a block");
  const SequenceInfo same = CreateWith(40, *judge_);
  ExpectSameBits(*judge_, same, *engine_, info);
}

TEST_F(ParkTest, ARestartedSequenceIsParkedUntilItIsUsed) {
  const SequenceInfo info = CreateWith(100);
  Park(info);
  Reopen();
  EXPECT_TRUE(Summary(info).parked);
  EXPECT_EQ(Summary(info).length, 100);
  ExpectSameBits(*judge_, CreateWith(100, *judge_), *engine_, info);
  EXPECT_FALSE(Summary(info).parked);
  Park(info);
  EXPECT_EQ(Host().used_bytes, 0u);
}

TEST_F(ParkTest, AForkOfAParkedSequenceSharesItsRows) {
  for (const int64_t position : {0, 30, 64, 90, 100}) {
    SCOPED_TRACE(position);
    const SequenceInfo parent = CreateWith(100);
    Park(parent);
    const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, parent.handle, position, "");
    ASSERT_OK(child);
    ASSERT_OK(AppendSeed(*engine_, *child, kSeed, position, 150));
    ExpectSameBits(*judge_, CreateWith(150, *judge_), *engine_, *child);
    ExpectSameBits(*judge_, CreateWith(100, *judge_), *engine_, parent);
    ASSERT_OK(engine_->Delete({}, parent.handle));
    ASSERT_OK(engine_->Delete({}, child->handle));
  }
}

// Layers that a step in progress left apart come back each at its own length.
TEST_F(ParkTest, KeepsLayersOfDifferentLengths) {
  const SequenceInfo info = CreateWith(100);
  ASSERT_OK(AppendRowsOf(*engine_, info, 0, 100, MakeRows(info.spec.geometry, kSeed, 0, 100, 30)));
  EXPECT_EQ(Park(info).info.layer_lengths, (std::vector<int64_t>{130, 100}));
  EXPECT_EQ(Host().used_bytes, 0u);
  ASSERT_OK(AppendRowsOf(*engine_, info, 1, 100, MakeRows(info.spec.geometry, kSeed, 1, 100, 30)));
  ExpectSameBits(*judge_, CreateWith(130, *judge_), *engine_, info);
}

TEST_F(ParkTest, ExpiresAndIsRetainedAsAnyOther) {
  const Ids ids = TextIds(1, 100);
  engine::SequenceSpec spec = Spec(SmallGeometry());
  spec.idle_ttl = absl::Minutes(10);
  spec.retention = absl::Minutes(10);
  const SequenceInfo info = *engine_->Create({}, spec);
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 0, ids));
  Park(info);
  now_ += absl::Minutes(9);
  engine_->Sweep();
  ASSERT_OK(engine_->Get({}, info.handle));
  now_ += absl::Minutes(1);
  engine_->Sweep();
  EXPECT_THAT(engine_->Get({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(engine_->Park({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_EQ(FoundTokens(*engine_, ids), 64);
  const SequenceInfo next = *engine_->OpenOnPrefix({}, QueryOf(ids), "");
  ASSERT_OK(AppendIds(*engine_, next, kSeed, 64, ids));
  const SequenceInfo same = *judge_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendIds(*judge_, same, kSeed, 0, ids));
  ExpectSameBits(*judge_, same, *engine_, next);
  ASSERT_OK(engine_->Delete({}, next.handle));
  // The look-up was a use.
  now_ += absl::Minutes(20);
  engine_->Sweep();
  EXPECT_EQ(Disk().resident_blocks, 0u);
}

TEST_F(ParkTest, NeedsADiskAndLosesNothingWithoutOne) {
  const SequenceInfo info = CreateWith(100, *judge_);
  const uint64_t used = (*judge_->ListTiers())[0].stats.used_bytes;
  EXPECT_THAT(judge_->Park({}, info.handle), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ((*judge_->ListTiers())[0].stats.used_bytes, used);
  ExpectSameBits(*judge_, CreateWith(100, *judge_), *judge_, info);
}

TEST_F(ParkTest, AFullDiskLeavesAllInMemory) {
  options_.store.host_bytes = uint64_t{128} << 20;
  Reopen();
  engine::Geometry geometry = SmallGeometry();
  geometry.layers = 1;
  geometry.head_dim = 128;
  const SequenceInfo info = *engine_->Create({}, Spec(geometry));
  // 2 KiB of rows a token, and half as much index: 72 MiB for a disk of 64.
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 24'000));
  const Step ask = ReadStep(info, kSeed, 0, 23'999, 1, Sparq(16, 20));
  const engine::StepResult before = RunOne(*engine_, 0, ask);
  const TierStats host = Host();
  EXPECT_THAT(engine_->Park({}, info.handle), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(Host().used_bytes, host.used_bytes);
  EXPECT_EQ(Host().evicted_blocks, host.evicted_blocks);
  EXPECT_FALSE(Summary(info).parked);
  ExpectSameAnswer(before, RunOne(*engine_, 0, ask));
}

TEST_F(ParkTest, OfAnotherTenantIsNotFound) {
  const SequenceInfo info = CreateWith(100);
  const uint64_t used = Host().used_bytes;
  EXPECT_THAT(engine_->Park({.tenant = "other"}, info.handle),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(engine_->Park({.deadline = absl::InfinitePast()}, info.handle),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(Host().used_bytes, used);
}

}  // namespace
}  // namespace terrace::testing
