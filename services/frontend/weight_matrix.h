// A weight matrix of a model and its product with activations.
#ifndef TERRACE_SERVICES_FRONTEND_WEIGHT_MATRIX_H_
#define TERRACE_SERVICES_FRONTEND_WEIGHT_MATRIX_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/frontend/safetensors.h"
#include "services/frontend/workers.h"

namespace terrace::frontend {

// WeightMatrix holds W [rows][cols], bf16 weights as bf16 and others as fp32, in panels of 16
// rows with the columns outermost, so that one vector load brings one column of a panel.
// Immutable; move-only in practice (copies are expensive).
//
// Invariant: an output is summed over its columns in ascending order in one fp32 accumulator,
// whatever the number of tokens, threads or panels. So n tokens at once give the same bits as n
// tokens one by one.
class WeightMatrix {
 public:
  WeightMatrix() = default;
  // InvalidArgument if the tensor is not two-dimensional or its dtype is none of F32, BF16, F16.
  static absl::StatusOr<WeightMatrix> FromTensor(const TensorView& tensor);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // Writes row `row` as floats to out[cols].
  void CopyRow(int64_t row, float* out) const;

  // y[t][r] = Σ_c W[r][c] · x[t][c].  x: [tokens][cols], y: [tokens][rows].
  void Multiply(const float* x, int64_t tokens, float* y, Workers& workers) const;

 private:
  int64_t panels() const;

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  bool bfloat16_ = false;
  // One of the two holds [panels][cols][16]; rows beyond rows_ are zero.
  std::vector<uint16_t> bfloat16s_;
  std::vector<float> floats_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_WEIGHT_MATRIX_H_
