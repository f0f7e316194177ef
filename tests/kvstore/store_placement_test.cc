// Who keeps its place in host memory: policies, watermarks and reading ahead, seen from outside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

class StorePlacementTest : public StoreTest {
 protected:
  // A whole lane of blocks of 8 KiB is twice what memory has for rows.
  static constexpr uint32_t kBlocks = 200;

  StorePlacementTest() {
    layout_.layers = 1;
    layout_.heads = 1;
    layout_.planes.clear();
  }

  void OpenFilled() {
    Open();
    segment_ = NewSegment();
    ASSERT_OK(Commit("sequence", {{segment_, 0, kOpenEnd}}));
    ASSERT_OK(AppendBlocks(*store_, *segment_, 0, kBlocks));
    ASSERT_OK(store_->Flush(*segment_, {}, Soon()));
  }
  // The same with nothing in memory.
  void OpenCold() {
    OpenFilled();
    segment_ = nullptr;
    Open();
    segment_ = OnlyRecovered();
  }
  ReadRequest Request(uint32_t block, float mass) const {
    return {segment_.get(), 0, 0, block, AllGranules(layout_), mass};
  }
  // Reads blocks [first, end), each by itself; how many came from disk.
  int Read(uint32_t first, uint32_t end, float mass) {
    int from_disk = 0;
    for (uint32_t block = first; block < end; ++block) {
      const ReadRequest request = Request(block, mass);
      const Pins pins = store_->PinRows({&request, 1}, Soon());
      EXPECT_OK(pins.extents()[0].status);
      from_disk += pins.extents()[0].from_disk != 0 ? 1 : 0;
    }
    return from_disk;
  }
  void ReadAhead(uint32_t first, uint32_t end) {
    std::vector<ReadRequest> requests;
    for (uint32_t block = first; block < end; ++block) requests.push_back(Request(block, 0));
    store_->ReadAhead(requests, Soon());
  }
  // A sweep over 180 blocks, again and again, and after each four of them one of 20 others, which
  // are worth more: each comes back after 100 others, and memory has room for 88. How many of the
  // last 60 of those reads came from disk.
  int HotReadsFromDisk() {
    OpenCold();
    int from_disk = 0;
    for (uint32_t i = 0; i < 120; ++i) {
      for (uint32_t j = 0; j < 4; ++j) {
        const uint32_t cold = 20 + (4 * i + j) % 180;
        Read(cold, cold + 1, 0.001F);
      }
      const int missed = Read(i % 20, i % 20 + 1, 0.5F);
      if (i >= 60) from_disk += missed;
    }
    return from_disk;
  }

  SegmentRef segment_;
};

TEST_F(StorePlacementTest, HeatKeepsWhatIsWorthMoreThanASweep) {
  options_.placement = PolicyKind::kHeat;
  EXPECT_LE(HotReadsFromDisk(), 3);
}

TEST_F(StorePlacementTest, S3FifoKeepsWhatWasUsedMoreThanOnce) {
  options_.placement = PolicyKind::kS3Fifo;
  EXPECT_LE(HotReadsFromDisk(), 15);
  EXPECT_EQ(store_->HostStats().bypassed_blocks, 0u);
}

TEST_F(StorePlacementTest, LruLosesItToTheSweep) {
  options_.placement = PolicyKind::kLru;
  EXPECT_GE(HotReadsFromDisk(), 50) << "of 60";
  EXPECT_EQ(store_->HostStats().bypassed_blocks, 0u);
}

TEST_F(StorePlacementTest, AColdReadIsServedAndLeavesMemoryAsItIs) {
  OpenCold();
  for (int i = 0; i < 3; ++i) Read(0, 100, 0.5F);
  const TierStats before = store_->HostStats();
  EXPECT_EQ(Read(150, 180, 0.0001F), 30);
  const TierStats after = store_->HostStats();
  EXPECT_EQ(after.evicted_blocks, before.evicted_blocks);
  EXPECT_EQ(after.resident_blocks, before.resident_blocks);
  EXPECT_EQ(after.bypassed_blocks, before.bypassed_blocks + 30);
}

TEST_F(StorePlacementTest, AHotReadGetsThePlaceOfAColderOne) {
  OpenCold();
  Read(0, 100, 0.001F);
  EXPECT_EQ(Read(199, 200, 0.9F), 1);
  EXPECT_EQ(Read(199, 200, 0.9F), 0);
}

TEST_F(StorePlacementTest, MemoryIsBroughtBackToItsWatermark) {
  for (const PolicyKind kind : {PolicyKind::kHeat, PolicyKind::kLru, PolicyKind::kS3Fifo}) {
    SCOPED_TRACE(std::string(PolicyName(kind)));
    options_.placement = kind;
    std::filesystem::remove_all(options_.disk_path);
    OpenFilled();
    // Three quarters of the memory are for rows; it is crowded with less room than a thirty-second.
    const uint64_t rows_max = kMiB / 4 * 3 - kMiB / 32;
    EXPECT_TRUE(Eventually([&] { return store_->HostStats().resident_bytes <= rows_max; }))
        << store_->HostStats().resident_bytes;
    EXPECT_GT(store_->HostStats().demoted_blocks, 0u);
    // So the next ones find room without evicting.
    const TierStats before = store_->HostStats();
    ASSERT_OK(store_->Reserve(*segment_, 0, kBlocks, kBlocks + 3, Soon()));
    const TierStats after = store_->HostStats();
    EXPECT_EQ(after.evicted_blocks - after.demoted_blocks,
              before.evicted_blocks - before.demoted_blocks);
    segment_ = nullptr;
    Close();
  }
}

TEST_F(StorePlacementTest, WhatIsReadAheadIsThereWhenAsked) {
  OpenCold();
  ReadAhead(10, 20);
  EXPECT_EQ(store_->HostStats().ahead_blocks, 10u);
  EXPECT_EQ(Read(10, 18, 0.5F), 0);
  const TierStats stats = store_->HostStats();
  EXPECT_EQ(stats.ahead_useful_blocks, 8u);
  EXPECT_EQ(stats.ahead_late_blocks, 0u);
  EXPECT_EQ(stats.ahead_wasted_blocks, 0u);
  ReadAhead(10, 20);
  EXPECT_EQ(store_->HostStats().ahead_blocks, 10u) << "it is there already";
  EXPECT_EQ(Read(10, 18, 0.5F), 0);
  EXPECT_EQ(store_->HostStats().ahead_useful_blocks, 8u) << "counted once";
}

TEST_F(StorePlacementTest, WhatIsReadAheadInVainIsWasted) {
  OpenCold();
  ReadAhead(10, 20);
  // Freed before anybody asked.
  ASSERT_OK(store_->DeleteManifest("sequence", Soon()));
  EXPECT_TRUE(Eventually([&] { return store_->HostStats().ahead_wasted_blocks == 10; }));
  EXPECT_EQ(store_->HostStats().ahead_useful_blocks, 0u);
  ReadAhead(10, 20);
  EXPECT_EQ(store_->HostStats().ahead_blocks, 10u) << "what is gone is not read";
}

TEST_F(StorePlacementTest, OtherGranulesThanThoseReadAheadAreAWaste) {
  OpenCold();
  ReadRequest request = Request(7, 0);
  request.cells = 1;
  store_->ReadAhead({&request, 1}, Soon());
  request.cells = 2;
  EXPECT_EQ(store_->PinRows({&request, 1}, Soon()).extents()[0].from_disk, 2u);
  EXPECT_EQ(store_->HostStats().ahead_wasted_blocks, 1u);
}

TEST_F(StorePlacementTest, ReadingAheadNeverDisplacesWhatIsHotter) {
  for (const PolicyKind kind : {PolicyKind::kHeat, PolicyKind::kLru}) {
    SCOPED_TRACE(std::string(PolicyName(kind)));
    options_.placement = kind;
    std::filesystem::remove_all(options_.disk_path);
    OpenCold();
    Read(100, 200, 0.0001F);
    for (int i = 0; i < 3; ++i) Read(0, 80, 0.5F);
    const int before = Read(0, 80, 0.5F);
    ReadAhead(100, 200);
    EXPECT_LE(Read(0, 80, 0.5F), before);
    segment_ = nullptr;
    Close();
  }
}

using SameSizeTest = StoreTest;

// Rows and stripes of one size share no slabs, so that one kind must be able to empty the other's.
TEST_F(SameSizeTest, AStripeTakesASlabOfRows) {
  layout_.planes = {{.count = 32, .cell_bytes = 64}};
  ASSERT_EQ(layout_.stripe_bytes(), layout_.rows_bytes());
  Open();
  SegmentRef warm = NewSegment();
  ASSERT_OK(Commit("warm", {{warm, 0, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *warm, 0, 40));
  ASSERT_OK(store_->Flush(*warm, {}, Soon()));
  warm.reset();
  Open();
  warm = OnlyRecovered();
  // Four slabs: open rows and stripes of eight segments fill one each, rows that were read the
  // rest.
  std::vector<SegmentRef> open;
  const auto reserve = [&] {
    open.push_back(NewSegment());
    absl::Status status = store_->Reserve(*open.back(), 0, 0, 1, Soon());
    if (status.ok()) status = store_->Reserve(*open.back(), 1, 0, 1, Soon());
    return status;
  };
  for (int i = 0; i < 8; ++i) ASSERT_OK(reserve()) << i;
  for (uint32_t block = 0; block < 40; ++block) {
    for (uint16_t head = 0; head < 2; ++head) {
      const ReadRequest request{warm.get(), 0, head, block, 0b1111};
      ASSERT_OK(store_->PinRows({&request, 1}, Soon()).extents()[0].status);
    }
  }
  EXPECT_OK(reserve());
  EXPECT_THAT(store_->HostStats(), IsConserved());
}

}  // namespace
}  // namespace terrace::kvstore
