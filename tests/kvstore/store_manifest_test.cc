// Lifetime: manifests, trimming, sharing, restart, tails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/block_store.h"
#include "kvstore/disk_tier.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

class StoreManifestTest : public StoreTest {
 protected:
  StoreManifestTest() { options_.host_bytes = 4 * kMiB; }
  uint64_t DiskBlocks() const { return store_->DiskStats().resident_blocks; }
  void Append(const SegmentRef& segment, uint32_t first, uint32_t end) {
    ASSERT_OK(AppendBlocks(*store_, *segment, first, end));
    ASSERT_OK(store_->Flush(*segment, {}, Soon()));
    ExpectConserved();
  }
  // Closes the store.
  size_t WatermarksOnDisk() {
    Close();
    DiskTierOptions options;
    options.path = options_.disk_path;
    options.bytes = options_.disk_bytes;
    options.shard = options_.shard;
    const auto disk = DiskTier::Open(options);
    EXPECT_OK(disk);
    const auto index = (*disk)->LoadIndex();
    EXPECT_OK(index);
    return index->watermarks.size();
  }
  void ExpectConserved() {
    EXPECT_THAT(store_->HostStats(), IsConserved());
    EXPECT_THAT(store_->DiskStats(), IsConserved());
  }
};

TEST_F(StoreManifestTest, ARestartServesWhatWasNamedAndWritten) {
  Open();
  const SegmentRef first = NewSegment();
  const SegmentRef second = NewSegment(6);
  ASSERT_OK(Commit("sequence", {{first, 0, 6}, {second, 6, kOpenEnd}}));
  Append(first, 0, 6);
  Append(second, 6, 9);
  const SegmentId second_id = store_->id(*second);
  Open();
  std::vector<Manifest> recovered = store_->TakeRecovered();
  ASSERT_EQ(recovered.size(), 1u);
  EXPECT_TRUE(store_->TakeRecovered().empty());
  EXPECT_EQ(recovered[0].name, "sequence");
  EXPECT_EQ(recovered[0].attributes, "attributes");
  ASSERT_EQ(recovered[0].ranges.size(), 2u);
  EXPECT_EQ(recovered[0].ranges[0].end_block, 6u);
  EXPECT_EQ(recovered[0].ranges[1].end_block, kOpenEnd);
  Segment& tail = *recovered[0].ranges[1].segment;
  EXPECT_EQ(store_->id(tail), second_id);
  EXPECT_EQ(store_->layout(tail), layout_);
  EXPECT_EQ(store_->SealedEnd(tail, 1, 0), 9u);
  EXPECT_EQ(store_->Durable(tail, 1).end_block, 9u);
  EXPECT_EQ(store_->HostStats().resident_blocks, 0u) << "no block is read";
  EXPECT_EQ(DiskBlocks(), 4 * 9u);
  EXPECT_OK(CheckBlocks(*store_, *recovered[0].ranges[0].segment, 0, 6));
  EXPECT_OK(CheckBlocks(*store_, tail, 6, 9));
  // And it goes on where it ended.
  ASSERT_OK(AppendBlocks(*store_, tail, 9, 12));
  EXPECT_OK(CheckBlocks(*store_, tail, 6, 12));
}

TEST_F(StoreManifestTest, WithoutWritingBehindOnlyAFlushIsDurable) {
  options_.durability = Durability::kNone;
  Open();
  SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  Append(segment, 0, 3);
  ASSERT_OK(AppendBlocks(*store_, *segment, 3, 5));
  EXPECT_EQ(store_->Durable(*segment, 0).end_block, 3u);
  segment.reset();
  Open();
  segment = OnlyRecovered();
  EXPECT_EQ(store_->SealedEnd(*segment, 0, 0), 3u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 3));
}

TEST_F(StoreManifestTest, BlocksLostInARestartAreWrittenAnew) {
  options_.durability = Durability::kNone;
  Open();
  SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  Append(segment, 0, 3);
  ASSERT_OK(AppendBlocks(*store_, *segment, 3, 5));
  segment.reset();
  Open();
  segment = OnlyRecovered();
  ASSERT_OK(AppendBlocks(*store_, *segment, 3, 6, /*salt=*/1));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  segment.reset();
  Open();
  segment = OnlyRecovered();
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 3));
  EXPECT_OK(CheckBlocks(*store_, *segment, 3, 6, /*salt=*/1));
}

TEST_F(StoreManifestTest, DeletingAManifestFreesBothTiers) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  Append(segment, 0, 8);
  ASSERT_OK(store_->DeleteManifest("sequence", absl::InfiniteFuture()));
  EXPECT_EQ(DiskBlocks(), 0u);
  EXPECT_EQ(store_->DiskStats().deleted_blocks, 4 * 8u);
  EXPECT_EQ(store_->DiskStats().index_bytes, 0u);
  EXPECT_EQ(store_->HostStats().used_bytes, 0u);
  EXPECT_THAT(CheckBlock(*store_, *segment, 0, 0, 0), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->Reserve(*segment, 0, 8, 9, Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(store_->DeleteManifest("sequence", absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kNotFound));
  Open();
  EXPECT_TRUE(store_->TakeRecovered().empty());
  EXPECT_EQ(DiskBlocks(), 0u);
}

TEST_F(StoreManifestTest, FreedExtentsStayUntilTheirLastPin) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  Append(segment, 0, 4);
  const ReadRequest request{segment.get(), 0, 0, 1, 0b1111};
  {
    const Pins rows = store_->PinRows({&request, 1}, Soon());
    const ReadRequest stripe{segment.get(), 0, 0, 0, 0b1111};
    const Pins stripes = store_->PinStripes({&stripe, 1}, Soon());
    ASSERT_OK(store_->DeleteManifest("sequence", absl::InfiniteFuture()));
    const SegmentRef other = NewSegment();
    ASSERT_OK(AppendBlocks(*store_, *other, 0, 60));
    const BlockKey key{store_->id(*segment), 0, 0, 1};
    EXPECT_TRUE(SameGranules(layout_, key, rows.extents()[0].data, 0b1111));
    EXPECT_TRUE(SamePiece(layout_, key, stripes.extents()[0].data));
    EXPECT_EQ(store_->HostStats().deleted_blocks, 15u);
  }
  EXPECT_TRUE(Eventually([&] { return store_->HostStats().deleted_blocks == 16u + 4 * 60u; }))
      << "and the other is abandoned";
}

TEST_F(StoreManifestTest, ASmallerEndFreesTheBlocksBeyondIt) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  Append(segment, 0, 10);
  const SegmentRef next = NewSegment(6);
  ASSERT_OK(Commit("sequence", {{segment, 0, 6}, {next, 6, kOpenEnd}}));
  ExpectConserved();
  EXPECT_EQ(DiskBlocks(), 4 * 6u);
  EXPECT_EQ(HostBlocks(*segment), 4 * 6u);
  EXPECT_EQ(store_->SealedEnd(*segment, 0, 0), 6u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 6));
  EXPECT_THAT(CheckBlock(*store_, *segment, 0, 0, 6), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Commit("sequence", {{segment, 0, 7}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("from block 6")));
  EXPECT_THAT(store_->Reserve(*segment, 0, 10, 11, Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  Append(next, 6, 8);
  Open();
  const std::vector<Manifest> recovered = store_->TakeRecovered();
  ASSERT_EQ(recovered.size(), 1u);
  ASSERT_EQ(recovered[0].ranges.size(), 2u);
  EXPECT_EQ(store_->SealedEnd(*recovered[0].ranges[0].segment, 1, 1), 6u);
  EXPECT_OK(CheckBlocks(*store_, *recovered[0].ranges[0].segment, 0, 6));
  EXPECT_OK(CheckBlocks(*store_, *recovered[0].ranges[1].segment, 6, 8));
}

TEST_F(StoreManifestTest, ASharedSegmentLivesUpToItsLongestRange) {
  Open();
  const SegmentRef parent = NewSegment();
  ASSERT_OK(Commit("parent", {{parent, 0, kOpenEnd}}));
  Append(parent, 0, 10);
  const SegmentRef child = NewSegment(4);
  ASSERT_OK(Commit("child", {{parent, 0, 4}, {child, 4, kOpenEnd}}));
  Append(child, 4, 6);
  const SegmentRef grandchild = NewSegment(7);
  ASSERT_OK(Commit("grandchild", {{parent, 0, 7}, {grandchild, 7, kOpenEnd}}));
  EXPECT_EQ(DiskBlocks(), 4 * (10u + 2u));
  ASSERT_OK(store_->DeleteManifest("parent", absl::InfiniteFuture()));
  EXPECT_EQ(DiskBlocks(), 4 * (7u + 2u));
  Open();
  std::vector<Manifest> recovered = store_->TakeRecovered();
  ASSERT_EQ(recovered.size(), 2u);
  EXPECT_EQ(recovered[0].ranges[0].segment, recovered[1].ranges[0].segment) << "one segment";
  EXPECT_OK(CheckBlocks(*store_, *recovered[0].ranges[0].segment, 0, 7));
  ASSERT_OK(store_->DeleteManifest("grandchild", absl::InfiniteFuture()));
  EXPECT_EQ(DiskBlocks(), 4 * (4u + 2u));
  EXPECT_OK(CheckBlocks(*store_, *recovered[0].ranges[0].segment, 0, 4));
  EXPECT_OK(CheckBlocks(*store_, *recovered[0].ranges[1].segment, 4, 6));
  ASSERT_OK(store_->DeleteManifest("child", absl::InfiniteFuture()));
  EXPECT_EQ(DiskBlocks(), 0u);
  EXPECT_EQ(store_->HostStats().used_bytes, 0u);
  ExpectConserved();
}

TEST_F(StoreManifestTest, ASegmentThatWasNeverNamedGoesWithItsLastReference) {
  Open();
  SegmentRef segment = NewSegment();
  Append(segment, 0, 5);
  EXPECT_EQ(DiskBlocks(), 4 * 5u);
  segment.reset();
  EXPECT_TRUE(Eventually([&] { return DiskBlocks() == 0; }));
  EXPECT_EQ(store_->HostStats().used_bytes, 0u);
  ExpectConserved();
}

TEST_F(StoreManifestTest, SegmentsThatNobodyNamedAreGoneAfterARestart) {
  Open();
  const SegmentRef unnamed = NewSegment();
  Append(unnamed, 0, 20);
  const SegmentRef named = NewSegment();
  ASSERT_OK(Commit("sequence", {{named, 0, kOpenEnd}}));
  Append(named, 0, 1);
  EXPECT_EQ(WatermarksOnDisk(), 2u);
  Open();
  EXPECT_EQ(DiskBlocks(), 4u);
  EXPECT_EQ(WatermarksOnDisk(), 1u);
}

TEST_F(StoreManifestTest, BlocksThatNobodyNamedAreGoneAfterARestart) {
  Open();
  const SegmentRef segment = NewSegment();
  Append(segment, 0, 10);
  // The first to name it; its writer may still name more, so the rest stays for now.
  ASSERT_OK(Commit("sequence", {{segment, 0, 4}}));
  EXPECT_EQ(DiskBlocks(), 4 * 10u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 10));
  Open();
  const SegmentRef recovered = OnlyRecovered();
  EXPECT_EQ(DiskBlocks(), 4 * 4u);
  EXPECT_EQ(store_->SealedEnd(*recovered, 0, 0), 4u);
  EXPECT_OK(CheckBlocks(*store_, *recovered, 0, 4));
  EXPECT_THAT(store_->Reserve(*recovered, 0, 4, 5, Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(StoreManifestTest, ManyTimesTheBudgetPassesThroughTheDisk) {
  options_.disk_bytes = 64 * kMiB;
  Open();
  for (int round = 0; round < 12; ++round) {
    const SegmentRef segment = NewSegment();
    ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
    ASSERT_OK(AppendBlocks(*store_, *segment, 0, 300));
    ASSERT_OK(store_->Flush(*segment, {}, Soon())) << round;
    ExpectConserved();
  }
  EXPECT_GT(store_->DiskStats().written_bytes, 100 * kMiB);
}

TEST_F(StoreManifestTest, ManifestsAreChecked) {
  Open();
  const SegmentRef a = NewSegment();
  const SegmentRef b = NewSegment(4);
  const auto refused = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Commit("", {}), refused);
  EXPECT_THAT(Commit(std::string(256, 'n'), {}), refused);
  EXPECT_OK(Commit(std::string(255, 'n'), {}));
  EXPECT_THAT(Commit("x", {{nullptr, 0, 4}}), refused);
  EXPECT_THAT(Commit("x", {{a, 1, 4}}), refused) << "does not start at 0";
  EXPECT_THAT(Commit("x", {{a, 0, 4}, {b, 5, 6}}), refused) << "leaves a hole";
  EXPECT_THAT(Commit("x", {{a, 0, 3}, {b, 3, 6}}), refused) << "before the segment's first";
  EXPECT_THAT(Commit("x", {{a, 0, kOpenEnd}, {b, 4, 6}}), refused) << "open in the middle";
  EXPECT_OK(Commit("x", {{a, 0, 4}, {b, 4, kOpenEnd}}));
}

TEST_F(StoreManifestTest, ATailSurvivesARestart) {
  Open();
  SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 2));
  const std::vector<uint32_t> tails = {5, 15};
  const auto key = [&](uint16_t layer, uint16_t head) {
    return BlockKey{store_->id(*segment), layer, head, 2};
  };
  for (uint16_t layer = 0; layer < 2; ++layer) {
    ASSERT_OK(store_->Reserve(*segment, layer, 2, 3, Soon()));
    for (uint16_t head = 0; head < 2; ++head) {
      FillBytes(key(layer, head), 0, false, tails[layer] * layout_.row_bytes,
                store_->OpenRows(*segment, layer, head, 2));
    }
  }
  ASSERT_OK(store_->Flush(*segment, tails, Soon()));
  EXPECT_EQ(store_->Durable(*segment, 1).tail_rows, 15u);
  segment.reset();
  Open();
  segment = OnlyRecovered();
  for (uint16_t layer = 0; layer < 2; ++layer) {
    ASSERT_OK(store_->RestoreTail(*segment, layer, Soon()));
    EXPECT_EQ(store_->Durable(*segment, layer).end_block, 2u);
    ASSERT_EQ(store_->Durable(*segment, layer).tail_rows, tails[layer]);
    for (uint16_t head = 0; head < 2; ++head) {
      std::vector<std::byte> expected(tails[layer] * layout_.row_bytes);
      FillBytes(key(layer, head), 0, false, expected.size(), expected.data());
      EXPECT_EQ(
          std::memcmp(store_->OpenRows(*segment, layer, head, 2), expected.data(), expected.size()),
          0);
    }
  }
  // The tail goes when its block is sealed, or when it is dropped.
  ASSERT_OK(AppendBlock(*store_, *segment, 0, 0, 2));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  EXPECT_EQ(store_->Durable(*segment, 0).tail_rows, 5u) << "one head is not sealed";
  ASSERT_OK(AppendBlock(*store_, *segment, 0, 1, 2));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  EXPECT_EQ(store_->Durable(*segment, 0).tail_rows, 0u);
  EXPECT_EQ(store_->Durable(*segment, 0).end_block, 3u);
  ASSERT_OK(store_->CutTail(*segment, 2, 0, Soon()));
  EXPECT_EQ(store_->Durable(*segment, 1).tail_rows, 0u);
  segment.reset();
  Open();
  segment = OnlyRecovered();
  EXPECT_EQ(store_->Durable(*segment, 0).end_block, 3u);
  EXPECT_EQ(store_->Durable(*segment, 1).tail_rows, 0u);
  EXPECT_OK(store_->RestoreTail(*segment, 1, Soon()));
}

TEST_F(StoreManifestTest, ACutLeavesTheTailBelowItDurable) {
  struct Case {
    uint32_t block, rows, kept;
  };
  for (const Case& c :
       {Case{2, 11, 10}, {2, 10, 10}, {2, 9, 9}, {2, 1, 1}, {2, 0, 0}, {1, 15, 0}, {3, 0, 10}}) {
    SCOPED_TRACE(::testing::Message() << c.block << ", " << c.rows);
    Open();
    SegmentRef segment = NewSegment();
    ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
    ASSERT_OK(AppendBlocks(*store_, *segment, 0, 2));
    ASSERT_OK(store_->Reserve(*segment, 1, 2, 3, Soon()));
    const BlockKey key{store_->id(*segment), 1, 1, 2};
    const std::vector<std::byte> rows = RowsOf(layout_, key);
    std::byte* open = store_->OpenRows(*segment, 1, 1, 2);
    std::memcpy(open, rows.data(), rows.size());
    ASSERT_OK(store_->Flush(*segment, std::vector<uint32_t>{0, 10}, Soon()));
    ASSERT_OK(store_->CutTail(*segment, c.block, c.rows, Soon()));
    EXPECT_EQ(store_->Durable(*segment, 1).tail_rows, c.kept);
    // What is written over the cut rows counts for nothing.
    std::memset(open + size_t{c.kept} * layout_.row_bytes, 0xEE,
                (layout_.block_tokens - c.kept) * layout_.row_bytes);
    segment.reset();
    Open();
    segment = OnlyRecovered();
    EXPECT_EQ(store_->Durable(*segment, 0).tail_rows, 0u);
    ASSERT_EQ(store_->Durable(*segment, 1).tail_rows, c.kept);
    ASSERT_OK(store_->RestoreTail(*segment, 1, Soon()));
    if (c.kept > 0) {
      EXPECT_EQ(std::memcmp(store_->OpenRows(*segment, 1, 1, 2), rows.data(),
                            size_t{c.kept} * layout_.row_bytes),
                0);
    }
    ASSERT_OK(store_->DeleteManifest("sequence", absl::InfiniteFuture()));
  }
}

TEST_F(StoreManifestTest, ATailWrittenAheadIsThereOnceAManifestNamesIt) {
  for (const bool named : {false, true}) {
    SCOPED_TRACE(named);
    Open();
    SegmentRef segment = NewSegment();
    ASSERT_OK(store_->Reserve(*segment, 0, 0, 1, Soon()));
    for (uint16_t head = 0; head < 2; ++head) {
      const std::vector<std::byte> rows = RowsOf(layout_, {store_->id(*segment), 0, head, 0});
      std::memcpy(store_->OpenRows(*segment, 0, head, 0), rows.data(), rows.size());
    }
    EXPECT_THAT(store_->WriteTail(*segment, std::vector<uint32_t>{16, 0}, Soon()),
                StatusIs(absl::StatusCode::kInvalidArgument));
    ASSERT_OK(store_->WriteTail(*segment, std::vector<uint32_t>{7, 0}, Soon()));
    EXPECT_EQ(store_->Durable(*segment, 0).tail_rows, 7u);
    if (named) {
      ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
    }
    const SegmentId id = store_->id(*segment);
    segment.reset();
    Open();
    const std::vector<Manifest> recovered = store_->TakeRecovered();
    ASSERT_EQ(recovered.size(), named ? 1u : 0u);
    if (!named) continue;
    Segment& back = *recovered[0].ranges[0].segment;
    ASSERT_EQ(store_->Durable(back, 0).tail_rows, 7u);
    ASSERT_OK(store_->RestoreTail(back, 0, Soon()));
    EXPECT_EQ(std::memcmp(store_->OpenRows(back, 0, 1, 0), RowsOf(layout_, {id, 0, 1, 0}).data(),
                          7 * layout_.row_bytes),
              0);
  }
}

TEST_F(StoreManifestTest, AFlushChecksItsTails) {
  Open();
  const SegmentRef segment = NewSegment();
  EXPECT_THAT(store_->Flush(*segment, std::vector<uint32_t>{1}, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(store_->Flush(*segment, std::vector<uint32_t>{0, 16}, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("below 16")));
  EXPECT_OK(store_->Flush(*segment, std::vector<uint32_t>{0, 0}, Soon()));
}

TEST_F(StoreManifestTest, AHostTierTooSmallForWhatIsOnDiskIsRefused) {
  options_.host_bytes = 64 * kMiB;
  layout_.stripe_blocks = 64;
  layout_.planes = {{.count = 1, .cell_bytes = 8192}};
  ASSERT_GT(layout_.stripe_bytes(), 256u << 10);
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("sequence", {{segment, 0, kOpenEnd}}));
  Append(segment, 0, 2);
  Close();
  options_.host_bytes = 16 * kMiB;
  EXPECT_THAT(OpenBlockStore(options_, fault_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("allow 262144 each")));
  options_.host_bytes = 64 * kMiB;
  Open();
  EXPECT_OK(CheckBlocks(*store_, *OnlyRecovered(), 0, 2));
}

}  // namespace
}  // namespace terrace::kvstore
