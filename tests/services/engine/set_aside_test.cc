// Manifests that are not a sequence of this engine: the start sets them aside, one by one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "services/engine/error.h"
#include "services/engine/sequence_record.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using engine::SequenceRecord;
using kvstore::BlockStore;

constexpr uint64_t kSeed = 1;

class SetAsideTest : public ::testing::Test {
 protected:
  SetAsideTest() {
    auto engine = OpenEngine(options_);
    whole_ = *engine->Create({}, Spec(SmallGeometry()));
    EXPECT_OK(AppendSeed(*engine, whole_, kSeed, 0, 100));
    EXPECT_OK(engine->Flush({}, whole_.handle));
  }

  static SequenceRecord GoodRecord() {
    SequenceRecord record;
    record.tenant = "default";
    record.spec = Spec(SmallGeometry());
    record.writer_epoch = 1;
    return record;
  }

  // A manifest over a segment of its own, with the blocks of a small sequence.
  void Plant(const std::string& name, const std::string& attributes) {
    auto store = BlockStore::Open(options_.store);
    ASSERT_OK(store);
    const auto layout = engine::SequenceLayout::Make(Spec(SmallGeometry()), 64, 1024);
    const auto segment = (*store)->CreateSegment(layout.block, 0);
    ASSERT_OK(segment);
    ASSERT_OK((*store)->CommitManifest(
        {.name = name, .attributes = attributes, .ranges = {{*segment, 0, kvstore::kOpenEnd}}},
        absl::InfiniteFuture()));
  }

  TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  SequenceInfo whole_;
};

TEST_F(SetAsideTest, OthersComeBackAndADeleteRemovesIt) {
  const std::string good = EncodeRecord(GoodRecord());
  SequenceRecord other_layers = GoodRecord();
  other_layers.spec.geometry.layers = 40;
  SequenceRecord other_heads = GoodRecord();
  other_heads.spec.geometry.kv_heads = 1;
  SequenceRecord other_dim = GoodRecord();
  other_dim.spec.geometry.head_dim = 64;
  SequenceRecord other_index = GoodRecord();
  other_index.spec.index_format = attention::IndexFormat::kInt8;
  SequenceRecord no_index = GoodRecord();
  no_index.spec.index_format = static_cast<attention::IndexFormat>(77);
  const std::vector<std::pair<const char*, std::string>> cases = {
      {"empty", ""},
      {"garbage", "\xff\x01 not a record"},
      {"half", good.substr(0, good.size() / 2)},
      {"another's JSON", "{\"version\": 1}"},
      {"another version", "{\"version\": 2" + good.substr(good.find(','))},
      {"more layers", EncodeRecord(other_layers)},
      {"fewer heads", EncodeRecord(other_heads)},
      {"longer rows", EncodeRecord(other_dim)},
      {"another index", EncodeRecord(other_index)},
      {"no index", EncodeRecord(no_index)},
  };
  for (const auto& [name, attributes] : cases) {
    SCOPED_TRACE(name);
    Plant("planted", attributes);
    auto engine = OpenEngine(options_);
    EXPECT_EQ(engine->sequence_count(), 1u);
    EXPECT_EQ(engine->damaged().size(), 1u);
    EXPECT_THAT(engine->Get({}, "planted"),
                StatusIs(absl::StatusCode::kDataLoss, ::testing::HasSubstr("sequence planted")));
    EXPECT_OK(RunOne(*engine, 0, ReadStep(whole_, kSeed, 0, 99, 1, Sparq(5, 10)), {.strict = true})
                  .status);
    // It stays aside until it is deleted.
    engine.reset();
    engine = OpenEngine(options_);
    EXPECT_THAT(engine->Get({}, "planted"), StatusIs(absl::StatusCode::kDataLoss));
    ASSERT_OK(engine->Delete({}, "planted"));
    EXPECT_THAT(engine->Get({}, "planted"), StatusIs(absl::StatusCode::kNotFound));
    engine.reset();
    engine = OpenEngine(options_);
    EXPECT_TRUE(engine->damaged().empty());
    EXPECT_EQ(engine->Get({}, whole_.handle)->length, 100);
  }
}

TEST_F(SetAsideTest, ARecordThatFitsIsTaken) {
  Plant("planted", EncodeRecord(GoodRecord()));
  const auto engine = OpenEngine(options_);
  EXPECT_TRUE(engine->damaged().empty());
  EXPECT_EQ(engine->Get({}, "planted")->length, 0);
}

TEST_F(SetAsideTest, AnotherTenantNeitherSeesNorDeletesIt) {
  SequenceRecord record = GoodRecord();
  record.tenant = "owner";
  record.spec.geometry.layers = 40;
  Plant("planted", EncodeRecord(record));
  const auto engine = OpenEngine(options_);
  const engine::Caller other = {.tenant = "other"};
  const engine::Caller owner = {.tenant = "owner"};
  EXPECT_EQ(engine->Get(other, "planted").status(), engine::SequenceNotFound("planted"));
  EXPECT_EQ(engine->Delete(other, "planted"), engine::SequenceNotFound("planted"));
  EXPECT_THAT(engine->Get(owner, "planted"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(engine->Delete(owner, "planted"));
}

// A fork of rows that a crash took is cut at a start, in a segment of its own: that takes room for
// the rows of the block that is cut.
TEST_F(SetAsideTest, WhatAStartHadNoRoomForIsNotLost) {
  constexpr int kCount = 6;
  constexpr int64_t kDurable = 64 + 10;
  engine::Geometry wide = SmallGeometry();
  wide.kv_heads = 4;
  wide.head_dim = 64;
  std::vector<std::string> parents;
  std::vector<std::string> children;
  options_.index_tokens = 256;
  {
    const auto engine = OpenEngine(options_);
    for (int i = 0; i < kCount; ++i) {
      const SequenceInfo parent = *engine->Create({}, Spec(wide));
      for (int64_t end : {kDurable, int64_t{192}}) {
        for (int layer = 0; layer < wide.layers; ++layer) {
          ASSERT_OK(AppendRowsOf(*engine, parent, layer, 0, MakeRows(wide, kSeed, layer, 0, end)));
        }
        if (end == kDurable) ASSERT_OK(engine->Flush({}, parent.handle));
      }
      parents.push_back(parent.handle);
      children.push_back(engine->Fork({}, parent.handle, 128, "")->handle);
    }
  }
  const auto lengths = [](engine::EmbeddedEngine& engine, const std::string& handle) {
    const absl::StatusOr<SequenceInfo> info = engine.Get({}, handle);
    EXPECT_OK(info);
    return info.ok() ? info->layer_lengths : std::vector<int64_t>{};
  };
  // What is aside is cut to whole blocks later: its parent may have gone on.
  const std::vector<int64_t> whole(wide.layers, kDurable);
  const std::vector<int64_t> blocks(wide.layers, 64);
  options_.store.host_bytes = uint64_t{2} << 20;
  std::string late;
  {
    const auto engine = OpenEngine(options_);
    const size_t aside = engine->damaged().size();
    ASSERT_GT(aside, 0u);
    ASSERT_LT(aside, size_t{kCount});
    const auto listed = engine->ListSequences("", "", 20);
    ASSERT_OK(listed);
    for (const engine::SequenceSummary& summary : *listed) {
      if (!summary.problem.empty()) late = summary.handle;
    }
    ASSERT_FALSE(late.empty());
    EXPECT_EQ(lengths(*engine, late), blocks);
  }
  options_.store.host_bytes = uint64_t{16} << 20;
  const auto engine = OpenEngine(options_);
  EXPECT_TRUE(engine->damaged().empty());
  for (const std::string& parent : parents) EXPECT_EQ(lengths(*engine, parent), whole);
  for (const std::string& child : children) {
    EXPECT_EQ(lengths(*engine, child), child == late ? blocks : whole);
  }
}

}  // namespace
}  // namespace terrace::testing
