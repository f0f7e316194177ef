// IEEE 754 binary16 as bits, one value at a time.
#ifndef TERRACE_ATTENTION_HALF_H_
#define TERRACE_ATTENTION_HALF_H_

#include <bit>
#include <cmath>
#include <cstdint>

namespace terrace::attention {

// The largest finite binary16.
inline constexpr float kHalfMax = 65504.0F;

inline float FloatFromHalf(uint16_t half) {
  constexpr uint32_t kExponent = 0x7c00U << 13;
  const uint32_t sign = (half & 0x8000U) << 16;
  uint32_t bits = (half & 0x7fffU) << 13;
  const uint32_t exponent = bits & kExponent;
  bits += (127U - 15U) << 23;
  if (exponent == kExponent) {
    bits += (128U - 16U) << 23;
  } else if (exponent == 0) {
    // One exponent up gives the implicit bit that a subnormal lacks; then it is taken off again.
    constexpr uint32_t kSmallest = 113U << 23;
    const float value = std::bit_cast<float>(bits + (1U << 23)) - std::bit_cast<float>(kSmallest);
    bits = std::bit_cast<uint32_t>(value);
  }
  return std::bit_cast<float>(bits | sign);
}

// Rounds to nearest, ties to even; beyond the range to infinity. NaN becomes a quiet NaN.
inline uint16_t HalfFromFloat(float value) {
  const uint32_t all = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((all >> 16) & 0x8000U);
  uint32_t bits = all & 0x7fffffffU;
  if (bits >= (127U + 16U) << 23) {
    return sign | (bits > 0x7f800000U ? 0x7e00U : 0x7c00U);
  }
  if (bits < 113U << 23) {
    // The sum with 1/2 puts the last place of a subnormal half on the last place of a float, so
    // that the adder rounds.
    constexpr uint32_t kHalf = 126U << 23;
    const float aligned = std::bit_cast<float>(bits) + std::bit_cast<float>(kHalf);
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - kHalf));
  }
  const uint32_t odd = (bits >> 13) & 1U;
  bits -= (127U - 15U) << 23;
  return static_cast<uint16_t>(sign | ((bits + 0xfffU + odd) >> 13));
}

// The largest half not above `value`.
// Requires: |value| <= kHalfMax.
inline uint16_t HalfBelow(float value) {
  const uint16_t half = HalfFromFloat(value);
  // Without a branch: rounding goes either way as often. Bits of a negative half count downwards.
  const int below = (half & 0x8000U) != 0 ? 1 : -1;
  return static_cast<uint16_t>(half + below * int{FloatFromHalf(half) > value});
}

// The smallest half not below `value`.
// Requires: 0 <= value <= kHalfMax.
inline uint16_t HalfAbove(float value) {
  const uint16_t half = HalfFromFloat(value);
  return static_cast<uint16_t>(half + int{FloatFromHalf(half) < value});
}

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_HALF_H_
