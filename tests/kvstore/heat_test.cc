#include "kvstore/heat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace terrace::kvstore {
namespace {

using ::testing::DoubleEq;
using ::testing::DoubleNear;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

HeatOptions HalfLife(double accesses) {
  return {.half_life_accesses = accesses, .mass_exponent = 1};
}

// `count` accesses to blocks that are seen once.
void Pass(HeatClock& clock, int count) {
  for (int i = 0; i < count; ++i) {
    BlockHeat other;
    clock.Touch(1, other);
  }
}

TEST(HeatClock, HeatHalvesWithEachHalfLife) {
  HeatClock clock(HalfLife(8));
  BlockHeat heat;
  EXPECT_EQ(clock.Heat(heat), 0);
  clock.Touch(0.5, heat);
  EXPECT_THAT(clock.Heat(heat), DoubleEq(0.5));
  Pass(clock, 8);
  EXPECT_THAT(clock.Heat(heat), DoubleEq(0.25));
  Pass(clock, 16);
  EXPECT_THAT(clock.Heat(heat), DoubleEq(0.0625));
}

TEST(HeatClock, AddsMassToWhatIsLeft) {
  HeatClock clock(HalfLife(4));
  BlockHeat heat;
  clock.Touch(1, heat);
  Pass(clock, 3);
  clock.Touch(0.25, heat);
  EXPECT_THAT(clock.Heat(heat), DoubleEq(0.75));
  EXPECT_EQ(heat.touches, 2U);
  EXPECT_EQ(heat.last_access, 5U);
}

TEST(HeatClock, MassZeroIsATouchThatDoesNotWarm) {
  HeatClock clock(HalfLife(1));
  BlockHeat heat;
  clock.Touch(0, heat);
  clock.Touch(0, heat);
  EXPECT_EQ(clock.Heat(heat), 0);
  EXPECT_EQ(heat.level, -kInfinity);
  EXPECT_EQ(heat.touches, 2U);
  clock.Touch(1, heat);
  EXPECT_THAT(clock.Heat(heat), DoubleEq(1));
}

TEST(HeatClock, CountsMassToItsExponent) {
  HeatClock clock({.half_life_accesses = 1e9, .mass_exponent = 0.5});
  BlockHeat heat;
  clock.Touch(0.25, heat);
  EXPECT_THAT(clock.Heat(heat), DoubleNear(0.5, 1e-6));
  clock.Touch(0, heat);
  EXPECT_THAT(clock.Heat(heat), DoubleNear(0.5, 1e-6));
}

TEST(HeatClock, AnAccessMayPassWithoutHeat) {
  HeatClock clock({.half_life_gaps = 1});
  BlockHeat heat;
  clock.Touch(1, heat);
  BlockHeat other;
  clock.Pass(other);
  EXPECT_EQ(other.last_access, 2U);
  EXPECT_EQ(other.touches, 0U);
  EXPECT_EQ(clock.Heat(other), 0);
  clock.Touch(1, heat);
  EXPECT_EQ(clock.half_life_accesses(), 2) << "it is counted in the gaps of others";
}

TEST(HeatClock, MeasuresTheMeanGapBetweenTwoTouchesOfABlock) {
  HeatClock clock({.half_life_gaps = 3});
  BlockHeat a;
  BlockHeat b;
  clock.Touch(1, a);
  EXPECT_EQ(clock.half_life_accesses(), 3) << "a gap of 1 until one is measured";
  clock.Touch(1, b);
  clock.Touch(1, a);
  EXPECT_EQ(clock.half_life_accesses(), 6) << "one gap of 2";
  Pass(clock, 2);
  clock.Touch(1, b);
  EXPECT_EQ(clock.half_life_accesses(), 9) << "gaps of 2 and 4";
}

TEST(HeatClock, ForgetsGapsBeyondItsWindow) {
  HeatClock clock({.half_life_gaps = 1, .gap_window = 2});
  BlockHeat heat;
  for (int i = 0; i < 100; ++i) clock.Touch(1, heat);
  EXPECT_EQ(clock.half_life_accesses(), 1);
  Pass(clock, 8);
  clock.Touch(1, heat);
  EXPECT_EQ(clock.half_life_accesses(), 5) << "half of the way from 1 to 9";
}

TEST(HeatClock, NeverDecaysFasterThanHalfAnAccess) {
  HeatClock clock({.half_life_gaps = 0.001});
  EXPECT_EQ(clock.half_life_accesses(), 1);
}

TEST(HeatClock, AgreesWithAddingUpEveryTouch) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const double half_life = 1 + random() % 100;
  HeatClock clock(HalfLife(half_life));
  struct Touch {
    size_t block;
    double mass;
  };
  std::vector<Touch> touches;
  std::vector<BlockHeat> heats(5);
  for (int i = 0; i < 2000; ++i) {
    touches.push_back({random() % heats.size(), std::ldexp(random() % 1000, -10)});
    clock.Touch(touches.back().mass, heats[touches.back().block]);
  }
  for (size_t block = 0; block < heats.size(); ++block) {
    double sum = 0;
    for (size_t i = 0; i < touches.size(); ++i) {
      if (touches[i].block != block) continue;
      sum += touches[i].mass * std::exp2(-static_cast<double>(touches.size() - 1 - i) / half_life);
    }
    EXPECT_THAT(clock.Heat(heats[block]), DoubleNear(sum, 1e-9 * sum)) << block;
  }
}

TEST(Colder, ComparesHeatAndThenTheLastTouch) {
  EXPECT_TRUE(Colder({.level = 1, .last_access = 9}, {.level = 2, .last_access = 3}));
  EXPECT_FALSE(Colder({.level = 2, .last_access = 3}, {.level = 1, .last_access = 9}));
  EXPECT_TRUE(Colder({.level = 1, .last_access = 3}, {.level = 1, .last_access = 9}));
  EXPECT_FALSE(Colder({.level = 1, .last_access = 9}, {.level = 1, .last_access = 9}));
  EXPECT_TRUE(Colder({}, {.level = -1000}));
}

TEST(Admits, AsksForMoreContrastBeforeEnoughTouches) {
  const HeatOptions options{.admit_touches = 2, .contrast = 0.5};
  const BlockHeat victim{.level = 4, .touches = 1};
  const struct {
    double level;
    uint32_t touches;
    bool admitted;
  } cases[] = {{4.5, 1, false}, {4.75, 1, true}, {4.5, 0, false}, {4, 2, false},
               {4.25, 2, true}, {4.25, 3, true}, {3, 9, false}};
  for (const auto& c : cases) {
    EXPECT_EQ(Admits(options, {.level = c.level, .touches = c.touches}, victim), c.admitted)
        << c.level << " " << c.touches;
  }
}

TEST(Admits, MassZeroDisplacesNothingAndAnyMassDisplacesIt) {
  EXPECT_FALSE(Admits({}, {}, {}));
  EXPECT_TRUE(Admits({}, {.level = -1e9}, {}));
}

}  // namespace
}  // namespace terrace::kvstore
