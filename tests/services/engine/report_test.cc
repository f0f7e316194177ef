// What people are told of sequences and tiers.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceDescription;
using engine::SequenceInfo;
using engine::SequenceSummary;

constexpr uint64_t kSeed = 1;

class ReportTest : public ::testing::Test {
 protected:
  TempFolder folder_;
  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(DiskOptions(folder_));
};

TEST_F(ReportTest, PagesCoverAllSequencesOnceInOrder) {
  std::set<std::string> handles;
  for (int i = 0; i < 7; ++i) {
    engine::Caller caller;
    caller.tenant = i % 2 == 0 ? "even" : "odd";
    handles.insert(engine_->Create(caller, Spec(SmallGeometry()))->handle);
  }
  for (const int limit : {1, 2, 7, 8, 100}) {
    std::vector<std::string> seen;
    std::string after;
    while (true) {
      const absl::StatusOr<std::vector<SequenceSummary>> page =
          engine_->ListSequences("", after, limit);
      ASSERT_OK(page);
      ASSERT_LE(page->size(), static_cast<size_t>(limit));
      if (page->empty()) break;
      for (const SequenceSummary& summary : *page) seen.push_back(summary.handle);
      after = seen.back();
    }
    EXPECT_EQ(seen, std::vector<std::string>(handles.begin(), handles.end())) << limit;
  }
  EXPECT_EQ(engine_->ListSequences("even", "", 100)->size(), 4u);
  EXPECT_EQ(engine_->ListSequences("odd", "", 2)->size(), 2u);
  EXPECT_EQ(engine_->ListSequences("nobody", "", 100)->size(), 0u);
}

TEST_F(ReportTest, ADescriptionSaysWhereBlocksLive) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 192));
  const SequenceDescription fresh = *engine_->Describe(info.handle);
  ASSERT_EQ(fresh.layers.size(), 2u);
  for (const engine::LayerResidency& layer : fresh.layers) {
    EXPECT_EQ(layer.length, 192);
    EXPECT_EQ(layer.blocks, 6u);  // three full ones of two heads
    EXPECT_EQ(layer.host_blocks, 6u);
    EXPECT_EQ(layer.disk_blocks, 0u);
    EXPECT_GE(layer.host_row_bytes, 6u * 64 * 128);
  }
  EXPECT_EQ(fresh.summary.length, 192);
  EXPECT_EQ(fresh.summary.durable_length, 0);
  EXPECT_EQ(fresh.summary.model_fingerprint, "model");
  EXPECT_EQ(fresh.summary.tenant, "default");
  ASSERT_EQ(fresh.segments.size(), 1u);
  EXPECT_EQ(fresh.segments[0].first_block, 0u);
  EXPECT_EQ(fresh.segments[0].end_block, 0u);

  ASSERT_OK(engine_->Flush({}, info.handle));
  const SequenceDescription flushed = *engine_->Describe(info.handle);
  EXPECT_EQ(flushed.layers[1].disk_blocks, 6u);
  EXPECT_GE(flushed.summary.disk_bytes, 2u * 6 * 64 * 128);
  EXPECT_EQ(flushed.summary.durable_length, 192);

  const SequenceInfo child = *engine_->Fork({}, info.handle, 130, "");
  const SequenceDescription forked = *engine_->Describe(child.handle);
  ASSERT_EQ(forked.segments.size(), 2u);
  EXPECT_EQ(forked.segments[0].segment, fresh.segments[0].segment);
  EXPECT_EQ(forked.segments[0].end_block, 2u);
  EXPECT_EQ(forked.segments[1].first_block, 2u);
  EXPECT_EQ(forked.layers[0].blocks, 4u);
}

TEST_F(ReportTest, AnOpenBlockIsInNoTierButItsRowsTakeBytes) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  uint64_t row_bytes = 0;
  for (const auto& [length, blocks] :
       std::vector<std::pair<int64_t, uint64_t>>{{1, 0}, {63, 0}, {64, 2}, {65, 2}, {128, 4}}) {
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, length));
    const SequenceDescription description = *engine_->Describe(info.handle);
    for (const engine::LayerResidency& layer : description.layers) {
      EXPECT_EQ(layer.blocks, blocks) << length;
      EXPECT_EQ(layer.host_blocks, blocks) << length;
    }
    EXPECT_GE(description.layers[0].host_row_bytes, uint64_t{2} * length * 128);
    EXPECT_GE(description.layers[0].host_row_bytes, row_bytes);
    row_bytes = description.layers[0].host_row_bytes;
  }
}

TEST_F(ReportTest, AnUnknownHandleIsNotFound) {
  EXPECT_THAT(engine_->Describe("nonsense"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(engine_->Describe(""), StatusIs(absl::StatusCode::kNotFound));
}

// I8, through creates, forks, truncates, flushes and deletes.
TEST_F(ReportTest, TiersConserveBlocksAndGiveAllBack) {
  const auto expect_conserved = [&] {
    const auto tiers = *engine_->ListTiers();
    ASSERT_EQ(tiers.size(), 2u);
    EXPECT_EQ(tiers[0].tier, engine::Tier::kHost);
    EXPECT_EQ(tiers[1].tier, engine::Tier::kDisk);
    for (const engine::TierReport& tier : tiers) {
      const kvstore::TierStats& s = tier.stats;
      EXPECT_EQ(s.admitted_blocks, s.resident_blocks + s.evicted_blocks + s.deleted_blocks);
      EXPECT_EQ(s.admitted_bytes, s.resident_bytes + s.evicted_bytes + s.deleted_bytes);
      EXPECT_LE(s.used_bytes, s.capacity_bytes);
    }
  };
  const SequenceInfo a = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, a, kSeed, 0, 500));
  expect_conserved();
  const SequenceInfo b = *engine_->Fork({}, a.handle, 400, "");
  ASSERT_OK(AppendSeed(*engine_, b, kSeed + 1, 400, 600));
  ASSERT_OK(engine_->Flush({}, b.handle));
  expect_conserved();
  ASSERT_OK(engine_->Truncate({}, a.handle, a.writer_epoch, 100));
  expect_conserved();
  ASSERT_OK(engine_->Flush({}, a.handle));
  ASSERT_OK(engine_->Delete({}, a.handle));
  expect_conserved();
  ASSERT_OK(engine_->Delete({}, b.handle));
  expect_conserved();
  const std::vector<engine::TierReport> last = *engine_->ListTiers();
  for (const engine::TierReport& tier : last) {
    EXPECT_EQ(tier.stats.resident_blocks, 0u);
    EXPECT_GT(tier.stats.deleted_blocks, 0u);
  }
  EXPECT_EQ((*engine_->ListTiers())[0].stats.used_bytes, 0u);
}

TEST_F(ReportTest, RowsReadAsTheyWereAppended) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 150));
  PlainCache plain(SmallGeometry());
  plain.Append(0, MakeRows(SmallGeometry(), kSeed, 0, 0, 150));
  const std::vector<uint32_t> positions = {0, 63, 64, 100, 128, 149};
  const auto rows = engine_->ReadRows({}, info.handle, 0, 1, positions);
  ASSERT_OK(rows);
  std::vector<std::byte> expected;
  for (const uint32_t position : positions) {
    const std::vector<std::byte> row = plain.StoredRow(0, 1, position);
    expected.insert(expected.end(), row.begin(), row.end());
  }
  EXPECT_EQ(*rows, expected);
  const std::vector<uint32_t> beyond = {149, 150};
  EXPECT_THAT(engine_->ReadRows({}, info.handle, 0, 1, beyond),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(engine_->ReadRows({}, info.handle, 2, 0, positions),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(engine_->ReadRows({}, info.handle, 0, 2, positions),
              StatusIs(absl::StatusCode::kOutOfRange));
}

}  // namespace
}  // namespace terrace::testing
