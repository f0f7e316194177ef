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

// Elements of `dtype` with those values, at an odd address.
std::vector<std::byte> Stored(Dtype dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(1 + values.size() * DtypeBytes(dtype));
  FromFloat(dtype, values.data(), values.size(), bytes.data() + 1);
  return bytes;
}

TEST(Dtype, TheLargestMagnitudeIsFoundAnywhere) {
  ForEachSimdTarget([] {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      EXPECT_EQ(LargestMagnitude(dtype, nullptr, 0), 0.0F);
      for (const size_t count : {1, 7, 8, 31, 32, 33, 70}) {
        for (size_t i = 0; i < count; ++i) {
          std::vector<float> values(count, -1.0F);
          for (const float largest : {2.5F, -2.5F, INFINITY, -INFINITY}) {
            values[i] = largest;
            const std::vector<std::byte> bytes = Stored(dtype, values);
            EXPECT_EQ(LargestMagnitude(dtype, bytes.data() + 1, count), std::abs(largest))
                << DtypeName(dtype) << ", " << i << " of " << count;
          }
          // NaN beside infinity.
          values[count - 1 - i] = INFINITY;
          values[i] = NAN;
          const std::vector<std::byte> bytes = Stored(dtype, values);
          EXPECT_TRUE(std::isnan(LargestMagnitude(dtype, bytes.data() + 1, count)))
              << DtypeName(dtype) << ", " << i << " of " << count;
        }
      }
    }
  });
}

TEST(Dtype, TheLargestMagnitudeOfOneHalfIsItsOwn) {
  ForEachSimdTarget([] {
    for (const uint16_t bits : AllPatterns()) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&bits);
      const float half = FloatFromHalf(bits);
      const float found = LargestMagnitude(Dtype::kFloat16, bytes, 1);
      ASSERT_EQ(std::isnan(found), std::isnan(half)) << bits;
      if (std::isnan(half)) continue;
      ASSERT_EQ(found, std::abs(half)) << bits;
    }
  });
}

TEST(Dtype, ConvertRoundsAsTheFloatsBetweenDo) {
  ForEachSimdTarget([] {
    for (const size_t count : {0, 1, 17, 255, 256, 257, 600}) {
      std::vector<float> values(count);
      for (size_t i = 0; i < count; ++i) values[i] = std::ldexp(1.0F + i / 7.0F, i % 29 - 14.0F);
      for (const Dtype from : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
        const std::vector<std::byte> in = Stored(from, values);
        std::vector<float> floats(count);
        ToFloat(from, in.data() + 1, count, floats.data());
        for (const Dtype to : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
          std::vector<std::byte> out(1 + count * DtypeBytes(to));
          Convert(from, in.data() + 1, count, to, out.data() + 1);
          EXPECT_EQ(out, Stored(to, floats)) << DtypeName(from) << " to " << DtypeName(to);
        }
      }
    }
  });
}

TEST(Dtype, ConvertToTheSameTypeKeepsEveryBit) {
  const std::vector<uint16_t> bits = AllPatterns();
  std::vector<uint16_t> out(bits.size());
  for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
    Convert(dtype, reinterpret_cast<const std::byte*>(bits.data()), bits.size(), dtype,
            reinterpret_cast<std::byte*>(out.data()));
    EXPECT_EQ(out, bits);
  }
}

TEST(Dtype, NamesAreDistinct) {
  EXPECT_EQ(DtypeName(Dtype::kFloat32), "fp32");
  EXPECT_EQ(DtypeName(Dtype::kBFloat16), "bf16");
  EXPECT_EQ(DtypeName(Dtype::kFloat16), "fp16");
}

}  // namespace
}  // namespace terrace::attention
