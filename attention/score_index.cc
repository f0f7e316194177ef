#include "attention/score_index.h"

#include <algorithm>
#include <cmath>
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

// low[c] and high[c] over `tokens` rows of `channels` keys; high[c] is NaN when a key is not
// finite. keys: [tokens][channels].
void ChannelBounds(const float* keys, size_t tokens, size_t channels, float* low, float* high) {
  // head_dim is a multiple of 8, so eight lanes leave no remainder.
  const hn::CappedTag<float, 8> d;
  for (size_t c = 0; c < channels; c += hn::Lanes(d)) {
    auto min = hn::LoadU(d, keys + c);
    auto max = min;
    // Zero, or NaN from a key that is not finite, which minimum and maximum may lose.
    auto poison = hn::Sub(min, min);
    for (size_t t = 1; t < tokens; ++t) {
      const auto key = hn::LoadU(d, keys + t * channels + c);
      min = hn::Min(min, key);
      max = hn::Max(max, key);
      poison = hn::Add(poison, hn::Sub(key, key));
    }
    hn::StoreU(min, d, low + c);
    hn::StoreU(hn::Add(max, poison), d, high + c);
  }
}

// codes[t][c] = nearest code of keys[t][c]; 0 where the scale is 0.
void Quantise(const float* keys, size_t tokens, size_t channels, const float* scale,
              const float* minimum, uint8_t* codes) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<uint8_t, decltype(d)> du8;
  const auto zero = hn::Zero(d);
  const auto top = hn::Set(d, 255.0F);
  for (size_t c = 0; c < channels; c += hn::Lanes(d)) {
    const auto step = hn::LoadU(d, scale + c);
    const auto base = hn::LoadU(d, minimum + c);
    const auto flat = hn::Eq(step, zero);
    for (size_t t = 0; t < tokens; ++t) {
      const auto offset = hn::Sub(hn::LoadU(d, keys + t * channels + c), base);
      const auto steps = hn::IfThenZeroElse(flat, hn::Div(offset, step));
      const auto code = hn::NearestInt(hn::Min(hn::Max(steps, zero), top));
      hn::StoreU(hn::DemoteTo(du8, hn::BitCast(di, code)), du8, codes + t * channels + c);
    }
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
  auto narrow = static_cast<float>(step);
  if (narrow < step) narrow = std::nextafter(narrow, INFINITY);
  return HalfAbove(narrow);
}

struct BlockKeys {
  size_t tokens;
  size_t channels;
  std::vector<float> keys;  // [tokens][channels]
};

BlockKeys LoadKeys(const IndexLayout& layout, const std::byte* rows) {
  BlockKeys block{
      static_cast<size_t>(layout.block_tokens), static_cast<size_t>(layout.head_dim), {}};
  block.keys.resize(block.tokens * block.channels);
  const size_t row_bytes = 2 * block.channels * DtypeBytes(layout.dtype);
  for (size_t t = 0; t < block.tokens; ++t) {
    ToFloat(layout.dtype, rows + t * row_bytes, block.channels,
            block.keys.data() + t * block.channels);
  }
  return block;
}

absl::Status EncodeInt8(const IndexLayout& layout, const std::byte* rows, std::byte* piece) {
  const BlockKeys block = LoadKeys(layout, rows);
  std::vector<float> scale(block.channels);
  std::vector<float> minimum(block.channels);
  std::vector<float> high(block.channels);
  HWY_DYNAMIC_DISPATCH(ChannelBounds)
  (block.keys.data(), block.tokens, block.channels, minimum.data(), high.data());
  std::byte* params = piece + block.channels * block.tokens;
  for (size_t c = 0; c < block.channels; ++c) {
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
  std::vector<uint8_t> codes(block.tokens * block.channels);
  HWY_DYNAMIC_DISPATCH(Quantise)
  (block.keys.data(), block.tokens, block.channels, scale.data(), minimum.data(), codes.data());
  Transpose<uint8_t>(reinterpret_cast<const std::byte*>(codes.data()), block.channels, block.tokens,
                     block.channels, piece);
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
