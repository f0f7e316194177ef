// A disk at its budget, most of it garbage: every write that is bounded gets the room that a
// compaction makes, and deletions need none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

class StoreFullDiskTest : public StoreTest {
 protected:
  StoreFullDiskTest() {
    options_.host_bytes = 16 * kMiB;
    options_.disk_bytes = 64 * kMiB;
    // 4 lanes of 32 KiB, so that tails weigh something too.
    layout_.row_bytes = 2048;
  }

  // Appends to a sequence of its own and flushes, until `bytes` are used.
  SegmentRef FillTo(const std::string& name, uint64_t bytes) {
    SegmentRef segment = NewSegment();
    EXPECT_OK(Commit(name, {{segment, 0, kOpenEnd}}));
    for (uint32_t block = 0; store_->DiskStats().used_bytes < bytes; ++block) {
      EXPECT_LT(block, 2000u) << "never full";
      const absl::Status status = AppendAndFlush(*segment, block);
      EXPECT_OK(status);
      if (!status.ok()) break;
      EXPECT_THAT(store_->DiskStats(), IsConserved());
    }
    return segment;
  }
  // Appends until the disk refuses: blocks are waiting to be written then.
  void FillUntilRefused(Segment& segment) {
    absl::Status status;
    for (uint32_t block = 0; status.ok(); ++block) {
      ASSERT_LT(block, 2000u) << "never full";
      status = AppendAndFlush(segment, block);
      EXPECT_THAT(store_->DiskStats(), IsConserved());
    }
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk budget")));
  }
  absl::Status AppendAndFlush(Segment& segment, uint32_t block) {
    const absl::Status status = AppendBlocks(*store_, segment, block, block + 1, 0, Patience());
    return status.ok() ? store_->Flush(segment, {}, Soon()) : status;
  }
  static absl::Time Patience() { return absl::Now() + absl::Milliseconds(200); }

  // Fills open rows of block 0 and flushes them: 120 KiB.
  absl::Status FlushTails(Segment& segment) {
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      absl::Status status = store_->Reserve(segment, layer, 0, 1, Patience());
      if (!status.ok()) return status;
      for (uint16_t head = 0; head < layout_.heads; ++head) {
        FillBytes({store_->id(segment), layer, head, 0}, 0, /*is_piece=*/false,
                  layout_.rows_bytes(), store_->OpenRows(segment, layer, head, 0));
      }
    }
    return store_->Flush(segment, std::vector<uint32_t>(layout_.layers, 15), Soon());
  }

  // Where blocks end, and little else fits.
  static constexpr uint64_t kNearlyFull = 58 * kMiB;
};

TEST_F(StoreFullDiskTest, AFlushOfTailsGetsTheRoomOfWhatWasDeleted) {
  Open();
  layout_.heads = 16;
  const SegmentRef open = NewSegment();
  ASSERT_OK(Commit("open", {{open, 0, kOpenEnd}}));
  layout_.heads = 2;
  FillTo("old", kNearlyFull);
  ASSERT_OK(store_->DeleteManifest("old", absl::InfiniteFuture()));
  // 960 KiB; no block is waiting that would reclaim on its behalf.
  layout_.heads = 16;
  for (int i = 0; i < 8; ++i) EXPECT_OK(FlushTails(*open)) << i;
  EXPECT_THAT(store_->DiskStats(), IsConserved());
}

TEST_F(StoreFullDiskTest, AManifestGetsTheRoomOfWhatWasDeleted) {
  Open();
  FillTo("old", kNearlyFull);
  ASSERT_OK(store_->DeleteManifest("old", absl::InfiniteFuture()));
  for (int i = 0; i < 8; ++i) {
    EXPECT_OK(store_->CommitManifest(
        {.name = std::to_string(i), .attributes = std::string(kMiB, 'a'), .ranges = {}},
        absl::InfiniteFuture()));
    EXPECT_THAT(store_->DiskStats(), IsConserved());
  }
}

TEST_F(StoreFullDiskTest, GarbageFromBeforeARestartIsFound) {
  Open();
  FillTo("old", kNearlyFull);
  ASSERT_OK(store_->DeleteManifest("old", absl::InfiniteFuture()));
  Open();
  const SegmentRef young = NewSegment();
  ASSERT_OK(Commit("young", {{young, 0, kOpenEnd}}));
  for (uint32_t block = 0; block < 200; ++block) ASSERT_OK(AppendAndFlush(*young, block)) << block;
  EXPECT_OK(CheckBlocks(*store_, *young, 0, 200));
}

TEST_F(StoreFullDiskTest, TailsWrittenAnewAreGarbageThoughNothingIsDeleted) {
  Open();
  const SegmentRef kept = NewSegment();
  ASSERT_OK(Commit("kept", {{kept, 0, kOpenEnd}}));
  layout_.heads = 16;
  const SegmentRef open = NewSegment();
  ASSERT_OK(Commit("open", {{open, 0, kOpenEnd}}));
  // Twice the budget, and no file without a block that lives.
  for (uint32_t i = 0; i < 140; ++i) {
    layout_.heads = 16;
    ASSERT_OK(FlushTails(*open)) << i;
    layout_.heads = 2;
    ASSERT_OK(AppendAndFlush(*kept, i)) << i;
    ASSERT_THAT(store_->DiskStats(), IsConserved());
  }
  EXPECT_OK(CheckBlocks(*store_, *kept, 0, 140));
}

TEST_F(StoreFullDiskTest, AnIdleDiskDoesNotStayFullOfGarbage) {
  Open();
  const SegmentRef kept = FillTo("kept", 8 * kMiB);
  FillTo("old", 40 * kMiB);
  ASSERT_OK(store_->DeleteManifest("old", absl::InfiniteFuture()));
  EXPECT_TRUE(Eventually([&] { return store_->DiskStats().used_bytes < 20 * kMiB; }))
      << store_->DiskStats().used_bytes << " bytes are still used";
  EXPECT_OK(CheckBlock(*store_, *kept, 1, 1, 3));
}

TEST_F(StoreFullDiskTest, AFullDiskOfLiveBlocksIsRefusedWithoutEnd) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("all", {{segment, 0, kOpenEnd}}));
  // What is buffered may leave some room yet, but not much.
  for (int i = 0; i < 3; ++i) FillUntilRefused(*segment);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, store_->Durable(*segment, 0).end_block));
}

TEST_F(StoreFullDiskTest, DeletionsNeitherNeedRoomNorWaitForIt) {
  std::promise<void> gate;
  const std::shared_future<void> opened(gate.get_future());
  std::atomic<bool> holds = false;
  std::atomic<int> passes = 0;
  fault_ = [&](DiskOperation operation) {
    if (operation != DiskOperation::kReclaim) return absl::OkStatus();
    ++passes;
    if (holds) opened.wait();
    return absl::OkStatus();
  };
  Open();
  SegmentRef whole = FillTo("whole", 16 * kMiB);
  SegmentRef cut = FillTo("cut", 32 * kMiB);
  const SegmentRef rest = NewSegment(2);
  const SegmentRef young = NewSegment();
  ASSERT_OK(Commit("young", {{young, 0, kOpenEnd}}));
  FillUntilRefused(*young);
  holds = true;
  const int before = passes;
  // The writer asks for a pass on behalf of what is waiting, and the pass does not end.
  ASSERT_OK(store_->DeleteManifest("whole", absl::InfiniteFuture()));
  ASSERT_TRUE(Eventually([&] { return passes > before; }));
  EXPECT_OK(Commit("cut", {{cut, 0, 2}, {rest, 2, kOpenEnd}}));
  whole.reset();
  cut.reset();
  EXPECT_OK(store_->DeleteManifest("cut", absl::InfiniteFuture()));
  EXPECT_THAT(store_->DiskStats(), IsConserved());
  gate.set_value();
  EXPECT_OK(store_->Flush(*young, {}, Soon()));
  EXPECT_THAT(store_->DiskStats(), IsConserved());
}

// A truncate of what others share writes the rows that stay anew; that it gives up as many frees no
// room at once.
TEST_F(StoreFullDiskTest, CutsBeyondNumberStayWithinTheBudget) {
  Open();
  SegmentRef open = NewSegment();
  ASSERT_OK(Commit("cut", {{open, 0, kOpenEnd}}));
  ASSERT_OK(FlushTails(*open));
  const SegmentRef full = NewSegment();
  ASSERT_OK(Commit("full", {{full, 0, kOpenEnd}}));
  FillUntilRefused(*full);
  const std::vector<uint32_t> tail_rows(layout_.layers, 15);
  // Ten times what there is beside the blocks.
  constexpr int kCuts = 300;
  int done = 0;
  for (int cut = 0; cut < kCuts; ++cut) {
    const SegmentRef next = NewSegment();
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      ASSERT_OK(store_->ReserveRows(*next, layer, 0, 1, Soon()));
    }
    absl::Status status = store_->WriteTail(*next, tail_rows, Soon());
    if (status.ok()) status = Commit("cut", {{next, 0, kOpenEnd}});
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
    ASSERT_THAT(store_->DiskStats(), IsConserved()) << cut;
    if (!status.ok()) continue;
    ++done;
    open = next;
  }
  EXPECT_GT(done, kCuts / 2);
  EXPECT_EQ(store_->Durable(*open, 0).tail_rows, 15u);
  EXPECT_OK(CheckBlocks(*store_, *full, 0, 3));
}

// A pass has to move what lives out of files that are half garbage, the rotten ones of it too.
TEST_F(StoreFullDiskTest, ARottenGranuleDoesNotStopThePasses) {
  Open();
  SegmentRef live = NewSegment();
  SegmentRef dead = NewSegment();
  ASSERT_OK(Commit("live", {{live, 0, kOpenEnd}}));
  ASSERT_OK(Commit("dead", {{dead, 0, kOpenEnd}}));
  uint32_t blocks = 0;
  for (; store_->DiskStats().used_bytes < kNearlyFull; ++blocks) {
    ASSERT_OK(AppendAndFlush(*live, blocks));
    ASSERT_OK(AppendAndFlush(*dead, blocks));
  }
  const BlockKey key{store_->id(*live), 0, 1, 0};
  live.reset();
  dead.reset();
  Close();
  const std::vector<std::byte> rows = RowsOf(layout_, key);
  ASSERT_EQ(Rot(absl::MakeConstSpan(rows).first(layout_.granule_bytes())), 1);
  Open();
  for (Manifest& manifest : store_->TakeRecovered()) {
    if (manifest.name == "live") live = manifest.ranges[0].segment;
  }
  ASSERT_OK(store_->DeleteManifest("dead", absl::InfiniteFuture()));
  const SegmentRef young = NewSegment();
  ASSERT_OK(Commit("young", {{young, 0, kOpenEnd}}));
  for (uint32_t block = 0; block < blocks / 2; ++block) {
    ASSERT_OK(AppendAndFlush(*young, block)) << block;
  }
  EXPECT_OK(CheckBlocks(*store_, *young, 0, blocks / 2));
  EXPECT_THAT(CheckBlock(*store_, *live, 0, 1, 0), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(CheckBlock(*store_, *live, 0, 0, 0));
  EXPECT_OK(CheckBlocks(*store_, *live, 1, blocks));
}

TEST_F(StoreFullDiskTest, AStoreThatIsClosedGivesUpItsReclaim) {
  Open();
  FillTo("old", 32 * kMiB);
  const SegmentRef young = NewSegment();
  ASSERT_OK(Commit("young", {{young, 0, kOpenEnd}}));
  FillUntilRefused(*young);
  ASSERT_OK(store_->DeleteManifest("old", absl::InfiniteFuture()));
  const uint32_t durable = store_->Durable(*young, 0).end_block;
  const_cast<SegmentRef&>(young).reset();
  Open();
  for (const Manifest& manifest : store_->TakeRecovered()) {
    ASSERT_EQ(manifest.name, "young");
    EXPECT_GE(store_->Durable(*manifest.ranges[0].segment, 0).end_block, durable);
    EXPECT_OK(CheckBlocks(*store_, *manifest.ranges[0].segment, 0, durable));
  }
}

}  // namespace
}  // namespace terrace::kvstore
