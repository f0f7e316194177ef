// Values over restarts, and on a disk that rots.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/services/engine/disk_damage.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/value_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 256 << 10;

class ValueRestartTest : public ::testing::Test {
 protected:
  ValueRestartTest() {
    options_.store.durability = kvstore::Durability::kAsync;
    options_.sweep_interval = absl::ZeroDuration();
    options_.clock = [this] { return now_; };
    Open();
  }

  // As after a kill: what is not on disk is lost.
  void Open() {
    engine_.reset();
    engine_ = OpenEngine(options_);
  }
  void AwaitDisk() { ASSERT_OK(engine_->values().AwaitRecorded(absl::Now() + absl::Seconds(60))); }
  kvstore::TierStats Disk() { return (*engine_->ListTiers())[1].stats; }

  TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_F(ValueRestartTest, ValuesAreThereAfterwards) {
  const std::vector<uint64_t> sizes = {1, kBlock - 1, kBlock, kBlock + 1, 3'000'000};
  const engine::Caller other = {.tenant = std::string("t\0\xff", 3)};
  for (const uint64_t size : sizes) {
    ASSERT_OK(PutValue(*engine_, std::to_string(size), ValueBytes(1, size)));
    ASSERT_OK(PutValue(*engine_, std::to_string(size), ValueBytes(2, size), {}, other));
  }
  const engine::SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  AwaitDisk();
  Open();
  EXPECT_EQ(engine_->values().size(), 2 * sizes.size());
  EXPECT_EQ(engine_->sequence_count(), 1u) << "values are told from sequences";
  EXPECT_OK(engine_->Get({}, info.handle));
  EXPECT_TRUE(engine_->damaged().empty());
  for (const uint64_t size : sizes) {
    EXPECT_TRUE(*GetValue(*engine_, std::to_string(size)) == ValueBytes(1, size)) << size;
    EXPECT_TRUE(*GetValue(*engine_, std::to_string(size), other) == ValueBytes(2, size)) << size;
    // And they are compared by what they were.
    EXPECT_OK(PutValue(*engine_, std::to_string(size), ValueBytes(1, size)));
    EXPECT_THAT(PutValue(*engine_, std::to_string(size), ValueBytes(2, size)),
                StatusIs(absl::StatusCode::kAlreadyExists));
  }
}

TEST_F(ValueRestartTest, DeletedValuesStayDeleted) {
  ASSERT_OK(PutValue(*engine_, "recorded", ValueBytes(1, 600'000)));
  AwaitDisk();
  ASSERT_OK(engine_->values().Delete({}, {"recorded"}));
  ASSERT_OK(PutValue(*engine_, "fresh", ValueBytes(2, 600'000)));
  ASSERT_OK(engine_->values().Delete({}, {"fresh"}));
  ASSERT_OK(PutValue(*engine_, "recorded", "others"));
  AwaitDisk();
  Open();
  EXPECT_EQ(engine_->values().size(), 1u);
  EXPECT_EQ(*GetValue(*engine_, "recorded"), "others");
  EXPECT_EQ(Disk().resident_blocks, 1u);
}

TEST_F(ValueRestartTest, AKillLeavesValuesWholeOrNotAtAll) {
  for (int round = 0; round < 5; ++round) {
    SCOPED_TRACE(round);
    for (int i = 0; i < 8; ++i) {
      const int id = round * 8 + i;
      ASSERT_OK(PutValue(*engine_, std::to_string(id), ValueBytes(id, 700'000)));
    }
    // And one that has not ended.
    auto writer = engine_->values().Put({}, {.key = "partial", .size = 2 * kBlock});
    ASSERT_OK((*writer)->Write(AsBytes(ValueBytes(1, kBlock))));
    writer->reset();
    Open();
    EXPECT_TRUE(engine_->damaged().empty());
    EXPECT_FALSE(HasValue(*engine_, "partial"));
    for (int id = 0; id < 8 * (round + 1); ++id) {
      const absl::StatusOr<std::string> got = GetValue(*engine_, std::to_string(id));
      if (got.ok()) {
        EXPECT_TRUE(*got == ValueBytes(id, 700'000)) << id;
      } else {
        EXPECT_THAT(got, StatusIs(absl::StatusCode::kNotFound)) << id;
      }
    }
    EXPECT_EQ(Disk().resident_blocks, 3 * engine_->values().size());
  }
}

TEST_F(ValueRestartTest, TimesToLiveGoOn) {
  ASSERT_OK(PutValue(*engine_, "short", "1", absl::Seconds(10)));
  ASSERT_OK(PutValue(*engine_, "prolonged", "2", absl::Seconds(10)));
  AwaitDisk();
  ASSERT_OK(PutValue(*engine_, "prolonged", "2", absl::Seconds(100)));
  AwaitDisk();
  Open();
  now_ += absl::Seconds(10);
  engine_->Sweep();
  EXPECT_EQ(engine_->values().size(), 1u);
  EXPECT_TRUE(HasValue(*engine_, "prolonged"));
  Open();
  EXPECT_EQ(engine_->values().size(), 1u);
}

TEST_F(ValueRestartTest, WithoutWritingBehindValuesAreOfThisRunOnly) {
  options_.store.durability = kvstore::Durability::kNone;
  Open();
  ASSERT_OK(PutValue(*engine_, "k", ValueBytes(1, 600'000)));
  EXPECT_TRUE(*GetValue(*engine_, "k") == ValueBytes(1, 600'000));
  EXPECT_OK(engine_->values().AwaitRecorded(absl::Now()));
  Open();
  EXPECT_EQ(engine_->values().size(), 0u);
}

// I1.
TEST_F(ValueRestartTest, ACorruptValueIsNeverServedAndMayBePutAgain) {
  const std::string bytes = ValueBytes(1, 3 * kBlock);
  ASSERT_OK(PutValue(*engine_, "k", bytes));
  ASSERT_OK(PutValue(*engine_, "whole", ValueBytes(2, 3 * kBlock)));
  AwaitDisk();
  // Opening once more brings what only the log held into files.
  Open();
  engine_.reset();
  const absl::Span<const std::byte> middle = AsBytes(bytes).subspan(kBlock + 1000, 64);
  ASSERT_GE(FlipOnDisk(options_.store.disk_path, {middle.begin(), middle.end()}), 1);
  Open();
  auto reader = engine_->values().Get({}, "k");
  ASSERT_OK(reader);
  const auto first = reader->Next(1, absl::InfiniteFuture());
  ASSERT_OK(first);
  EXPECT_TRUE((*first)->spans[0] == AsBytes(bytes).first(kBlock));
  EXPECT_THAT(reader->Next(1, absl::InfiniteFuture()), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(GetValue(*engine_, "k"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_TRUE(*GetValue(*engine_, "whole") == ValueBytes(2, 3 * kBlock));
  ASSERT_OK(PutValue(*engine_, "k", bytes));
  EXPECT_TRUE(*GetValue(*engine_, "k") == bytes);
}

TEST_F(ValueRestartTest, AValueThatIsReadWhileItIsDeletedEndsWithNotFound) {
  const std::string bytes = ValueBytes(1, 3 * kBlock);
  ASSERT_OK(PutValue(*engine_, "k", bytes));
  AwaitDisk();
  auto reader = engine_->values().Get({}, "k");
  ASSERT_OK(reader);
  const auto first = reader->Next(1, absl::InfiniteFuture());
  ASSERT_OK(first);
  ASSERT_OK(engine_->values().Delete({}, {"k"}));
  EXPECT_THAT(reader->Next(1, absl::InfiniteFuture()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_TRUE((*first)->spans[0] == AsBytes(bytes).first(kBlock)) << "I3";
}

TEST_F(ValueRestartTest, ValuesOutOfMemoryComeFromDisk) {
  for (int i = 0; i < 30; ++i) {
    ASSERT_OK(PutValue(*engine_, std::to_string(i), ValueBytes(i, 1'000'000)));
  }
  AwaitDisk();
  for (int i = 0; i < 30; ++i) {
    EXPECT_TRUE(*GetValue(*engine_, std::to_string(i)) == ValueBytes(i, 1'000'000)) << i;
  }
  EXPECT_GT(Disk().read_bytes, 10'000'000u);
}

}  // namespace
}  // namespace terrace::testing
