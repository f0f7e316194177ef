#include "kvstore/extent_ranking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <vector>

namespace terrace::kvstore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr PolicyKind kKinds[] = {PolicyKind::kHeat, PolicyKind::kLru, PolicyKind::kS3Fifo};
// Nobody is forgotten for being absent.
constexpr PlacementOptions kLongMemory = {.heat = {.history_factor = 1e6},
                                          .s3fifo = {.history_factor = 1e6}};

// A few blocks under a ranking that sees all residents.
class RankedTier {
 public:
  RankedTier(PolicyKind kind, size_t capacity, const PlacementOptions& options = kLongMemory)
      : clock_(options.heat), ranking_(kind, options, clock_), capacity_(capacity), blocks_(16) {}

  // Whether it was in.
  bool Use(size_t block, float mass = 1) {
    ranking_.Touch(mass, blocks_[block]);
    if (std::count(in_.begin(), in_.end(), block) != 0) return true;
    if (in_.size() == capacity_) {
      const size_t victim = Coldest();
      if (!ranking_.Admits(blocks_[block], blocks_[victim])) return false;
      ranking_.Evict(blocks_[victim]);
      in_.erase(std::find(in_.begin(), in_.end(), victim));
    }
    ranking_.Insert(blocks_[block]);
    in_.push_back(block);
    return false;
  }
  size_t Coldest() {
    std::vector<Standing*> sample;
    for (const size_t block : in_) sample.push_back(&blocks_[block]);
    return in_[ranking_.Coldest(sample, 1).at(0)];
  }
  std::vector<size_t> in() const {
    std::vector<size_t> sorted = in_;
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }
  Standing& block(size_t index) { return blocks_[index]; }
  ExtentRanking& ranking() { return ranking_; }
  HeatClock& clock() { return clock_; }

 private:
  HeatClock clock_;
  ExtentRanking ranking_;
  const size_t capacity_;
  std::vector<Standing> blocks_;
  std::vector<size_t> in_;
};

class ExtentRankingAgreement : public ::testing::TestWithParam<PolicyKind> {};

// Random histories of one tier, ranked both ways. Empty, or where they part.
std::string Disagreement(PolicyKind kind, uint32_t seed) {
  std::mt19937 random(seed);
  const size_t capacity = 1 + random() % 20;
  const size_t count = 1 + random() % 60;
  HeatClock clock(kLongMemory.heat);
  ExtentRanking ranking(kind, kLongMemory, clock);
  const std::unique_ptr<PlacementPolicy> policy = MakePlacementPolicy(kind, kLongMemory);
  std::vector<Standing> blocks(count);
  std::vector<size_t> in;
  for (int step = 0; step < 500; ++step) {
    const size_t block = std::min(random() % count, random() % count);
    const float mass = static_cast<float>(random() % 1000) / 1000;
    ranking.Touch(mass, blocks[block]);
    policy->Touch(BlockId{block}, mass);
    if (std::count(in.begin(), in.end(), block) != 0) continue;
    if (in.size() == capacity) {
      // Pins.
      const auto evictable = [&](BlockId id) { return static_cast<uint64_t>(id) % 3 != step % 4u; };
      std::vector<size_t> candidates;
      std::vector<Standing*> sample;
      for (const size_t resident : in) {
        if (!evictable(BlockId{resident})) continue;
        candidates.push_back(resident);
        sample.push_back(&blocks[resident]);
      }
      const std::vector<size_t> coldest = ranking.Coldest(sample, 1);
      const std::optional<BlockId> expected = policy->Coldest(evictable);
      if (coldest.empty() != !expected)
        return "whether step " + std::to_string(step) + " finds one";
      if (!expected) continue;
      const size_t victim = candidates[coldest[0]];
      if (BlockId{victim} != *expected) return "victim of step " + std::to_string(step);
      const bool admitted = policy->Admits(BlockId{block}, *expected);
      if (ranking.Admits(blocks[block], blocks[victim]) != admitted) {
        return "admission of step " + std::to_string(step);
      }
      if (!admitted && random() % 4 != 0) continue;
      // Deleted, now and then.
      const bool deleted = random() % 8 == 0;
      deleted ? ranking.Forget(blocks[victim]) : ranking.Evict(blocks[victim]);
      if (deleted) blocks[victim] = Standing();
      deleted ? policy->Forget(*expected) : policy->Evict(*expected);
      in.erase(std::find(in.begin(), in.end(), victim));
    }
    ranking.Insert(blocks[block]);
    policy->Insert(BlockId{block});
    in.push_back(block);
  }
  return "";
}

TEST_P(ExtentRankingAgreement, DecidesAsThePolicyWhenTheSampleIsEverything) {
  const uint32_t first_seed = std::random_device()();
  for (uint32_t seed = first_seed; seed != first_seed + 100; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    ASSERT_THAT(Disagreement(GetParam(), seed), IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(All, ExtentRankingAgreement, ::testing::ValuesIn(kKinds),
                         [](const auto& kind) { return std::string(PolicyName(kind.param)); });

TEST(ExtentRanking, TakesTheColdestFirstAndAtMostSoMany) {
  RankedTier tier(PolicyKind::kLru, 4);
  for (const size_t block : {2, 0, 3, 1}) tier.Use(block);
  const std::vector<Standing*> sample = {&tier.block(0), &tier.block(1), &tier.block(2),
                                         &tier.block(3)};
  EXPECT_THAT(tier.ranking().Coldest(sample, 0), IsEmpty());
  EXPECT_THAT(tier.ranking().Coldest(sample, 1), ElementsAre(2));
  EXPECT_THAT(tier.ranking().Coldest(sample, 3), ElementsAre(2, 0, 3));
  EXPECT_THAT(tier.ranking().Coldest(sample, 9), ElementsAre(2, 0, 3, 1));
  EXPECT_THAT(tier.ranking().Coldest({}, 9), IsEmpty());
}

TEST(ExtentRanking, AReferenceWithoutMassCountsLikeTheMeanOfThoseWithOne) {
  RankedTier tier(PolicyKind::kHeat, 3, {.heat = {.half_life_accesses = 1e12, .mass_exponent = 1}});
  tier.Use(0, kUntoldMass);
  EXPECT_NEAR(tier.clock().Heat(tier.block(0).heat), 1, 1e-6) << "1 until somebody tells";
  tier.Use(1, 0.25F);
  tier.Use(1, 0.0625F);
  tier.Use(1, 0);
  tier.Use(2, kUntoldMass);
  EXPECT_NEAR(tier.clock().Heat(tier.block(2).heat), 0.125, 1e-6);
}

TEST(ExtentRanking, ProbationIsForgottenAfterAsManyFailuresAsThereAreResidents) {
  // One on probation at a time fails when the next comes; block 0 is the first.
  for (const auto& [others, comes_back] : {std::pair{1, true}, {2, false}}) {
    RankedTier tier(PolicyKind::kS3Fifo, 2, {.s3fifo = {.history_factor = 1}});
    tier.Use(0);
    for (int other = 1; other <= 1 + others + 1; ++other) tier.Use(other);
    ASSERT_EQ(tier.block(0).queue, Standing::Queue::kFailed);
    tier.Use(0);
    EXPECT_EQ(tier.block(0).queue,
              comes_back ? Standing::Queue::kMain : Standing::Queue::kProbation)
        << others;
  }
}

TEST(ExtentRanking, WhatIsReadAheadGetsOnlyAColderPlace) {
  for (const PolicyKind kind : kKinds) {
    SCOPED_TRACE(std::string(PolicyName(kind)));
    RankedTier tier(kind, 2, {.heat = {.contrast = 0}});
    tier.Use(0, 0.5F);
    tier.Use(1, 0.75F);
    tier.Use(2, 1);
    EXPECT_TRUE(tier.ranking().AdmitsAhead(tier.block(2), tier.block(0)));
    EXPECT_TRUE(tier.ranking().AdmitsAhead(tier.block(1), tier.block(0)));
    EXPECT_FALSE(tier.ranking().AdmitsAhead(tier.block(0), tier.block(1)));
    EXPECT_FALSE(tier.ranking().AdmitsAhead(tier.block(15), tier.block(0))) << "never touched";
  }
}

}  // namespace
}  // namespace terrace::kvstore
