#include "services/replay/belady.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace terrace::replay {
namespace {

TEST(BeladyHits, TextbookCases) {
  const std::vector<uint32_t> loop = {0, 1, 2, 0, 1, 2, 0, 1, 2};
  EXPECT_EQ(BeladyHits(loop, 1), 2U) << "one of three, each time round";
  EXPECT_EQ(BeladyHits(loop, 2), 4U);
  EXPECT_EQ(BeladyHits(loop, 3), 6U);
  EXPECT_EQ(BeladyHits(loop, 1000), 6U);
  EXPECT_EQ(BeladyHits({}, 1), 0U);
  EXPECT_EQ(BeladyHits({5}, 1), 0U);
  EXPECT_EQ(BeladyHits({5, 5, 5}, 1), 2U);
}

TEST(BeladyHits, LeavesOutWhatIsNeededLater) {
  EXPECT_EQ(BeladyHits({0, 1, 0, 1}, 1), 1U) << "0 stays, and 1 passes by";
}

// The best of every choice: after each reference, any subset of what is there may stay.
uint64_t BestOfAll(const std::vector<uint32_t>& blocks, size_t capacity) {
  std::map<std::set<uint32_t>, uint64_t> best = {{{}, 0}};
  for (const uint32_t block : blocks) {
    std::map<std::set<uint32_t>, uint64_t> next;
    for (const auto& [kept, hits] : best) {
      const uint64_t now = hits + kept.count(block);
      std::vector<uint32_t> there(kept.begin(), kept.end());
      if (!kept.contains(block)) there.push_back(block);
      for (uint32_t chosen = 0; chosen < 1U << there.size(); ++chosen) {
        std::set<uint32_t> subset;
        for (size_t i = 0; i < there.size(); ++i) {
          if ((chosen >> i & 1) != 0) subset.insert(there[i]);
        }
        if (subset.size() > capacity) continue;
        uint64_t& most = next[subset];
        most = std::max(most, now);
      }
    }
    best = std::move(next);
  }
  uint64_t most = 0;
  for (const auto& [kept, hits] : best) most = std::max(most, hits);
  return most;
}

TEST(BeladyHits, IsTheBestOfAllChoices) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint32_t> blocks(1 + random() % 12);
    for (uint32_t& block : blocks) block = static_cast<uint32_t>(random() % 5);
    const size_t capacity = 1 + random() % 4;
    EXPECT_EQ(BeladyHits(blocks, capacity), BestOfAll(blocks, capacity))
        << ::testing::PrintToString(blocks) << " in " << capacity;
  }
}

}  // namespace
}  // namespace terrace::replay
