// Which values give way for room, and which do not.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/value_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Caller;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kBlock = 256 << 10;

class ValueRoomTest : public ::testing::Test {
 protected:
  ValueRoomTest() {
    options_.sweep_interval = absl::ZeroDuration();
    // Time goes on with every look, so that uses have an order.
    options_.clock = [this] { return now_ += absl::Microseconds(1); };
  }

  void Open() { engine_ = OpenEngine(options_); }
  absl::Status Put(int i, uint64_t size = kBlock, const Caller& caller = {}) {
    return PutValue(*engine_, Key(i), ValueBytes(i, size), {}, caller);
  }
  static std::string Key(int i) { return "key" + std::to_string(i); }
  bool Has(int i, const Caller& caller = {}) { return HasValue(*engine_, Key(i), caller); }

  TempFolder folder_;
  engine::EmbeddedOptions options_ = MemoryOptions();
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_F(ValueRoomTest, OverItsQuotaATenantLosesWhatItUsedLongestAgo) {
  options_.retained_bytes_max = 8 * kBlock;
  Open();
  for (int i = 0; i < 8; ++i) ASSERT_OK(Put(i));
  ASSERT_OK(Put(100, 6 * kBlock, {.tenant = "other"}));
  ASSERT_TRUE(Has(0));
  ASSERT_OK(Put(8));
  EXPECT_TRUE(Has(0)) << "just used";
  EXPECT_FALSE(Has(1));
  EXPECT_TRUE(Has(8));
  EXPECT_TRUE(Has(100, {.tenant = "other"}));
  // One that takes all of it.
  ASSERT_OK(Put(9, 8 * kBlock));
  EXPECT_EQ(engine_->values().size(), 2u);
  EXPECT_THAT(Put(10, 8 * kBlock + 1), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(Has(9));
}

TEST_F(ValueRoomTest, PutsOnTheirWayCountToo) {
  options_.retained_bytes_max = 4 * kBlock;
  Open();
  const auto first = engine_->values().Put({}, {.key = "a", .size = 2 * kBlock});
  const auto second = engine_->values().Put({}, {.key = "b", .size = 2 * kBlock});
  ASSERT_OK(first);
  ASSERT_OK(second);
  EXPECT_THAT(Put(1), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(Put(1, kBlock, {.tenant = "other"}));
}

TEST_F(ValueRoomTest, ALeaseKeepsValuesUntilItIsOver) {
  options_.retained_bytes_max = 4 * kBlock;
  Open();
  for (int i = 0; i < 4; ++i) ASSERT_OK(Put(i));
  ASSERT_OK(engine_->values().Lookup({}, {Key(0), Key(1)}, absl::Minutes(1)));
  for (int i = 4; i < 12; ++i) ASSERT_OK(Put(i));
  EXPECT_TRUE(Has(0));
  EXPECT_TRUE(Has(1));
  EXPECT_FALSE(Has(9));
  ASSERT_OK(engine_->values().Lookup({}, {Key(10), Key(11)}, absl::Minutes(2)));
  EXPECT_THAT(Put(12), StatusIs(absl::StatusCode::kResourceExhausted)) << "all are leased";
  now_ += absl::Minutes(1);
  EXPECT_OK(Put(12));
  EXPECT_OK(Put(13));
  EXPECT_FALSE(Has(0));
  EXPECT_FALSE(Has(1));
  EXPECT_TRUE(Has(10));
}

TEST_F(ValueRoomTest, WhatIsReadDoesNotGoMeanwhile) {
  options_.retained_bytes_max = 4 * kBlock;
  Open();
  ASSERT_OK(Put(0, 2 * kBlock));
  auto reader = engine_->values().Get({}, Key(0));
  ASSERT_OK(reader);
  const auto part = reader->Next(1, absl::InfiniteFuture());
  ASSERT_OK(part);
  for (int i = 1; i < 10; ++i) ASSERT_OK(Put(i));
  const absl::StatusOr<std::string> rest = ReadAll(*reader);
  ASSERT_OK(rest);
  EXPECT_EQ(*rest, ValueBytes(0, 2 * kBlock).substr(kBlock));
}

TEST_F(ValueRoomTest, InFullMemoryPutsTakeThePlaceOfOthers) {
  Open();
  for (int i = 0; i < 300; ++i) {
    ASSERT_OK(Put(i)) << i;
    ASSERT_EQ(*GetValue(*engine_, Key(i)), ValueBytes(i, kBlock)) << i;
  }
  EXPECT_FALSE(Has(0));
  EXPECT_GE(engine_->values().size(), 40u) << "most of the memory is of use";
  // Others of other sizes, too.
  for (int i = 300; i < 400; ++i) {
    const uint64_t size = 3000 + uint64_t{37'000} * (i % 17);
    ASSERT_OK(Put(i, size)) << i;
    ASSERT_EQ(*GetValue(*engine_, Key(i)), ValueBytes(i, size)) << i;
  }
}

// I11.
TEST_F(ValueRoomTest, ATenantThatFillsTheMemoryLosesItsOwn) {
  Open();
  const Caller small = {.tenant = "small"};
  for (int i = 0; i < 8; ++i) ASSERT_OK(Put(i, kBlock, small));
  for (int i = 0; i < 200; ++i) ASSERT_OK(Put(i));
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(Has(i, small)) << i;
}

TEST_F(ValueRoomTest, PutsBeyondTheDiskTakeThePlaceOfOthers) {
  options_ = DiskOptions(folder_);
  options_.store.durability = kvstore::Durability::kAsync;
  options_.sweep_interval = absl::ZeroDuration();
  options_.clock = [this] { return now_ += absl::Microseconds(1); };
  Open();
  // Three times the disk, which holds four times the memory.
  for (int i = 0; i < 192; ++i) {
    ASSERT_OK(Put(i, kMiB)) << i;
  }
  int left = 0;
  for (int i = 0; i < 192; ++i) {
    const absl::StatusOr<std::string> got = GetValue(*engine_, Key(i));
    if (!got.ok()) continue;
    ++left;
    ASSERT_TRUE(*got == ValueBytes(i, kMiB)) << i;
  }
  EXPECT_TRUE(Has(191));
  EXPECT_FALSE(Has(0));
  EXPECT_GE(left, 30);
}

TEST_F(ValueRoomTest, TooManyValuesPushOutTheOldest) {
  options_.limits.max_values = 64;
  Open();
  for (int i = 0; i < 200; ++i) ASSERT_OK(Put(i, 10)) << i;
  EXPECT_LE(engine_->values().size(), 64u);
  EXPECT_TRUE(Has(199));
  EXPECT_FALSE(Has(100));
}

TEST_F(ValueRoomTest, SequencesAndValuesOfATenantShareItsQuota) {
  options_.retained_bytes_max = 8 * kBlock;
  Open();
  engine::SequenceSpec spec = Spec(SmallGeometry());
  spec.retention = absl::Hours(1);
  const engine::SequenceInfo info = *engine_->Create({}, spec);
  const KvRows rows = MakeRows(SmallGeometry(), 1, 0, 0, 64);
  std::vector<uint32_t> ids(64, 7);
  for (int layer = 0; layer < 2; ++layer) {
    const HostTensor k = MakeTensor(rows.k, 64, 2, 16);
    const HostTensor v = MakeTensor(rows.v, 64, 2, 16);
    ASSERT_OK(engine_->Append({}, {.handle = info.handle,
                                   .writer_epoch = info.writer_epoch,
                                   .layer = layer,
                                   .position = 0,
                                   .k = k.view(),
                                   .v = v.view(),
                                   .token_position = 0,
                                   .token_ids = ids}));
  }
  ASSERT_OK(engine_->Delete({}, info.handle));
  const engine::PrefixQuery query = {.spec = spec, .token_ids = ids};
  for (int i = 0; i < 7; ++i) ASSERT_OK(Put(i));
  ASSERT_EQ(engine_->LookupPrefix({}, query, {})->tokens, 64);
  ASSERT_OK(Put(7));
  engine_->Sweep();
  EXPECT_FALSE(Has(0)) << "older than the prefix, which was looked up";
  for (int i = 8; i < 16; ++i) ASSERT_OK(Put(i));
  engine_->Sweep();
  EXPECT_EQ(engine_->LookupPrefix({}, query, {})->tokens, 0);
}

}  // namespace
}  // namespace terrace::testing
