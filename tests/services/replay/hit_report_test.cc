#include "services/replay/hit_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace terrace::replay {
namespace {

using kvstore::PolicyKind;

ReferenceTrace Trace() {
  ReferenceTrace trace;
  trace.blocks = {0, 1, 0, 2, 0, 1, 3, 4};
  trace.distinct_blocks = 5;
  trace.steps = 3;
  return trace;
}

HitCounts Counts() {
  return {.policies = {{PolicyKind::kLru}, {std::nullopt}, {PolicyKind::kS3Fifo}},
          .capacities = {1, 10000000},
          .hits = {{0, 8}, {1, 2}, {3, 3}}};
}

TEST(HitTable, HasALineForEachPolicyAndAColumnForEachCapacity) {
  EXPECT_EQ(HitTable(Trace(), Counts()),
            "8 references to 5 blocks in 3 steps; first ones aside, 37.50% could be hits\n"
            "\n"
            "BLOCKS        1  10000000\n"
            "lru       0.00%   100.00%\n"
            "belady   12.50%    25.00%\n"
            "s3fifo   37.50%    37.50%\n");
}

TEST(HitJson, IsAListInTheOrderAsked) {
  const nlohmann::json expected = {
      {{"policy", "lru"}, {"capacity_blocks", 1}, {"hit_rate", 0.0}},
      {{"policy", "lru"}, {"capacity_blocks", 10000000}, {"hit_rate", 1.0}},
      {{"policy", "belady"}, {"capacity_blocks", 1}, {"hit_rate", 0.125}},
      {{"policy", "belady"}, {"capacity_blocks", 10000000}, {"hit_rate", 0.25}},
      {{"policy", "s3fifo"}, {"capacity_blocks", 1}, {"hit_rate", 0.375}},
      {{"policy", "s3fifo"}, {"capacity_blocks", 10000000}, {"hit_rate", 0.375}}};
  const std::string text = HitJson(Trace(), Counts());
  EXPECT_EQ(nlohmann::json::parse(text), expected);
  EXPECT_EQ(text.back(), '\n');
}

}  // namespace
}  // namespace terrace::replay
