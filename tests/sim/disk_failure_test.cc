// What a store makes of a disk that fails for a while: nothing of what was refused, and everything
// again afterwards.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kvstore/disk_tier.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/sim/faulty_disk.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using terrace::testing::FaultyDisk;
using terrace::testing::StatusIs;

constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;

class DiskFailureTest : public ::testing::Test {
 protected:
  void OpenTier() {
    tier_.reset();
    DiskTierOptions options;
    options.path = folder_.path() + "/db";
    options.bytes = uint64_t{64} << 20;
    options.env = disk_.env();
    auto tier = DiskTier::Open(options);
    ASSERT_OK(tier);
    tier_ = *std::move(tier);
  }
  absl::Status Put(const std::string& name, bool sync) {
    DiskBatch batch;
    batch.PutManifest(name, {.attributes = "", .ranges = {}});
    return tier_->Write(batch, sync, DiskTier::Growth::kBounded);
  }
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    const absl::StatusOr<DiskIndex> index = tier_->LoadIndex();
    EXPECT_OK(index);
    for (const auto& [name, record] : index->manifests) {
      if (name != "probe") names.push_back(name);
    }
    return names;
  }

  FaultyDisk disk_{1};
  const TempFolder folder_;
  std::unique_ptr<DiskTier> tier_;
};

// Its record is whole in the log.
TEST_F(DiskFailureTest, ABatchWhoseSyncFailedIsNotThereLater) {
  OpenTier();
  ASSERT_OK(Put("before", false));
  disk_.SetSyncsFail(true);
  EXPECT_THAT(Put("refused", true), StatusIs(kUnavailable));
  EXPECT_TRUE(tier_->in_doubt());
  EXPECT_THAT(Put("refused too", false), StatusIs(kUnavailable));
  disk_.Heal();
  // The first that notices may still be refused.
  Put("probe", true).IgnoreError();
  ASSERT_OK(Put("after", true));
  EXPECT_FALSE(tier_->in_doubt());
  const std::vector<std::string> expected = {"after", "before"};
  EXPECT_EQ(Names(), expected);
  OpenTier();
  EXPECT_EQ(Names(), expected);
}

TEST_F(DiskFailureTest, ABatchThatWasTornIsNotThereLater) {
  OpenTier();
  ASSERT_OK(Put("before", false));
  disk_.SetFull(true);
  EXPECT_THAT(Put("refused", false), StatusIs(kUnavailable));
  disk_.Heal();
  Put("probe", false).IgnoreError();
  ASSERT_OK(Put("after", false));
  OpenTier();
  EXPECT_EQ(Names(), (std::vector<std::string>{"after", "before"}));
}

TEST_F(DiskFailureTest, ASyncAfterAFailedWriteIsRefused) {
  OpenTier();
  disk_.SetWritesFail(true);
  EXPECT_THAT(Put("refused", false), StatusIs(kUnavailable));
  EXPECT_THAT(tier_->Sync(), StatusIs(kUnavailable));
  disk_.Heal();
  tier_->Sync().IgnoreError();
  EXPECT_OK(tier_->Sync());
}

TEST_F(DiskFailureTest, FlushedRowsHaveADeadlineToo) {
  StoreOptions options;
  options.host_bytes = uint64_t{1} << 20;
  options.disk_path = folder_.path() + "/store";
  options.disk_bytes = uint64_t{64} << 20;
  const BlockLayout layout = SmallLayout();
  const std::vector<uint32_t> tail_rows(layout.layers, 5);
  {
    auto store = OpenBlockStore(options, nullptr, disk_.env());
    ASSERT_OK(store);
    const SegmentRef segment = *(*store)->CreateSegment(layout, 0);
    ASSERT_OK((*store)->CommitManifest({"sequence", "", {{segment, 0, kOpenEnd}}}, Soon()));
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      ASSERT_OK((*store)->Reserve(*segment, layer, 0, 1, Soon()));
    }
    ASSERT_OK((*store)->Flush(*segment, tail_rows, Soon()));
  }
  auto store = OpenBlockStore(options, nullptr, disk_.env());
  ASSERT_OK(store);
  const SegmentRef segment = (*store)->TakeRecovered().at(0).ranges.at(0).segment;
  disk_.SetReadsStall(true);
  EXPECT_THAT((*store)->RestoreTail(*segment, 0, absl::Now() + absl::Milliseconds(5)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  disk_.SetReadsStall(false);
  EXPECT_OK((*store)->RestoreTail(*segment, 0, Soon()));
}

}  // namespace
}  // namespace terrace::kvstore
