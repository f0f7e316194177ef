#include "kvstore/block_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class BlockStoreTest : public ::testing::Test {
 protected:
  void Open(uint64_t host_bytes, bool with_disk, Durability durability = Durability::kAsync) {
    store_.reset();
    StoreOptions options;
    options.host_bytes = host_bytes;
    if (with_disk) options.disk_path = folder_.path() + "/disk";
    options.disk_bytes = 256 * kMiB;
    options.durability = durability;
    options.shard = 3;
    auto store = BlockStore::Open(options);
    ASSERT_OK(store);
    store_ = *std::move(store);
  }
  void TearDown() override {
    if (store_ == nullptr) return;
    EXPECT_THAT(store_->HostStats(), IsConserved());
    EXPECT_THAT(store_->DiskStats(), IsConserved());
  }
  SegmentRef NewSegment(uint32_t first_block = 0) {
    auto segment = store_->CreateSegment(layout_, first_block);
    EXPECT_OK(segment);
    return *std::move(segment);
  }
  static Manifest Named(std::string name, std::vector<SegmentRange> ranges) {
    return {.name = std::move(name), .attributes = "attributes", .ranges = std::move(ranges)};
  }
  // Reads enough other blocks to push all clean rows of `segment` out.
  void Evict(uint32_t blocks) {
    const SegmentRef filler = NewSegment();
    ASSERT_OK(AppendBlocks(*store_, *filler, 0, blocks));
    ASSERT_OK(store_->Flush(*filler, {}, Soon()));
    fillers_.push_back(filler);
  }
  uint64_t HostBlocks(const Segment& segment) {
    uint64_t sum = 0;
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      sum += store_->Describe(segment, layer, 0, kOpenEnd).host_blocks;
    }
    return sum;
  }

  const TempFolder folder_;
  BlockLayout layout_ = SmallLayout();
  std::unique_ptr<BlockStore> store_;
  std::vector<SegmentRef> fillers_;
};

TEST_F(BlockStoreTest, SealedBlocksAreReadBack) {
  Open(kMiB, false);
  const SegmentRef segment = NewSegment(5);
  ASSERT_OK(AppendBlocks(*store_, *segment, 5, 12));
  EXPECT_EQ(store_->SealedEnd(*segment, 1, 1), 12u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 5, 12));
  EXPECT_EQ(static_cast<uint64_t>(store_->id(*segment)) >> 48, 3u);
}

TEST_F(BlockStoreTest, EvictionUnderPressureKeepsEveryBlockReadable) {
  Open(kMiB, true);
  const SegmentRef segment = NewSegment();
  ASSERT_OK(AppendBlocks(*store_, *segment, 0, 100));
  EXPECT_GT(store_->HostStats().evicted_blocks, 0u);
  EXPECT_OK(CheckBlocks(*store_, *segment, 0, 100));
}

}  // namespace
}  // namespace terrace::kvstore
