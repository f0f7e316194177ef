// Many small segments: their manifests change together, their blocks are awaited, and nothing of
// them stays.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kvstore/block_store.h"
#include "kvstore/disk_tier.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;

class StoreSmallSegmentsTest : public StoreTest {
 protected:
  uint64_t DiskBlocks() const { return store_->DiskStats().resident_blocks; }
  void Append(const SegmentRef& segment, uint32_t end) {
    ASSERT_OK(AppendBlocks(*store_, *segment, 0, end));
    ASSERT_OK(store_->AwaitDurable(*segment, Soon()));
  }
  // Watermarks, rows, pieces and tails of the first blocks of one lane. Closes the store.
  size_t RecordsOf(BlockKey block, uint32_t blocks) {
    Close();
    const auto disk = DiskTier::Open({.path = options_.disk_path,
                                      .bytes = options_.disk_bytes,
                                      .shard = options_.shard,
                                      .direct_reads = false,
                                      .fault = {}});
    EXPECT_OK(disk);
    size_t found = (*disk)->LoadIndex()->watermarks.size();
    std::vector<std::byte> extent(std::max(layout_.rows_bytes(), layout_.stripe_bytes()));
    for (block.block = 0; block.block <= blocks; ++block.block) {
      // Without rows, a tail of its own is all there can be.
      const auto tail = (*disk)->ReadTail(block, layout_, 0);
      found += tail.ok() && !tail->empty() ? 1 : 0;
      for (const RecordKind kind : {RecordKind::kRows, RecordKind::kPiece}) {
        CellRead read;
        read.kind = kind;
        read.block = block;
        read.layout = &layout_;
        read.extent = extent.data();
        (*disk)->Read({&read, 1}, absl::InfiniteFuture());
        found += read.outcome == CellRead::Outcome::kRead ? 1 : 0;
      }
    }
    return found;
  }
};

TEST_F(StoreSmallSegmentsTest, ManifestsChangeTogetherOrNotAtAll) {
  Open();
  const SegmentRef first = NewSegment();
  const SegmentRef second = NewSegment();
  const SegmentRef freed = NewSegment();
  for (const SegmentRef& segment : {first, second, freed}) Append(segment, 4);
  ASSERT_OK(Commit("freed", {{freed, 0, 4}}));
  ASSERT_OK(store_->DeleteManifest("freed", absl::InfiniteFuture()));
  const auto manifests = [&](const SegmentRef& last) {
    return std::vector<Manifest>{
        {.name = "a", .attributes = "1", .ranges = {{first, 0, 4}}},
        {.name = "b", .attributes = "2", .ranges = {{first, 0, 2}, {second, 2, 4}}},
        {.name = "c", .attributes = "3", .ranges = {{last, 0, 4}}}};
  };
  EXPECT_THAT(store_->CommitManifests(manifests(freed), absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(store_->DeleteManifest("a", absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(store_->CommitManifests(manifests(second), absl::InfiniteFuture()));
  EXPECT_EQ(DiskBlocks(), 2 * 4 * 4u);
  const std::vector<std::string> unknown = {"a", "unknown"};
  EXPECT_THAT(store_->DeleteManifests(unknown, absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kNotFound));
  const std::vector<std::string> names = {"a", "b"};
  ASSERT_OK(store_->DeleteManifests(names, absl::InfiniteFuture()));
  EXPECT_EQ(DiskBlocks(), 4 * 4u) << "all but the segment that c names";
  EXPECT_OK(CheckBlocks(*store_, *second, 0, 4));
  EXPECT_OK(store_->CommitManifests({}, absl::InfiniteFuture()));
  EXPECT_OK(store_->DeleteManifests({}, absl::InfiniteFuture()));
  EXPECT_THAT(store_->HostStats(), IsConserved());
  EXPECT_THAT(store_->DiskStats(), IsConserved());
}

TEST_F(StoreSmallSegmentsTest, BlocksAreAwaitedOnDisk) {
  options_.durability = Durability::kNone;
  Open();
  const SegmentRef segment = NewSegment();
  EXPECT_OK(store_->AwaitDurable(*segment, Soon()));
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 3));
  EXPECT_EQ(DiskBlocks(), 0u);
  EXPECT_OK(store_->AwaitDurable(*segment, Soon())) << "has them written";
  EXPECT_EQ(DiskBlocks(), 4 * 3u);
}

TEST_F(StoreSmallSegmentsTest, NoRecordStaysOfOneThatIsDeleted) {
  layout_.layers = 1;
  for (const uint16_t lanes : {1, 2}) {
    SCOPED_TRACE(lanes);
    layout_.heads = lanes;
    for (const bool deletes : {false, true}) {
      Open();
      SegmentRef segment = NewSegment();
      ASSERT_OK(Commit("segment", {{segment, 0, kOpenEnd}}));
      Append(segment, 3);
      ASSERT_OK(store_->Reserve(*segment, 0, 3, 4, Soon()));
      ASSERT_OK(store_->Flush(*segment, std::vector<uint32_t>{5}, Soon()));
      const BlockKey first{store_->id(*segment), 0, 0, 0};
      if (deletes) ASSERT_OK(store_->DeleteManifest("segment", absl::InfiniteFuture()));
      segment.reset();
      EXPECT_EQ(RecordsOf(first, 3), deletes ? 0u : 1 + 3 * 2 + 1u);
      Open();
      if (!deletes) ASSERT_OK(store_->DeleteManifest("segment", absl::InfiniteFuture()));
    }
  }
}

}  // namespace
}  // namespace terrace::kvstore
