#include "kvstore/placement_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kvstore/heat_policy.h"
#include "tests/kvstore/plain_policy.h"

namespace terrace::kvstore {
namespace {

using ::testing::ElementsAre;
using ::testing::Eq;
using ::testing::IsEmpty;
using ::testing::Optional;

constexpr PolicyKind kKinds[] = {PolicyKind::kHeat, PolicyKind::kLru, PolicyKind::kS3Fifo};

// A tier of `capacity` blocks, all named by letters; it tells hits and who is in.
class Tier {
 public:
  Tier(std::unique_ptr<PlacementPolicy> policy, size_t capacity)
      : policy_(std::move(policy)), capacity_(capacity) {}

  bool Use(char name, double mass = 1) {
    const BlockId block{static_cast<uint64_t>(name)};
    policy_->Touch(block, mass);
    if (in_.contains(name)) return true;
    if (in_.size() == capacity_) {
      const std::optional<BlockId> victim = policy_->Coldest(
          [this](BlockId candidate) { return !pinned_.contains(static_cast<char>(candidate)); });
      if (!victim || !policy_->Admits(block, *victim)) return false;
      policy_->Evict(*victim);
      in_.erase(static_cast<char>(*victim));
    }
    policy_->Insert(block);
    in_.insert(name);
    return false;
  }
  // "-" for each miss, the name for each hit.
  std::string UseAll(const std::string& names) {
    std::string hits;
    for (const char name : names) hits += Use(name) ? name : '-';
    return hits;
  }
  void Pin(char name) { pinned_.insert(name); }
  void Unpin(char name) { pinned_.erase(name); }
  void Delete(char name) {
    policy_->Forget(BlockId{static_cast<uint64_t>(name)});
    in_.erase(name);
  }
  std::string in() const { return {in_.begin(), in_.end()}; }

 private:
  const std::unique_ptr<PlacementPolicy> policy_;
  const size_t capacity_;
  std::set<char> in_;
  std::set<char> pinned_;
};

Tier MakeTier(PolicyKind kind, size_t capacity, const PlacementOptions& options = {}) {
  return {MakePlacementPolicy(kind, options), capacity};
}

TEST(PolicyKind, HasANameThatParses) {
  for (const PolicyKind kind : kKinds)
    EXPECT_THAT(ParsePolicyKind(PolicyName(kind)), Optional(kind));
  EXPECT_EQ(ParsePolicyKind("LRU"), std::nullopt);
  EXPECT_EQ(ParsePolicyKind(""), std::nullopt);
}

TEST(PlacementPolicy, KeepsEverythingWhileThereIsRoom) {
  for (const PolicyKind kind : kKinds) {
    SCOPED_TRACE(PolicyName(kind));
    Tier tier = MakeTier(kind, 4);
    EXPECT_EQ(tier.UseAll("abcdabcdabcd"), "----abcdabcd");
  }
}

TEST(PlacementPolicy, OneBlockOfRoomServesRepeats) {
  for (const PolicyKind kind : kKinds) {
    SCOPED_TRACE(PolicyName(kind));
    Tier tier = MakeTier(kind, 1);
    EXPECT_EQ(tier.UseAll("aaa"), "-aa");
  }
}

TEST(PlacementPolicy, NeverPicksWhatMayNotLeave) {
  for (const PolicyKind kind : kKinds) {
    SCOPED_TRACE(PolicyName(kind));
    const std::unique_ptr<PlacementPolicy> policy = MakePlacementPolicy(kind);
    EXPECT_EQ(policy->Coldest([](BlockId) { return true; }), std::nullopt) << "nobody is in";
    for (const uint64_t number : {1, 2, 3}) {
      policy->Touch(BlockId{number}, 1);
      policy->Insert(BlockId{number});
    }
    for (const uint64_t number : {1, 2, 3}) {
      EXPECT_THAT(policy->Coldest([=](BlockId block) { return block == BlockId{number}; }),
                  Optional(BlockId{number}));
    }
    EXPECT_EQ(policy->Coldest([](BlockId) { return false; }), std::nullopt);
  }
}

TEST(PlacementPolicy, PinnedBlocksKeepTheirTurn) {
  for (const PolicyKind kind : {PolicyKind::kLru, PolicyKind::kS3Fifo}) {
    SCOPED_TRACE(PolicyName(kind));
    Tier tier = MakeTier(kind, 2);
    tier.Pin('a');
    EXPECT_EQ(tier.UseAll("abc"), "---");
    EXPECT_EQ(tier.in(), "ac");
    tier.Unpin('a');
    tier.Use('d');
    EXPECT_EQ(tier.in(), "cd");
  }
}

TEST(PlacementPolicy, ForgetsDeletedBlocks) {
  for (const PolicyKind kind : kKinds) {
    SCOPED_TRACE(PolicyName(kind));
    Tier tier = MakeTier(kind, 2);
    tier.UseAll("ab");
    tier.Delete('a');
    tier.Delete('x');
    EXPECT_EQ(tier.UseAll("cbc"), "-bc");
    EXPECT_EQ(tier.in(), "bc");
  }
}

TEST(LruPolicy, EvictsWhatWasUsedLongestAgo) {
  Tier tier = MakeTier(PolicyKind::kLru, 3);
  EXPECT_EQ(tier.UseAll("abcad"), "---a-");
  EXPECT_EQ(tier.in(), "acd");
  EXPECT_EQ(tier.UseAll("bca"), "---") << "each time the next one has just left";
}

TEST(HeatPolicy, WhatPassesByOnceDisplacesNothingThatIsWarm) {
  Tier tier = MakeTier(PolicyKind::kHeat, 2, {.heat = {.half_life_accesses = 1000}});
  EXPECT_EQ(tier.UseAll("abab"), "--ab");
  EXPECT_EQ(tier.UseAll("cdefghab"), "------ab");
}

TEST(HeatPolicy, TheSecondTouchAdmitsWhatTheFirstDidNot) {
  // 1 access is 0.01 half-lives: a newcomer is hotter than a block touched before it, but not by
  // the contrast.
  Tier tier = MakeTier(PolicyKind::kHeat, 1,
                       {.heat = {.half_life_accesses = 100, .admit_touches = 2, .contrast = 0.5}});
  EXPECT_EQ(tier.UseAll("abb"), "---") << "kept out, then let in";
  EXPECT_EQ(tier.UseAll("bab"), "b-b");
}

TEST(HeatPolicy, AdmitsAtOnceWhatIsHotterByTheContrast) {
  Tier tier =
      MakeTier(PolicyKind::kHeat, 1, {.heat = {.half_life_accesses = 100, .mass_exponent = 1}});
  tier.Use('a', 0.5);
  tier.Use('b', 0.7);
  EXPECT_EQ(tier.in(), "a") << "0.7 is less than 1.42 times 0.5";
  tier.Use('c', 0.75);
  EXPECT_EQ(tier.in(), "c");
}

TEST(HeatPolicy, MassOutweighsRecency) {
  Tier tier = MakeTier(PolicyKind::kHeat, 2, {.heat = {.half_life_accesses = 100}});
  tier.Use('a', 0.9);
  tier.Use('b', 0.1);
  tier.Use('c', 0.5);
  EXPECT_EQ(tier.in(), "ac");
}

TEST(HeatPolicy, RemembersABoundedHistory) {
  HeatPolicy policy({.half_life_accesses = 1e6, .history_factor = 3});
  for (const uint64_t number : {1, 2}) {
    policy.Touch(BlockId{number}, 1);
    policy.Insert(BlockId{number});
  }
  for (uint64_t number = 3; number < 1000; ++number) {
    policy.Touch(BlockId{number}, 1);
    EXPECT_LE(policy.history_count(), 6U);
  }
  EXPECT_EQ(policy.history_count(), 6U);
}

TEST(S3FifoPolicy, OneTouchOnProbationIsNotEnough) {
  // Half of four on probation.
  Tier tier = MakeTier(PolicyKind::kS3Fifo, 4, {.s3fifo = {.small_fraction = 0.5}});
  EXPECT_EQ(tier.UseAll("abcdab"), "----ab");
  EXPECT_EQ(tier.UseAll("ef"), "--");
  EXPECT_EQ(tier.in(), "cdef");
}

TEST(S3FifoPolicy, TwoTouchesPromote) {
  Tier tier = MakeTier(PolicyKind::kS3Fifo, 4, {.s3fifo = {.small_fraction = 0.5}});
  EXPECT_EQ(tier.UseAll("abcdaa"), "----aa");
  EXPECT_EQ(tier.UseAll("efg"), "---");
  EXPECT_EQ(tier.in(), "aefg");
}

TEST(S3FifoPolicy, WhatComesBackGoesToTheMainQueue) {
  Tier tier = MakeTier(PolicyKind::kS3Fifo, 2, {.s3fifo = {.small_fraction = 0.5}});
  EXPECT_EQ(tier.UseAll("abca"), "----") << "a left, is remembered, and displaced b";
  EXPECT_EQ(tier.in(), "ac");
  EXPECT_EQ(tier.UseAll("de"), "--");
  EXPECT_EQ(tier.in(), "ae") << "c and d failed probation, a is past it";
}

struct Workload {
  uint32_t blocks = 0;
  size_t capacity = 0;
  PlacementOptions options;
};

Workload RandomWorkload(std::mt19937& random) {
  Workload workload;
  workload.blocks = static_cast<uint32_t>(1 + random() % 60);
  workload.capacity = 1 + random() % 20;
  HeatOptions& heat = workload.options.heat;
  heat.half_life_accesses = random() % 2 == 0 ? 0 : 1 + random() % 60;
  heat.half_life_gaps = 0.25 * (1 + random() % 12);
  heat.gap_window = static_cast<uint32_t>(1 + random() % 20);
  heat.admit_touches = random() % 4;
  heat.contrast = 0.3 * (random() % 5);
  heat.history_factor = 0.5 * (random() % 6);
  S3FifoOptions& s3fifo = workload.options.s3fifo;
  s3fifo.small_fraction = 0.125 * (random() % 9);
  s3fifo.promote_touches = 1 + random() % 3;
  s3fifo.history_factor = 0.5 * (random() % 6);
  return workload;
}

// Both policies hear the same; returns where they first disagree, empty if nowhere.
std::string Disagreement(PolicyKind kind, const Workload& workload, std::mt19937& random) {
  const auto real = MakePlacementPolicy(kind, workload.options);
  const auto plain = testing::MakePlainPolicy(kind, workload.options);
  std::set<BlockId> in;
  for (int step = 0; step < 300; ++step) {
    // The lower half of the numbers comes three times as often.
    const uint32_t range = random() % 2 == 0 ? workload.blocks : workload.blocks / 2 + 1;
    const BlockId block{random() % range};
    if (random() % 32 == 0) {
      for (PlacementPolicy* policy : {real.get(), plain.get()}) policy->Forget(block);
      in.erase(block);
      continue;
    }
    const double mass = std::ldexp(1 + random() % 65535, -16);
    for (PlacementPolicy* policy : {real.get(), plain.get()}) policy->Touch(block, mass);
    if (in.contains(block)) continue;
    if (in.size() == workload.capacity) {
      const uint64_t pinned = random() % 3;
      const auto evictable = [pinned](BlockId candidate) {
        return static_cast<uint64_t>(candidate) % 3 != pinned;
      };
      const std::optional<BlockId> victim = real->Coldest(evictable);
      if (victim != plain->Coldest(evictable)) return "victim of step " + std::to_string(step);
      if (!victim) continue;
      const bool admitted = real->Admits(block, *victim);
      if (admitted != plain->Admits(block, *victim)) {
        return "admission of step " + std::to_string(step);
      }
      // Now and then a write, which must have room.
      if (!admitted && random() % 4 != 0) continue;
      for (PlacementPolicy* policy : {real.get(), plain.get()}) policy->Evict(*victim);
      in.erase(*victim);
    }
    for (PlacementPolicy* policy : {real.get(), plain.get()}) policy->Insert(block);
    in.insert(block);
  }
  return "";
}

TEST(PlacementPolicy, AgreesWithItsPlainVersion) {
  const uint32_t first_seed = std::random_device()();
  for (const PolicyKind kind : kKinds) {
    for (uint32_t seed = first_seed; seed != first_seed + 60; ++seed) {
      SCOPED_TRACE(::testing::Message() << PolicyName(kind) << " with seed " << seed);
      std::mt19937 random(seed);
      const Workload workload = RandomWorkload(random);
      ASSERT_THAT(Disagreement(kind, workload, random), IsEmpty());
    }
  }
}

}  // namespace
}  // namespace terrace::kvstore
