#include "attention/dtype.h"

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
HWY_INLINE void StoreBFloat16(D d, const float* in, std::byte* out) {
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<uint16_t, D> du16;
  const auto value = hn::LoadU(d, in);
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
HWY_INLINE void StoreFloat16(D d, const float* in, std::byte* out) {
#if HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  const hn::Rebind<hwy::float16_t, D> d16;
  const hn::Rebind<uint16_t, D> du16;
  HWY_ALIGN uint16_t lanes[hn::MaxLanes(D())];
  hn::StoreU(hn::BitCast(du16, hn::DemoteTo(d16, hn::LoadU(d, in))), du16, lanes);
  std::memcpy(out, lanes, hn::Lanes(d) * sizeof(uint16_t));
#else
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    const uint16_t half = HalfFromFloat(in[i]);
    std::memcpy(out + i * sizeof(half), &half, sizeof(half));
  }
#endif
}

void FromFloat(Dtype dtype, const float* in, size_t count, std::byte* out) {
  if (dtype == Dtype::kFloat32) {
    if (count > 0) std::memcpy(out, in, count * sizeof(float));
    return;
  }
  const bool bfloat = dtype == Dtype::kBFloat16;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    bfloat ? StoreBFloat16(d, in + i, out + 2 * i) : StoreFloat16(d, in + i, out + 2 * i);
  }
  for (; i < count; ++i) {
    bfloat ? StoreBFloat16(OneLane(), in + i, out + 2 * i)
           : StoreFloat16(OneLane(), in + i, out + 2 * i);
  }
}

bool AllFinite(const float* values, size_t count) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    if (!hn::AllTrue(d, hn::IsFinite(hn::LoadU(d, values + i)))) return false;
  }
  for (; i < count; ++i) {
    if (!hn::AllTrue(OneLane(), hn::IsFinite(hn::LoadU(OneLane(), values + i)))) return false;
  }
  return true;
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {

HWY_EXPORT(ToFloat);
HWY_EXPORT(FromFloat);
HWY_EXPORT(AllFinite);

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
  HWY_DYNAMIC_DISPATCH(FromFloat)(dtype, in, count, out);
}

bool AllFinite(const float* values, size_t count) {
  return HWY_DYNAMIC_DISPATCH(AllFinite)(values, count);
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
