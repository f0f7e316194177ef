#include "attention/top_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/attention/simd_targets.h"

namespace terrace::attention {
namespace {

using ::terrace::testing::ForEachSimdTarget;

std::vector<uint32_t> Sorted(const std::vector<float>& scores, size_t begin, size_t end,
                             size_t count) {
  std::vector<uint32_t> order(end - begin);
  std::iota(order.begin(), order.end(), static_cast<uint32_t>(begin));
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

void ExpectTop(const std::vector<float>& scores, size_t begin, size_t end, size_t count) {
  std::vector<uint32_t> memory;
  const auto top = TopRows(scores.data(), begin, end, count, memory);
  EXPECT_EQ(std::vector<uint32_t>(top.begin(), top.end()), Sorted(scores, begin, end, count))
      << "[" << begin << ", " << end << ") count " << count;
}

enum class Pattern { kRandom, kRising, kFalling, kEqual, kFewValues };

std::vector<float> Scores(Pattern pattern, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> scores(count);
  for (size_t i = 0; i < count; ++i) {
    const auto rank = static_cast<float>(i);
    switch (pattern) {
      case Pattern::kRandom:
        scores[i] = std::normal_distribution<float>()(random);
        break;
      case Pattern::kRising:
        scores[i] = rank;
        break;
      case Pattern::kFalling:
        scores[i] = -rank;
        break;
      case Pattern::kEqual:
        scores[i] = 0.25F;
        break;
      case Pattern::kFewValues:
        scores[i] = static_cast<float>(random() % 5);
        break;
    }
  }
  return scores;
}

TEST(TopRows, EqualsASortForEveryPatternAndSize) {
  ForEachSimdTarget([] {
    for (const Pattern pattern : {Pattern::kRandom, Pattern::kRising, Pattern::kFalling,
                                  Pattern::kEqual, Pattern::kFewValues}) {
      for (const size_t size : {1, 2, 15, 16, 17, 1023, 1024, 1025, 1300, 9000}) {
        SCOPED_TRACE(::testing::Message() << "pattern " << static_cast<int>(pattern));
        const std::vector<float> scores = Scores(pattern, size, size);
        for (const size_t count : {size_t{0}, size_t{1}, size / 2, size - 1, size}) {
          ExpectTop(scores, 0, size, count);
        }
      }
    }
  });
}

TEST(TopRows, RanksOnlyTheRange) {
  const std::vector<float> scores = Scores(Pattern::kRandom, 3000, 4);
  for (const size_t begin : {0, 1, 5, 16, 2990}) {
    for (const size_t end : {2990, 2999, 3000}) {
      if (begin < end) ExpectTop(scores, begin, end, std::min<size_t>(100, end - begin));
    }
  }
}

TEST(TopRows, TheLowestFiniteScoreStillCounts) {
  const std::vector<float> scores(40, std::numeric_limits<float>::lowest());
  ExpectTop(scores, 0, 40, 33);
}

}  // namespace
}  // namespace terrace::attention
