// Rows that were acknowledged as durable and that a truncate leaves standing stay durable (I6).
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;
constexpr int kBlock = 16;

struct Case {
  const char* name;
  // Flushed at the first length, appended to the second, cut to the third.
  int64_t flushed;
  int64_t length;
  int64_t cut;
};

class DurableCutTest : public ::testing::TestWithParam<Case> {
 protected:
  DurableCutTest() {
    options_ = DiskOptions(folder_);  // nothing is written but by a flush
    options_.block_tokens = kBlock;
    options_.index_tokens = 4 * kBlock;
    Open();
  }

  void Open() {
    engine_.reset();
    engine_ = OpenEngine(options_);
  }
  SequenceInfo Get(const SequenceInfo& info) { return *engine_->Get({}, info.handle); }

  // Positions [0, first) of one seed, then those of another, in all layers.
  void ExpectRows(const SequenceInfo& info, int64_t first, int64_t end) {
    PlainCache plain(SmallGeometry());
    for (int layer = 0; layer < 2; ++layer) {
      plain.Append(layer, MakeRows(SmallGeometry(), kSeed, layer, 0, first));
      plain.Append(layer, MakeRows(SmallGeometry(), kOtherSeed, layer, first, end - first));
      for (uint32_t position = 0; position < end; ++position) {
        const auto row = engine_->ReadRows({}, info.handle, layer, 1, {&position, 1});
        ASSERT_OK(row);
        ASSERT_EQ(*row, plain.StoredRow(layer, 1, position)) << layer << ", " << position;
      }
    }
  }

  TempFolder folder_;
  engine::EmbeddedOptions options_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_P(DurableCutTest, WhatStandsAndWasDurableStaysDurable) {
  const auto& [name, flushed, length, cut] = GetParam();
  const int64_t kept = std::min(flushed, cut);
  // At which point the process dies: after the cut, after new rows, after those are flushed.
  for (int died = 0; died < 3; ++died) {
    SCOPED_TRACE(died);
    const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, flushed));
    ASSERT_EQ(engine_->Flush({}, info.handle)->durable_length, flushed);
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, flushed, length));
    const auto truncated = engine_->Truncate({}, info.handle, info.writer_epoch, cut);
    ASSERT_OK(truncated);
    EXPECT_EQ(truncated->length, cut);
    EXPECT_EQ(truncated->durable_length, kept);
    int64_t durable = kept;
    const int64_t end = cut + 5;
    if (died > 0) {
      ASSERT_OK(AppendSeed(*engine_, info, kOtherSeed, cut, end));
      EXPECT_EQ(Get(info).durable_length, kept);
      ExpectRows(info, cut, end);
    }
    if (died > 1) {
      ASSERT_OK(engine_->Flush({}, info.handle));
      durable = end;
    }
    Open();
    ASSERT_EQ(Get(info).length, durable);
    EXPECT_EQ(Get(info).durable_length, durable);
    ExpectRows(info, std::min(cut, durable), durable);
    // And it goes on from there.
    ASSERT_OK(AppendSeed(*engine_, info, kOtherSeed, durable, durable + 40));
    ExpectRows(info, std::min(cut, durable), durable + 40);
    ASSERT_OK(engine_->Delete({}, info.handle));
  }
}

TEST_P(DurableCutTest, SoDoesAnotherCutAfterARestart) {
  const auto& [name, flushed, length, cut] = GetParam();
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, flushed));
  ASSERT_OK(engine_->Flush({}, info.handle));
  for (int64_t next = std::min(flushed, cut); next >= 0; next -= 3) {
    Open();
    const auto truncated = engine_->Truncate({}, info.handle, info.writer_epoch, next);
    ASSERT_OK(truncated);
    ASSERT_EQ(truncated->durable_length, next);
    if (next % 2 == 0) Open();
    ASSERT_EQ(Get(info).length, next);
    ExpectRows(info, next, next);
  }
}

// A fork keeps what its parent had flushed of a block that both share, whatever becomes of the
// parent.
TEST_P(DurableCutTest, AForkKeepsWhatItsParentFlushed) {
  const auto& [name, flushed, length, cut] = GetParam();
  const SequenceInfo parent = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, parent, kSeed, 0, flushed));
  ASSERT_OK(engine_->Flush({}, parent.handle));
  ASSERT_OK(AppendSeed(*engine_, parent, kSeed, flushed, length));
  const auto child = engine_->Fork({}, parent.handle, length / kBlock * kBlock, "");
  ASSERT_OK(child);
  const int64_t durable = child->durable_length;
  EXPECT_EQ(durable, std::min(flushed, child->length));
  ASSERT_OK(engine_->Truncate({}, parent.handle, parent.writer_epoch, cut));
  ASSERT_OK(AppendSeed(*engine_, parent, kOtherSeed, cut, cut + 5));
  ASSERT_OK(engine_->Flush({}, parent.handle));
  EXPECT_GE(Get(*child).durable_length, durable);
  Open();
  ASSERT_GE(Get(*child).length, durable);
  ExpectRows(*child, Get(*child).length, Get(*child).length);
  ExpectRows(parent, cut, cut + 5);
}

INSTANTIATE_TEST_SUITE_P(
    Cuts, DurableCutTest,
    ::testing::Values(Case{"above_the_tail", 5, 12, 8}, Case{"at_the_tail", 5, 12, 5},
                      Case{"inside_the_tail", 9, 9, 4}, Case{"inside_what_grew", 9, 12, 4},
                      Case{"at_the_block", 21, 24, 16}, Case{"in_a_later_block", 21, 28, 23},
                      Case{"tail_of_an_earlier_block", 5, 40, 35},
                      Case{"sealed_block_above_an_earlier_tail", 5, 40, 20},
                      Case{"sealed_block_with_the_tail", 9, 40, 12},
                      Case{"sealed_block_below_the_tail", 9, 40, 4},
                      Case{"durable_block", 40, 50, 20}, Case{"durable_block_edge", 40, 50, 32},
                      Case{"durable_block_first_row", 40, 50, 1}, Case{"everything", 40, 50, 0}),
    [](const ::testing::TestParamInfo<Case>& each) { return std::string(each.param.name); });

// The common cut writes nothing: rows that were never flushed are only in memory.
TEST_F(DurableCutTest, ACutAboveWhatWasFlushedWritesNothing) {
  const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 20));
  ASSERT_OK(engine_->Flush({}, info.handle));
  const uint64_t used = engine_->ListTiers()->at(1).stats.used_bytes;
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK(AppendSeed(*engine_, info, kSeed + i, 20, 30));
    ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, 20 + i % 10));
    ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, 20));
  }
  EXPECT_EQ(engine_->ListTiers()->at(1).stats.used_bytes, used);
}

// Layers that got further are cut at a restart; what all of them had stays durable.
TEST_F(DurableCutTest, ARestartThatCutsLayersKeepsWhatAllHad) {
  for (const int64_t ahead : {1, 10, 30}) {
    SCOPED_TRACE(ahead);
    const SequenceInfo info = *engine_->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 21));
    ASSERT_OK(
        AppendRowsOf(*engine_, info, 0, 21, MakeRows(SmallGeometry(), kOtherSeed, 0, 21, ahead)));
    ASSERT_OK(engine_->Flush({}, info.handle));
    for (int restart = 0; restart < 3; ++restart) {
      Open();
      EXPECT_EQ(Get(info).layer_lengths, (std::vector<int64_t>{21, 21}));
      EXPECT_EQ(Get(info).durable_length, 21);
      ExpectRows(info, 21, 21);
    }
    ASSERT_OK(engine_->Delete({}, info.handle));
  }
}

}  // namespace
}  // namespace terrace::testing
