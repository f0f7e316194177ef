// Seals that are taken off: what stays, what goes, who is in the way, and what a crash leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "kvstore/block_store.h"
#include "kvstore/disk_tier.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr uint32_t kOld = 1;
constexpr uint32_t kNew = 2;
constexpr uint32_t kBlocks = 6;

class StoreUnsealTest : public StoreTest {
 protected:
  StoreUnsealTest() { options_.durability = Durability::kNone; }

  // A sequence of kBlocks blocks, `flushed` of them before the rest were appended.
  SegmentRef Make(uint32_t flushed) {
    SegmentRef segment = NewSegment();
    EXPECT_OK(Commit("mine", {{segment, 0, kOpenEnd}}));
    EXPECT_OK(AppendBlocks(*store_, *segment, 0, flushed, kOld));
    EXPECT_OK(store_->Flush(*segment, {}, Soon()));
    EXPECT_OK(AppendBlocks(*store_, *segment, flushed, kBlocks, kOld));
    return segment;
  }
  // The first `rows` rows of a block that is open.
  void ExpectOpenRows(Segment& segment, uint32_t block, uint32_t rows) {
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      for (uint16_t head = 0; head < layout_.heads; ++head) {
        const auto expected = RowsOf(layout_, {store_->id(segment), layer, head, block}, kOld);
        ASSERT_EQ(std::memcmp(store_->OpenRows(segment, layer, head, block), expected.data(),
                              size_t{rows} * layout_.row_bytes),
                  0)
            << layer << ", " << head;
      }
    }
  }
  void ExpectNothingFrom(Segment& segment, uint32_t block) {
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      for (; block < kBlocks; ++block) {
        EXPECT_THAT(CheckBlock(*store_, segment, layer, 1, block, kOld),
                    StatusIs(absl::StatusCode::kNotFound));
      }
    }
  }
};

struct Case {
  const char* name;
  uint32_t flushed;
  uint32_t block;
  uint32_t rows;
};

class StoreUnsealCaseTest : public StoreUnsealTest, public ::testing::WithParamInterface<Case> {
 protected:
  // What is durable of what stays, per layer.
  static DurableExtent Durable() {
    const Case& its = GetParam();
    return {.end_block = std::min(its.flushed, its.block),
            .tail_rows = its.flushed > its.block ? its.rows : 0};
  }
  void ExpectDurable(const Segment& segment) {
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      EXPECT_EQ(store_->Durable(segment, layer).end_block, Durable().end_block);
      EXPECT_EQ(store_->Durable(segment, layer).tail_rows, Durable().tail_rows);
    }
  }
};

TEST_P(StoreUnsealCaseTest, WhatStaysIsOpenAndAsDurableAsItWas) {
  const auto& [name, flushed, block, rows] = GetParam();
  Open();
  const SegmentRef segment = Make(flushed);
  const auto on_disk = store_->Unseal(*segment, block, rows, Soon());
  ASSERT_OK(on_disk);
  EXPECT_THAT(*on_disk, Each(false));
  EXPECT_EQ(store_->SealedEnd(*segment, 1, 1), block);
  ExpectDurable(*segment);
  if (rows != 0) ExpectOpenRows(*segment, block, rows);
  ExpectNothingFrom(*segment, block + (rows == 0 ? 0 : 1));
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, block, kOld));
  // It goes on from there.
  ASSERT_OK(AppendBlocks(*store_, *segment, block, kBlocks + 2, kNew));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, block, kOld));
  EXPECT_OK(CheckBlocks(*store_, *segment, block, kBlocks + 2, kNew));
}

TEST_P(StoreUnsealCaseTest, ARestartFindsTheDurablePartOfIt) {
  const auto& [name, flushed, block, rows] = GetParam();
  Open();
  {
    const SegmentRef segment = Make(flushed);
    ASSERT_OK(store_->Unseal(*segment, block, rows, Soon()));
  }
  for (int restart = 0; restart < 2; ++restart) {
    Open();
    const SegmentRef segment = OnlyRecovered();
    ExpectDurable(*segment);
    const DurableExtent durable = Durable();
    EXPECT_EQ(store_->SealedEnd(*segment, 0, 0), durable.end_block);
    EXPECT_OK(CheckBlocks(*store_, *segment, 0, durable.end_block, kOld));
    if (durable.tail_rows == 0) continue;
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      ASSERT_OK(store_->RestoreTail(*segment, layer, Soon()));
    }
    ExpectOpenRows(*segment, block, durable.tail_rows);
    // A flush of fewer rows takes their place.
    if (restart == 0) {
      ASSERT_OK(store_->CutTail(*segment, block, durable.tail_rows, Soon()));
      ASSERT_OK(store_->Flush(*segment, std::vector<uint32_t>(layout_.layers, durable.tail_rows),
                              Soon()));
    }
  }
}

// Parked, its rows are on disk only: those of them that stay come back from where they are.
TEST_P(StoreUnsealCaseTest, RowsThatAreOnDiskOnlyStayThere) {
  const auto& [name, flushed, block, rows] = GetParam();
  if (flushed < kBlocks || rows == 0) return;
  Open();
  const SegmentRef segment = Make(flushed);
  ASSERT_OK(store_->Park("mine"));
  store_->Unpark("mine");
  const auto on_disk = store_->Unseal(*segment, block, rows, Soon());
  ASSERT_OK(on_disk);
  EXPECT_THAT(*on_disk, Each(true));
  EXPECT_EQ(HostBlocks(*segment), 0u);
  ExpectDurable(*segment);
  for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
    ASSERT_OK(store_->RestoreTail(*segment, layer, Soon()));
  }
  ExpectOpenRows(*segment, block, rows);
}

// Of a segment of one lane, too, whose records are deleted one by one.
TEST_P(StoreUnsealCaseTest, ADeletedSequenceLeavesNothing) {
  const auto& [name, flushed, block, rows] = GetParam();
  for (const uint16_t heads : {1, 2}) {
    layout_.layers = 1;
    layout_.heads = heads;
    std::filesystem::remove_all(options_.disk_path);
    Open();
    {
      const SegmentRef segment = Make(flushed);
      ASSERT_OK(store_->Unseal(*segment, block, rows, Soon()));
    }
    Open();
    ASSERT_OK(store_->DeleteManifest("mine", Soon()));
    Close();
    DiskTierOptions options;
    options.path = options_.disk_path;
    options.bytes = options_.disk_bytes;
    options.shard = options_.shard;
    const auto tier = DiskTier::Open(options);
    ASSERT_OK(tier);
    for (uint32_t each = 0; each < kBlocks; ++each) {
      const auto left = (*tier)->ReadTail({SegmentId{3ull << 48 | 1}, 0, 0, each}, layout_, 16);
      EXPECT_THAT(left, StatusIs(absl::StatusCode::kNotFound)) << each;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cuts, StoreUnsealCaseTest,
    ::testing::Values(Case{"all_of_it_in_memory", 0, 0, 0}, Case{"first_row_in_memory", 0, 0, 1},
                      Case{"last_row_in_memory", 0, 5, 15}, Case{"at_a_stripe", 0, 4, 0},
                      Case{"in_a_stripe", 0, 5, 3}, Case{"above_what_is_durable", 3, 4, 7},
                      Case{"at_what_is_durable", 3, 3, 7}, Case{"in_what_is_durable", 3, 2, 7},
                      Case{"at_a_durable_block", 6, 3, 0}, Case{"at_a_granule", 6, 3, 4},
                      Case{"first_durable_row", 6, 0, 1}, Case{"last_durable_row", 6, 5, 15},
                      Case{"all_that_is_durable", 6, 0, 0}),
    [](const ::testing::TestParamInfo<Case>& each) { return std::string(each.param.name); });

TEST_F(StoreUnsealTest, WithoutADiskToo) {
  options_.disk_path.clear();
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("mine", {{segment, 0, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, kBlocks, kOld));
  const uint64_t used = store_->HostStats().used_bytes;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_OK(store_->Unseal(*segment, 2, 5, Soon()));
    ExpectOpenRows(*segment, 2, 5);
    ASSERT_OK(AppendBlocks(*store_, *segment, 2, kBlocks, kOld));
  }
  EXPECT_EQ(store_->HostStats().used_bytes, used);
  EXPECT_THAT(store_->HostStats(), IsConserved());
}

TEST_F(StoreUnsealTest, WhoSharesTheBlocksIsInTheWay) {
  Open();
  const SegmentRef segment = Make(kBlocks);
  const SegmentRef fork = NewSegment(4);
  ASSERT_OK(Commit("fork", {{segment, 0, 4}, {fork, 4, kOpenEnd}}));
  for (const uint32_t block : {0u, 3u}) {
    EXPECT_THAT(store_->Unseal(*segment, block, 1, Soon()),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another manifest")));
  }
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, kBlocks, kOld));
  EXPECT_OK(store_->Unseal(*segment, 4, 1, Soon()));
  ASSERT_OK(store_->DeleteManifest("fork", Soon()));
  EXPECT_OK(store_->Unseal(*segment, 3, 1, Soon()));
  EXPECT_THAT(store_->Unseal(*fork, 3, 0, Soon()), StatusIs(absl::StatusCode::kFailedPrecondition));
}

// Keeps I2 and I3.
TEST_F(StoreUnsealTest, WhoReadsTheBlocksIsInTheWay) {
  Open();
  const SegmentRef segment = Make(kBlocks);
  const ReadRequest rows{segment.get(), 1, 0, 3, 1};
  const ReadRequest stripe{segment.get(), 0, 1, 1, 1};
  const auto refused = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("read"));
  {
    const Pins pins = store_->PinRows({&rows, 1}, Soon());
    EXPECT_THAT(store_->Unseal(*segment, 3, 1, Soon()), refused);
    EXPECT_THAT(store_->Unseal(*segment, 2, 1, Soon()), refused);
    EXPECT_OK(store_->Unseal(*segment, 4, 1, Soon()));
  }
  EXPECT_OK(store_->Unseal(*segment, 3, 1, Soon()));
  ASSERT_OK(AppendBlocks(*store_, *segment, 3, kBlocks, kOld));
  {
    const Pins pins = store_->PinStripes({&stripe, 1}, Soon());
    EXPECT_THAT(store_->Unseal(*segment, 4, 1, Soon()), refused);
  }
  EXPECT_OK(store_->Unseal(*segment, 4, 1, Soon()));
}

TEST_F(StoreUnsealTest, AWriteThatFailsChangesNothing) {
  bool fails = false;
  fault_ = [&](DiskOperation operation) {
    return fails && operation == DiskOperation::kWrite ? absl::UnavailableError("no")
                                                       : absl::OkStatus();
  };
  Open();
  const SegmentRef segment = Make(kBlocks);
  fails = true;
  EXPECT_THAT(store_->Unseal(*segment, 2, 3, Soon()), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, kBlocks, kOld));
  EXPECT_EQ(store_->Durable(*segment, 0).end_block, kBlocks);
  fails = false;
  EXPECT_OK(store_->Unseal(*segment, 2, 3, Soon()));
}

// A read that its request gave up on comes to a block that is gone, and that will be there again.
TEST_F(StoreUnsealTest, ALateReadQuarantinesNothing) {
  std::atomic<bool> stalls = false;
  std::latch stalled(1);
  std::latch released(1);
  fault_ = [&](DiskOperation operation) {
    if (operation == DiskOperation::kRead && stalls.exchange(false)) {
      stalled.count_down();
      released.wait();
    }
    return absl::OkStatus();
  };
  options_.reader_threads = 1;
  Open();
  const SegmentRef segment = Make(kBlocks);
  ASSERT_OK(store_->Park("mine"));
  store_->Unpark("mine");
  // Without a place in memory, it reads for itself and holds nothing.
  SegmentRef hog = NewSegment();
  while (AppendBlock(*store_, *hog, 0, 0, store_->SealedEnd(*hog, 0, 0), kOld, absl::Now()).ok()) {
  }
  const ReadRequest rows{segment.get(), 0, 0, 4, 1};
  stalls = true;
  std::thread late([&] {
    const Pins pins = store_->PinRows({&rows, 1}, absl::Now() + absl::Milliseconds(200));
    EXPECT_THAT(pins.extents()[0].status, StatusIs(absl::StatusCode::kDeadlineExceeded));
  });
  stalled.wait();
  late.join();
  hog.reset();
  ASSERT_OK(store_->Unseal(*segment, 3, 0, Soon()));
  released.count_down();
  ASSERT_OK(AppendBlocks(*store_, *segment, 3, kBlocks, kNew));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  ASSERT_OK(store_->Park("mine"));
  // Its turn is after the late one.
  EXPECT_OK(CheckBlocks(*store_, *segment, 3, kBlocks, kNew));
  EXPECT_EQ(store_->DiskStats().corrupt_granules, 0u);
  EXPECT_EQ(store_->DiskStats().quarantined_cells, 0u);
}

}  // namespace
}  // namespace terrace::kvstore
