#include "services/replay/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <list>
#include <random>
#include <string>
#include <vector>

#include "tests/services/replay/conversations.h"

namespace terrace::replay {
namespace {

using kvstore::PolicyKind;
using ::terrace::testing::Conversations;
using ::terrace::testing::kDice;
using ::terrace::testing::kPeople;

constexpr PolicyKind kKinds[] = {PolicyKind::kHeat, PolicyKind::kLru, PolicyKind::kS3Fifo};

// References by letter.
ReferenceTrace Trace(const std::string& names) {
  ReferenceTrace trace;
  for (const char name : names) trace.blocks.push_back(static_cast<uint32_t>(name - 'a'));
  trace.distinct_blocks = 26;
  return trace;
}

uint64_t Hits(const ReferenceTrace& trace, std::optional<PolicyKind> kind, uint64_t capacity,
              const kvstore::PlacementOptions& options = {}) {
  return CountHits(trace, {{kind}, capacity}, options, [](uint64_t) {});
}

double Percent(uint64_t hits, const ReferenceTrace& trace) {
  return 100 * static_cast<double>(hits) / static_cast<double>(trace.blocks.size());
}

TEST(ReplayPolicy, HasANameThatParses) {
  for (const PolicyKind kind : kKinds) {
    EXPECT_EQ(ParseReplayPolicy(Name({kind})), ReplayPolicy{kind});
  }
  EXPECT_EQ(ParseReplayPolicy("belady"), ReplayPolicy{std::nullopt});
  EXPECT_EQ(Name({std::nullopt}), "belady");
  EXPECT_EQ(ParseReplayPolicy("fifo"), std::nullopt);
}

TEST(CountHits, HandCountedLru) {
  // a hits before it is evicted, then each is evicted just before its turn.
  EXPECT_EQ(Hits(Trace("abcadbca"), PolicyKind::kLru, 3), 1U);
  EXPECT_EQ(Hits(Trace("abcadbca"), PolicyKind::kLru, 4), 4U);
  EXPECT_EQ(Hits(Trace("aabbaabb"), PolicyKind::kLru, 1), 4U);
}

TEST(CountHits, HandCountedOptimum) {
  // d is left out: a b c a - b c a.
  EXPECT_EQ(Hits(Trace("abcadbca"), std::nullopt, 3), 4U);
}

TEST(CountHits, HeatKeepsWhatComesBackWhileStrangersPass) {
  // a and b come back after eight that do not.
  std::string names = "abab";
  for (int i = 0; i < 3; ++i) names += "cdefghijab";
  const ReferenceTrace trace = Trace(names);
  kvstore::PlacementOptions options;
  options.heat.half_life_accesses = 20;
  options.heat.history_factor = 0;
  EXPECT_EQ(Hits(trace, PolicyKind::kHeat, 2, options), 8U) << "all but the first two";
  EXPECT_EQ(Hits(trace, PolicyKind::kLru, 2), 2U);
  EXPECT_EQ(Hits(trace, std::nullopt, 2), 8U);
}

TEST(CountHits, ATierWithRoomForAllMissesEachBlockOnce) {
  const ReferenceTrace trace = Conversations(kPeople, 20, 200, 1);
  const uint64_t ceiling = trace.blocks.size() - trace.distinct_blocks;
  for (const PolicyKind kind : kKinds) {
    EXPECT_EQ(Hits(trace, kind, trace.distinct_blocks), ceiling);
  }
  EXPECT_EQ(Hits(trace, std::nullopt, trace.distinct_blocks), ceiling);
}

TEST(CountHits, NobodyBeatsTheOptimum) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    const ReferenceTrace trace =
        Conversations(kPeople, 1 + random() % 30, 100, static_cast<uint32_t>(random()));
    for (const uint64_t capacity : {1, 2, 10, 50, 200}) {
      const uint64_t best = Hits(trace, std::nullopt, capacity);
      for (const PolicyKind kind : kKinds) EXPECT_LE(Hits(trace, kind, capacity), best) << capacity;
    }
  }
}

TEST(CountHits, ReplaysAlikeEachTime) {
  const ReferenceTrace trace = Conversations(kPeople, 50, 1000, 3);
  for (const PolicyKind kind : kKinds) EXPECT_EQ(Hits(trace, kind, 100), Hits(trace, kind, 100));
}

// LRU once more, by searching a list.
uint64_t PlainLruHits(const ReferenceTrace& trace, size_t capacity) {
  std::list<uint32_t> kept;
  uint64_t hits = 0;
  for (const uint32_t block : trace.blocks) {
    const size_t before = kept.size();
    kept.remove(block);
    hits += before - kept.size();
    kept.push_front(block);
    if (kept.size() > capacity) kept.pop_back();
  }
  return hits;
}

TEST(CountHits, LruEqualsAPlainList) {
  const ReferenceTrace trace = Conversations(kPeople, 30, 500, 4);
  for (const size_t capacity : {1, 7, 64, 300}) {
    EXPECT_EQ(Hits(trace, PolicyKind::kLru, capacity), PlainLruHits(trace, capacity));
  }
}

TEST(CountHits, MassDecidesWhoStays) {
  // a and b in turn, b with ten times the mass, in a tier of one.
  ReferenceTrace trace;
  trace.distinct_blocks = 2;
  for (int i = 0; i < 100; ++i) {
    trace.blocks.insert(trace.blocks.end(), {0, 1});
    trace.masses.insert(trace.masses.end(), {0.05F, 0.5F});
  }
  EXPECT_EQ(Hits(trace, PolicyKind::kHeat, 1), 99U) << "b from its first reference on";
  EXPECT_EQ(Hits(trace, PolicyKind::kLru, 1), 0U);
}

// What the default was chosen for: tiers that hold less than what is in use.
TEST(DefaultPolicy, BeatsLruOnConversationsWhereRoomIsShortAndLosesNowhere) {
  for (const size_t open : {50, 200}) {
    const ReferenceTrace trace = Conversations(kPeople, open, 5000, 1);
    for (const uint64_t blocks_each : {1, 3, 6, 12, 24, 48, 96}) {
      SCOPED_TRACE(::testing::Message() << open << " open, " << blocks_each << " blocks each");
      const uint64_t capacity = open * blocks_each;
      const double ours = Percent(Hits(trace, kvstore::kDefaultPolicy, capacity), trace);
      const double lru = Percent(Hits(trace, PolicyKind::kLru, capacity), trace);
      EXPECT_GE(ours, lru - 0.3);
      if (blocks_each == 12 || blocks_each == 24) {
        EXPECT_GT(ours, lru + 2);
      }
    }
  }
}

// Where the past says nothing, what is known of it must not hurt by much.
TEST(DefaultPolicy, LosesLittleToLruOnDice) {
  const ReferenceTrace trace = Conversations(kDice, 200, 5000, 1);
  for (uint64_t capacity = 75; capacity <= 38400; capacity *= 2) {
    const double ours = Percent(Hits(trace, kvstore::kDefaultPolicy, capacity), trace);
    const double lru = Percent(Hits(trace, PolicyKind::kLru, capacity), trace);
    EXPECT_GE(ours, lru - 3) << capacity;
  }
}

}  // namespace
}  // namespace terrace::replay
