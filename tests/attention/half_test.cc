#include "attention/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace terrace::attention {
namespace {

bool IsNan(uint16_t half) { return (half & 0x7fff) > 0x7c00; }

// By the definition of the format, in double.
double Meaning(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int fraction = half & 1023;
  const double magnitude = exponent == 31  ? INFINITY
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(Half, EveryPatternMeansWhatTheFormatSays) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (IsNan(half)) {
      EXPECT_TRUE(std::isnan(FloatFromHalf(half))) << bits;
      EXPECT_TRUE(IsNan(HalfFromFloat(FloatFromHalf(half)))) << bits;
    } else {
      ASSERT_EQ(FloatFromHalf(half), Meaning(half)) << bits;
      ASSERT_EQ(HalfFromFloat(FloatFromHalf(half)), half) << bits;
    }
  }
}

TEST(Half, MidpointsGoToTheEvenNeighbourAndTheirNeighboursDoNot) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const auto next = static_cast<uint16_t>(bits + 1);
    // Infinity stands where the next binade's first value would.
    const double above = next == 0x7c00 ? 65536.0 : Meaning(next);
    const auto middle = static_cast<float>((Meaning(half) + above) / 2);
    for (const float sign : {1.0F, -1.0F}) {
      const uint16_t bit = sign < 0 ? 0x8000 : 0;
      ASSERT_EQ(HalfFromFloat(sign * middle), ((half & 1) == 0 ? half : next) | bit) << bits;
      ASSERT_EQ(HalfFromFloat(sign * std::nextafter(middle, 0.0F)), half | bit) << bits;
      ASSERT_EQ(HalfFromFloat(sign * std::nextafter(middle, INFINITY)), next | bit) << bits;
    }
  }
}

TEST(Half, BelowAndAboveAreTheNearestBounds) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 20000; ++i) {
    const int exponent = static_cast<int>(random() % 44) - 28;
    const float value =
        std::min(kHalfMax, std::ldexp(static_cast<float>(random() % 8192) / 8192, exponent));
    for (const float x : {value, -value}) {
      const uint16_t below = HalfBelow(x);
      EXPECT_LE(FloatFromHalf(below), x);
      EXPECT_GE(FloatFromHalf(below), -kHalfMax);
      const uint16_t nearest = HalfFromFloat(x);
      EXPECT_TRUE(FloatFromHalf(below) == FloatFromHalf(nearest) || FloatFromHalf(nearest) > x);
    }
    const uint16_t above = HalfAbove(value);
    EXPECT_GE(FloatFromHalf(above), value);
    if (above > 0) {
      EXPECT_LT(FloatFromHalf(static_cast<uint16_t>(above - 1)), value);
    }
  }
}

TEST(Half, BoundsOfZeroAndTheLimitsAreThemselves) {
  for (const float x : {0.0F, kHalfMax, -kHalfMax}) EXPECT_EQ(FloatFromHalf(HalfBelow(x)), x);
  EXPECT_EQ(FloatFromHalf(HalfAbove(kHalfMax)), kHalfMax);
  EXPECT_EQ(HalfAbove(1e-30F), 1);
  EXPECT_EQ(HalfBelow(-1e-30F), 0x8001);
  EXPECT_EQ(HalfBelow(1e-30F), 0);
}

}  // namespace
}  // namespace terrace::attention
