#include "kvstore/eviction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace terrace::kvstore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ChooseLru, TakesTheColdestFirst) {
  const std::vector<EvictionCandidate> candidates = {{3, true}, {9, true}, {5, true}};
  EXPECT_THAT(ChooseLru(candidates, 2), ElementsAre(1, 2));
}

TEST(ChooseLru, KeepsTheLowerIndexOnTies) {
  const std::vector<EvictionCandidate> candidates = {{4, true}, {7, true}, {7, true}, {4, true}};
  EXPECT_THAT(ChooseLru(candidates, 3), ElementsAre(1, 2, 0));
}

TEST(ChooseLru, NeverTakesWhatIsNotEvictable) {
  const std::vector<EvictionCandidate> candidates = {{9, false}, {1, true}, {8, false}};
  EXPECT_THAT(ChooseLru(candidates, 3), ElementsAre(1));
  EXPECT_THAT(ChooseLru({}, 3), IsEmpty());
  EXPECT_THAT(ChooseLru(candidates, 0), IsEmpty());
}

TEST(ChooseLru, AgreesWithSortingEverything) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 500; ++round) {
    std::vector<EvictionCandidate> candidates(random() % 70);
    for (auto& candidate : candidates) candidate = {random() % 16, random() % 3 != 0};
    const size_t count = random() % 70;
    std::vector<size_t> expected;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i].evictable) expected.push_back(i);
    }
    std::stable_sort(expected.begin(), expected.end(),
                     [&](size_t a, size_t b) { return candidates[a].age > candidates[b].age; });
    expected.resize(std::min(expected.size(), count));
    EXPECT_EQ(ChooseLru(candidates, count), expected);
  }
}

}  // namespace
}  // namespace terrace::kvstore
