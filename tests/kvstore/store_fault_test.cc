// What goes wrong below the store: refused and slow I/O, rotten bytes, a full disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

class StoreFaultTest : public StoreTest {
 protected:
  StoreFaultTest() {
    fault_ = [this](DiskOperation operation) -> absl::Status {
      const bool fails = operation == DiskOperation::kRead ? reads_fail_ : writes_fail_;
      return fails ? absl::UnavailableError("injected") : absl::OkStatus();
    };
  }
  // Named, written, and forgotten by memory.
  SegmentRef Parked(uint32_t blocks) {
    Open();
    SegmentRef segment = NewSegment();
    EXPECT_OK(Commit("parked", {{segment, 0, kOpenEnd}}));
    EXPECT_OK(AppendBlocks(*store_, *segment, 0, blocks));
    EXPECT_OK(store_->Flush(*segment, {}, Soon()));
    segment.reset();
    Open();
    return OnlyRecovered();
  }

  std::atomic<bool> reads_fail_ = false;
  std::atomic<bool> writes_fail_ = false;
};

TEST_F(StoreFaultTest, BlocksThatCannotBeWrittenStayReadableAndAreWrittenLater) {
  Open();
  SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  writes_fail_ = true;
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 8));
  EXPECT_THAT(store_->Flush(*segment, {}, Soon()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("injected")));
  EXPECT_GT(store_->DiskStats().error_count, 0u);
  EXPECT_THAT(store_->DiskStats().last_error, HasSubstr("injected"));
  EXPECT_EQ(store_->Durable(*segment, 0).end_block, 0u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 8));
  // Nothing of it can leave, so the memory fills up, and says why.
  EXPECT_THAT(AppendBlocks(*store_, *segment, 8, 100, 0, absl::Now() + absl::Milliseconds(100)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("injected")));
  writes_fail_ = false;
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  const uint32_t end = store_->Durable(*segment, 1).end_block;
  EXPECT_GE(end, 8u);
  segment.reset();
  Open();
  segment = OnlyRecovered();
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, end));
}

TEST_F(StoreFaultTest, TheWriterTriesAgainOnItsOwn) {
  Open();
  const SegmentRef segment = NewSegment();
  writes_fail_ = true;
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 8));
  EXPECT_THAT(store_->Flush(*segment, {}, Soon()), StatusIs(absl::StatusCode::kUnavailable));
  writes_fail_ = false;
  // Far more than memory holds: goes through only if the writer is back.
  EXPECT_TRUE(Eventually([&] { return AppendBlocks(*store_, *segment, 8, 100).ok(); }));
}

TEST_F(StoreFaultTest, AManifestThatCannotBeWrittenChangesNothing) {
  Open();
  SegmentRef segment = NewSegment();
  SegmentRef other = NewSegment(2);
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 4));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  writes_fail_ = true;
  const auto refused = StatusIs(absl::StatusCode::kUnavailable);
  EXPECT_THAT(Commit("sequence", {{segment, 0, 2}, {other, 2, kOpenEnd}}), refused);
  EXPECT_THAT(Commit("another", {{segment, 0, 2}}), refused);
  EXPECT_THAT(store_->DeleteManifest("sequence", absl::InfiniteFuture()), refused);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 4));
  EXPECT_EQ(store_->DiskStats().resident_blocks, 16u);
  writes_fail_ = false;
  segment.reset();
  other.reset();
  Open();
  segment = OnlyRecovered();
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 4));
  EXPECT_OK(store_->DeleteManifest("sequence", absl::InfiniteFuture()));
}

TEST_F(StoreFaultTest, AReadThatFailsMayBeTriedAgain) {
  const SegmentRef segment = Parked(4);
  reads_fail_ = true;
  const ReadRequest request{segment.get(), 0, 0, 2, 0b0101};
  {
    const Pins pins = store_->PinRows({&request, 1}, Soon());
    EXPECT_THAT(pins.extents()[0].status,
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("block 2")));
    EXPECT_EQ(pins.extents()[0].missing, 0b0101u);
    EXPECT_EQ(pins.extents()[0].from_disk, 0u);
  }
  reads_fail_ = false;
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 4));
  EXPECT_EQ(store_->DiskStats().corrupt_granules, 0u);
  EXPECT_GT(store_->DiskStats().error_count, 0u);
}

TEST_F(StoreFaultTest, ASlowReadMissesItsDeadlineAndServesThoseWhoWait) {
  std::promise<void> gate;
  const std::shared_future<void> opened(gate.get_future());
  const SegmentRef segment = Parked(4);
  fault_ = [&](DiskOperation operation) {
    if (operation == DiskOperation::kRead) opened.wait();
    return absl::OkStatus();
  };
  // The hook is handed over at Open.
  const_cast<SegmentRef&>(segment).reset();
  Open();
  const SegmentRef slow = OnlyRecovered();
  const ReadRequest request{slow.get(), 1, 1, 3, 0b1111};
  {
    const Pins pins = store_->PinRows({&request, 1}, absl::Now() + absl::Milliseconds(20));
    EXPECT_THAT(pins.extents()[0].status, StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_EQ(pins.extents()[0].missing, 0b1111u);
  }
  absl::Status waited;
  std::thread waiter([&] { waited = CheckBlock(*store_, *slow, 1, 1, 3); });
  gate.set_value();
  waiter.join();
  EXPECT_OK(waited);
  EXPECT_THAT(store_->HostStats(), IsConserved());
}

// Nothing is wrong with a disk that does not hold what was deleted.
TEST_F(StoreFaultTest, WhatIsDeletedWhileItIsReadIsNotCorrupt) {
  for (const bool whole : {true, false}) {
    SCOPED_TRACE(whole);
    std::promise<void> reading;
    std::promise<void> gate;
    std::atomic<bool> holds = false;
    fault_ = [&](DiskOperation operation) {
      if (operation == DiskOperation::kRead && holds.exchange(false)) {
        reading.set_value();
        gate.get_future().wait();
      }
      return absl::OkStatus();
    };
    const SegmentRef segment = Parked(8);
    holds = true;
    absl::Status rows;
    absl::Status stripe;
    std::thread reader([&] {
      const ReadRequest wanted{segment.get(), 0, 0, 5, 0b1111};
      rows = store_->PinRows({&wanted, 1}, Soon()).extents()[0].status;
      const ReadRequest pieces{segment.get(), 0, 0, 1, 0b1110};
      stripe = store_->PinStripes({&pieces, 1}, Soon()).extents()[0].status;
    });
    reading.get_future().wait();
    if (whole) {
      ASSERT_OK(store_->DeleteManifest("parked", absl::InfiniteFuture()));
    } else {
      const SegmentRef next = NewSegment(5);
      ASSERT_OK(Commit("parked", {{segment, 0, 5}, {next, 5, kOpenEnd}}));
    }
    gate.set_value();
    reader.join();
    EXPECT_THAT(rows, StatusIs(absl::StatusCode::kNotFound));
    EXPECT_THAT(stripe, StatusIs(absl::StatusCode::kNotFound));
    EXPECT_EQ(store_->DiskStats().corrupt_granules, 0u);
    EXPECT_EQ(store_->DiskStats().error_count, 0u);
    if (!whole) {
      ASSERT_OK(store_->DeleteManifest("parked", absl::InfiniteFuture()));
    }
  }
}

TEST_F(StoreFaultTest, ADeadlineThatHasPassedStillServesMemory) {
  const SegmentRef segment = Parked(2);
  const ReadRequest warm{segment.get(), 0, 0, 0, 0b0001};
  ASSERT_OK(store_->PinRows({&warm, 1}, Soon()).extents()[0].status);
  const ReadRequest both{segment.get(), 0, 0, 0, 0b0011};
  const Pins pins = store_->PinRows({&both, 1}, absl::InfinitePast());
  EXPECT_THAT(pins.extents()[0].status, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(pins.extents()[0].missing, 0b0010u);
  EXPECT_TRUE(
      SameGranules(layout_, {store_->id(*segment), 0, 0, 0}, pins.extents()[0].data, 0b0001));
}

TEST_F(StoreFaultTest, ARottenGranuleIsReportedAndNeverServed) {
  SegmentRef segment = Parked(40);
  const BlockKey key{store_->id(*segment), 0, 1, 7};
  segment.reset();
  Close();
  const std::vector<std::byte> rows = RowsOf(layout_, key);
  ASSERT_EQ(
      Rot(absl::MakeConstSpan(rows).subspan(layout_.granule_bytes(), layout_.granule_bytes())), 1);
  Open();
  segment = OnlyRecovered();
  for (int round = 0; round < 2; ++round) {
    const ReadRequest request{segment.get(), 0, 1, 7, 0b1111};
    const Pins pins = store_->PinRows({&request, 1}, Soon());
    EXPECT_THAT(pins.extents()[0].status,
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("head 1 block 7")));
    EXPECT_EQ(pins.extents()[0].missing, 0b0010u);
    EXPECT_TRUE(SameGranules(layout_, key, pins.extents()[0].data, 0b1101));
    EXPECT_EQ(store_->DiskStats().corrupt_granules, 1u) << "quarantined, so read once";
    EXPECT_EQ(store_->DiskStats().quarantined_cells, 1u);
  }
  // Neither eviction nor another lane forgets or spreads it.
  const SegmentRef crowd = NewSegment();
  ASSERT_OK(AppendBlocks(*store_, *crowd, 0, 100));
  EXPECT_THAT(CheckBlock(*store_, *segment, 0, 1, 7), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(CheckBlock(*store_, *segment, 0, 0, 7));
  EXPECT_OK(CheckBlocks(*store_, *segment, 8, 40));
  // Counted for as long as the block is there.
  ASSERT_OK(Commit("parked", {{segment, 0, 8}}));
  EXPECT_EQ(store_->DiskStats().quarantined_cells, 1u);
  ASSERT_OK(Commit("parked", {{segment, 0, 7}}));
  EXPECT_EQ(store_->DiskStats().quarantined_cells, 0u);
}

TEST_F(StoreFaultTest, ARottenPieceIsReported) {
  SegmentRef segment = Parked(4);
  // Too small for a blob of its own: make it bigger.
  layout_.planes = {{64, 16}};
  const SegmentRef wide = NewSegment();
  ASSERT_OK(Commit("wide", {{wide, 0, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *wide, 0, 4));
  ASSERT_OK(store_->Flush(*wide, {}, Soon()));
  const BlockKey key{store_->id(*wide), 1, 0, 2};
  segment.reset();
  const_cast<SegmentRef&>(wide).reset();
  Open();
  Close();
  ASSERT_EQ(Rot(PieceOf(layout_, key)), 1);
  Open();
  for (const Manifest& manifest : store_->TakeRecovered()) {
    if (manifest.name != "wide") continue;
    const ReadRequest request{manifest.ranges[0].segment.get(), 1, 0, 0, 0b1111};
    const Pins pins = store_->PinStripes({&request, 1}, Soon());
    EXPECT_THAT(pins.extents()[0].status, StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_EQ(pins.extents()[0].missing, 0b0100u);
    EXPECT_TRUE(SamePiece(layout_, {key.segment, 1, 0, 3}, pins.extents()[0].data));
    EXPECT_EQ(store_->DiskStats().quarantined_cells, 1u);
    // The stripe stays, the block goes.
    ASSERT_OK(Commit("wide", {{manifest.ranges[0].segment, 0, 2}}));
    EXPECT_EQ(store_->DiskStats().quarantined_cells, 0u);
  }
}

TEST_F(StoreFaultTest, ARottenTailIsLost) {
  Open();
  SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  std::vector<std::byte> rows;
  for (uint16_t layer = 0; layer < 2; ++layer) {
    ASSERT_OK(store_->Reserve(*segment, layer, 0, 1, Soon()));
    for (uint16_t head = 0; head < 2; ++head) {
      rows = RowsOf(layout_, {store_->id(*segment), layer, head, 0});
      std::memcpy(store_->OpenRows(*segment, layer, head, 0), rows.data(), rows.size());
    }
  }
  ASSERT_OK(store_->Flush(*segment, std::vector<uint32_t>{9, 9}, Soon()));
  segment.reset();
  Open();
  Close();
  ASSERT_EQ(Rot(absl::MakeConstSpan(rows).first(9 * layout_.row_bytes)), 1);
  Open();
  segment = OnlyRecovered();
  EXPECT_THAT(store_->RestoreTail(*segment, 1, Soon()), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(store_->RestoreTail(*segment, 0, Soon()));
  EXPECT_EQ(store_->DiskStats().corrupt_granules, 1u);
}

TEST_F(StoreFaultTest, AFullDiskSaysSoAndGoesOnWhenSomethingIsDeleted) {
  options_.host_bytes = 16 * kMiB;
  options_.disk_bytes = 64 * kMiB;
  Open();
  const SegmentRef old = NewSegment();
  ASSERT_OK(Commit("old", {{old, 0, kOpenEnd}}));
  // 8 KiB a block and lane: 4 lanes of 1,300 blocks are most of the budget.
  ASSERT_OK(AppendBlocks(*store_, *old, 0, 1300));
  ASSERT_OK(store_->Flush(*old, {}, Soon()));
  const SegmentRef young = NewSegment();
  ASSERT_OK(Commit("young", {{young, 0, kOpenEnd}}));
  absl::Status status;
  uint32_t blocks = 0;
  for (; status.ok() && blocks < 2000; blocks += 10) {
    status = AppendBlocks(*store_, *young, blocks, blocks + 10, 0,
                          absl::Now() + absl::Milliseconds(200));
    if (status.ok()) status = store_->Flush(*young, {}, Soon());
    EXPECT_THAT(store_->DiskStats(), IsConserved());
  }
  blocks -= 10;
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk budget")));
  EXPECT_OK(CheckBlocks(*store_, *young, 0, blocks));
  ASSERT_OK(store_->DeleteManifest("old", absl::InfiniteFuture()));
  EXPECT_OK(store_->Flush(*young, {}, Soon()));
  EXPECT_OK(CheckBlocks(*store_, *young, 0, blocks));
  EXPECT_THAT(store_->DiskStats(), IsConserved());
}

}  // namespace
}  // namespace terrace::kvstore
