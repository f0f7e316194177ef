// Joining rows that a worker holds with rows that arrived, and the bounded cache of them.
#include "services/kv_store/row_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "services/kv_store/mode_chooser.h"
#include "tests/status_matchers.h"

namespace terrace::kv_store {
namespace {

using engine::RemoteMode;
using engine::StepPart;
using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;

constexpr uint64_t kGeneration = 5;

engine::Geometry TinyGeometry() {
  return {.layers = 1,
          .query_heads = 2,
          .kv_heads = 2,
          .head_dim = 8,
          .storage = attention::Dtype::kFloat32,
          .scale = 1};
}

// A row of one slot and position: recognisable bytes.
std::vector<std::byte> Row(size_t slot, uint32_t position) {
  return std::vector<std::byte>(TinyGeometry().row_bytes(),
                                static_cast<std::byte>(slot * 100 + position));
}

// What a store would answer to one that holds `held`.
StepPart PartOf(const std::vector<std::vector<uint32_t>>& selected, const RowSet* held,
                uint64_t generation = kGeneration) {
  StepPart part;
  part.generation = generation;
  part.geometry = TinyGeometry();
  part.form = engine::PartForm::kRows;
  for (size_t slot = 0; slot < selected.size(); ++slot) {
    part.selections.push_back({.positions = selected[slot], .channels = {}});
    for (const uint32_t position : selected[slot]) {
      const bool known = held != nullptr && held->held.generation == generation &&
                         held->held.Holds(slot, position);
      if (known) continue;
      const std::vector<std::byte> row = Row(slot, position);
      part.rows.insert(part.rows.end(), row.begin(), row.end());
    }
  }
  return part;
}

void ExpectRows(const RowSet& set, const std::vector<std::vector<uint32_t>>& selected) {
  EXPECT_EQ(set.held.positions, selected);
  size_t next = 0;
  for (size_t slot = 0; slot < selected.size(); ++slot) {
    for (const uint32_t position : selected[slot]) {
      ASSERT_LT(next, set.pointers.size());
      const std::vector<std::byte> row = Row(slot, position);
      EXPECT_EQ(std::memcmp(set.pointers[next++], row.data(), row.size()), 0)
          << "slot " << slot << ", position " << position;
    }
  }
  EXPECT_EQ(next, set.pointers.size());
}

TEST(JoinRowsTest, RowsComeFromWhereTheyAre) {
  const std::vector<std::vector<std::vector<uint32_t>>> steps = {
      {{1, 5, 9}, {0, 2}},  // nothing held
      {{1, 5, 9}, {0, 2}},  // all held
      {{5, 7}, {0, 1, 2, 3}}, {{}, {3}}, {{8}, {}},
  };
  std::shared_ptr<const RowSet> held;
  for (const auto& selected : steps) {
    const StepPart part = PartOf(selected, held.get());
    const auto joined = JoinRows(held.get(), part);
    ASSERT_OK(joined);
    EXPECT_EQ((*joined)->held.generation, kGeneration);
    ExpectRows(**joined, selected);
    held = *joined;
  }
}

TEST(JoinRowsTest, RowsOfAnotherGenerationAreForgotten) {
  const auto before = *JoinRows(nullptr, PartOf({{1, 5}, {2}}, nullptr));
  const auto after = JoinRows(before.get(), PartOf({{1, 5}, {2}}, nullptr, kGeneration + 1));
  ASSERT_OK(after);
  EXPECT_EQ((*after)->held.generation, kGeneration + 1);
  ExpectRows(**after, {{1, 5}, {2}});
  // A store that leaves rows out which nobody holds any more is told from a good one.
  EXPECT_THAT(JoinRows(before.get(), PartOf({{1, 5}, {2}}, before.get(), kGeneration)), IsOk());
  StepPart mean = PartOf({{1, 5}, {2}}, before.get());
  mean.generation = kGeneration + 1;
  EXPECT_THAT(JoinRows(before.get(), mean), StatusIs(absl::StatusCode::kInternal));
}

TEST(JoinRowsTest, TooFewAndTooManyRowsAreErrors) {
  StepPart few = PartOf({{1, 5}, {2}}, nullptr);
  few.rows.resize(few.rows.size() - 1);
  EXPECT_THAT(JoinRows(nullptr, few), StatusIs(absl::StatusCode::kInternal));
  StepPart many = PartOf({{1, 5}, {2}}, nullptr);
  many.rows.resize(many.rows.size() + TinyGeometry().row_bytes());
  EXPECT_THAT(JoinRows(nullptr, many), StatusIs(absl::StatusCode::kInternal));
  StepPart none = PartOf({{}, {}}, nullptr);
  EXPECT_OK(JoinRows(nullptr, none));
}

std::shared_ptr<const RowSet> SetOf(uint32_t rows) {
  std::vector<uint32_t> positions(rows);
  for (uint32_t i = 0; i < rows; ++i) positions[i] = i;
  return *JoinRows(nullptr, PartOf({positions, {}}, nullptr));
}

TEST(RowCacheTest, TheLeastRecentlyUsedGoesFirst) {
  const auto set = SetOf(10);
  RowCache cache(3 * set->bytes());
  cache.Put("a", 0, set);
  cache.Put("a", 1, set);
  cache.Put("b", 0, set);
  EXPECT_NE(cache.Get("a", 0), nullptr);  // now the youngest
  cache.Put("c", 0, set);
  EXPECT_EQ(cache.Get("a", 1), nullptr);
  EXPECT_NE(cache.Get("a", 0), nullptr);
  EXPECT_NE(cache.Get("b", 0), nullptr);
  EXPECT_NE(cache.Get("c", 0), nullptr);
}

TEST(RowCacheTest, ItsBytesAreBounded) {
  const auto small = SetOf(1);
  const auto large = SetOf(30);
  RowCache cache(large->bytes());
  for (int layer = 0; layer < 5; ++layer) cache.Put("a", layer, small);
  cache.Put("b", 0, large);
  EXPECT_NE(cache.Get("b", 0), nullptr);
  for (int layer = 0; layer < 5; ++layer) EXPECT_EQ(cache.Get("a", layer), nullptr);
  // What can never fit leaves the rest alone, but not an older set of the same name.
  cache.Put("c", 0, SetOf(31));
  EXPECT_EQ(cache.Get("c", 0), nullptr);
  EXPECT_NE(cache.Get("b", 0), nullptr);
  cache.Put("b", 0, SetOf(31));
  EXPECT_EQ(cache.Get("b", 0), nullptr);
  RowCache none(0);
  none.Put("a", 0, small);
  EXPECT_EQ(none.Get("a", 0), nullptr);
}

TEST(RowCacheTest, APutReplacesAndAForgetDropsAllLayersOfOneSequence) {
  RowCache cache(uint64_t{1} << 20);
  cache.Put("a", 0, SetOf(1));
  const auto second = SetOf(2);
  cache.Put("a", 0, second);
  EXPECT_EQ(cache.Get("a", 0), second);
  cache.Put("a", 7, second);
  cache.Put("ab", 0, second);
  cache.Forget("a");
  cache.Forget("unknown");
  EXPECT_EQ(cache.Get("a", 0), nullptr);
  EXPECT_EQ(cache.Get("a", 7), nullptr);
  EXPECT_EQ(cache.Get("ab", 0), second);
}

TEST(ModeChooserTest, TriesBothThenKeepsTheFasterAndProbesTheOther) {
  for (const bool rows_faster : {false, true}) {
    ModeChooser chooser;
    const auto took = [&](RemoteMode mode) {
      return (mode == RemoteMode::kRows) == rows_faster ? absl::Milliseconds(1)
                                                        : absl::Milliseconds(3);
    };
    int rows = 0;
    int partial = 0;
    for (int i = 0; i < 1000; ++i) {
      const RemoteMode mode = chooser.Choose();
      ASSERT_NE(mode, RemoteMode::kAuto);
      ++(mode == RemoteMode::kRows ? rows : partial);
      chooser.Observe(mode, took(mode), 1);
    }
    const int slower = rows_faster ? partial : rows;
    EXPECT_GT(slower, 1);
    EXPECT_LT(slower, 50);
  }
}

// A mode that never succeeds is probed as rarely as a slow one.
TEST(ModeChooserTest, AProbeThatNobodyObservesDoesNotRepeatAtOnce) {
  ModeChooser chooser;
  EXPECT_EQ(chooser.Choose(), RemoteMode::kPartial);
  EXPECT_EQ(chooser.Choose(), RemoteMode::kPartial);
  chooser.Observe(RemoteMode::kPartial, absl::Milliseconds(1), 1);
  EXPECT_EQ(chooser.Choose(), RemoteMode::kRows);
  int rows = 0;
  for (int i = 0; i < 640; ++i) rows += chooser.Choose() == RemoteMode::kRows ? 1 : 0;
  EXPECT_EQ(rows, 10);
}

TEST(ModeChooserTest, FollowsAChange) {
  ModeChooser chooser;
  for (int i = 0; i < 200; ++i) {
    const RemoteMode mode = chooser.Choose();
    chooser.Observe(mode, absl::Milliseconds(mode == RemoteMode::kRows ? 1 : 2), 1);
  }
  int rows = 0;
  for (int i = 0; i < 1000; ++i) {
    const RemoteMode mode = chooser.Choose();
    rows += mode == RemoteMode::kRows ? 1 : 0;
    chooser.Observe(mode, absl::Milliseconds(mode == RemoteMode::kRows ? 10 : 2), 1);
  }
  EXPECT_LT(rows, 100);
}

// A batch takes longer than a step of one query, whatever its mode.
TEST(ModeChooserTest, ComparesTimesPerQuery) {
  for (const RemoteMode faster : {RemoteMode::kRows, RemoteMode::kPartial}) {
    ModeChooser chooser;
    int wrong = 0;
    for (int i = 0; i < 200; ++i) {
      const RemoteMode mode = chooser.Choose();
      wrong += mode == faster ? 0 : 1;
      if (mode == faster) {
        chooser.Observe(mode, absl::Milliseconds(100), 100);
      } else {
        chooser.Observe(mode, absl::Milliseconds(2), 1);
      }
      chooser.Observe(mode, absl::Hours(1), 0);
    }
    EXPECT_LT(wrong, 10);
  }
}

}  // namespace
}  // namespace terrace::kv_store
