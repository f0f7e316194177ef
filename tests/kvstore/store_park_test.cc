// What parking a manifest takes out of memory, and what must stay.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;

class StoreParkTest : public StoreTest {
 protected:
  // Blocks reach the disk when they are flushed and not otherwise.
  StoreParkTest() { options_.durability = Durability::kNone; }

  // A manifest over one segment with blocks [0, end) on disk.
  SegmentRef Stored(const std::string& name, uint32_t end) {
    SegmentRef segment = NewSegment();
    EXPECT_OK(Commit(name, {{segment, 0, kOpenEnd}}));
    EXPECT_OK(AppendBlocks(*store_, *segment, 0, end));
    EXPECT_OK(store_->Flush(*segment, {}, Soon()));
    return segment;
  }
  ParkedBytes Park(const std::string& name) {
    const absl::StatusOr<ParkedBytes> parked = store_->Park(name);
    EXPECT_OK(parked);
    return parked.value_or(ParkedBytes());
  }
  uint64_t used_bytes() const { return store_->HostStats().used_bytes; }
};

TEST_F(StoreParkTest, TakesRowsAndStripesOutAndCountsThem) {
  Open();
  for (const uint32_t end : {0, 1, 3, 4, 5, 9}) {
    SCOPED_TRACE(end);
    const SegmentRef segment = Stored("sequence", end);
    const uint64_t rows = end * 4 * layout_.rows_bytes();
    const uint64_t before = used_bytes();
    const ParkedBytes parked = Park("sequence");
    EXPECT_EQ(parked.freed_rows, rows);
    EXPECT_EQ(parked.freed_rows + parked.freed_index, before);
    EXPECT_EQ(parked.kept, 0u);
    EXPECT_EQ(used_bytes(), 0u);
    EXPECT_EQ(HostBlocks(*segment), 0u);
    EXPECT_THAT(store_->HostStats(), IsConserved());
    ASSERT_OK(CheckBlocks(*store_, *segment, 0, end));
    ASSERT_OK(store_->DeleteManifest("sequence", absl::InfiniteFuture()));
  }
}

// I3.
TEST_F(StoreParkTest, LeavesWhatIsPinned) {
  Open();
  const SegmentRef segment = Stored("sequence", 5);
  const ReadRequest rows{segment.get(), 1, 0, 3, AllGranules(layout_)};
  const ReadRequest stripe{segment.get(), 0, 1, 1, 1};
  Pins row_pins = store_->PinRows({&rows, 1}, Soon());
  Pins stripe_pins = store_->PinStripes({&stripe, 1}, Soon());
  const uint64_t before = used_bytes();
  const ParkedBytes parked = Park("sequence");
  EXPECT_GT(parked.kept, layout_.rows_bytes());
  EXPECT_EQ(used_bytes(), parked.kept);
  EXPECT_EQ(parked.freed_rows + parked.freed_index + parked.kept, before);
  EXPECT_TRUE(SameGranules(layout_, {store_->id(*segment), 1, 0, 3}, row_pins.extents()[0].data,
                           rows.cells));
  EXPECT_TRUE(SamePiece(layout_, {store_->id(*segment), 0, 1, 4}, stripe_pins.extents()[0].data));
  row_pins = Pins();
  stripe_pins = Pins();
  EXPECT_EQ(Park("sequence").kept, 0u);
  EXPECT_EQ(used_bytes(), 0u);
}

TEST_F(StoreParkTest, LeavesWhatIsNotOnDisk) {
  Open();
  const SegmentRef segment = Stored("sequence", 4);
  ASSERT_OK(AppendBlocks(*store_, *segment, 4, 6));
  const ParkedBytes parked = Park("sequence");
  EXPECT_EQ(parked.freed_rows, 4 * 4 * layout_.rows_bytes());
  EXPECT_GE(parked.kept, 2 * 4 * layout_.rows_bytes());
  EXPECT_EQ(HostBlocks(*segment), 8u);
  ASSERT_OK(CheckBlocks(*store_, *segment, 0, 6));
  ASSERT_OK(store_->Flush(*segment, {}, Soon()));
  EXPECT_EQ(Park("sequence").kept, 0u);
  ASSERT_OK(CheckBlocks(*store_, *segment, 0, 6));
}

TEST_F(StoreParkTest, ForgetsOpenRowsAndBringsBackThoseThatWereFlushed) {
  Open();
  // Also at a stripe's edge, where the open block's stripe has nothing else yet.
  for (const uint32_t sealed : {0, 3, 4}) {
    SCOPED_TRACE(sealed);
    const SegmentRef segment = Stored("sequence", sealed);
    ASSERT_OK(store_->Reserve(*segment, 0, sealed, sealed + 2, Soon()));
    const std::vector<std::byte> rows = RowsOf(layout_, {store_->id(*segment), 0, 0, sealed});
    for (uint16_t head = 0; head < 2; ++head) {
      std::copy(rows.begin(), rows.end(), store_->OpenRows(*segment, 0, head, sealed));
    }
    const std::vector<uint32_t> tails = {7, 0};
    ASSERT_OK(store_->Flush(*segment, tails, Soon()));
    EXPECT_EQ(Park("sequence").kept, 0u);
    EXPECT_EQ(used_bytes(), 0u);
    EXPECT_EQ(store_->HostStats().pinned_bytes, 0u);
    EXPECT_EQ(store_->Durable(*segment, 0).tail_rows, 7u);
    for (uint16_t layer = 0; layer < 2; ++layer) {
      ASSERT_OK(store_->RestoreTail(*segment, layer, Soon()));
    }
    EXPECT_EQ(0, std::memcmp(store_->OpenRows(*segment, 0, 1, sealed), rows.data(),
                             7 * size_t{layout_.row_bytes}));
    // And it goes on from there.
    ASSERT_OK(AppendBlocks(*store_, *segment, sealed, sealed + 3));
    ASSERT_OK(store_->Flush(*segment, {}, Soon()));
    Park("sequence");
    ASSERT_OK(CheckBlocks(*store_, *segment, 0, sealed + 3));
    ASSERT_OK(store_->DeleteManifest("sequence", absl::InfiniteFuture()));
  }
}

TEST_F(StoreParkTest, LeavesWhatAManifestInUseNamesToo) {
  Open();
  const SegmentRef segment = Stored("parent", 10);
  const SegmentRef own = NewSegment(6);
  ASSERT_OK(Commit("child", {{segment, 0, 6}, {own, 6, kOpenEnd}}));
  const uint64_t before = used_bytes();
  const ParkedBytes parked = Park("parent");
  EXPECT_EQ(parked.freed_rows, 4 * 4 * layout_.rows_bytes());
  // The stripe of blocks 4 to 7 is shared, that of 8 and 9 is not.
  EXPECT_EQ(parked.kept, before - parked.freed_rows - parked.freed_index);
  EXPECT_EQ(HostBlocks(*segment), 24u);
  EXPECT_EQ(Park("parent").freed_rows, 0u);
  // Replacing a manifest leaves it parked, deleting it makes room for another of its name.
  ASSERT_OK(Commit("parent", {{segment, 0, 9}}));
  EXPECT_EQ(Park("child").kept, 0u);
  EXPECT_EQ(used_bytes(), 0u);
  ASSERT_OK(CheckBlocks(*store_, *segment, 0, 9));
  store_->Unpark("parent");
  EXPECT_EQ(Park("child").freed_rows, 0u);
  EXPECT_EQ(HostBlocks(*segment), 36u);
  ASSERT_OK(store_->DeleteManifest("parent", absl::InfiniteFuture()));
  EXPECT_EQ(Park("child").kept, 0u);
  EXPECT_EQ(used_bytes(), 0u);
}

TEST_F(StoreParkTest, RecoveredManifestsAreParked) {
  Open();
  {
    const SegmentRef segment = Stored("parent", 6);
    ASSERT_OK(Commit("child", {{segment, 0, 6}, {NewSegment(6), 6, kOpenEnd}}));
  }
  Open();
  const std::vector<Manifest> manifests = store_->TakeRecovered();
  ASSERT_EQ(manifests.size(), 2u);
  Segment& segment = *manifests[0].ranges[0].segment;
  ASSERT_OK(CheckBlocks(*store_, segment, 0, 6));
  EXPECT_EQ(Park("child").kept, 0u);
  EXPECT_EQ(used_bytes(), 0u);
  store_->Unpark("parent");
  ASSERT_OK(CheckBlocks(*store_, segment, 0, 6));
  EXPECT_EQ(Park("child").freed_rows, 0u);
}

TEST_F(StoreParkTest, NeedsADiskAndAManifest) {
  Open();
  EXPECT_THAT(store_->Park("nobody"), StatusIs(absl::StatusCode::kNotFound));
  store_->Unpark("nobody");
  options_.disk_path.clear();
  Open();
  ASSERT_OK(Commit("sequence", {{NewSegment(), 0, kOpenEnd}}));
  EXPECT_THAT(store_->Park("sequence"), StatusIs(absl::StatusCode::kFailedPrecondition));
}

// Parks of a manifest whose blocks others read at the same time.
TEST_F(StoreParkTest, MayComeAtAnyTime) {
  Open();
  const SegmentRef segment = Stored("sequence", 12);
  std::atomic<bool> parked = false;
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      do {
        ASSERT_OK(CheckBlocks(*store_, *segment, 0, 12));
      } while (!parked);
    });
  }
  for (int i = 0; i < 200; ++i) Park("sequence");
  parked = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(Park("sequence").kept, 0u);
  EXPECT_EQ(used_bytes(), 0u);
}

}  // namespace
}  // namespace terrace::kvstore
