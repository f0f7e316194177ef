// How long a prefix is found: over restarts, leases, retention, times to live and quotas.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "kvstore/block_store_impl.h"
#include "services/engine/error.h"
#include "tests/services/engine/prefix_client.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

class PrefixLifetimeTest : public ::testing::Test {
 protected:
  PrefixLifetimeTest() { Reopen(); }

  // As after a kill: what is not on disk is lost.
  void Reopen() {
    engine_.reset();
    engine::EmbeddedOptions options = DiskOptions(folder_);
    options.sweep_interval = absl::ZeroDuration();
    options.clock = [this] { return now_; };
    options.retained_bytes_max = retained_bytes_max_;
    engine_ = OpenEngine(options);
  }
  SequenceInfo CreateWith(const Ids& ids, absl::Duration retention = {}, absl::Duration ttl = {},
                          uint64_t seed = kSeed) {
    engine::SequenceSpec spec = Spec(SmallGeometry());
    spec.retention = retention;
    spec.idle_ttl = ttl;
    const SequenceInfo info = *engine_->Create({}, spec);
    EXPECT_OK(AppendIds(*engine_, info, seed, 0, ids));
    return info;
  }
  int64_t Found(const Ids& ids, bool accept_sparse = false) {
    return FoundTokens(*engine_, ids, accept_sparse);
  }
  engine::PrefixFound Lease(const Ids& ids, absl::Duration duration) {
    const auto found = engine_->LookupPrefix({}, QueryOf(ids), duration);
    EXPECT_OK(found);
    return *found;
  }
  void Pass(absl::Duration time) {
    now_ += time;
    engine_->Sweep();
  }

  TempFolder folder_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  uint64_t retained_bytes_max_ = UINT64_MAX;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  const Ids ids_ = TextIds(1, 200);
};

// What retains is written within the budget, what deletes is not asked. Here the first writes of a
// close find a full disk, as many as it takes for it to be closed without.
TEST_F(PrefixLifetimeTest, AFullDiskDoesNotKeepASequenceOpen) {
  std::atomic<int> refused = 0;
  engine::EmbeddedOptions options = DiskOptions(folder_);
  options.sweep_interval = absl::ZeroDuration();
  engine_.reset();
  auto store = kvstore::OpenBlockStore(options.store, [&refused](kvstore::DiskOperation operation) {
    const bool full = operation == kvstore::DiskOperation::kWrite && refused > 0;
    if (full) --refused;
    return full ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  });
  ASSERT_OK(store);
  engine_ = engine::EmbeddedEngine::OpenOn(options, *std::move(store));
  bool dropped = false;
  for (int writes = 1; writes < 10 && !dropped; ++writes) {
    const Ids ids = TextIds(10 + writes, 200);
    const SequenceInfo info = CreateWith(ids, absl::Hours(1));
    ASSERT_OK(engine_->Flush({}, info.handle));
    refused = writes;
    ASSERT_OK(engine_->Delete({}, info.handle)) << writes;
    EXPECT_EQ(engine_->Get({}, info.handle).status(), engine::SequenceNotFound(info.handle));
    dropped = Found(ids) == 0;
  }
  EXPECT_TRUE(dropped);
  engine_.reset();
}

TEST_F(PrefixLifetimeTest, APrefixThatWasFlushedIsSharedAfterARestart) {
  const SequenceInfo info = CreateWith(ids_);
  ASSERT_OK(engine_->Flush({}, info.handle));
  Reopen();
  EXPECT_EQ(Found(ids_), 192);
  const absl::StatusOr<SequenceInfo> child = engine_->OpenOnPrefix({}, QueryOf(ids_), "");
  ASSERT_OK(child);
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 192, ids_));
  ExpectSameBits(*engine_, info, *engine_, *child);
  // And the chain goes on where it was.
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 200, TextIds(1, 260)));
  EXPECT_EQ(Found(TextIds(1, 260)), 256);
}

TEST_F(PrefixLifetimeTest, SparseProvenanceSurvivesARestart) {
  const SequenceInfo info = CreateWith(TextIds(1, 64));
  const Step step = AppendStep(info, kSeed, 0, 64, 1, Sparq(4, 8));
  ASSERT_OK(RunOne(*engine_, 0, step).status);
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 64, TextIds(1, 130)));
  ASSERT_OK(engine_->Flush({}, info.handle));
  Reopen();
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 130, ids_));
  EXPECT_EQ(Found(ids_), 64);
  EXPECT_EQ(Found(ids_, true), 192);
}

TEST_F(PrefixLifetimeTest, AfterACrashBlocksThatWereLostAreNotFound) {
  const SequenceInfo info = CreateWith(Ids(ids_.begin(), ids_.begin() + 70));
  ASSERT_OK(engine_->Flush({}, info.handle));
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 70, ids_));
  // A new epoch is recorded, and tokens whose rows are not on disk with it.
  ASSERT_OK(engine_->Resume({}, info.handle, ""));
  ASSERT_EQ(Found(ids_), 192);
  Reopen();
  EXPECT_EQ(engine_->Get({}, info.handle)->length, 70);
  EXPECT_EQ(Found(ids_), 64);
  SequenceInfo back = info;
  ++back.writer_epoch;
  Ids other = TextIds(2, 200);
  std::copy_n(ids_.begin(), 70, other.begin());
  ASSERT_OK(AppendIds(*engine_, back, kOtherSeed, 70, other));
  EXPECT_EQ(Found(ids_), 64);
  EXPECT_EQ(Found(other), 192);
  ASSERT_OK(engine_->Flush({}, info.handle));
  Reopen();
  EXPECT_EQ(Found(ids_), 64);
  EXPECT_EQ(Found(other), 192);
}

// A lease and a closed sequence name blocks of a sequence that a crash took from it, and that it
// writes anew.
TEST_F(PrefixLifetimeTest, WhatACrashTookFromARetainedSequenceAnotherDoesNotGiveBack) {
  const Ids ids = TextIds(1, 650);
  const SequenceInfo info = CreateWith(Ids(ids.begin(), ids.begin() + 404));
  ASSERT_OK(engine_->Flush({}, info.handle));
  ASSERT_OK(AppendIds(*engine_, info, kSeed, 404, ids));
  ASSERT_EQ(Lease(ids, absl::Hours(1)).tokens, 640);
  engine::PrefixQuery query = QueryOf(ids);
  query.spec.retention = absl::Hours(1);
  const absl::StatusOr<SequenceInfo> closed = engine_->OpenOnPrefix({}, query, "");
  ASSERT_OK(closed);
  ASSERT_OK(engine_->Delete({}, closed->handle));
  ASSERT_EQ(engine_->sequence_count(), 3u);
  Reopen();
  EXPECT_EQ(engine_->sequence_count(), 3u);
  EXPECT_EQ(Found(ids), 384);
  Ids other = TextIds(2, 650);
  std::copy_n(ids.begin(), 404, other.begin());
  ASSERT_OK(AppendIds(*engine_, info, kOtherSeed, 404, other));
  ASSERT_OK(engine_->Flush({}, info.handle));
  Reopen();
  EXPECT_EQ(Found(ids), 384);
  EXPECT_EQ(Found(other), 640);
  ASSERT_OK(engine_->Delete({}, info.handle));
  EXPECT_EQ(Found(other), 384);
}

// Nothing of what they name was on disk.
TEST_F(PrefixLifetimeTest, ARetainedSequenceOfWhichNothingIsLeftIsGone) {
  CreateWith(ids_);
  ASSERT_EQ(Lease(ids_, absl::Hours(1)).tokens, 192);
  Reopen();
  EXPECT_EQ(engine_->sequence_count(), 1u);
  EXPECT_TRUE(engine_->damaged().empty());
}

// Nobody was told the tokens of rows that came about under sparse attention, by a flush of their
// own or of a child that shares them.
TEST_F(PrefixLifetimeTest, RowsWithoutTokensDoNotBecomeDenseByACrash) {
  for (const bool by_child : {false, true}) {
    SCOPED_TRACE(by_child);
    const SequenceInfo info = CreateWith(TextIds(1, 64));
    ASSERT_OK(engine_->Flush({}, info.handle));
    ASSERT_OK(RunOne(*engine_, 0, AppendStep(info, kSeed, 0, 64, 1, Sparq(4, 8))).status);
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 64, 128));
    const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, info.handle, 128, "");
    ASSERT_OK(child);
    ASSERT_OK(engine_->Flush({}, by_child ? child->handle : info.handle));
    Reopen();
    ASSERT_EQ(engine_->Get({}, info.handle)->length, 128);
    ASSERT_OK(AppendIds(*engine_, info, kSeed, 64, ids_));
    EXPECT_EQ(Found(ids_), 64);
    EXPECT_EQ(Found(ids_, true), 192);
    ASSERT_OK(engine_->Delete({}, child->handle));
    ASSERT_OK(engine_->Delete({}, info.handle));
  }
}

// The manifest knows tokens of the open block; a truncate inside it must make it forget them.
TEST_F(PrefixLifetimeTest, TokensThatWereCutAndFollowedByOthersDoNotComeBackAfterACrash) {
  const SequenceInfo info = CreateWith(Ids(ids_.begin(), ids_.begin() + 70));
  ASSERT_OK(engine_->Flush({}, info.handle));
  ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, 66));
  // Without ids, so that nothing else is said about them.
  ASSERT_OK(AppendSeed(*engine_, info, kOtherSeed, 66, 100));
  const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, info.handle, 100, "");
  ASSERT_OK(child);
  ASSERT_OK(engine_->Flush({}, child->handle));
  ASSERT_OK(engine_->Flush({}, info.handle));
  Reopen();
  for (const SequenceInfo& sequence : {info, *child}) {
    ASSERT_EQ(engine_->Get({}, sequence.handle)->length, 100);
    ASSERT_OK(AppendIds(*engine_, sequence, kSeed, 100, ids_));
  }
  EXPECT_EQ(Found(ids_), 64);
}

TEST_F(PrefixLifetimeTest, ALeaseKeepsAPrefixUntilItIsOver) {
  const SequenceInfo info = CreateWith(ids_);
  const engine::PrefixFound lease = Lease(ids_, absl::Seconds(10));
  EXPECT_EQ(lease.tokens, 192);
  EXPECT_EQ(lease.lease_expires, now_ + absl::Seconds(10));
  ASSERT_OK(engine_->Delete({}, info.handle));
  Pass(absl::Seconds(9));
  EXPECT_EQ(Found(ids_), 192);
  // A lease is no sequence to its holder.
  EXPECT_THAT(engine_->Get({}, lease.lease), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(engine_->Delete({}, lease.lease), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_TRUE(engine_->ListSequences("", "", 10)->empty());
  Pass(absl::Seconds(1));
  EXPECT_EQ(Found(ids_), 0);
  EXPECT_EQ(engine_->sequence_count(), 0u);
  EXPECT_EQ(engine_->ListTiers()->at(0).stats.resident_blocks, 0u);
}

TEST_F(PrefixLifetimeTest, ALeaseEndsWhenItIsUsedAndWhatItOpenedStays) {
  const SequenceInfo info = CreateWith(ids_);
  const engine::PrefixFound lease = Lease(ids_, absl::Seconds(10));
  const SequenceInfo copy = CreateWith(ids_, {}, {}, kSeed);
  ASSERT_OK(engine_->Delete({}, info.handle));
  const absl::StatusOr<SequenceInfo> child = engine_->OpenOnPrefix({}, QueryOf(ids_), lease.lease);
  ASSERT_OK(child);
  EXPECT_EQ(child->length, 192);
  EXPECT_EQ(engine_->sequence_count(), 2u);
  Pass(absl::Seconds(20));
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 192, ids_));
  ExpectSameBits(*engine_, copy, *engine_, *child);
  // Another tenant cannot end a lease, and one that is over does no harm.
  const engine::PrefixFound second = Lease(ids_, absl::Seconds(10));
  ASSERT_OK(engine_->OpenOnPrefix({.tenant = "other"}, QueryOf(ids_), second.lease));
  EXPECT_EQ(engine_->sequence_count(), 4u);
  ASSERT_OK(engine_->OpenOnPrefix({}, QueryOf(ids_), "s0000-00000000000000000000000000000000"));
}

TEST_F(PrefixLifetimeTest, ALeaseIsOnlyGivenForWhatIsFoundAndNotForTooLong) {
  EXPECT_EQ(Lease(ids_, absl::Seconds(10)).lease, "");
  CreateWith(ids_);
  EXPECT_EQ(Lease(ids_, absl::ZeroDuration()).lease, "");
  EXPECT_NE(Lease(ids_, absl::Hours(1)).lease, "");
  for (const absl::Duration bad : {absl::Nanoseconds(-1), absl::Hours(1) + absl::Nanoseconds(1)}) {
    EXPECT_THAT(engine_->LookupPrefix({}, QueryOf(ids_), bad),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(PrefixLifetimeTest, AClosedSequenceServesPrefixesForItsRetention) {
  const SequenceInfo whole = CreateWith(ids_);
  ASSERT_OK(engine_->Truncate({}, whole.handle, whole.writer_epoch, 0));
  const SequenceInfo info = CreateWith(ids_, absl::Minutes(5));
  ASSERT_OK(engine_->Flush({}, info.handle));
  ASSERT_OK(engine_->Delete({}, info.handle));
  EXPECT_THAT(engine_->Get({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(engine_->Delete({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Found(ids_), 192);
  Reopen();
  Pass(absl::Minutes(4));
  EXPECT_EQ(Found(ids_), 192);
  const absl::StatusOr<SequenceInfo> child = engine_->OpenOnPrefix({}, QueryOf(ids_), "");
  ASSERT_OK(child);
  ASSERT_OK(AppendIds(*engine_, *child, kSeed, 192, ids_));
  Pass(absl::Minutes(1));
  EXPECT_EQ(Found(ids_), 192);
  ASSERT_OK(engine_->Delete({}, child->handle));
  EXPECT_EQ(Found(ids_), 0);
  EXPECT_EQ(engine_->sequence_count(), 1u);
}

TEST_F(PrefixLifetimeTest, ASequenceThatNobodyUsesForItsTimeIsClosed) {
  const SequenceInfo idle = CreateWith(ids_, {}, absl::Seconds(10));
  const SequenceInfo kept = CreateWith(TextIds(2, 70), absl::Seconds(30), absl::Seconds(10));
  const SequenceInfo forever = CreateWith(TextIds(3, 70));
  Pass(absl::Seconds(9));
  ASSERT_OK(AppendIds(*engine_, kept, kSeed, 70, TextIds(2, 71)));
  Pass(absl::Seconds(1));
  EXPECT_THAT(engine_->Get({}, idle.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_OK(engine_->Get({}, kept.handle));
  Pass(absl::Seconds(9));
  EXPECT_THAT(engine_->Get({}, kept.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Found(TextIds(2, 70)), 64);
  Pass(absl::Seconds(30));
  EXPECT_EQ(Found(TextIds(2, 70)), 0);
  EXPECT_OK(engine_->Get({}, forever.handle));
}

TEST_F(PrefixLifetimeTest, OverItsQuotaATenantLosesWhatItUsedLongestAgo) {
  const kvstore::BlockLayout block =
      engine::SequenceLayout::Make(Spec(SmallGeometry()), 64, 1024).block;
  const uint64_t each = uint64_t{3} * 2 * 2 * (block.rows_bytes() + block.piece_bytes());
  retained_bytes_max_ = 3 * each - 1;
  Reopen();
  for (uint32_t text = 1; text <= 3; ++text) {
    const SequenceInfo info = CreateWith(TextIds(text, 200), absl::Hours(1));
    ASSERT_OK(engine_->Delete({}, info.handle));
    now_ += absl::Seconds(1);
  }
  ASSERT_EQ(Found(TextIds(1, 200)), 192);
  Pass(absl::Seconds(1));
  EXPECT_EQ(Found(TextIds(2, 200)), 0);
  EXPECT_EQ(Found(TextIds(1, 200)), 192);
  EXPECT_EQ(Found(TextIds(3, 200)), 192);
  // A lease is a promise, however much it keeps, and running sequences are none of this.
  const SequenceInfo running = CreateWith(TextIds(4, 1000));
  const engine::PrefixFound lease = Lease(TextIds(4, 1000), absl::Minutes(1));
  Pass(absl::Seconds(1));
  EXPECT_EQ(Found(TextIds(1, 200)), 192);
  ASSERT_OK(engine_->Delete({}, running.handle));
  Pass(absl::Seconds(1));
  EXPECT_EQ(Found(TextIds(4, 1000)), 960);
}

TEST_F(PrefixLifetimeTest, RetainedSequencesGiveWayBeforeTheDiskIsFull) {
  const int64_t size = 2000;
  for (uint32_t text = 1; text <= 90; ++text) {
    SCOPED_TRACE(text);
    const SequenceInfo info = CreateWith(TextIds(text, size), absl::Hours(1));
    ASSERT_OK(engine_->Flush({}, info.handle));
    ASSERT_OK(engine_->Delete({}, info.handle));
    Pass(absl::Seconds(1));
    EXPECT_EQ(Found(TextIds(text, size)), size / 64 * 64);
  }
  EXPECT_EQ(Found(TextIds(1, size)), 0);
  const kvstore::TierStats disk = engine_->ListTiers()->at(1).stats;
  EXPECT_LE(disk.resident_bytes + disk.index_bytes, disk.capacity_bytes / 4 * 3);
  EXPECT_GT(disk.resident_bytes + disk.index_bytes, disk.capacity_bytes / 2);
}

}  // namespace
}  // namespace terrace::testing
