#include "attention/row_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/aligned_floats.h"
#include "attention/dtype.h"

// The order matters: every target sees what follows foreach_target.h anew.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/row_attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "attention/dtype-inl.h"
#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

#ifndef TERRACE_ATTENTION_ROW_ATTENTION_TILE_
#define TERRACE_ATTENTION_ROW_ATTENTION_TILE_
namespace terrace::attention {

// Rows that are converted together and then met by every query.
inline constexpr size_t kTileRows = 64;
// Query heads whose weights are held between the two products: 16 KiB.
inline constexpr size_t kPanelHeads = 64;

// Up to kTileRows rows as floats; rows that are not there are zero.
struct Tile {
  size_t head_dim = 0;
  // head_dim rounded up to whole cache lines.
  size_t padded_dim = 0;
  size_t rows = 0;
  // [head_dim][kTileRows].
  float* keys = nullptr;
  // [kTileRows][padded_dim]; columns past head_dim are zero.
  float* values = nullptr;
  // [kPanelHeads][kTileRows].
  float* weights = nullptr;
  // [4][padded_dim].
  float* mixed = nullptr;
  // A key of zeros, whatever the type: it stands in for rows that are not there.
  const std::byte* zeros = nullptr;
};

// Query heads that meet a tile: head i belongs to query i / group, and query j sees the first
// visible + j rows of the tile, none when that is not positive.
struct TileQueries {
  // [count][head_dim].
  const float* q = nullptr;
  SoftmaxState* states = nullptr;
  int64_t count = 0;
  int64_t group = 1;
  int64_t visible = 0;
  float scale = 1.0F;
};

}  // namespace terrace::attention
#endif

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

// Vectors of a row of accumulators: with four rows of them they and their operands fit the
// registers (32 with AVX-512, 16 before).
constexpr size_t kWide = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

#if HWY_TARGET != HWY_SCALAR
// Lanes 4b..4b+3 come from rows[4 * b], at `offset` bytes.
template <class D>
HWY_INLINE hn::VFromD<D> LoadFourthRows(D d, const std::byte* const* rows, size_t offset) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return LoadAnywhere<uint32_t>(d, rows[0] + offset);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, LoadFourthRows(half, rows + hn::MaxLanes(half), offset),
                       LoadFourthRows(half, rows, offset));
  }
}

// words[i] = the 32-bit words at byte `offset` + 4i of a vector of rows, for i in [0, 4).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE void TransposeWords(D d, const std::byte* const* rows, size_t offset, V (&words)[4]) {
  const hn::RepartitionToWide<D> d64;
  const V row0 = LoadFourthRows(d, rows, offset);
  const V row1 = LoadFourthRows(d, rows + 1, offset);
  const V row2 = LoadFourthRows(d, rows + 2, offset);
  const V row3 = LoadFourthRows(d, rows + 3, offset);
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, row0, row1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, row2, row3));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, row0, row1));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, row2, row3));
  words[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  words[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  words[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  words[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}
#endif

// out[c * kTileRows + i] = channel c of rows[i], for a vector of rows.
template <Dtype kDtype>
HWY_INLINE void TransposeKeys(const std::byte* const* rows, size_t channels, float* out) {
  const hn::ScalableTag<float> d;
#if HWY_TARGET == HWY_SCALAR
  for (size_t c = 0; c < channels; ++c) {
    hn::StoreU(LoadFloat<kDtype>(d, rows[0] + c * DtypeBytes(kDtype)), d, out + c * kTileRows);
  }
#else
  const hn::RebindToUnsigned<decltype(d)> du;
  // Channels in a 32-bit word: two 16-bit neighbours are moved as one and parted afterwards.
  constexpr size_t kInWord = 4 / DtypeBytes(kDtype);
  for (size_t c = 0; c < channels; c += 4 * kInWord) {
    hn::VFromD<decltype(du)> words[4];
    TransposeWords(du, rows, c * DtypeBytes(kDtype), words);
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      float* const to = out + (c + i * kInWord) * kTileRows;
      if constexpr (kDtype == Dtype::kFloat32) {
        hn::StoreU(hn::BitCast(d, words[i]), d, to);
      } else if constexpr (kDtype == Dtype::kBFloat16) {
        hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(words[i])), d, to);
        const auto upper = hn::And(words[i], hn::Set(du, 0xffff0000U));
        hn::StoreU(hn::BitCast(d, upper), d, to + kTileRows);
      } else {
        const auto lower = hn::And(words[i], hn::Set(du, 0xffffU));
        hn::StoreU(FloatFromHalfBits(d, lower), d, to);
        hn::StoreU(FloatFromHalfBits(d, hn::ShiftRight<16>(words[i])), d, to + kTileRows);
      }
    }
  }
#endif
}

HWY_INLINE void PrefetchRow(const std::byte* row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) hwy::Prefetch(row + i);
}

template <Dtype kDtype>
void LoadTileOf(const std::byte* const* rows, Tile& tile) {
  constexpr size_t kAhead = 16;
  const size_t lanes = hn::Lanes(hn::ScalableTag<float>());
  const size_t key_bytes = tile.head_dim * DtypeBytes(kDtype);
  for (size_t row = 0; row < tile.rows; ++row) {
    if (row + kAhead < tile.rows) PrefetchRow(rows[row + kAhead], 2 * key_bytes);
    float* const value = tile.values + row * tile.padded_dim;
    LoadFloats<kDtype>(rows[row] + key_bytes, tile.head_dim, value);
    std::fill(value + tile.head_dim, value + tile.padded_dim, 0.0F);
  }
  std::fill(tile.values + tile.rows * tile.padded_dim, tile.values + kTileRows * tile.padded_dim,
            0.0F);
  for (size_t row = 0; row < kTileRows; row += lanes) {
    const std::byte* sources[kLineFloats];
    for (size_t i = 0; i < lanes; ++i) {
      sources[i] = row + i < tile.rows ? rows[row + i] : tile.zeros;
    }
    TransposeKeys<kDtype>(sources, tile.head_dim, tile.keys + row);
  }
}

void LoadTile(Dtype dtype, const std::byte* const* rows, Tile& tile) {
  switch (dtype) {
    case Dtype::kFloat32:
      return LoadTileOf<Dtype::kFloat32>(rows, tile);
    case Dtype::kBFloat16:
      return LoadTileOf<Dtype::kBFloat16>(rows, tile);
    case Dtype::kFloat16:
      return LoadTileOf<Dtype::kFloat16>(rows, tile);
  }
}

// out[r][j] = Σ_i left[r][i] * right[i][j] for kRows rows and kVectors vectors of j. Each sum is
// taken in the order of i by one accumulator, whatever kRows and kVectors are: this is what makes
// a query's result independent of its company.
template <int kRows, int kVectors>
HWY_INLINE void MultiplyBlock(const float* left, size_t left_stride, size_t inner,
                              const float* right, size_t right_stride, float* out,
                              size_t out_stride) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  hn::VFromD<decltype(d)> sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sum[r][j] = hn::Zero(d);
  }
  for (size_t i = 0; i < inner; ++i) {
    hn::VFromD<decltype(d)> row[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) row[j] = hn::LoadU(d, right + i * right_stride + j * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, left[r * left_stride + i]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[r][j] = hn::MulAdd(factor, row[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      hn::StoreU(sum[r][j], d, out + r * out_stride + j * lanes);
    }
  }
}

// The same for `columns` columns, a multiple of the vector.
template <int kRows>
HWY_INLINE void Multiply(const float* left, size_t left_stride, size_t inner, const float* right,
                         size_t columns, size_t right_stride, float* out, size_t out_stride) {
  const size_t lanes = hn::Lanes(hn::ScalableTag<float>());
  size_t j = 0;
  for (; j + kWide * lanes <= columns; j += kWide * lanes) {
    MultiplyBlock<kRows, kWide>(left, left_stride, inner, right + j, right_stride, out + j,
                                out_stride);
  }
  for (; j < columns; j += lanes) {
    MultiplyBlock<kRows, 1>(left, left_stride, inner, right + j, right_stride, out + j, out_stride);
  }
}

// Turns dot products with a tile into weights under the state's maximum, which may grow; returns
// the factor that brings the state's output to it. Rows from `visible` on get weight 0.
HWY_NOINLINE float Weigh(float* dots, int64_t visible, float scale, SoftmaxState& state) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto factor = hn::Set(d, scale);
  auto largest = infinity;
  for (size_t t = 0; t < kTileRows; t += lanes) {
    auto logit = hn::Mul(hn::LoadU(d, dots + t), factor);
    if (static_cast<int64_t>(t + lanes) > visible) {
      const size_t left =
          static_cast<size_t>(std::max<int64_t>(0, visible - static_cast<int64_t>(t)));
      logit = hn::IfThenElse(hn::FirstN(d, left), logit, infinity);
    }
    largest = hn::Max(largest, logit);
    hn::StoreU(logit, d, dots + t);
  }
  const float max = std::max(state.max, hn::GetLane(hn::MaxOfLanes(d, largest)));
  const auto shift = hn::Set(d, max);
  auto sum = hn::Zero(d);
  for (size_t t = 0; t < kTileRows; t += lanes) {
    const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, dots + t), shift));
    sum = hn::Add(sum, weight);
    hn::StoreU(weight, d, dots + t);
  }
  const float keep = state.empty() ? 0.0F : std::exp(state.max - max);
  state.sum = state.sum * keep + hn::GetLane(hn::SumOfLanes(d, sum));
  state.max = max;
  return keep;
}

// output = output * keep + mixed.
HWY_INLINE void AddMixed(const float* mixed, float keep, size_t head_dim, float* output) {
  // head_dim is a multiple of 8, so eight lanes leave no remainder.
  const hn::CappedTag<float, 8> d;
  const auto factor = hn::Set(d, keep);
  for (size_t c = 0; c < head_dim; c += hn::Lanes(d)) {
    const auto sum = hn::MulAdd(hn::LoadU(d, output + c), factor, hn::LoadU(d, mixed + c));
    hn::StoreU(sum, d, output + c);
  }
}

template <int kRows>
HWY_INLINE void DotHeads(const Tile& tile, const TileQueries& queries, int64_t head,
                         float* weights) {
  Multiply<kRows>(queries.q + head * tile.head_dim, tile.head_dim, tile.head_dim, tile.keys,
                  kTileRows, kTileRows, weights, kTileRows);
}

template <int kRows>
HWY_INLINE void MixHeads(const Tile& tile, const TileQueries& queries, int64_t head,
                         const float* weights, const float* keep) {
  Multiply<kRows>(weights, kTileRows, kTileRows, tile.values, tile.padded_dim, tile.padded_dim,
                  tile.mixed, tile.padded_dim);
  for (int r = 0; r < kRows; ++r) {
    AddMixed(tile.mixed + r * tile.padded_dim, keep[r], tile.head_dim,
             queries.states[head + r].output);
  }
}

// Adds the tile to heads [first, first + count) of the queries, all of which see some of it.
void AttendPanel(const Tile& tile, const TileQueries& queries, int64_t first, int64_t count) {
  float keep[kPanelHeads];
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    DotHeads<4>(tile, queries, first + i, tile.weights + i * kTileRows);
  }
  for (; i < count; ++i) DotHeads<1>(tile, queries, first + i, tile.weights + i * kTileRows);
  for (i = 0; i < count; ++i) {
    const int64_t visible = queries.visible + (first + i) / queries.group;
    keep[i] = Weigh(tile.weights + i * kTileRows, std::min<int64_t>(visible, tile.rows),
                    queries.scale, queries.states[first + i]);
  }
  for (i = 0; i + 4 <= count; i += 4) {
    MixHeads<4>(tile, queries, first + i, tile.weights + i * kTileRows, keep + i);
  }
  for (; i < count; ++i) {
    MixHeads<1>(tile, queries, first + i, tile.weights + i * kTileRows, keep + i);
  }
}

void AttendTile(const Tile& tile, const TileQueries& queries) {
  // The tile lies wholly in the future of the queries before this one.
  const int64_t blind = std::max<int64_t>(0, 1 - queries.visible);
  constexpr auto kPanel = static_cast<int64_t>(kPanelHeads);
  for (int64_t first = blind * queries.group; first < queries.count; first += kPanel) {
    AttendPanel(tile, queries, first, std::min(kPanel, queries.count - first));
  }
}

template <Dtype kDtype>
void AddValuesOf(const std::byte* rows, size_t row_count, size_t head_dim, double* sum) {
  const hn::CappedTag<double, 8> dd;
  const hn::Rebind<float, decltype(dd)> df;
  const size_t value_bytes = head_dim * DtypeBytes(kDtype);
  // A sum is loaded and stored once for so many rows, which are still added one after the other.
  constexpr size_t kRows = 8;
  for (size_t first = 0; first < row_count; first += kRows) {
    const size_t end = std::min(row_count, first + kRows);
    for (size_t c = 0; c < head_dim; c += hn::Lanes(dd)) {
      auto total = hn::LoadU(dd, sum + c);
      for (size_t row = first; row < end; ++row) {
        const std::byte* const value = rows + (2 * row + 1) * value_bytes;
        total = hn::Add(total,
                        hn::PromoteTo(dd, LoadFloat<kDtype>(df, value + c * DtypeBytes(kDtype))));
      }
      hn::StoreU(total, dd, sum + c);
    }
  }
}

void AddValues(Dtype dtype, const std::byte* rows, size_t row_count, size_t head_dim, double* sum) {
  switch (dtype) {
    case Dtype::kFloat32:
      return AddValuesOf<Dtype::kFloat32>(rows, row_count, head_dim, sum);
    case Dtype::kBFloat16:
      return AddValuesOf<Dtype::kBFloat16>(rows, row_count, head_dim, sum);
    case Dtype::kFloat16:
      return AddValuesOf<Dtype::kFloat16>(rows, row_count, head_dim, sum);
  }
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {
namespace {

HWY_EXPORT(LoadTile);
HWY_EXPORT(AttendTile);
HWY_EXPORT(AddValues);

Tile NewTile(const HeadShape& shape, RowScratch& scratch) {
  Tile tile;
  tile.head_dim = static_cast<size_t>(shape.head_dim);
  tile.padded_dim = WholeLines(tile.head_dim);
  tile.keys = AlignedFloats(scratch.keys, tile.head_dim * kTileRows);
  tile.values = AlignedFloats(scratch.values, kTileRows * tile.padded_dim);
  tile.mixed = AlignedFloats(scratch.mixed, 5 * tile.padded_dim);
  float* const zeros = tile.mixed + 4 * tile.padded_dim;
  std::fill_n(zeros, tile.padded_dim, 0.0F);
  tile.zeros = reinterpret_cast<const std::byte*>(zeros);
  tile.weights = AlignedFloats(scratch.logits, kPanelHeads * kTileRows);
  return tile;
}

}  // namespace

void AttendRows(const HeadShape& shape, const float* q, absl::Span<const std::byte* const> rows,
                RowScratch& scratch, absl::Span<SoftmaxState> states) {
  Tile tile = NewTile(shape, scratch);
  TileQueries queries{q, states.data(), shape.group, shape.group, 0, shape.scale};
  for (size_t done = 0; done < rows.size(); done += kTileRows) {
    tile.rows = std::min(kTileRows, rows.size() - done);
    HWY_DYNAMIC_DISPATCH(LoadTile)(shape.dtype, rows.data() + done, tile);
    queries.visible = static_cast<int64_t>(tile.rows);
    HWY_DYNAMIC_DISPATCH(AttendTile)(tile, queries);
  }
}

void AttendBlock(const HeadShape& shape, const float* q, int64_t queries, int64_t query_position,
                 const std::byte* rows, int64_t first_position, int64_t row_count,
                 RowScratch& scratch, absl::Span<SoftmaxState> states) {
  Tile tile = NewTile(shape, scratch);
  TileQueries heads{q, states.data(), queries * shape.group, shape.group, 0, shape.scale};
  // Rows that no query sees are not even read.
  const int64_t seen = std::min(row_count, query_position + queries - first_position);
  constexpr auto kRows = static_cast<int64_t>(kTileRows);
  for (int64_t done = 0; done < seen; done += kRows) {
    tile.rows = static_cast<size_t>(std::min(kRows, seen - done));
    const std::byte* tile_rows[kTileRows];
    for (size_t i = 0; i < tile.rows; ++i) tile_rows[i] = rows + (done + i) * shape.row_bytes();
    HWY_DYNAMIC_DISPATCH(LoadTile)(shape.dtype, tile_rows, tile);
    heads.visible = query_position + 1 - (first_position + done);
    HWY_DYNAMIC_DISPATCH(AttendTile)(tile, heads);
  }
}

void AddValues(const HeadShape& shape, const std::byte* rows, int64_t row_count, double* sum) {
  HWY_DYNAMIC_DISPATCH(AddValues)
  (shape.dtype, rows, static_cast<size_t>(row_count), static_cast<size_t>(shape.head_dim), sum);
}

void MixValueMean(int head_dim, float alpha, const float* mean_sum, uint64_t mean_rows,
                  const float* attended, float* output) {
  const float share = mean_rows == 0 ? 0.0F : (1.0F - alpha) / static_cast<float>(mean_rows);
  const float kept = mean_rows == 0 ? 1.0F : alpha;
  for (int c = 0; c < head_dim; ++c) {
    output[c] = mean_rows == 0 ? attended[c] : kept * attended[c] + share * mean_sum[c];
  }
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
