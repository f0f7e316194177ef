#include "attention/dtype.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "attention/half.h"

// The order matters: every target sees what follows foreach_target.h anew.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/dtype.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "attention/dtype-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

void ToFloat(Dtype dtype, const std::byte* in, size_t count, float* out) {
  switch (dtype) {
    case Dtype::kFloat32:
      if (count > 0) std::memcpy(out, in, count * sizeof(float));
      return;
    case Dtype::kBFloat16:
      return LoadFloats<Dtype::kBFloat16>(in, count, out);
    case Dtype::kFloat16:
      return LoadFloats<Dtype::kFloat16>(in, count, out);
  }
}

template <class D>
HWY_INLINE void StoreBFloat16(D d, const std::byte* in, std::byte* out) {
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<uint16_t, D> du16;
  const auto value = LoadAnywhere<float>(d, in);
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffU)));
  // Rounding could carry a NaN into infinity; its quiet bit is set instead.
  const auto quiet = hn::Or(bits, hn::Set(du, 1U << 22));
  const auto chosen = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), quiet, rounded);
  const hn::Rebind<int32_t, D> di;
  const auto narrow = hn::DemoteTo(du16, hn::BitCast(di, hn::ShiftRight<16>(chosen)));
  HWY_ALIGN uint16_t lanes[hn::MaxLanes(D())];
  hn::StoreU(narrow, du16, lanes);
  std::memcpy(out, lanes, hn::Lanes(d) * sizeof(uint16_t));
}

template <class D>
HWY_INLINE void StoreFloat16(D d, const std::byte* in, std::byte* out) {
#if HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  const hn::Rebind<hwy::float16_t, D> d16;
  const hn::Rebind<uint16_t, D> du16;
  HWY_ALIGN uint16_t lanes[hn::MaxLanes(D())];
  hn::StoreU(hn::BitCast(du16, hn::DemoteTo(d16, LoadAnywhere<float>(d, in))), du16, lanes);
  std::memcpy(out, lanes, hn::Lanes(d) * sizeof(uint16_t));
#else
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    float value;
    std::memcpy(&value, in + i * sizeof(value), sizeof(value));
    const uint16_t half = HalfFromFloat(value);
    std::memcpy(out + i * sizeof(half), &half, sizeof(half));
  }
#endif
}

// in: floats at any address.
void FromFloat(Dtype dtype, const std::byte* in, size_t count, std::byte* out) {
  if (dtype == Dtype::kFloat32) {
    if (count > 0) std::memcpy(out, in, count * sizeof(float));
    return;
  }
  const bool bfloat = dtype == Dtype::kBFloat16;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    bfloat ? StoreBFloat16(d, in + 4 * i, out + 2 * i) : StoreFloat16(d, in + 4 * i, out + 2 * i);
  }
  for (; i < count; ++i) {
    bfloat ? StoreBFloat16(OneLane(), in + 4 * i, out + 2 * i)
           : StoreFloat16(OneLane(), in + 4 * i, out + 2 * i);
  }
}

// The largest magnitude as bits: without their sign, bits of floats order as their magnitudes do,
// infinity above all numbers and NaN above infinity.
template <typename T>
T LargestBits(const std::byte* in, size_t count) {
  constexpr T kMagnitude = hwy::LimitsMax<T>() >> 1;
  const hn::ScalableTag<T> d;
  const size_t lanes = hn::Lanes(d);
  const auto mask = hn::Set(d, kMagnitude);
  auto most = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    most = hn::Max(most, hn::And(mask, LoadAnywhere<T>(d, in + i * sizeof(T))));
  }
  HWY_ALIGN T each[hn::MaxLanes(d)];
  hn::Store(most, d, each);
  T largest = *std::max_element(each, each + lanes);
  for (; i < count; ++i) {
    T bits;
    std::memcpy(&bits, in + i * sizeof(T), sizeof(T));
    largest = std::max<T>(largest, bits & kMagnitude);
  }
  return largest;
}

float LargestMagnitude(Dtype dtype, const std::byte* in, size_t count) {
  switch (dtype) {
    case Dtype::kFloat32:
      return std::bit_cast<float>(LargestBits<uint32_t>(in, count));
    case Dtype::kBFloat16:
      return std::bit_cast<float>(uint32_t{LargestBits<uint16_t>(in, count)} << 16);
    case Dtype::kFloat16:
      return FloatFromHalf(LargestBits<uint16_t>(in, count));
  }
  return NAN;
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {

HWY_EXPORT(ToFloat);
HWY_EXPORT(FromFloat);
HWY_EXPORT(LargestMagnitude);

std::string_view DtypeName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "fp32";
    case Dtype::kBFloat16:
      return "bf16";
    case Dtype::kFloat16:
      return "fp16";
  }
  return "unknown";
}

void ToFloat(Dtype dtype, const std::byte* in, size_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(ToFloat)(dtype, in, count, out);
}

void FromFloat(Dtype dtype, const float* in, size_t count, std::byte* out) {
  HWY_DYNAMIC_DISPATCH(FromFloat)(dtype, reinterpret_cast<const std::byte*>(in), count, out);
}

void Convert(Dtype from, const std::byte* in, size_t count, Dtype to, std::byte* out) {
  if (from == to) {
    if (count > 0) std::memcpy(out, in, count * DtypeBytes(from));
    return;
  }
  if (from == Dtype::kFloat32) {
    HWY_DYNAMIC_DISPATCH(FromFloat)(to, in, count, out);
    return;
  }
  std::array<float, 256> floats;
  for (size_t first = 0; first < count; first += floats.size()) {
    const size_t part = std::min(floats.size(), count - first);
    ToFloat(from, in + first * DtypeBytes(from), part, floats.data());
    FromFloat(to, floats.data(), part, out + first * DtypeBytes(to));
  }
}

float LargestMagnitude(Dtype dtype, const std::byte* in, size_t count) {
  return HWY_DYNAMIC_DISPATCH(LargestMagnitude)(dtype, in, count);
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
