// Loads of stored elements as float vectors, compiled once per instruction set.
//
// Include after hwy/foreach_target.h, inside no namespace. The guard toggles so that every target
// gets its own copy.
#if defined(TERRACE_ATTENTION_DTYPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TERRACE_ATTENTION_DTYPE_INL_H_
#undef TERRACE_ATTENTION_DTYPE_INL_H_
#else
#define TERRACE_ATTENTION_DTYPE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "attention/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// One lane: what is left over when a count is not a multiple of the vector.
using OneLane = hn::CappedTag<float, 1>;

// Lanes(d) elements of T from any address.
template <typename T, class D>
HWY_INLINE hn::VFromD<hn::Rebind<T, D>> LoadAnywhere(D d, const std::byte* in) {
  (void)d;
  const hn::Rebind<T, D> dt;
  if constexpr (hn::MaxLanes(D()) == 1) {
    T value;
    std::memcpy(&value, in, sizeof(T));
    return hn::Set(dt, value);
  } else {
    return hn::LoadU(dt, reinterpret_cast<const T*>(in));
  }
}

// Halves in the low 16 bits of each lane, the others zero.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V FloatFromHalfBits(D d, hn::VFromD<hn::Rebind<uint32_t, D>> half) {
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<int32_t, D> di;
  const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(du, 0x8000U)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(du, 0x7fffU)));
  const auto rebias = hn::Set(du, 112U << 23);
  const auto smallest = hn::BitCast(d, hn::Set(du, 113U << 23));
  const V normal = hn::BitCast(d, hn::Add(magnitude, rebias));
  const V subnormal =
      hn::Sub(hn::BitCast(d, hn::Add(magnitude, hn::Set(du, 113U << 23))), smallest);
  const V special = hn::BitCast(d, hn::Add(hn::Add(magnitude, rebias), rebias));
  const auto signed_magnitude = hn::BitCast(di, magnitude);
  const auto is_subnormal = hn::Lt(signed_magnitude, hn::Set(di, 1 << 23));
  const auto is_special = hn::Gt(signed_magnitude, hn::Set(di, (0x7c00 << 13) - 1));
  V value = hn::IfThenElse(hn::RebindMask(d, is_subnormal), subnormal, normal);
  value = hn::IfThenElse(hn::RebindMask(d, is_special), special, value);
  return hn::Or(value, hn::BitCast(d, sign));
}

// Lanes(d) stored elements from any address as floats.
template <Dtype kDtype, class D>
HWY_INLINE hn::VFromD<D> LoadFloat(D d, const std::byte* in) {
  const hn::Rebind<uint32_t, D> du;
  if constexpr (kDtype == Dtype::kFloat32) {
    return LoadAnywhere<float>(d, in);
  } else if constexpr (kDtype == Dtype::kBFloat16) {
    const auto bits = hn::PromoteTo(du, LoadAnywhere<uint16_t>(d, in));
    return hn::BitCast(d, hn::ShiftLeft<16>(bits));
  } else {
#if HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
    const hn::Rebind<hwy::float16_t, D> d16;
    return hn::PromoteTo(d, hn::BitCast(d16, LoadAnywhere<uint16_t>(d, in)));
#else
    return FloatFromHalfBits(d, hn::PromoteTo(du, LoadAnywhere<uint16_t>(d, in)));
#endif
  }
}

template <Dtype kDtype>
HWY_INLINE void LoadFloats(const std::byte* in, size_t count, float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(LoadFloat<kDtype>(d, in + i * DtypeBytes(kDtype)), d, out + i);
  }
  for (; i < count; ++i) {
    hn::StoreU(LoadFloat<kDtype>(OneLane(), in + i * DtypeBytes(kDtype)), OneLane(), out + i);
  }
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
