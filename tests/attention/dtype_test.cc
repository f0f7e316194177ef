#include "attention/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attention/half.h"
#include "tests/attention/simd_targets.h"

namespace terrace::attention {
namespace {

using ::terrace::testing::ForEachSimdTarget;

std::vector<float> Decode16(Dtype dtype, const std::vector<uint16_t>& bits) {
  std::vector<float> out(bits.size());
  ToFloat(dtype, reinterpret_cast<const std::byte*>(bits.data()), bits.size(), out.data());
  return out;
}

std::vector<uint16_t> Encode16(Dtype dtype, const std::vector<float>& values) {
  std::vector<uint16_t> out(values.size());
  FromFloat(dtype, values.data(), values.size(), reinterpret_cast<std::byte*>(out.data()));
  return out;
}

std::vector<uint16_t> AllPatterns() {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  return bits;
}

// Rounds to nearest even by comparing distances in double, which holds all three numbers exactly.
uint16_t NearestBFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t low = bits >> 16;
  const double below = std::bit_cast<float>(low << 16);
  const float next = std::bit_cast<float>((low + 1) << 16);
  const double above = std::isinf(next) ? std::copysign(std::ldexp(1.0, 128), value) : next;
  const double to_below = std::abs(value - below);
  const double to_above = std::abs(above - value);
  if (to_below == to_above) return static_cast<uint16_t>(low + (low & 1));
  return static_cast<uint16_t>(to_below < to_above ? low : low + 1);
}

TEST(Dtype, EveryHalfPatternConvertsAsTheScalarDoes) {
  ForEachSimdTarget([] {
    const std::vector<uint16_t> bits = AllPatterns();
    const std::vector<float> values = Decode16(Dtype::kFloat16, bits);
    const std::vector<uint16_t> back = Encode16(Dtype::kFloat16, values);
    for (size_t i = 0; i < bits.size(); ++i) {
      const float expected = FloatFromHalf(bits[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(values[i])) << i;
        ASSERT_GT(back[i] & 0x7fff, 0x7c00) << i;
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(expected)) << i;
        ASSERT_EQ(back[i], bits[i]);
      }
    }
  });
}

TEST(Dtype, EveryBFloatPatternRoundTrips) {
  ForEachSimdTarget([] {
    const std::vector<uint16_t> bits = AllPatterns();
    const std::vector<float> values = Decode16(Dtype::kBFloat16, bits);
    const std::vector<uint16_t> back = Encode16(Dtype::kBFloat16, values);
    for (size_t i = 0; i < bits.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), static_cast<uint32_t>(bits[i]) << 16);
      if (std::isnan(values[i])) {
        ASSERT_GT(back[i] & 0x7fff, 0x7f80) << i;
      } else {
        ASSERT_EQ(back[i], bits[i]);
      }
    }
  });
}

TEST(Dtype, FloatsRoundToNearestEven) {
  constexpr uint64_t kSeed = 3;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  std::vector<float> values;
  for (int i = 0; i < 40000; ++i) {
    auto bits = static_cast<uint32_t>(random());
    // Every third lies on or next to a midpoint of bf16, every other third of fp16.
    if (i % 3 == 0) bits = (bits & 0xffff0000U) | (0x7fffU + random() % 3);
    if (i % 3 == 1) bits = (bits & 0x8fffe000U) | 0x30000000U | (0x0fffU + random() % 3);
    const auto value = std::bit_cast<float>(bits);
    if (std::isfinite(value)) values.push_back(value);
  }
  ForEachSimdTarget([&] {
    const std::vector<uint16_t> bfloats = Encode16(Dtype::kBFloat16, values);
    const std::vector<uint16_t> halves = Encode16(Dtype::kFloat16, values);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(bfloats[i], NearestBFloat(values[i])) << values[i];
      ASSERT_EQ(halves[i], HalfFromFloat(values[i])) << values[i];
    }
  });
}

TEST(Dtype, InfinitiesStayAndOverflowBecomesThem) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<float> values = {INFINITY, -INFINITY, kMax, -kMax};
  ForEachSimdTarget([&] {
    const std::vector<uint16_t> bfloat = {0x7f80, 0xff80, 0x7f80, 0xff80};
    const std::vector<uint16_t> half = {0x7c00, 0xfc00, 0x7c00, 0xfc00};
    EXPECT_EQ(Encode16(Dtype::kBFloat16, values), bfloat);
    EXPECT_EQ(Encode16(Dtype::kFloat16, values), half);
  });
}

TEST(Dtype, AnyCountAndAlignmentGivesTheSameElements) {
  ForEachSimdTarget([] {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      for (const size_t count : {0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 100}) {
        std::vector<float> values(count);
        for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) - 8;
        for (size_t offset = 0; offset < 4; ++offset) {
          std::vector<std::byte> bytes(offset + count * DtypeBytes(dtype) + 1, std::byte{0x5a});
          FromFloat(dtype, values.data(), count, bytes.data() + offset);
          EXPECT_EQ(bytes.back(), std::byte{0x5a}) << "wrote past the end";
          std::vector<float> back(count + 1, -1.5F);
          ToFloat(dtype, bytes.data() + offset, count, back.data());
          EXPECT_EQ(back.back(), -1.5F) << "wrote past the end";
          back.pop_back();
          EXPECT_EQ(back, values);
        }
      }
    }
  });
}

TEST(Dtype, OneElementThatIsNotFiniteIsFoundAnywhere) {
  ForEachSimdTarget([] {
    EXPECT_TRUE(AllFinite(nullptr, 0));
    for (const size_t count : {1, 15, 16, 17, 40}) {
      std::vector<float> values(count, std::numeric_limits<float>::max());
      EXPECT_TRUE(AllFinite(values.data(), count));
      for (size_t i = 0; i < count; ++i) {
        for (const float bad : {INFINITY, -INFINITY, NAN}) {
          values[i] = bad;
          EXPECT_FALSE(AllFinite(values.data(), count)) << i << " of " << count;
        }
        values[i] = 0;
      }
    }
  });
}

TEST(Dtype, NamesAreDistinct) {
  EXPECT_EQ(DtypeName(Dtype::kFloat32), "fp32");
  EXPECT_EQ(DtypeName(Dtype::kBFloat16), "bf16");
  EXPECT_EQ(DtypeName(Dtype::kFloat16), "fp16");
}

}  // namespace
}  // namespace terrace::attention
