#include "services/frontend/weight_matrix.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

// The kernel keeps vectors in arrays, which vectors of unknown size do not allow; those machines
// run the fixed-size target below.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "services/frontend/weight_matrix.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#ifndef TERRACE_SERVICES_FRONTEND_WEIGHT_PANELS_
#define TERRACE_SERVICES_FRONTEND_WEIGHT_PANELS_
namespace terrace::frontend {

constexpr int64_t kPanelRows = 16;

// The operands of a product over panels [first_panel, end_panel).
template <typename Weight>
struct PanelProduct {
  const Weight* weights;  // [panels][cols][kPanelRows]
  int64_t rows;
  int64_t cols;
  const float* x;  // [tokens][cols]
  int64_t tokens;
  float* y;  // [tokens][rows]
  int64_t first_panel;
  int64_t end_panel;
};

}  // namespace terrace::frontend
#endif  // TERRACE_SERVICES_FRONTEND_WEIGHT_PANELS_

HWY_BEFORE_NAMESPACE();
namespace terrace::frontend::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, kPanelRows>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(D()));
constexpr int64_t kVectors = kPanelRows / kLanes;  // per panel
// Tile of panels x tokens: as many accumulators as the registers of the target can hold.
constexpr int64_t kTilePanels = kLanes == 16 ? 2 : 1;
constexpr int64_t kTileTokens = kLanes == 16 ? 8 : (kLanes == 8 ? 4 : 2);
// Panels at a time for a lone token: enough independent sums to hide the latency of one.
constexpr int64_t kLonePanels = kLanes == 16 ? 4 : (kLanes == 8 ? 2 : 1);

HWY_INLINE V LoadWeights(const float* weights) { return hn::LoadU(D(), weights); }
HWY_INLINE V LoadWeights(const uint16_t* weights) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, weights))));
}

// y of `kPanels` panels from `panel` on and of `kTokens` tokens from `token` on.
template <int64_t kPanels, int64_t kTokens, typename Weight>
HWY_INLINE void MultiplyTile(const PanelProduct<Weight>& product, int64_t panel, int64_t token) {
  const D d;
  V sums[kPanels * kVectors][kTokens];
  for (int64_t i = 0; i < kPanels * kVectors; ++i) {
    for (int64_t t = 0; t < kTokens; ++t) sums[i][t] = hn::Zero(d);
  }
  const int64_t panel_size = product.cols * kPanelRows;
  const Weight* weights = product.weights + panel * panel_size;
  const float* x = product.x + token * product.cols;
  for (int64_t c = 0; c < product.cols; ++c) {
    V w[kPanels * kVectors];
    for (int64_t i = 0; i < kPanels * kVectors; ++i) {
      w[i] = LoadWeights(weights + (i / kVectors) * panel_size + c * kPanelRows +
                         (i % kVectors) * kLanes);
    }
    for (int64_t t = 0; t < kTokens; ++t) {
      const V activation = hn::Set(d, x[t * product.cols + c]);
      for (int64_t i = 0; i < kPanels * kVectors; ++i) {
        sums[i][t] = hn::MulAdd(w[i], activation, sums[i][t]);
      }
    }
  }
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t p = 0; p < kPanels; ++p) {
      HWY_ALIGN float lanes[kPanelRows];
      for (int64_t i = 0; i < kVectors; ++i) {
        hn::Store(sums[p * kVectors + i][t], d, lanes + i * kLanes);
      }
      const int64_t row = (panel + p) * kPanelRows;
      const int64_t count = std::min(kPanelRows, product.rows - row);
      std::memcpy(product.y + (token + t) * product.rows + row, lanes,
                  static_cast<size_t>(count) * sizeof(float));
    }
  }
}

template <int64_t kPanels, typename Weight>
void MultiplyPanels(const PanelProduct<Weight>& product, int64_t panel) {
  int64_t token = 0;
  for (; token + kTileTokens <= product.tokens; token += kTileTokens) {
    MultiplyTile<kPanels, kTileTokens>(product, panel, token);
  }
  for (; token < product.tokens; ++token) MultiplyTile<kPanels, 1>(product, panel, token);
}

template <typename Weight>
void MultiplyAll(const PanelProduct<Weight>& product) {
  int64_t panel = product.first_panel;
  if (product.tokens == 1) {
    for (; panel + kLonePanels <= product.end_panel; panel += kLonePanels) {
      MultiplyTile<kLonePanels, 1>(product, panel, 0);
    }
  } else {
    for (; panel + kTilePanels <= product.end_panel; panel += kTilePanels) {
      MultiplyPanels<kTilePanels>(product, panel);
    }
  }
  for (; panel < product.end_panel; ++panel) MultiplyPanels<1>(product, panel);
}

void MultiplyFloat(const PanelProduct<float>& product) { MultiplyAll(product); }
void MultiplyBFloat16(const PanelProduct<uint16_t>& product) { MultiplyAll(product); }

}  // namespace terrace::frontend::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::frontend {

HWY_EXPORT(MultiplyFloat);
HWY_EXPORT(MultiplyBFloat16);

namespace {

// Below this many products a hand-over to another thread costs more than it saves.
constexpr int64_t kProductsPerThreadMin = 1 << 20;

}  // namespace

int64_t WeightMatrix::panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }

absl::StatusOr<WeightMatrix> WeightMatrix::FromTensor(const TensorView& tensor) {
  if (tensor.shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, ": shape ",
                                                   ShapeText(tensor.shape), ", a matrix expected"));
  }
  WeightMatrix matrix;
  matrix.rows_ = tensor.shape[0];
  matrix.cols_ = tensor.shape[1];
  matrix.bfloat16_ = tensor.dtype == "BF16";
  const size_t size = static_cast<size_t>(matrix.panels() * matrix.cols_ * kPanelRows);
  auto place = [&matrix](int64_t row, int64_t col) {
    return static_cast<size_t>(((row / kPanelRows) * matrix.cols_ + col) * kPanelRows +
                               row % kPanelRows);
  };
  if (matrix.bfloat16_) {
    matrix.bfloat16s_.assign(size, 0);
    const std::byte* in = tensor.data.data();
    for (int64_t row = 0; row < matrix.rows_; ++row) {
      for (int64_t col = 0; col < matrix.cols_; ++col, in += sizeof(uint16_t)) {
        std::memcpy(&matrix.bfloat16s_[place(row, col)], in, sizeof(uint16_t));
      }
    }
    return matrix;
  }
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  if (absl::Status status = ReadFloats(tensor, absl::MakeSpan(values)); !status.ok()) {
    return status;
  }
  matrix.floats_.assign(size, 0.0F);
  for (int64_t row = 0; row < matrix.rows_; ++row) {
    for (int64_t col = 0; col < matrix.cols_; ++col) {
      matrix.floats_[place(row, col)] = values[static_cast<size_t>(row * matrix.cols_ + col)];
    }
  }
  return matrix;
}

void WeightMatrix::CopyRow(int64_t row, float* out) const {
  const int64_t first = (row / kPanelRows) * cols_ * kPanelRows + row % kPanelRows;
  for (int64_t col = 0; col < cols_; ++col) {
    const size_t place = static_cast<size_t>(first + col * kPanelRows);
    if (bfloat16_) {
      const uint32_t bits = static_cast<uint32_t>(bfloat16s_[place]) << 16;
      std::memcpy(out + col, &bits, sizeof(bits));
    } else {
      out[col] = floats_[place];
    }
  }
}

void WeightMatrix::Multiply(const float* x, int64_t tokens, float* y, Workers& workers) const {
  auto multiply = [&](int64_t first_panel, int64_t end_panel) {
    if (bfloat16_) {
      HWY_DYNAMIC_DISPATCH(MultiplyBFloat16)
      ({bfloat16s_.data(), rows_, cols_, x, tokens, y, first_panel, end_panel});
    } else {
      HWY_DYNAMIC_DISPATCH(MultiplyFloat)
      ({floats_.data(), rows_, cols_, x, tokens, y, first_panel, end_panel});
    }
  };
  if (rows_ * cols_ * tokens < kProductsPerThreadMin * workers.threads()) {
    multiply(0, panels());
  } else {
    workers.Run(panels(), multiply);
  }
}

}  // namespace terrace::frontend
#endif  // HWY_ONCE
