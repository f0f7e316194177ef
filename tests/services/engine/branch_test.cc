// Truncate and fork: what is left is as if nothing else had ever been there.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

// Over both index formats, with rows in memory or mostly on disk.
struct Setting {
  const char* name;
  attention::IndexFormat format;
  bool on_disk;
};

class BranchTest : public ::testing::TestWithParam<Setting> {
 protected:
  BranchTest() {
    engine::EmbeddedOptions options = GetParam().on_disk ? DiskOptions(folder_) : MemoryOptions();
    if (GetParam().on_disk) {
      options.store.host_bytes = uint64_t{1} << 20;
      options.store.durability = kvstore::Durability::kAsync;
    }
    engine_ = OpenEngine(options);
  }

  SequenceInfo Create() { return *engine_->Create({}, Spec(SmallGeometry(), GetParam().format)); }

  // A sequence with rows of kSeed below `cut` and of kOtherSeed from there to `end`.
  SequenceInfo Fresh(int64_t cut, int64_t end) {
    const SequenceInfo info = Create();
    EXPECT_OK(AppendSeed(*engine_, info, kSeed, 0, cut));
    EXPECT_OK(AppendSeed(*engine_, info, kOtherSeed, cut, end));
    return info;
  }

  TempFolder folder_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_P(BranchTest, AfterATruncateNothingOfTheCutRowsIsLeft) {
  for (const int64_t length : {40, 64, 200, 1500}) {
    for (const int64_t cut : {length, length - 1, length - 30, length / 64 * 64, int64_t{64},
                              int64_t{63}, int64_t{10}, int64_t{0}}) {
      if (cut > length || cut < 0) continue;
      SCOPED_TRACE(::testing::Message() << length << " cut to " << cut);
      const SequenceInfo info = Create();
      ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, length));
      // Sums and heads of every kind are known before the cut.
      ASSERT_OK(RunOne(*engine_, 0,
                       ReadStep(info, kSeed, 0, length - 1, 1,
                                Sparq(4, 8, 1, 0, attention::ValueMean::kMean)))
                    .status);
      const absl::StatusOr<SequenceInfo> shorter =
          engine_->Truncate({}, info.handle, info.writer_epoch, cut);
      ASSERT_OK(shorter);
      EXPECT_EQ(shorter->length, cut);
      EXPECT_LE(shorter->durable_length, cut);
      EXPECT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, cut));
      EXPECT_THAT(engine_->Truncate({}, info.handle, info.writer_epoch, cut + 1),
                  StatusIs(absl::StatusCode::kOutOfRange));
      for (const int64_t end : {cut + 1, cut + 150}) {
        ASSERT_OK(AppendSeed(*engine_, info, kOtherSeed, cut, end));
        const SequenceInfo fresh = Fresh(cut, end);
        ExpectSameBits(*engine_, fresh, *engine_, info);
        ASSERT_OK(engine_->Delete({}, fresh.handle));
      }
      ASSERT_OK(engine_->Delete({}, info.handle));
    }
  }
}

TEST_P(BranchTest, ATruncateCutsLayersThatAreAhead) {
  const SequenceInfo info = Create();
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 60));
  ASSERT_OK(AppendRowsOf(*engine_, info, 0, 60, MakeRows(SmallGeometry(), kSeed, 0, 60, 90)));
  EXPECT_EQ(engine_->Get({}, info.handle)->length, 60);
  EXPECT_EQ(engine_->Get({}, info.handle)->layer_lengths, (std::vector<int64_t>{150, 60}));
  ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, 60));
  EXPECT_EQ(engine_->Get({}, info.handle)->layer_lengths, (std::vector<int64_t>{60, 60}));
  ASSERT_OK(AppendSeed(*engine_, info, kOtherSeed, 60, 130));
  ExpectSameBits(*engine_, Fresh(60, 130), *engine_, info);
}

// More rows in the cut block than a branch pins at a time.
TEST(WideBranchTest, AForkCopiesTheCutBlockOfManyWideLayers) {
  const engine::Geometry geometry = {.layers = 40,
                                     .query_heads = 8,
                                     .kv_heads = 8,
                                     .head_dim = 128,
                                     .storage = attention::Dtype::kFloat32};
  engine::EmbeddedOptions options = MemoryOptions();
  options.store.host_bytes = uint64_t{128} << 20;
  options.index_tokens = 64;
  const auto engine = OpenEngine(options);
  const SequenceInfo parent = *engine->Create({}, Spec(geometry));
  ASSERT_OK(AppendSeed(*engine, parent, kSeed, 0, 9));
  const absl::StatusOr<SequenceInfo> child = engine->Fork({}, parent.handle, 7, "");
  ASSERT_OK(child);
  ASSERT_OK(AppendSeed(*engine, *child, kSeed, 7, 9));
  ExpectSameBits(*engine, parent, *engine, *child);
}

// I2: what a fork shares does not change.
TEST_P(BranchTest, ForksAtEveryKindOfPositionGoTheirOwnWay) {
  const int64_t length = 200;
  for (const int64_t position : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{100},
                                 int64_t{192}, int64_t{195}, length}) {
    SCOPED_TRACE(::testing::Message() << "fork at " << position);
    const SequenceInfo parent = Create();
    ASSERT_OK(AppendSeed(*engine_, parent, kSeed, 0, length));
    const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, parent.handle, position, "model");
    ASSERT_OK(child);
    EXPECT_NE(child->handle, parent.handle);
    EXPECT_EQ(child->length, position);
    ASSERT_OK(AppendSeed(*engine_, parent, kSeed, length, length + 100));
    ASSERT_OK(AppendSeed(*engine_, *child, kOtherSeed, position, position + 150));
    const SequenceInfo same_as_parent = Fresh(length + 100, length + 100);
    const SequenceInfo same_as_child = Fresh(position, position + 150);
    ExpectSameBits(*engine_, same_as_parent, *engine_, parent);
    ExpectSameBits(*engine_, same_as_child, *engine_, *child);
    // The child keeps what it shares when the parent goes.
    ASSERT_OK(engine_->Delete({}, parent.handle));
    ExpectSameBits(*engine_, same_as_child, *engine_, *child);
    for (const std::string& handle : {child->handle, same_as_parent.handle, same_as_child.handle}) {
      ASSERT_OK(engine_->Delete({}, handle));
    }
  }
}

TEST_P(BranchTest, AForkOfAForkOutlivesCutsOfItsAncestors) {
  const SequenceInfo first = Create();
  ASSERT_OK(AppendSeed(*engine_, first, kSeed, 0, 300));
  const SequenceInfo second = *engine_->Fork({}, first.handle, 250, "");
  ASSERT_OK(AppendSeed(*engine_, second, kSeed, 250, 400));
  const SequenceInfo third = *engine_->Fork({}, second.handle, 390, "");
  ASSERT_OK(engine_->Truncate({}, first.handle, first.writer_epoch, 70));
  ASSERT_OK(engine_->Truncate({}, second.handle, second.writer_epoch, 260));
  ASSERT_OK(AppendSeed(*engine_, first, kOtherSeed, 70, 320));
  ASSERT_OK(AppendSeed(*engine_, second, kOtherSeed, 260, 410));
  ASSERT_OK(AppendSeed(*engine_, third, kOtherSeed, 390, 500));
  ExpectSameBits(*engine_, Fresh(70, 320), *engine_, first);
  ExpectSameBits(*engine_, Fresh(260, 410), *engine_, second);
  ExpectSameBits(*engine_, Fresh(390, 500), *engine_, third);
}

TEST_P(BranchTest, AForkKeepsIdempotence) {
  const SequenceInfo parent = Create();
  ASSERT_OK(AppendSeed(*engine_, parent, kSeed, 0, 200));
  const SequenceInfo child = *engine_->Fork({}, parent.handle, 150, "");
  EXPECT_OK(AppendSeed(*engine_, child, kSeed, 0, 150));
  for (const int64_t position : {0, 127, 128, 149}) {
    EXPECT_THAT(AppendRowsOf(*engine_, child, 0, position,
                             MakeRows(SmallGeometry(), kOtherSeed, 0, position, 1)),
                StatusIs(absl::StatusCode::kAlreadyExists));
  }
}

TEST_P(BranchTest, ForksBeyondTheLengthAndOfOtherModelsAreRefused) {
  const SequenceInfo parent = Create();
  ASSERT_OK(AppendSeed(*engine_, parent, kSeed, 0, 10));
  EXPECT_THAT(engine_->Fork({}, parent.handle, 11, ""), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(engine_->Fork({}, parent.handle, INT64_MAX, ""),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(engine_->Fork({}, parent.handle, 5, "other"),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(engine_->Truncate({}, parent.handle, parent.writer_epoch, -1),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_EQ(engine_->sequence_count(), 1u);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, BranchTest,
    ::testing::Values(Setting{"exact_in_memory", attention::IndexFormat::kExact, false},
                      Setting{"int8_in_memory", attention::IndexFormat::kInt8, false},
                      Setting{"int8_on_disk", attention::IndexFormat::kInt8, true}),
    [](const ::testing::TestParamInfo<Setting>& each) { return std::string(each.param.name); });

// I11.
TEST(TenantTest, AnothersSequenceIsAsUnknownAsNone) {
  const auto engine = OpenEngine(MemoryOptions());
  engine::Caller mine;
  mine.tenant = "mine";
  const SequenceInfo info = *engine->Create(mine, Spec(SmallGeometry()));
  const std::string unknown = "s0000-0123456789abcdef0123456789abcdef";
  const auto text = [&](const absl::Status& status, const std::string& handle) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound));
    std::string message(status.message());
    const size_t at = message.find(handle);
    return at == std::string::npos ? message : message.replace(at, handle.size(), "HANDLE");
  };
  const auto all = [&](const std::string& handle) {
    Step step = AppendStep(info, kSeed, 0, 0, 1, attention::DensePolicy());
    step.handle = handle;
    const std::vector<uint32_t> none;
    return std::vector<std::string>{
        text(engine->Get({}, handle).status(), handle),
        text(engine->Fork({}, handle, 0, "").status(), handle),
        text(engine->Resume({}, handle, "").status(), handle),
        text(engine->Truncate({}, handle, 1, 0).status(), handle),
        text(engine->Flush({}, handle).status(), handle),
        text(engine->Delete({}, handle), handle),
        text(RunOne(*engine, 0, step).status, handle),
        text(engine->ReadRows({}, handle, 0, 0, none).status(), handle)};
  };
  EXPECT_EQ(all(info.handle), all(unknown));
  EXPECT_OK(engine->Get(mine, info.handle));
  ASSERT_OK(engine->Delete(mine, info.handle));
  EXPECT_THAT(engine->Delete(mine, info.handle), StatusIs(absl::StatusCode::kNotFound));
}

TEST(LimitTest, SequencesAreBoundedAndADeleteMakesRoom) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.limits.max_sequences = 2;
  const auto engine = OpenEngine(options);
  const SequenceInfo first = *engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(engine->Fork({}, first.handle, 0, ""));
  EXPECT_THAT(engine->Create({}, Spec(SmallGeometry())),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(engine->Fork({}, first.handle, 0, ""),
              StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_OK(engine->Delete({}, first.handle));
  EXPECT_OK(engine->Create({}, Spec(SmallGeometry())));
}

// A stripe holds the pieces of many blocks; none of them is there yet.
TEST(BranchMemoryTest, AForkWithinABlockTakesMemoryForItsRowsOnly) {
  const auto memory = OpenEngine(MemoryOptions());
  const SequenceInfo parent = *memory->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*memory, parent, kSeed, 0, 100));
  const kvstore::TierStats before = (*memory->ListTiers())[0].stats;
  const absl::StatusOr<SequenceInfo> child = memory->Fork({}, parent.handle, 90, "");
  ASSERT_OK(child);
  const kvstore::TierStats after = (*memory->ListTiers())[0].stats;
  EXPECT_EQ(after.index_bytes, before.index_bytes);
  const engine::Geometry& geometry = child->spec.geometry;
  const uint64_t rows = static_cast<uint64_t>(child->block_tokens) * geometry.row_bytes();
  EXPECT_EQ(after.used_bytes - before.used_bytes, rows * geometry.layers * geometry.kv_heads);
  // The first block that it fills brings the stripe.
  ASSERT_OK(AppendSeed(*memory, *child, kSeed, 90, 128));
  EXPECT_GT((*memory->ListTiers())[0].stats.index_bytes, before.index_bytes);
}

}  // namespace
}  // namespace terrace::testing
