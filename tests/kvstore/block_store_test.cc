#include "kvstore/block_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

class BlockStoreTest : public StoreTest {
 protected:
  // A segment of that many blocks a lane that is on disk and not in memory.
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
  // Puts other blocks in the place of whatever may leave memory.
  void Crowd() {
    crowd_.push_back(NewSegment());
    ASSERT_OK(AppendBlocks(*store_, *crowd_.back(), 0, 100));
  }

  std::vector<SegmentRef> crowd_;
};

TEST_F(BlockStoreTest, SealedBlocksAreReadBack) {
  options_.disk_path.clear();
  Open();
  const SegmentRef segment = NewSegment(5);
  ASSERT_OK(AppendBlocks(*store_, *segment, 5, 12));
  EXPECT_EQ(store_->SealedEnd(*segment, 1, 1), 12u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 5, 12));
  EXPECT_EQ(static_cast<uint64_t>(store_->id(*segment)) >> 48, 3u);
  EXPECT_EQ(store_->DiskStats().capacity_bytes, 0u);
}

TEST_F(BlockStoreTest, SegmentsWithoutAnIndexWorkToo) {
  layout_.planes.clear();
  const SegmentRef segment = Parked(20);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 20));
  const ReadRequest stripe{segment.get(), 0, 0, 0, 1};
  EXPECT_THAT(store_->PinStripes({&stripe, 1}, Soon()).extents()[0].status,
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(BlockStoreTest, OpenRowsAreReadBeforeTheyAreSealed) {
  options_.disk_path.clear();
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(store_->Reserve(*segment, 0, 0, 2, Soon()));
  std::byte* rows = store_->OpenRows(*segment, 0, 1, 0);
  rows[layout_.row_bytes] = std::byte{42};
  const ReadRequest request{segment.get(), 0, 1, 0, 1};
  const Pins pins = store_->PinRows({&request, 1}, Soon());
  ASSERT_OK(pins.extents()[0].status);
  EXPECT_EQ(pins.extents()[0].data[layout_.row_bytes], std::byte{42});
}

TEST_F(BlockStoreTest, APartialReadFetchesThoseGranulesAndNoMore) {
  const SegmentRef segment = Parked(4);
  const size_t stored = layout_.granule_bytes() + 4;
  const auto pin = [&](uint64_t cells) {
    const ReadRequest request{segment.get(), 1, 0, 2, cells};
    Pins pins = store_->PinRows({&request, 1}, Soon());
    EXPECT_OK(pins.extents()[0].status);
    EXPECT_TRUE(
        SameGranules(layout_, {store_->id(*segment), 1, 0, 2}, pins.extents()[0].data, cells));
    return std::pair(pins.extents()[0].from_disk, pins.extents()[0].disk_bytes);
  };
  EXPECT_EQ(pin(0b0110), std::pair(uint64_t{0b0110}, 2 * stored));
  EXPECT_EQ(pin(0b0110), std::pair(uint64_t{0}, size_t{0}));
  EXPECT_EQ(pin(0b0111), std::pair(uint64_t{0b0001}, stored));
  EXPECT_EQ(store_->DiskStats().read_bytes, 3 * stored);
  EXPECT_EQ(store_->Describe(*segment, 1, 2, 3).host_row_bytes, 3 * layout_.granule_bytes());
  EXPECT_EQ(store_->HostStats().resident_blocks, 1u);
}

TEST_F(BlockStoreTest, AStripeIsReadWithoutItsRows) {
  const SegmentRef segment = Parked(7);
  const ReadRequest request{segment.get(), 0, 1, 1, 0b0111};
  const Pins pins = store_->PinStripes({&request, 1}, Soon());
  ASSERT_OK(pins.extents()[0].status);
  EXPECT_EQ(pins.extents()[0].from_disk, 0b0111u);
  EXPECT_EQ(pins.extents()[0].disk_bytes, 3 * (layout_.piece_bytes() + 4));
  for (uint32_t block = 4; block < 7; ++block) {
    EXPECT_TRUE(SamePiece(layout_, {store_->id(*segment), 0, 1, block}, pins.extents()[0].data));
  }
  EXPECT_EQ(store_->HostStats().resident_blocks, 0u);
}

TEST_F(BlockStoreTest, OneBatchMayAskForTheSameCellTwice) {
  const SegmentRef segment = Parked(2);
  const std::vector<ReadRequest> requests(3, {segment.get(), 0, 0, 1, 0b0011});
  const Pins pins = store_->PinRows(requests, Soon());
  uint64_t disk_bytes = 0;
  for (const PinnedExtent& extent : pins.extents()) {
    ASSERT_OK(extent.status);
    EXPECT_TRUE(SameGranules(layout_, {store_->id(*segment), 0, 0, 1}, extent.data, 0b0011));
    disk_bytes += extent.disk_bytes;
  }
  EXPECT_EQ(disk_bytes, 2 * (layout_.granule_bytes() + 4));
}

TEST_F(BlockStoreTest, CellsThatDoNotExistAreMissedAndTheOthersServed) {
  options_.disk_path.clear();
  Open();
  const SegmentRef segment = NewSegment(6);
  ASSERT_OK(AppendBlocks(*store_, *segment, 6, 7));
  // Of stripe 1, blocks 4 to 7, only block 6 is there.
  const std::vector<ReadRequest> stripes = {{segment.get(), 0, 0, 1, 0b1111},
                                            {segment.get(), 0, 0, 0, 1},
                                            {segment.get(), 0, 0, UINT32_MAX, 1},
                                            {segment.get(), 2, 0, 1, 0b0100}};
  const Pins stripe_pins = store_->PinStripes(stripes, Soon());
  EXPECT_EQ(stripe_pins.extents()[0].missing, 0b1011u);
  EXPECT_TRUE(SamePiece(layout_, {store_->id(*segment), 0, 0, 6}, stripe_pins.extents()[0].data));
  const std::vector<ReadRequest> rows = {{segment.get(), 0, 0, 5, 1},
                                         {segment.get(), 0, 0, 7, 1},
                                         {segment.get(), 0, 2, 6, 1},
                                         {segment.get(), 0, 0, 6, 0b10000}};
  const Pins row_pins = store_->PinRows(rows, Soon());
  for (const auto& extents : {stripe_pins.extents(), row_pins.extents()}) {
    for (const PinnedExtent& extent : extents) {
      EXPECT_NE(extent.missing, 0u);
      EXPECT_THAT(extent.status, StatusIs(absl::StatusCode::kNotFound));
    }
  }
}

TEST_F(BlockStoreTest, EvictionUnderPressureKeepsEveryBlockReadable) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 200));
  EXPECT_GT(store_->HostStats().evicted_blocks, 0u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 200));
  EXPECT_THAT(store_->HostStats(), IsConserved());
}

// I3.
TEST_F(BlockStoreTest, PinnedExtentsOutliveAnyPressure) {
  const SegmentRef segment = Parked(4);
  const ReadRequest rows{segment.get(), 1, 1, 3, 0b1111};
  const ReadRequest stripe{segment.get(), 1, 1, 0, 0b1111};
  const BlockKey key{store_->id(*segment), 1, 1, 3};
  {
    const Pins row_pins = store_->PinRows({&rows, 1}, Soon());
    const Pins stripe_pins = store_->PinStripes({&stripe, 1}, Soon());
    Crowd();
    EXPECT_GT(store_->HostStats().evicted_blocks, 0u);
    EXPECT_TRUE(SameGranules(layout_, key, row_pins.extents()[0].data, 0b1111));
    EXPECT_TRUE(SamePiece(layout_, key, stripe_pins.extents()[0].data));
    EXPECT_EQ(HostBlocks(*segment), 1u);
  }
  Crowd();
  EXPECT_EQ(HostBlocks(*segment), 0u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 4));
}

TEST_F(BlockStoreTest, AStripeThatABlockIsReservedInStays) {
  layout_.planes = {{1, 8192}};
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 1));
  ASSERT_OK(store_->Reserve(*segment, 0, 1, 2, Soon()));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  Crowd();
  for (uint16_t head = 0; head < 2; ++head) ASSERT_OK(AppendBlock(*store_, *segment, 0, head, 1));
  Crowd();
  for (uint16_t head = 0; head < 2; ++head) {
    EXPECT_OK(CheckBlock(*store_, *segment, 0, head, 0));
    EXPECT_OK(CheckBlock(*store_, *segment, 0, head, 1));
  }
}

TEST_F(BlockStoreTest, ReadsThatFindNoRoomStillGetTheirBytes) {
  const SegmentRef segment = Parked(100);
  std::vector<ReadRequest> requests;
  for (uint32_t block = 0; block < 100; ++block) {
    for (uint16_t head = 0; head < 2; ++head) {
      requests.push_back({segment.get(), 0, head, block, 0b1001});
    }
  }
  // 1.6 MiB pinned at once, of which 1 MiB has room.
  const Pins pins = store_->PinRows(requests, Soon());
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_OK(pins.extents()[i].status);
    EXPECT_EQ(pins.extents()[i].from_disk, 0b1001u);
    EXPECT_TRUE(SameGranules(layout_,
                             {store_->id(*segment), 0, requests[i].head, requests[i].index},
                             pins.extents()[i].data, 0b1001));
  }
  const TierStats stats = store_->HostStats();
  EXPECT_THAT(stats, IsConserved());
  EXPECT_EQ(stats.pinned_bytes, stats.used_bytes);
}

TEST_F(BlockStoreTest, ReadingRowsNeverEvictsAStripe) {
  layout_.planes = {{1, 8192}};
  const SegmentRef segment = Parked(100);
  // More stripes of 32 KiB than there is room for.
  for (uint16_t layer = 0; layer < 2; ++layer) {
    for (uint32_t stripe = 0; stripe < 25; ++stripe) {
      const ReadRequest request{segment.get(), layer, 0, stripe, 0b1111};
      EXPECT_OK(store_->PinStripes({&request, 1}, Soon()).extents()[0].status);
    }
  }
  const uint64_t index_bytes = store_->HostStats().index_bytes;
  EXPECT_GT(index_bytes, kMiB / 2);
  // And more rows, held all at once: some have to do with scratch.
  std::vector<Pins> pins;
  for (uint32_t block = 0; block < 100; ++block) {
    const ReadRequest request{segment.get(), 1, 1, block, 0b1111};
    pins.push_back(store_->PinRows({&request, 1}, Soon()));
    EXPECT_OK(pins.back().extents()[0].status);
  }
  EXPECT_LT(store_->HostStats().resident_blocks, 100u);
  EXPECT_EQ(store_->HostStats().index_bytes, index_bytes);
}

TEST_F(BlockStoreTest, IdleStripesGoBeforeRowsInUse) {
  options_.host_bytes = 2 * kMiB;
  layout_.planes = {{1, 8192}};
  const SegmentRef segment = Parked(100);
  const auto pin_stripe = [&](uint16_t layer, uint32_t stripe) {
    const ReadRequest request{segment.get(), layer, 0, stripe, 0b1111};
    ASSERT_OK(store_->PinStripes({&request, 1}, Soon()).extents()[0].status);
  };
  const auto pin_rows = [&](uint32_t block) {
    const ReadRequest request{segment.get(), 0, 0, block, 0b1111};
    const Pins pins = store_->PinRows({&request, 1}, Soon());
    EXPECT_OK(pins.extents()[0].status);
    return pins.extents()[0].from_disk;
  };
  // 800 KiB of stripes that nobody touches again, and rows that somebody does.
  for (uint32_t stripe = 0; stripe < 25; ++stripe) pin_stripe(0, stripe);
  for (int round = 0; round < 20; ++round) {
    for (uint32_t block = 0; block < 64; ++block) pin_rows(block);
  }
  for (uint32_t stripe = 0; stripe < 25; ++stripe) pin_stripe(1, stripe);
  uint64_t from_disk = 0;
  for (uint32_t block = 0; block < 64; ++block) from_disk |= pin_rows(block);
  EXPECT_EQ(from_disk, 0u);
}

TEST_F(BlockStoreTest, ReserveSaysSoWhenNothingCanLeave) {
  const SegmentRef parked = Parked(100);
  std::vector<ReadRequest> requests;
  for (uint32_t block = 0; block < 100; ++block) {
    for (uint16_t head = 0; head < 2; ++head) {
      requests.push_back({parked.get(), 0, head, block, 1});
    }
  }
  const SegmentRef segment = NewSegment();
  {
    const Pins pins = store_->PinRows(requests, Soon());
    // Beyond the room that reads leave alone.
    EXPECT_THAT(store_->Reserve(*segment, 0, 0, 20, absl::Now() + absl::Milliseconds(50)),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host memory")));
  }
  EXPECT_OK(store_->Reserve(*segment, 0, 0, 20, absl::Now()));
}

TEST_F(BlockStoreTest, WithoutADiskNothingLeavesAndReserveDoesNotWait) {
  options_.disk_path.clear();
  Open();
  const SegmentRef segment = NewSegment();
  const absl::Status status = AppendBlocks(*store_, *segment, 0, 1000, 0, absl::InfiniteFuture());
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(store_->HostStats().evicted_blocks, 0u);
  uint32_t sealed = kOpenEnd;
  for (uint16_t layer = 0; layer < 2; ++layer) {
    for (uint16_t head = 0; head < 2; ++head) {
      sealed = std::min(sealed, store_->SealedEnd(*segment, layer, head));
    }
  }
  EXPECT_GT(sealed, 10u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, sealed));
  EXPECT_THAT(store_->Flush(*segment, {}, Soon()), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(store_->AwaitDurable(*segment, Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(BlockStoreTest, ReserveIsIdempotentAndChecked) {
  options_.disk_path.clear();
  Open();
  const SegmentRef segment = NewSegment(4);
  ASSERT_OK(store_->Reserve(*segment, 1, 4, 6, Soon()));
  std::byte* rows = store_->OpenRows(*segment, 1, 0, 5);
  const uint64_t used = store_->HostStats().used_bytes;
  ASSERT_OK(store_->Reserve(*segment, 1, 4, 6, Soon()));
  EXPECT_EQ(store_->OpenRows(*segment, 1, 0, 5), rows);
  EXPECT_EQ(store_->HostStats().used_bytes, used);
  for (const auto& [layer, first, end] : std::vector<std::tuple<uint16_t, uint32_t, uint32_t>>{
           {2, 4, 5}, {0, 3, 5}, {0, 6, 5}, {0, 4, UINT32_MAX}}) {
    EXPECT_THAT(store_->Reserve(*segment, layer, first, end, Soon()),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(BlockStoreTest, RowsAloneTakeNoStripe) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  // 0 begins a stripe, 1 lies within it, 4 begins the next.
  for (const uint32_t block : {0, 1, 4}) {
    SCOPED_TRACE(block);
    ASSERT_OK(AppendBlocks(*store_, *segment, store_->SealedEnd(*segment, 0, 0), block));
    ASSERT_OK(store_->Flush(*segment, {}, Soon()));
    const TierStats before = store_->HostStats();
    ASSERT_OK(store_->ReserveRows(*segment, 0, block, block + 1, Soon()));
    EXPECT_EQ(store_->HostStats().index_bytes, before.index_bytes);
    EXPECT_EQ(store_->HostStats().used_bytes, before.used_bytes + 2 * layout_.rows_bytes());
    EXPECT_EQ(store_->HostStats().pinned_bytes, before.pinned_bytes + 2 * layout_.rows_bytes());
    std::byte* rows = store_->OpenRows(*segment, 0, 1, block);
    ASSERT_OK(store_->Reserve(*segment, 0, block, block + 1, Soon()));
    EXPECT_EQ(store_->OpenRows(*segment, 0, 1, block), rows);
    ASSERT_OK(AppendBlocks(*store_, *segment, block, block + 1));
    ASSERT_OK(CheckBlocks(*store_, *segment, 0, block + 1));
  }
}

TEST_F(BlockStoreTest, LayoutsThatDoNotFitTheMemoryAreRefused) {
  options_.disk_path.clear();
  Open();
  BlockLayout layout = layout_;
  layout.row_bytes = 16 * 1024;
  EXPECT_OK(store_->CreateSegment(layout, 0));
  layout.row_bytes += 1;
  EXPECT_THAT(store_->CreateSegment(layout, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("262144")));
  layout = layout_;
  layout.planes = {{1, 65'537}};
  EXPECT_THAT(store_->CreateSegment(layout, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  layout.layers = 0;
  EXPECT_THAT(store_->CreateSegment(layout, 0), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(BlockStoreTest, SegmentsMayOutliveTheStore) {
  Open();
  const SegmentRef named = NewSegment();
  const SegmentRef unnamed = NewSegment();
  ASSERT_OK(Commit("name", {{named, 0, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *named, 0, 2));
  ASSERT_OK(AppendBlocks(*store_, *unnamed, 0, 2));
  Close();
}

TEST(StoreOptions, AreCheckedAgainstTheirLimits) {
  struct Case {
    const char* name;
    void (*change)(StoreOptions&);
    bool valid;
  };
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  for (const Case& c :
       {Case{"defaults", [](StoreOptions&) {}, true},
        Case{"least memory", [](StoreOptions& o) { o.host_bytes = kMiB; }, true},
        Case{"too little memory", [](StoreOptions& o) { o.host_bytes = kMiB - 1; }, false},
        Case{"least disk",
             [](StoreOptions& o) {
               o.disk_path = "x";
               o.disk_bytes = 64 * kMiB;
             },
             true},
        Case{"too little disk",
             [](StoreOptions& o) {
               o.disk_path = "x";
               o.disk_bytes = 64 * kMiB - 1;
             },
             false},
        Case{"no disk, any size", [](StoreOptions& o) { o.disk_bytes = 0; }, true},
        Case{"no reader", [](StoreOptions& o) { o.reader_threads = 0; }, false},
        Case{"one reader", [](StoreOptions& o) { o.reader_threads = 1; }, true},
        Case{"most readers", [](StoreOptions& o) { o.reader_threads = 64; }, true},
        Case{"too many readers", [](StoreOptions& o) { o.reader_threads = 65; }, false}}) {
    StoreOptions options;
    c.change(options);
    EXPECT_EQ(options.Validate().ok(), c.valid) << c.name;
  }
}

}  // namespace
}  // namespace terrace::kvstore
