#include "attention/score_index.h"

#include <bit>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/half.h"

// The order matters: every target sees what follows foreach_target.h anew.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/score_index.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "attention/dtype-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

// low[c] and high[c] over the keys of a block of rows; high[c] is NaN when a key is not finite.
template <Dtype kDtype>
void ChannelBoundsOf(const IndexLayout& layout, const std::byte* rows, float* low, float* high) {
  // head_dim is a multiple of 8, so eight lanes leave no remainder.
  const hn::CappedTag<float, 8> d;
  const size_t row_bytes = 2 * layout.head_dim * DtypeBytes(kDtype);
  for (size_t c = 0; c < static_cast<size_t>(layout.head_dim); c += hn::Lanes(d)) {
    const std::byte* const keys = rows + c * DtypeBytes(kDtype);
    auto min = LoadFloat<kDtype>(d, keys);
    auto max = min;
    // Zero, or NaN from a key that is not finite, which minimum and maximum may lose.
    auto poison = hn::Sub(min, min);
    for (int t = 1; t < layout.block_tokens; ++t) {
      const auto key = LoadFloat<kDtype>(d, keys + t * row_bytes);
      min = hn::Min(min, key);
      max = hn::Max(max, key);
      poison = hn::Add(poison, hn::Sub(key, key));
    }
    hn::StoreU(min, d, low + c);
    hn::StoreU(hn::Add(max, poison), d, high + c);
  }
}

void ChannelBounds(const IndexLayout& layout, const std::byte* rows, float* low, float* high) {
  switch (layout.dtype) {
    case Dtype::kFloat32:
      return ChannelBoundsOf<Dtype::kFloat32>(layout, rows, low, high);
    case Dtype::kBFloat16:
      return ChannelBoundsOf<Dtype::kBFloat16>(layout, rows, low, high);
    case Dtype::kFloat16:
      return ChannelBoundsOf<Dtype::kFloat16>(layout, rows, low, high);
  }
}

// quads[t / 4][c] = the nearest codes of the keys of channel c in rows t, t + 1, t + 2 and t + 3,
// the first in the low byte; 0 where the scale is 0.
template <Dtype kDtype>
void QuantiseOf(const IndexLayout& layout, const std::byte* rows, const float* scale,
                const float* minimum, uint32_t* quads) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const auto channels = static_cast<size_t>(layout.head_dim);
  const size_t row_bytes = 2 * channels * DtypeBytes(kDtype);
  const auto zero = hn::Zero(d);
  const auto top = hn::Set(d, 255.0F);
  for (size_t c = 0; c < channels; c += hn::Lanes(d)) {
    const std::byte* keys = rows + c * DtypeBytes(kDtype);
    const auto step = hn::LoadU(d, scale + c);
    const auto base = hn::LoadU(d, minimum + c);
    const auto flat = hn::Eq(step, zero);
    const auto next = [&] {
      const auto offset = hn::Sub(LoadFloat<kDtype>(d, keys), base);
      keys += row_bytes;
      const auto steps = hn::IfThenZeroElse(flat, hn::Div(offset, step));
      return hn::BitCast(du, hn::NearestInt(hn::Min(hn::Max(steps, zero), top)));
    };
    for (int t = 0; t < layout.block_tokens; t += 4) {
      auto quad = next();
      quad = hn::Or(quad, hn::ShiftLeft<8>(next()));
      quad = hn::Or(quad, hn::ShiftLeft<16>(next()));
      quad = hn::Or(quad, hn::ShiftLeft<24>(next()));
      hn::StoreU(quad, du, quads + t / 4 * channels + c);
    }
  }
}

void Quantise(const IndexLayout& layout, const std::byte* rows, const float* scale,
              const float* minimum, uint32_t* quads) {
  switch (layout.dtype) {
    case Dtype::kFloat32:
      return QuantiseOf<Dtype::kFloat32>(layout, rows, scale, minimum, quads);
    case Dtype::kBFloat16:
      return QuantiseOf<Dtype::kBFloat16>(layout, rows, scale, minimum, quads);
    case Dtype::kFloat16:
      return QuantiseOf<Dtype::kFloat16>(layout, rows, scale, minimum, quads);
  }
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {
namespace {

HWY_EXPORT(ChannelBounds);
HWY_EXPORT(Quantise);

// out: [columns][rows], from in: [rows] lines `line_bytes` apart with `columns` elements each.
template <typename T>
void Transpose(const std::byte* in, size_t line_bytes, size_t rows, size_t columns,
               std::byte* out) {
  for (size_t column = 0; column < columns; ++column) {
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(out + (column * rows + row) * sizeof(T),
                  in + row * line_bytes + column * sizeof(T), sizeof(T));
    }
  }
}

void EncodeExact(const IndexLayout& layout, const std::byte* rows, std::byte* piece) {
  const size_t key_bytes = layout.head_dim * DtypeBytes(layout.dtype);
  const auto transpose =
      DtypeBytes(layout.dtype) == 4 ? &Transpose<uint32_t> : &Transpose<uint16_t>;
  transpose(rows, 2 * key_bytes, layout.block_tokens, layout.head_dim, piece);
}

// The smallest half so that minimum + 255 * scale reaches `high`.
uint16_t ScaleOf(float minimum, float high) {
  const double step = (static_cast<double>(high) - minimum) / 255;
  const auto narrow = static_cast<float>(step);
  // The next float upwards where that rounded down.
  return HalfAbove(std::bit_cast<float>(std::bit_cast<uint32_t>(narrow) + int{narrow < step}));
}

absl::Status EncodeInt8(const IndexLayout& layout, const std::byte* rows, std::byte* piece) {
  const auto channels = static_cast<size_t>(layout.head_dim);
  const auto tokens = static_cast<size_t>(layout.block_tokens);
  // Of the thread: a block is encoded in microseconds.
  thread_local std::vector<float> bounds;
  thread_local std::vector<uint32_t> quads;
  bounds.resize(3 * channels);
  quads.resize(tokens / 4 * channels);
  float* const minimum = bounds.data();
  float* const high = minimum + channels;
  float* const scale = high + channels;
  HWY_DYNAMIC_DISPATCH(ChannelBounds)(layout, rows, minimum, high);
  std::byte* params = piece + channels * tokens;
  for (size_t c = 0; c < channels; ++c) {
    // Written so that NaN fails too.
    if (!(minimum[c] >= -kHalfMax && high[c] <= kHalfMax)) {
      return absl::OutOfRangeError(absl::StrCat("int8 score index: channel ", c, " spans [",
                                                minimum[c], ", ", high[c], "], allowed is [",
                                                -kHalfMax, ", ", kHalfMax, "]"));
    }
    const uint16_t low_half = HalfBelow(minimum[c]);
    minimum[c] = FloatFromHalf(low_half);
    const uint16_t halves[2] = {ScaleOf(minimum[c], high[c]), low_half};
    scale[c] = FloatFromHalf(halves[0]);
    std::memcpy(params + c * sizeof(halves), halves, sizeof(halves));
  }
  HWY_DYNAMIC_DISPATCH(Quantise)(layout, rows, scale, minimum, quads.data());
  // Four codes at a time: they follow each other in the piece as they do in a quad.
  Transpose<uint32_t>(reinterpret_cast<const std::byte*>(quads.data()), channels * sizeof(uint32_t),
                      tokens / 4, channels, piece);
  return absl::OkStatus();
}

}  // namespace

absl::Status EncodeBlock(const IndexLayout& layout, const std::byte* rows, std::byte* piece) {
  if (layout.format == IndexFormat::kInt8) return EncodeInt8(layout, rows, piece);
  EncodeExact(layout, rows, piece);
  return absl::OkStatus();
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
